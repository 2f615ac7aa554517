"""Many trials, each in a process of its own, and what came of them all: `make chaos`.

    CHAOS_RUNS=200       so many trials, with the seeds from CHAOS_FIRST (0) on
    CHAOS_SEEDS=17,42    these trials, instead
    CHAOS_JOBS=2         so many at a time

A trial that hangs says where every thread of it stands, in the nodes too. The status is 1 if
anything was wrong.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from statistics import median

import psutil

from tests.chaos.faults import LIMIT
from tests.chaos.trial import Result, Trial, carry_out

DEADLINE = 2.5 * LIMIT
"""Seconds for a whole trial; then it hangs."""


def main() -> int:
    """Carry out the trials asked for; 1 if anything was wrong."""
    given = os.environ.get("CHAOS_SEEDS", "")
    first = int(os.environ.get("CHAOS_FIRST", "0"))
    seeds = [int(seed) for seed in given.split(",") if seed] or range(
        first, first + int(os.environ.get("CHAOS_RUNS", "200"))
    )
    results = []
    began = time.monotonic()
    with ThreadPoolExecutor(int(os.environ.get("CHAOS_JOBS", "2"))) as pool:
        for result in pool.map(apart, seeds):
            results.append(result)
            what = " ".join(result.done) or "nothing"
            print(f"seed {result.seed}: {what}: {result.outcome}, {result.seconds:.1f} s")
            for problem in result.problems:
                print(f"    WRONG: {problem}", flush=True)
    print(summary(results, time.monotonic() - began))
    return any(result.problems for result in results)


def apart(seed: int) -> Result:
    """A trial in a process of its own, in an empty folder."""
    with tempfile.TemporaryDirectory(prefix=f"chaos-{seed}-", dir="/tmp") as made:
        folder, sockets = Path(made) / "files", Path(made) / "sockets"
        folder.mkdir()
        sockets.mkdir()
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos", str(seed), str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "XDG_RUNTIME_DIR": str(sockets), "PYTHONFAULTHANDLER": "1"},
        )
        try:
            said, _ = process.communicate(timeout=DEADLINE)
        except subprocess.TimeoutExpired:
            return Result(seed, [f"HANG\n{_where(process, sockets)}"], outcome="hang")
        try:
            return Result(**json.loads(said.splitlines()[-1]))
        except (IndexError, ValueError):
            return Result(seed, [f"status {process.returncode}\n{said}"], outcome="broken")


def alone(seed: int, folder: Path) -> Result:
    """A trial in this process, after which nothing of it may be left."""
    from tests.conftest import Scene, whatever_is_left

    before = Scene()
    try:
        result = carry_out(Trial.of(seed), folder)
    except Exception as error:  # the others go on
        result = Result(seed, [f"{type(error).__name__}: {error}"], outcome="broken")
    result.problems += whatever_is_left(before)
    return result


def _where(process: subprocess.Popen[str], sockets: Path) -> str:
    """Where the threads of a process that hangs stand, and those of its nodes; ends them all."""
    nodes = psutil.Process(process.pid).children(recursive=True)
    for one in [*nodes, psutil.Process(process.pid)]:
        one.send_signal(signal.SIGCONT)
        one.send_signal(signal.SIGABRT)  # faulthandler says where
    _, alive = psutil.wait_procs(nodes, 10)
    for one in alive:
        one.kill()
    logs = [f"{path.name}:\n{path.read_text()}" for path in sockets.glob("lima2py-*/*.log")]
    said, _ = process.communicate()
    return "\n".join([said, *logs])


def summary(results: list[Result], seconds: float) -> str:
    """Of all trials, as a table for a person."""
    wrong = [result.seed for result in results if result.problems]
    texts = [problem for result in results for problem in result.problems]
    lost = Counter[str]()
    for result in results:
        lost.update(result.absent)
    recovered: dict[str, list[float]] = {}
    for result in results:
        for kind, took in result.recovered:
            recovered.setdefault(kind, []).append(took)
    lines = [
        f"{len(results)} runs of {sum(result.asked for result in results)} frames"
        f" in {seconds:.0f} s",
        f"faults: {_counted(kind for result in results for kind in result.done)}",
        f"outcomes: {_counted(result.outcome for result in results)}",
        "absent: " + (", ".join(f"{cause} {n}" for cause, n in sorted(lost.items())) or "none"),
        f"without a cause or wrong: {len(wrong)} runs {wrong or ''}",
        f"hangs: {sum(result.outcome == 'hang' for result in results)}",
        f"leaks: {sum(text.startswith('left behind') for text in texts)}",
        f"recovery: {_took(recovered)}",
    ]
    if skipped := {text for result in results for text in result.skipped}:
        lines.append(f"not tried on this host: {'; '.join(sorted(skipped))}")
    return "\n".join(lines)


def _counted(words: Iterable[str]) -> str:
    return ", ".join(f"{word} {number}" for word, number in Counter(words).most_common())


def _took(recovered: dict[str, list[float]]) -> str:
    """Seconds until all that had been in flight when it happened was safe."""
    return "; ".join(
        f"{kind} {median(times):.2f} s, at most {max(times):.2f} s ({len(times)})"
        for kind, times in sorted(recovered.items())
    )


if __name__ == "__main__":
    if len(sys.argv) == 3:
        faulthandler.enable()
        print(json.dumps(asdict(alone(int(sys.argv[1]), Path(sys.argv[2])))))
    else:
        sys.exit(main())
