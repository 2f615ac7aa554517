"""Both ways of writing down the pixels above a limit, whichever this processor would take."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from numba import njit, typeof

from lima2py.kernels.sparsify import (
    COMPRESSES,
    SPARE,
    append_by_bits,
    append_compressed,
    sparsify,
)


@pytest.mark.parametrize(
    "append",
    [
        append_by_bits,
        pytest.param(
            append_compressed,
            marks=pytest.mark.skipif(not COMPRESSES, reason="this processor has no AVX-512 VBMI2"),
        ),
    ],
    ids=["by_bits", "compressed"],
)
@pytest.mark.parametrize("dtype", ["u1", "i2", "u4", "f4", "f8"])
def test_the_pixels_whose_bit_is_set_are_written(append: Any, dtype: str) -> None:
    rng = np.random.default_rng(5)
    pixels = rng.integers(0, 100, 150).astype(dtype)
    for share in (0, 0.02, 0.1, 0.5, 1):
        above = rng.random(64) < share
        bits = np.uint64(sum(1 << int(place) for place in np.flatnonzero(above)))
        first, begin, many = 70, 5, np.count_nonzero(above)
        indices, values = np.zeros(80 + SPARE, "u4"), np.zeros(80 + SPARE, dtype)
        append(pixels, first, bits, np.uint32(1000), indices, values, begin)
        np.testing.assert_array_equal(indices[begin:][:many], 1000 + np.flatnonzero(above))
        np.testing.assert_array_equal(values[begin:][:many], pixels[first:][:64][above])
        assert not indices[:begin].any()


def test_no_function_is_called_for_64_pixels() -> None:
    """Its arrays would be counted each time, which takes longer than to write some pixels down."""
    whole = np.zeros(1, "i8")
    arguments = (
        np.zeros((1, 8), "u2"), 0, 0, np.uint16(0), 1, whole.reshape(1, 1), whole,
        np.zeros(80, "u4"), np.zeros(80, "u2"),
    )  # fmt: skip
    signature = tuple(map(typeof, arguments))
    compiled = njit(signature, nogil=True, error_model="numpy")(sparsify.py_func)
    text = compiled.inspect_llvm(signature)
    assert "define " in text
    assert not re.findall(r"call \w+ @_ZN7lima2py7kernels8sparsify\d+append", text)
