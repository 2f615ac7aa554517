"""Whole sessions on the simulator: two processing nodes against one, and how long prepare takes.

Real processes share the cores, and real time is measured: what else runs on the machine spoils it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks.processing import CLASSIC, EIGER_1M
from lima2py import Session

MORE = """
  spread:  {do: accumulate, from: photons, frames: 20, how: std}
  levels:  {do: histogram, from: photons, bins: 100, range: [0, 20]}
  shape:   {do: centre_of_mass, from: photons}
  real:    {do: count_rate_correction, from: detector, dead_time: 100 ns, expo_time: 1 ms,
            model: paralysable}
  rates:   {do: histogram, from: real, bins: 100, range: [0, 20]}
"""
"""So that processing, and not copying frames into the ring, takes the time."""
DETECTOR = {"shape": list(EIGER_1M), "background": 0.1, "prefetch": 8}


def two_nodes_against_one(folder: Path, frames: int) -> Callable[[], float]:
    """How many times as many frames a second two processing nodes take as one does."""
    graph = _written(folder, CLASSIC + MORE)

    def measure() -> float:
        one, two = (_seconds(folder, graph, nodes, frames) for nodes in (1, 2))
        return one / two

    return measure


def _seconds(folder: Path, graph: Path, nodes: int, frames: int) -> float:
    """How long a run takes, from start to the last answer."""
    with Session.open("simulator", processing_nodes=nodes, detector=DETECTOR) as lima:
        lima.prepare(nb_frames=frames, expo_time=1e-6, graph=graph, output=folder)
        lima.start()
        report = lima.wait(600)
    assert report.saved == frames, report
    return report.seconds


def prepare_again(folder: Path, nodes: int) -> Callable[[], float]:
    """Milliseconds of a prepare when the nodes are there and have seen the graph."""
    graph = _written(folder, CLASSIC)

    def measure() -> float:
        with Session.open("simulator", processing_nodes=nodes, detector=DETECTOR) as lima:
            for _ in range(2):
                began = time.perf_counter()
                lima.prepare(nb_frames=1000, expo_time=1e-3, graph=graph, output=folder)
                spent = time.perf_counter() - began
        return spent * 1e3

    return measure


def first_prepare(folder: Path) -> Callable[[], float]:
    """Seconds of the first prepare ever: nodes are started, and everything is compiled."""
    graph = _written(folder, CLASSIC)

    def measure() -> float:
        before = dict(os.environ)
        with TemporaryDirectory() as empty:
            os.environ |= {"LIMA2PY_CACHE": empty, "NUMBA_CACHE_DIR": empty}
            try:
                with Session.open("simulator", processing_nodes=1, detector=DETECTOR) as lima:
                    began = time.perf_counter()
                    lima.prepare(nb_frames=1000, expo_time=1e-3, graph=graph, output=folder)
                    return time.perf_counter() - began
            finally:
                os.environ.clear()
                os.environ.update(before)

    return measure


def _written(folder: Path, graph: str) -> Path:
    """A graph as a file, and the images it needs beside it."""
    path = folder / "graph.yaml"
    path.write_text(graph)
    rng = np.random.default_rng(1)
    np.save(folder / "dark.npy", rng.random(EIGER_1M, np.float32) * np.float32(0.1))
    np.save(folder / "flat.npy", rng.uniform(0.9, 1.1, EIGER_1M))
    np.save(folder / "mask.npy", rng.random(EIGER_1M) < 0.01)
    return path
