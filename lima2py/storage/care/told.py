"""What the journals of a run tell, read when the node that kept the books is gone."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from lima2py.detector import Share
from lima2py.frame import Absence, Fate
from lima2py.memory import check_available
from lima2py.storage.failures import telling
from lima2py.storage.masters.master import FrameTable
from lima2py.storage.saving.journal import FRAMING, MAGIC, Batch, Head, Line, Rest

_FATES = frozenset(map(int, Fate))


class Told(NamedTuple):
    """What a journal says.

    Attributes:
        head: whose it is.
        lines: in the order in which they were written.
        rest: what became of all others; None if its writer died before it knew.
    """

    head: Head
    lines: list[Line]
    rest: Rest | None


def read_journal(path: Path) -> Told | None:
    """What a journal says, up to where its writer died; None if that was before it said anything.

    Raises:
        StorageError: if it cannot be read.
    """
    with telling(path, "cannot be read"):
        content = path.read_bytes()
    if not content.startswith(MAGIC):
        return None
    at = len(MAGIC)
    head: Head | None = None
    lines: list[Line] = []
    rest: Rest | None = None
    while len(content) - at >= FRAMING.size:
        length, crc = FRAMING.unpack_from(content, at)
        at += FRAMING.size
        payload = content[at : at + length]
        at += length
        if len(payload) < length or zlib.crc32(payload) != crc:
            break
        try:
            if head is None:
                head = msgspec.msgpack.decode(payload, type=Head)
                continue
            batch = msgspec.msgpack.decode(payload, type=Batch)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            break
        if not all(_fits(line, head) for line in batch.lines):
            break
        lines += batch.lines
        rest = batch.rest
    return None if head is None else Told(head, lines, rest)


def tracks_of(journals: Sequence[Told]) -> list[FrameTable]:
    """What became of every frame: as a whole (which has no rows), and on its way to each sink.

    Args:
        journals: of the acquisition nodes of one run, one at least.

    Raises:
        LimaError: if there is not enough memory for so many frames.
    """
    head = journals[0].head
    ends = [line.index + line.count for told in journals for line in told.lines]
    ends += [told.rest.end for told in journals if told.rest is not None]
    asked = head.nb_frames or max(ends, default=0)
    check_available(asked * 13 * (1 + len(head.sinks)), f"a journal tells of {asked} frames")
    tracks = [_Track(asked, span) for span in _spans(head)]
    for told in journals:
        for line in told.lines:
            for track, row in zip(tracks, (-1, *line.rows), strict=True):
                track.lay(line, row)
            for number, ranged in line.absences:
                tracks[number].refuse(line, *ranged)
    for told in journals:
        for track in tracks:
            if told.rest is not None:
                track.close(told.rest, Share(*told.head.share))
    return [track.table for track in tracks]


def _spans(head: Head) -> tuple[int, ...]:
    """Of each track, how many frames one line stands for."""
    return (1, *head.sinks.values())


def _fits(line: Line, head: Head) -> bool:
    """Whether a line can be one of this journal."""
    spans = _spans(head)
    first, end = line.index, line.index + line.count
    if first < 0 or line.count < 1 or 0 < head.nb_frames < end or len(line.rows) + 1 != len(spans):
        return False
    return all(
        0 <= number < len(spans)
        and 0 <= offset <= offset + count <= end // spans[number] - first // spans[number]
        and cause in _FATES
        for number, (offset, count, cause, _, _) in line.absences
    )


class _Track:
    """What became of all frames, or of every `span` of them."""

    def __init__(self, asked: int, span: int):
        length = asked // span
        self._span = span
        self._fate = np.zeros(length, np.uint8)
        self._node = np.full(length, -1, np.int16)
        self._row = np.full(length, -1, np.int64)
        self._attempts = np.zeros(length, np.uint8)
        self._absences: dict[int, Absence] = {}

    def lay(self, line: Line, row: int) -> None:
        """Write down what a line says, but for its absences."""
        part = slice(line.index // self._span, (line.index + line.count) // self._span)
        self._fate[part] = Fate.SAVED
        self._node[part] = line.node
        self._attempts[part] = min(line.attempts, 255)
        if row >= 0:
            self._row[part] = np.arange(row, row + part.stop - part.start)

    def refuse(
        self, line: Line, offset: int, count: int, cause: int, who: str, detail: str
    ) -> None:
        """Write down that some of its frames are absent."""
        first = line.index // self._span + offset
        self._note(range(first, first + count), Absence(Fate(cause), who, detail))

    def close(self, rest: Rest, share: Share) -> None:
        """Give all frames of a share that have no fate yet this one."""
        still_open = np.flatnonzero(self._fate == Fate.NO_RECORD)
        whose = still_open * self._span // share.group % share.size
        ours = still_open[whose == share.rank].tolist()
        self._note(ours, Absence(Fate(rest.cause), rest.who, rest.detail))

    def _note(self, lines: Sequence[int], why: Absence) -> None:
        self._fate[np.asarray(lines, np.int64)] = why.cause
        self._absences.update(dict.fromkeys(lines, why))

    @property
    def table(self) -> FrameTable:
        """All of it."""
        return FrameTable(self._fate, self._node, self._row, self._absences, self._attempts)
