"""Push: hand blocks to processing nodes, and keep each until it is safely done there.

One line to each node. A block waits in its slot of the ring until a node has credit for it, so
nothing is sent beyond what nodes can take, and the ring is all the memory there is. When a node is
lost, what it had not done is given to others; a *done* counts only from a block's present owner, so
a zombie changes nothing. A block that brought down two nodes is given up as `poison`, one that
holds up a node for too long as `deadline`. Where it is part of a group, the node that does the rest
is told why these frames are missing, as it is told of those that the detector skipped.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import zmq

from lima2py.errors import ProtocolError
from lima2py.frame import Absence, Block, Fate
from lima2py.policies import Policies
from lima2py.transport import wire
from lima2py.transport.board import SAVING, At
from lima2py.transport.dispatch import DEATHS, NO_GROUP, SENT, Dispatch, Item, shared_group
from lima2py.transport.in_flight import InFlight, Settled, nobody_did
from lima2py.transport.inbox import Inbox
from lima2py.transport.line import Line, Receiver
from lima2py.transport.sockets import MAX_HEADER

LOOK_EVERY = 0.02
"""Seconds between two looks at whether nodes live, while answers keep coming."""
ABORT_PATIENCE = 0.3
"""Seconds that nodes are given to close their files after an abort."""
_PATIENCE_MS = 20
_ANSWERS_AT_ONCE = 1000
"""Strangers who send without a pause do not keep the run from anything else."""
Said = TypeVar("Said", wire.Last, wire.End)


class Answers(Inbox):
    """Where answers arrive: the PULL socket of an acquisition node, bound at prepare."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        addresses: list[str],
        largest: int = MAX_HEADER,
    ):
        super().__init__(
            context,
            addresses,
            what="a message among the answers of nodes",
            hwm=0,
            largest=largest,
            longest=largest,
            most=largest + MAX_HEADER,
        )


