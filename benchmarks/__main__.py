"""Run the measurements.

    python -m benchmarks [--quick] [--json FILE]

Every case is measured several times and given as the median, with its spread, relative to a limit
measured between the same repetitions: machines are shared and noisy, and only ratios within one
run mean something.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import h5py
import numpy
import zmq

from benchmarks import overhead, transport


@dataclass(frozen=True)
class Case:
    """One result: the median of what was measured, in `unit`; more is better unless `at_most`."""

    name: str
    measured: float
    spread: float
    goal: float
    unit: str
    at_most: bool = False

    @property
    def met(self) -> bool:
        """Whether the goal was met."""
        return self.measured <= self.goal if self.at_most else self.measured >= self.goal


def median_case(
    name: str, measure: Callable[[], float], times: int, goal: float, unit: str,
    at_most: bool = False,
) -> Case:  # fmt: skip
    """Measure several times; the spread is the distance of the quartiles."""
    values = sorted(measure() for _ in range(times))
    quartiles = statistics.quantiles(values, n=4) if times > 1 else [values[0]] * 3
    return Case(name, statistics.median(values), quartiles[2] - quartiles[0], goal, unit, at_most)


def machine() -> dict[str, str]:
    """What was measured on."""
    return {
        "processor": platform.processor() or platform.machine(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "pyzmq": zmq.__version__,
        "h5py": h5py.__version__,
    }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, fewer frames")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    told = parser.parse_args()
    times = 3 if told.quick else 9
    frames = 1000 if told.quick else 4000
    cases = [
        median_case(
            "handles, Eiger-1M uint16, against copying the frames",
            lambda: transport.handles_against_copy(frames),
            times,
            0.85,
            "×",
        ),
        median_case(
            "handles, the same, every byte read by the receiver",
            lambda: transport.handles_against_copy(frames, read=True),
            times,
            0.85,
            "×",
        ),
        median_case(
            "64×64 uint16 in blocks, to another process",
            lambda: transport.small_frames(200 * frames),
            times,
            100_000,
            "frames/s",
        ),
        median_case(
            "a graph of one no-op task", overhead.no_op_graph, times, 20.0, "µs/block", at_most=True
        ),
    ]
    width = max(len(case.name) for case in cases)
    for case in cases:
        sign = "≤" if case.at_most else "≥"
        verdict = "ok" if case.met else "short"
        print(f"{case.name.ljust(width)}  {case.measured:12.3f} ± {case.spread:.3f} {case.unit}"
              f"   goal {sign} {case.goal:g}  {verdict}")  # fmt: skip
    if told.json:
        report = {"machine": machine(), "cases": [asdict(case) for case in cases]}
        told.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
