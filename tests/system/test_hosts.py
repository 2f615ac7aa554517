"""Nodes that somebody else started, reached over the network, as if on hosts of their own."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from lima2py.errors import NodeError
from lima2py.session.session import Session
from lima2py.session.system import System
from tests.system.rig import LIMA2PY, Command, assert_verifiable, check_account

Start = Callable[..., str]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Start]:
    """Start `lima2py node KIND NAME`; its address."""
    started: list[subprocess.Popen[str]] = []

    def start(kind: str, name: str, *more: str) -> str:
        process = subprocess.Popen(
            [LIMA2PY, "node", kind, name, "--listen", "tcp://127.0.0.1:*", *more],
            stdout=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
        )
        started.append(process)
        assert process.stdout is not None
        return process.stdout.readline().split()[-1]

    yield start
    for process in started:
        process.terminate()
    for process in started:
        assert process.wait(15) == 0
        assert process.stdout is not None
        process.stdout.close()


def system_of(encoding: str = "none", **nodes: list[dict[str, Any]]) -> System:
    detector = {"pattern": "verifiable", "shape": [128, 96], "encoding": encoding}
    values = {"system": "hosts", "detector": "simulator", "set": detector, **nodes}
    return System.load(values, "test")


@pytest.mark.parametrize("isolated", [True, False], ids=["other hosts", "this host"])
def test_frames_reach_nodes_that_run_elsewhere(tmp_path: Path, node: Start, isolated: bool) -> None:
    more = ["--isolated"] if isolated else []
    system = system_of(
        acquisition=[
            {"node": "acq0", "address": node("acquisition", "acq0", *more)},
            {"node": "acq1", "address": node("acquisition", "acq1", *more)},
        ],
        processing=[
            {"node": "proc0", "address": node("processing", "proc0", *more)},
            {"node": "proc1", "address": node("processing", "proc1", *more)},
        ],
    )
    for number in range(2):  # the nodes outlive a session
        with Session.open(system) as session:
            session.prepare(
                graph="save_raw", output=tmp_path, name=f"n{number}", nb_frames=3000, expo_time=1e-6
            )
            session.start()
            report = session.wait(60)
        assert report.ok, report
        assert report.saved == 3000
        check_account(report.plain())
        assert_verifiable(report.masters["raw"], (128, 96))


def test_nodes_here_and_elsewhere_work_together(tmp_path: Path, node: Start) -> None:
    system = system_of(
        acquisition=[{"node": "acq0", "host": "127.0.0.1"}],
        processing=[
            {"node": "proc0", "host": "127.0.0.1"},
            {"node": "proc1", "address": node("processing", "proc1", "--isolated")},
        ],
    )
    with Session.open(system) as session:
        session.prepare(graph="save_raw", output=tmp_path, nb_frames=2000, expo_time=1e-6)
        session.start()
        report = session.wait(60)
    assert report.saved == 2000
    assert_verifiable(report.masters["raw"], (128, 96))


def test_compressed_frames_reach_a_node_on_another_host(tmp_path: Path, node: Start) -> None:
    system = system_of(
        "bslz4",
        acquisition=[{"node": "acq0", "host": "127.0.0.1"}],
        processing=[{"node": "proc0", "address": node("processing", "proc0", "--isolated")}],
    )
    graph = tmp_path / "kept.yaml"
    graph.write_text("tasks: {raw: {do: save_raw, from: detector}}")
    with Session.open(system) as session:
        session.prepare(graph=graph, output=tmp_path, nb_frames=1000, expo_time=1e-6)
        session.start()
        report = session.wait(60)
    assert report.saved == 1000
    assert_verifiable(report.masters["raw"], (128, 96))


def test_a_node_that_falls_silent_between_two_runs_is_named_and_may_come_back(
    tmp_path: Path, node: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lima2py.session.launch.MEETING_TIMEOUT", 0.5)
    system = system_of(processing=[{"node": "proc0", "address": node("processing", "proc0")}],
                       acquisition=[{"node": "acq0"}])  # fmt: skip
    (elsewhere,) = (one for one in psutil.Process().children() if "proc0" in one.cmdline())
    with Session.open(system) as session:
        session.prepare(nb_frames=10, graph="save_raw", output=tmp_path, name="one")
        elsewhere.suspend()
        try:
            with pytest.raises(NodeError, match=r"proc0 .* did not answer .*; start it on its"):
                session.prepare(nb_frames=10, graph="save_raw", output=tmp_path, name="two")
        finally:
            elsewhere.resume()
        session.prepare(nb_frames=10, expo_time=1e-4, graph="save_raw", output=tmp_path, name="two")
        session.start()
        assert session.wait(30).saved == 10


def test_a_node_of_the_wrong_kind_is_refused_by_name(tmp_path: Path, node: Start) -> None:
    address = node("processing", "acq0")
    system = system_of(acquisition=[{"node": "acq0", "address": address}],
                       processing=[{"node": "proc0"}])  # fmt: skip
    with (
        Session.open(system) as session,
        pytest.raises(NodeError, match=f"acq0 at {address} is a processing node, not a"),
    ):
        session.prepare(graph="save_raw", output=tmp_path)


def test_a_node_that_is_not_there_is_an_error_with_its_address(
    tmp_path: Path, command: Callable[..., Command]
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    (tmp_path / "system.yaml").write_text(
        "system: s\ndetector: simulator\nacquisition: [{node: acq0}]\n"
        f'processing: [{{node: proc7, address: "{address}"}}]\n'
    )
    status, out, err = command("run", "save_raw", "--system", "system.yaml", "--json").finish()
    assert status == 2
    assert out == ""
    assert f"proc7 at {address} did not answer" in err
    assert "lima2py node processing proc7" in err
