"""Find the pixels above a limit, and the brightest one, strip by strip."""

from __future__ import annotations

import numpy as np

from lima2py.kernels.compiled import njit


@njit(nogil=True, cache=True, error_model="numpy")
def watch(strip, first, frame, limit, masked, above, place, most):  # type: ignore[no-untyped-def]
    """Look at some rows of a frame; NaN is never above anything.

    Args:
        strip: pixels `(rows, width)`.
        first: the number of its first row.
        frame: which place of the results to write to.
        limit: pixels above it are counted; of the type of the pixels.
        masked: pixels not to look at, `(all rows, width)`.
        above: how many pixels are above the limit, is added to.
        place: row and column of the brightest pixel so far, `(frames, 2)`; -1 before there is one.
        most: its value.
    """
    rows, width = strip.shape
    covers = masked[first : first + rows]
    for y in range(rows):
        row = strip[y]
        cover = covers[y]
        brightest = most[frame]
        high = np.int32(0)  # wider ones would halve the speed
        higher = np.int32(0)
        for x in range(width):
            seen = not cover[x]
            high = np.int32(high + np.int32((row[x] > limit) & seen))
            higher = np.int32(higher + np.int32((row[x] > brightest) & seen))
        above[frame] += high
        if higher or place[frame, 0] < 0:  # seldom: look again for where it is
            for x in range(width):
                if cover[x] or row[x] != row[x]:
                    continue
                if place[frame, 0] < 0 or row[x] > most[frame]:
                    most[frame] = row[x]
                    place[frame, 0] = first + y
                    place[frame, 1] = x
