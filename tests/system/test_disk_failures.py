"""A disk that is full, read-only or gone costs the frames it did not take, and nothing else."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from lima2py_detectors.simulator import verifiable_frames

from lima2py.frame import Fate
from lima2py.session.launch import Child
from lima2py.session.report import Report
from lima2py.session.session import Session
from lima2py.storage import steady
from lima2py.storage.care.recover import recover
from lima2py.storage.care.verify import verify
from tests.storage import plain
from tests.system.rig import wait_until

SHAPE = (32, 48)
NBYTES = 2 * 32 * 48
ROOM = 2**20
"""For less than 600 frames."""
GRAPH = """
tasks:
  raw: {{do: save_dense, from: detector, file: "disk/{{name}}", compression: none,
        if_fails: {if_fails}, frames_per_file: {per_file}}}
  bright: {{do: sparsify, from: detector, above: 60000}}
  events: {{do: save_sparse, from: bright, file: "disk/{{name}}", if_fails: {if_fails},
           frames_per_file: {per_file}}}
  other: {{do: save_dense, from: detector}}
"""
BARE = ("errno", "H5", "HDF5", "Unable to", "unable to", "Can't", "can't", "Traceback")
"""What no message for people contains."""


@contextmanager
def mounted(folder: Path, size: int) -> Iterator[None]:
    """A disk of its own, in memory."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount file systems")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill_up(folder: Path, leave: int = 0) -> Path:
    """Take all the room but so many bytes; returns the file that does."""
    path = folder / "filler"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        while True:
            os.write(descriptor, bytes(4096))
    except OSError:
        os.truncate(path, path.stat().st_size - leave)
        return path
    finally:
        os.close(descriptor)


@contextmanager
def running(
    tmp_path: Path,
    *,
    nodes: int = 0,
    frames: int = 300,
    per_file: int = 0,
    if_fails: str = "mark",
    period: float,
) -> Iterator[Session]:
    """A run that saves on a disk of its own, and on another."""  # fmt: skip
    graph = tmp_path / "graph.yaml"
    graph.write_text(GRAPH.format(per_file=per_file, if_fails=if_fails))
    with Session.open(
        "simulator",
        processing_nodes=nodes,
        detector={"pattern": "verifiable", "shape": [*SHAPE]},
    ) as session:
        session.prepare(graph=graph, output=tmp_path / "out", nb_frames=frames, expo_time=period)
        session.start()
        yield session


def until(session: Session, frames: int) -> None:
    """Wait until so many have been acquired, or the run is over."""
    wait_until(
        lambda: session.progress().acquired >= frames or session.state.value == "idle", "frames"
    )


def check(tmp_path: Path, report: Report) -> None:
    """What is said to be saved is, bit by bit; errors are for people; the other sink has all."""
    taken = report.sinks["other"]["saved"]
    assert verify(Path(report.masters["other"]), pixels=True).problems == []
    assert frames_in(Path(report.masters["other"]), 0) == set(range(taken))
    for text in report.errors:
        assert not any(bare in text for bare in BARE), text
    recover(tmp_path, force=True)
    if not list(tmp_path.rglob("disk/run*")):  # not even the first frames fitted
        assert report.sinks["raw"]["not_saved"] == report.sinks["events"]["not_saved"] == taken
        return
    (master,) = tmp_path.rglob("disk/*_master.h5")
    for number, sink in enumerate(("raw", "events")):
        counts = report.sinks[sink]
        assert counts["saved"] + counts.get("not_saved", 0) == taken
        there = frames_in(master, number)
        if sink in report.masters:
            assert len(there) >= counts["saved"]
        assert saved_by(report) <= there


def saved_by(report: Report) -> set[int]:
    """The frames that all sinks are said to hold."""
    absent = {
        frame for first, count, *_ in report.absences for frame in range(first, first + count)
    }
    return set(range(report.asked)) - absent


