"""A processing node of the model: blocks one after the other, flushed and answered in batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import simpy

from lima2py.graph.flow import FLUSH_EVERY
from lima2py.model.host import Host
from lima2py.model.resources import Pipe, Steps
from lima2py.model.setup import Setup
from lima2py.transport.dispatch import SENT, Item

_LULL = 2e-3
"""Seconds without a block after which files are flushed, as in `transport.pull`."""


class Worker:
    """A processing node from its start to its loss.

    Args:
        env: of the simulation.
        setup: what is simulated.
        rank: its number in the run.
        credits: the most blocks that each acquisition node may give it.
        host: on which it runs.
        disk: which all nodes share.
        rng: for how long blocks take.
        answer: is given blocks that are safe, each with the acquisition node it is from.

    Attributes:
        tcp: its network thread.
        disk: its own.
        slowness: how many times as long everything takes.
        busy: seconds of work of its thread, if all blocks were full.
    """

    def __init__(
        self,
        env: simpy.Environment,
        setup: Setup,
        rank: int,
        credits: int,
        host: Host,
        disk: Pipe,
        rng: np.random.Generator,
        answer: Callable[[Worker, Sequence[tuple[Any, Item]]], None],
    ):
        self.rank = rank
        self.credits = credits
        self.host = host
        self.tcp = Pipe(setup.costs.tcp_rate)
        self.disk = Pipe(setup.disk.node)
        self.slowness = 1.0
        self.busy = 0.0
        self._env = env
        self._costs = setup.costs.processing
        self._variation = setup.processing.variation
        self._room = setup.shape.frames
        self._batch = max(1, credits // 2)
        self._disks = (self.disk, disk)
        self._rng = rng
        self._answer = answer
        self._inbox: deque[tuple[Any, Item]] = deque()
        self._wake = env.event()
        self._at: Item | None = None
        self._saving = False
        self._lives = True

    def give(self, source: object, item: Item) -> None:
        """A block arrives."""
        self._inbox.append((source, item))
        if not self._wake.triggered:
            self._wake.succeed()

    def end(self) -> None:
        """It is dead, or frozen, and says nothing more."""
        self._lives = False

    def may_be_at(self, item: Item) -> bool:
        """Whether it may have been at a block when it ended."""
        return self._saving or self._at is item or item.sent > SENT

    def run(self) -> Steps:
        """All of its work, as in `graph.flow`."""
        env, pending, since = self._env, list[tuple[Any, Item]](), 0.0
        while self._lives:
            if self._inbox:
                given = self._inbox.popleft()
                self._at = given[1]
                yield self._process(given[1].block.count)
                if not self._lives:
                    return
                self._at = None
                since = since if pending else env.now
                pending.append(given)
                if len(pending) < self._batch and env.now - since <= FLUSH_EVERY:
                    continue
            else:
                self._wake = env.event()
                yield self._wake | env.timeout(_LULL) if pending else self._wake
                if self._inbox:
                    continue
            self._saving = True
            yield self._work(self._costs.flush)
            nbytes = self._costs.written * sum(item.block.count for _, item in pending)
            yield env.timeout(max(disk.take(env.now, nbytes) for disk in self._disks) - env.now)
            if not self._lives:
                return
            self._saving = False
            self._answer(self, pending)
            pending = []

    def _process(self, frames: int) -> simpy.Event:
        costs, vary = self._costs, 1.0
        if self._variation:
            shape = self._variation**-2
            vary = float(self._rng.gamma(shape, 1 / shape))
        self.busy -= costs.block * (1 - frames / self._room)
        return self._work((costs.block + frames * costs.frame) * vary)

    def _work(self, seconds: float) -> simpy.Event:
        self.busy += seconds * self.slowness
        return self.host.cores.work(seconds * self.slowness)
