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
        self._room = np.empty(0, np.uint32), np.empty(0, spec.dtype)
        dtype = np.dtype([("index", np.uint32), ("value", spec.dtype)])
        return FrameSpec("sparse", spec.shape, dtype, spec.to_detector,
                         detector_shape=spec.detector_shape, span=spec.span)  # fmt: skip

    @property
    def constants(self) -> tuple[Any, ...]:
        """What to compare with, and the rows of a frame."""
        return (self._limit, np.int64(self._input.bands * self._input.height))

    def buffers(self, count: int) -> tuple[Array, ...]:
        """No pixel found."""
        from lima2py.kernels.sparsify import SPARE  # takes half a second, for numba

        size = count * (math.prod(self._input.shape) + SPARE)
        if len(self._room[0]) < size:
            self._room = np.empty(size, np.uint32), np.empty(size, self._input.dtype)
        return (np.zeros((count, 2), np.int64), np.zeros(2, np.int64), *self._room)

    def conclude(self, block: Block, buffers: tuple[Array, ...]) -> Block:
        """The rows of all frames, one after the other."""
        places, state, *room = buffers
        counts = places[:, 1] - places[:, 0]
        total = counts.sum()
        # From frame to frame they lie one after the other already, unless strips alternated.
        pieces = [(0, total)] if state[1] == total else places
        columns = {
            name: np.concatenate([own[begin:end] for begin, end in pieces] or [own[:0]])
            for name, own in zip(("index", "value"), room, strict=True)
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
