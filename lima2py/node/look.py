"""What can be seen of a run while it goes on, as plain values: frames of taps, small products."""

from __future__ import annotations

from typing import Any

from lima2py.frame import plain_dtype
from lima2py.graph.recent import Recent
from lima2py.tasks.tap import TAP_BYTES, Tap
from lima2py.transport.products import pack_product

BLOCKS = 256
"""The most blocks of small products that are given at once."""
STREAM_BYTES = 4 * 2**20
"""And the most bytes: several may want to read at a time, and the node has frames to process."""


def read_tap(tap: Tap, after: int) -> dict[str, Any]:
    """What a tap has kept since, with the pixels as bytes.

    Of large frames only the newest are given, up to `TAP_BYTES`: who looks wants to be in time.
    """
    ended = tap.ended  # before the frames: none can come after it
    frames: list[dict[str, Any]] = []
    size = 0
    for kept in reversed(tap.recent(after)):
        data = kept.frame.data
        size += 0 if data is None else data.nbytes
        if frames and size > TAP_BYTES:
            break
        frames.append(
            {
                "serial": kept.serial,
                "index": kept.frame.index,
                "timestamp": kept.frame.timestamp,
                "absence": kept.frame.absence,
                "dtype": None if data is None else plain_dtype(data.dtype),
                "shape": None if data is None else data.shape,
                "data": None if data is None else data.tobytes(),
            }
        )
    return {"ended": ended, "frames": frames[::-1]}


def read_stream(recent: Recent, after: int) -> dict[str, Any]:
    """The small products of a task since a running number, oldest first."""
    found, newest, ended = recent.after(after, BLOCKS, STREAM_BYTES)
    return {
        "spec": recent.spec.plain(),
        "newest": newest,
        "ended": ended,
        "blocks": [(serial, pack_product(block)) for serial, block in found],
    }
