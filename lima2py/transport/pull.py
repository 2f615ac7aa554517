"""Pull: the source of a processing node. Blocks from every acquisition node of one run.

It listens on fresh sockets of its own, so frames of two runs never mix. What does not belong to
the run, or is malformed, is counted in `refused` and dropped.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import zmq

from lima2py.errors import LimaError, ProtocolError
from lima2py.frame import Absence, Array, Block, Fate, FrameSpec
from lima2py.memory import Buffer, Handle, attach
from lima2py.ring import MAX_FRAMES_PER_BLOCK, RingShape, SlotViews
from lima2py.source import PATIENCE, Source
from lima2py.transport import packing, wire
from lima2py.transport.bundle import Bundle
from lima2py.transport.inbox import Inbox
from lima2py.transport.line import HEARTBEAT_MS, SILENCE_MS
from lima2py.transport.sockets import MAX_HEADER, connect, new_socket

PATIENCE_MS = int(PATIENCE * 1000)
_LULL_MS = 2
"""Milliseconds without a block after which it is quiet enough to flush: answers come in batches."""


_LEFT_TO_OTHERS = (Fate.NOT_SAVED, Fate.ABORTED)
_OF_ACQUISITION = (wire.Start, wire.BlockMessage, wire.Last, wire.End)


class Sender(NamedTuple):
    """Who gives blocks: an acquisition node, or a processing node of the stage before.

    Attributes:
        rank: its number.
        address: where it takes answers.
        ring: how its ring is cut.
        spec: of the frames it gives.
        handle: its ring's memory; None when the ring is private.
    """

    rank: int
    address: str
    ring: RingShape
    spec: FrameSpec
    handle: Handle | None


class Pull(Source):
    """Blocks from the network or from shared memory.

    Args:
        context: of ZeroMQ.
        run: id of the acquisition.
        rank: of this node.
        incarnation: id of this process, so that answers of a predecessor are told from ours.
        senders: all acquisition nodes.
        addresses: where to listen.
        credits: the most blocks that will be in flight here.
        share_memory: whether to map the rings of acquisition nodes on this host.
        bundle: what the blocks of a stage before consist of; None if acquisition nodes give them.
        patience: seconds to wait for another sender when all are lost.

    Attributes:
        idle: whether the iteration paused since nothing came.
        edges: by sender, the numbers that follow last frames, of all that it hands on.
        given_up: by sender, first frame and epoch, why a block is only to be put aside.
        ends: of acquisition nodes that acquire no more, the number that follows their last frame;
            0 if they are lost, or have aborted.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        run: str,
        rank: int,
        incarnation: str,
        senders: list[Sender],
        addresses: list[str],
        credits: int,
        share_memory: bool = True,
        bundle: Bundle | None = None,
        patience: float = 0.0,
    ):
        self.run = run
        self.rank = rank
        self.incarnation = incarnation
        self.spec = senders[0].spec
        self.idle = False
        self._bundle = bundle
        self._patience = patience
        self._context = context
        self._share_memory = share_memory
        self._senders: dict[int, Sender] = {}
        self._coming: deque[Sender] = deque()
        self._manned = time.monotonic()
        self._whys: set[str] = set()
        self.ends: dict[int, int] = {}
        self.edges: dict[int, set[int]] = {}
        self.given_up: dict[tuple[int, int, int], Absence] = {}
        self._ended: set[int] = set()
        self._aborted: dict[int, bool] = {}
        self._stop = threading.Event()
        self._rings: dict[int, Buffer] = {}
        self._slots: dict[int, SlotViews] = {}
        self._answers: dict[int, zmq.Socket[bytes]] = {}
        self._monitors: dict[int, zmq.Socket[bytes]] = {}
        largest = bundle.most if bundle else max(sender.ring.stride for sender in senders)
        slots = max(sender.ring.slots for sender in senders)
        self._inbox = Inbox(
            context,
            addresses,
            what=f"a message among the frames of run {run[:8]}",
            hwm=credits + 16,
            largest=max(largest, MAX_HEADER),
            most=slots * largest + MAX_HEADER,
        )
        self.addresses = self._inbox.addresses
        self.refused = self._inbox.refused
        try:
            for sender in senders:
                self._meet(sender)
                self._attach(sender)
        except BaseException:
            self.close()
            raise
        self._poller = zmq.Poller()
        self._poller.register(self._inbox.socket, zmq.POLLIN)

    def wake_by(self, socket: zmq.Socket[bytes]) -> None:
        """Pause the iteration as soon as another socket has something to read, too."""
        self._poller.register(socket, zmq.POLLIN)

    def take(self, sender: Sender) -> bool:
        """Take one sender more; whether its memory is shared. From any thread, of a run at work."""
        self._attach(sender)
        self._coming.append(sender)
        return sender.rank in self._rings

    def _meet(self, sender: Sender) -> None:
        answers = new_socket(self._context, zmq.PUSH, hwm=0)
        if self._bundle is not None:  # nobody else may be there to tell that it is frozen
            answers.heartbeat_ivl, answers.heartbeat_timeout = HEARTBEAT_MS, SILENCE_MS
        self._answers[sender.rank] = answers
        self._monitors[sender.rank] = answers.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        connect(answers, sender.address)
        self._senders[sender.rank] = sender

    def _attach(self, sender: Sender) -> None:
        if sender.handle is None or not self._share_memory:
            return
        try:
            ring = attach(sender.handle)
        except LimaError:
            return  # another host: its pixels come with the messages
        self._rings[sender.rank] = ring
        self._slots[sender.rank] = SlotViews(ring, sender.spec, sender.ring)

    @property
    def shared(self) -> list[int]:
        """The acquisition nodes whose memory this node shares."""
        return sorted(self._rings)

    def __iter__(self) -> Iterator[Block | None]:
        """Blocks until every acquisition node has said its end, or `stop`."""
        pause = PATIENCE_MS
        told = time.monotonic()
        while self._goes_on() and not self._stop.is_set():
            try:
                received = self._inbox.receive()
            except zmq.Again:
                ready = dict(self._poller.poll(pause))
                if self._inbox.socket in ready:
                    continue
                self.idle = not ready
                pause = PATIENCE_MS  # nothing is waiting: a good moment to flush and answer
            else:
                self.idle = True
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

    def _goes_on(self) -> bool:
        """Whether there is somebody who may send; or may come, if all were lost."""
        while self._coming:
            self._meet(self._coming.popleft())
        if len(self._ended) < len(self._senders):
            self._manned = time.monotonic()
            return True
        return not self._whys - {"gone"} and time.monotonic() < self._manned + self._patience

    def stop(self) -> None:
        """End the iteration soon. From any thread."""
        self._stop.set()

    @property
    def stopped(self) -> bool:
        """Whether nothing more is wanted. From any thread."""
        return self._stop.is_set()

    @property
    def left(self) -> bool:
        """Whether the run goes on without this node."""
        return "over" not in self._whys and ("leave" in self._whys or self.stopped)

    @property
    def discarded(self) -> bool:
        """Whether the run was aborted: by all acquisition nodes that are not lost."""
        everybody = len(self._ended) == len(self._senders)
        return everybody and any(self._aborted.values()) and all(self._aborted.values())

    def lose(self, rank: int) -> None:
        """Wait no longer for the end of an acquisition node that is dead. From any thread."""
        if rank in self._senders:
            self.ends[rank] = 0
            self.edges.setdefault(rank, set()).add(0)
            self._over(rank)

    def _over(self, rank: int) -> None:
        self._ended.add(rank)
        if self.discarded:
            self._stop.set()

    def _look(self) -> None:
        """Whether acquisition nodes live: nobody else may be there to tell."""
        for rank, monitor in self._monitors.items():
            if rank not in self._ended and monitor.poll(0):
                self.lose(rank)

    def acknowledge(self, blocks: list[wire.DoneBlock]) -> None:
        """Tell the acquisition nodes what became of blocks.

        What could not be saved once we were told to `stop` is left to other nodes: a sink that
        waited for its disk has given up, or what is with the next stage is.
        """
        by_source: dict[int, list[wire.DoneBlock]] = {}
        for block in blocks:
            if self.stopped and any(part[2] in _LEFT_TO_OTHERS for _, part in block.absences):
                continue
            by_source.setdefault(block.source, []).append(block)
        for source, done in by_source.items():
            message = wire.Done(self.run, self.rank, self.incarnation, done)
            self._answers[source].send(wire.encode(message))

    def report(self, frames: float, busy: dict[str, float], cpu: float, memory: int) -> None:
        """Tell the acquisition node that keeps the books how this node is doing."""
        message = wire.Statistics(self.run, self.rank, self.incarnation, frames, busy, cpu, memory)
        self.hand_on(message)

    def hand_on(self, message: wire.Statistics) -> None:
        """Tell what a node of a later stage reported."""
        living = self._answers.keys() - self._ended or self._answers
        self._answers[min(living)].send(wire.encode(message))

    def ask_stop(self, reason: str) -> None:
        """Ask the acquisition nodes to acquire no more."""
        message = wire.StopRequest(self.run, self.rank, self.incarnation, reason)
        for socket in self._answers.values():
            socket.send(wire.encode(message))

    def farewell(
        self,
        files: dict[str, list[str]],
        errors: list[str],
        remarks: list[str],
        behind: dict[int, dict[str, list[str]]],
    ) -> None:
        """Tell every sender that this node has closed its files; and what those of others are."""
        closed = wire.Closed(
            self.run, self.rank, self.incarnation, files, errors, remarks, self.discarded, behind
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
            if message.source not in self._senders and not self._goes_on():
                return None
            if message.source not in self._senders:
                raise ProtocolError(f"a message of acquisition node {message.source}", "sender")
            if isinstance(message, wire.BlockMessage):
                block = self._frames(message, rest)
                if message.given_up is not None:
                    which = message.source, message.index, message.epoch
                    self.given_up[which] = packing.unpack_absence(*message.given_up)
                return block
            if isinstance(message, wire.End):
                self._whys.add(message.why)
                if message.why != "gone":
                    self._aborted[message.source] = message.discard
                if message.discard:  # the others may go on
                    self.ends[message.source] = 0
                    self.edges.setdefault(message.source, set()).add(0)
                self._over(message.source)
            elif isinstance(message, wire.Last):
                self.ends.setdefault(message.source, message.end)
                self.edges.setdefault(message.source, set()).add(message.end)
        except ProtocolError as error:
            self.refused.note(error)
        return None

    def _frames(self, message: wire.BlockMessage, rest: list[zmq.Frame]) -> Block:
        if self._bundle is not None:
            slot = self._slot(message)
            return self._bundle.read(message, None if slot is None else slot[0], rest)
        pixels = self._pixels(message, rest)
        sender = self._senders[message.source]
        # Frames without data need no slot.
        room = MAX_FRAMES_PER_BLOCK if pixels is None else sender.ring.frames
        return packing.block_of(message, sender.spec, room, pixels)

    def _pixels(self, message: wire.BlockMessage, rest: list[zmq.Frame]) -> object:
        if len(rest) > (message.slot < 0):
            raise ProtocolError(f"a block of {len(rest) + 1} parts", "parts")
        slot = self._slot(message)
        if slot is None:
            return rest[0].buffer if rest else None
        if not 0 <= message.offset < len(slot):
            raise ProtocolError(f"frame {message.offset} of a slot of {len(slot)}", "block")
        return slot[message.offset :]

    def _slot(self, message: wire.BlockMessage) -> Array | None:
        """The slot that a message names, if it names one."""
        if message.slot < 0:
            return None
        slots: SlotViews | tuple[()] = self._slots.get(message.source, ())
        if message.slot >= len(slots):
            raise ProtocolError(f"slot {message.slot} of a ring that is not shared", "block")
        return slots[message.slot]
