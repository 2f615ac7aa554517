"""Keep the most recent frames, for whoever looks at them while they pass.

The pipeline never waits for a reader: old frames give way to new ones. Every kept frame has a
running number, so that a reader can ask for what is new and sees how many it missed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from threading import Lock
from time import monotonic
from typing import Annotated, NamedTuple, cast

import numpy as np
from pydantic import BeforeValidator, Field, PrivateAttr

from lima2py.frame import Block, Fate, Frame, FrameSpec
from lima2py.shelf import Row, Shelf, usual_bytes
from lima2py.task import RunContext, Task
from lima2py.units import seconds

TAP_BYTES = 8 * 2**20
"""The most pixels that a reader is given at once, in bytes; one frame is always given."""
_BESIDES = 1000
"""About what a frame takes besides its pixels, in bytes."""


class TapFrame(NamedTuple):
    """A frame that was kept.

    Attributes:
        serial: its number among those this tap chose, from 0; numbers that are missing belong to
            frames that had given way before they were read.
        frame: a copy of its own, read-only.
    """

    serial: int
    frame: Frame


def _frames_or_time(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    if isinstance(value, str) and _interval(value) > 0:
        return value
    raise ValueError(
        "should be a number of frames, 1 or more, or a time longer than 0 with its unit, for"
        " instance 200 ms"
    )


def _interval(text: str) -> float:
    return cast("float", seconds(text))


def _copy(frame: Frame) -> Frame:
    if frame.data is None:
        return frame
    data = frame.data.copy()
    data.flags.writeable = False  # several readers may get the same copy
    return replace(frame, data=data)


def _with_frames(block: Block, offsets: Sequence[int]) -> Sequence[int]:
    """Those of some offsets that another detector has taken a frame for, or should have."""
    if not block.absences:
        return offsets
    none = {offset for offset, said in block.absences.items() if said.cause is Fate.NOT_TRIGGERED}
    return [offset for offset in offsets if offset not in none] if none else offsets


class Tap(Task):
    """Keep copies of some recent frames and hand every block on as it is.

    It can stand behind any task: images, vectors, tables, the rows of sparse frames, and the
    products of an accumulation, which are counted by their own numbers.

    `recent`, `latest` and `change` may be called from any thread, during the run and after it.
    """

    every: Annotated[int | str, BeforeValidator(_frames_or_time)] = 1
    """How often a frame is kept: `10` keeps those whose index is a multiple of 10; `200 ms` keeps
    about one in that time over all nodes (at most one of a block)."""
    history: Annotated[int, Field(ge=1)] = 16
    """The most frames that are kept, on each node; fewer if the memory budget has no room."""

    takes_absent = True

    _every: int | str = 1
    _nodes: int = 1
    _pause: float = 0.0
    _due: float = 0.0
    _row: Row[TapFrame] = PrivateAttr(default_factory=lambda: Shelf().row(""))
    _serial: int = 0
    _ended: bool = False
    _lock: Lock = PrivateAttr(default_factory=Lock)

    def prepare(self, spec: FrameSpec) -> FrameSpec:
        """Anything can be kept, and nothing changes."""
        self._spec = spec
        return spec

    def start(self, run: RunContext) -> None:
        """A time is shared out among the nodes."""
        self._nodes = run.nodes
        self._row = run.shelf.row(run.run)
        self.change(self)

    def change(self, like: Tap) -> None:
        """Go on with the parameters of another tap; what was kept stays, as far as it fits."""
        with self._lock:
            self._every = like.every
            self._pause = _interval(like.every) * self._nodes if isinstance(like.every, str) else 0
            self._due = 0.0
            size = usual_bytes(self._spec) + _BESIDES
            self._row.expect(like.history * size, size, most=like.history)

    def process(self, block: Block) -> Block:
        """Copy the chosen frames."""
        with self._lock:
            offsets, history = self._choose(block), self._row.most or 1
        newest = offsets[-history:]  # the others would be gone before anybody saw them
        copies = [_copy(block.frame(offset)) for offset in newest]
        with self._lock:
            first = self._serial + len(offsets) - len(newest)
            for n, frame in enumerate(copies):
                nbytes = _BESIDES + (0 if frame.data is None else frame.data.nbytes)
                self._row.add(TapFrame(first + n, frame), nbytes)
            self._serial += len(offsets)
        return block

    def _choose(self, block: Block) -> Sequence[int]:
        """The offsets of the frames to keep: none of events without a frame."""
        if isinstance(self._every, int):
            return _with_frames(block, range(-block.index % self._every, block.count, self._every))
        now = monotonic()
        if now < self._due or not (offsets := _with_frames(block, range(block.count))):
            return ()
        self._due += self._pause
        if self._due <= now:  # the first frame, or the first one after a long silence
            self._due = now + self._pause
        present = np.flatnonzero(block.present)
        return (int(present[-1]) if present.size else offsets[-1],)

    def finish(self) -> None:
        """No more frames will come; those that were kept can still be read."""
        self._ended = True
        self._row.end()

    def recent(self, after: int = -1) -> list[TapFrame]:
        """The kept frames with a serial above `after`, oldest first."""
        return [item for item in self._row.values() if item.serial > after]

    def latest(self) -> TapFrame | None:
        """The newest frame; None before the first one."""
        kept = self.recent()
        return kept[-1] if kept else None

    @property
    def shown(self) -> int:
        """How many frames were kept so far, those that have given way with them."""
        return self._serial

    @property
    def ended(self) -> bool:
        """Whether the last frame has passed."""
        return self._ended
