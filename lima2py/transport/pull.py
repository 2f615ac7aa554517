"""Pull: the source of a processing node. Blocks from every acquisition node of one run.

It listens on fresh sockets of its own, so frames of two runs never mix. What does not belong to
the run, or is malformed, is counted in `refused` and dropped.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import NamedTuple

import zmq

from lima2py.errors import LimaError, ProtocolError
from lima2py.frame import Array, Block, FrameSpec
from lima2py.memory import Buffer, Handle, RingShape, attach, slot_views
from lima2py.source import PATIENCE, Source
from lima2py.transport import wire
from lima2py.transport.sockets import MAX_HEADER, bind, connect, new_socket

PATIENCE_MS = int(PATIENCE * 1000)
_LULL_MS = 2
"""Milliseconds without a block after which it is quiet enough to flush: answers come in batches."""


_ANSWERS = (wire.Done, wire.Statistics, wire.StopRequest, wire.Closed, wire.Account)


class Sender(NamedTuple):
    """An acquisition node, as a processing node must know it.

    Attributes:
        rank: its number.
        address: where it takes answers.
        ring: how its ring is cut.
        handle: its ring's memory; None when the ring is private.
    """

    rank: int
    address: str
    ring: RingShape
    handle: Handle | None


class Pull(Source):
    """Blocks from the network or from shared memory.

    Args:
        context: of ZeroMQ.
        run: id of the acquisition.
        rank: of this node.
        incarnation: id of this process, so that answers of a predecessor are told from ours.
        spec: of the frames.
        senders: all acquisition nodes.
        addresses: where to listen.
        credits: the most blocks that will be in flight here.
        share_memory: whether to map the rings of acquisition nodes on this host.

    Attributes:
        exhausted: the acquisition nodes that have sent all their frames, or are lost.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        run: str,
        rank: int,
        incarnation: str,
        spec: FrameSpec,
        senders: list[Sender],
        addresses: list[str],
        credits: int,
        share_memory: bool = True,
    ):
        self.run = run
        self.rank = rank
        self.incarnation = incarnation
        self.spec = spec
        self.refused = 0
        self.discarded = False
        self._senders = {sender.rank: sender for sender in senders}
        self.exhausted: set[int] = set()
        self._ended: set[int] = set()
        self._stop = threading.Event()
        self._rings: dict[int, Buffer] = {}
        self._slots: dict[int, list[Array]] = {}
        self._answers: dict[int, zmq.Socket[bytes]] = {}
        largest = max(sender.ring.stride for sender in senders)
        self._socket = new_socket(
            context, zmq.PULL, hwm=credits + 16, largest=max(largest, MAX_HEADER)
        )
        try:
            self.addresses = [bind(self._socket, address) for address in addresses]
            for sender in senders:
                answers = new_socket(context, zmq.PUSH, hwm=0)
                self._answers[sender.rank] = answers
                connect(answers, sender.address)
                if share_memory:
                    self._attach(sender)
        except BaseException:
            self.close()
            raise

    def _attach(self, sender: Sender) -> None:
        if sender.handle is None:
            return
        try:
            ring = attach(sender.handle)
        except LimaError:
            return  # another host: its pixels come with the messages
        self._rings[sender.rank] = ring
        self._slots[sender.rank] = slot_views(ring, self.spec, sender.ring)

    @property
    def shared(self) -> list[int]:
        """The acquisition nodes whose memory this node shares."""
        return sorted(self._rings)

    def __iter__(self) -> Iterator[Block | None]:
        """Blocks until every acquisition node has said its end, or `stop`."""
        everybody = set(self._senders)
        pause = PATIENCE_MS
        while self._ended < everybody and not self._stop.is_set():
            if not self._socket.poll(pause):
                pause = PATIENCE_MS
                yield None  # nothing is waiting: a good moment to flush and answer
                continue
            pause = _LULL_MS
            try:
                while not self._stop.is_set():
                    block = self._block(self._socket.recv_multipart(zmq.NOBLOCK, copy=False))
                    if block is not None:
                        yield block
            except zmq.Again:
                continue

    def stop(self) -> None:
        """End the iteration soon. From any thread."""
        self._stop.set()

    def lose(self, rank: int) -> None:
        """Wait no longer for the end of an acquisition node that is dead. From any thread."""
        self._ended.add(rank)
        self.exhausted.add(rank)

    def acknowledge(self, blocks: list[wire.DoneBlock]) -> None:
        """Tell the acquisition nodes what became of blocks."""
        by_source: dict[int, list[wire.DoneBlock]] = {}
        for block in blocks:
            by_source.setdefault(block.source, []).append(block)
        for source, done in by_source.items():
            message = wire.Done(self.run, self.rank, self.incarnation, done)
            self._answers[source].send(wire.encode(message))

    def report(self, frames: float, busy: dict[str, float]) -> None:
        """Tell the acquisition node that keeps the books how this node is doing."""
        message = wire.Statistics(self.run, self.rank, self.incarnation, frames, busy)
        self._answers[min(self._answers)].send(wire.encode(message))

    def ask_stop(self, reason: str) -> None:
        """Ask the acquisition nodes to acquire no more."""
        message = wire.StopRequest(self.run, self.rank, self.incarnation, reason)
        for socket in self._answers.values():
            socket.send(wire.encode(message))

    def farewell(self, files: dict[str, list[str]], errors: list[str], remarks: list[str]) -> None:
        """Tell every acquisition node that this node has closed its files."""
        closed = wire.Closed(self.run, self.rank, self.incarnation, files, errors, remarks)
        for socket in self._answers.values():
            socket.send(wire.encode(closed))

    def close(self) -> None:
        """Close the sockets; answers given before are still delivered. May be called twice."""
        self._socket.close(linger=0)
        for socket in self._answers.values():
            socket.close(linger=2000)
        self._slots.clear()
        for ring in self._rings.values():
            ring.close()

    def _block(self, parts: list[zmq.Frame]) -> Block | None:
        try:
            message = wire.decode(parts[0].buffer)
            if isinstance(message, _ANSWERS):
                raise ProtocolError(f"a {type(message).__name__} message among frames")
            if message.run != self.run or message.source not in self._senders:
                raise ProtocolError(f"a message of run {message.run}, node {message.source}")
            if isinstance(message, wire.End):
                self._ended.add(message.source)
                if message.discard:
                    self.discarded = True
                    self._stop.set()
                return None
            if isinstance(message, wire.Last):
                self.exhausted.add(message.source)
                return None
            if isinstance(message, wire.Start):
                return None
            return wire.block_of(message, self.spec, self._pixels(message, parts[1:]))
        except ProtocolError:
            self.refused += 1
            return None

    def _pixels(self, message: wire.BlockMessage, rest: list[zmq.Frame]) -> object:
        if message.slot < 0:
            if len(rest) > 1:
                raise ProtocolError(f"a block of {len(rest) + 1} parts")
            return rest[0].buffer if rest else None
        slots = self._slots.get(message.source, [])
        if message.slot >= len(slots):
            raise ProtocolError(f"slot {message.slot} of a ring that is not shared")
        return slots[message.slot]
