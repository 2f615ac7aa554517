"""Pull: the source of a processing node. Blocks from every acquisition node of one run.

It listens on fresh sockets of its own, so frames of two runs never mix. What does not belong to
the run, or is malformed, is counted in `refused` and dropped.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

import zmq

from lima2py.errors import LimaError, ProtocolError
from lima2py.frame import Block, FrameSpec
from lima2py.memory import Buffer, Handle, attach
from lima2py.ring import MAX_FRAMES_PER_BLOCK, RingShape, SlotViews
from lima2py.source import PATIENCE, Source
from lima2py.transport import wire
from lima2py.transport.inbox import Inbox
from lima2py.transport.sockets import MAX_HEADER, connect, new_socket

PATIENCE_MS = int(PATIENCE * 1000)
_LULL_MS = 2
"""Milliseconds without a block after which it is quiet enough to flush: answers come in batches."""


_OF_ACQUISITION = (wire.Start, wire.BlockMessage, wire.Last, wire.End)


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
        ends: of acquisition nodes that acquire no more, the number that follows their last frame;
            0 if they are lost.
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
        self.discarded = False
        self._senders = {sender.rank: sender for sender in senders}
        self.ends: dict[int, int] = {}
        self._ended: set[int] = set()
        self._stop = threading.Event()
        self._rings: dict[int, Buffer] = {}
        self._slots: dict[int, SlotViews] = {}
        self._answers: dict[int, zmq.Socket[bytes]] = {}
        self._monitors: dict[int, zmq.Socket[bytes]] = {}
        largest = max(sender.ring.stride for sender in senders)
        self._inbox = Inbox(
            context,
            addresses,
            what=f"a message among the frames of run {run[:8]}",
            hwm=credits + 16,
            largest=max(largest, MAX_HEADER),
            most=max(sender.ring.slots * sender.ring.stride for sender in senders) + MAX_HEADER,
        )
        self.addresses = self._inbox.addresses
        self.refused = self._inbox.refused
        try:
            for sender in senders:
                answers = new_socket(context, zmq.PUSH, hwm=0)
                self._answers[sender.rank] = answers
                self._monitors[sender.rank] = answers.get_monitor_socket(zmq.EVENT_DISCONNECTED)
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
        self._slots[sender.rank] = SlotViews(ring, self.spec, sender.ring)

    @property
    def shared(self) -> list[int]:
        """The acquisition nodes whose memory this node shares."""
        return sorted(self._rings)

    def __iter__(self) -> Iterator[Block | None]:
        """Blocks until every acquisition node has said its end, or `stop`."""
        everybody = set(self._senders)
        pause = PATIENCE_MS
        told = time.monotonic()
        while self._ended < everybody and not self._stop.is_set():
            try:
                received = self._inbox.receive()
            except zmq.Again:
                if self._inbox.socket.poll(pause):
                    continue
                pause = PATIENCE_MS  # nothing is waiting: a good moment to flush and answer
            else:
                block = received and self._block(*received)
                if block is not None:
                    pause = _LULL_MS
                    yield block
                    continue
                if time.monotonic() < told + PATIENCE:
                    continue  # strangers who never pause do not hold up what came before
            told = time.monotonic()
            self._look()
            yield None

    def stop(self) -> None:
        """End the iteration soon. From any thread."""
        self._stop.set()

    @property
    def stopped(self) -> bool:
        """Whether nothing more is wanted. From any thread."""
        return self._stop.is_set()

    def lose(self, rank: int) -> None:
        """Wait no longer for the end of an acquisition node that is dead. From any thread."""
        self._ended.add(rank)
        self.ends[rank] = 0

    def _look(self) -> None:
        """Whether acquisition nodes live: nobody else may be there to tell."""
        for rank, monitor in self._monitors.items():
            if rank not in self._ended and monitor.poll(0):
                self.lose(rank)

    def acknowledge(self, blocks: list[wire.DoneBlock]) -> None:
        """Tell the acquisition nodes what became of blocks."""
        by_source: dict[int, list[wire.DoneBlock]] = {}
        for block in blocks:
            by_source.setdefault(block.source, []).append(block)
        for source, done in by_source.items():
            message = wire.Done(self.run, self.rank, self.incarnation, done)
            self._answers[source].send(wire.encode(message))

    def report(self, frames: float, busy: dict[str, float], cpu: float, memory: int) -> None:
        """Tell the acquisition node that keeps the books how this node is doing."""
        message = wire.Statistics(self.run, self.rank, self.incarnation, frames, busy, cpu, memory)
        self._answers[min(self._answers)].send(wire.encode(message))

    def ask_stop(self, reason: str) -> None:
        """Ask the acquisition nodes to acquire no more."""
        message = wire.StopRequest(self.run, self.rank, self.incarnation, reason)
        for socket in self._answers.values():
            socket.send(wire.encode(message))

    def farewell(self, files: dict[str, list[str]], errors: list[str], remarks: list[str]) -> None:
        """Tell every acquisition node that this node has closed its files."""
        closed = wire.Closed(
            self.run, self.rank, self.incarnation, files, errors, remarks, self.discarded
        )
        for socket in self._answers.values():
            socket.send(wire.encode(closed))

    def close(self) -> None:
        """Close the sockets; answers given before are still delivered. May be called twice."""
        self._inbox.close()
        for rank, monitor in self._monitors.items():
            self._answers[rank].disable_monitor()
            monitor.close(linger=0)
        self._monitors.clear()
        for socket in self._answers.values():
            socket.close(linger=2000)
        for slots in self._slots.values():
            slots.close()
        self._slots.clear()
        for ring in self._rings.values():
            ring.close()

    def _block(self, message: wire.Message, rest: list[zmq.Frame]) -> Block | None:
        try:
            if not isinstance(message, _OF_ACQUISITION):
                raise ProtocolError(f"a {type(message).__name__} message among frames", "kind")
            if message.run != self.run:
                raise ProtocolError(f"a message of run {message.run[:40]}", "run")
            if message.source not in self._senders:
                raise ProtocolError(f"a message of acquisition node {message.source}", "sender")
            if isinstance(message, wire.BlockMessage):
                pixels = self._pixels(message, rest)
                room = self._senders[message.source].ring.frames
                if pixels is None:
                    room = MAX_FRAMES_PER_BLOCK  # frames without data need no slot
                return wire.block_of(message, self.spec, room, pixels)
            if isinstance(message, wire.End):
                self._ended.add(message.source)
                if message.discard:
                    self.discarded = True
                    self._stop.set()
            elif isinstance(message, wire.Last):
                self.ends.setdefault(message.source, message.end)
        except ProtocolError as error:
            self.refused.note(error)
        return None

    def _pixels(self, message: wire.BlockMessage, rest: list[zmq.Frame]) -> object:
        if len(rest) > (message.slot < 0):
            raise ProtocolError(f"a block of {len(rest) + 1} parts", "parts")
        if message.slot < 0:
            return rest[0].buffer if rest else None
        slots: SlotViews | tuple[()] = self._slots.get(message.source, ())
        if message.slot >= len(slots):
            raise ProtocolError(f"slot {message.slot} of a ring that is not shared", "block")
        slot = slots[message.slot]
        if not 0 <= message.offset < len(slot):
            raise ProtocolError(f"frame {message.offset} of a slot of {len(slot)}", "block")
        return slot[message.offset :]
