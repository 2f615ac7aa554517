"""The pixels above a limit, where they are and what they hold: of photon frames, quickly.

Of 64 pixels at a time, which of them are above is put into the bits of one number, by comparing
them all at once. Then those whose bit is set are written one after the other: by processors with
AVX-512 (VBMI2), which can compress a vector, 16 or more at once; by others bit after bit. What
comes next is fetched from memory meanwhile, which the processor does not do by itself well enough.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from lima2py.kernels.compiled import njit
from lima2py.kernels.prefetch import fetch
from lima2py.kernels.vectors import as_vector, element, everywhere

_ALL = np.uint64(2**64 - 1)
_ONE = np.uint64(1)
_FOUR = np.uint64(4)
_EIGHT = np.uint64(8)
_AHEAD = 1024
"""So many pixels ahead is fetched."""
SPARE = 64
"""How much longer than what may come the arrays must be, as more places are written than filled."""


@intrinsic  # type: ignore[untyped-decorator]
def _above(_context: Any, pixels: Any, first: Any, limit: Any) -> Any:
    """Which of the 64 pixels from `first` on are above a limit of their type, as 64 bits.

    The pixels lie side by side; that there are 64 is not checked.
    """

    def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pixel = signature.args[0].dtype
        stored = context.get_data_type(pixel)
        first = element(context, builder, signature, arguments, 0, arguments[1])
        place = as_vector(builder, first, stored, 64)
        values = builder.load(place, align=context.get_abi_sizeof(stored))
        limits = everywhere(builder, context.get_value_as_data(builder, pixel, arguments[2]), 64)
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


# As a function of its own it would count, for every 64 pixels, who holds the arrays.
@njit(nogil=True, cache=True, error_model="numpy", forceinline=True)
def append_by_bits(
    pixels: Any, first: Any, bits: Any, number: Any, indices: Any, values: Any, count: Any
) -> None:
    """Write the pixels whose bit is set one after the other: eight always, then four at a time.

    That is quicker than to decide for each.

    Args:
        pixels: flattened, of a strip.
        first: of the 64 that `bits` is about.
        bits: uint64.
        number: uint32, of the pixel `first` in its frame.
        indices: uint32, written to: their numbers.
        values: written to: what they hold.
        count: where in these two to begin; `SPARE` places more than there are bits are written to.
    """
    # Every number here is unsigned: numba need not look whether one counts from the end.
    some = pixels[first : first + 64]
    end = np.uint64(count)
    found = _how_many(bits)
    for one in range(_EIGHT):
        place = _lowest(bits) & np.uint64(63)
        bits &= bits - _ONE
        indices[end + one] = number + np.uint32(place)
        values[end + one] = some[place]
    for at in range(_EIGHT, found, _FOUR):
        for one in range(_FOUR):
            place = _lowest(bits) & np.uint64(63)
            bits &= bits - _ONE
            indices[end + at + one] = number + np.uint32(place)
            values[end + at + one] = some[place]


def _write_compressed(builder: Any, bits: Any, place: Any, vectors: list[Any]) -> None:
    """Write those elements of 64 whose bit is set one after the other, to an address."""
    lanes, width = vectors[0].type.count, vectors[0].type.element.width
    flags = ir.VectorType(ir.IntType(1), lanes)
    compress = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(vectors[0].type, [vectors[0].type, vectors[0].type, flags]),
        f"llvm.x86.avx512.mask.compress.v{lanes}i{width}",
    )
    for number, vector in enumerate(vectors):
        few = builder.lshr(bits, ir.Constant(ir.IntType(64), lanes * number))
        few = few if lanes == 64 else builder.trunc(few, ir.IntType(lanes))
        nothing = ir.Constant(vector.type, ir.Undefined)
        chosen = builder.call(compress, [vector, nothing, builder.bitcast(few, flags)])
        target = as_vector(builder, place, vector.type.element, lanes)
        builder.store(chosen, target, align=width // 8)
        written = builder.ctpop(few)
        written = written if lanes == 64 else builder.zext(written, ir.IntType(64))
        place = builder.gep(place, [written])


@intrinsic  # type: ignore[untyped-decorator]
def _compress_numbers(_context: Any, bits: Any, number: Any, indices: Any, count: Any) -> Any:
    """Write `number` + 0, 1 ... 63, those whose bit is set."""

    def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target = element(context, builder, signature, arguments, 2, arguments[3])
        first = everywhere(builder, arguments[1], 16)
        numbers = [
            builder.add(first, ir.Constant(first.type, [*range(part, part + 16)]))
            for part in range(0, 64, 16)
        ]
        _write_compressed(builder, arguments[0], target, numbers)
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint32, indices, types.intp), write


@intrinsic  # type: ignore[untyped-decorator]
def _compress_values(
    _context: Any, bits: Any, pixels: Any, first: Any, values: Any, count: Any
) -> Any:
    """Write the 64 pixels from `first` on, those whose bit is set."""

    def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = context.get_data_type(signature.args[1].dtype)
        size = context.get_abi_sizeof(kind)
        raw, lanes = ir.IntType(8 * size), 64 // size
        source, target = (
            builder.bitcast(
                element(context, builder, signature, arguments, which, arguments[which + 1]),
                raw.as_pointer(),
            )
            for which in (1, 3)
        )
        pixels = []
        for part in range(0, 64, lanes):
            place = builder.gep(source, [ir.Constant(ir.IntType(64), part)])
            pixels.append(builder.load(as_vector(builder, place, raw, lanes), align=size))
        _write_compressed(builder, arguments[0], target, pixels)
        return context.get_dummy_value()

    return types.void(types.uint64, pixels, types.intp, values, types.intp), write


@njit(nogil=True, cache=True, error_model="numpy")
def append_compressed(
    pixels: Any, first: Any, bits: Any, number: Any, indices: Any, values: Any, count: Any
) -> None:
    """The same as `append_by_bits`, for 64 pixels that are there, by processors that can."""
    _compress_numbers(bits, number, indices, count)
    _compress_values(bits, pixels, first, values, count)


COMPRESSES = "+avx512vbmi2" in cpu_target.target_context.codegen().magic_tuple()[2]
"""Whether what is compiled here may compress vectors."""
_append_64 = append_compressed if COMPRESSES else append_by_bits


@njit(nogil=True, cache=True, error_model="numpy")
def sparsify(
    strip: Any, row: Any, frame: Any, limit: Any, rows: Any,
    places: Any, state: Any, indices: Any, values: Any,
) -> None:  # fmt: skip
    """Append the pixels of a strip that are above a limit; NaN never is.

    What is found in a frame is written behind the one before, if that is complete; where strips of
    several frames alternate, each has room for all its pixels.

    Args:
        strip: pixels.
        row: of its first line.
        frame: in the block.
        limit: of the type of the pixels.
        rows: of a frame.
        places: int64 `(frames, 2)`: from where to where in `indices` each frame has been written.
        state: int64 `(2,)`, zeros at first: how many frames have begun that are not complete, and
            how many places of `indices` are taken by those that are.
        indices: uint32, `SPARE` places more than pixels for each frame: their numbers in the frame.
        values: likewise, of the type of the pixels: what they hold.
    """
    flat = strip.reshape(-1)
    if row == 0:
        room = rows * strip.shape[1] + SPARE
        places[frame] = state[1] if state[0] == 0 else frame * room
        state[0] += 1
    number = np.uint32(row * strip.shape[1])
    count = places[frame, 1]
    size = len(flat)
    whole = size // 64 * 64
    cache_line = 64 // flat.itemsize
    for first in range(0, whole, 64):
        for place in range(first + _AHEAD, first + _AHEAD + 64, cache_line):
            fetch(flat, place)
        bits = _above(flat, first, limit)
        if bits != 0:
            _append_64(flat, first, bits, number + np.uint32(first), indices, values, count)
            count += np.int64(_how_many(bits))
    if 0 < whole < size:  # the last 64, without those that were looked at before
        first = size - 64
        bits = _above(flat, first, limit) & (_ALL << np.uint64(whole - first))
        _append_64(flat, first, bits, number + np.uint32(first), indices, values, count)
        count += np.int64(_how_many(bits))
    elif whole < size:
        bits = np.uint64(0)
        for last in range(size):
            bits |= np.uint64(flat[last] > limit) << np.uint64(last)
        append_by_bits(flat, 0, bits, number, indices, values, count)
        count += np.int64(_how_many(bits))
    places[frame, 1] = count
    if row + strip.shape[0] == rows:
        state[0] -= 1
        state[1] = count
