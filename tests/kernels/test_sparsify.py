"""Both ways of writing down the pixels above a limit, whichever this processor would take."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lima2py.kernels.sparsify import COMPRESSES, SPARE, append_by_bits, append_compressed


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
