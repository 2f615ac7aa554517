"""The state of a session as Prometheus metrics: one table of them, and their text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

from lima2py.errors import LimaError
from lima2py.graph.latency import EDGES, PER_DECADE
from lima2py.node.life import State
from lima2py.session.totals import Labels, Totals

if TYPE_CHECKING:
    from prometheus_client.core import Metric as Family
    from prometheus_client.registry import Collector

    from lima2py.session.progress import Progress

_BOUNDS = range(0, len(EDGES), PER_DECADE // 2)
"""The buckets that are shown: two in a factor of ten."""


class View(NamedTuple):
    """What metrics are drawn from.

    Attributes:
        run: id of the present or last run; empty before the first one.
        name: of that run.
        progress: where it is.
        totals: what was counted in all runs of the session.
    """

    run: str
    name: str
    progress: Progress
    totals: Totals


Samples = Iterable[tuple[Labels, Any]]


class Metric(NamedTuple):
    """One metric.

    Attributes:
        name: as Prometheus shows it; a counter also gets `_total`.
        kind: `gauge`, `counter`, `histogram` or `info`.
        labels: names of its labels.
        about: what it says, for a person.
        samples: its values, by labels.
    """

    name: str
    kind: str
    labels: Labels
    about: str
    samples: Callable[[View], Samples]


def _of_nodes(value: Callable[[Mapping[str, Any]], float | None]) -> Callable[[View], Samples]:
    """A value of the status of every node that has it."""

    def samples(view: View) -> Samples:
        found = ((node, value(status)) for node, status in view.progress.nodes.items())
        return [((node,), number) for node, number in found if number is not None]

    return samples


def _of_totals(counter: str) -> Callable[[View], Samples]:
    return lambda view: sorted(view.totals.of(counter).items())


def _ring(used: str) -> Callable[[Mapping[str, Any]], float | None]:
    return lambda status: status[used] / status["slots"] if status.get("slots") else None


def _held(what: str) -> Callable[[View], Samples]:
    """What every holder of memory in every node has of something, in bytes."""

    def samples(view: View) -> Samples:
        return [
            ((node, holder), told[what])
            for node, status in view.progress.nodes.items()
            for holder, told in status.get("holdings", {}).items()
            if what in told
        ]

    return samples


def _in_flight(status: Mapping[str, Any]) -> float | None:
    return sum(status["in_flight"].values()) if "in_flight" in status else None


def _latencies(view: View) -> Samples:
    """By what and whose: frames by bucket, the sum of times last; all nodes together."""
    found: dict[Labels, Any] = {}
    for (where, task, _), values in sorted(view.totals.of("latency").items()):
        found[where, task] = found.get((where, task), 0) + values
    return found.items()


METRICS = (
    Metric(
        "lima2py_run", "info", ("run", "name"), "The present or last run.",
        lambda view: [((view.run, view.name), 1)] if view.run else [],
    ),
    Metric(
        "lima2py_state", "gauge", ("state",), "1 for the state the system is in.",
        lambda view: [((state.value,), float(state is view.progress.state)) for state in State],
    ),
    Metric(
        "lima2py_frames_asked", "gauge", (), "Frames asked for in the present run; 0 if endless.",
        lambda view: [((), view.progress.asked)],
    ),
    Metric(
        "lima2py_frames_acquired", "counter", (), "Frames the detector has delivered.",
        _of_totals("frames_acquired"),
    ),
    Metric(
        "lima2py_frames", "counter", ("cause",),
        "Frames that have a fate: saved, rejected, or the cause why they are absent.",
        _of_totals("frames"),
    ),
    Metric(
        "lima2py_sink_rows", "counter", ("sink", "cause"),
        "Rows of every sink by fate; of runs that are over.",
        _of_totals("sink_rows"),
    ),
    Metric(
        "lima2py_runs", "counter", ("outcome",), "Runs that are over.", _of_totals("runs"),
    ),
    Metric(
        "lima2py_events", "counter", ("kind", "node"), "What happened.", _of_totals("events"),
    ),
    Metric(
        "lima2py_lag_frames", "gauge", (), "Frames acquired that have no fate yet.",
        lambda view: [((), view.progress.lag)],
    ),
    Metric(
        "lima2py_lag_seconds", "gauge", ("node",), "Age of the oldest block that is not settled.",
        _of_nodes(lambda status: status.get("lag_seconds")),
    ),
    Metric(
        "lima2py_latency_seconds", "histogram", ("where", "task"),
        "From the moment a frame was complete in the ring until a sink held it safely, or a tap"
        " showed it.",
        _latencies,
    ),
    Metric(
        "lima2py_ring_fill_ratio", "gauge", ("node",), "How full the ring is, 0 to 1.",
        _of_nodes(_ring("slots_used")),
    ),
    Metric(
        "lima2py_ring_peak_ratio", "gauge", ("node",), "How full it has been in this run.",
        _of_nodes(_ring("slots_peak")),
    ),
    Metric(
        "lima2py_blocks_in_flight", "gauge", ("node",), "Blocks that processing nodes have.",
        _of_nodes(_in_flight),
    ),
    Metric(
        "lima2py_blocks_waiting", "gauge", ("node",), "Blocks that wait for a processing node.",
        _of_nodes(lambda status: status.get("waiting")),
    ),
    Metric(
        "lima2py_node_frames", "counter", ("node",), "Frames that went through the graph here.",
        _of_totals("node_frames"),
    ),
    Metric(
        "lima2py_node_failures", "counter", ("node",),
        "How many times a task or a sink failed on a block here.",
        _of_totals("node_failures"),
    ),
    Metric(
        "lima2py_refused_messages", "counter", ("node", "cause"),
        "Messages that were malformed, or not meant for the run.",
        _of_totals("refused"),
    ),
    Metric(
        "lima2py_node_restarts", "gauge", ("node",),
        "How many times the node was started again in this run.",
        _of_nodes(lambda status: status["restarts"]),
    ),
    Metric(
        "lima2py_cpu_seconds", "counter", ("node",), "Processor time the node's process has used.",
        _of_totals("cpu_seconds"),
    ),
    Metric(
        "lima2py_memory_bytes", "gauge", ("node",), "Private memory of the node's process.",
        _of_nodes(lambda status: status.get("memory")),
    ),
    Metric(
        "lima2py_memory_granted_bytes", "gauge", ("node", "holder"),
        "Of the memory budget of its host, what a holder in the node may take.", _held("granted"),
    ),
    Metric(
        "lima2py_memory_used_bytes", "gauge", ("node", "holder"), "What it takes.", _held("used"),
    ),
    Metric(
        "lima2py_memory_peak_bytes", "gauge", ("node", "holder"),
        "The most it took since the last prepare.", _held("peak"),
    ),
)  # fmt: skip
"""Every metric."""


def collector(view: Callable[[], View]) -> Collector:
    """What a Prometheus client collects from.

    Args:
        view: gives the present view; may be called from any thread.

    Raises:
        LimaError: if the Prometheus client is not installed.
    """
    try:
        from prometheus_client.registry import Collector
    except ImportError:
        raise LimaError(
            'metrics need prometheus_client, which is missing: pip install "lima2py[metrics]"'
        ) from None

    class OfSession(Collector):
        def collect(self) -> Iterator[Family]:
            seen = view()
            return (_family(metric, metric.samples(seen)) for metric in METRICS)

    return OfSession()


def exposition(view: View) -> str:
    """All metrics in Prometheus' text format.

    Raises:
        LimaError: if the Prometheus client is not installed.
    """
    collected = collector(lambda: view)
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry(auto_describe=False)
    registry.register(collected)
    return generate_latest(registry).decode()


def _family(metric: Metric, samples: Samples) -> Family:
    """A metric as the Prometheus client wants it."""
    from prometheus_client import core

    if metric.kind == "histogram":
        times = core.HistogramMetricFamily(metric.name, metric.about, labels=metric.labels)
        for labels, values in samples:
            summed = list(accumulate(values[:-1].tolist()))
            buckets = [(f"{EDGES[n]:.6g}", summed[n]) for n in _BOUNDS]
            times.add_metric(labels, [*buckets, ("+Inf", summed[-1])], float(values[-1]))
        return times
    if metric.kind == "info":
        info = core.InfoMetricFamily(metric.name, metric.about)
        for labels, _ in samples:
            info.add_metric((), dict(zip(metric.labels, labels, strict=True)))
        return info
    kind = core.CounterMetricFamily if metric.kind == "counter" else core.GaugeMetricFamily
    family = kind(metric.name, metric.about, labels=metric.labels)
    for labels, number in samples:
        family.add_metric(labels, float(number))
    return family