class Push:
    """The outlet of an acquisition node that feeds processing nodes.

    Args:
        context: of ZeroMQ.
        answers: where they arrive.
        run: id of the acquisition.
        source: rank of this acquisition node.
        receivers: the processing nodes.
        group: consecutive frames that must go to one node.
        stretch: consecutive frames that should go to one node.
        spans: for every sink of the plan, how many frames one of its rows stands for.
        policies: what to do when a node is lost.
        hold: whether blocks wait until `release`.
        on_stop: is called with the reason when the acquisition should end.

    Attributes:
        closed: the last words of nodes, by rank.
        accounts: those of the other acquisition nodes, by rank.
        late: how many blocks were reported done by a node that no longer had them.
        lost: why nodes were lost, by rank.
        errors: what went wrong, here and at the nodes that have said their last words, in words.
        remarks: what those want the user to know, though nothing went wrong.
        on_statistics: is called with what a processing node says of how it is doing.
        on_given_up: is called with a block that brought down nodes, or held one up for too long,
            and why, while its pixels are still there.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        answers: Answers,
        run: str,
        source: int,
        receivers: list[Receiver],
        group: int,
        stretch: int,
        spans: Sequence[int],
        policies: Policies,
        on_stop: Callable[[str], None],
        hold: bool = False,
    ):
        self._context = context
        self._answers = answers
        self._run = run
        self._source = source
        self._group = group
        self._spans = tuple(spans)
        self._policies = policies
        self._on_stop = on_stop
        self._hold = hold
        self._lines: dict[int, Line] = {}
        self._queue = Dispatch(policies.dispatch, stretch, group)
        self._epoch = 0
        self._in_flight = InFlight(self._queue)
        self._frames_end = 0  # follows the last frame that was acquired
        self._settled: list[Settled] = []
        self._told: deque[Callable[[], None]] = deque()
        self._looked = self._manned = self._counted = time.monotonic()
        self._deadline = float("inf")
        self._aborted = False
        self._last: wire.Last | None = None
        self._end: wire.End | None = None
        self.closed: dict[int, wire.Closed] = {}
        self.accounts: dict[int, wire.Account] = {}
        self.late = 0
        self.lost: dict[int, str] = {}
        self.errors: list[str] = []
        self.remarks: list[str] = []
        self.on_statistics: Callable[[wire.Statistics], None] = lambda _told: None
        self.on_given_up: Callable[[Block, Absence], None] = lambda _block, _why: None
        self._poller = zmq.Poller()
        self._poller.register(answers.socket, zmq.POLLIN)
        try:
            for receiver in receivers:
                self._add(receiver)
        except BaseException:
            self.close()
            raise

    def process(self, block: Block, slot: int) -> None:
        """Take a block; it is sent as soon as a node has credit for it. Never waits."""
        item = Item(block, slot, shared_group(block.index, block.end, self._group))
        self._frames_end = block.end
        self._in_flight.add(item)
        self._dispatch()

    def collect(self, idle: bool) -> list[Settled]:
        """The blocks settled since; when idle, waits a moment for answers."""
        self._receive(_PATIENCE_MS if idle else 0)
        settled, self._settled = self._settled, []
        return settled

    def drain(self) -> Iterator[list[Settled]]:
        """Give what settles until nothing is in flight and every node has closed its files.

        The end is said only when all is done: until then a node must be there for the frames of
        another one that is lost.
        """
        self._last = self._say(wire.Last(self._run, self._source, self._frames_end))
        while self._in_flight and not self._aborted and time.monotonic() < self._deadline:
            yield self.collect(idle=True)
        if left := sum(item.block.count for item in self._in_flight):
            why = Absence(Fate.ABORTED, "run")
            if not self._aborted:
                said = f"the stop took too long (drain_deadline): {left} frames were left"
                self.errors.append(said)
                why = Absence(Fate.DEADLINE, "run", said)
            for item in self._in_flight:
                self._give_up(item, why)
        self._end = self._say(wire.End(self._run, self._source, self._aborted or left > 0))
        said_at = time.monotonic()
        while self._lines and not (self._aborted and time.monotonic() > said_at + ABORT_PATIENCE):
            yield self.collect(idle=True)
        yield self.collect(idle=False)

    def listen(self) -> None:
        """Wait a moment for whatever answer comes."""
        self._receive(_PATIENCE_MS)

    def close(self) -> None:
        """Close the sockets; may be called twice."""
        for line in self._lines.values():
            line.close(linger=1000)  # one that is told the end late must hear of it

    # From any thread:

    @property
    def refused(self) -> Mapping[str, int]:
        """How many messages had no part in this run, by reason."""
        return self._answers.refused.plain()

    @property
    def in_flight(self) -> dict[int, int]:
        """How many blocks each living node has, by rank."""
        return self._queue.loads

    @property
    def still_open(self) -> list[int]:
        """The first frames of the blocks that are not settled."""
        return self._in_flight.firsts

    @property
    def waiting(self) -> int:
        """How many blocks wait for a node that has credit."""
        return self._queue.waiting

    def lose(self, reasons: Mapping[int, str]) -> None:
        """Say which nodes are dead, by rank, and why."""
        self._told.append(lambda: self._drop(reasons))

    def join(self, receiver: Receiver) -> None:
        """Take one node more."""
        self._told.append(lambda: self._add(receiver))

    def leave(self, rank: int) -> None:
        """Give a node nothing new, and tell it the end once it has nothing left."""
        self._told.append(lambda: self._see_off(rank))

    def abort(self) -> None:
        """Discard what is in flight."""
        self._aborted = True

    def release(self) -> None:
        """Hold no block back any more."""
        self._hold = False

    def hurry(self, seconds: float) -> None:
        """Give up what is not done in so many seconds."""
        self._deadline = min(self._deadline, time.monotonic() + seconds)

    # Everything below runs in the run's thread. First, blocks:

    def _dispatch(self) -> None:
        while not self._hold and (item := self._queue.next()) is not None:
            line = self._lines[item.owner]
            if self._queue.load(item.owner) == 1:
                line.hear()
            item.epoch, item.given = self._epoch, time.monotonic()
            self._send(item, line)

    def _send(self, item: Item, line: Line) -> None:
        block = item.block
        shared = line.receiver.shared and item.slot >= 0
        message = wire.BlockMessage(
            self._run,
            self._source,
            item.epoch,
            block.index,
            block.count,
            item.slot if shared and block.data is not None else -1,
            wire.pack_absences(block.absences) if block.absences else [],
            wire.pack_columns(block.columns),
            block.acquired_at,
            item.offset,
        )
        bare = shared or block.data is None
        line.send(message, None if bare else wire.content_of(block))

    def _settle(self, item: Item, node: int, done: wire.DoneBlock) -> None:
        self._settled.append(Settled(self._in_flight.settle(item), node, item.sent, done))

    def _give_up(self, item: Item, why: Absence) -> None:
        """Nobody will do these frames any more."""
        self._settle(item, -1, nobody_did(item, why, self._spans, self._source))

    def _leave_out(self, item: Item, why: Absence) -> None:
        """Nobody will do these frames any more, but somebody the rest of their group, if any."""
        if item.group == NO_GROUP:
            self._give_up(item, why)
        else:
            item.block = item.block.refuse(dict.fromkeys(range(item.block.count), why))

    # Answers:

    def _receive(self, patience_ms: int) -> None:
        while self._told:
            self._told.popleft()()
        if patience_ms:
            self._poller.poll(patience_ms)
        for _ in range(_ANSWERS_AT_ONCE):
            try:
                received = self._answers.receive()
                if received is not None:
                    self._take(*received)
            except zmq.Again:
                break
            except ProtocolError as error:
                self._answers.refused.note(error)
        if time.monotonic() > self._looked + LOOK_EVERY:
            self._look()  # after the messages: a node that has left has said so
        self._dispatch()

    def _take(self, message: wire.Message, rest: Sequence[object]) -> None:
        answers = (wire.Done, wire.Beat, wire.Statistics, wire.StopRequest, wire.Closed)
        if not isinstance(message, (*answers, wire.Account)):
            raise ProtocolError(f"a {type(message).__name__} message among answers", "kind")
        if message.run != self._run:
            raise ProtocolError(f"an answer to run {message.run[:40]}", "run")
        if rest:
            raise ProtocolError(f"an answer of {len(rest) + 1} parts", "parts")
        if isinstance(message, wire.Account):
            self.accounts[message.source] = message
            return
        line = self._lines.get(message.node)
        if line is None or line.receiver.incarnation != message.incarnation:
            if isinstance(message, wire.Done):  # of a node that is lost, or has left
                self.late += len(message.blocks)
                return
            raise ProtocolError("an answer of a process that has no part in this run", "sender")
        line.hear(At(*message.at) if isinstance(message, wire.Beat) else None)
        if isinstance(message, wire.Done):
            self._take_done(message)
        elif isinstance(message, wire.Statistics):
            self.on_statistics(message)
        elif isinstance(message, wire.StopRequest):
            self._on_stop(message.reason)
        elif isinstance(message, wire.Closed):
            self._take_leave(message)

    def _take_done(self, message: wire.Done) -> None:
        self._lines[message.node].done_at = time.monotonic()
        for done in message.blocks:
            item = self._in_flight.find(done.index)
            if item is None or (item.owner, item.epoch) != (message.node, done.epoch):
                self.late += 1
                continue
            try:
                wire.check_done(done, item.block.index, item.block.count, self._spans)
            except ProtocolError as error:
                self._answers.refused.note(error)
                self._drop({message.node: f"it sent {error}"})
                return
            self._settle(item, message.node, done)
        self._see_off_idle()

    def _take_leave(self, message: wire.Closed) -> None:
        """A node has closed its files: since it was told the end, or since it was told to leave."""
        rank = message.node
        self.closed[rank] = message
        self.errors += message.errors
        self.remarks += message.remarks
        expected = self._end or self._lines[rank].leaving or message.discarded
        if self._queue.load(rank) or not expected:
            self._drop({rank: "another acquisition node aborted" if message.discarded
                              else "it was told to leave"})  # fmt: skip
        else:
            self._remove(rank)

    # Nodes come and go:

    def _say(self, message: Said) -> Said:
        for line in self._lines.values():
            line.send(message)
        return message

    def _add(self, receiver: Receiver) -> None:
        line = Line(self._context, receiver)
        line.send(wire.Start(self._run, self._source))
        if self._last is not None:
            line.send(self._last)
        if self._end is not None:
            line.send(self._end)
            line.close(linger=1000)
            return
        self._epoch += 1
        self._lines[receiver.rank] = line
        self._queue.add(receiver.rank, receiver.credits)
        self._poller.register(line.monitor, zmq.POLLIN)

    def _see_off(self, rank: int) -> None:
        if rank in self._lines:
            self._lines[rank].leaving = True
            self._queue.see_off(rank)
            self._see_off_idle()

    def _see_off_idle(self) -> None:
        """Tell those who shall leave, and have nothing left, that this was all."""
        for rank, line in self._lines.items():
            if line.leaving and not line.told_end and not self._queue.load(rank):
                line.send(wire.End(self._run, self._source, False))
                line.told_end = True

    def _remove(self, rank: int) -> None:
        line = self._lines.pop(rank)
        self._queue.remove(rank)
        self._poller.unregister(line.monitor)
        if rank not in self.closed:  # it may live, and work in vain
            line.send(wire.End(self._run, self._source, True))
        line.close(linger=1000)

    def _look(self) -> None:
        """Whether nodes live."""
        self._looked = now = time.monotonic()
        deadline = self._policies.block_deadline
        self._drop(
            {
                rank: why
                for rank, line in self._lines.items()
                if (why := line.trouble(deadline, self._queue.load(rank) > 0)) is not None
            }
        )
        if now > self._counted + deadline / 10:
            self._counted = now
            self._drop(self._forgetful(now - deadline))
        manned = any(not line.leaving for line in self._lines.values())
        if manned or not self._queue.waiting or self._end is not None:
            self._manned = now
        elif now > self._manned + self._policies.node_patience and self._in_flight:
            self._nobody_came()

    def _forgetful(self, since: float) -> dict[int, str]:
        """Nodes that do nothing about blocks they were given: these never came, or were refused.

        Blocks that wait for the rest of their group do not count.
        """
        return {
            item.owner: f"it does nothing about frames {item.block.index} and following"
            for item in self._in_flight
            if item.owner in self._lines
            and not self._queue.waits(item)
            and item.given < since
            and self._lines[item.owner].does_nothing(since)
        }

    def _nobody_came(self) -> None:
        said = f"no processing node was left for {self._policies.node_patience:g} s"
        said += f" ({'; '.join(self.lost.values()) or 'all were told to leave'})"
        for item in self._in_flight:
            self._give_up(item, Absence(Fate.NODE_LOST, "ledger", said))
        self._on_stop(said)

    def _drop(self, reasons: Mapping[int, str]) -> None:
        """Nodes found dead at the same look: none of them gets what another one had."""
        gone = {rank: why for rank, why in reasons.items() if rank in self._lines}
        if not gone:
            return
        self._epoch += 1
        orphans = self._in_flight.of(gone)
        back: list[Item] = []
        for rank, why in gone.items():
            line = self._lines[rank]
            mine = [item for item in orphans if item.owner == rank]
            said = f"node {line.receiver.name} was lost: {why}"
            if rank not in self.closed:
                self.lost[rank] = said
            self.errors.append(said + self._what_becomes_of(mine))
            at = line.at
            for item in mine:
                self._queue.take_back(item)
                if rank not in self.closed and _is_at(at, item, self._source):
                    back += self._suspect(item, said, line.hangs(self._policies.block_deadline))
                else:
                    back.append(item)
            self._remove(rank)
        if self._policies.node_loss == "mark":
            for item in back:
                if not item.over:
                    self._leave_out(item, Absence(Fate.NODE_LOST, "ledger", self.errors[-1]))
        self._queue.put_back(item for item in back if not item.over)
        if self._policies.node_loss == "stop":
            self._on_stop(self.errors[-1])
        self._dispatch()

    def _suspect(self, item: Item, said: str, hung: bool) -> list[Item]:
        """A node was lost while it may have been at this block; what is to be tried again."""
        item.deaths += 1
        if item.block.count > 1 and self._policies.node_loss != "mark":
            return self._in_flight.split(item, self._group)
        if hung or item.deaths == DEATHS:
            cause = Fate.DEADLINE if hung else Fate.POISON
            absence = Absence(cause, "ledger", said)
            self.on_given_up(item.block, absence)
            self._leave_out(item, absence)
        return [item]

    def _what_becomes_of(self, blocks: list[Item]) -> str:
        if not blocks:
            return ""
        lost = self._policies.node_loss == "mark"
        return f"; {len(blocks)} blocks it had {'are lost' if lost else 'were given to others'}"


def _is_at(at: At | None, item: Item, source: int) -> bool:
    """Whether a node may have been at a block, that has data, when it was lost."""
    if item.block.data is None:
        return False
    if at is None or at.first == SAVING or item.sent > SENT:
        return True
    return (at.source, at.first) == (source, item.block.index)
