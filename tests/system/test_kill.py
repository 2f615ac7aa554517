"""Whatever is killed, every frame has a fate and nothing stays behind."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import psutil
import pytest

from tests.system.rig import (
    Command,
    alive,
    assert_verifiable,
    check_account,
    detector_group,
    frames_saved,
    socket_folders,
    wait_until,
)

SIMULATED = (
    "--set", "detector.pattern=verifiable", "--set", "detector.shape=[64,64]",
)  # fmt: skip


def start(command: Callable[..., Command], *more: object, frames: int = 100_000) -> Command:
    return command(
        "run", "save_raw", *SIMULATED, "--nb-frames", frames, "--expo-time", "200 us",
        "--output", "out", "--json", *more,
    )  # fmt: skip


def test_ctrl_c_stops_and_saves_what_was_acquired(
    tmp_path: Path, command: Callable[..., Command]
) -> None:
    run = start(command, "--processing-nodes", 2)
    pids = [node.pid for node in run.nodes(count=3)]
    wait_until(lambda: frames_saved(tmp_path / "out") > 300, "frames")
    run.interrupt()
    report = run.report()
    assert run.process.returncode == 1
    assert report["outcome"] == "stopped"
    assert report["saved"] > 100
    assert report["saved"] + report["absent"]["not_acquired"] == 100_000
    check_account(report)
    assert alive(pids) == []
    assert socket_folders() == []


def test_sigterm_stops_and_saves_what_was_acquired(
    tmp_path: Path, command: Callable[..., Command]
) -> None:
    run = start(command, "--processing-nodes", 1)
    wait_until(lambda: frames_saved(tmp_path / "out") > 300, "frames")
    run.process.terminate()
    report = run.report()
    assert report["outcome"] == "stopped"
    assert report["saved"] + report["absent"]["not_acquired"] == 100_000
    check_account(report)


def test_a_second_ctrl_c_aborts(tmp_path: Path, command: Callable[..., Command]) -> None:
    run = start(command, "--processing-nodes", 2)
    wait_until(lambda: frames_saved(tmp_path / "out") > 300, "frames")
    run.nodes("processing")[0].suspend()  # so that it cannot drain
    run.interrupt()
    time.sleep(0.3)
    run.interrupt()
    report = run.report()
    assert report["outcome"] == "aborted"
    assert report["absent"]["aborted"] > 0
    assert sum(report["absent"].values()) + report["saved"] == 100_000


def test_the_command_killed_takes_its_nodes_along_and_files_say_aborted(
    tmp_path: Path, command: Callable[..., Command]
) -> None:
    run = start(command, "--processing-nodes", 2)
    pids = [node.pid for node in run.nodes(count=3)]
    wait_until(lambda: frames_saved(tmp_path / "out") > 300, "frames")
    run.process.kill()
    run.process.wait()
    wait_until(lambda: not alive(pids), "the end of the nodes", 10)
    wait_until(lambda: not socket_folders(), "the end of the sockets", 5)
    with h5py.File(next((tmp_path / "out").glob("*_master.h5")), "r") as file:
        assert file["entry_0000/lima2py/outcome"].asstr()[()] == "aborted"
        fates = detector_group(file)["frames/fate"][()]
        assert (fates == 1).sum() > 100
        assert 0 not in fates


def test_a_processing_node_that_is_told_to_leave_loses_no_frame(
    tmp_path: Path, command: Callable[..., Command]
) -> None:
    run = start(command, "--processing-nodes", 2, frames=8000)
    victim = run.nodes("processing", 2)[1]
    wait_until(lambda: frames_saved(tmp_path / "out") >= 200, "frames")
    victim.terminate()
    report = run.report()
    assert report["saved"] == 8000, report
    assert any("proc1 was lost: it was told to leave" in text for text in report["errors"])
    check_account(report)
    assert_verifiable(report["masters"]["raw"], (64, 64))


@pytest.mark.parametrize("when", [1, 200])
def test_a_killed_processing_node_loses_no_frame(
    tmp_path: Path, command: Callable[..., Command], when: int
) -> None:
    run = start(command, "--processing-nodes", 3, frames=8000)
    victim = run.nodes("processing", 3)[1]
    wait_until(lambda: frames_saved(tmp_path / "out") >= when, "frames")
    victim.send_signal(signal.SIGKILL)
    report = run.report()
    assert report["saved"] == 8000, report
    assert any("proc1" in text and "signal 9" in text for text in report["errors"])
    check_account(report)
    assert_verifiable(report["masters"]["raw"], (64, 64))


def test_all_processing_nodes_killed_and_not_started_again_ends_the_run_and_says_why(
    tmp_path: Path, command: Callable[..., Command]
) -> None:
    given_up = ("--policy", "restarts=0", "--policy", "node_patience=1")
    run = start(command, "--processing-nodes", 2, *given_up, frames=4000)
    wait_until(lambda: frames_saved(tmp_path / "out") > 300, "frames")
    for node in run.nodes("processing", 2):
        node.send_signal(signal.SIGKILL)
    report = run.report()
    assert run.process.returncode == 1
    assert report["outcome"] == "failed"
    assert report["absent"]["node_lost"] + report["saved"] == 4000
    assert report["saved"] > 50
    check_account(report)


def test_a_killed_acquisition_node_is_a_failed_run_with_masters_and_leaves_nothing(
    tmp_path: Path, command: Callable[..., Command]
) -> None:
    run = start(command, "--processing-nodes", 2)
    pids = [node.pid for node in run.nodes(count=3)]
    wait_until(lambda: frames_saved(tmp_path / "out") > 300, "frames")
    run.nodes("acquisition")[0].send_signal(signal.SIGKILL)
    report = run.report()
    assert report["outcome"] == "failed"
    assert any("acq0" in text and "signal 9" in text for text in report["errors"])
    assert report["asked"] == 100_000
    assert report["saved"] > 50  # what was flushed is there for everybody
    assert set(report["absent"]) == {"node_lost"}
    assert alive(pids) == []
    with h5py.File(report["masters"]["raw"], "r") as file:
        assert (detector_group(file)["frames/fate"][()] == 1).sum() == report["saved"]
    assert not list((tmp_path / "out").glob("*.part"))


def test_one_of_two_acquisition_nodes_killed_costs_only_its_frames(
    tmp_path: Path, command: Callable[..., Command]
) -> None:
    run = start(command, "--processing-nodes", 2, "--acquisition-nodes", 2, frames=10_000)
    wait_until(lambda: frames_saved(tmp_path / "out") > 300, "frames")
    victim = next(node for node in run.nodes("acquisition", 2) if "acq1" in node.cmdline())
    victim.send_signal(signal.SIGKILL)
    report = run.report()
    assert report["outcome"] == "failed"
    assert 0 < report["absent"]["node_lost"] <= 5120
    check_account(report)
    with h5py.File(report["masters"]["raw"], "r") as file:
        assert (detector_group(file)["frames/fate"][()] == 1).sum() == report["saved"]
    assert not list((tmp_path / "out").glob("*_journal_*"))


def test_a_frozen_processing_node_is_found_and_its_frames_go_to_others(
    tmp_path: Path, command: Callable[..., Command]
) -> None:
    run = start(command, "--processing-nodes", 2, frames=6000)
    victim = run.nodes("processing", 2)[0]
    wait_until(lambda: frames_saved(tmp_path / "out") > 300, "frames")
    victim.suspend()
    report = run.report()
    assert report["saved"] == 6000
    assert not psutil.pid_exists(victim.pid)
    assert_verifiable(report["masters"]["raw"], (64, 64))


def test_nothing_of_ours_is_in_shared_memory_by_name(
    tmp_path: Path, command: Callable[..., Command]
) -> None:
    before = set(os.listdir("/dev/shm"))
    run = start(command, "--processing-nodes", 1, frames=3000)
    wait_until(lambda: frames_saved(tmp_path / "out") > 300, "frames")
    assert set(os.listdir("/dev/shm")) == before
    assert run.report()["outcome"] == "completed"
