"""Iterate over a source to get blocks: a detector, the network or a file.

Live, replay and offline are one loop, `for block in source: flow(block)`. A source yields None
when nothing came for a while (a few ten milliseconds), so that the loop can flush, answer and
notice a stop.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

from lima2py.frame import Block, FrameSpec

PATIENCE = 0.05
"""Seconds a source may wait for something to happen before it yields None."""


class Source(ABC):
    """Where blocks come from.

    Attributes:
        spec: what the frames look like.
    """

    spec: FrameSpec

    @abstractmethod
    def __iter__(self) -> Iterator[Block | None]:
        """The blocks in the order they come; None whenever `PATIENCE` passed without one."""

    def close(self) -> None:
        """Give back what the source holds; may be called twice."""
        return
