"""The verifiable pattern: every pixel can be computed again from its place and index.

    value = base(band, y + 2 (index // N % SHIFTS), x) + index % N

`base` looks like noise between 0 and N - 1, except that it is even or odd like `band + y + x`. Sums
wrap at N. N is the number of values of an integer dtype; for floats it is half the largest whole
number that the dtype counts to without gaps, and nothing wraps. So

* pixels next to each other (x, y or band) always differ, and so does every pixel of two frames in
  a row;
* an image that was shifted, mirrored, or had rows or bands swapped differs somewhere;
* no frame comes again before `N * SHIFTS` others (33 million for uint16).

Making a frame is one addition into its place in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lima2py.frame import Array
from lima2py.geometry import Roi

SHIFTS = 512
"""How many times the base pattern moves, by two rows, before it begins again."""


class Verifiable:
    """Frames of the verifiable pattern, seen through a window.

    Args:
        window: the part of the detector that is read out.
        dtype: of one pixel.
        bands: images per frame.
    """

    def __init__(self, window: Roi, dtype: DTypeLike, bands: int):
        dtype = np.dtype(dtype)
        if dtype.kind == "f":
            bits = np.finfo(dtype).nmant
            self._working = dtype
        else:
            bits = dtype.itemsize * 8
            self._working = np.dtype(f"u{dtype.itemsize}")  # wraps; same bits when signed
        self._values = 2**bits
        self._height = window.height
        self._base = _base(window, bits, bands).astype(self._working)

    def write(self, index: int, out: Array) -> int:
        """Put the frames `index` and following into `out`, `(frames, bands, height, width)`.

        Returns:
            How many frames were put: all that fit.
        """
        out = out.view(self._working)
        done = 0
        while done < len(out):
            shift, add = divmod(index + done, self._values)
            row = 2 * (shift % SHIFTS)
            count = min(len(out) - done, self._values - add)
            adds = (add + np.arange(count, dtype=np.uint64)).astype(self._working)
            base = self._base[:, row : row + self._height]
            np.add(base, adds[:, None, None, None], out=out[done : done + count])
            done += count
        return done


class Stacked:
    """Several windows of the pattern, one under the other.

    Args:
        windows: the parts of the detector that are read out, equally wide.
        dtype: of one pixel.
        bands: images per frame.
    """

    def __init__(self, windows: Sequence[Roi], dtype: DTypeLike, bands: int):
        self._heights = [window.height for window in windows]
        self._parts = [Verifiable(window, dtype, bands) for window in windows]

    def write(self, index: int, out: Array) -> int:
        """See `Verifiable.write`."""
        top = 0
        for height, part in zip(self._heights, self._parts, strict=True):
            part.write(index, out[:, :, top : top + height])
            top += height
        return len(out)


def _base(window: Roi, bits: int, bands: int) -> NDArray[np.uint64]:
    """Noise with parity, `(bands, height + 2 * SHIFTS, width)`, below `2**bits`."""
    y = np.arange(window.y, window.y + window.height + 2 * SHIFTS, dtype=np.uint64)[:, None]
    x = np.arange(window.x, window.x + window.width, dtype=np.uint64)
    base = np.empty((bands, y.size, x.size), np.uint64)
    for band in range(bands):
        mixed = y * np.uint64(0x9E3779B97F4A7C15) + x * np.uint64(0xD6E8FEB86659FD93)
        mixed += np.uint64((band + 1) * 0x632BE59BD9B4E019 % 2**64)
        for _ in range(2):
            mixed ^= mixed >> np.uint64(32)
            mixed *= np.uint64(0xD6E8FEB86659FD93)
        mixed ^= mixed >> np.uint64(32)
        parity = (y + x + np.uint64(band)) & np.uint64(1)
        base[band] = ((mixed >> np.uint64(64 - bits)) & ~np.uint64(1)) | parity
    return base


def verifiable_frames(
    first: int,
    count: int,
    shape: tuple[int, int],
    dtype: DTypeLike = "uint16",
    bands: int = 1,
) -> Array:
    """The frames `first .. first + count - 1` as the simulator gives them.

    Args:
        first: index of the first frame.
        count: how many.
        shape: `(height, width)` of the whole detector; cut a roi from what is returned.
        dtype: of one pixel.
        bands: images per frame.

    Returns:
        Array `(count, bands, height, width)`.
    """
    height, width = shape
    frames = np.empty((count, bands, height, width), dtype)
    _whole(height, width, np.dtype(dtype), bands).write(first, frames)
    return frames


def verifiable_frame(
    index: int, shape: tuple[int, int], dtype: DTypeLike = "uint16", bands: int = 1
) -> Array:
    """One frame, as array `(bands, height, width)`; see `verifiable_frames`."""
    frame: Array = verifiable_frames(index, 1, shape, dtype, bands)[0]
    return frame


@lru_cache(maxsize=1)
def _whole(height: int, width: int, dtype: np.dtype[Any], bands: int) -> Verifiable:
    return Verifiable(Roi(0, 0, width, height), dtype, bands)
