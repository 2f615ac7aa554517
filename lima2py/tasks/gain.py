"""Turn the pixels of a gain-switching detector (JUNGFRAU) into energy or photons.

Such a pixel lowers its gain by itself when much charge arrives, and says in two bits which gain it
had.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from lima2py.errors import BadParameter
from lima2py.frame import Array, FrameSpec
from lima2py.onepass import Operation, Pixelwise
from lima2py.task import InputFile
from lima2py.tasks.images import by_pieces, lay_under, read_images
from lima2py.tasks.pixels import Arithmetic, PixelValue, ResultType, as_pixel


class GainSwitching(Pixelwise):
    """Convert raw pixels with gain bits: `(adc - pedestal[g]) / (gain[g] × energy)`.

    The pixels must be uint16: bits 0 to 13 are the ADC's value, bits 14 and 15 the gain: 0 is G0
    (high), 1 is G1 (medium), 3 is G2 (low); 2 does not exist, and such pixels become `value`. So do
    those whose pedestal is not finite in their gain, or whose gain is 0 or not finite. Format and
    formula are those of JUNGFRAU: S. Redford et al., JINST 13 (2018) C01027.

    The result is float32 unless `dtype` says otherwise. `1 / (gain × energy)` is computed once, in
    float64.
    """

    pedestal: InputFile
    """Pedestals in ADC units, a stack of 3 images `(3, height, width)` for G0, G1 and G2, or
    `(3, bands, height, width)` where modules travel as bands; `.npy` or HDF5 (`path` or
    `path::/dataset`). They cannot be laid under binned pixels: convert before the bin."""
    gain: InputFile
    """Gains in ADC units per keV, a stack like the pedestals; negative in G1 and G2, as these count
    downwards."""
    energy: Annotated[float, Field(gt=0)] = 1.0
    """The energy of a photon in keV, to count photons; with 1 the result is in keV."""
    value: PixelValue = "fill"
    """What pixels that cannot be converted are set to. `fill` is what files show for "no value":
    NaN of floats, the largest number of integers."""
    dtype: ResultType | None = None
    """The type of the result, if another is wanted. Integers are rounded, and clipped to what the
    type holds."""

    def operation(self, spec: FrameSpec) -> Operation:
        """Read pedestals and gains and find their pixels."""
        if spec.dtype != np.uint16:
            raise BadParameter(
                f"from: pixels with gain bits are uint16, and {spec.dtype} comes in; put this task"
                " directly after the detector"
            )
        types = Arithmetic.of(spec.dtype, self.dtype)
        value = as_pixel(self.value, types.result, "value")
        pedestal = lay_under(read_images(self.pedestal, spec, "pedestal", 3), spec, "pedestal")
        gain = lay_under(read_images(self.gain, spec, "gain", 3), spec, "gain")
        pedestal = by_pieces(_finite, pedestal, types.real)
        factor = by_pieces(lambda rows: _finite(1 / _finite(rows * self.energy)), gain, types.real)
        numbers = {f"pedestal{number}": image for number, image in enumerate(pedestal)}
        numbers |= {f"factor{number}": image for number, image in enumerate(factor)}
        chosen = "({0}0 if v < 16384 else {0}1 if v < 32768 else {0}2)".format
        factor_of = chosen("factor")
        converted = f"(real(uint16(v & 16383)) - {chosen('pedestal')}) * {factor_of}"
        valid = f"(v < 32768 or v >= 49152) and {converted} == {converted}"
        return types.operation(
            f"{converted} if {valid} else value", numbers | {"value": float(value)}
        )


def _finite(numbers: Array) -> Array:
    """NaN for what is infinite."""
    return np.where(np.isfinite(numbers), numbers, np.nan)
