"""Combine the pixels of rectangles: sums, clipped sums, means and maxima.

Every function takes `rows`, the rows of all images below one another `(rows, width)`, and how many
pixels are combined along x and y; it writes to `out` `(rows / y, width / x)`. The `y` rows are
combined first, into `line`: whole rows are added quickly, and what is left to add along x lies in
the cache. `line` is as long as a row, `total` as a row of `out`; both have the type that is added
in.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

from lima2py.kernels.compiled import njit
from lima2py.kernels.prefetch import fetch
from lima2py.kernels.vectors import as_vector, element

OPTIONS: dict[str, Any] = {
    "nogil": True,
    "cache": True,
    "error_model": "numpy",
    "fastmath": {"reassoc", "contract", "nsz"},
}


@njit(**OPTIONS)
def sums(rows, x, y, line, out):  # type: ignore[no-untyped-def]
    """Sums in the type of `line` and `out`, which must be wide enough."""
    flat = rows.reshape(-1)
    of_group, cache_line = y * rows.shape[1], 64 // rows.itemsize
    for number in range(out.shape[0]):
        for place in range((number + 1) * of_group, (number + 2) * of_group, cache_line):
            fetch(flat, place)  # the next group, while this one is added up
        group = rows[number * y : (number + 1) * y]
        if x == 2 and y == 2:
            _add_two_by_two(group[0], group[1], out[number])
        else:
            _add_rows(group, line)
            _add_along(line, x, out[number])


@njit(**OPTIONS)
def _add_two_by_two(first, second, out):  # type: ignore[no-untyped-def]
    number = out.dtype.type
    for place in range(out.size):
        left = number(first[2 * place]) + number(second[2 * place])
        right = number(first[2 * place + 1]) + number(second[2 * place + 1])
        out[place] = left + right


@intrinsic  # type: ignore[untyped-decorator]
def _add_pairs(_context: Any, rows: Any, upper: Any, lower: Any, out: Any, place: Any) -> Any:
    """Fill 64 bytes of `out`, which begin at a multiple of 64, from the pixels of two rows.

    Two pixels that lie side by side are read as one integer, twice as wide, of which they are the
    halves. What is written does not go through the cache: it is not read before it is complete.
    """

    def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pixel = signature.args[0].dtype
        lanes, size = 32 // (pixel.bitwidth // 8), 2 * pixel.bitwidth
        pairs = ir.VectorType(ir.IntType(size), lanes)
        half = ir.Constant(pairs, [pixel.bitwidth] * lanes)
        low_half = ir.Constant(pairs, [2**pixel.bitwidth - 1] * lanes)

        def at(which: int, place: Any) -> Any:
            first = element(context, builder, signature, arguments, which, place)
            return as_vector(builder, first, pairs.element, lanes)

        def both(first: Any) -> Any:
            pair = builder.load(at(0, first), align=pixel.bitwidth // 8)
            if pixel.signed:
                low = builder.ashr(builder.shl(pair, half), half)
                return builder.add(builder.ashr(pair, half), low)
            return builder.add(builder.lshr(pair, half), builder.and_(pair, low_half))

        total = builder.add(both(arguments[1]), both(arguments[2]))
        past_the_cache = builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)])
        stored = builder.store(total, at(3, arguments[4]), align=64)
        stored.set_metadata("nontemporal", past_the_cache)
        return context.get_dummy_value()

    return types.void(rows, types.intp, types.intp, out, types.intp), write


@intrinsic  # type: ignore[untyped-decorator]
def _others_may_read(_context: Any) -> Any:
    """Have all that was written past the cache in memory."""

    def write(context: Any, builder: Any, _signature: Any, _arguments: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), write


@njit(**OPTIONS)
def sums_of_four(rows, out):  # type: ignore[no-untyped-def]
    """Sums of 2 × 2 integers, of a type exactly twice as wide: as fast as memory gives them."""
    flat, sums = rows.reshape(-1), out.reshape(-1)
    width, size = rows.shape[1], out.shape[1]
    lanes = 64 // out.itemsize
    first_aligned = (-(out.ctypes.data // out.itemsize)) % lanes
    for number in range(out.shape[0]):
        upper, begin = 2 * number * width, number * size
        lower, ahead = upper + width, upper + 4 * width
        head = min((first_aligned - begin) % lanes, size)
        tail = head + (size - head) // lanes * lanes
        many = head + (size - head) // (4 * lanes) * (4 * lanes)
        _add_few(flat, upper, lower, 0, head, sums, begin)
        for place in range(head, many, 4 * lanes):  # all is fetched while two rows are added up
            for line in range(ahead + 4 * place, ahead + 4 * (place + 4 * lanes), 2 * lanes):
                fetch(flat, line)
            for part in range(place, place + 4 * lanes, lanes):
                _add_pairs(flat, upper + 2 * part, lower + 2 * part, sums, begin + part)
        for part in range(many, tail, lanes):
            for line in range(ahead + 4 * part, ahead + 4 * (part + lanes), 2 * lanes):
                fetch(flat, line)
            _add_pairs(flat, upper + 2 * part, lower + 2 * part, sums, begin + part)
        _add_few(flat, upper, lower, tail, size, sums, begin)
    _others_may_read()


@njit(**OPTIONS)
def _add_few(flat, upper, lower, first, end, sums, begin):  # type: ignore[no-untyped-def]
    """What `_add_two_by_two` does, for a few pixels: to slice them for it would cost more."""
    number = sums.dtype.type
    for place in range(first, end):
        a, b = upper + 2 * place, lower + 2 * place
        left = number(flat[a]) + number(flat[b])
        sums[begin + place] = left + number(flat[a + 1]) + number(flat[b + 1])


@njit(**OPTIONS)
def clipped_sums(rows, x, y, line, total, low, high, out):  # type: ignore[no-untyped-def]
    """Sums that stop at `low` and `high`; those of `total` must not overflow."""
    for number in range(out.shape[0]):
        _add_rows(rows[number * y : (number + 1) * y], line)
        _add_along(line, x, total)
        made = out[number]
        for place in range(made.size):
            made[place] = min(max(total[place], low), high)


@njit(**OPTIONS)
def means(rows, x, y, line, total, out):  # type: ignore[no-untyped-def]
    """Means, rounded once from the exact quotient of the sum."""
    n = float(x * y)
    for number in range(out.shape[0]):
        _add_rows(rows[number * y : (number + 1) * y], line)
        _add_along(line, x, total)
        made = out[number]
        for place in range(made.size):
            made[place] = total[place] / n


@njit(**OPTIONS)
def maxima(rows, x, y, line, out):  # type: ignore[no-untyped-def]
    """Maxima; NaN where any of the pixels is NaN."""
    for number in range(out.shape[0]):
        group = rows[number * y : (number + 1) * y]
        line[:] = group[0]
        for offset in range(1, y):
            row = group[offset]
            for place in range(line.size):
                value, most = row[place], line[place]
                line[place] = value if value > most or value != value else most
        made = out[number]
        if x == 2:  # a step that is known when this is compiled is several times faster
            for place in range(made.size):
                value, most = line[2 * place], line[2 * place + 1]
                made[place] = value if value > most or value != value else most
        else:
            for place in range(made.size):
                few = line[place * x : (place + 1) * x]
                most = few[0]
                for offset in range(1, x):
                    value = few[offset]
                    most = value if value > most or value != value else most
                made[place] = most


@njit(**OPTIONS)
def clipped_long_sums(rows, x, y, lines, totals, keep, limits, out):  # type: ignore[no-untyped-def]
    """Clipped sums of 64-bit integers, exact: their halves are added apart.

    Args:
        rows: viewed as int64, and so is `out`.
        x: pixels combined along x.
        y: pixels combined along y.
        lines: two lines, int64, for the high and the low halves.
        totals: two totals, int64.
        keep: what is kept of a high half: all bits (-1) if the numbers are signed, else 32.
        limits: int64: the least and the greatest high half, and the numbers at these ends.
        out: viewed as int64.
    """
    low_half = 0xFFFFFFFF
    for number in range(out.shape[0]):
        lines[:] = 0
        for offset in range(y):
            row, high, low = rows[number * y + offset], lines[0], lines[1]
            for place in range(row.size):
                high[place] += (row[place] >> 32) & keep
                low[place] += row[place] & low_half
        _add_along(lines[0], x, totals[0])
        _add_along(lines[1], x, totals[1])
        made, high, low = out[number], totals[0], totals[1]
        for place in range(made.size):
            half = high[place] + (low[place] >> 32)
            value = (half << 32) | (low[place] & low_half)
            value = limits[2] if half < limits[0] else value
            made[place] = limits[3] if half > limits[1] else value


@njit(**OPTIONS)
def _add_rows(group, line):  # type: ignore[no-untyped-def]
    number = line.dtype.type
    first = group[0]
    if group.shape[0] == 1:
        for place in range(line.size):
            line[place] = first[place]
        return
    second = group[1]
    for place in range(line.size):
        line[place] = number(first[place]) + number(second[place])
    for offset in range(2, group.shape[0]):
        row = group[offset]
        for place in range(line.size):
            line[place] += row[place]


@njit(**OPTIONS)
def _add_along(line, x, out):  # type: ignore[no-untyped-def]
    if x == 1:
        for place in range(out.size):
            out[place] = line[place]
    elif x == 2:  # as for maxima
        for place in range(out.size):
            out[place] = line[2 * place] + line[2 * place + 1]
    elif x == 4:
        for place in range(out.size):
            some = line[4 * place] + line[4 * place + 1]
            out[place] = some + line[4 * place + 2] + line[4 * place + 3]
    else:
        for place in range(out.size):
            few = line[place * x : (place + 1) * x]
            some = few[0]
            for offset in range(1, x):
                some += few[offset]
            out[place] = some
