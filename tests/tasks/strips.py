"""A task that looks at strips, without a pass being written and compiled for every width."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
from hypothesis import strategies as st

from lima2py.frame import Array, Block, FrameSpec
from lima2py.onepass import Stripwise

TYPES = ("i2", "u4", "f4")
"""One for each way of adding pixels up; every further one costs a second to compile."""


def seen(task: Stripwise, data: Array, spec: FrameSpec | None = None, lines: int = 3) -> Block:
    """What a task makes of frames `(frames, bands, height, width)`, in strips of so many lines."""
    frames, bands, height, width = data.shape
    spec = spec or FrameSpec.dense(height, width, data.dtype, bands=bands)
    promised = task.prepare(spec)
    module, _, name = task.function.partition(":")
    function = getattr(import_module(module), name)
    pixels = np.ascontiguousarray(data).reshape(frames, bands * height, width)
    buffers = task.buffers(frames)
    for first in range(0, bands * height, lines):
        for frame in range(frames):
            strip = pixels[frame, first : first + lines]
            function(strip, first, frame, *task.constants, *buffers)
    made = task.conclude(Block(spec, 0, frames, data), buffers)
    assert made.spec == promised
    return made


@st.composite
def pixels(draw: st.DrawFn, types: tuple[str, ...] = TYPES, side: int = 12) -> Array:
    """Frames `(frames, bands, height, width)`: few photons, or all that pixels can hold."""
    shape = draw(st.tuples(*(st.integers(1, most) for most in (3, 2, side, side))))
    dtype: np.dtype[Any] = np.dtype(draw(st.sampled_from(types)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    if dtype.kind == "b" or draw(st.booleans()):
        return np.asarray(rng.poisson(0.7, shape), dtype)
    if dtype.kind != "f":
        limits = np.iinfo(dtype)
        return np.asarray(rng.integers(limits.min, limits.max, shape, dtype, endpoint=True))
    frames: Array = rng.normal(20, 100, shape).astype(dtype)
    strange = draw(st.lists(st.sampled_from([np.nan, -np.nan, np.inf, -np.inf, -0.0]), max_size=2))
    frames.flat[rng.integers(0, frames.size, len(strange))] = strange
    return frames
