"""What is made of the pixels of regions: counters, histograms, centres of mass, weighted sums.

A region is a list of *pieces*, rectangles that do not overlap, from top to bottom. Those of region
r are the rows `starts[r] .. starts[r + 1] - 1` of `pieces`: `top, bottom, left, right`, where
bottom and right are the first ones outside. A piece is at most 65536 pixels wide.

All functions are called strip by strip (`lima2py.onepass.Stripwise`). They go through a strip row
by row, since only what is known to lie side by side is computed many pixels at a time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from lima2py.kernels.compiled import njit
from lima2py.kernels.prefetch import fetch

_SUMS = {"reassoc", "contract", "nsz"}
"""Numbers may be added in another order; NaN and infinity stay what they are."""
_STEP = 2048
"""So many pixels of 16 bits are gone over several times, while they are in the fastest cache."""
_SMALL = 1023
"""The sum of so many squares of numbers up to this one fits 32 bits: 2048 × 1023**2 < 2**31."""


@njit(nogil=True, cache=True, error_model="numpy")
def _fetch_next(strip: Any) -> None:
    """Have the next strip ready: the processor does it by itself only for who is quick."""
    pixels = strip.reshape(-1)
    for place in range(len(pixels), 2 * len(pixels), 64 // pixels.itemsize):
        fetch(pixels, place)


@njit(nogil=True, cache=True, error_model="numpy")
def _first(pieces: Any, begin: Any, end: Any, row: Any) -> Any:
    """The first of some pieces that reaches to a row or below."""
    while begin < end:
        middle = (begin + end) // 2
        if pieces[middle, 1] > row:
            end = middle
        else:
            begin = middle + 1
    return begin


@njit(nogil=True, cache=True, error_model="numpy")
def _lines(strip: Any, row: Any, piece: Any) -> Any:
    """Which lines of a strip a piece has: the first one, and the one after the last."""
    return max(piece[0] - row, 0), min(piece[1] - row, len(strip))


@njit(nogil=True, cache=True, error_model="numpy")
def _cut(strip: Any, row: Any, piece: Any) -> Any:
    """The part of a piece in a strip: some lines, and the columns in them.

    Lines that belong to the piece as a whole are given as one long line.
    """
    first, end = _lines(strip, row, piece)
    lines = strip[first:end]
    width = strip.shape[1]
    if piece[2] == 0 and piece[3] == width:
        length = (end - first) * width
        return lines.reshape(1, length), 0, length
    return lines, piece[2], piece[3]


def _look(lines: Any, left: Any, right: Any) -> Any:
    """Of the pixels of some lines: what `counters` puts together.

    Gives the least and the greatest key, how many are no NaN, their sum, the sum of their squared
    distances from their mean, and how many are NaN.
    """
    raise NotImplementedError


@overload(_look, jit_options={"fastmath": _SUMS, "error_model": "numpy"})  # type: ignore[untyped-decorator]
def _look_at(lines: Any, left: Any, right: Any) -> Any:
    pixel = lines.dtype
    if isinstance(pixel, types.Float):
        return _look_at_floats(np.int32 if pixel.bitwidth == 32 else np.int64, pixel.bitwidth - 1)
    if pixel == types.boolean or pixel.bitwidth <= 16:
        return _look_at_small
    return _look_at_whole(np.int64 if pixel.bitwidth == 32 else np.float64)


@njit(nogil=True, cache=True, error_model="numpy", fastmath=_SUMS)
def _look_at_step(some: Any) -> Any:
    """Least, greatest, sum and sum of squares of up to `_STEP` small whole numbers, all exact."""
    least = most = some[0]
    for x in range(len(some)):
        least = min(least, some[x])
        most = max(most, some[x])
    total = np.int32(0)
    for x in range(len(some)):
        total = np.int32(total + np.int32(some[x]))
    low, high = np.int64(least), np.int64(most)
    if -_SMALL <= low and high <= _SMALL:
        squares = np.int32(0)
        for x in range(len(some)):
            value = np.int32(np.int16(some[x]))  # there is an instruction for just this
            squares = np.int32(squares + np.int32(value * value))
        return low, high, np.int64(total), np.int64(squares)
    exact = 0.0  # below 2**53
    for x in range(len(some)):
        exact += np.float64(some[x]) * np.float64(some[x])
    return low, high, np.int64(total), np.int64(exact)


def _look_at_small(lines: Any, left: Any, right: Any) -> Any:
    """Whole numbers of up to 16 bits: all sums are exact. Short lines are first joined."""
    low = high = np.int64(lines[0, left])
    total = squares = np.int64(0)
    width = right - left
    together = min(max(1, _STEP // width), len(lines))
    joined = np.empty(together * width if together > 1 else 0, lines.dtype)
    for top in range(0, len(lines), together):
        n = min(together, len(lines) - top)
        for y in range(n if together > 1 else 0):
            line = lines[top + y][left:right]
            to = joined[y * width : (y + 1) * width]
            for x in range(len(to)):
                to[x] = line[x]
        long = joined[: n * width] if together > 1 else lines[top][left:right]
        for first in range(0, len(long), _STEP):
            least, most, part, square = _look_at_step(long[first : first + _STEP])
            low, high = min(low, least), max(high, most)
            total += part
            squares += square
    n = len(lines) * width
    # With n up to 2**16 and 16 bits the difference fits 64 bits, whether or not its terms do.
    spread = np.float64(n * squares - total * total) / n
    return low, high, n, np.float64(total), spread, 0


def _look_at_whole(kind: Any) -> Any:
    """Wider whole numbers: those of 32 bits are added exactly."""

    def look(lines: Any, left: Any, right: Any) -> Any:
        low = high = lines[0, left]
        total = kind(0)
        for y in range(len(lines)):
            line = lines[y][left:right]
            for x in range(len(line)):
                low = min(low, line[x])
                high = max(high, line[x])
            for x in range(len(line)):
                total += kind(line[x])
        n = len(lines) * (right - left)
        mean = total / n
        spread = 0.0
        for y in range(len(lines)):
            line = lines[y][left:right]
            for x in range(len(line)):
                away = np.float64(line[x]) - mean
                spread += away * away
        return low, high, n, np.float64(total), spread, 0

    return look


def _look_at_floats(kind: Any, sign: int) -> Any:
    """Floating point numbers, compared as integers; NaN are left out and counted."""
    most, least = kind(np.iinfo(kind).max), kind(np.iinfo(kind).min)
    infinity = np.array([np.inf], f"f{sign // 8 + 1}").view(kind)[0]
    under = kind(~infinity)  # the key of minus infinity

    def look(lines: Any, left: Any, right: Any) -> Any:
        low, high = kind(most), kind(least)
        total = 0.0
        nans = 0
        for y in range(len(lines)):
            line = lines[y][left:right]
            bits = line.view(kind)
            for x in range(len(line)):
                key = kind(bits[x] ^ kind(kind(bits[x] >> sign) & most))
                low = min(low, key)
                high = max(high, key)
            for x in range(len(line)):
                total += np.float64(line[x])
        if low < under or high > infinity:
            low, high, total = kind(most), kind(least), 0.0
            for y in range(len(lines)):
                line = lines[y][left:right]
                bits = line.view(kind)
                for x in range(len(line)):
                    if line[x] == line[x]:
                        key = kind(bits[x] ^ kind(kind(bits[x] >> sign) & most))
                        low = min(low, key)
                        high = max(high, key)
                        total += np.float64(line[x])
                    else:
                        nans += 1
        n = len(lines) * (right - left) - nans
        mean = total / n
        spread = 0.0
        for y in range(len(lines)):
            line = lines[y][left:right]
            for x in range(len(line)):
                away = np.float64(line[x]) - mean
                spread += away * away if line[x] == line[x] else 0.0
        return low, high, n, total, spread, nans

    return look


@njit(nogil=True, cache=True, error_model="numpy")
def counters(
    strip: Any, row: Any, frame: Any, starts: Any, pieces: Any, keys: Any, sums: Any
) -> None:
    """Least, greatest, number, sum, spread and NaN of the pixels of every region.

    The least and the greatest are kept as keys, integers in the order of the pixels: those of an
    integer are the integer itself; those of a floating point number its bits, all but the sign
    flipped if it is negative. Integers are compared many at a time, floating point numbers, because
    of NaN, are not.

    Args:
        strip: pixels.
        row: of its first line.
        frame: in the block.
        starts: of the regions in `pieces`.
        pieces: of the regions.
        keys: integers `(frames, regions, 2)`: the least and the greatest key.
        sums: float64 `(frames, regions, 4)`: how many pixels are no NaN, their sum, the sum of
            their squared distances from their mean, how many are NaN. Parts are put together by the
            formula of Chan, Golub and LeVeque (1979), so that a large mean costs no digits.
    """
    for region in range(len(starts) - 1):
        end = starts[region + 1]
        for number in range(_first(pieces, starts[region], end, row), end):
            if pieces[number, 0] >= row + len(strip):
                break
            lines, left, right = _cut(strip, row, pieces[number])
            low, high, n, total, spread, nans = _look(lines, left, right)
            key, known = keys[frame, region], sums[frame, region]
            key[0] = min(key[0], low)
            key[1] = max(key[1], high)
            known[3] += nans
            if n > 0 and known[0] > 0:
                away = total / n - known[1] / known[0]
                spread += away * away * (n * known[0] / (n + known[0]))
            if n > 0:
                known[0] += n
                known[1] += total
                known[2] += spread


@njit(nogil=True, cache=True, error_model="numpy")
def counters_and_zeros(
    strip: Any, row: Any, frame: Any, starts: Any, pieces: Any, keys: Any, sums: Any, zeros: Any
) -> None:
    """Like `counters`; and how many are 0, in `zeros`: int64 `(frames, regions)`."""
    counters(strip, row, frame, starts, pieces, keys, sums)
    for region in range(len(starts) - 1):
        end = starts[region + 1]
        for number in range(_first(pieces, starts[region], end, row), end):
            if pieces[number, 0] >= row + len(strip):
                break
            lines, left, right = _cut(strip, row, pieces[number])
            for y in range(len(lines)):
                line = lines[y][left:right]
                found = np.uint32(0)
                for x in range(len(line)):
                    found = np.uint32(found + np.uint32(line[x] == 0))
                zeros[frame, region] += np.int64(found)


@njit(nogil=True, cache=True, error_model="numpy")
def above(
    strip: Any, row: Any, frame: Any, starts: Any, pieces: Any, limit: Any, counts: Any
) -> None:
    """How many pixels of every region are above a limit, in `counts`: int64 `(frames, regions)`."""
    for region in range(len(starts) - 1):
        end = starts[region + 1]
        for number in range(_first(pieces, starts[region], end, row), end):
            if pieces[number, 0] >= row + len(strip):
                break
            lines, left, right = _cut(strip, row, pieces[number])
            for y in range(len(lines)):
                line = lines[y][left:right]
                found = np.uint32(0)
                for x in range(len(line)):
                    found = np.uint32(found + np.uint32(line[x] > limit))
                counts[frame, region] += np.int64(found)


@njit(nogil=True, cache=True, error_model="numpy", fastmath=_SUMS)
def profile(
    strip: Any, row: Any, frame: Any, starts: Any, pieces: Any, columns: Any, sums: Any
) -> None:
    """Sums of the columns, or of the lines, of regions that are one rectangle each.

    Args:
        strip: pixels.
        row: of its first line.
        frame: in the block.
        starts: of the regions in `pieces`.
        pieces: of the regions.
        columns: whether columns are added up, rather than lines.
        sums: float64 `(frames, regions, width or height of the rectangle)`.
    """
    for region in range(len(starts) - 1):
        piece = pieces[starts[region]]
        first, end = _lines(strip, row, piece)
        for y in range(first, end):
            line = strip[y][piece[2] : piece[3]]
            to = sums[frame, region]
            if columns:
                for x in range(len(line)):
                    to[x] += np.float64(line[x])
            else:
                total = 0.0
                for x in range(len(line)):
                    total += np.float64(line[x])
                to[row + y - piece[0]] = total


@njit(nogil=True, cache=True, error_model="numpy", fastmath=_SUMS)
def centre(
    strip: Any, row: Any, frame: Any, starts: Any, pieces: Any, limit: Any, sums: Any
) -> None:
    """Sums of pixels, and of pixels times their place, of every region.

    Args:
        strip: pixels.
        row: of its first line.
        frame: in the block.
        starts: of the regions in `pieces`.
        pieces: of the regions.
        limit: float64; pixels that are this or less count as 0.
        sums: float64 `(frames, regions, 3)`: of pixels, times x, times y, of the pixels' centres;
            y goes on over the bands.
    """
    for region in range(len(starts) - 1):
        end = starts[region + 1]
        known = sums[frame, region]
        for number in range(_first(pieces, starts[region], end, row), end):
            piece = pieces[number]
            if piece[0] >= row + len(strip):
                break
            first, last = _lines(strip, row, piece)
            for y in range(first, last):
                line = strip[y][piece[2] : piece[3]]
                total = 0.0
                moment = 0.0
                for x in range(len(line)):
                    pixel = np.float64(line[x])
                    value = 0.0 if pixel <= limit else pixel
                    total += value
                    moment += value * np.float64(x)
                known[0] += total
                known[1] += moment + total * (piece[2] + 0.5)
                known[2] += total * (row + y + 0.5)


def _total(line: Any) -> Any:
    """The sum of some pixels, as float64; that of integers of up to 32 bits is exact."""
    raise NotImplementedError


@overload(_total, jit_options={"fastmath": _SUMS, "error_model": "numpy"})  # type: ignore[untyped-decorator]
def _total_of(line: Any) -> Any:
    pixel = line.dtype
    wide = isinstance(pixel, types.Float) or (pixel != types.boolean and pixel.bitwidth == 64)
    kind = np.float64 if wide else np.int64

    def add(line: Any) -> Any:
        total = kind(0)
        for x in range(len(line)):
            total += kind(line[x])
        return np.float64(total)

    return add


@njit(nogil=True, cache=True, error_model="numpy", fastmath=_SUMS)
def products(
    strip: Any,
    row: Any,
    frame: Any,
    starts: Any,
    pieces: Any,
    weighted_starts: Any,
    weighted_pieces: Any,
    places: Any,
    weights: Any,
    sums: Any,
) -> None:
    """Sums of the pixels of regions, some of them with a weight for each pixel.

    Args:
        strip: pixels.
        row: of its first line.
        frame: in the block.
        starts: of the regions without weights in `pieces`.
        pieces: of the regions without weights.
        weighted_starts: of those with weights.
        weighted_pieces: of those with weights.
        places: where in `weights` those of every piece begin.
        weights: of the pixels of the pieces, line by line.
        sums: float64 `(frames, regions)`, first those without weights.
    """
    for region in range(len(starts) - 1):
        end = starts[region + 1]
        for number in range(_first(pieces, starts[region], end, row), end):
            if pieces[number, 0] >= row + len(strip):
                break
            lines, left, right = _cut(strip, row, pieces[number])
            for y in range(len(lines)):
                sums[frame, region] += _total(lines[y][left:right])
    for region in range(len(weighted_starts) - 1):
        end = weighted_starts[region + 1]
        total = 0.0
        for number in range(_first(weighted_pieces, weighted_starts[region], end, row), end):
            piece = weighted_pieces[number]
            if piece[0] >= row + len(strip):
                break
            first, last = _lines(strip, row, piece)
            width = piece[3] - piece[2]
            for y in range(first, last):
                line = strip[y][piece[2] : piece[3]]
                start = places[number] + (row + y - piece[0]) * width
                weight = weights[start : start + width]
                for x in range(len(line)):
                    total += np.float64(line[x]) * np.float64(weight[x])
        sums[frame, len(starts) - 1 + region] += total


def _count(line: Any, table: Any, edges: Any, bins: Any, counts: Any) -> None:
    """Count some pixels in their bins; the last bin is for those that lie in none."""
    raise NotImplementedError


@overload(_count, jit_options={"error_model": "numpy"})  # type: ignore[untyped-decorator]
def _count_in(line: Any, table: Any, edges: Any, bins: Any, counts: Any) -> Any:
    pixel = line.dtype
    if pixel == types.boolean or (isinstance(pixel, types.Integer) and pixel.bitwidth <= 16):
        return _look_up
    return _compute


def _look_up(line: Any, table: Any, edges: Any, bins: Any, counts: Any) -> None:
    one, two, three, four = counts[0], counts[1], counts[2], counts[3]
    fours = len(line) // 4 * 4
    for x in range(0, fours, 4):
        one[table[np.uint16(line[x])]] += 1
        two[table[np.uint16(line[x + 1])]] += 1
        three[table[np.uint16(line[x + 2])]] += 1
        four[table[np.uint16(line[x + 3])]] += 1
    for x in range(fours, len(line)):
        one[table[np.uint16(line[x])]] += 1


def _compute(line: Any, table: Any, edges: Any, bins: Any, counts: Any) -> None:
    """First the bins of many pixels at once; then they are counted, which is one by one."""
    one, two, three, four = counts[0], counts[1], counts[2], counts[3]
    last = np.int32(len(edges) - 1)
    low, high = edges[0], edges[last]
    step, scale = (high - low) / last, last / (high - low)
    for first in range(0, len(line), _STEP):
        some = line[first : first + _STEP]
        for x in range(len(some)):
            number = np.float64(some[x])
            guess = np.int32(min((number - low) * scale, last - 1.0) if number > low else 0.0)
            below = number < np.float64(guess) * step + low  # by rounding
            beyond = (number >= np.float64(guess + 1) * step + low) & (guess < last - 1)
            inside = (low <= number) & (number <= high)
            bins[x] = guess - np.int32(below) + np.int32(beyond) if inside else last
        fours = len(some) // 4 * 4
        for x in range(0, fours, 4):
            one[bins[x]] += 1
            two[bins[x + 1]] += 1
            three[bins[x + 2]] += 1
            four[bins[x + 3]] += 1
        for x in range(fours, len(some)):
            one[bins[x]] += 1


@njit(nogil=True, cache=True, error_model="numpy")
def histogram(
    strip: Any, row: Any, frame: Any, starts: Any, pieces: Any, table: Any, edges: Any, counts: Any
) -> None:
    """How many pixels of every region lie in each of some bins.

    Args:
        strip: pixels.
        row: of its first line.
        frame: in the block.
        starts: of the regions in `pieces`.
        pieces: of the regions.
        table: uint32 `(65536,)`: the bin of every value of pixels of up to 16 bits (as uint16).
        edges: float64: of the bins, at equal distances, for other pixels.
        counts: uint32 `(frames, regions, 4, bins + 1)`: four that are to be added up, as a
            processor waits when it counts in the same place twice running; the last bin is for what
            lies in none.
    """
    _fetch_next(strip)
    bins = np.empty(_STEP, np.uint32)
    for region in range(len(starts) - 1):
        end = starts[region + 1]
        for number in range(_first(pieces, starts[region], end, row), end):
            if pieces[number, 0] >= row + len(strip):
                break
            lines, left, right = _cut(strip, row, pieces[number])
            for y in range(len(lines)):
                _count(lines[y][left:right], table, edges, bins, counts[frame, region])
