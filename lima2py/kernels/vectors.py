"""Pieces of LLVM that kernels with vectors are put together from, inside `intrinsic` functions."""

from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]


def element(
    context: Any, builder: Any, signature: Any, arguments: Any, which: int, place: Any
) -> Any:
    """The address of one element of an array.

    Args:
        context: these four as the code generator of an `intrinsic` is given them.
        builder: see `context`.
        signature: see `context`.
        arguments: see `context`.
        which: of the arguments the array is.
        place: of the element; nobody checks that there is one.
    """
    array = context.make_array(signature.args[which])(context, builder, arguments[which])
    return builder.gep(array.data, [place])


def as_vector(builder: Any, address: Any, kind: Any, lanes: int) -> Any:
    """The same address, of so many elements of a kind."""
    return builder.bitcast(address, ir.VectorType(kind, lanes).as_pointer())


def everywhere(builder: Any, value: Any, lanes: int) -> Any:
    """A vector that holds one value in all its places."""
    nothing = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
    one = builder.insert_element(nothing, value, ir.Constant(ir.IntType(32), 0))
    first = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
    return builder.shuffle_vector(one, nothing, first)
