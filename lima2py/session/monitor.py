"""What a session makes of every look at its nodes: rates, alarms, totals, latencies.

Nodes only count; they do not know who looks how often.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lima2py.frame import Fate
from lima2py.graph.latency import Histogram
from lima2py.node.life import State
from lima2py.session.events import Events, Kind
from lima2py.session.totals import Totals

if TYPE_CHECKING:
    from lima2py.session.progress import Progress
    from lima2py.session.report import Report

RATE_OVER = 3.0
"""Seconds over which a rate is taken."""
HIGH = 0.75
"""How full a ring is, 0 to 1, when that is worth an alarm."""
NORMAL = 0.5
"""How full it may be for the alarm to be over."""
_COUNTERS = ("acquired", "settled", "frames", "cpu_seconds")

Nodes = Mapping[str, Mapping[str, Any]]


class Rates:
    """How fast the counters of nodes grow, over the last seconds."""

    def __init__(self) -> None:
        self._looks: deque[tuple[float, dict[str, dict[str, float]]]] = deque()

    def of(self, nodes: Nodes) -> dict[str, dict[str, float]]:
        """Take note of where counters are; by node, how much each grew per second."""
        now = time.monotonic()
        counts = {
            name: {counter: status[counter] for counter in _COUNTERS if counter in status}
            for name, status in nodes.items()
        }
        self._looks.append((now, counts))
        while len(self._looks) > 2 and now - self._looks[0][0] > RATE_OVER:
            self._looks.popleft()
        then, before = self._looks[0]
        passed = max(now - then, 1e-9)
        return {
            name: {
                counter: max(0.0, value - before.get(name, {}).get(counter, value)) / passed
                for counter, value in counters.items()
            }
            for name, counters in counts.items()
        }


class Monitor:
    """Follows one run of a session, from its start on.

    Args:
        run: its id.
        name: what the user called it.
        events: of the session: what happened.
        totals: of the session: counters over all runs.
    """

    def __init__(self, run: str, name: str, events: Events, totals: Totals):
        self.events = events
        self.totals = totals
        self._run = run
        self._rates = Rates()
        self._state = State.RUNNING
        self._errors: list[str] = []
        self._alarms: dict[str, Kind] = {}
        self._peaks: dict[str, float] = {}
        self._overran = False
        self._waiting: set[str] = set()
        self._restarts: Counter[str] = Counter()
        self._latency: dict[tuple[str, str, object], Mapping[str, Any]] = {}
        self.note(Kind.STARTED, f'run "{name}" was started')

    def note(self, kind: Kind, text: str, node: str = "", value: float = 0.0) -> None:
        """Something happened to the run: see `Events.note`. From any thread."""
        if kind is Kind.NODE_RESTARTED:
            self._restarts[node] += 1
        serial = self.events.note(self._run, kind, text, node, value)
        self.totals.see("events", (kind.value, node), serial, 1)

    def look(self, progress: Progress) -> Progress:
        """Take note of where the run is; the same with rates, per second."""
        rates = self._rates.of(progress.nodes)
        self._count(progress)
        self._note_rings(progress.nodes)
        self._note_overrun(progress.counts)
        self._note_disks(progress.nodes)
        self._note_state(progress)
        nodes = {
            name: {**status, "rates": rates[name], "restarts": self._restarts[name]}
            for name, status in progress.nodes.items()
        }
        rate = sum(rates[name].get("settled", 0.0) for name in nodes)
        return replace(progress, nodes=nodes, rate=rate)

    def end(self, report: Report) -> None:
        """The run is over."""
        counts = {"saved": report.saved, "rejected": report.rejected, **report.absent}
        for fate, number in counts.items():
            self.totals.see("frames", (fate,), self._run, number)
        for sink, fates in report.sinks.items():
            for fate, number in fates.items():
                self.totals.see("sink_rows", (sink, fate), self._run, number)
        self.totals.see("runs", (report.outcome,), self._run, 1)
        text = f'run "{report.name}": {report.outcome}'
        self.note(Kind.ENDED, text, value=report.seconds)

    def latency(self) -> dict[str, dict[str, float]]:
        """By sink and tap, how long frames of the run took: `p50`, `p99` and `max`, in seconds."""
        merged: dict[str, Histogram] = {}
        for (task, *_), plain in self._latency.items():
            merged.setdefault(task, Histogram()).merge(Histogram.of(plain))
        return {task: histogram.summary() for task, histogram in sorted(merged.items())}

    def _count(self, progress: Progress) -> None:
        see = self.totals.see
        see("frames_acquired", (), self._run, progress.acquired)
        for fate, number in progress.counts.items():
            see("frames", (fate,), self._run, number)
        for node, status in progress.nodes.items():
            start = status["incarnation"]
            count = (self._run, start, status["rank"])  # one that comes again begins at 0 again
            see("cpu_seconds", (node,), start, status["cpu_seconds"])
            for name in ("frames", "failures"):
                if name in status:
                    see(f"node_{name}", (node,), count, status[name])
            for cause, number in status.get("refused", {}).items():
                see("refused", (node, cause), count, number)
            for where, histograms in status.get("latency", {}).items():
                for task, plain in histograms.items():
                    self._latency[task, node, count] = plain
                    values = [*plain["counts"], plain["total"]]
                    see("latency", (where, task, node), count, values)

    def _note_rings(self, nodes: Nodes) -> None:
        for node, status in nodes.items():
            slots = status.get("slots")
            if slots is None:
                continue
            fill = status["slots_used"] / slots if slots else 0.0
            # A peak between two looks counts, too: else a short one would go unseen.
            peak = max(fill, status["slots_peak"] / slots if slots else 0.0)
            top = peak if peak > self._peaks.get(node, 0.0) else fill
            self._peaks[node] = max(peak, self._peaks.get(node, 0.0))
            alarm = self._alarms.get(node)
            if top >= HIGH and alarm is None:
                self._alarm(Kind.RING_HIGH, node, f"the ring is {top:.0%} full", top)
            if top >= 1 and alarm is not Kind.RING_FULL:
                self._alarm(Kind.RING_FULL, node, "the ring is full", top)
            if fill < NORMAL and node in self._alarms:
                del self._alarms[node]
                text = f"the ring is {fill:.0%} full again"
                self.note(Kind.RING_NORMAL, text, node, fill)

    def _alarm(self, kind: Kind, node: str, text: str, value: float) -> None:
        self._alarms[node] = kind
        self.note(kind, text, node, value)

    def _note_overrun(self, counts: Mapping[str, int]) -> None:
        dropped = counts.get(Fate.OVERRUN.word, 0)
        if dropped and not self._overran:
            self._overran = True
            text = f"{dropped} frames were dropped so far: the ring was full"
            self.note(Kind.OVERRUN, text, value=dropped)

    def _note_disks(self, nodes: Nodes) -> None:
        waiting = {node: status["disk"] for node, status in nodes.items() if status.get("disk")}
        for node in waiting.keys() - self._waiting:
            self.note(Kind.DISK_WAITING, "; ".join(waiting[node]), node)
        self._waiting = set(waiting)

    def _note_state(self, progress: Progress) -> None:
        before, self._state = self._state, progress.state
        errors = [text for status in progress.nodes.values() for text in status["errors"]]
        why = [text for text in errors if text not in self._errors]  # what came with the change
        self._errors = errors
        if before is self._state:
            return
        if self._state is State.STOPPING:
            self.note(Kind.STOPPING, f"stopping: {'; '.join(why)}" if why else "stopping")
        elif self._state is State.PAUSED:
            self.note(Kind.PAUSED, "paused")
        elif before is State.PAUSED and self._state is State.RUNNING:
            self.note(Kind.RESUMED, "resumed")