def frames_in(master: Path, entry: int) -> set[int]:
    """The frames a master shows, each of which is what was taken."""
    told = plain.read(master, f"entry_{entry:04d}")
    count = len(told.frames["fate"])
    frames = verifiable_frames(0, count, SHAPE, "uint16").reshape(count, *SHAPE)
    saved = np.flatnonzero(told.frames["fate"] == Fate.SAVED).tolist()
    if "frame_ptr" in told.data:
        rows = told.rows({"index": "index", "value": "intensity"})
        for frame in saved:
            flat = frames[frame].reshape(-1)
            assert np.array_equal(rows[frame]["index"], np.flatnonzero(flat > 60000))
            assert np.array_equal(rows[frame]["value"], flat[flat > 60000])
    else:
        assert np.array_equal(told.data["data"][saved], frames[saved])
    return set(saved)


@pytest.mark.parametrize("seed", range(4))
def test_a_disk_too_small_keeps_what_fits_and_names_the_rest(tmp_path: Path, seed: int) -> None:
    """Whatever is written when it is full: a frame, records, the end of a file, the next file."""
    chance = random.Random(seed)
    disk = tmp_path / "out" / "disk"
    per_file = chance.choice([0, 23, 61])
    with mounted(disk, 4096 * chance.randint(160, 400) * (4 if per_file else 1)):
        with running(tmp_path, per_file=per_file, frames=500, period=1e-3) as session:
            report = session.wait(60)
        assert report.outcome == "failed"
        assert report.sinks["raw"]["not_saved"] > 0
        told = [text for text in report.errors if f"{disk}/run_0_" in text]
        assert any("No space left on device (" in text for text in told)
        assert all("free on that disk); make room" in text for text in told)
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        check(tmp_path, report)


@pytest.mark.parametrize(("nodes", "per_file"), [(0, 0), (2, 41)])
def test_once_there_is_room_again_frames_are_saved_again(
    tmp_path: Path, nodes: int, per_file: int
) -> None:
    disk = tmp_path / "out" / "disk"
    with mounted(disk, 2**26):
        with running(tmp_path, nodes=nodes, per_file=per_file, frames=0, period=1e-3) as session:
            until(session, 200)
            filler = fill_up(disk)
            until(session, session.progress().acquired + 200)
            filler.unlink()
            until(session, session.progress().acquired + 300)
            session.stop()
            report = session.wait(60)
        assert report.outcome == "failed"
        for sink in ("raw", "events"):
            assert report.sinks[sink]["not_saved"] > 0
        assert {0, report.asked - 1} <= saved_by(report)
        assert verify(Path(report.masters["raw"]), pixels=True).problems == []
        check(tmp_path, report)
        assert not list(disk.glob("*.part"))


@pytest.mark.parametrize(("nodes", "per_file"), [(0, 0), (2, 41)])
def test_a_run_that_waits_for_its_disk_loses_nothing(
    tmp_path: Path, nodes: int, per_file: int
) -> None:
    disk = tmp_path / "out" / "disk"
    with mounted(disk, 2**26):
        filler = fill_up(disk, leave=ROOM)
        with running(
            tmp_path, nodes=nodes, per_file=per_file, if_fails="wait", frames=600, period=1e-3
        ) as session:
            until_nothing_is_settled(session)
            assert session.progress().settled < 600
            if nodes:  # what one that leaves could not save, another one can
                leaving = session.nodes.processing[0]
                assert isinstance(leaving, Child)
                os.kill(leaving.pid, signal.SIGTERM)
                leaving._process.wait(30)
            filler.unlink()
            report = session.wait(60)
        assert report.ok, report
        assert report.saved == 600
        waited = [text for text in report.remarks if "waited" in text]
        assert len(waited) == max(1, nodes)
        assert all('sink "raw": waited' in text for text in waited)
        assert all(text.endswith("for the disk: No space left on device") for text in waited)
        assert verify(Path(report.masters["raw"]), pixels=True).problems == []
        check(tmp_path, report)
        assert not list(disk.glob("*.part"))


