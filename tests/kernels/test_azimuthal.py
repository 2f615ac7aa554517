"""What the compiler makes of the kernel of azimuthal integration."""

from __future__ import annotations

import re

import numpy as np
from numba import njit, typeof

from lima2py.kernels.azimuthal import FOUR, integrate


def test_no_function_is_called_for_every_pixel() -> None:
    """It would be: a call takes ten times as long as what is done to a pixel."""
    arguments = (
        np.zeros((1, 8), "u2"), 0, 0, 1, np.zeros(9, "u4"), np.zeros(8, "u4"),
        np.zeros((8, FOUR), "f4"), np.ones(8, "f4"), 0.0, 0.0,
        np.zeros((1, 1, 1, 8, 3, FOUR)), np.zeros((0, 1, 8, 5)),
    )  # fmt: skip
    signature = tuple(map(typeof, arguments))
    compiled = njit(signature, nogil=True, error_model="numpy")(integrate.py_func)
    text = compiled.inspect_llvm(signature)
    assert "define " in text
    assert not re.findall(r"call \w+ @_ZN7lima2py7kernels9azimuthal\d+_", text)  # a private one
