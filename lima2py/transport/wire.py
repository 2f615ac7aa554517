"""The messages between nodes, as bytes and back; no sockets here.

Every message is one header, `LIMA`, a version byte and msgpack; a block whose pixels do not lie in
shared memory has them as a second part; of encoded frames that is only the bytes that are used, one
frame after the other. Nothing that arrives is trusted: a header that is not of
this shape and version is a `ProtocolError`, and there is no pickle anywhere.

    acquisition → processing    Start  Block*  Last  Block*  End    (PUSH → PULL, one socket each)
    processing → acquisition    Done*  Statistics*  StopRequest*  Closed    (PUSH → PULL)
    acquisition → acquisition   Account                    (to the first one, which keeps the books)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from lima2py.errors import ProtocolError
from lima2py.frame import SIZES, Absence, Array, Block, Fate, FrameSpec

MAGIC = b"LIMA"
VERSION = 3
_PREFIX = MAGIC + bytes([VERSION])

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
    """Frames `index .. index + count - 1`; they lie in slot `slot`, or follow if that is -1."""

    run: str
    source: int
    epoch: int
    index: int
    count: int
    slot: int
    absences: list[AbsentRange]
    columns: Columns


class Last(msgspec.Struct, tag="last", frozen=True):
    """Every frame has been sent; only those of a node that is lost now are sent once more."""

    run: str
    source: int


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


class Statistics(msgspec.Struct, tag="statistics", frozen=True):
    """How a processing node is doing, about once a second, to the node that keeps the books."""

    run: str
    node: int
    incarnation: str
    frames: float
    """Frames that passed, per second."""
    busy: dict[str, float]
    """By group of tasks, the share of the time it took."""


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


Message = Start | BlockMessage | Last | End | Done | Statistics | StopRequest | Closed | Account

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    """A message as bytes."""
    return _PREFIX + _encoder.encode(message)


def check_prefix(content: bytes | memoryview) -> memoryview:
    """What follows the magic and the version.

    Raises:
        ProtocolError: if they are not there, or the version is another one.
    """
    view = memoryview(content)
    if bytes(view[:4]) != MAGIC or len(view) < 6:
        raise ProtocolError("a message that is not lima2py's")
    if view[4] != VERSION:
        raise ProtocolError(
            f"a message of protocol version {view[4]}; this node speaks {VERSION}:"
            " install the same lima2py on every host"
        )
    return view[5:]


def decode(content: bytes | memoryview) -> Message:
    """The message in some bytes.

    Raises:
        ProtocolError: if they are not a message of this version.
    """
    try:
        return _decoder.decode(check_prefix(content))
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
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
        ProtocolError: if a range reaches beyond `count` frames or its cause is unknown.
    """
    absences: dict[int, Absence] = {}
    for first, length, cause, who, detail in ranges:
        if first < 0 or length < 0 or first + length > count:
            raise ProtocolError(f"absences {first}+{length} in a block of {count} frames")
        try:
            said = Absence(Fate(cause), who, detail)
        except ValueError:
            raise ProtocolError(f"unknown fate {cause}") from None
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
    unpacked: dict[str, Array] = {}
    for name, (dtype, content) in columns.items():
        try:
            values = np.frombuffer(content, dtype)
        except (TypeError, ValueError) as error:
            raise ProtocolError(f"column {name}: {error}") from None
        if values.dtype.kind not in "biuf" or len(values) != count:
            raise ProtocolError(f"column {name}: {len(values)} × {dtype} for {count} frames")
        unpacked[name] = values
    return unpacked


def content_of(block: Block) -> memoryview:
    """The bytes of a block that has data; of encoded frames only those that are used."""
    data = block.pixels
    if block.spec.kind == "encoded":
        data = np.concatenate([block.payload(offset) for offset in range(block.count)])
    return data.reshape(-1).view(np.uint8).data


def _spread(sizes: Array | None, content: Any, spec: FrameSpec) -> Array:
    """Encoded frames, each in its place again."""
    packed = np.frombuffer(content, np.uint8)
    if sizes is None or sizes.dtype.kind != "u":
        raise ProtocolError("encoded frames without their sizes")
    used = np.minimum(sizes, spec.nbytes).astype(np.int64)
    if used.sum() != len(packed):
        raise ProtocolError(f"{len(packed)} bytes of encoded frames, not {used.sum()}")
    spread = np.empty((len(used), *spec.shape), np.uint8)
    ends = np.cumsum(used)
    for room, first, end in zip(spread, ends - used, ends, strict=True):
        room[: end - first] = packed[first:end]
    return spread


def block_of(message: BlockMessage, spec: FrameSpec, content: Any) -> Block:
    """The block a message announces.

    Args:
        message: its header.
        spec: what its frames look like.
        content: their pixels: an array `(>= count, *spec.shape)`, a buffer with what `content_of`
            gave, or None when all are absent.

    Raises:
        ProtocolError: if the pixels do not fit the spec and the count.
    """
    if message.count < 1 or message.index < 0:
        raise ProtocolError(f"a block of {message.count} frames from {message.index} on")
    absences = unpack_absences(message.absences, message.count)
    columns = unpack_columns(message.columns, message.count)
    if content is None:
        if len(absences) < message.count:
            raise ProtocolError("a block without pixels whose frames are not all absent")
    elif not isinstance(content, np.ndarray) and spec.kind == "encoded":
        content = _spread(columns.get(SIZES), content, spec)
    elif not isinstance(content, np.ndarray):
        wanted = message.count * spec.nbytes
        if memoryview(content).nbytes != wanted:
            raise ProtocolError(f"{memoryview(content).nbytes} bytes of pixels, not {wanted}")
        content = np.frombuffer(content, spec.dtype).reshape(message.count, *spec.shape)
    elif message.count > len(content):
        raise ProtocolError(f"{message.count} frames in a slot of {len(content)}")
    else:
        content = content[: message.count]
    origin = (message.source, message.epoch)
    return Block(spec, message.index, message.count, content, absences, columns, origin)
