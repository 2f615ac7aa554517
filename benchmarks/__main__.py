"""Run the measurements.

    python -m benchmarks [--quick] [--only TEXT] [--json FILE]

Every case is measured several times and given as the median, with its spread, relative to a limit
measured between the same repetitions: machines are shared and noisy, and only ratios within one
run mean something. A case that needs a package that is not installed is skipped.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import h5py
import numba
import numpy
import zmq

from benchmarks import azimuthal, model, overhead, peers, processing, saving, scaling, transport


@dataclass(frozen=True)
class Entry:
    """One thing to measure.

    Attributes:
        name: of it.
        goal: what is wanted.
        build: gives what measures it once; takes a folder for its files.
        unit: of what is measured.
        at_most: whether less is better.
        few: whether it takes long, so that few repetitions must do.
    """

    name: str
    goal: float
    build: Callable[..., Callable[[], float]]
    unit: str = "×"
    at_most: bool = False
    few: bool = False


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
        "numba": numba.__version__,
    }


def entries(quick: bool) -> Iterator[Entry]:
    """What is measured."""
    frames = 1000 if quick else 4000
    yield Entry(
        "handles, Eiger-1M uint16, against copying the frames", 0.85,
        lambda _: lambda: transport.handles_against_copy(frames),
    )  # fmt: skip
    yield Entry(
        "handles, the same, every byte read by the receiver", 0.85,
        lambda _: lambda: transport.handles_against_copy(frames, read=True),
    )  # fmt: skip
    yield Entry(
        "64×64 uint16 in blocks, to another process", 100_000,
        lambda _: lambda: transport.small_frames(200 * frames), "frames/s",
    )  # fmt: skip
    yield Entry(
        "a graph of one no-op task", 20, lambda _: overhead.no_op_graph, "µs/block", at_most=True
    )
    yield Entry(
        "classic chain, Eiger-1M uint16, against plain numpy", 6,
        lambda folder: processing.Classic(folder).against_numpy(),
    )  # fmt: skip
    yield Entry(
        "classic chain, against one kernel written by hand", 0.8,
        lambda folder: processing.Classic(folder).against_hand(),
    )  # fmt: skip
    for shape in ((512, 512), processing.EIGER_1M):
        yield Entry(
            f"sum and ring mask, {shape[0]}×{shape[1]} uint16, against LiberTEM", 2,
            lambda folder, shape=shape: peers.against_libertem(folder, shape),
        )  # fmt: skip
    for photons, goal in ((10.0, 3.0), (0.1, 4.5)):
        yield Entry(
            f"azimuthal integration, {photons:g} photons/pixel, against pyFAI", goal,
            lambda folder, photons=photons: azimuthal.against_pyfai(folder, photons),
        )  # fmt: skip
    yield Entry(
        "sparsify, 0.1 photons/pixel, against reading memory", 0.35,
        lambda _: processing.sparsify_against_reading(),
    )  # fmt: skip
    yield Entry(
        "2×2 bin, uint16 to uint32, against reading memory", 0.6,
        lambda _: processing.bin_against_reading(),
    )  # fmt: skip
    yield Entry(
        "two processing nodes, against one", 1.7,
        lambda folder: scaling.two_nodes_against_one(folder, 2 * frames), few=True,
    )  # fmt: skip
    yield Entry(
        "model: the predicted rate of two processing nodes, off by", 33, model.rate_error, "%",
        at_most=True, few=True,
    )  # fmt: skip
    yield from saving_entries(frames)
    for nodes in (0, 1):
        yield Entry(
            f"prepare of a graph seen before, {nodes or 'no'} processing node", 50,
            lambda folder, nodes=nodes: scaling.prepare_again(folder, nodes), "ms", at_most=True,
            few=True,
        )  # fmt: skip
    yield Entry("first prepare ever", 5, scaling.first_prepare, "s", at_most=True, few=True)


def saving_entries(frames: int) -> Iterator[Entry]:
    """What is measured of saving."""
    for name, shape in (("1M", processing.EIGER_1M), ("4M", saving.EIGER_4M)):
        yield Entry(
            f"saving {name} uint16 uncompressed, against pwrite of the bytes", 0.9,
            lambda folder, shape=shape: saving.uncompressed_against_pwrite(folder, shape, 100),
        )  # fmt: skip
        yield Entry(
            f"saving {name} uint16 with bslz4, against the compressor", 0.9,
            lambda folder, shape=shape: saving.compressed_against_codec(folder, shape, 100),
        )  # fmt: skip
    yield Entry(
        "flushing while saving with bslz4", 5,
        lambda folder: saving.cost_of_flushing(folder, 150), "%", at_most=True,
    )  # fmt: skip
    for compression in ("none", "bslz4"):
        yield Entry(
            f"saving 100 000 frames of 64×64, {compression}", 50_000,
            lambda folder, name=compression: saving.small_frames(folder, 100_000, name),
            "frames/s",
        )  # fmt: skip
    yield Entry(
        "saving 1M uint16 with bslz4, two processes against one", 1.7,
        lambda folder: saving.two_writers_against_one(folder, frames), few=True,
    )  # fmt: skip
    yield Entry(
        "opening a master of 100 000 frames", 5,
        lambda folder: saving.open_master(folder, 100_000), "ms", at_most=True,
    )  # fmt: skip


def measured(entry: Entry, times: int) -> Case | None:
    """Measure one entry; None if it needs a package that is not installed."""
    with TemporaryDirectory() as folder:
        try:
            measure = entry.build(Path(folder))
        except ModuleNotFoundError as error:
            print(f"{entry.name}  skipped: {error.name} is not installed")
            return None
        if entry.few:
            times = min(times, 3)
        return median_case(entry.name, measure, times, entry.goal, entry.unit, entry.at_most)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, fewer frames")
    parser.add_argument("--only", default="", help="only those with this text in their name")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    told = parser.parse_args()
    chosen = [entry for entry in entries(told.quick) if told.only in entry.name]
    width = max((len(entry.name) for entry in chosen), default=0)
    cases = []
    for entry in chosen:
        case = measured(entry, 3 if told.quick else 9)
        if case is None:
            continue
        cases.append(case)
        sign = "≤" if case.at_most else "≥"
        verdict = "ok" if case.met else "short"
        print(f"{case.name.ljust(width)}  {case.measured:12.3f} ± {case.spread:.3f} {case.unit}"
              f"   goal {sign} {case.goal:g}  {verdict}", flush=True)  # fmt: skip
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    if told.json:
        report = {"machine": machine(), "cases": [asdict(case) for case in cases]}
        told.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
