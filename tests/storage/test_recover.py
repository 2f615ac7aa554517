"""What dead nodes left becomes a run that reads as any other, and nothing that was safe is lost."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lima2py.errors import StorageError
from lima2py.frame import Absence, Fate, FrameSpec
from lima2py.storage.care import glance
from lima2py.storage.care.glance import Glance, Looker
from lima2py.storage.care.recover import recover
from lima2py.storage.care.recovery import SAID, Recovery
from lima2py.storage.care.verify import verify
from lima2py.storage.entry import text_of
from lima2py.storage.logs import Series
from lima2py.storage.masters.of_run import write_preview
from lima2py.storage.names import NODE_FILE
from lima2py.storage.saving.reserve import reserve
from lima2py.storage.saving.sinks import SaveDense
from tests.storage import plain
from tests.storage.left_behind import IMAGES, PIXELS, TABLE, at_work, block_of, due
from tests.storage.made_up import LOST, round_robin

UNKNOWN = Absence(Fate.NODE_LOST, "recover", "no file has a record of it")


@pytest.fixture
def looking_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at files in this process, which is quicker: none of them is torn."""
    monkeypatch.setattr(Looker, "look", _look)


def _look(self: Looker, path: Path, *, records: bool) -> Glance:
    return glance.glance(path, records=records)


def recovered(folder: Path) -> Recovery:
    """Recover the only run of a folder."""
    (found,), _ = recover(folder, force=True)
    return found


def shown(master: Path, spec: FrameSpec, entry: str = "entry_0000") -> list[int]:
    """The frames a master shows, each of which is what was written; all others say why not."""
    told = plain.read(master, entry)
    fates = told.frames["fate"]
    saved = np.flatnonzero(fates == Fate.SAVED).tolist()
    assert {frame: int(why.cause) for frame, why in told.absences.items()} == {
        frame: fate for frame, fate in enumerate(fates.tolist()) if fate != Fate.SAVED
    }
    if spec.kind == "sparse":
        rows = told.rows({"index": "index", "value": "intensity"})
        frames = [np.concatenate([row["index"], row["value"].astype("u4")]) for row in rows]
    else:
        frames = list(told.data["data"])
    for frame in saved:
        assert np.array_equal(frames[frame], due(spec, frame))
    assert verify(master, pixels=True).problems == []
    return saved


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_killed_nodes_left_becomes_a_run(tmp_path: Path) -> None:
    with at_work(tmp_path / "live") as nodes:
        nodes.write(0, 0, 5, absences={2: LOST})
        nodes.write(1, 5, 5)
        nodes.write(0, 12, 4)
        nodes.write(1, 14, 3)  # 14 and 15 lie in two files now
        left = nodes.killed(tmp_path / "left")
    found = recovered(left)
    assert found.problems == ()
    assert found.done[-2:] == (
        "raw: 2 frames lie in two files, and count once",
        "raw: 14 saved, 1 detector_gap, 15 node_lost",
    )
    master = left / "scan_master.h5"
    assert shown(master, IMAGES) == [0, 1, 3, 4, 5, 6, 7, 8, 9, 12, 13, 14, 15, 16]
    told = plain.read(master).absences
    assert told.pop(2) == LOST
    assert set(told.values()) == {UNKNOWN}
    assert sorted(path.name for path in left.iterdir()) == [
        "scan_0_00000.h5", "scan_1_00000.h5", "scan_master.h5",
    ]  # fmt: skip
    with h5py.File(master) as file:
        about = file["entry_0000/lima2py"]
        assert text_of(about["outcome"]) == "failed"
        assert about["errors"].asstr()[:].tolist() == [SAID]
        assert about.attrs["recovered"]
    assert recover(left) == ([], 1)


@given(
    writes=st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 25), st.integers(1, 5), st.booleans()),
        min_size=1, max_size=12,
    ),
    per_file=st.sampled_from([0, 3, 7]),
)  # fmt: skip
@settings(max_examples=8)
def test_every_frame_that_was_safe_is_there_once(
    writes: list[tuple[int, int, int, bool]], per_file: int
) -> None:
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(Looker, "look", _look)
        folder, specs = Path(name), {"raw": IMAGES, "hits": PIXELS, "sums": TABLE}
        safe: set[int] = set()
        waiting: dict[int, set[int]] = {}
        with at_work(folder / "live", specs, frames_per_file=per_file) as nodes:
            for rank, index, count, flush in writes:
                some = set(range(index, index + count)) - safe - set().union(*waiting.values())
                for frame in sorted(some):  # as a node that took over from another would
                    for sink, spec in specs.items():
                        nodes.node(rank)[sink].write(block_of(spec, frame, 1))
                waiting.setdefault(rank, set()).update(some)
                if flush:
                    nodes.flush(rank)
                    safe |= waiting.pop(rank)
            left = nodes.killed(folder / "left")
        found, _ = recover(left, force=True)
        for one in found:
            assert one.problems == ()
        if not (left / "scan_master.h5").exists():
            assert not safe
            return
        for number, spec in enumerate(specs.values()):
            there = shown(left / "scan_master.h5", spec, f"entry_000{number}")
            assert safe <= set(there)


