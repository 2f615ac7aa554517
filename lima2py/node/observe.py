"""What a run notes in its logbook by itself: rates, the ring, temperatures, what others report.

Two threads of its own look now and then, so that the loop of frames never waits for them: one at
counters that are there anyway, and one at the temperatures of the detector, whose hardware may take
its time. Neither is waited for long when the run ends.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from lima2py.detector import Detector
from lima2py.errors import in_words
from lima2py.graph.flow import Flow
from lima2py.graph.latency import Histogram
from lima2py.node.logbook import Logbook
from lima2py.node.node import Node
from lima2py.node.run import private_memory
from lima2py.storage.logs import Series
from lima2py.transport import wire

SAMPLE_EVERY = 1.0
"""Seconds between two looks at counters."""
TEMPERATURES_EVERY = 5.0
"""Seconds between two looks at temperatures."""
PATIENCE = 1.0
"""Seconds that the end of a run waits for a detector that is being asked."""


class Rates:
    """How fast counters grow, from one look to the next."""

    def __init__(self) -> None:
        self._then = time.monotonic()
        self._before: Mapping[str, float] = {}

    @property
    def age(self) -> float:
        """Seconds since the last look."""
        return time.monotonic() - self._then

    def of(self, totals: Mapping[str, float]) -> dict[str, float]:
        """By how much each has grown since the last look, per second."""
        now = time.monotonic()
        passed = max(now - self._then, 1e-9)
        rates = {name: (total - self._before.get(name, 0)) / passed
                 for name, total in totals.items()}  # fmt: skip
        self._then, self._before = now, totals
        return rates


class Load(NamedTuple):
    """What a node does.

    Attributes:
        frames: that passed, per second.
        busy: by group of tasks, the share of the time it took.
        cpu: cores that its process keeps busy.
        memory: private memory of its process, in bytes.
    """

    frames: float
    busy: dict[str, float]
    cpu: float
    memory: int


class Effort:
    """How fast a flow works, and at what it is busy: what a processing node reports."""

    def __init__(self, flow: Flow):
        self._flow = flow
        self._names = [
            "+".join(flow.plan.steps[number].name for number in shared)
            for shared in flow.plan.passes
        ]
        self._totals = Rates()
        self._totals.of({"cpu": time.process_time()})
        self._busy = Rates()

    @property
    def is_due(self) -> bool:
        """Whether the last report is a second old."""
        return self._totals.age >= SAMPLE_EVERY

    def report(self) -> Load:
        """What was done since the last report."""
        rates = self._totals.of({"frames": self._flow.frames, "cpu": time.process_time()})
        busy = self._busy.of(dict(zip(self._names, self._flow.spent, strict=True)))
        return Load(rates["frames"], busy, rates["cpu"], private_memory())


class Observer:
    """Keeps the logbook of an acquisition run.

    Args:
        node: that acquires.
        detector: in use; its `temperatures` may be asked from any thread.
        status: of the run: frames acquired and settled, slots used, blocks in flight.
        complain: is told, once, that the temperatures cannot be had.
        alone: whether no other node acquires in this run.

    Attributes:
        logbook: of the run.
        names: of the processing nodes, by rank.
    """

    def __init__(
        self,
        node: Node,
        detector: Detector,
        status: Callable[[], Mapping[str, Any]],
        complain: Callable[[str], None],
        alone: bool,
    ):
        self.logbook = Logbook(node.who)
        self.names: dict[int, str] = {}
        self._node = node.name
        self._alone = alone
        self._effort: Effort | None = None
        self._detector = detector
        self._status = status
        self._complain = complain
        self._complained = False
        self._rates = Rates()
        self._latencies: dict[str, list[int]] = {}
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=watch, name=f"observe {node.name}", daemon=True)
            for watch in (self._watch_counters, self._watch_temperatures)
        ]

    def start(self, flow: Flow | None) -> None:
        """Begin to look; the run has not begun yet.

        Args:
            flow: the graph, if it runs here: it is looked at, too.
        """
        if flow is not None:
            self._effort = Effort(flow)
        self._rates = Rates()
        self._look_at_counters()
        for thread in self._threads:
            thread.start()

    def take(self, told: wire.Statistics) -> None:
        """Note what a processing node reported."""
        load = Load(told.frames, told.busy, told.cpu, told.memory)
        self._note_load(self.names[told.node], load)

    def stop(self) -> None:
        """Look no more, after a last look at the counters; may be called twice."""
        if self._over.is_set() or self._threads[0].ident is None:
            return
        self._over.set()
        for thread in self._threads:
            thread.join(PATIENCE)
        self._look_at_counters()

    def close(self) -> dict[str, Series]:
        """The whole logbook; nothing can be added any more."""
        self.stop()
        return self.logbook.close()

    def _watch_counters(self) -> None:
        while not self._over.wait(SAMPLE_EVERY):
            self._look_at_counters()

    def _watch_temperatures(self) -> None:
        self._look_at_temperatures()
        while not self._over.wait(TEMPERATURES_EVERY):
            self._look_at_temperatures()

    def _look_at_counters(self) -> None:
        status = self._status()
        place = f"acquisition/{self._node}"
        counted = ("acquired", "settled", "cpu_seconds")
        rates = self._rates.of({name: status[name] for name in counted})
        now = time.time()
        self.logbook.add(f"{place}/cpu", rates.pop("cpu_seconds"), "", now)
        self.logbook.add(f"{place}/memory", status["memory"], "B", now)
        for name, rate in rates.items():
            self.logbook.add(f"{place}/frames_{name}", rate, "1/s", now)
        self.logbook.add(f"{place}/lag", status["lag_seconds"], "s", now)
        self.logbook.add(f"{place}/waiting", status["waiting"], "", now)
        for where in ("sink", "tap"):
            for task, plain in status["latency"][where].items():
                self._note_latency(f"{place}/latency/{task}", Histogram.of(plain), now)
        if status["slots"]:
            self.logbook.add(f"{place}/ring_fill", status["slots_used"] / status["slots"], "", now)
        for rank, blocks in status["in_flight"].items():
            self.logbook.add(f"{place}/in_flight/{self.names[rank]}", blocks, "", now)
        if self._effort is not None:
            self._note_load(self._node, self._effort.report())

    def _note_latency(self, place: str, latency: Histogram, now: float) -> None:
        """Note how long frames took that were done since the last look."""
        before = self._latencies.get(place)
        self._latencies[place] = latency.counts
        if latency.counts != before:
            for name, share in (("p50", 0.5), ("p99", 0.99)):
                self.logbook.add(f"{place}/{name}", latency.within(share, before), "s", now)

    def _note_load(self, node: str, load: Load) -> None:
        now, place = time.time(), f"processing/{node}"
        self.logbook.add(f"{place}/frames", load.frames, "1/s", now)
        self.logbook.add(f"{place}/cpu", load.cpu, "", now)
        self.logbook.add(f"{place}/memory", load.memory, "B", now)
        for tasks, share in load.busy.items():
            self.logbook.add(f"{place}/busy/{tasks}", share, "", now)

    def _look_at_temperatures(self) -> None:
        place = "detector/temperature" if self._alone else f"detector/temperature/{self._node}"
        try:
            for sensor, value in self._detector.temperatures().items():
                if self._over.is_set():
                    return  # it took so long that the run is over
                self.logbook.add(f"{place}/{sensor}", value, "Cel")
        except Exception as error:  # whatever the hardware says, the run goes on
            if not self._complained:
                self._complained = True
                self._complain(
                    f"the temperatures of detector {self._detector.info.name} cannot be read:"
                    f" {in_words(error)}"
                )
