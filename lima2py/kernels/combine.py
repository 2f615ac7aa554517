"""Weighted sums of images, a stretch of pixels at a time so that it stays in the cache."""

from __future__ import annotations

from typing import Any

from lima2py.kernels.compiled import njit

OPTIONS: dict[str, Any] = {
    "nogil": True,
    "cache": True,
    "error_model": "numpy",
    "fastmath": {"contract", "nsz"},
}
STRETCH = 4096


@njit(**OPTIONS)
def weighted_sums(sources, weights, out):  # type: ignore[no-untyped-def]
    """Add bands, or several frames band by band.

    Args:
        sources: tuple of arrays `(frames, bands, pixels)`; if there is one, its bands are added,
            else the bands of the same number of all.
        weights: one for each summand, of the type of `out`.
        out: `(frames, bands, pixels)`, one band if there is one source.
    """
    several = len(sources) > 1
    for frame in range(out.shape[0]):
        for band in range(out.shape[1]):
            for first in range(0, out.shape[2], STRETCH):
                made = out[frame, band, first : first + STRETCH]
                made[:] = 0
                for number in range(weights.size):
                    source = sources[number if several else 0]
                    pixels = source[frame, band if several else number, first : first + STRETCH]
                    weight = weights[number]
                    for place in range(made.size):
                        made[place] += weight * pixels[place]
