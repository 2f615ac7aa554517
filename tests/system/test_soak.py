"""Whatever goes on for long takes no more and more: memory, handles, threads, shared memory.

A small part by itself; `make soak` does 5 000 runs in one session, a run of 5 million frames, and
1 000 runs of which every tenth is aborted and every tenth loses a node.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest

from lima2py.node.life import State
from lima2py.session.launch import Child
from lima2py.session.session import Session
from tests.chaos.audit import Taken, audit
from tests.system.rig import wait_until

RUNS = int(os.environ.get("SOAK_RUNS", "24"))
FRAMES = int(os.environ.get("SOAK_FRAMES", "200000"))
DISTURBED = int(os.environ.get("SOAK_DISTURBED", "10"))
SHAPE = (16, 16)
DETECTOR = {"pattern": "verifiable", "shape": SHAPE}
GRAPH = """
tasks:
  raw: {do: save_dense, from: detector}
  live: {do: tap, from: detector, every: 10}
  spot: {do: roi_counters, from: detector, rois: {spot: [0, 0, 8, 8]}}
  numbers: {do: save_table, from: spot}
"""
NOISE = 3 * 2**20
"""Bytes by which memory may wander without growing."""
PER_RUN = 5 * 2**10
"""Bytes that a session remembers of a run, at most."""
PER_FRAME = 64
"""Bytes of the ledger for a frame, at most."""

pytestmark = pytest.mark.timeout(120 + RUNS + FRAMES // 5000 + 2 * DISTURBED)


class Look:
    """What a process holds, now.

    Args:
        pid: of the process.
        shelf: the bytes that it keeps, on purpose, of what passes.
    """

    def __init__(self, pid: int, shelf: int = 0):
        process = psutil.Process(pid)
        status = Path(f"/proc/{pid}/status").read_text().split("\n")
        sizes = {line.split(":")[0]: line.split()[1] for line in status if line.endswith(" kB")}
        self.rss = process.memory_info().rss - shelf
        self.private = 1024 * int(sizes["RssAnon"]) - shelf  # without the ring
        self.handles, self.threads = process.num_fds(), process.num_threads()
        maps = Path(f"/proc/{pid}/maps").read_text()
        self.shared = maps.count("memfd:lima2py")


def looked_at(session: Session) -> dict[str, Look]:
    """The session and its nodes."""
    found = {"session": Look(os.getpid())}
    told = session.progress().nodes
    for node in [*session.nodes.acquisition, *session.nodes.processing]:
        assert isinstance(node, Child)
        shelf = told[node.name]["holdings"]["shelf"]["used"] if node.name in told else 0
        found[node.name] = Look(node.pid, shelf)
    return found


def growth(values: Sequence[float]) -> float:
    """By how much values grow from one to the next, by a straight line through them."""
    return float(np.polyfit(np.arange(len(values)), values, 1)[0])


def is_past(session: Session, frames: int) -> bool:
    """Whether so many frames are done, or all that will be."""
    progress = session.progress()
    return progress.settled >= frames or progress.state in (State.IDLE, State.FAULT)


def run(session: Session, folder: Path, frames: int, period: float = 1e-6) -> None:
    session.prepare(graph=folder / "graph.yaml", output=folder / "out", nb_frames=frames,
                    expo_time=period)  # fmt: skip
    session.start()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "graph.yaml").write_text(GRAPH)
    return tmp_path


def test_many_runs_in_one_session_take_no_more_than_the_first_ones(folder: Path) -> None:
    every = max(1, RUNS // 100)
    looks: list[dict[str, Look]] = []
    with Session.open(processing_nodes=2, detector=DETECTOR) as session:
        for number in range(RUNS):
            run(session, folder, 20)
            report = session.wait(60)
            assert report.saved == 20, report
            shutil.rmtree(folder / "out")
            if number >= RUNS // 3 and number % every == 0:
                looks.append(looked_at(session))
    for node in looks[0]:
        mine = [look[node] for look in looks]
        for what in ("rss", "private"):
            sizes = [getattr(look, what) for look in mine]
            slope = growth(sizes) / every
            told = f"{node}, {what}: {slope:.0f} bytes a run, {max(sizes) / 2**20:.1f} MiB"
            print(told)
            assert slope * RUNS < NOISE + PER_RUN * RUNS, told
        for what in ("handles", "threads", "shared"):
            counts = [getattr(look, what) for look in mine]
            assert min(counts[-3:]) <= max(counts[:3]), f"{node}, {what}: {counts}"


def test_a_long_run_takes_its_ledger_and_no_more(folder: Path) -> None:
    looks: list[tuple[int, dict[str, Look]]] = []
    with Session.open(processing_nodes=2, detector=DETECTOR) as session:
        run(session, folder, FRAMES)
        step = FRAMES // 20
        for passed in range(4 * step, FRAMES - step, step):
            wait_until(partial(is_past, session, passed), f"frame {passed}", 600)
            looks.append((session.progress().settled, looked_at(session)))
        report = session.wait(600)
        assert report.saved == FRAMES, report
    shutil.rmtree(folder / "out")
    for node in looks[0][1]:
        frames = [settled for settled, _ in looks]
        sizes = [look[node].private for _, look in looks]
        slope = float(np.polyfit(frames, sizes, 1)[0])
        told = f"{node}, private: {slope:.1f} bytes a frame, {max(sizes) / 2**20:.1f} MiB"
        print(told)
        assert slope * FRAMES < 4 * NOISE + PER_FRAME * FRAMES * (node == "acq0"), told
        for what in ("handles", "threads", "shared"):
            counts = [getattr(look[node], what) for _, look in looks]
            assert min(counts[-3:]) <= max(counts[:3]), f"{node}, {what}: {counts}"


def test_runs_that_are_aborted_or_lose_a_node_leave_nothing(folder: Path) -> None:
    with Session.open(processing_nodes=2, detector=DETECTOR) as session:
        run(session, folder, 20)
        session.wait(60)
        before = looked_at(session)
        for number in range(DISTURBED):
            shutil.rmtree(folder / "out")
            run(session, folder, 400, 1e-4)
            causes = frozenset[str]()
            if number % 10 == 3:
                wait_until(lambda: session.progress().settled, "frames")
                session.abort()
                causes = frozenset({"aborted"})
            if number % 10 == 7:
                wait_until(lambda: session.progress().settled, "frames")
                victim = session.nodes.processing[number % 2]
                assert isinstance(victim, Child)
                victim.kill()
            report = session.wait(60)
            assert causes or report.saved == 400, report
            lost = frozenset(range(1000)) if number % 10 == 7 else frozenset[int]()
            assert audit(report, Taken(SHAPE), folder / "out", causes, lost) == []
        shutil.rmtree(folder / "out")
        run(session, folder, 20)
        assert session.wait(60).ok
        after = looked_at(session)
    for node in ("session", "acq0"):
        for what in ("handles", "threads", "shared"):
            then, now = getattr(before[node], what), getattr(after[node], what)
            assert now <= then, f"{node}, {what}: {then}, then {now}"
