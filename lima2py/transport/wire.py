"""The messages between nodes, as bytes and back; no sockets here.

Every message is one header: `LIMA`, a version byte, the CRC-32 of the rest and msgpack; a block
whose pixels do not lie in shared memory has them as a second part; of encoded frames that is only
the bytes that are used, one frame after the other. Nothing that arrives is trusted: a header that
is not of this shape and version is a `ProtocolError`, and there is no pickle anywhere.

    acquisition → processing    Start  Block*  Last  Block*  End    (PUSH → PULL, one socket each)
    processing → acquisition    (Done | Beat | Statistics | StopRequest)*  Closed    (PUSH → PULL)
    processing → processing     all of these, between one stage of nodes and the next
    acquisition → acquisition   Account | Cut              (to the first one, which keeps the books)
    acquisition → acquisition   Given*  Last  Given*  Over  (of the first one, to those that follow)
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from lima2py.errors import ProtocolError

MAGIC = b"LIMA"
VERSION = 5
_PREFIX = MAGIC + bytes([VERSION])
_CRC = struct.Struct("<I")
_HEAD = len(_PREFIX) + _CRC.size
MOST_RANKS = 2**15
"""Ledgers and files have two bytes for the rank of a node."""

Columns = dict[str, tuple[str, bytes]]
AbsentRange = tuple[int, int, int, str, str]
"""Offset of the first frame, how many, cause, who, detail."""
Logged = tuple[Sequence[float], Sequence[float | str], str]
"""A value over time: seconds since 1970, as many values, their units."""


class Start(msgspec.Struct, tag="start", frozen=True):
    """First message of an acquisition node to each receiver."""

    run: str
    source: int


class Product(msgspec.Struct, array_like=True, frozen=True):
    """What a task made of the frames of a block, which goes on to another stage."""

    absences: list[AbsentRange]
    columns: Columns
    place: int
    """Where its data are: 0 there are none, 1 in the slot, 2 in a part that follows."""


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
    products: list[Product] = []
    """Of the frames, if a node of an earlier stage hands them on."""
    given_up: tuple[int, str, str] | None = None
    """Cause, who, detail: nobody shall work on them; who is given them puts them aside."""


class Last(msgspec.Struct, tag="last", frozen=True):
    """Every frame has been acquired; those that wait, or that a lost node had, are sent yet."""

    run: str
    source: int
    end: int
    """Follows the last frame of this acquisition node: a group may be shorter than the others."""


class End(msgspec.Struct, tag="end", frozen=True):
    """Last message of an acquisition node to each receiver; `discard` after it was aborted."""

    run: str
    source: int
    discard: bool
    why: Literal["over", "leave", "gone"] = "over"
    """The run is over; or who is told this shall leave; or who says it leaves, and others go on."""


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
    nodes: list[int] = []
    """By sink, the rank of the node whose file has the row; nothing if all are of who reports."""


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
    """Whether the acquisition nodes told it to discard the run."""
    behind: dict[int, dict[str, list[str]]] = {}
    """The files of nodes of later stages, by their ranks."""


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


class Given(msgspec.Struct, tag="given", frozen=True):
    """Which node was given which frames: those who have other pieces of these give them, too."""

    run: str
    blocks: list[tuple[int, int, int, int]]
    """First frame, how many, rank of the node, epoch."""
    settled: list[tuple[int, int]]
    """First frame, how many: nobody needs them any more."""
    gone: list[int]
    """Ranks of nodes that are lost, or have left."""


class Over(msgspec.Struct, tag="over", frozen=True):
    """Every frame has a fate; `discard` if not all were done."""

    run: str
    discard: bool


class Cut(msgspec.Struct, tag="cut", frozen=True):
    """An acquisition node that follows can give no more, or cannot reach a processing node."""

    run: str
    source: int
    node: int
    """Rank of the node; -1 if it gives nothing to anybody."""
    why: str


class Account(msgspec.Struct, tag="account", frozen=True):
    """The ledger of one acquisition node, as `Ledger.pack` made it, and its logbook."""

    run: str
    source: int
    ledger: bytes
    outcome: str
    errors: list[str]
    logs: Mapping[str, Logged]


Message = (
    Start
    | BlockMessage
    | Last
    | End
    | Done
    | Beat
    | Statistics
    | StopRequest
    | Closed
    | Account
    | Given
    | Over
    | Cut
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
