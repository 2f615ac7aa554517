"""What comes in, and whether a task can work with it: the checks that many tasks share.

All of them raise `BadParameter`; what comes in is the field `from`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lima2py.errors import BadParameter
from lima2py.frame import FrameSpec


def needs_images(*inputs: FrameSpec) -> None:
    """Refuse inputs that are no images."""
    for number, spec in enumerate(inputs):
        if spec.kind != "dense":
            which = f"{spec.kind} product comes in"
            if len(inputs) > 1:
                which += f" as input {number} (the first one is input 0)"
            raise BadParameter(
                f"from: this is done to images, and a {which}; begin from the images that it was"
                " made of"
            )


def needs_one_band(spec: FrameSpec) -> None:
    """Refuse frames of several bands."""
    if spec.bands != 1:
        raise BadParameter(
            f"from: this is done to one band, and {spec.bands} come in; take one of the"
            " images before, with select_bands"
        )


def needs_numbers(dtype: np.dtype[Any]) -> None:
    """Refuse pixels that no kernel computes with: float16, and those of foreign byte order."""
    if dtype.kind not in "biuf" or not dtype.isnative or dtype == np.float16:
        raise BadParameter(f"from: pixels of {dtype} cannot be computed with")
