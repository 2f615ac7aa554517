"""Run the model: hosts, nodes, what connects them, and what goes wrong."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import count
from typing import Any

import numpy as np
import simpy

from lima2py.detector import Share
from lima2py.model.clock import Clock
from lima2py.model.forecast import Forecast, Incident, Samples
from lima2py.model.host import Host
from lima2py.model.resources import Cores, Pipe, Steps
from lima2py.model.setup import Fault, Setup
from lima2py.model.source import Source
from lima2py.model.tally import Tally
from lima2py.model.worker import Worker
from lima2py.node.sharing import credits_for
from lima2py.transport.dispatch import Item

SEEN = {"kill": 0.02, "freeze": 0.65}
"""Seconds until an acquisition node knows of a loss: the connection breaks; heartbeats are missed,
and it is looked every 20 ms."""
MINUTE = 60.0
SAMPLES = 1000
"""So often at least a run is looked at, and at most twice as often."""


def simulate(setup: Setup) -> Forecast:
    """What a run on a system would be.

    Raises:
        LimaError: if the ring cannot hold the frames.
    """
    return Simulation(setup).run()


class Simulation:
    """One run of the model."""

    def __init__(self, setup: Setup):
        self._setup = setup
        self._env = env = simpy.Environment()
        self._rng = np.random.default_rng(setup.seed)
        self._clock = Clock(setup.detector)
        self._shape = setup.shape
        self._end = env.event()
        self._tally = Tally(setup.detector.frames, self._end.succeed)
        self._switch = Pipe(setup.network.switch)
        self._disk = Pipe(setup.disk.all)
        self._place_hosts()
        size = setup.acquisition.nodes
        self._sources = [
            Source(
                env, setup, Share(rank, size, self._shape.frames), self._shape, self._clock,
                self._hosts[rank % setup.acquisition.hosts], self._tally, self._deliver, self._stop,
            )
            for rank in range(size)
        ]  # fmt: skip
        self._credits = credits_for(self._shape.slots, setup.processing.nodes, group=1)
        self._ranks = count()
        self._workers: dict[int, Worker] = {}
        self._ever: list[Worker] = []
        self._places = [self._start(place) for place in range(setup.processing.nodes)]
        self._restarts: deque[float] = deque()
        self._incidents = [Incident(fault) for fault in setup.faults]
        self._samples: list[tuple[float, float, int]] = []

    def _place_hosts(self) -> None:
        """Those of the acquisition nodes come first."""
        there, here = self._setup.acquisition, self._setup.processing
        threads = [0] * (there.hosts + here.hosts)
        for node in range(there.nodes):
            threads[node % there.hosts] += 1
        for place in range(here.nodes):
            threads[self._host_number(place)] += 1
        cores = [there.cores] * there.hosts + [here.cores] * here.hosts
        network = self._setup.network
        self._hosts = [
            Host(Cores(self._env, each, most), Pipe(network.host), Pipe(network.host))
            for each, most in zip(cores, threads, strict=True)
        ]

    def _host_number(self, place: int) -> int:
        there, here = self._setup.acquisition, self._setup.processing
        return there.hosts + place % here.hosts if here.hosts else place % there.hosts

    def _start(self, place: int) -> Worker:
        """A processing node, which all acquisition nodes get to know."""
        setup, rank = self._setup, next(self._ranks)
        host = self._hosts[self._host_number(place)]
        worker = Worker(
            self._env, setup, rank, self._credits, host, self._disk, self._rng, self._answer
        )  # fmt: skip
        self._workers[rank] = worker
        self._ever.append(worker)
        self._env.process(worker.run())
        for source in self._sources:
            source.add(worker)
        return worker

    def run(self) -> Forecast:
        """Until every frame has its fate."""
        env = self._env
        for source in self._sources:
            env.process(source.read())
        for incident in self._incidents:
            env.process(self._befall(incident))
        env.process(self._look())
        env.run(self._end)
        env.run(env.now + 1e-9)  # those who gave the last frame its fate come to their end
        return self._forecast()

    def _forecast(self) -> Forecast:
        times, fills, backlogs = zip(*self._samples, strict=True)
        samples = Samples(np.array(times), np.array(fills), np.array(backlogs))
        last = self._clock.due(self._clock.frames - 1)
        sources, shape = self._sources, self._shape
        for incident in self._incidents:
            later = [fault.at for fault in self._setup.faults if fault.at > incident.fault.at]
            incident.judge(samples, min([*later, last]), shape.frames * len(sources))
        over = max(source.over for source in sources)
        return Forecast(
            setup=self._setup,
            shape=shape,
            seconds=self._env.now,
            fates=self._tally.fates,
            rate=self._tally.rate(over / 4, over),
            held=max(0.0, over - last),
            behind=max(source.behind for source in sources),
            ring_peak=max(source.peak for source in sources) / shape.slots,
            ring_mean=max(source.mean_used() for source in sources) / shape.slots,
            memory=self._memory(),
            latency=self._tally.latency(),
            busy=self._work_done(),
            incidents=self._incidents,
            samples=samples,
        )

    def _memory(self) -> tuple[int, int, int]:
        """Of an acquisition node, a processing node, and all: rings, and what is in flight."""
        setup, shape = self._setup, self._shape
        there, here, own = setup.acquisition, setup.processing, setup.costs.processing.memory
        apart = there.nodes if here.hosts else there.nodes - there.nodes // there.hosts
        acquisition = own + shape.nbytes
        processing = own + apart * self._credits * shape.stride
        return acquisition, processing, there.nodes * acquisition + here.nodes * processing

    def _stop(self) -> None:
        for source in self._sources:
            source.stop()

    # Messages

    def _deliver(self, source: Source, item: Item) -> None:
        """Send a block to the node that owns it now."""
        now, worker = self._env.now, self._workers[item.owner]
        when = now + self._setup.costs.message
        if source.host is not worker.host:
            nbytes = item.block.count * self._setup.detector.frame
            way = (
                source.tcp, source.host.sends, self._switch, worker.host.receives, worker.tcp
            )  # fmt: skip
            when = max(pipe.take(now, nbytes) for pipe in way) + self._setup.network.latency
        self._later(when - now, lambda: worker.give(source, item))

    def _answer(self, worker: Worker, done: Sequence[tuple[Source, Item]]) -> None:
        """Tell the acquisition nodes what is safe."""
        by_source: dict[Source, list[Item]] = {}
        for source, item in done:
            by_source.setdefault(source, []).append(item)
        for source, items in by_source.items():
            here = source.host is worker.host
            latency = self._setup.costs.message if here else self._setup.network.latency
            self._later(latency, lambda to=source, what=items: to.settle(what, worker.rank))

    def _later(self, seconds: float, what: Any) -> None:
        event = self._env.timeout(seconds)
        assert event.callbacks is not None  # noqa: S101 - it has not happened yet
        event.callbacks.append(lambda _event: what())

    # What goes wrong

    def _befall(self, incident: Incident) -> Steps:
        fault = incident.fault
        yield self._env.timeout(fault.at)
        worker = self._places[fault.node]
        if fault.what == "slow":
            worker.slowness = fault.factor
            if fault.lasts is not None:
                yield self._env.timeout(fault.lasts)
                worker.slowness = 1.0
            return
        worker.end()
        yield self._env.timeout(SEEN[fault.what])
        yield from self._lose(fault, worker)

    def _lose(self, fault: Fault, worker: Worker) -> Steps:
        if worker is not self._workers.get(worker.rank):
            return  # it was lost already
        for source in self._sources:
            source.drop(worker)
        del self._workers[worker.rank]
        now = self._env.now
        while self._restarts and now > self._restarts[0] + MINUTE:
            self._restarts.popleft()
        if len(self._restarts) < self._setup.policies.restarts:
            self._restarts.append(now)
            host = self._hosts[self._host_number(fault.node)]
            yield host.cores.work(self._setup.costs.processing.restart)
            self._places[fault.node] = self._start(fault.node)

    # What is seen of it

    def _look(self) -> Steps:
        every = self._clock.due(self._clock.frames - 1) / SAMPLES
        while True:
            fill = max(source.used for source in self._sources) / self._shape.slots
            there = self._clock.count(self._env.now)
            self._samples.append((self._env.now, fill, there - self._tally.settled))
            if len(self._samples) == 2 * SAMPLES:  # it takes longer than the detector needs
                del self._samples[1::2]
                every *= 2
            yield self._env.timeout(every)

    def _work_done(self) -> dict[str, float]:
        """Work over time; of processing threads the mean, of all else the busiest."""
        there, here = self._setup.acquisition, self._setup.processing
        ours, theirs = self._hosts[: there.hosts], self._hosts[there.hosts :]
        workers = self._ever
        busy = {
            "acquisition threads": max(source.busy for source in self._sources),
            "processing threads": sum(worker.busy for worker in workers) / here.nodes,
            "cores of acquisition hosts": max(host.cores.busy / there.cores for host in ours),
            "cores of processing hosts": max(
                (host.cores.busy / here.cores for host in theirs), default=0.0
            ),
            "network threads, sending": max(source.tcp.busy for source in self._sources),
            "network threads, receiving": max(w.tcp.busy for w in workers),
            "network out of a host": max(host.sends.busy for host in self._hosts),
            "network into a host": max(host.receives.busy for host in self._hosts),
            "switch": self._switch.busy,
            "disk of a node": max(worker.disk.busy for worker in workers),
            "shared disk": self._disk.busy,
        }
        return {name: seconds / self._env.now for name, seconds in busy.items() if seconds}
