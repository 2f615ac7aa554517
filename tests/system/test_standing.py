"""A system that is up: its nodes outlive every session, and only one session commands them."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import msgspec
import psutil
import pytest

from lima2py.control.cli import main
from lima2py.errors import BadCommand, BadParameter, NodeError
from lima2py.node.life import State
from lima2py.node.standing import Card, Nest, Process
from lima2py.session.session import Session
from lima2py.session.standing import Standing
from lima2py.session.system import System
from lima2py.transport.keys import make_keys
from tests.system.rig import (
    LIMA2PY,
    Command,
    assert_verifiable,
    check_account,
    frames_saved,
    wait_until,
)

SYSTEM = """
system: up
detector: simulator
set: {pattern: verifiable, shape: [128, 96]}
acquisition: [{node: acq0}]
processing: [{node: proc0}, {node: proc1}]
"""
GRAPH = """
tasks:
  raw: {do: save_dense, from: detector}
  live: {do: tap, from: detector, every: 1, history: 1000}
"""


def lima2py(*arguments: object, status: int = 0) -> str:
    """What a command says, on both outputs; in this process, which has imported everything."""
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said), redirect_stderr(said):
        patch.setattr(sys, "argv", ["lima2py", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
    assert (ended.value.code or 0) == status, said.getvalue()
    return said.getvalue()


def pids(system: Path) -> dict[str, int]:
    cards = Standing(System.read(system)).living()
    return {name: card.process.pid for name, card in cards.items()}


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """An empty folder for the systems that are up; nothing of them is left at the end."""
    folder = Path(tempfile.mkdtemp(prefix="l2s-", dir="/tmp"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def up(home: Path) -> Iterator[Path]:
    """The file of a system that is up."""
    file = home / "up.yaml"
    file.write_text(SYSTEM)
    (home / "kept.yaml").write_text(GRAPH)
    said = lima2py("up", file)
    assert said.count("started") == 3
    yield file
    lima2py("down", "--now", file)


def test_up_starts_only_what_is_missing_and_status_says_what_is(up: Path) -> None:
    before = pids(up)
    assert lima2py("up", up).count("was up already") == 3
    assert lima2py("status", up).count(": up\n") == 3
    os.kill(before["proc1"], signal.SIGKILL)
    wait_until(lambda: "proc1" not in pids(up), "the end of proc1")
    assert "proc1 (process" in (said := lima2py("status", up, status=1)), said
    assert "was killed" in said
    assert "node proc1 on this host" in lima2py("up", up)
    after = pids(up)
    assert {**before, "proc1": after["proc1"]} == after
    assert after["proc1"] != before["proc1"]


def test_a_run_goes_on_when_its_command_is_killed_and_a_session_takes_it_up(
    up: Path, tmp_path: Path, command: Callable[..., Command]
) -> None:
    run = command("run", up.parent / "kept.yaml", "--system", up, "--nb-frames", 150,
                  "--expo-time", 0.02, "--name", "scan")  # fmt: skip
    wait_until(lambda: frames_saved(tmp_path) > 0, "the first frame")
    run.process.kill()
    run.finish()
    with Session.open(up) as session:
        assert session.state is State.RUNNING
        assert session.runs[session.run].name == "scan"
        seen = [frame.index for frame in session.tap("live", timeout=20)]
        assert seen, "no frame passed the tap"
        report = session.wait(30)
        assert [event.kind.value for event in session.events()][-1] == "ended"
    assert (report.outcome, report.asked, report.saved) == ("completed", 150, 150)
    assert_verifiable(report.masters["raw"], (128, 96))
    told = json.loads(lima2py("attach", up, "--json"))
    check_account(told)
    assert told["run"] == report.run


def test_reports_of_runs_that_are_long_over_are_kept(up: Path, tmp_path: Path) -> None:
    with Session.open(up) as session:
        for number in range(4):
            session.prepare(
                graph="save_raw", nb_frames=10, expo_time=1e-3, output=tmp_path, name=f"n{number}"
            )
            session.start()
            assert session.wait(20).ok
    with Session.open(up) as session:
        reports = [run.wait(10) for run in session.runs.values()]
        names = [report.name for report in reports]
        assert names[-4:] == ["n0", "n1", "n2", "n3"]
        assert all(report.ok and not report.errors for report in reports[-4:]), reports
        with pytest.MonkeyPatch.context() as killed:
            killed.setattr(
                "lima2py.session.fleet.remember", lambda *_: None
            )  # before it came to it
            session.prepare(nb_frames=10, output=tmp_path, name="again")  # with the last graph
    with Session.open(up) as session:
        session.prepare(graph="save_raw", nb_frames=10, output=tmp_path, name="next")
        for node in session.nodes.processing:
            left = [run["run"] for run in node.look("runs") if run["state"] == "prepared"]
            assert left == [session.run]
    assert not [*tmp_path.glob("again*")]


def test_one_session_commands_and_others_look_until_they_take_over(
    up: Path, tmp_path: Path
) -> None:
    with Session.open(up) as first, Session.open(up) as idle:
        first.prepare(graph="save_raw", nb_frames=0, expo_time=1e-2, output=tmp_path, name="mine")
        first.start()
        assert (idle.state, idle.runs[first.run].name) == (State.RUNNING, "mine")
        assert "commanded by " in (said := lima2py("status", up))
        assert "run mine (" in said
        with pytest.raises(BadCommand, match=r"commands this system, since .* take over now"):
            idle.prepare(graph="save_raw", nb_frames=10, output=tmp_path, name="yours")
        with Session.open(up, take_over=True) as second:
            assert second.state is State.RUNNING
            second.stop()
            with pytest.raises(BadCommand, match="taken over"):
                first.abort()
            report = second.wait(20)
            assert report.ok, report  # an endless run
        assert first.wait(20).saved == report.saved  # looking needs no right


def test_a_writer_that_was_frozen_cannot_fight_when_it_comes_back(up: Path, tmp_path: Path) -> None:
    script = (
        "import sys\nfrom lima2py import Session\n"
        "with Session.open(sys.argv[1]) as lima:\n"
        "    lima.prepare(graph='save_raw', nb_frames=0, expo_time=1e-2, name='old')\n"
        "    lima.start()\n"
        "    print('going', flush=True)\n"
        "    sys.stdin.readline()\n"
        "    try:\n"
        "        lima.abort()\n"
        "    except Exception as error:\n"
        "        print(error)\n"
    )
    old = subprocess.Popen(
        [sys.executable, "-c", script, str(up)], cwd=tmp_path,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert old.stdout is not None
    assert old.stdout.readline() == "going\n"
    frozen = psutil.Process(old.pid)
    frozen.suspend()
    with Session.open(up, take_over=True) as session:
        session.pause()
        frozen.resume()
        said, _ = old.communicate("\n", timeout=30)
        assert "taken over" in said
        assert session.progress().state is not State.STOPPING
        session.resume()
        session.stop()
        assert session.wait(20).ok


def test_a_node_that_is_lost_in_a_run_is_started_again_and_stays(up: Path, tmp_path: Path) -> None:
    before = pids(up)
    with Session.open(up) as session:
        session.prepare(
            graph="save_raw", nb_frames=0, expo_time=5e-3, output=tmp_path, name="lossy"
        )
        run = session.start()
        wait_until(lambda: session.progress().settled > 5, "some frames")
        with Session.open(up) as onlooker:  # who restarts nothing
            os.kill(before["proc0"], signal.SIGKILL)
            for event in run.events(timeout=30):
                if event.kind.value == "node_restarted":
                    break
            seen = onlooker.events(timeout=30)
            assert next(event for event in seen if event.kind.value == "node_lost").node == "proc0"
        with Session.open(up) as other:  # the lost membership is not taken for the new node
            assert other.state is State.RUNNING
            session.stop()
            report = session.wait(30)
            assert other.wait(30).saved == report.saved == report.asked
    assert_verifiable(report.masters["raw"], (128, 96))
    after = pids(up)
    assert after["proc0"] != before["proc0"]
    assert {**before, "proc0": 0} == {**after, "proc0": 0}
    with Session.open(up) as session:
        assert session.wait(10).saved == report.saved


def test_a_file_that_says_other_nodes_than_are_up_is_refused(up: Path) -> None:
    try:
        up.write_text(SYSTEM.replace(", {node: proc1}", ""))
        with pytest.raises(BadParameter, match=r"proc1 is up, and not in the file.*lima2py down"):
            Session.open(up)
        up.write_text(SYSTEM.replace("{node: proc1}", "{node: proc1, host: gpu.invalid}"))
        assert "node proc1 is up with host none, and the file says gpu" in lima2py(
            "up", up, status=2
        )
    finally:
        up.write_text(SYSTEM)


def test_down_waits_for_runs_unless_it_must_be_now_and_not_for_a_node_that_hangs(
    up: Path, tmp_path: Path
) -> None:
    with Session.open(up) as session:
        session.prepare(graph="save_raw", nb_frames=0, expo_time=1e-2, output=tmp_path, name="long")
        session.start()
    assert f"run {session.run[:8]} is still going on" in lima2py("down", up, status=2)
    there = pids(up)
    assert len(there) == 3
    with Session.open(up) as onlooker:
        wait_until(lambda: onlooker.progress().settled > 5, "some frames")
        os.kill(there["proc1"], signal.SIGSTOP)
        said = lima2py("down", "--now", up)
        assert said.startswith("ended: acq0, proc0\nkilled, since they hung: proc1"), said
        with pytest.raises(BadCommand, match=r"was ended \(lima2py down\); start it again"):
            onlooker.prepare(graph="save_raw", nb_frames=1, output=tmp_path, name="late")
    assert pids(up) == {}
    nest = Nest("up").path
    assert {path.name for path in nest.iterdir()} == {"lock", "acq0.log", "proc0.log", "proc1.log"}
    assert {path.name for path in tmp_path.glob("*.part")} <= {"long_1_00000.h5.part"}  # of proc1
    assert "lima2py up" in lima2py("attach", up, status=2)


def test_cards_of_nodes_that_are_no_more_count_for_nothing(home: Path) -> None:
    file = home / "stale.yaml"
    file.write_text(SYSTEM.replace("system: up", "system: stale"))
    nest = Nest("stale")
    nest.make()
    for stale in ({"began": 1}, {"identity": "another boot"}, {"pid": 2**22 + 1}):
        process = msgspec.structs.replace(Process.this(), **stale)
        nest.put(Card("proc0", "processing", "ipc:///nowhere", process, ""))
        assert Standing.of(System.read(file)) is None
    assert "were killed, or this host was started again" in lima2py("status", file, status=1)
    shutil.rmtree(nest.path)


def test_a_folder_without_room_for_the_cards_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", "/nowhere")
    with pytest.raises(NodeError, match=r"/nowhere/.* cannot be made \(.*TMPDIR"):
        Nest("up").make()
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=4096))
    nest = Nest("up")
    monkeypatch.setattr(nest, "path", tmp_path)
    with pytest.raises(NodeError, match=r"4096 bytes are free .* make room there"):
        nest.check_room()


def test_nodes_on_other_hosts_are_started_over_ssh(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ssh = tmp_path / "bin" / "ssh"  # does here what it is told to do there
    ssh.parent.mkdir()
    ssh.write_text(
        '#!/bin/sh\necho "$@" > "$0.told"\n'
        'for last; do :; done\nexec sh -c "$(echo "$last" | sed s/gpu.invalid/127.0.0.1/)"\n'
    )
    ssh.chmod(0o700)
    monkeypatch.setenv("PATH", f"{ssh.parent}:{Path(LIMA2PY).parent}:{os.environ['PATH']}")
    make_keys(tmp_path / "keys")
    file = tmp_path / "far.yaml"
    file.write_text(
        "system: far\ndetector: simulator\nset: {pattern: verifiable, shape: [128, 96]}\n"
        "keys: keys\nssh: [-l, opid]\nacquisition: [{node: acq0, host: 127.0.0.1}]\n"
        "processing: [{node: proc0, host: gpu.invalid}]\n"
    )
    with pytest.raises(BadParameter, match=r"gpu.invalid is not this host;  lima2py up"):
        Session.open(file)
    assert "processing node proc0 on gpu.invalid" in lima2py("up", file)
    try:
        told = Path(f"{ssh}.told").read_text()
        assert told.startswith("-o BatchMode=yes -l opid gpu.invalid lima2py node processing proc0")
        with Session.open(file) as session:
            session.prepare(graph="save_raw", nb_frames=100, expo_time=1e-3, output=tmp_path)
            session.start()
            report = session.wait(30)
        assert report.saved == 100
        assert_verifiable(report.masters["raw"], (128, 96))
    finally:
        lima2py("down", "--now", file)
    assert Standing(System.read(file)).living() == {}
