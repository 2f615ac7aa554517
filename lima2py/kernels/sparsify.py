"""The pixels above a limit, where they are and what they hold: of photon frames, quickly.

Of 64 pixels at a time, which of them are above is put into the bits of one number, by comparing
them all at once; then the bits that are set are gone through. Eight of them are written whether or
not there are so many, then four at a time: that is quicker than to decide for each. What comes next
is fetched from memory meanwhile, which the processor does not do by itself well enough.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

from lima2py.kernels.compiled import njit
from lima2py.kernels.prefetch import fetch

_ONE = np.uint64(1)
_FOUR = np.uint64(4)
_EIGHT = np.uint64(8)
_AHEAD = 1024
"""So many pixels ahead is fetched."""
SPARE = 8
"""How much longer than what may come the arrays must be, as more places are written than filled."""


@intrinsic  # type: ignore[untyped-decorator]
def _above(_context: Any, pixels: Any, first: Any, limit: Any) -> Any:
    """Which of the 64 pixels from `first` on are above a limit of their type, as 64 bits.

    The pixels lie side by side; that there are 64 is not checked.
    """

    def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pixel = signature.args[0].dtype
        stored = context.get_data_type(pixel)
        all_64 = ir.VectorType(stored, 64)
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        place = builder.bitcast(builder.gep(array.data, [arguments[1]]), all_64.as_pointer())
        values = builder.load(place, align=context.get_abi_sizeof(stored))
        nothing = ir.Constant(all_64, ir.Undefined)
        one = context.get_value_as_data(builder, pixel, arguments[2])
        limits = builder.insert_element(nothing, one, ir.Constant(ir.IntType(32), 0))
        everywhere = ir.Constant(ir.VectorType(ir.IntType(32), 64), [0] * 64)
        limits = builder.shuffle_vector(limits, nothing, everywhere)
        if isinstance(pixel, types.Float):
            above = builder.fcmp_ordered(">", values, limits)
        elif isinstance(pixel, types.Integer) and pixel.signed:
            above = builder.icmp_signed(">", values, limits)
        else:
            above = builder.icmp_unsigned(">", values, limits)
        return builder.bitcast(above, ir.IntType(64))

    return types.uint64(pixels, types.intp, pixels.dtype), write


@intrinsic  # type: ignore[untyped-decorator]
def _lowest(_context: Any, bits: Any) -> Any:
    """The number of the lowest bit that is set; 64 if none is."""

    def write(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.uint64(types.uint64), write


@intrinsic  # type: ignore[untyped-decorator]
def _how_many(_context: Any, bits: Any) -> Any:
    """How many bits are set."""

    def write(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), write


@njit(nogil=True, cache=True, error_model="numpy")
def sparsify(
    strip: Any, row: Any, frame: Any, limit: Any, counts: Any, indices: Any, values: Any
) -> None:
    """Append the pixels of a strip that are above a limit; NaN never is.

    Args:
        strip: pixels.
        row: of its first line.
        frame: in the block.
        limit: of the type of the pixels.
        counts: int64 `(frames,)`: how many pixels of each frame there are already; updated.
        indices: uint32 `(frames, pixels of a frame + SPARE)`: their numbers in the frame.
        values: likewise, of the type of the pixels: what they hold.
    """
    flat = strip.reshape(-1)
    first_index = row * strip.shape[1]
    index, value = indices[frame], values[frame]
    count = np.uint64(counts[frame])
    whole = len(flat) // 64 * 64
    cache_line = 64 // flat.itemsize
    for first in range(0, whole, 64):
        for place in range(first + _AHEAD, first + _AHEAD + 64, cache_line):
            fetch(flat, place)
        bits = _above(flat, first, limit)
        if bits == 0:
            continue
        some = flat[first : first + 64]
        start = np.uint32(first_index + first)
        found = _how_many(bits)
        for one in range(_EIGHT):
            place = _lowest(bits) & np.uint64(63)
            bits &= bits - _ONE
            index[count + one] = start + np.uint32(place)
            value[count + one] = some[place]
        for at in range(_EIGHT, found, _FOUR):
            for one in range(_FOUR):
                place = _lowest(bits) & np.uint64(63)
                bits &= bits - _ONE
                index[count + at + one] = start + np.uint32(place)
                value[count + at + one] = some[place]
        count += found
    for last in range(whole, len(flat)):
        if flat[last] > limit:
            index[count] = first_index + last
            value[count] = flat[last]
            count += _ONE
    counts[frame] = np.int64(count)
