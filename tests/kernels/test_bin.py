"""Sums of 2 × 2 integers are right wherever in memory they begin and whatever is beside them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.measure import block_reduce

from lima2py.kernels.bin import sums_of_four


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4"])
@settings(max_examples=40)
@given(height=st.integers(1, 4), width=st.integers(1, 200), before=st.integers(0, 70))
def test_sums_of_four_are_exact(dtype: str, height: int, width: int, before: int) -> None:
    limits = np.iinfo(dtype)
    rng = np.random.default_rng(width)
    rows = rng.integers(limits.min, limits.max, (2 * height, 2 * width), dtype, endpoint=True)
    wide = np.dtype(f"{dtype[0]}{2 * rows.itemsize}")
    memory = np.full(before + height * width + 70, 7, wide)
    sums = memory[before : before + height * width].reshape(height, width)
    sums_of_four(rows, sums)
    np.testing.assert_array_equal(sums, block_reduce(rows.astype(wide), (2, 2), np.sum))
    assert (memory[:before] == 7).all()
    assert (memory[before + height * width :] == 7).all()
