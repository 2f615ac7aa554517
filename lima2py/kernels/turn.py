"""Copy images that are mirrored or turned by a quarter, many times quicker than a plain copy would.

All functions copy one band of `images` `(frames, bands, height, width)` into a larger image in
`out`, also `(frames, bands, height, width)`: to the band `out_band`, with the corner at column
`left` and row `top`. Pixels of any kind can be copied: view them as unsigned integers.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lima2py.kernels.compiled import njit

OPTIONS: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy"}
SIDE = 256
APART = SIDE + 32
"""Rows of a square lie so far apart that a column of it fits into the fastest cache."""


@njit(**OPTIONS)
def mirror(images, band, out, out_band, left, top, upside_down):  # type: ignore[no-untyped-def]
    """Exchange left and right, and top and bottom too if it shall be upside down."""
    height, width = images.shape[2:]
    last = np.uint64(width - 1)  # with signed numbers the loop would be several times slower
    for frame in range(images.shape[0]):
        for y in range(height):
            pixels = images[frame, band, height - 1 - y if upside_down else y]
            made = out[frame, out_band, top + y][left : left + width]
            for x in range(width):
                made[x] = pixels[last - np.uint64(x)]


@njit(**OPTIONS)
def exchange(  # type: ignore[no-untyped-def]
    images, band, out, out_band, left, top, bottom_first, right_first
):
    """Make columns of rows.

    The first column is the top row, or the bottom row; each begins with its left pixel, or its
    right one.

    Reading along rows and writing along columns at once misses the caches at nearly every pixel; a
    square of pixels in between keeps both sides in whole cache lines.
    """
    height, width = images.shape[2:]
    square = np.empty((SIDE, APART), images.dtype)
    for frame in range(images.shape[0]):
        for y in range(0, height, SIDE):
            rows = min(SIDE, height - y)
            for x in range(0, width, SIDE):
                columns = min(SIDE, width - x)
                for row in range(rows):
                    there = height - 1 - y - row if bottom_first else y + row
                    pixels = images[frame, band, there][x : x + columns]
                    for column in range(columns):
                        square[column, row] = pixels[column]
                for column in range(columns):
                    there = width - 1 - x - column if right_first else x + column
                    made = out[frame, out_band, top + there][left + y : left + y + rows]
                    pixels = square[column]
                    for row in range(rows):
                        made[row] = pixels[row]
