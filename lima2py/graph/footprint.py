"""The footprint: about how much memory a plan takes in a process while blocks pass through it."""

from __future__ import annotations

from lima2py.frame import FrameSpec
from lima2py.graph.plan import Plan
from lima2py.shelf import usual_bytes
from lima2py.task import Sink
from lima2py.tasks.tap import TAP_BYTES, Tap

_BESIDES = 8 * 2**20
"""What a run takes whatever it does, in bytes: threads, sockets, files."""
_OF_SINK = 2 * 2**20
"""What a sink takes besides copies of its frames, in bytes."""

_OF_READERS = 4
"""Copies of what the readers of a tap are given: taken, packed, sealed, and not sent yet."""


def footprint(plan: Plan, frames: int) -> int:
    """Bytes that its tasks will take besides what they took when they were started.

    A product is there twice while the next one of its kind is made; a sink has its frames and what
    becomes of them; a tap has copies of what readers are given.

    Args:
        plan: of the graph.
        frames: of the largest blocks.
    """
    specs = (plan.spec, *(step.spec for step in plan.steps))
    total = _BESIDES
    for step in plan.steps:
        if isinstance(step.task, Sink):
            total += _OF_SINK + sum(_block(specs[source], frames) for source in step.sources)
        elif isinstance(step.task, Tap):
            frame = usual_bytes(step.spec)
            total += _OF_READERS * max(frame, min(TAP_BYTES, step.task.history * frame))
        elif step.wanted:
            total += 2 * _block(step.spec, frames)
    return total


def _block(spec: FrameSpec, frames: int) -> int:
    return max(1, frames // spec.span) * usual_bytes(spec)