@pytest.mark.usefixtures("looking_here")
def test_sinks_that_share_files_are_recovered_together(tmp_path: Path) -> None:
    specs = {"raw": IMAGES, "hits": PIXELS, "sums": TABLE}
    with at_work(tmp_path / "live", specs, frames_per_file=4, checksum=True) as nodes:
        nodes.write(0, 0, 6)
        nodes.write(1, 6, 3)
        left = nodes.killed(tmp_path / "left")
    assert recovered(left).problems == ()
    for number, spec in enumerate(specs.values()):
        assert shown(left / "scan_master.h5", spec, f"entry_000{number}") == list(range(9))


@pytest.mark.usefixtures("looking_here")
@pytest.mark.parametrize("named", ["scan_0_00001.h5", "scan_1", "scan_1_00000.h5.part"])
def test_one_file_stands_for_all_that_share_its_master(tmp_path: Path, named: str) -> None:
    with at_work(tmp_path / "live", frames_per_file=4) as nodes:
        nodes.write(0, 0, 10)
        nodes.write(1, 10, 3)
        left = nodes.killed(tmp_path / "left")
    (found,), _ = recover(left / named, force=True)
    assert found.problems == ()
    assert shown(left / "scan_master.h5", IMAGES) == list(range(13))


@pytest.mark.usefixtures("looking_here")
def test_a_file_of_a_finished_run_leaves_its_master_as_it_is(tmp_path: Path) -> None:
    round_robin(IMAGES, 20, 2, 2).write(tmp_path / "scan")
    before = contents(tmp_path)
    assert recover(tmp_path / "scan_0_00000.h5", force=True) == ([], 1)
    assert contents(tmp_path) == before


@pytest.mark.usefixtures("looking_here")
def test_a_missing_file_is_noticed_by_the_rows_it_should_hold(tmp_path: Path) -> None:
    with at_work(tmp_path / "live", frames_per_file=4) as nodes:
        nodes.write(0, 0, 10)
        left = nodes.killed(tmp_path / "left")
    (left / "scan_0_00001.h5").unlink()
    assert recovered(left).problems == (
        "raw: rows 4 to 7 of node node0, which lay before scan_0_00002.h5",
    )
    assert shown(left / "scan_master.h5", IMAGES) == [0, 1, 2, 3, 8, 9]


def lost_with_its_node(folder: Path) -> Path:
    """A run that ended without one of its nodes, whose file is as it was left."""
    run = round_robin(IMAGES, 20, 2, 2, absent=[5])
    folder.mkdir()
    master = Path(run.write(folder / "scan"))
    (folder / "scan_1_00000.h5").rename(folder / "scan_1_00000.h5.part")
    run.table.fate[[10, 11, 18]] = Fate.NODE_LOST
    run.write_master(folder / "scan")
    return master


@pytest.mark.usefixtures("looking_here")
def test_a_master_that_shows_an_unfinished_file_keeps_what_only_it_knows(tmp_path: Path) -> None:
    master = lost_with_its_node(tmp_path / "out")
    before = plain.read(master)
    found = recovered(tmp_path / "out")
    assert found.done[0] == "finished scan_1_00000.h5, 10 frames"
    after = plain.read(master)
    assert after.frames["fate"][[10, 11, 18]].tolist() == [Fate.SAVED] * 3  # its file had them
    others = [frame for frame in range(20) if frame not in (10, 11, 18)]
    for name, values in before.frames.items():
        assert plain.same_bits(values[others], after.frames[name][others])
    assert np.array_equal(after.data["data"][others], before.data["data"][others])
    with h5py.File(master) as file:
        about = file["entry_0000/lima2py"]
        assert text_of(about["outcome"]) == "stopped"
        assert about["errors"].asstr()[:].tolist() == ["it was cold"]
    assert recover(tmp_path / "out") == ([], 1)


