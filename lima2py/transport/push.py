"""Push: hand blocks to processing nodes, and keep each until it is safely done there.

One line to each node. A block waits in its slot of the ring until a node has credit for it, so
nothing is sent beyond what nodes can take, and the ring is all the memory there is. When a node is
lost, what it had not done is given to others; a *done* counts only from a block's present owner, so
a zombie changes nothing. A block that brought down two nodes is given up as `poison`, one that
holds up a node for too long as `deadline`. Where it is part of a group, the node that does the rest
is told why these frames are missing, as it is told of those that the detector skipped.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import zmq

from lima2py.errors import ProtocolError
from lima2py.frame import Absence, Block, Fate
from lima2py.policies import Policies
from lima2py.transport import packing, wire
from lima2py.transport.answers import Answers
from lima2py.transport.board import At
from lima2py.transport.dispatch import NO_GROUP, Dispatch, Item, shared_group
from lima2py.transport.in_flight import InFlight, Settled, nobody_did
from lima2py.transport.lead import Followers
from lima2py.transport.line import Receiver
from lima2py.transport.lines import Lines
from lima2py.transport.losses import judge
from lima2py.transport.outlet import Outlet

LOOK_EVERY = 0.02
"""Seconds between two looks at whether nodes live, while answers keep coming."""
ABORT_PATIENCE = 0.3
"""Seconds that nodes are given to close their files after an abort."""
Answer = wire.Done | wire.Beat | wire.Statistics | wire.StopRequest | wire.Closed


class Push(Outlet):
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
        on_stop: is called with the reason when the acquisition should end.
        hold: whether blocks wait until `release`.
        followers: the acquisition nodes that have other pieces of the frames.

    Attributes:
        late: how many blocks were reported done by a node that no longer had them.
        on_statistics: is called with what a processing node says of how it is doing.
        on_given_up: is called with a block that brought down nodes, or held one up for too long,
            and why, while its pixels are still there. Where there are followers, the next node is
            told to put it aside first: only there is all that belongs to it.
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
        followers: Sequence[Receiver] = (),
    ):
        super().__init__()
        self._answers = answers
        self._run = run
        self._source = source
        self._group = group
        self._spans = tuple(spans)
        self._policies = policies
        self._on_stop = on_stop
        self._hold = hold
        self._lines = Lines(context, run, source, answers.poller)
        self._queue = Dispatch(policies.dispatch, stretch, group)
        self._epoch = 0
        self._in_flight = InFlight(self._queue)
        self._frames_end = 0  # follows the last frame that was acquired
        self._settled: list[Settled] = []
        self._told: deque[Callable[[], None]] = deque()
        self._looked = self._manned = self._counted = time.monotonic()
        self._deadline = float("inf")
        self._aborted = False
        self.late = 0
        self.on_statistics: Callable[[wire.Statistics], None] = lambda _told: None
        self.on_given_up: Callable[[Block, Absence], None] = lambda _block, _why: None
        self._behind: set[int] = set()
        self._followers = Followers(context, run, followers)
        try:
            for receiver in receivers:
                self._add(receiver)
        except BaseException:
            self.close()
            raise

    def process(self, block: Block, slot: int) -> None:
        """See `Outlet`: it is sent as soon as a node has credit for it."""
        item = Item(block, slot, shared_group(block.index, block.end, self._group))
        self._frames_end = block.end
        self._in_flight.add(item)
        self._dispatch()

    def collect(self, idle: bool) -> list[Settled]:
        """See `Outlet`."""
        self._receive(wait=idle)
        settled, self._settled = self._settled, []
        return settled

    def say_last(self, end: int) -> None:
        """Say that no frame from this one on comes, of those that are acquired together."""
        last = wire.Last(self._run, self._source, end)
        self._lines.say(last)
        self._followers.tell(last)

    def drain(self, gone: bool = False) -> Iterator[list[Settled]]:
        """Give what settles until nothing is in flight and every node has closed its files.

        The end is said only when all is done: until then a node must be there for the frames of
        another one that is lost.

        Args:
            gone: whether only we leave, and the others go on; then nobody closes anything.
        """
        self.say_last(self._frames_end)
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
        discard = self._aborted or left > 0
        why_over: Literal["gone", "over"] = "gone" if gone else "over"
        self._lines.say(wire.End(self._run, self._source, discard, why_over))
        self._followers.over(discard)
        patience = 0.0 if gone else ABORT_PATIENCE if self._aborted else math.inf
        until = time.monotonic() + patience
        while self._lines and time.monotonic() < until:
            yield self.collect(idle=True)
        yield self.collect(idle=False)

    def listen(self) -> None:
        """See `Outlet`."""
        self._receive(wait=True)

    def close(self) -> None:
        """See `Outlet`."""
        self._lines.close()
        self._followers.close()

    # From any thread:

    def status(self) -> dict[str, Any]:
        """See `Outlet`."""
        return {
            "in_flight": self.in_flight,
            "waiting": self._queue.waiting,
            "lost": self.lost.copy(),
            "refused": self._answers.refused.plain(),
        }

    @property
    def in_flight(self) -> dict[int, int]:
        """How many blocks each living node has, by rank."""
        return self._queue.loads

    @property
    def still_open(self) -> list[int]:
        """See `Outlet`."""
        return self._in_flight.firsts

    def lose(self, reasons: Mapping[int, str]) -> None:
        """See `Outlet`."""
        self._told.append(lambda: self._drop(reasons))

    def join(self, receiver: Receiver) -> None:
        """See `Outlet`."""
        self._told.append(lambda: self._add(receiver))

    def know(self, rank: int) -> None:
        """See `Outlet`."""
        self._behind.add(rank)

    def leave(self, rank: int) -> None:
        """See `Outlet`."""
        self._told.append(lambda: self._see_off(rank))

    def abort(self) -> None:
        """See `Outlet`."""
        self._aborted = True

    def release(self) -> None:
        """See `Outlet`."""
        self._hold = False

    def hurry(self, seconds: float) -> None:
        """See `Outlet`."""
        self._deadline = min(self._deadline, time.monotonic() + seconds)

    # Everything below runs in the run's thread. First, blocks:

    def _dispatch(self) -> None:
        while not self._hold and (item := self._queue.next()) is not None:
            line = self._lines[item.owner]
            if self._queue.load(item.owner) == 1:
                line.hear()
            item.epoch, item.given = self._epoch, time.monotonic()
            line.give(
                self._run, self._source, item.epoch, item.block, item.slot, item.offset,
                item.given_up,
            )  # fmt: skip
            self._followers.given(item.block.index, item.block.count, item.owner, item.epoch)
        self._followers.flush()

    def _settle(self, item: Item, node: int, done: wire.DoneBlock) -> None:
        self._followers.settled(done.index, done.count)
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

    def _receive(self, wait: bool) -> None:
        while self._told:
            self._told.popleft()()
        self._answers.hand(self._run, self._take, wait)
        if time.monotonic() > self._looked + LOOK_EVERY:
            self._look()  # after the messages: a node that has left has said so
        self._dispatch()

    def _take(self, message: wire.Message) -> None:
        if isinstance(message, wire.Account):
            self.accounts[message.source] = message
        elif isinstance(message, wire.Cut):
            self._take_cut(message)
        elif isinstance(message, wire.Statistics) and message.node in self._behind:
            self.on_statistics(message)
        elif isinstance(message, Answer):
            self._take_answer(message)
        else:
            raise ProtocolError(f"a {type(message).__name__} message among answers", "kind")

    def _take_answer(self, message: Answer) -> None:
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
            if 0 < done.count < item.block.count:
                item = self._in_flight.cut(item, done.count)
            try:
                packing.check_done(done, item.block.index, item.block.count, self._spans)
            except ProtocolError as error:
                self._answers.refused.note(error)
                self._drop({message.node: f"it sent {error}"})
                return
            self._settle(item, message.node, done)
        self._see_off_idle()

    def _take_cut(self, message: wire.Cut) -> None:
        """A follower gives no more, or cannot reach a node: then nobody gives that one anything."""
        name = self._followers.name(message.source)
        if message.node < 0:
            self._miss(f"acquisition node {name} gives no more frames: {message.why}")
        else:
            self._drop({message.node: f"acquisition node {name} lost it: {message.why}"})

    def _miss(self, said: str) -> None:
        """Nothing comes from a follower any more."""
        self.broken = True
        if self._policies.detector_loss == "stop":
            self._on_stop(said)
        else:
            self.errors.append(said)

    def _take_leave(self, message: wire.Closed) -> None:
        """A node has closed its files: since it was told the end, or since it was told to leave."""
        rank = message.node
        self.closed[rank] = message
        # Those of a node of a later stage come by way of all nodes that feed it.
        self.errors += [text for text in message.errors if text not in self.errors]
        self.remarks += [text for text in message.remarks if text not in self.remarks]
        expected = self._lines.ended or self._lines[rank].leaving or message.discarded
        if self._queue.load(rank) or not expected:
            self._drop({rank: "another acquisition node aborted" if message.discarded
                              else "it was told to leave"})  # fmt: skip
        else:
            self._remove(rank)

    # Nodes come and go:

    def _add(self, receiver: Receiver) -> None:
        if self._lines.add(receiver):
            self._epoch += 1
            self._queue.add(receiver.rank, receiver.credits)

    def _see_off(self, rank: int) -> None:
        if rank in self._lines:
            self._lines[rank].leaving = True
            self._queue.see_off(rank)
            self._see_off_idle()

    def _see_off_idle(self) -> None:
        """Tell those who shall leave, and have nothing left, that this was all."""
        for rank, line in self._lines.items():
            if line.leaving and not line.told_end and not self._queue.load(rank):
                line.send(wire.End(self._run, self._source, False, "leave"))
                line.told_end = True
                self._followers.gone(rank)

    def _remove(self, rank: int) -> None:
        self._queue.remove(rank)
        self._followers.gone(rank)
        may_live = rank not in self.closed  # and work in vain
        self._lines.part(
            rank, wire.End(self._run, self._source, True, "leave") if may_live else None
        )

    def _look(self) -> None:
        """Whether nodes live."""
        self._looked = now = time.monotonic()
        for said in self._followers.lost():
            self._miss(said)
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
        if manned or not self._queue.waiting or self._lines.ended:
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
            self._give_up(item, item.given_up or Absence(Fate.NODE_LOST, "ledger", said))
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
            for item in mine:
                self._queue.take_back(item)
            hung = line.hangs(self._policies.block_deadline)
            verdict = judge(
                mine, line.at, hung, rank in self.closed, self._source, said, self._policies
            )
            back += verdict.back
            for item in verdict.split:
                back += self._in_flight.split(item, self._group)
            for item, why_given_up in verdict.given_up:
                if self._followers and item.given_up is None:
                    item.given_up = why_given_up
                else:
                    self.on_given_up(item.block, why_given_up)
                    self._leave_out(item, why_given_up)
                back.append(item)
            self._remove(rank)
        if self._policies.node_loss == "mark":
            for item in back:
                if not item.over and item.given_up is None:
                    self._leave_out(item, Absence(Fate.NODE_LOST, "ledger", self.errors[-1]))
        self._queue.put_back(item for item in back if not item.over)
        if self._policies.node_loss == "stop":
            self._on_stop(self.errors[-1])
        self._dispatch()

    def _what_becomes_of(self, blocks: list[Item]) -> str:
        if not blocks:
            return ""
        lost = self._policies.node_loss == "mark"
        return f"; {len(blocks)} blocks it had {'are lost' if lost else 'were given to others'}"
