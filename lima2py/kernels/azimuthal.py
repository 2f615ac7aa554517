"""Share the pixels of a strip out among the bins they fall into.

A table says for every pixel `p` of an image into which bins it falls, and with which share: the
entries `start[p] .. start[p + 1] - 1` of `bins` and `shares`. An entry is for one bin, or for four
that follow one another: what a pixel adds to these is then computed and added at once. Each bin
that four begin with has four sums of its own, so that no two additions overlap: the processor hands
on what was just written only if it is read in the same piece. Pixels of value 0 may be skipped:
they add nothing. What holds for every frame (the sums of shares and weights of all pixels) is not
added up here, but what is missing from it where a pixel has no valid value.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

from lima2py.kernels.compiled import njit
from lima2py.kernels.vectors import as_vector, element, everywhere

FOUR = 4
"""How many bins one after the other an entry may be for, if not one."""


def _write_four(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """Add to four sums the product of all values, each of them by the four shares."""

    def four(which: int, kind: Any) -> Any:
        first = element(context, builder, signature, arguments, which, arguments[which + 1])
        return as_vector(builder, first, kind, FOUR)

    double = ir.VectorType(ir.DoubleType(), FOUR)
    target = four(0, ir.DoubleType())
    share = builder.fpext(builder.load(four(2, ir.FloatType()), align=4), double)
    added = None
    for value in arguments[4:]:
        shared = builder.fmul(everywhere(builder, value, FOUR), share)
        added = shared if added is None else builder.fmul(added, shared)
    may_contract = ("contract",)
    before = builder.load(target, align=8)
    builder.store(builder.fadd(before, added, flags=may_contract), target, align=8)
    return context.get_dummy_value()


@intrinsic  # type: ignore[untyped-decorator]
def _add_four(_context: Any, sums: Any, place: Any, shares: Any, at: Any, value: Any) -> Any:
    """Add a value to four sums, by four shares.

    Args:
        sums: float64, in one row.
        place: the first of the four among them.
        shares: float32, in one row.
        at: the first of the four among them.
        value: to be shared out.
    """
    given = (sums, types.intp, shares, types.intp, types.float64)
    return types.void(*given), _write_four


@intrinsic  # type: ignore[untyped-decorator]
def _add_product_to_four(
    _context: Any, sums: Any, place: Any, shares: Any, at: Any, value: Any, other: Any
) -> Any:
    """The same with the product of two values, each shared out: a share of 0 keeps it 0.

    The product of the values themselves may be infinite, and that is no number times 0.
    """
    given = (sums, types.intp, shares, types.intp, types.float64, types.float64)
    return types.void(*given), _write_four


@njit(nogil=True, cache=True, error_model="numpy")
def integrate(  # type: ignore[no-untyped-def]
    strip, row, frame, height, start, bins, shares, weights, low, high, sums, missing
):
    """Add the pixels of a strip to the sums of its frame.

    Args:
        strip: pixels `(rows, width)`.
        row: the number of its first row; bands lie below one another.
        frame: the number of the frame in `sums` and `missing`.
        height: of one band.
        start: uint32 `(height × width + 1)`, the first entry of every pixel.
        bins: uint32, of every entry the first bin.
        shares: float32 `(entries, 1 or FOUR)`: of every entry, the shares of its bins; 0 for those
            that the pixel does not fall into, which need not exist.
        weights: float32 `(height × width)`, by which a pixel counts in the normalisation.
        low: pixels from `low` to `high` have no valid value; nor have those that are not finite.
        high: see `low`.
        sums: float64 `(frames, bands, lanes, bins, columns, 1 or FOUR)`, to be added up over the
            lanes, a power of two: neighbouring pixels, which may fall into the same bins, need not
            wait for each other; and the second of four to those of the next bin. The first column
            is the signal. If there are two, the second is what Poisson statistics make of the
            variance beyond the 1 that every pixel has at least; if there are three, the others are
            the squared values, and the values times their weights, both by the squared shares.
        missing: float64 `(frames, bands, bins, 5)`: what `totals` of the table has, of pixels
            without a valid value: weights, shares, squared shares, entries (those of share 0 not
            counted) and squared weights by the squared shares; of no frame, if all pixels are
            valid.
    """
    # No view is made in the loops over pixels: numba would count who holds it, each time.
    rows, width = strip.shape
    bands, lanes, nb_bins, columns, side = sums.shape[1:]
    all_sums, all_shares = sums.reshape(-1), shares.reshape(-1)
    may_miss = missing.shape[0] > 0
    found = np.empty(width, np.uint32)
    for y in range(rows):
        line = strip[y]
        band = (row + y) // height
        first = (row + y - band * height) * width
        begins = start[first : first + width + 1]
        lane = (frame * bands + band) * lanes * nb_bins
        not_zero = 0
        for x in range(width):
            not_zero += line[x] != 0
        n = 0
        if may_miss:
            lost = missing[frame, band]
            for x in range(width):
                v = np.float64(line[x])
                if (low <= v <= high) or v - v != 0.0:
                    _miss(begins[x], begins[x + 1], bins, shares, weights[first + x], lost)
                else:
                    found[n] = x
                    n += v != 0.0
        elif 4 * not_zero < 3 * width:
            for x in range(width):
                found[n] = x
                n += line[x] != 0
        else:  # so many that it is quicker to take all
            for x in range(width):
                v, of_lane = np.float64(line[x]), lane + (x & (lanes - 1)) * nb_bins
                w = np.float64(weights[first + x]) if columns == 3 else 1.0
                for k in range(begins[x], begins[x + 1]):
                    _add(v, w, k, bins, all_shares, side, columns, of_lane, all_sums)
        for i in range(n):
            pixel = np.intp(found[i])
            v, of_lane = np.float64(line[pixel]), lane + (i & (lanes - 1)) * nb_bins
            w = np.float64(weights[first + pixel]) if columns == 3 else 1.0
            for k in range(begins[pixel], begins[pixel + 1]):
                _add(v, w, k, bins, all_shares, side, columns, of_lane, all_sums)


# By LLVM's own estimate it is too long to be inlined, and a call for every pixel takes ten times
# as long.
@njit(nogil=True, cache=True, error_model="numpy", forceinline=True)
def _add(v, w, k, bins, shares, side, columns, lane, sums):  # type: ignore[no-untyped-def]
    """Add a pixel of value `v` and weight `w` to the bins of its entry `k`."""
    place = (lane + np.intp(bins[k])) * columns * side
    beyond = max(v - 1.0, 0.0)
    if side == FOUR:
        at = np.intp(FOUR * k)
        _add_four(sums, place, shares, at, v)
        if columns == 2:
            _add_product_to_four(sums, place + FOUR, shares, at, beyond, 1.0)
        elif columns == 3:
            _add_product_to_four(sums, place + FOUR, shares, at, v, v)
            _add_product_to_four(sums, place + 2 * FOUR, shares, at, v, w)
    else:
        share = np.float64(shares[k])
        shared = v * share
        sums[place] += shared
        if columns == 2:
            sums[place + 1] += beyond * share * share
        elif columns == 3:
            sums[place + 1] += shared * shared
            sums[place + 2] += shared * (w * share)


@njit(nogil=True, cache=True, error_model="numpy")
def _miss(begin, end, bins, shares, weight, lost):  # type: ignore[no-untyped-def]
    """Note that a pixel has no valid value."""
    weight = np.float64(weight)
    for k in range(begin, end):
        for offset in range(shares.shape[1]):
            share = np.float64(shares[k, offset])
            if share != 0.0:
                of_bin = lost[bins[k] + offset]
                of_bin[0] += share * weight
                of_bin[1] += share
                of_bin[2] += share * share
                of_bin[3] += 1.0
                of_bin[4] += share * share * weight * weight
