"""Trigger maps: which frame of another detector belongs to which event.

An event is a frame of the main detector. Another detector may take fewer: one for every fourth
event, say, or one that lasts for four events. Its map is the pattern of one cycle of events, which
is repeated for ever: for each event the number of the frame within the cycle, or none.

    [0]                        a frame for every event
    [0, none, none, none]      one for every fourth event: events 0, 4, 8 ...
    [none, 0, 1]               none for the first of three events
    [0, 0, 0, 0]               one that lasts for four events, and belongs to each of them
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lima2py.frame import NO_FRAME, Absence, Array, Block, FrameSpec

MOST_EVENTS = 100_000
"""The most events of a cycle."""


class TriggerMap:
    """Which frame belongs to which event.

    Args:
        pattern: for each event of a cycle the number of its frame in the cycle, None if it has
            none. The frames of a cycle are counted 0, 1, 2 ... in the order of the events.

    Attributes:
        pattern: as it was given.
        group: consecutive events that may have frames in common; 1 if none have.

    Raises:
        ValueError: saying what a pattern should be.
    """

    def __init__(self, pattern: Sequence[int | None]):
        self.pattern = tuple(pattern)
        if not 1 <= len(self.pattern) <= MOST_EVENTS:
            raise ValueError(f"should have 1 to {MOST_EVENTS} events; has {len(self.pattern)}")
        numbers = np.array([-1 if number is None else number for number in self.pattern])
        used = numbers[numbers >= 0]
        if not used.size or used[0] or not np.isin(np.diff(used), (0, 1)).all():
            raise ValueError(
                "should count the frames of a cycle 0, 1, 2 ... in the order of the events; an"
                " event has one of them or none, and several events may have the same"
            )
        self._numbers: NDArray[np.int64] = numbers.astype(np.int64)
        self._frames = int(used[-1]) + 1
        begun = np.maximum.accumulate(numbers) + 1
        self._begun: list[int] = [
            0,
            *begun.tolist(),
        ]  # by event: how many frames have begun before it
        places = np.flatnonzero(numbers >= 0)
        firsts = places[np.unique(used, return_index=True)[1]]
        self._first: list[int] = firsts.tolist()  # by frame, its event
        self._next: list[int] = np.where(
            numbers < 0, begun, numbers
        ).tolist()  # its frame, or the next one
        self.group = len(self.pattern) if len(used) > self._frames else 1

    @classmethod
    def every(cls, events: int) -> TriggerMap:
        """The first of so many events has a frame, the others have none."""
        return cls([0, *[None] * (events - 1)])

    @property
    def events_per_frame(self) -> float:
        """How many events there are for each frame, on the average."""
        return len(self.pattern) / self._frames

    @property
    def share(self) -> float:
        """The part of all events that have a frame."""
        return sum(number is not None for number in self.pattern) / len(self.pattern)

    def nb_frames(self, events: int) -> int:
        """How many frames so many events need."""
        cycles, left = divmod(events, len(self.pattern))
        return cycles * self._frames + self._begun[left]

    def frames(self, first: int, end: int) -> tuple[int, int]:
        """The frames that the events from `first` to before `end` need.

        Returns:
            The first frame and the one after the last; these are equal if none is needed.
        """
        cycles, left = divmod(first, len(self.pattern))
        return cycles * self._frames + self._next[left], self.nb_frames(end)

    def event(self, frame: int) -> int:
        """The first event that a frame belongs to."""
        cycles, left = divmod(frame, self._frames)
        return cycles * len(self.pattern) + self._first[left]

    def numbers(self, first: int, count: int) -> NDArray[np.int64]:
        """For each of `count` events the number of its frame, -1 if it has none."""
        cycles, left = np.divmod(np.arange(first, first + count), len(self.pattern))
        numbers = self._numbers[left]
        found: NDArray[np.int64] = np.where(numbers < 0, -1, cycles * self._frames + numbers)
        return found

    def by_event(
        self, spec: FrameSpec, index: int, count: int, parts: Sequence[Block], missing: Absence
    ) -> Block:
        """Frames as a block of events, to go with one of the main detector.

        Args:
            spec: of the frames.
            index: the first event.
            count: how many events.
            parts: of what has come, blocks of frames under their own numbers.
            missing: why those that have not come are absent.

        Returns:
            The frames themselves where all lie together in one part, and a copy of them elsewhere.
        """
        first, end = self.frames(index, index + count)
        if first == end:
            return Block.absent(spec, index, count, NO_FRAME)
        if end - first == count and (self.group == 1 or count == 1):  # one for each
            for part in parts:
                if part.index <= first and end <= part.end:
                    found = part
                    if part.count > count:
                        found = part.part(first - part.index, end - part.index)
                    return Block(spec, index, count, found.data, found.absences, found.columns)
        return self._spread(spec, index, count, parts, missing)

    def _spread(
        self, spec: FrameSpec, index: int, count: int, parts: Sequence[Block], missing: Absence
    ) -> Block:
        """See `by_event`: a copy."""
        numbers = self.numbers(index, count)
        absences = dict.fromkeys(np.flatnonzero(numbers < 0).tolist(), NO_FRAME)
        waits = numbers >= 0
        data: Array | None = None
        columns: dict[str, Array] = {}
        for part in parts:
            events = np.flatnonzero((numbers >= part.index) & (numbers < part.end))
            waits[events] = False
            chosen = numbers[events] - part.index
            offsets: slice | NDArray[np.int64] = chosen
            if self.group == 1 and len(chosen):  # each frame once: a view, not one copy more
                offsets = slice(int(chosen[0]), int(chosen[-1]) + 1)
            for name, values in part.columns.items():
                if name not in columns:
                    nothing = np.nan if values.dtype.kind == "f" else 0
                    columns[name] = np.full(count, nothing, values.dtype)
                columns[name][events] = values[offsets]
            if part.data is not None:
                if data is None:
                    data = np.zeros((count, *spec.shape), spec.dtype)
                data[events] = part.pixels[offsets]
            for offset, said in part.absences.items():
                gone = np.flatnonzero(numbers == part.index + offset).tolist()
                absences |= dict.fromkeys(gone, said)
        absences |= dict.fromkeys(np.flatnonzero(waits).tolist(), missing)
        return Block(spec, index, count, data, absences, columns)


class Companion(NamedTuple):
    """What is to be known of the frames of another detector.

    Attributes:
        spec: what they look like.
        events: which of them belongs to which event.
    """

    spec: FrameSpec
    events: TriggerMap
