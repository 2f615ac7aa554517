"""What the journals of a run tell, read when the node that kept the books is gone."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from lima2py.frame import Absence, Fate
from lima2py.memory import check_available
from lima2py.storage.failures import telling
from lima2py.storage.masters.master import FrameTable
from lima2py.storage.saving.journal import FRAMING, MAGIC, Batch, Head, JournalLine, Rest
from lima2py.storage.track import BYTES_PER_LINE, Track

_FATES = frozenset(map(int, Fate))


class JournalContent(NamedTuple):
    """What a journal says.

    Attributes:
        head: whose it is.
        lines: in the order in which they were written.
        rest: what became of all others; None if its writer died before it knew.
    """

    head: Head
    lines: list[JournalLine]
    rest: Rest | None


def read_journal(path: Path) -> JournalContent | None:
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
    lines: list[JournalLine] = []
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
    return None if head is None else JournalContent(head, lines, rest)


def tracks_of(journals: Sequence[JournalContent]) -> list[FrameTable]:
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
    spans = _spans(head)
    check_available(asked * BYTES_PER_LINE * len(spans), f"a journal tells of {asked} frames")
    tracks = [Track(asked, span) for span in spans]
    for told in journals:
        for line in told.lines:
            nodes = line.nodes or [line.node] * len(line.rows)
            laid = zip(tracks, (line.node, *nodes), (-1, *line.rows), strict=True)
            for track, rank, row in laid:
                track.lay(line.index, line.count, rank, line.attempts, row)
            for number, absent in line.absences:
                tracks[number].refuse(line.index, absent)
    for told in journals:
        if (rest := told.rest) is not None:
            for track in tracks:
                said = Absence(Fate(rest.cause), rest.who, rest.detail)
                track.close(said, asked, told.head.share)
    return [track.table(asked) for track in tracks]


def _spans(head: Head) -> tuple[int, ...]:
    """Of each track, how many frames one line stands for."""
    return (1, *head.sinks.values())


def _fits(line: JournalLine, head: Head) -> bool:
    """Whether a line can be one of this journal."""
    spans = _spans(head)
    first, end = line.index, line.index + line.count
    if first < 0 or line.count < 1 or 0 < head.nb_frames < end or len(line.rows) + 1 != len(spans):
        return False
    if len(line.nodes) not in (0, len(line.rows)):
        return False
    return all(
        0 <= number < len(spans)
        and 0 <= offset <= offset + count <= end // spans[number] - first // spans[number]
        and cause in _FATES
        for number, (offset, count, cause, _, _) in line.absences
    )
