"""What a processing node is at, in a page of shared memory: others see it when it hangs or dies.

One block at a time: its acquisition node, its first frame, and since when. Written before the
first task begins on a block and wiped after the last, so that a block which brings down its node
is known.
"""

from __future__ import annotations

import time
from typing import NamedTuple

from lima2py.errors import LimaError
from lima2py.memory import PAGE, Handle, Shared, attach

NOTHING = -1
SAVING = -2
"""Instead of a first frame: files are flushed or closed, which is about all blocks given so far."""
ONWARD = -3
"""Instead of a first frame: what it has done is with the next stage of nodes, and it waits."""
_NS = 1_000_000_000


class At(NamedTuple):
    """What a node is at.

    Attributes:
        source: rank of the acquisition node the block is from.
        first: first frame of the block; or `NOTHING`, `SAVING`, `ONWARD`.
        seconds: for how long.
    """

    source: int
    first: int
    seconds: float


class Board:
    """The page as its node writes it.

    Attributes:
        handle: how others on this host find it.
    """

    def __init__(self) -> None:
        self._buffer = Shared().allocate(PAGE)
        assert self._buffer.handle is not None  # noqa: S101 - shared memory has one
        self.handle: Handle = self._buffer.handle
        self._words = self._buffer.bytes[:24].data.cast("q")
        self.write(0, NOTHING)

    def write(self, source: int, first: int) -> None:
        """Say what is begun now."""
        words = self._words
        words[2] = time.monotonic_ns()
        words[0] = source
        words[1] = first

    def go_on(self) -> None:
        """Say that it takes long, but does not hang."""
        self._words[2] = time.monotonic_ns()

    def at(self) -> At:
        """What it is at."""
        return _read(self._words)

    def close(self) -> None:
        """Let go of the memory; may be called twice."""
        self._words.release()
        self._buffer.close()


class BoardView:
    """The page of another process on this host; what it said last can be read after its end.

    Raises:
        LimaError: if it is on another host, or gone.
    """

    def __init__(self, handle: Handle):
        if handle.nbytes < 24:
            raise LimaError("a board that is too small")
        self._buffer = attach(handle)
        self._words = self._buffer.bytes[:24].data.cast("q")

    def at(self) -> At:
        """What the node is at."""
        return _read(self._words)

    def close(self) -> None:
        """Let go of the memory; may be called twice."""
        self._words.release()
        self._buffer.close()


def _read(words: memoryview) -> At:
    source, first, since = words
    return At(source, first, (time.monotonic_ns() - since) / _NS)
