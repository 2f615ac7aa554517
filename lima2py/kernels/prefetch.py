"""Have memory ready before it is needed: what follows far ahead the processor does not foresee."""

from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from lima2py.kernels.vectors import element


@intrinsic  # type: ignore[untyped-decorator]
def fetch(_context: Any, pixels: Any, place: Any) -> Any:
    """Have a pixel ready soon; it need not exist."""

    def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pixel = element(context, builder, signature, arguments, 0, arguments[1])
        number, address = ir.IntType(32), ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [address, number, number, number])
        prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        # To be read, soon in the second-level cache, data.
        how = [ir.Constant(number, value) for value in (0, 2, 1)]
        builder.call(prefetch, [builder.bitcast(pixel, address), *how])
        return context.get_dummy_value()

    return types.void(pixels, types.intp), write