def until_nothing_is_settled(session: Session) -> None:
    """Wait until a run has come to a halt: for far longer than it takes to flush, nothing moves."""
    seen: list[int] = []

    def halted() -> bool:
        seen.append(session.progress().settled)
        return len(seen) > 50 and seen[-50] == seen[-1]

    wait_until(halted, "the halt")


@pytest.mark.parametrize("nodes", [0, 2])
def test_a_run_that_waits_for_its_disk_can_be_aborted(tmp_path: Path, nodes: int) -> None:
    disk = tmp_path / "out" / "disk"
    with mounted(disk, 2**26):
        fill_up(disk, leave=ROOM)
        with running(tmp_path, nodes=nodes, if_fails="wait", frames=600, period=1e-3) as session:
            until_nothing_is_settled(session)
            session.abort()
            report = session.wait(60)
        assert report.outcome == "aborted", report
        assert report.absent["aborted"] > 0
        subprocess.run(["mount", "-o", "remount,size=128m", str(disk)], check=True)
        told = recover(tmp_path, force=True)
        assert list(disk.glob("*_master.h5")), told
        (master,) = disk.glob("*_master.h5")
        for path, entry in ((master, 0), (master, 1), (Path(report.masters["other"]), 0)):
            assert saved_by(report) <= frames_in(path, entry)


def test_a_folder_that_comes_back_costs_nothing_if_it_is_waited_for(tmp_path: Path) -> None:
    disk, moved = tmp_path / "out" / "disk", tmp_path / "moved"
    with running(tmp_path, frames=600, per_file=31, if_fails="wait", period=1e-3) as session:
        until(session, 200)
        disk.rename(moved)
        until_nothing_is_settled(session)
        assert session.state.value == "running"
        moved.rename(disk)
        report = session.wait(60)
    assert report.ok, report
    assert report.saved == 600
    assert "for the disk: No such file or directory" in report.remarks[0]
    check(tmp_path, report)


def test_a_sink_told_to_stop_stops_the_acquisition(tmp_path: Path) -> None:
    disk = tmp_path / "out" / "disk"
    with mounted(disk, 2**20):
        with running(tmp_path, frames=20_000, if_fails="stop", period=1e-3) as session:
            report = session.wait(60)
        assert report.absent["not_acquired"] > 10_000
        assert any("No space left on device" in text for text in report.errors)
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        check(tmp_path, report)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EIO, errno.ESTALE])
def test_a_disk_that_turns_bad_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Such a disk cannot be had; its answers can."""
    disk = tmp_path / "out" / "disk"
    bad = threading.Event()

    def pwrite(fd: int, data: bytes, at: int) -> int:
        if bad.is_set() and os.readlink(f"/proc/self/fd/{fd}").startswith(str(disk)):
            raise OSError(number, os.strerror(number))
        return os.pwrite(fd, data, at)

    everything = {name: getattr(os, name) for name in dir(os) if not name.startswith("__")}
    monkeypatch.setattr(steady, "os", SimpleNamespace(**{**everything, "pwrite": pwrite}))
    with running(tmp_path, frames=600, period=1e-3) as session:
        until(session, 200)
        bad.set()
        report = session.wait(60)
    assert report.sinks["raw"]["not_saved"] > 0
    assert any(f"{disk}/run_0_" in text and os.strerror(number) in text for text in report.errors)
    check(tmp_path, report)


@pytest.mark.parametrize("per_file", [0, 31])
def test_a_folder_that_is_moved_away_costs_what_cannot_be_written_any_more(
    tmp_path: Path, per_file: int
) -> None:
    out = tmp_path / "out"
    with running(tmp_path, frames=600, per_file=per_file, period=1e-3) as session:
        until(session, 200)
        (out / "disk").rename(tmp_path / "moved")
        report = session.wait(60)
    assert report.outcome == "failed"
    assert any(f"{out / 'disk'}/run_" in text and "is the disk mounted" in text
               for text in report.errors)  # fmt: skip
    if per_file:
        assert report.sinks["raw"]["not_saved"] > 0
    (tmp_path / "moved").rename(out / "disk")
    check(tmp_path, report)
