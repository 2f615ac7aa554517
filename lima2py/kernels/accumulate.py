"""Add frames to what was accumulated of the frames before, pixel by pixel.

All functions take `frames` `(count, pixels)`, the `chosen` ones among them by number, and how many
were `used` before: if none, the arrays to add to may hold anything. They go through the pixels in
tiles, so that what was accumulated stays in the processor's cache while the frames of a block are
added. Frames are added in their order, so that the size of blocks makes no difference.
"""

import numpy as np

from lima2py.kernels.compiled import njit

TILE = 2048
"""Pixels of a tile: even two arrays of float64 fit the first cache."""


@njit(nogil=True, cache=True, error_model="numpy")
def add(frames, chosen, used, total):  # type: ignore[no-untyped-def]
    """Sums. `total` is `(pixels,)`, of a type that holds them."""
    pixels = frames.shape[1]
    count = len(chosen)
    for first in range(0, pixels, TILE):
        end = min(first + TILE, pixels)
        t = total[first:end]
        done = 0
        if used == 0 and count > 0:
            a = frames[chosen[0], first:end]
            for x in range(end - first):
                t[x] = a[x]
            done = 1
        fours = (count - done) // 4
        for n in range(fours):  # the sums are loaded and stored once for four frames
            a = frames[chosen[done + 4 * n], first:end]
            b = frames[chosen[done + 4 * n + 1], first:end]
            c = frames[chosen[done + 4 * n + 2], first:end]
            d = frames[chosen[done + 4 * n + 3], first:end]
            for x in range(end - first):
                t[x] = t[x] + a[x] + b[x] + c[x] + d[x]
        for n in range(done + 4 * fours, count):
            a = frames[chosen[n], first:end]
            for x in range(end - first):
                t[x] += a[x]


@njit(nogil=True, cache=True, error_model="numpy")
def largest(frames, chosen, used, most):  # type: ignore[no-untyped-def]
    """Maxima; NaN if there is one. `most` is `(pixels,)`, of the type of the frames."""
    pixels = frames.shape[1]
    for first in range(0, pixels, TILE):
        end = min(first + TILE, pixels)
        t = most[first:end]
        for n in range(len(chosen)):
            a = frames[chosen[n], first:end]
            if used + n == 0:
                for x in range(end - first):
                    t[x] = a[x]
            else:
                for x in range(end - first):
                    t[x] = a[x] if (a[x] > t[x]) | (a[x] != a[x]) else t[x]


@njit(nogil=True, cache=True, error_model="numpy")
def smallest(frames, chosen, used, least):  # type: ignore[no-untyped-def]
    """Minima; NaN if there is one. `least` is `(pixels,)`, of the type of the frames."""
    pixels = frames.shape[1]
    for first in range(0, pixels, TILE):
        end = min(first + TILE, pixels)
        t = least[first:end]
        for n in range(len(chosen)):
            a = frames[chosen[n], first:end]
            if used + n == 0:
                for x in range(end - first):
                    t[x] = a[x]
            else:
                for x in range(end - first):
                    t[x] = a[x] if (a[x] < t[x]) | (a[x] != a[x]) else t[x]


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})
def spread(frames, chosen, used, mean, squares):  # type: ignore[no-untyped-def]
    """Means, and sums of the squared deviations from them, by Welford's recurrence (1962).

    `mean` and `squares` are `(pixels,)` of float64.
    """
    pixels = frames.shape[1]
    for first in range(0, pixels, TILE):
        end = min(first + TILE, pixels)
        m = mean[first:end]
        s = squares[first:end]
        for n in range(len(chosen)):
            a = frames[chosen[n], first:end]
            if used + n == 0:
                for x in range(end - first):
                    value = np.float64(a[x])
                    m[x] = value
                    s[x] = value - value  # 0, or NaN if the value is not finite
            else:
                weight = 1.0 / (used + n + 1)
                for x in range(end - first):
                    value = np.float64(a[x])
                    away = value - m[x]
                    moved = m[x] + away * weight
                    m[x] = moved
                    s[x] += away * (value - moved)
