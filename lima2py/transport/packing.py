"""Packing: absences, columns and frames as they stand in messages, and back.

What comes back is checked: it may be from anybody.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lima2py.errors import ProtocolError
from lima2py.frame import SIZES, Absence, Array, Block, Fate, FrameSpec
from lima2py.transport.wire import MOST_RANKS, AbsentRange, BlockMessage, Columns, DoneBlock

_DTYPE = re.compile(r"[<>|][biuf][1248]")
_MOST_COLUMNS = 256
_END = 2**62
"""No frame has a number as high as this: there is room to add."""


def pack_absences(absences: Mapping[int, Absence]) -> list[AbsentRange]:
    """Absences by offset as ranges."""
    ranges: list[AbsentRange] = []
    for offset in sorted(absences):
        said = absences[offset]
        if ranges:
            first, count, *last = ranges[-1]
            if offset == first + count and last == [said.cause, said.who, said.detail]:
                ranges[-1] = (first, count + 1, int(said.cause), said.who, said.detail)
                continue
        ranges.append((offset, 1, int(said.cause), said.who, said.detail))
    return ranges


def unpack_absences(ranges: Iterable[AbsentRange], count: int) -> dict[int, Absence]:
    """The absences in ranges, by offset.

    Raises:
        ProtocolError: if ranges reach beyond `count` frames, overlap, or a cause is unknown.
    """
    absences: dict[int, Absence] = {}
    named = 0
    for first, length, cause, who, detail in ranges:
        named += length
        if first < 0 or length < 1 or first + length > count or named > count:
            raise ProtocolError(f"absences {first}+{length} in a block of {count} frames", "block")
        said = unpack_absence(cause, who, detail)
        absences.update(dict.fromkeys(range(first, first + length), said))
    return absences


def unpack_absence(cause: int, who: str, detail: str) -> Absence:
    """An absence.

    Raises:
        ProtocolError: if the cause is unknown.
    """
    try:
        return Absence(Fate(cause), who, detail)
    except ValueError:
        raise ProtocolError(f"unknown fate {cause}", "block") from None


def pack_columns(columns: Mapping[str, Array]) -> Columns:
    """Per-frame columns as bytes."""
    return {name: (values.dtype.str, values.tobytes()) for name, values in columns.items()}


def unpack_columns(columns: Columns, count: int) -> dict[str, Array]:
    """The columns in bytes.

    Raises:
        ProtocolError: if one is not `count` numbers.
    """
    if len(columns) > _MOST_COLUMNS:
        raise ProtocolError(f"{len(columns)} columns; at most {_MOST_COLUMNS} are taken", "block")
    unpacked: dict[str, Array] = {}
    for name, (dtype, content) in columns.items():
        if not _DTYPE.fullmatch(dtype):
            raise ProtocolError(f"column {name}: {dtype[:20]} is no type of numbers", "block")
        try:
            values = np.frombuffer(content, dtype)
        except (TypeError, ValueError) as error:
            raise ProtocolError(f"column {name}: {error}", "block") from None
        if len(values) != count:
            text = f"column {name}: {len(values)} × {dtype} for {count} frames"
            raise ProtocolError(text, "block")
        unpacked[name] = values
    return unpacked


def content_of(block: Block) -> memoryview:
    """The bytes of a block that has data; of encoded frames only those that are used."""
    data = block.pixels
    if block.spec.kind == "encoded":
        data = np.concatenate([block.payload(offset) for offset in range(block.count)])
    return data.reshape(-1).view(np.uint8).data


def _sizes(columns: Mapping[str, Array]) -> Array:
    sizes = columns.get(SIZES)
    if sizes is None or sizes.dtype.kind != "u":
        raise ProtocolError("encoded frames without their sizes", "block")
    return sizes


def _spread(sizes: Array, content: Any, spec: FrameSpec) -> Array:
    """Encoded frames, each in its place again."""
    packed = np.frombuffer(content, np.uint8)
    used = np.minimum(sizes, spec.nbytes).astype(np.int64)
    if used.sum() != len(packed):
        raise ProtocolError(f"{len(packed)} bytes of encoded frames, not {used.sum()}", "block")
    spread = np.empty((len(used), *spec.shape), np.uint8)
    ends = np.cumsum(used)
    for room, first, end in zip(spread, ends - used, ends, strict=True):
        room[: end - first] = packed[first:end]
    return spread


def block_of(message: BlockMessage, spec: FrameSpec, room: int, content: Any) -> Block:
    """The block a message announces.

    Args:
        message: its header.
        spec: what its frames look like.
        room: the most frames of a block.
        content: their pixels: an array `(>= count, *spec.shape)`, a buffer with what `content_of`
            gave, or None when all are absent.

    Raises:
        ProtocolError: if the pixels do not fit the spec and the count.
    """
    count, index = message.count, message.index
    if not (1 <= count <= room and 0 <= index < _END):
        text = f"a block of {count} frames from {index} on, where {room} have room"
        raise ProtocolError(text, "block")
    absences = unpack_absences(message.absences, count)
    columns = unpack_columns(message.columns, count)
    if content is None:
        if len(absences) < count:
            raise ProtocolError("a block without pixels whose frames are not all absent", "block")
    elif isinstance(content, np.ndarray):
        if spec.kind == "encoded":
            _sizes(columns)
        if count > len(content):
            raise ProtocolError(f"{count} frames in a slot of {len(content)}", "block")
        content = content[:count]
    elif spec.kind == "encoded":
        content = _spread(_sizes(columns), content, spec)
    else:
        wanted, given = count * spec.nbytes, memoryview(content).nbytes
        if given != wanted:
            raise ProtocolError(f"{given} bytes of pixels, not {wanted}", "block")
        content = np.frombuffer(content, spec.dtype).reshape(count, *spec.shape)
    origin = (message.source, message.epoch)
    return Block(spec, index, count, content, absences, columns, origin, message.acquired_at)


def check_done(done: DoneBlock, index: int, count: int, spans: Sequence[int]) -> None:
    """Refuse a report that cannot be about a block.

    Args:
        done: the report.
        index: first frame of the block.
        count: how many frames it has.
        spans: for every sink of the plan, how many frames one of its rows stands for.

    Raises:
        ProtocolError: if it names other frames, rows or sinks than there are.
    """
    if done.count != count or len(done.rows) != len(spans):
        text = f"a report on {done.count} frames in {len(done.rows)} sinks, of {count}"
        raise ProtocolError(text, "block")
    if not all(-1 <= row < _END for row in done.rows):
        raise ProtocolError("a report with rows that cannot be", "block")
    if done.nodes and not (
        len(done.nodes) == len(spans) and all(-1 <= rank < MOST_RANKS for rank in done.nodes)
    ):
        raise ProtocolError("a report with nodes that cannot be", "block")
    by_track: dict[int, list[AbsentRange]] = {}
    for track, part in done.absences:
        by_track.setdefault(track, []).append(part)
    for track, parts in by_track.items():
        if not 0 <= track <= len(spans):
            raise ProtocolError(f"a report on sink {track} of {len(spans)}", "block")
        span = spans[track - 1] if track else 1
        unpack_absences(parts, (index + count) // span - index // span)
