"""Push: hand blocks to processing nodes, and keep each until it is safely done there.

One PUSH socket for each receiving node. Who gets a block is a pure function of its group, the
living nodes and the epoch, so several acquisition nodes agree without talking; a group of which
frames are in flight stays with its node as long as that lives. Credits bound what
is in flight at a node: nothing is sent beyond them. When a node is lost the epoch rises and what
it had not done is sent to the living; a *done* counts only from a block's present owner, so a
zombie changes nothing. A block that brought down two nodes is given up as `poison`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import zmq

from lima2py.errors import ProtocolError
from lima2py.frame import Absence, Block, Fate
from lima2py.transport import wire
from lima2py.transport.sockets import bind, connect, new_socket

STALL = 60.0
"""Seconds without any answer from a node that has work, after which it counts as lost."""
_DEATHS = 2


class Receiver(NamedTuple):
    """A processing node, as an acquisition node must know it.

    Attributes:
        rank: its number.
        name: what it is called.
        incarnation: id of its process.
        address: where it takes blocks.
        credits: the most blocks in flight there.
        shared: whether it maps our ring.
    """

    rank: int
    name: str
    incarnation: str
    address: str
    credits: int
    shared: bool


@dataclass(slots=True)
class _InFlight:
    block: Block
    slot: int
    owner: int
    epoch: int
    deaths: int = 0


class Settled(NamedTuple):
    """A block nobody needs any more.

    Attributes:
        slot: of the ring; -1 if it had none.
        node: the rank of the node that did it, -1 if none did.
        done: what became of its frames.
    """

    slot: int
    node: int
    done: wire.DoneBlock


class Books:
    """Where answers arrive: the PULL socket of an acquisition node, bound at prepare."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], addresses: list[str]):
        self.socket = new_socket(context, zmq.PULL, hwm=0, largest=2**31)
        try:
            self.addresses = [bind(self.socket, address) for address in addresses]
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the socket; may be called twice."""
        self.socket.close(linger=0)


class Push:
    """The outlet of an acquisition node that feeds processing nodes.

    Args:
        context: of ZeroMQ.
        books: where answers arrive.
        run: id of the acquisition.
        source: rank of this acquisition node.
        receivers: the processing nodes.
        group: consecutive frames that go to one node.
        spans: for every sink of the plan, how many frames one of its rows stands for.
        on_stop: is called with the reason when a processing node asks for the end.

    Attributes:
        on_statistics: is called with what a processing node says of how it is doing.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        books: Books,
        run: str,
        source: int,
        receivers: list[Receiver],
        group: int,
        spans: Sequence[int],
        on_stop: Callable[[str], None],
    ):
        self._books = books
        self._run = run
        self._source = source
        self._group = group
        self._spans = tuple(spans)
        self._on_stop = on_stop
        self._receivers = {receiver.rank: receiver for receiver in receivers}
        self._living = sorted(self._receivers)
        self._epoch = 0
        self._in_flight: dict[int, _InFlight] = {}
        self._load = dict.fromkeys(self._receivers, 0)
        self._held: dict[int, list[int]] = {}  # by group: its node, how many blocks it has of it
        self._heard = dict.fromkeys(self._receivers, time.monotonic())
        self._watched = time.monotonic()
        self._settled: list[Settled] = []
        self._losses: deque[Mapping[int, str]] = deque()
        self._aborted = False
        self._ended = False
        self.closed: dict[int, wire.Closed] = {}
        self.accounts: dict[int, wire.Account] = {}
        self.late = 0
        self.refused = 0
        self.errors: list[str] = []
        self.remarks: list[str] = []
        self.on_statistics: Callable[[wire.Statistics], None] = lambda _told: None
        self._sockets: dict[int, zmq.Socket[bytes]] = {}
        try:
            for receiver in receivers:
                socket = new_socket(context, zmq.PUSH, hwm=0)
                self._sockets[receiver.rank] = socket
                connect(socket, receiver.address)
                socket.send(wire.encode(wire.Start(run, source)))
        except BaseException:
            self.close()
            raise

    @property
    def in_flight(self) -> dict[int, int]:
        """How many blocks each living node has, by rank."""
        return {rank: self._load[rank] for rank in self._living}

    @property
    def still_open(self) -> list[int]:
        """The first frames of the blocks that are not settled. From any thread."""
        return list(self._in_flight)

    def process(self, block: Block, slot: int) -> None:
        """Send a block to its owner, as soon as that has credit."""
        item = _InFlight(block, slot, -1, self._epoch)
        self._in_flight[block.index] = item
        while not self._place(item, wait=True) and not self._aborted:
            self._receive(20)

    def collect(self, idle: bool) -> list[Settled]:
        """The blocks settled since; when idle, waits a moment for answers."""
        self._receive(20 if idle and self._in_flight else 0)
        settled, self._settled = self._settled, []
        return settled

    def lose(self, reasons: Mapping[int, str]) -> None:
        """Say which nodes are dead, by rank, and why. From any thread."""
        self._losses.append(reasons)

    def abort(self) -> None:
        """Discard what is in flight. From any thread."""
        self._aborted = True

    def drain(self) -> Iterable[list[Settled]]:
        """Give what settles until nothing is in flight and every node has closed its files.

        The end is said only when all is done: until then a node must be there for the frames of
        another one that is lost.
        """
        self._say(wire.Last(self._run, self._source))
        while self._in_flight and not self._aborted:
            self._receive(20)
            yield self.collect(idle=False)
        for index in list(self._in_flight):
            self._give_up(index, Absence(Fate.ABORTED, "run"))
        self._ended = True
        self._say(wire.End(self._run, self._source, self._aborted))
        while set(self._living) - set(self.closed):
            self._receive(20)
            yield self.collect(idle=False)
        yield self.collect(idle=False)

    def listen(self) -> None:
        """Wait a moment for whatever answer comes."""
        self._receive(20)

    def close(self) -> None:
        """Close the sockets; may be called twice."""
        for socket in self._sockets.values():
            socket.close(linger=0)

    # Everything below runs in the run's thread.

    def _owner(self, index: int) -> int:
        group = index // self._group
        if group in self._held:
            return self._held[group][0]
        return self._living[group % len(self._living)]

    def _hold(self, item: _InFlight, owner: int) -> None:
        """From now on a node has a block, and with it the group."""
        item.owner, item.epoch = owner, self._epoch
        self._load[owner] += 1
        self._held.setdefault(item.block.index // self._group, [owner, 0])[1] += 1

    def _let_go(self, item: _InFlight) -> None:
        """The node that has a block has it no more."""
        group = item.block.index // self._group
        self._load[item.owner] -= 1
        self._held[group][1] -= 1
        if not self._held[group][1]:
            del self._held[group]
        item.owner = -1

    def _place(self, item: _InFlight, wait: bool) -> bool:
        """Send it, or give it up; False when its owner has no credit and we may wait."""
        if item.block.index not in self._in_flight:
            return True
        if not self._living:
            why = self.errors[-1] if self.errors else "no processing node is left"
            self._give_up(item.block.index, Absence(Fate.NODE_LOST, "ledger", why))
            return True
        owner = self._owner(item.block.index)
        if wait and self._load[owner] >= self._receivers[owner].credits:
            return False
        if self._load[owner] == 0:
            self._heard[owner] = time.monotonic()
        self._hold(item, owner)
        self._send(item)
        return True

    def _send(self, item: _InFlight) -> None:
        block = item.block
        receiver = self._receivers[item.owner]
        shared = receiver.shared and item.slot >= 0
        message = wire.BlockMessage(
            self._run,
            self._source,
            item.epoch,
            block.index,
            block.count,
            item.slot if shared and block.data is not None else -1,
            wire.pack_absences(block.absences) if block.absences else [],
            wire.pack_columns(block.columns),
        )
        socket = self._sockets[item.owner]
        if shared or block.data is None:
            socket.send(wire.encode(message))
        else:
            socket.send(wire.encode(message), zmq.SNDMORE)
            socket.send(wire.content_of(block), copy=False)

    def _receive(self, patience_ms: int) -> None:
        while self._losses:
            self._drop_nodes(self._losses.popleft())
        self._watch()
        socket = self._books.socket
        if patience_ms:
            socket.poll(patience_ms)
        while socket.poll(0):
            content = socket.recv(zmq.NOBLOCK)
            try:
                self._take(wire.decode(content))
            except ProtocolError:
                self.refused += 1

    def _take(self, message: wire.Message) -> None:
        if isinstance(message, wire.Account) and message.run == self._run:
            self.accounts[message.source] = message
            return
        answers = (wire.Done, wire.Statistics, wire.StopRequest, wire.Closed)
        if not isinstance(message, answers) or message.run != self._run:
            raise ProtocolError("a message that is no answer to this run")
        receiver = self._receivers.get(message.node)
        if receiver is None or receiver.incarnation != message.incarnation:
            raise ProtocolError("an answer of a process that has no part in this run")
        if isinstance(message, wire.Statistics):  # no sign that anything is done
            self.on_statistics(message)
            return
        self._heard[message.node] = time.monotonic()
        if isinstance(message, wire.StopRequest):
            self._on_stop(message.reason)
            return
        if isinstance(message, wire.Closed):
            self.closed[message.node] = message
            self.errors += message.errors
            self.remarks += message.remarks
            self._losses.append({message.node: "it was told to leave"})
            return
        for done in message.blocks:
            item = self._in_flight.get(done.index)
            if (
                item is None
                or (item.owner, item.epoch) != (message.node, done.epoch)
                or len(done.rows) != len(self._spans)
            ):
                self.late += 1
                continue
            del self._in_flight[done.index]
            self._let_go(item)
            self._settled.append(Settled(item.slot, message.node, done))

    def _give_up(self, index: int, why: Absence) -> None:
        item = self._in_flight.pop(index)
        if item.owner in self._load:
            self._let_go(item)
        absences = {**dict.fromkeys(range(item.block.count), why), **item.block.absences}
        ranges = wire.pack_absences(absences)
        lost = [(0, part) for part in ranges]
        for track, span in enumerate(self._spans, 1):
            if span == 1:
                lost += [(track, part) for part in ranges]
            elif rows := (index + item.block.count) // span - index // span:
                lost.append((track, (0, rows, int(why.cause), why.who, why.detail)))
        nobody = [-1] * len(self._spans)
        done = wire.DoneBlock(index, item.block.count, self._source, item.epoch, nobody, lost)
        self._settled.append(Settled(item.slot, -1, done))

    def _watch(self) -> None:
        """A node that has work and has not said anything for very long is lost."""
        now = time.monotonic()
        if now < self._watched + 1.0:
            return
        self._watched = now
        for rank in self._living:
            if self._load[rank] and now - self._heard[rank] > STALL:
                self._losses.append({rank: f"it has done nothing for {STALL:g} s"})

    def _drop_nodes(self, reasons: Mapping[int, str]) -> None:
        """Nodes found dead at the same look: none of them gets what another one had."""
        gone = {rank: why for rank, why in reasons.items() if self._is_a_loss(rank)}
        if not gone:
            return
        self._living = [rank for rank in self._living if rank not in gone]
        self._epoch += 1
        orphans = [(item, item.owner) for item in self._in_flight.values() if item.owner in gone]
        texts = {}
        for rank, reason in gone.items():
            self._sockets[rank].close(linger=0)
            texts[rank] = f"node {self._receivers[rank].name} was lost: {reason}"
            many = sum(owner == rank for _, owner in orphans)
            self.errors.append(f"{texts[rank]}; {many} blocks it had were given to others"
                               if self._living else texts[rank])  # fmt: skip
        for item, _ in orphans:
            self._let_go(item)
        for item, rank in orphans:
            item.deaths += rank not in self.closed  # one that left in order did not die of it
            if item.deaths >= _DEATHS and self._living:
                self._give_up(item.block.index, Absence(Fate.POISON, "ledger", texts[rank]))
            else:
                self._place(item, wait=False)

    def _is_a_loss(self, rank: int) -> bool:
        """Whether a node that is gone is missed: not one that was told the end and had nothing."""
        if self._ended and rank in self.closed:
            return any(item.owner == rank for item in self._in_flight.values())
        return rank in self._living

    def _say(self, message: wire.Message) -> None:
        for rank in self._living:
            self._sockets[rank].send(wire.encode(message))