@pytest.mark.usefixtures("looking_here")
@pytest.mark.parametrize("make", ["killed", "lost"])
def test_killed_at_any_point_and_given_again_it_does_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: str
) -> None:
    if make == "lost":
        lost_with_its_node(tmp_path / "left")
    else:
        with at_work(tmp_path / "live", frames_per_file=4) as nodes:
            nodes.write(0, 0, 6)
            nodes.write(1, 6, 3)
            nodes.write(2, 9, 4)  # full: the next file is begun with the next frame
            nodes.killed(tmp_path / "left")
    shutil.copytree(tmp_path / "left", tmp_path / "once")
    recover(tmp_path / "once", force=True)
    points = 0
    while True:
        folder = tmp_path / f"stopped_{points}"
        shutil.copytree(tmp_path / "left", folder)
        with monkeypatch.context() as patch:
            left = [points]
            for name in ("rename", "unlink", "replace"):
                patch.setattr(Path, name, _stopping(getattr(Path, name), left))
            try:
                recover(folder, force=True)
                break
            except KeyboardInterrupt:
                points += 1
        recover(folder, force=True)
        assert contents(folder) == contents(tmp_path / "once")
    assert points >= 2


def _stopping(real: Callable[..., object], left: list[int]) -> Callable[..., object]:
    """Do something a few times; then be killed before doing it."""

    def act(*arguments: object, **more: object) -> object:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return real(*arguments, **more)

    return act


def test_a_run_whose_files_get_their_names_meanwhile_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(self: Looker, path: Path, *, records: bool) -> Glance:
        seen = glance.glance(path, records=records)
        path.rename(path.with_name(path.name.removesuffix(".part")))
        return seen

    with at_work(tmp_path / "live") as nodes:
        nodes.write(0, 0, 5)
        left = nodes.killed(tmp_path / "left")
    monkeypatch.setattr(Looker, "look", look)
    found = recovered(left)
    assert found.refused.startswith("scan_0_00000.h5.part has just got another name")
    assert [path.name for path in left.iterdir()] == ["scan_0_00000.h5"]


@pytest.mark.usefixtures("looking_here")
def test_a_finished_run_without_one_of_its_files_is_not_complete(tmp_path: Path) -> None:
    round_robin(IMAGES, 20, 2, 2).write(tmp_path / "scan")
    (tmp_path / "scan_1_00000.h5").unlink()
    found = recovered(tmp_path)
    assert (found.done, found.refused) == ((), "")
    assert found.problems == ("scan_1_00000.h5 is not there; put it back",)


@pytest.mark.usefixtures("looking_here")
def test_a_master_by_another_name_is_no_file_of_a_node(tmp_path: Path) -> None:
    master = Path(round_robin(IMAGES, 20, 2, 2).write(tmp_path / "scan"))
    shutil.copy(master, tmp_path / "copy_00001.h5")
    assert recover(tmp_path, force=True) == ([], 1)


@pytest.mark.usefixtures("looking_here")
def test_a_run_that_goes_on_is_left_alone(tmp_path: Path) -> None:
    with at_work(tmp_path / "live", frames_per_file=4) as nodes:
        nodes.write(0, 0, 6)
        before = contents(nodes.folder)
        found = recovered(nodes.folder)
        assert "scan_0_00001.h5.part is still being written" in found.refused
        assert contents(nodes.folder) == before


@pytest.mark.usefixtures("looking_here")
def test_what_has_just_changed_is_left_alone_unless_forced(tmp_path: Path) -> None:
    left = simple(tmp_path)
    (found,), _ = recover(left)
    assert "--force" in found.refused
    assert not (left / "scan_master.h5").exists()
    long_ago = time.time() - 60
    os.utime(left / "scan_0_00000.h5.part", (long_ago, long_ago))
    (found,), _ = recover(left)
    assert not found.refused


def simple(tmp_path: Path) -> Path:
    """Six frames that one killed node left."""
    with at_work(tmp_path / "live") as nodes:
        nodes.write(0, 0, 6)
        return nodes.killed(tmp_path / "left")


def test_a_torn_file_is_named_and_left_and_the_others_are_recovered(tmp_path: Path) -> None:
    with at_work(tmp_path / "live") as nodes:
        nodes.write(0, 0, 6)
        nodes.write(1, 6, 3)
        left = nodes.killed(tmp_path / "left")
    torn = left / "scan_1_00000.h5.part"
    torn.write_bytes(torn.read_bytes()[:6000])
    found = recovered(left)
    assert len(found.problems) == 1
    assert "scan_1_00000.h5.part cannot be read: it is cut off" in found.problems[0]
    assert torn.stat().st_size == 6000
    assert shown(left / "scan_master.h5", IMAGES) == list(range(6))


