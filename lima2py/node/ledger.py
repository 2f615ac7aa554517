"""The ledger: one line for every frame, with who had it, where it lies and its fate.

There is one track for the frame as a whole and one for each sink; that of a sink whose rows stand
for n frames each has one line for n frames. Growable numpy columns, about 20
bytes a frame: the only thing that grows with the length of a run.
"""

from __future__ import annotations

from collections.abc import Mapping
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
            nb_frames * (2 + 9 * (1 + len(self.sinks))),
            f"a ledger has a line for each of {nb_frames} frames: ask for fewer, or 0 and stop it",
        )
        self.settled = 0
        self.end = 0
        self._length = nb_frames or 4096
        self._node = np.full(self._length, -1, np.int16)
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
            for track in self._tracks:
                track.grow(self._length)

    def settle(self, done: DoneBlock, node: int) -> None:
        """Write down what became of the frames of a block."""
        first, count = done.index, done.count
        part = slice(first, first + count)
        self._node[part] = node
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

    def table(self, sink: str) -> FrameTable:
        """Everything about every line of a sink's track."""
        track = self._tracks[self.sinks.index(sink) + 1]
        asked = self.asked // track.span
        return FrameTable(
            fate=track.fate[:asked],
            node=self._node[track.span - 1 :: track.span][:asked],
            row=track.row[:asked],
            absences=track.details,
        )

    def pack(self) -> bytes:
        """The whole ledger as bytes, for the acquisition node that keeps the books."""
        plain: dict[str, Any] = {
            "end": self.end,
            "length": self._length,
            "node": self._node.tobytes(),
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
        for number, (track, theirs) in enumerate(zip(self._tracks, other["tracks"], strict=True)):
            fate = np.frombuffer(theirs["fate"], np.uint8)
            length = min(len(fate), len(track.fate))
            new = np.flatnonzero((track.fate[:length] == 0) & (fate[:length] != 0))
            track.fate[new] = fate[new]
            track.row[new] = np.frombuffer(theirs["row"], np.int64)[new]
            if number == 0:
                self._node[new] = node[new]
            for index, cause, who, detail in theirs["details"]:
                track.details.setdefault(index, Absence(Fate(cause), who, detail))
        self._counts = {}


def _grown(values: NDArray[Any], length: int, fill: int) -> NDArray[Any]:
    grown = np.full(length, fill, values.dtype)
    grown[: len(values)] = values
    return grown
