"""Find peaks: put pixels that were picked out, and that touch each other, together."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field, PrivateAttr

from lima2py.errors import BadParameter
from lima2py.frame import Array, Block, FrameSpec, Ragged
from lima2py.geometry import Affine
from lima2py.inputs import needs_one_band
from lima2py.task import RunContext, Task

PEAKS = np.dtype([("x", "f8"), ("y", "f8"), ("intensity", "f8"), ("nb_pixels", "u4")])
"""One peak."""


class FindPeaks(Task):
    """The peaks of every frame: groups of pixels that touch, with position and intensity.

    It takes what `sparsify` or `sparsify_radial` gives: the pixels that are intense enough. Those
    that touch each other by an edge or a corner are one peak. What a pixel holds is its value; less
    the background under it, after `sparsify_radial`.

    What comes out is sparse: for every peak, ordered by its first pixel, `x` and `y`, its centre in
    *detector* pixels (the centre of the first pixel is 0.5, 0.5), whatever was cropped, binned or
    turned before, weighted by what the pixels hold, if that is more than 0; `intensity`, what they
    hold together (all float64); and `nb_pixels`, how many they are (uint32), in pixels of the
    image that was sparsified. Where frames have no place on the detector, positions are those in
    the image. One band only. How many peaks a frame has is the number of its rows.
    """

    min_pixels: Annotated[int, Field(ge=1)] = 1
    """Groups of fewer pixels are no peaks."""

    _image: FrameSpec = PrivateAttr()

    def prepare(self, spec: FrameSpec) -> FrameSpec:
        """Check that pixels come in."""
        if spec.kind != "sparse" or not {"index", "value"} <= set(spec.dtype.names or ()):
            raise BadParameter(
                f"from: sparse pixels should come in, and it is {spec}; put sparsify or"
                " sparsify_radial before it"
            )
        needs_one_band(spec)
        self._image = spec
        place = None if spec.to_detector is None else Affine()
        self._spec = spec.replace(dtype=PEAKS, to_detector=place)
        return self._spec

    def start(self, run: RunContext) -> None:
        """Compile, so that the first frame does not wait."""
        nothing = np.empty(0, np.uint32), np.empty(0), np.zeros(1, np.int64)
        self._grouped(*nothing, np.empty(0, np.bool_))

    def process(self, block: Block) -> Block:
        """The peaks of every frame."""
        rows = block.rows
        held = rows.columns["value"].astype(np.float64)
        if "background" in rows.columns:
            held -= rows.columns["background"]
        index = rows.columns["index"].astype(np.uint32)
        columns, counts = self._grouped(index, held, rows.offsets, block.present)
        m, x, y = self._image.to_detector or Affine(), columns["x"], columns["y"]
        columns["x"], columns["y"] = m.a * x + m.b * y + m.c, m.d * x + m.e * y + m.f
        return block.carry(self._spec, Ragged.of(counts, columns))

    def _grouped(
        self, index: Array, held: Array, offsets: Array, present: Array
    ) -> tuple[dict[str, Array], Array]:
        """The peaks, and how many each frame has."""
        from lima2py.kernels.radial import groups

        columns = {name: np.empty(len(index), PEAKS[name]) for name in PEAKS.names or ()}
        counts = np.zeros(len(present), np.int64)
        number = groups(
            index, held, offsets, present, self._image.width, self.min_pixels, *columns.values(),
            counts,
        )  # fmt: skip
        if number < 0:
            raise ValueError("the pixels of a sparse frame are not in ascending order")
        return {name: column[:number] for name, column in columns.items()}, counts
