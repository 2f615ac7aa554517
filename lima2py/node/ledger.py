"""The ledger: one line for every frame, with who had it, where it lies and its fate.

There is one track for the frame as a whole and one for each sink; that of a sink whose rows stand
for n frames each has one line for n frames. Growable numpy columns, about 20
bytes a frame: the only thing that grows with the length of a run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from lima2py.detector import Share
from lima2py.frame import Absence, Fate
from lima2py.memory import check_available
from lima2py.storage.masters.master import FrameTable
from lima2py.transport.wire import AbsentRange, DoneBlock, pack_absences, unpack_absences

MAX_DETAILS = 100_000
"""The most absences of a track whose words are kept; the causes are kept for all."""

KEPT_RANGES = 1000
"""The most ranges of absent frames in a report; files have all of them."""


class _Track:
    """The fate of every frame on one track, or of every n frames."""

    def __init__(self, length: int, span: int = 1):
        self.span = span
        self.fate = np.zeros(length // span, np.uint8)
        self.row = np.full(length // span, -1, np.int64)
        self.details: dict[int, Absence] = {}

    def grow(self, length: int) -> None:
        self.fate = _grown(self.fate, length // self.span, 0)
        self.row = _grown(self.row, length // self.span, -1)

    def lines(self, first: int, count: int) -> slice:
        """The lines that end within these frames."""
        return slice(first // self.span, (first + count) // self.span)

    def note(self, index: int, said: Absence) -> None:
        self.fate[index] = said.cause
        if len(self.details) < MAX_DETAILS:
            self.details[index] = said


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
            nb_frames * (3 + 9 * (1 + len(self.sinks))),
            f"a ledger has a line for each of {nb_frames} frames: ask for fewer, or 0 and stop it",
        )
        self.settled = 0
        self.end = 0
        self._length = nb_frames or 4096
        self._node = np.full(self._length, -1, np.int16)
        self._attempts = np.zeros(self._length, np.uint8)
        self._tracks = [_Track(self._length, span) for span in (1, *sinks.values())]
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
            self._node = _grown(self._node, self._length, -1)
            self._attempts = _grown(self._attempts, self._length, 0)
            for track in self._tracks:
                track.grow(self._length)

    def settle(self, done: DoneBlock, node: int, attempts: int = 1) -> None:
        """Write down what became of the frames of a block, which was given to a node so often."""
        first, count = done.index, done.count
        part = slice(first, first + count)
        self._node[part] = node
        self._attempts[part] = min(attempts, 255)
        for track in self._tracks:
            track.fate[track.lines(first, count)] = Fate.SAVED
        for track, row in zip(self._tracks[1:], done.rows, strict=True):
            if row >= 0:
                lines = track.lines(first, count)
                track.row[lines] = np.arange(row, row + lines.stop - lines.start)
        for number, ranged in done.absences:
            track = self._tracks[number]
            lines = track.lines(first, count)
            for offset, said in unpack_absences([ranged], lines.stop - lines.start).items():
                track.note(lines.start + offset, said)
        fates, numbers = np.unique(self._tracks[0].fate[part], return_counts=True)
        for fate, number in zip(fates.tolist(), numbers.tolist(), strict=True):
            self._counts[fate] = self._counts.get(fate, 0) + number
        self.settled += count

    def close(self, said: Absence, share: Share | None = None) -> None:
        """Give every frame that has no fate yet this one; only the frames of a share, if given."""
        for track in self._tracks:
            asked = self.asked // track.span
            open_ones = np.flatnonzero(track.fate[:asked] == Fate.NO_RECORD)
            if share is not None:
                whose = open_ones * track.span // share.group % share.size
                open_ones = open_ones[whose == share.rank]
            for index in open_ones[:MAX_DETAILS].tolist():
                track.note(index, said)
            track.fate[open_ones] = said.cause
        self._recount()

    def _recount(self) -> None:
        fates, numbers = np.unique(self._tracks[0].fate[: self.asked], return_counts=True)
        self._counts = dict(zip(fates.tolist(), numbers.tolist(), strict=True))
        self._counts.pop(int(Fate.NO_RECORD), None)

    def counts(self) -> dict[str, int]:
        """Frames by fate, so far."""
        return {Fate(fate).word: number for fate, number in sorted(self._counts.items())}

    def sink_counts(self) -> dict[str, dict[str, int]]:
        """Rows by fate, for every sink: one for each frame, or for each n frames."""
        found = {}
        for name, track in zip(self.sinks, self._tracks[1:], strict=True):
            asked = self.asked // track.span
            fates, numbers = np.unique(track.fate[:asked], return_counts=True)
            found[name] = {
                Fate(fate).word: number
                for fate, number in zip(fates.tolist(), numbers.tolist(), strict=True)
            }
        return found

    def ranges(self) -> list[AbsentRange]:
        """Why frames are absent or rejected: first index, how many, cause, who, detail."""
        return pack_absences(self._tracks[0].details)

    def plain(self) -> dict[str, Any]:
        """What became of the frames, for the report, as plain values."""
        return {
            "asked": self.asked,
            "counts": self.counts(),
            "sinks": self.sink_counts(),
            "absences": self.ranges()[:KEPT_RANGES],
        }

    def table(self, sink: str) -> FrameTable:
        """Everything about every line of a sink's track."""
        track = self._tracks[self.sinks.index(sink) + 1]
        asked = self.asked // track.span
        return FrameTable(
            fate=track.fate[:asked],
            node=self._node[track.span - 1 :: track.span][:asked],
            row=track.row[:asked],
            absences=track.details,
            attempts=self._attempts[track.span - 1 :: track.span][:asked],
        )

    def take(self, tracks: Sequence[FrameTable]) -> None:
        """Take over what journals tell, track by track; frames with a fate here keep it."""
        if not self.nb_frames:
            self.acquired(len(tracks[0].fate))
        for number, theirs in enumerate(tracks):
            self._adopt(number, theirs)
        self._recount()

    def show(self, tables: Mapping[str, FrameTable]) -> None:
        """Take over what masters show: frames that were lost with a node may lie in its files.

        Args:
            tables: by sink.
        """
        for sink, track in zip(self.sinks, self._tracks[1:], strict=True):
            if sink in tables:
                fate = tables[sink].fate[: len(track.fate)]
                track.fate[: len(fate)] = fate
                track.details = {line: said for line, said in tables[sink].absences.items()
                                 if line < len(fate) and said.cause == fate[line]}  # fmt: skip
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
            worse = _badness(theirs) > _badness(fate)
            fate[worse], source[worse] = theirs[worse], number
        whole.fate[lost] = fate
        for index, number in zip(lost.tolist(), source.tolist(), strict=True):
            whole.details.pop(index, None)
            track = self._tracks[number]
            if number and (said := track.details.get(index // track.span)):
                whole.note(index, said)

    def pack(self) -> bytes:
        """The whole ledger as bytes, for the acquisition node that keeps the books."""
        plain: dict[str, Any] = {
            "end": self.end,
            "length": self._length,
            "node": self._node.tobytes(),
            "attempts": self._attempts.tobytes(),
            "tracks": [
                {
                    "fate": track.fate.tobytes(),
                    "row": track.row.tobytes(),
                    "details": [(index, *said) for index, said in track.details.items()],
                }
                for track in self._tracks
            ],
        }
        return msgspec.msgpack.encode(plain)

    def merge(self, packed: bytes) -> None:
        """Take over what another acquisition node knows; frames with a fate here keep it."""
        other = msgspec.msgpack.decode(packed)
        self.acquired(other["end"])
        node = np.frombuffer(other["node"], np.int16)
        attempts = np.frombuffer(other["attempts"], np.uint8)
        for number, theirs in enumerate(other["tracks"]):
            details = {index: Absence(Fate(cause), who, detail)
                       for index, cause, who, detail in theirs["details"]}  # fmt: skip
            fate, row = np.frombuffer(theirs["fate"], np.uint8), np.frombuffer(theirs["row"], "i8")
            self._adopt(number, FrameTable(fate, node, row, details, attempts))
        self._counts = {}

    def _adopt(self, number: int, theirs: FrameTable) -> None:
        track = self._tracks[number]
        length = min(len(theirs.fate), len(track.fate))
        new = np.flatnonzero((track.fate[:length] == 0) & (theirs.fate[:length] != 0))
        track.fate[new] = theirs.fate[new]
        track.row[new] = theirs.row[new]
        if number == 0:
            self._node[new] = theirs.node[new]
            if theirs.attempts is not None:
                self._attempts[new] = theirs.attempts[new]
        for index, said in theirs.absences.items():
            track.details.setdefault(index, said)


def _badness(fates: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """0 for saved, 1 for rejected, 2 for absent and unknown."""
    badness: NDArray[np.uint8] = np.minimum(fates - np.uint8(Fate.SAVED), 2)  # 0 becomes 255
    return badness


def _grown(values: NDArray[Any], length: int, fill: int) -> NDArray[Any]:
    grown = np.full(length, fill, values.dtype)
    grown[: len(values)] = values
    return grown
