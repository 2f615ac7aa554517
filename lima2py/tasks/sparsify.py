"""Keep only the pixels that hold something: of photon frames a small part."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from pydantic import PrivateAttr

from lima2py.errors import BadParameter
from lima2py.frame import Array, Block, FrameSpec, Ragged
from lima2py.onepass import Stripwise
from lima2py.tasks.pixels import Number, limit_of

_SPARE = 8
"""The kernel may write so many places beyond the last pixel."""


class Sparsify(Stripwise):
    """Keep the pixels above a limit: where each of them is, and what it holds.

    What comes out is sparse: a row for every pixel above, in the order of the pixels, with the
    columns `index` (uint32), the number of the pixel in the flattened frame `(bands, height,
    width)`, and `value`, of the type of the pixels. NaN is never above. Frames may have up to 2**32
    pixels.
    """

    above: Number = 0
    """Pixels are kept that hold more than this, exactly; it lies in the range of their type."""

    function = "lima2py.kernels.sparsify:sparsify"

    _limit: np.generic = PrivateAttr()
    _room: tuple[Array, Array] = PrivateAttr()
    """For all pixels of all frames of a block; memory is taken only for what is ever written."""

    def product(self, spec: FrameSpec) -> FrameSpec:
        """Rows of index and value."""
        self._limit = limit_of(self.above, spec.dtype, "above")
        bands, height, width = spec.shape
        if bands * height * width > 2**32:
            raise BadParameter(f"from: {spec} has more than 2**32 pixels, too many to number")
        self._room = np.empty((0, 0), np.uint32), np.empty((0, 0), spec.dtype)
        dtype = np.dtype([("index", np.uint32), ("value", spec.dtype)])
        return FrameSpec("sparse", spec.shape, dtype, spec.to_detector,
                         detector_shape=spec.detector_shape, span=spec.span)  # fmt: skip

    @property
    def constants(self) -> tuple[Any, ...]:
        """What to compare with."""
        return (self._limit,)

    def buffers(self, count: int) -> tuple[Array, ...]:
        """No pixel found."""
        if len(self._room[0]) < count:
            shape = count, math.prod(self._input.shape) + _SPARE
            self._room = np.empty(shape, np.uint32), np.empty(shape, self._input.dtype)
        return (np.zeros(count, np.int64), *(room[:count] for room in self._room))

    def conclude(self, block: Block, buffers: tuple[Array, ...]) -> Block:
        """The rows of all frames, one after the other."""
        counts, *found = buffers
        columns = {
            name: np.concatenate(
                [
                    np.empty(0, room.dtype),
                    *(own[:count] for own, count in zip(room, counts, strict=True)),
                ]
            )
            for name, room in zip(("index", "value"), found, strict=True)
        }
        return block.carry(self._spec, Ragged.of(counts, columns))


def densify(rows: Ragged, spec: FrameSpec) -> Array:
    """The images that sparse frames tell about; 0 where there is no row.

    Args:
        rows: with the columns `index` and `value`.
        spec: of the sparse product.

    Returns:
        Array `(frames, *spec.shape)` of the type of `value`.
    """
    images = np.zeros((len(rows), *spec.shape), rows.columns["value"].dtype)
    frame = np.repeat(np.arange(len(rows)), rows.counts)
    images.reshape(len(rows), -1)[frame, rows.columns["index"]] = rows.columns["value"]
    return images
