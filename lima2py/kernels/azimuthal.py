"""Share the pixels of a strip out among the bins they fall into.

A table says for every pixel `p` of an image into which bins it falls, and with which share: the
entries `start[p] .. start[p + 1] - 1` of `bins` and `shares`. They come in pairs, because most
pixels fall into one or two bins, and a loop that is mostly gone through once is quick; where their
number is odd there is one more, whose share is 0. Pixels of value 0 are skipped: they add nothing.
What holds for every frame (the sums of shares and weights of all pixels) is not added up here, but
what is missing from it where a pixel has no valid value.
"""

import numpy as np

from lima2py.kernels.compiled import njit


@njit(nogil=True, cache=True, error_model="numpy")
def integrate(  # type: ignore[no-untyped-def]
    strip, row, frame, height, start, bins, shares, weights, low, high, every, sums, missing
):
    """Add the pixels of a strip to the sums of its frame.

    Args:
        strip: pixels `(rows, width)`.
        row: the number of its first row; bands lie below one another.
        frame: the number of the frame in `sums` and `missing`.
        height: of one band.
        start: uint32 `(height × width + 1)`, the first entry of every pixel.
        bins: uint32, of every entry.
        shares: float32, of every entry.
        weights: float32 `(height × width)`, by which a pixel counts in the normalisation.
        low: pixels from `low` to `high` have no valid value; nor have those that are not finite.
        high: see `low`.
        every: whether 0 is such a value, so that no pixel may be skipped.
        sums: float64 `(frames, bands, lanes, bins, columns)`, to be added up over the lanes, a
            power of two: neighbouring pixels, which fall into the same bins, need not wait for
            each other. The first column is the signal. A second one, if there is, is what Poisson
            statistics make of the variance beyond the 1 that every pixel has at least.
        missing: float64 `(frames, bands, bins, 4)`: weights, shares, squared shares and entries of
            pixels without a valid value, entries of share 0 not counted; of no frame, if all pixels
            are valid.
    """
    # No view is made in the loop over pixels: numba would count who holds it, each time.
    rows, width = strip.shape
    pixels = height * width
    lanes = sums.shape[2]
    poisson = sums.shape[4] == 2
    may_miss = missing.shape[0] > 0
    found = np.empty(width, np.uint32)
    for y in range(rows):
        line = strip[y]
        band = (row + y) // height
        first = (row + y) * width - band * pixels
        begins = start[first : first + width + 1]
        own = sums[frame, band]
        n = 0
        for x in range(width):
            found[n] = x
            n += every | (line[x] != 0)
        for i in range(n):
            x = found[i]
            v = np.float64(line[x])
            lane = i & (lanes - 1)
            if may_miss and ((low <= v <= high) or v - v != 0.0):
                for k in range(begins[x], begins[x + 1]):
                    share = np.float64(shares[k])
                    missing[frame, band, bins[k], 0] += share * weights[first + x]
                    missing[frame, band, bins[k], 1] += share
                    missing[frame, band, bins[k], 2] += share * share
                    missing[frame, band, bins[k], 3] += share != 0.0
            elif poisson:
                beyond = max(v - 1.0, 0.0)
                for k in range(begins[x], begins[x + 1], 2):
                    own[lane, bins[k], 0] += v * shares[k]
                    own[lane, bins[k], 1] += beyond * shares[k] * shares[k]
                    own[lane, bins[k + 1], 0] += v * shares[k + 1]
                    own[lane, bins[k + 1], 1] += beyond * shares[k + 1] * shares[k + 1]
            else:
                for k in range(begins[x], begins[x + 1], 2):
                    own[lane, bins[k], 0] += v * shares[k]
                    own[lane, bins[k + 1], 0] += v * shares[k + 1]
