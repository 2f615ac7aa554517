"""The ledger: one line for every frame, with who had it, where it lies and its fate.

There is one track for the frame as a whole and one for each sink; that of a sink whose rows stand
for n frames each has one line for n frames. A line of a track takes 14 bytes: the only thing that
grows with the length of a run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from lima2py.detector import Share
from lima2py.frame import Absence, Fate
from lima2py.memory import check_available
from lima2py.storage.masters.master import FrameTable
from lima2py.storage.reasons import Reasons
from lima2py.storage.track import BYTES_PER_LINE, Track
from lima2py.transport.wire import AbsentRange, DoneBlock

KEPT_RANGES = 1000
"""The most ranges of absent frames in a report; files have all of them."""

_AT_ONCE = 2**18
"""Fates that are counted at once: numpy makes each 8 bytes for that."""
_COLUMNS = ("fate", "node", "row", "attempts")

_HARM = np.full(256, 2, np.uint8)
_HARM[list(Fate)] = [fate.harm for fate in Fate]


class Ledger:
    """The book of one acquisition node.

    Args:
        sinks: by name, in the order of their tracks, how many frames one of their rows stands for.
        nb_frames: frames asked for; 0 if endless.

    Raises:
        LimaError: if there is not enough memory for so many.
    """

    def __init__(self, sinks: Mapping[str, int], nb_frames: int):
        self.sinks = list(sinks)
        self.nb_frames = nb_frames
        check_available(
            nb_frames * BYTES_PER_LINE * (1 + len(self.sinks)),
            f"a ledger has a line for each of {nb_frames} frames: ask for fewer, or 0 and stop it",
        )
        self.settled = 0
        self.end = 0
        self._length = nb_frames or 4096
        self._tracks = [Track(self._length, span) for span in (1, *sinks.values())]
        self._counts: dict[int, int] = {}

    @property
    def asked(self) -> int:
        """How many frames the run is about: those asked for, or those acquired if endless."""
        return self.nb_frames or self.end

    def acquired(self, end: int) -> None:
        """Frames up to `end` (exclusive) exist."""
        self.end = max(self.end, end)
        if end > self._length:
            self._length = max(end, 2 * self._length)
            for track in self._tracks:
                track.grow(self._length)

    def settle(self, done: DoneBlock, node: int, attempts: int = 1) -> None:
        """Write down what became of the frames of a block, which was given to a node so often."""
        nodes = done.nodes or [node] * len(done.rows)
        tracks = zip(self._tracks, (node, *nodes), (-1, *done.rows), strict=True)
        for track, rank, row in tracks:
            track.lay(done.index, done.count, rank, attempts, row)
        for number, absent in done.absences:
            self._tracks[number].refuse(done.index, absent)
        part = self._tracks[0].fate[done.index : done.index + done.count]
        for fate, number in _numbers(part).items():
            self._counts[fate] = self._counts.get(fate, 0) + number
        self.settled += done.count

    def close(self, said: Absence, share: Share | None = None) -> None:
        """Give every frame that has no fate yet this one; only the frames of a share, if given."""
        for track in self._tracks:
            track.close(said, self.asked, share)
        self._recount()

    def _recount(self) -> None:
        self._counts = _numbers(self._tracks[0].fate[: self.asked])
        self._counts.pop(int(Fate.NO_RECORD), None)

    def counts(self) -> dict[str, int]:
        """Frames by fate, so far."""
        return _in_words(self._counts)

    def sink_counts(self) -> dict[str, dict[str, int]]:
        """Rows by fate, for every sink: one for each frame, or for each n frames."""
        return {
            name: _in_words(_numbers(track.fate[: self.asked // track.span]))
            for name, track in zip(self.sinks, self._tracks[1:], strict=True)
        }

    def ranges(self) -> Iterator[AbsentRange]:
        """Why frames are absent or rejected: first index, how many, cause, who, detail."""
        whole = self._tracks[0]
        for first, last, said in whole.reasons.ranges(whole.fate[: self.asked]):
            if said.cause is not Fate.NO_RECORD:
                yield first, last - first + 1, int(said.cause), said.who, said.detail

    def plain(self) -> dict[str, Any]:
        """What became of the frames, for the report, as plain values."""
        return {
            "asked": self.asked,
            "counts": self.counts(),
            "sinks": self.sink_counts(),
            "absences": list(islice(self.ranges(), KEPT_RANGES)),
        }

    def table(self, sink: str) -> FrameTable:
        """Everything about every line of a sink's track."""
        return self._tracks[self.sinks.index(sink) + 1].table(self.asked)

    def take(self, tracks: Sequence[FrameTable]) -> None:
        """Take over what journals tell, track by track; frames with a fate here keep it."""
        if not self.nb_frames:
            self.acquired(len(tracks[0].fate))
        for track, theirs in zip(self._tracks, tracks, strict=True):
            track.adopt(theirs)
        self._recount()

    def show(self, tables: Mapping[str, FrameTable]) -> None:
        """Take over what masters show: frames that were lost with a node may lie in its files.

        Args:
            tables: by sink.
        """
        for sink, track in zip(self.sinks, self._tracks[1:], strict=True):
            if sink in tables:
                track.show(tables[sink])
        if tables:
            self._judge_lost()
            self._recount()

    def _judge_lost(self) -> None:
        """Give frames lost with a node the worst of what became of them on their way to sinks."""
        whole, *sinks = self._tracks
        lost = np.flatnonzero(np.isin(whole.fate[: self.asked], (Fate.NO_RECORD, Fate.NODE_LOST)))
        fate, source = np.full(len(lost), Fate.SAVED, np.uint8), np.zeros(len(lost), np.int64)
        for number, track in enumerate(sinks, 1):
            lines = lost // track.span
            theirs = np.full(len(lost), Fate.SAVED, np.uint8)  # as is a frame too many for a line
            known = lines < self.asked // track.span
            theirs[known] = track.fate[lines[known]]
            worse = _HARM[theirs] > _HARM[fate]
            fate[worse], source[worse] = theirs[worse], number
        whole.fate[lost] = fate
        for number, track in enumerate(sinks, 1):
            mine = lost[source == number]
            whole.reasons.take(mine, track.reasons, mine // track.span)

    def pack(self) -> bytes:
        """The whole ledger as bytes, for the acquisition node that keeps the books."""
        return msgspec.msgpack.encode(
            {
                "end": self.end,
                "tracks": [
                    {
                        **{name: getattr(track, name).tobytes() for name in _COLUMNS},
                        "number": track.reasons.number.tobytes(),
                        "words": track.reasons.words,
                    }
                    for track in self._tracks
                ],
            }
        )

    def merge(self, packed: bytes) -> None:
        """Take over what another acquisition node knows; frames with a fate here keep it."""
        other = msgspec.msgpack.decode(packed)
        self.acquired(other["end"])
        for track, theirs in zip(self._tracks, other["tracks"], strict=True):
            columns = {
                name: np.frombuffer(theirs[name], getattr(track, name).dtype) for name in _COLUMNS
            }
            words = [Absence(Fate(cause), who, detail) for cause, who, detail in theirs["words"]]
            number = np.frombuffer(theirs["number"], np.uint16)
            track.adopt(FrameTable(**columns, reasons=Reasons.of(number, words)))
        self._counts = {}


def _numbers(fates: NDArray[np.uint8]) -> dict[int, int]:
    """How many frames met each fate."""
    numbers = np.zeros(256, np.int64)
    for at in range(0, len(fates), _AT_ONCE):
        numbers += np.bincount(fates[at : at + _AT_ONCE], minlength=256)
    return {fate: int(numbers[fate]) for fate in np.flatnonzero(numbers).tolist()}


def _in_words(numbers: Mapping[int, int]) -> dict[str, int]:
    return {Fate(fate).word: number for fate, number in sorted(numbers.items())}
