"""An acquisition node of the model: a ring between a detector and the dispatching of real runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import simpy

from lima2py.detector import Share
from lima2py.frame import Block, Fate, FrameSpec
from lima2py.model.clock import Clock, frames_before
from lima2py.model.host import Host
from lima2py.model.resources import Pipe, Steps
from lima2py.model.setup import Setup
from lima2py.model.tally import Tally
from lima2py.model.worker import Worker
from lima2py.ring import RingShape
from lima2py.transport.dispatch import DEATHS, Dispatch, Item
from lima2py.transport.in_flight import InFlight


class Source:
    """An acquisition node.

    Args:
        env: of the simulation.
        setup: what is simulated.
        share: which frames are its own.
        shape: of its ring.
        clock: of the detector.
        host: on which it runs.
        tally: where the fates of frames are counted.
        deliver: sends a block to its owner.
        on_stop: is called when the run should end early.

    Attributes:
        tcp: its network thread.
        over: when it had read its last frame, in seconds; nan before.
        peak: the most slots in use at once.
        behind: by how much it read a frame later than that was there, in seconds, at most.
        busy: seconds of work of its thread, if all blocks were full.
    """

    def __init__(
        self,
        env: simpy.Environment,
        setup: Setup,
        share: Share,
        shape: RingShape,
        clock: Clock,
        host: Host,
        tally: Tally,
        deliver: Callable[[Source, Item], None],
        on_stop: Callable[[], None],
    ):
        self.host = host
        self.tcp = Pipe(setup.costs.tcp_rate)
        self.over = math.nan
        self.peak = 0
        self.behind = 0.0
        self.busy = 0.0
        self._env = env
        self._setup = setup
        self._share = share
        self._shape = shape
        self._clock = clock
        self._tally = tally
        self._deliver = deliver
        self._on_stop = on_stop
        self._spec = FrameSpec.dense(1, setup.detector.frame, "uint8")
        self._queue = Dispatch(setup.policies.dispatch, shape.frames)
        self._in_flight = InFlight(self._queue)
        self._nodes = 0
        self._free = shape.slots
        self._filled = 0.0  # slots × seconds
        self._then = 0.0
        self._room = env.event()
        self._stopped = False
        self._next = share.first(0)

    # Slots

    @property
    def used(self) -> int:
        """Slots that are in use."""
        return self._shape.slots - self._free

    def mean_used(self) -> float:
        """Slots that were in use on the average, until now."""
        self._change(0)
        return self._filled / max(self._env.now, 1e-12)

    def _change(self, slots: int) -> None:
        now = self._env.now
        self._filled += self.used * (now - self._then)
        self._then = now
        self._free -= slots
        self.peak = max(self.peak, self.used)
        if slots < 0 and not self._room.triggered:
            self._room.succeed()

    # Frames

    def read(self) -> Steps:
        """One slot after the other is filled, as `node.readout` does it."""
        env, share, last = self._env, self._share, self._clock.frames
        costs, waits = self._setup.costs.acquisition, self._setup.policies.overload == "wait"
        in_hand = False
        while self._next < last and not self._stopped:
            if not in_hand and not self._free:
                self._room = env.event()
                yield self._room
                continue
            if not in_hand:
                self._change(1)
                in_hand = True
            yield self._until(self._next)
            self._skip_overrun()
            if self._next >= last:
                break
            room = min(self._shape.frames, share.room(self._next), last - self._next)
            if 2 * self.used > self._shape.slots:  # it fills the slot: slots are scarce
                yield self._until(self._next + room - 1)
            count = max(1, min(room, self._clock.count(env.now) - self._next))
            block = costs.block + costs.choice * self._nodes
            each = costs.frame + self._setup.detector.frame / costs.copy_rate
            self.busy += count * (each + block / self._shape.frames)
            yield self.host.cores.work(block + count * each)
            self.behind = max(self.behind, env.now - self._clock.due(self._next))
            first, self._next = self._next, share.first(self._next + count)
            if not waits and not self._free:  # the slot in hand is read into again
                self._tally.lose(Fate.OVERRUN, count)
                if self._setup.policies.overload == "stop":
                    self._on_stop()
                continue
            in_hand = not waits
            if in_hand:
                self._change(1)
            self._put(Block(self._spec, first, count, None, acquired_at=env.now))
        if in_hand:
            self._change(-1)
        self.over = env.now
        left = frames_before(share, last) - frames_before(share, self._next)
        self._tally.lose(Fate.NOT_ACQUIRED, left)

    def stop(self) -> None:
        """Read no more."""
        self._stopped = True
        if not self._room.triggered:
            self._room.succeed()

    def _until(self, index: int) -> simpy.Event:
        return self._env.timeout(max(0.0, self._clock.due(index) - self._env.now))

    def _skip_overrun(self) -> None:
        """Frames that the detector wrote over meanwhile."""
        buffer = self._setup.detector.buffer
        if buffer is None:
            return
        kept = self._share.first(max(self._next, self._clock.count(self._env.now) - buffer))
        lost = frames_before(self._share, kept) - frames_before(self._share, self._next)
        self._tally.lose(Fate.OVERRUN, lost)
        self._next = kept

    # Blocks, as in `transport.push`

    def _put(self, block: Block) -> None:
        self._in_flight.add(Item(block, block.index))
        self._dispatch()

    def _dispatch(self) -> None:
        while (item := self._queue.next()) is not None:
            self._deliver(self, item)

    def settle(self, items: Iterable[Item], rank: int) -> None:
        """A node has done blocks; what it no longer has does not count."""
        now = self._env.now
        for item in items:
            if not item.over and item.owner == rank:
                self._finish(item)
                self._tally.save(now, item.block.count, now - item.block.acquired_at)
        self._dispatch()

    def _finish(self, item: Item) -> None:
        """Nobody needs the block any more."""
        if self._in_flight.settle(item) >= 0:
            self._change(-1)

    def _give_up(self, item: Item, fate: Fate) -> None:
        self._finish(item)
        self._tally.lose(fate, item.block.count)

    # Nodes

    def add(self, worker: Worker) -> None:
        """A node takes part."""
        self._queue.add(worker.rank, worker.credits)
        self._nodes += 1
        self._dispatch()

    def drop(self, worker: Worker) -> None:
        """A node is found to be lost."""
        policies = self._setup.policies
        orphans = self._in_flight.of([worker.rank])
        for item in orphans:
            suspect = worker.may_be_at(item)
            self._queue.take_back(item)
            if suspect:
                self._suspect(item)
        self._queue.remove(worker.rank)
        self._nodes -= 1
        if policies.node_loss == "mark":
            for item in orphans:
                if not item.over:
                    self._give_up(item, Fate.NODE_LOST)
        self._queue.put_back(item for item in orphans if not item.over)
        if policies.node_loss == "stop":
            self._on_stop()
        if not self._nodes:
            self._env.process(self._wait_for_nodes())
        self._dispatch()

    def _suspect(self, item: Item) -> None:
        item.deaths += 1
        if item.block.count > 1 and self._setup.policies.node_loss != "mark":
            self._queue.put_back(self._in_flight.split(item))
        elif item.deaths == DEATHS:
            self._give_up(item, Fate.POISON)

    def _wait_for_nodes(self) -> Steps:
        yield self._env.timeout(self._setup.policies.node_patience)
        while not self._nodes:
            for item in self._in_flight:
                self._give_up(item, Fate.NODE_LOST)
            self._on_stop()
            yield self._env.timeout(self._setup.policies.node_patience)  # a block may be on its way
