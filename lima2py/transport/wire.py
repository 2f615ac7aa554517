"""The messages between nodes, as bytes and back; no sockets here.

Every message is one header: `LIMA`, a version byte, the CRC-32 of the rest and msgpack; a block
whose pixels do not lie in shared memory has them as a second part; of encoded frames that is only
the bytes that are used, one frame after the other. Nothing that arrives is trusted: a header that
is not of this shape and version is a `ProtocolError`, and there is no pickle anywhere.

    acquisition → processing    Start  Block*  Last  Block*  End    (PUSH → PULL, one socket each)
    processing → acquisition    (Done | Beat | Statistics | StopRequest)*  Closed    (PUSH → PULL)
    acquisition → acquisition   Account                    (to the first one, which keeps the books)
"""

from __future__ import annotations

import math
import re
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from lima2py.errors import ProtocolError
from lima2py.frame import SIZES, Absence, Array, Block, Fate, FrameSpec

MAGIC = b"LIMA"
VERSION = 4
_PREFIX = MAGIC + bytes([VERSION])
_CRC = struct.Struct("<I")
_HEAD = len(_PREFIX) + _CRC.size
_DTYPE = re.compile(r"[<>|][biuf][1248]")
_MOST_COLUMNS = 256
_END = 2**62
"""No frame has a number as high as this: there is room to add."""

Columns = dict[str, tuple[str, bytes]]
AbsentRange = tuple[int, int, int, str, str]
"""Offset of the first frame, how many, cause, who, detail."""
Logged = tuple[Sequence[float], Sequence[float | str], str]
"""A value over time: seconds since 1970, as many values, their units."""


class Start(msgspec.Struct, tag="start", frozen=True):
    """First message of an acquisition node to each receiver."""

    run: str
    source: int


class BlockMessage(msgspec.Struct, tag="block", frozen=True):
    """Frames `index .. index + count - 1`; they lie in slot `slot`, or follow if that is -1.

    In the slot they begin at its frame `offset`.
    """

    run: str
    source: int
    epoch: int
    index: int
    count: int
    slot: int
    absences: list[AbsentRange]
    columns: Columns
    acquired_at: float = math.nan
    """When it was complete in the ring, seconds since 1970 by the clock of the sender."""
    offset: int = 0


class Last(msgspec.Struct, tag="last", frozen=True):
    """Every frame has been acquired; those that wait, or that a lost node had, are sent yet."""

    run: str
    source: int
    end: int
    """Follows the last frame of this acquisition node: a group may be shorter than the others."""


class End(msgspec.Struct, tag="end", frozen=True):
    """Last message of an acquisition node to each receiver; `discard` after an abort."""

    run: str
    source: int
    discard: bool


class DoneBlock(msgspec.Struct, array_like=True, frozen=True):
    """What became of the frames of one block, once that is safe.

    Tracks are counted from 0: the frame as a whole, then each sink of the plan. A frame not named
    in `absences` of a track is saved there.
    """

    index: int
    count: int
    source: int
    epoch: int
    rows: list[int]
    """By sink, the row of the first frame in the node's file; -1 if it has none."""
    absences: list[tuple[int, AbsentRange]]
    """Track, and the frames without data there."""


class Done(msgspec.Struct, tag="done", frozen=True):
    """Blocks of one acquisition node that a processing node holds safely."""

    run: str
    node: int
    incarnation: str
    blocks: list[DoneBlock]


class Closed(msgspec.Struct, tag="closed", frozen=True):
    """Last message of a processing node: its files by sink, what went wrong, remarks."""

    run: str
    node: int
    incarnation: str
    files: dict[str, list[str]]
    errors: list[str]
    remarks: list[str]
    discarded: bool = False
    """Whether an acquisition node told it to discard the run."""


class Statistics(msgspec.Struct, tag="statistics", frozen=True):
    """How a processing node is doing, about once a second, to the node that keeps the books."""

    run: str
    node: int
    incarnation: str
    frames: float
    """Frames that passed, per second."""
    busy: dict[str, float]
    """By group of tasks, the share of the time it took."""
    cpu: float
    """Cores that its process keeps busy."""
    memory: int
    """Private memory of its process, in bytes."""


class Beat(msgspec.Struct, tag="beat", frozen=True):
    """A processing node's Python lives: several times a second, from a thread of its own."""

    run: str
    node: int
    incarnation: str
    at: tuple[int, int, float]
    """What it is at: acquisition node, first frame of the block, for how many seconds; see
    `board.At`."""


class StopRequest(msgspec.Struct, tag="stop", frozen=True):
    """A task of a processing node asks for the end of the acquisition."""

    run: str
    node: int
    incarnation: str
    reason: str


class Account(msgspec.Struct, tag="account", frozen=True):
    """The ledger of one acquisition node, as `Ledger.pack` made it, and its logbook."""

    run: str
    source: int
    ledger: bytes
    outcome: str
    errors: list[str]
    logs: Mapping[str, Logged]


Message = (
    Start | BlockMessage | Last | End | Done | Beat | Statistics | StopRequest | Closed | Account
)

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def seal(content: bytes) -> bytes:
    """What is sent for some msgpack: with the magic, the version and the checksum in front."""
    return b"".join((_PREFIX, _CRC.pack(zlib.crc32(content)), content))


def unseal(sent: bytes | memoryview) -> memoryview:
    """The msgpack in what was sent.

    Raises:
        ProtocolError: if it is none of ours, of another version, or was damaged.
    """
    content = memoryview(sent)[_HEAD:]
    head = bytes(sent[:_HEAD])
    if head == _PREFIX + _CRC.pack(zlib.crc32(content)):
        return content
    if not head.startswith(MAGIC) or len(head) == len(MAGIC):
        raise ProtocolError("a message that is not lima2py's", "foreign")
    if not head.startswith(_PREFIX):
        raise ProtocolError(
            f"a message of protocol version {head[len(MAGIC)]}, where version {VERSION} is spoken:"
            " install the same lima2py on every host",
            "version",
        )
    raise ProtocolError("a message that was damaged on its way", "damaged")


def encode(message: Message) -> bytes:
    """A message as bytes."""
    return seal(_encoder.encode(message))


def decode(sent: bytes | memoryview) -> Message:
    """The message in some bytes.

    Raises:
        ProtocolError: if they are not a message of this version.
    """
    content = unseal(sent)
    try:
        return _decoder.decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"a malformed message: {error}") from None


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
        try:
            said = Absence(Fate(cause), who, detail)
        except ValueError:
            raise ProtocolError(f"unknown fate {cause}", "block") from None
        absences.update(dict.fromkeys(range(first, first + length), said))
    return absences


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
    by_track: dict[int, list[AbsentRange]] = {}
    for track, part in done.absences:
        by_track.setdefault(track, []).append(part)
    for track, parts in by_track.items():
        if not 0 <= track <= len(spans):
            raise ProtocolError(f"a report on sink {track} of {len(spans)}", "block")
        span = spans[track - 1] if track else 1
        unpack_absences(parts, (index + count) // span - index // span)