def test_a_file_that_hangs_its_reader_does_not_hang_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(glance, "PATIENCE", 3.0)
    left = simple(tmp_path)
    os.mkfifo(left / "scan_1_00000.h5.part")  # nobody will ever write into it
    found = recovered(left)
    assert found.problems == (
        "scan_1_00000.h5.part keeps, for 3 s, the process that reads it; it is left as it is",
    )
    assert shown(left / "scan_master.h5", IMAGES) == list(range(6))


def test_a_file_that_brings_its_reader_down_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import os, sys; sys.stdin.readline(); os.kill(os.getpid(), 11)"
    monkeypatch.setattr(glance, "COMMAND", [sys.executable, "-c", code])
    with Looker() as looker:
        said = looker.look(tmp_path / "a", records=True).problem
    assert said == "brings down the process that reads it"


@pytest.mark.usefixtures("looking_here")
def test_files_without_a_frame_are_removed_and_what_was_never_safe_is_not_missed(
    tmp_path: Path,
) -> None:
    with at_work(tmp_path / "live") as nodes:
        nodes.write(0, 0, 6)
        nodes.node(1)
        nodes.node(2)
        left = nodes.killed(tmp_path / "left")
    begun = left / "scan_2_00000.h5.part"
    begun.write_bytes(bytes(4096) + begun.read_bytes()[4096:])  # as before the first commit
    found = recovered(left)
    assert found.problems == ()
    assert "removed scan_1_00000.h5.part, which held no frame" in found.done
    assert begun.exists()
    assert not (left / "scan_1_00000.h5.part").exists()
    assert recover(left) == ([], 1)


@pytest.mark.usefixtures("looking_here")
def test_a_file_that_has_its_final_name_already_is_not_replaced(tmp_path: Path) -> None:
    left = simple(tmp_path)
    (left / "scan_0_00000.h5").write_bytes(b"precious")
    found = recovered(left)
    assert any("keeps its name" in text for text in found.problems)
    assert (left / "scan_0_00000.h5").read_bytes() == b"precious"
    assert (left / "scan_0_00000.h5.part").exists()


def test_a_run_that_never_had_a_frame_leaves_nothing(tmp_path: Path) -> None:
    reservation = reserve({"raw": SaveDense()}, tmp_path / "live", "scan", "0123456789abcdef" * 2)
    with at_work(tmp_path / "live") as nodes:
        nodes.node(0)
        assert (
            "scan_raw_master.h5.part is still being written"
            in recovered(tmp_path / "live" / "scan_raw").refused
        )
        left = nodes.killed(tmp_path / "left")
    reservation.release()
    found, _ = recover(left, force=True)
    assert [one.done for one in found] == [
        ("removed scan_0_00000.h5.part, which held no frame",),
        ("removed scan_raw_master.h5.part, which showed no frame",),
    ]
    assert list(left.iterdir()) == []


def test_only_files_of_runs_below_are_looked_at(tmp_path: Path) -> None:
    inner = tmp_path / "2026" / "visit"
    inner.mkdir(parents=True)
    shutil.copytree(simple(tmp_path), inner / "left")
    shutil.rmtree(tmp_path / "left")
    shutil.rmtree(tmp_path / "live")
    with h5py.File(inner / "other_data_000001.h5", "w") as file:
        file.attrs["creator"] = "somebody else"
    (inner / "broken_000001.h5").write_bytes(b"no HDF5")
    before = contents(inner / "left")
    with pytest.raises(StorageError, match="no file of a run of lima2py is there"):
        recover(inner / "left" / "scam")
    assert contents(inner / "left") == before
    found = recovered(tmp_path)
    assert found.master == inner / "left" / "scan_master.h5"
    assert not found.problems


@pytest.mark.usefixtures("looking_here")
def test_a_preview_of_the_run_is_no_obstacle_and_goes_away(tmp_path: Path) -> None:
    left = simple(tmp_path)
    write_preview(
        str(left / "scan"), NODE_FILE, {"sample/temperature": Series([1.0], [293.0], "K")}
    )
    assert (left / "scan_master.h5.part").exists()
    found = recovered(left)
    assert not found.problems
    assert not (left / "scan_master.h5.part").exists()
    with h5py.File(left / "scan_master.h5") as file:
        assert file["entry_0000/logs/sample/temperature/value"][:].tolist() == [293.0]
