"""What the model predicts of real runs with 1 to 6 processing nodes here, over what they do.

    python -m benchmarks.model [--times N]

Prints a table. Others on the host take processor time, and what a step costs varies with what they
do: costs are measured anew before each run, and the model is told how many cores our nodes kept
busy while they ran (their processor time over real time). Nothing else of the run is told.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from lima2py import Session
from lima2py.acquisition import Acquisition
from lima2py.detector_file import open_detector
from lima2py.graph.definition import load_graph
from lima2py.memory_settings import MemorySettings
from lima2py.model.costs import Costs
from lima2py.model.forecast import Forecast
from lima2py.model.measure import measure
from lima2py.model.setup import Setup
from lima2py.model.simulate import simulate
from lima2py.session.launch import Child
from lima2py.session.system import System

GRAPH = "first_light"
FRAME = 512 * 512 * 2
FASTEST = 1e6
NODES = (1, 2, 3, 4, 6)
RING = 2**30
FULL = 0.8
KILL_AT = 3.0


@dataclass(frozen=True)
class Seen:
    """A real run, looked at ten times a second.

    Attributes:
        times: of the looks, in seconds since the start.
        settled: frames that had their fate.
        acquired: frames in the ring, or done.
        ring: how full it was, 0 to 1.
        cores: processors that our nodes kept busy, over the last three quarters of the acquisition.
        rate: frames a second that were done then.
        killed: when a node was killed.
    """

    times: NDArray[np.float64]
    settled: NDArray[np.float64]
    acquired: NDArray[np.float64]
    ring: NDArray[np.float64]
    cores: float
    rate: float
    killed: float

    @property
    def filled(self) -> float:
        """Seconds until the ring was nearly full."""
        return float(self.times[np.argmax(self.ring >= FULL)])

    @property
    def waiting(self) -> int:
        """The most frames that waited in the second after the kill."""
        after = (self.times > self.killed) & (self.times < self.killed + 1)
        return int((self.acquired - self.settled)[after].max())


def costs_here(folder: Path) -> Costs:
    """Of the graph, on this host, now."""
    detector = open_detector("simulator", {}, folder)
    try:
        return measure(load_graph(GRAPH), detector, Acquisition(expo_time=1 / FASTEST), folder)
    finally:
        detector.close()


def real_run(
    folder: Path, nodes: int, rate: float, frames: int, *, ring: int = 2**28, kill: bool = False
) -> Seen:
    """A run on this host.

    Args:
        folder: for its files.
        nodes: that process.
        rate: of the detector, in frames a second.
        frames: of the run.
        ring: bytes of it.
        kill: whether the last node is killed after `KILL_AT` seconds.
    """
    system = System.local("simulator", 1, nodes)
    system = system.model_copy(update={"memory": MemorySettings(ring=ring)})
    looks: list[tuple[float, ...]] = []
    killed = math.inf
    with Session.open(system) as lima:
        lima.prepare(
            nb_frames=frames, expo_time=1 / rate, graph=GRAPH, output=folder,
            name=f"run{time.monotonic_ns()}",
        )  # fmt: skip
        victim = lima.nodes.processing[-1]
        assert isinstance(victim, Child)
        lima.start()
        began = time.monotonic()
        report = None
        while report is None:
            with suppress(TimeoutError):
                report = lima.wait(0.05)
            seen, now = lima.progress(), time.monotonic() - began
            cpu = sum(status["cpu_seconds"] for status in seen.nodes.values())
            if seen.settled and (not looks or seen.settled != looks[-1][1]):
                looks.append((now, seen.settled, seen.acquired, seen.ring, cpu))
            if kill and now > KILL_AT and math.isinf(killed):
                os.kill(victim.pid, signal.SIGKILL)
                killed = now
    assert report.saved == frames, report
    times, settled, acquired, used, cpus = np.array(looks).T
    within = np.flatnonzero(acquired < frames)
    first, last = within[len(within) // 4], within[-1]
    seconds = times[last] - times[first]
    cores, done = (float((x[last] - x[first]) / seconds) for x in (cpus, settled))
    return Seen(times, settled, acquired, used, cores, done, killed)


def predicted(
    costs: Costs, nodes: int, rate: float, frames: int, cores: float, *, ring: int = 2**28,
    kill: bool = False,
) -> Forecast:  # fmt: skip
    """The same run, by the model."""
    fault = {"at": KILL_AT, "what": "kill", "node": nodes - 1}
    return simulate(
        Setup.load(
            {
                "setup": "here",
                "detector": {"frame": FRAME, "rate": rate, "frames": frames},
                "acquisition": {"cores": cores, "ring": ring},
                "processing": {"nodes": nodes},
                "faults": [fault] if kill else [],
                "costs": costs.plain(),
            },
            "setup",
        )
    )


def rate_of(folder: Path, nodes: int) -> tuple[float, float, float]:
    """Frames a second as fast as it goes: predicted, measured; and the cores that were given."""
    costs = costs_here(folder)
    seen = real_run(folder, nodes, FASTEST, 4000)
    return predicted(costs, nodes, FASTEST, 4000, seen.cores).rate, seen.rate, seen.cores


def filling(folder: Path) -> tuple[float, float, float]:
    """Seconds until a ring of 1 GiB is nearly full, with 2 nodes and frames that come too fast."""
    costs = costs_here(folder)
    seen = real_run(folder, 2, 3000, 6000, ring=RING)
    samples = predicted(costs, 2, 3000, 6000, seen.cores, ring=RING).samples
    return float(samples.times[np.argmax(samples.fill >= FULL)]), seen.filled, seen.cores


def backlog(folder: Path) -> tuple[float, float, float]:
    """The most frames that wait when one of 3 nodes is killed."""
    costs = costs_here(folder)
    seen = real_run(folder, 3, 300, 1800, kill=True)
    (incident,) = predicted(costs, 3, 300, 1800, os.cpu_count() or 1, kill=True).incidents
    return incident.backlog, seen.waiting, seen.cores


def rate_error(folder: Path) -> Callable[[], float]:
    """By how much the predicted rate with 2 nodes is off, in percent."""

    def measure_once() -> float:
        model, real, _ = rate_of(folder, 2)
        return 100 * abs(model / real - 1)

    return measure_once


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.model")
    parser.add_argument("--times", type=int, default=3, help="how often each case is repeated")
    parser.add_argument("--only", default="", help="only those with this text in their name")
    told = parser.parse_args()
    cases = {f"frames/s, {nodes} nodes": partial(rate_of, nodes=nodes) for nodes in NODES}
    cases |= {"s until the ring is full": filling, "frames that wait after a kill": backlog}
    print("| what | cores | measured | predicted | predicted / measured |")
    print("|---|---|---|---|---|")
    for name, case in cases.items():
        if told.only not in name:
            continue
        with TemporaryDirectory() as folder:
            found = np.array([case(Path(folder)) for _ in range(told.times)])
        model, real, cores = np.median(found, axis=0)
        ratios = np.sort(found[:, 0] / found[:, 1])
        spread = f"{np.median(ratios):.2f} ({ratios[0]:.2f}–{ratios[-1]:.2f})"
        print(f"| {name} | {cores:.2f} | {real:.4g} | {model:.4g} | {spread} |", flush=True)


if __name__ == "__main__":
    main()
