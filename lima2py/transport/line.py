"""The line to another node, mostly a processing one: its socket, and signs of its loss."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import zmq
from zmq.utils.monitor import recv_monitor_message

from lima2py.errors import LimaError
from lima2py.frame import Absence, Block
from lima2py.memory import Handle
from lima2py.transport import packing, wire
from lima2py.transport.board import NOTHING, ONWARD, At, BoardView
from lima2py.transport.bundle import pack
from lima2py.transport.sockets import connect, new_socket

MEETING = 10.0
"""Seconds in which the connection to a node must come about."""
LAST_WORDS = 0.3
"""Seconds in which a node whose connection is gone may say why: perhaps it has left in order."""
HEARTBEAT_MS = 100
SILENCE_MS = 600
"""Of the peer's ZeroMQ, which answers heartbeats whatever its Python does: it is frozen, or cut."""


class Receiver(NamedTuple):
    """A processing node, as an acquisition node must know it.

    Attributes:
        rank: its number in the run; a node that comes again has another one.
        name: what it is called.
        incarnation: id of its process.
        address: where it takes blocks.
        credits: the most blocks in flight there.
        shared: whether it maps our ring.
        board: where it writes what it is at.
    """

    rank: int
    name: str
    incarnation: str
    address: str
    credits: int
    shared: bool
    board: Handle | None = None


class Line:
    """What an acquisition node has of one processing node. Used by one thread.

    Attributes:
        receiver: the node.
        leaving: whether it shall leave in order.
        told_end: whether it was told to.
        done_at: when it last reported something done, `time.monotonic()`.
        monitor: a socket that has something to read when the connection came or went.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], receiver: Receiver):
        self.receiver = receiver
        self.leaving = self.told_end = False
        self._made = self._heard = self.done_at = time.monotonic()
        self._met = False
        self._broken_at: float | None = None
        self._told: tuple[float, At] | None = None
        self._board: BoardView | None = None
        self._socket = new_socket(context, zmq.PUSH, hwm=0)
        self._socket.heartbeat_ivl = HEARTBEAT_MS
        self._socket.heartbeat_timeout = SILENCE_MS
        self.monitor = self._socket.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
        )
        try:
            connect(self._socket, receiver.address)
        except BaseException:
            self.close()
            raise
        if receiver.board is not None:
            with suppress(LimaError):  # another host: what it is at comes with its messages
                self._board = BoardView(receiver.board)

    def send(self, message: wire.Message, parts: Sequence[memoryview] = ()) -> None:
        """Send a message, and the pixels that follow it; never waits."""
        self._socket.send(wire.encode(message), zmq.SNDMORE if parts else 0)
        if parts:
            self._socket.send_multipart(parts, copy=False)

    def give(
        self,
        run: str,
        source: int,
        epoch: int,
        block: Block,
        slot: int,
        offset: int,
        given_up: Absence | None = None,
    ) -> None:
        """Send a block: its pixels too, if they do not lie in memory that the node shares.

        Args:
            run: id of the acquisition.
            source: rank of this acquisition node.
            epoch: of the run.
            block: the frames.
            slot: of the ring, in which they lie; -1 if none.
            offset: of the first of them in the slot.
            given_up: why it is only to be put aside, if it is.
        """
        shared = self.receiver.shared and slot >= 0
        products, parts = pack(block, shared) if block.companions else ([], [])
        message = wire.BlockMessage(
            run,
            source,
            epoch,
            block.index,
            block.count,
            slot if shared and block.data is not None else -1,
            packing.pack_absences(block.absences) if block.absences else [],
            packing.pack_columns(block.columns),
            block.acquired_at,
            offset,
            products,
            None if given_up is None else (int(given_up.cause), given_up.who, given_up.detail),
        )
        if not (shared or block.data is None or products):
            parts = [packing.content_of(block)]
        self.send(message, parts)

    def hear(self, at: At | None = None) -> None:
        """The node has said something, what it is at perhaps; or is given work from now on."""
        self._heard = time.monotonic()
        if at is not None:
            self._told = (self._heard, at)

    @property
    def at(self) -> At | None:
        """What the node is at, as far as is known."""
        if self._board is not None:
            return self._board.at()
        if self._told is not None:
            when, at = self._told
            return at._replace(seconds=at.seconds + time.monotonic() - when)
        return None

    def trouble(self, deadline: float, busy: bool) -> str | None:
        """Why the node counts as lost; None while all is well.

        Args:
            deadline: seconds that it may be at one block, or silent while it has work.
            busy: whether it has work.
        """
        self._read_monitor()
        now = time.monotonic()
        if self._broken_at is not None:
            dead, how = self._how_it_is()
            return how if dead or now > self._broken_at + LAST_WORDS else None
        if not self._met and now > self._made + MEETING:
            return f"it could not be reached at {self.receiver.address} for {MEETING:g} s"
        at = self.at
        if self.hangs(deadline) and at is not None:
            what = f"frames {at.first} and following" if at.first >= 0 else "its files"
            return f"it has been at {what} for {at.seconds:.1f} s (block_deadline {deadline:g} s)"
        if busy and now > self._heard + deadline:
            return f"it has said nothing for {now - self._heard:.1f} s"
        return None

    def hangs(self, deadline: float) -> bool:
        """Whether the node has been at one block, or at its files, for too long."""
        at = self.at
        return at is not None and at.first not in (NOTHING, ONWARD) and at.seconds > deadline

    def does_nothing(self, since: float) -> bool:
        """Whether the node is idle, and has reported nothing done since then."""
        at = self.at
        return at is not None and at.first == NOTHING and self.done_at < since

    def close(self, linger: int = 0) -> None:
        """Close the sockets; may be called twice.

        Args:
            linger: milliseconds in which what was sent last may still leave.
        """
        if not self._socket.closed:
            self._socket.disable_monitor()
            self.monitor.close(linger=0)
            self._socket.close(linger=linger)
        if self._board is not None:
            self._board.close()

    def _read_monitor(self) -> None:
        while self.monitor.poll(0):
            event = recv_monitor_message(self.monitor, zmq.NOBLOCK)["event"]
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._met = True
            elif self._met and self._broken_at is None:
                self._broken_at = time.monotonic()

    def _how_it_is(self) -> tuple[bool, str]:
        """Whether it is dead or frozen for sure, and why the connection broke."""
        board = self.receiver.board
        if board is None or self._board is None:
            return False, "its connection broke: it is dead, frozen, or cannot be reached any more"
        try:
            status = Path(f"/proc/{board.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            status = "X"
        how = {"Z": "has ended", "X": "has ended", "T": "was stopped by a signal"}.get(status)
        return how is not None, (
            f"its connection broke: its process ({board.pid}) {how or 'still runs'}"
        )
