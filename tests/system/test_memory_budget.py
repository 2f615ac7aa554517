"""All nodes of a host stay within its memory budget, whatever does not move."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
import zmq

from lima2py.errors import LimaError
from lima2py.session.launch import Child, Remote
from lima2py.session.run import SessionRun
from lima2py.session.session import Session
from lima2py.session.system import System
from lima2py.transport.wire import seal
from tests.system.rig import check_account, wait_until

MIB = 2**20
BUDGET = 400 * MIB
GRAPH = """
graph: held
tasks:
  held: {do: python, from: detector, file: held.py, call: held, with: {flag: FLAG}}
  live: {do: tap, from: detector, history: 40}
  raw: {do: save_dense, from: held}
"""
HELD = """
import os
import time

def held(frame, flag):
    until = time.monotonic() + 0.2
    while os.path.exists(flag) and time.monotonic() < until:
        time.sleep(0.01)
    return frame
"""


def pss(pid: int) -> int:
    """Bytes of a process in memory; of what n processes have, an n-th."""
    try:
        found = re.search(r"^Pss: +(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)
    except (FileNotFoundError, ProcessLookupError):
        return 0  # it has just ended
    return int(found[1]) * 1024 if found else 0


class Scales:
    """Weighs all nodes again and again, from a thread.

    Attributes:
        peak: the most they had together, in bytes.
        then: what each of them had at that moment, by process id.
    """

    def __init__(self) -> None:
        self.peak = 0
        self.then: dict[int, int] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._weigh)
        self._thread.start()

    def _weigh(self) -> None:
        while not self._over.wait(0.05):
            nodes = {child.pid: pss(child.pid) for child in psutil.Process().children()}
            if sum(nodes.values()) > self.peak:
                self.peak, self.then = sum(nodes.values()), nodes

    def close(self) -> None:
        self._over.set()
        self._thread.join()


@pytest.fixture
def scales() -> Iterator[Scales]:
    made = Scales()
    yield made
    made.close()


@pytest.fixture
def flag(tmp_path: Path) -> Path:
    """While this file is there, hardly a frame passes the graph."""
    return tmp_path / "flag"


@pytest.fixture
def graph(tmp_path: Path, flag: Path) -> Path:
    (tmp_path / "held.py").write_text(HELD)
    path = tmp_path / "held.yaml"
    path.write_text(GRAPH.replace("FLAG", str(flag)))
    return path


def session_of(nodes: int) -> Session:
    told = {
        "system": "small",
        "detector": "simulator",
        "set": {"shape": [1024, 1024]},
        "memory": {"budget": BUDGET},
        "acquisition": [{"node": "acq0"}],
        "processing": [{"node": f"proc{rank}"} for rank in range(nodes)],
    }
    return Session.open(System.load(told, "test"))


@pytest.fixture
def two() -> Iterator[Session]:
    with session_of(2) as session:
        yield session


@pytest.fixture
def one() -> Iterator[Session]:
    with session_of(1) as session:
        yield session


def begin(lima: Session, graph: Path, name: str, **asked: Any) -> SessionRun:
    lima.prepare(
        graph=graph, output=graph.parent / "out", name=name, policies={"overload": "drop"}, **asked
    )
    return lima.start()


@contextmanager
def greedy(lima: Session, run: str) -> Iterator[None]:
    """Somebody who asks every processing node for the frames of a tap, and reads nothing."""
    with ExitStack() as closing:
        context = closing.enter_context(zmq.Context())
        for handle in lima.nodes.processing:
            assert isinstance(handle, Remote)
            socket = closing.enter_context(context.socket(zmq.DEALER))
            socket.linger = 0
            socket.rcvhwm = 1
            socket.connect(handle._caller.address)
            parameters = {"run": run, "task": "live", "after": -1}
            for number in range(30):
                socket.send(seal(msgspec.msgpack.encode([number, "tap", parameters])))
        yield


def test_nodes_stay_within_the_budget_while_a_sink_a_reader_and_a_node_do_not_move(
    two: Session, graph: Path, flag: Path, scales: Scales
) -> None:
    def more_overruns(why: str) -> None:
        so_far = two.progress().counts.get("overrun", 0)
        wait_until(lambda: two.progress().counts.get("overrun", 0) > so_far + 100, why, 60)

    begin(two, graph, "first", nb_frames=20, expo_time=0.002).wait(60)  # it is careful
    run = begin(two, graph, "stalled", nb_frames=0, expo_time=0.002)
    assert "memory budget of 400 MiB on a host" in run.plan
    assert "asked)" in run.plan  # not all that was wanted could be granted
    wait_until(lambda: two.progress().settled > 100, "frames")
    flag.touch()
    more_overruns("a ring that is full")
    with greedy(two, run.id):
        more_overruns("more frames without room")
    victim = two.nodes.processing[0]
    assert isinstance(victim, Child)
    os.kill(victim.pid, signal.SIGSTOP)
    more_overruns("still more frames without room")
    with suppress(ProcessLookupError):  # on a busy host it may have been replaced
        os.kill(victim.pid, signal.SIGCONT)
    flag.unlink()
    settled = two.progress().settled
    wait_until(lambda: two.progress().settled > settled + 100, "frames again", 60)
    metrics = two.metrics()
    two.stop()
    report = two.wait(60)
    check_account(report.plain())
    assert report.absent["overrun"] > 300
    assert scales.peak <= 1.05 * BUDGET, scales.then
    held = report.holdings
    assert held["acq0"]["ring"]["peak"] <= held["acq0"]["ring"]["granted"]
    assert held["acq0"]["ring"]["used"] > 0.7 * held["acq0"]["ring"]["granted"]  # and it was used
    for node in ("proc0", "proc1"):
        assert held[node]["shelf"]["peak"] <= held[node]["shelf"]["granted"]
    assert 'lima2py_memory_granted_bytes{holder="ring",node="acq0"}' in metrics
    assert 'lima2py_memory_used_bytes{holder="shelf",node="proc1"}' in metrics


def test_runs_in_flight_share_the_budget_and_what_does_not_fit_is_refused_with_numbers(
    one: Session, graph: Path, scales: Scales
) -> None:
    asked = {"nb_frames": 4, "expo_time": 0.001, "processing": "when_told"}
    runs: list[SessionRun] = []
    said = ""
    while not said and len(runs) < 10:
        try:
            run = begin(one, graph, f"run{len(runs)}", **asked)
        except LimaError as error:
            said = str(error)
        else:
            runs.append(run)
            one.wait_acquired(30)
    assert re.search(
        r"MiB are held by runs that are|budget of 400 MiB is too small: .* ring \d+.* MiB", said
    ), said
    assert len(runs) >= 2, said
    for run in runs:
        run.process()
    for run in runs:
        assert run.wait(60).saved == 4
    again = begin(one, graph, "again", nb_frames=8, expo_time=0.001).wait(60)
    assert again.saved == 8
    assert scales.peak <= 1.05 * BUDGET, scales.then


def test_a_budget_that_is_too_small_is_refused_with_what_takes_how_much(graph: Path) -> None:
    told = {"system": "one", "detector": "simulator", "memory": {"budget": "64 MiB"}}
    with Session.open(System.load(told, "test")) as lima:
        said = (
            r"memory budget of 64 MiB is too small: at least .* needed, local: process \d.* [MG]iB"
        )
        with pytest.raises(LimaError, match=said):
            lima.prepare(graph=graph, output=graph.parent, nb_frames=10)
