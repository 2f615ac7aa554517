"""Where files go is settled, or refused, before anything starts; and nothing is left behind."""

from __future__ import annotations

import multiprocessing
import os
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Barrier
from pathlib import Path

import h5py
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lima2py.errors import BadParameter, StorageError
from lima2py.frame import Block, FrameSpec
from lima2py.storage.layout import CREATOR
from lima2py.storage.saving.reserve import Reservation, reserve
from lima2py.storage.saving.sinks import SaveDense
from lima2py.storage.steady import LockedFile, SteadyFile
from lima2py.task import Sink

RUN = "0123456789abcdef" * 2
PROCESSES = multiprocessing.get_context("fork")


class Flat(Sink):
    """A sink of somebody else, in a format of his own."""

    file: str = "{name}_{sink}"

    @property
    def files(self) -> list[str]:
        return []

    def prepare(self, spec: FrameSpec) -> FrameSpec:
        return spec

    def write(self, block: Block, *others: Block) -> int:
        return 0


def sink(**fields: object) -> SaveDense:
    return SaveDense.load(fields, "test")


@contextmanager
def reserving(folder: Path, name: str = "scan", **fields: object) -> Iterator[Reservation]:
    """The reservation of one sink, `raw`."""
    reservation = reserve({"raw": sink(**fields)}, folder, name, RUN)
    try:
        yield reservation
    finally:
        reservation.release()


def reserved(folder: Path, name: str = "scan", **fields: object) -> str:
    """The path of one sink, `raw`, of a run that is given up again."""
    with reserving(folder, name, **fields) as reservation:
        return reservation.paths["raw"]


def written(prefix: Path, *more: str) -> list[Path]:
    """Files of a run of two nodes."""
    parts = ["0_00000.h5", "1_00000.h5", "master.h5", *more]
    files = [prefix.with_name(f"{prefix.name}_{part}") for part in parts]
    for file in files:
        with h5py.File(file, "x") as opened:
            opened.attrs["creator"] = f"{CREATOR} 0"
    return files


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_templates_are_filled(tmp_path: Path) -> None:
    assert reserved(tmp_path) == str(tmp_path / "scan_raw")
    assert reserved(tmp_path, file="{sink}/{{x}}_{run}") == str(tmp_path / "raw" / f"{{x}}_{RUN}")
    assert reserved(tmp_path, name="a/b.c", file="{name}") == str(tmp_path / "a" / "b.c")
    assert reserved(tmp_path, file=f"{tmp_path}/deep/x") == str(tmp_path / "deep" / "x")
    days = {time.strftime("%Y%m%d")}
    path = reserved(tmp_path, file="{date}/{name}")
    days.add(time.strftime("%Y%m%d"))  # it may be midnight
    assert path in {str(tmp_path / day / "scan") for day in days}
    assert everything(tmp_path) == []


def test_folders_are_made_and_given_back(tmp_path: Path) -> None:
    output = tmp_path / "2026" / "visit"
    sinks = {"raw": sink(file="raw/{name}"), "view": sink(file="view/deep/{name}")}
    reservation = reserve(sinks, output, "scan", RUN)
    assert everything(output) == ["raw", "raw/scan_master.h5.part", "view", "view/deep",
                                  "view/deep/scan_master.h5.part"]  # fmt: skip
    reservation.release()
    reservation.release()
    assert everything(tmp_path) == []
    again = reserve(sinks, output, "scan", RUN)
    (output / "raw" / "scan_0_00000.h5").touch()
    again.release()
    assert everything(tmp_path) == ["2026", "2026/visit", "2026/visit/raw",
                                    "2026/visit/raw/scan_0_00000.h5"]  # fmt: skip


def test_the_master_to_be_says_for_which_run_and_opens(tmp_path: Path) -> None:
    with reserving(tmp_path):
        with h5py.File(tmp_path / "scan_raw_master.h5.part") as file:
            assert file.attrs["run"] == RUN
            assert file.attrs["run_name"] == "scan"


def test_a_preview_in_its_place_stays_when_the_run_ends(tmp_path: Path) -> None:
    with reserving(tmp_path):
        (tmp_path / "preview").write_text("rows")
        (tmp_path / "preview").rename(tmp_path / "scan_raw_master.h5.part")
    assert (tmp_path / "scan_raw_master.h5.part").read_text() == "rows"


def test_sinks_of_one_format_may_share_their_files(tmp_path: Path) -> None:
    fields = {"file": "{name}", "exists": "append-number"}
    written(tmp_path / "scan")
    sinks = {"raw": sink(**fields), "view": sink(compression="none", **fields)}
    reservation = reserve(sinks, tmp_path, "scan", RUN)
    assert set(reservation.paths.values()) == {str(tmp_path / "scan_0001")}
    assert len(reservation.taken) == 1
    reservation.release()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"exists": "overwrite"}, "exists: 'overwrite' is given, and 'abort' in task \"raw\""),
        ({"node_file": "{file}_{node}_{number}"}, "node_file: '{file}_{node}_{number}' is given"),
        ({"frames_per_file": 10}, "frames_per_file: 10 is given, and 0 in"),
        ({"bytes_per_file": "1 GiB"}, "bytes_per_file: 1073741824 is given, and 0 in"),
    ],
)
def test_sinks_that_share_files_agree_on_how(
    tmp_path: Path, fields: dict[str, object], said: str
) -> None:
    sinks = {"raw": sink(file="{name}"), "view": sink(file="./x/../{name}", **fields)}
    with pytest.raises(BadParameter) as caught:
        reserve(sinks, tmp_path / "new", "scan", RUN)
    assert str(caught.value).startswith(f'task "view", {said}')
    assert everything(tmp_path) == []


def test_sinks_of_two_formats_may_not_write_one_file(tmp_path: Path) -> None:
    flat = Flat.load({"file": "{name}"}, "test")
    for sinks in ({"raw": sink(file="{name}"), "view": flat}, {"raw": flat, "view": flat}):
        with pytest.raises(BadParameter, match=r'task "view", file: .*where task "raw" writes'):
            reserve(sinks, tmp_path, "scan", RUN)


def test_sinks_of_others_have_their_paths_too(tmp_path: Path) -> None:
    (tmp_path / "scan_flat_0_00000.bin").touch()
    with pytest.raises(StorageError, match=r"scan_flat_0_00000\.bin exists already"):
        reserve({"flat": Flat.load({}, "test")}, tmp_path, "scan", RUN)
    flat = Flat.load({"exists": "overwrite"}, "test")
    reservation = reserve({"flat": flat}, tmp_path, "scan", RUN)
    assert everything(tmp_path) == ["scan_flat_master.h5.part"]
    reservation.release()


@pytest.mark.parametrize(
    ("template", "name", "said"),
    [
        ("../{name}", "x", "leads out of the output folder"),
        ("{name}", "../x", "leads out of the output folder"),
        ("{name}", "/etc/x", "leads out of the output folder"),
        ("a/../../b", "x", "leads out of the output folder"),
        ("{name}", "", "names a folder"),
        ("{name}/", "x", "names a folder"),
        ("{name}/..", "x", "names a folder"),
        ("{name}", "a\nb", "control characters"),
        ("{name}", "a\0b", "control characters"),
        ("{name}", "a\x7fb", "control characters"),
        ("{name}", "\ud800", "not valid text"),
        ("{name}", "x" * 300, "too long"),
        ("{name}", "ü" * 120, "too long"),
        ("{name}", "/".join(["x" * 200] * 25), "too long"),
        ("{nam}", "x", r'\{nam\} means nothing here \(did you mean "name"'),
        ("{name!r}", "x", r"write \{name\}, with nothing behind it"),
        ("{name:>300}", "x", r"write \{name\}, with nothing behind it"),
        ("{name.__class__}", "x", "means nothing here"),
        ("{0}", "x", "means nothing here"),
        ("{name", "x", "for a brace"),
        ("~/{name}", "x", "begins with ~"),
        ("{name}", "~root/x", "begins with ~"),
        ("{name}", "a\x85b", "control characters"),
    ],
)
def test_what_cannot_be_a_path_is_refused(
    tmp_path: Path, template: str, name: str, said: str
) -> None:
    with pytest.raises(BadParameter, match=f'(?s)^task "raw", file: .*{said}'):
        reserved(tmp_path / "new", name=name, file=template)
    assert everything(tmp_path) == []


PIECES = ["..", ".", "/", "//", "~", "a", "out", "{name}", "{sink}", "in", "up", "loop", "\n", "x"]


@given(
    st.text(max_size=40) | st.lists(st.sampled_from(PIECES), max_size=6).map("".join),
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=8).map("".join),
)
def test_any_name_in_any_template_stays_inside_or_is_refused(name: str, template: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "out"
        for place in (output / "real", Path(folder) / "outside"):
            place.mkdir(parents=True)
        (output / "in").symlink_to("real")
        (output / "up").symlink_to("../outside")
        (output / "loop").symlink_to("loop")
        before = everything(Path(folder))
        try:
            reservation = reserve({"raw": sink(file=template)}, output, name, RUN)
        except (BadParameter, StorageError):
            assert everything(Path(folder)) == before
            return
        path = Path(reservation.paths["raw"] + "_0_00000.h5")
        path.touch()
        made = [Path(folder, new).resolve() for new in {*everything(Path(folder))} - {*before}]
        assert all(new.is_relative_to(output) for new in made)
        path.unlink()
        reservation.release()
        assert everything(Path(folder)) == before


def test_links_of_the_output_folder_that_lead_out_of_it_are_refused(tmp_path: Path) -> None:
    output, outside = tmp_path / "out", tmp_path / "outside"
    output.mkdir()
    outside.mkdir()
    (output / "up").symlink_to(outside)
    (output / "nowhere").symlink_to(tmp_path / "not" / "there")
    (output / "inside").mkdir()
    (output / "in").symlink_to(output / "inside")
    for template in ("up/{name}", "up/new/{name}", "nowhere/{name}", "in/../up/x/{name}"):
        with pytest.raises(BadParameter, match=r"leads out of the output folder .* symbolic link"):
            reserved(output, file=template)
    assert everything(outside) == []
    assert reserved(output, file="in/{name}") == str(output / "in" / "scan")


def test_the_output_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk" / "deep").mkdir(parents=True)
    (tmp_path / "out").symlink_to("disk")
    assert reserved(tmp_path / "out") == str(tmp_path / "out" / "scan_raw")
    assert reserved(tmp_path / "out" / "deep" / "new", file="a/b")


def test_a_link_put_there_after_the_look_makes_nothing_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, outside = tmp_path / "out", tmp_path / "outside"
    outside.mkdir()
    make = Path.mkdir

    def make_and_swap(path: Path, **how: bool) -> None:
        make(path, **how)
        if path == output:
            (output / "a").symlink_to(outside)

    monkeypatch.setattr(Path, "mkdir", make_and_swap)
    with pytest.raises(BadParameter, match="leads out of the output folder"):
        reserved(output, file="a/b/c/{name}")
    assert everything(outside) == []


@pytest.mark.parametrize("policy", ["abort", "overwrite"])
def test_links_folders_and_devices_in_the_place_of_files_are_not_touched(
    tmp_path: Path, policy: str
) -> None:
    (tmp_path / "precious").write_text("data")
    (tmp_path / "a_0_00000.h5").symlink_to(tmp_path / "precious")
    (tmp_path / "b_master.h5").mkdir()
    os.mkfifo(tmp_path / "c_master.h5.part")
    (tmp_path / "d_master.h5.part").symlink_to("/dev/null")
    before = everything(tmp_path)
    for name, what in (("a", "a link"), ("b", "a folder"), ("c", "a device"), ("d", "a link")):
        said = "exists already" if policy == "abort" else f"is {what}, .* not overwritten"
        with pytest.raises(StorageError, match=said):
            reserved(tmp_path, name, file="{name}", exists=policy)
    assert everything(tmp_path) == before
    assert (tmp_path / "precious").read_text() == "data"


@pytest.mark.parametrize("output", ["a\0b", "a\nb", "\udcff"])
def test_an_output_folder_nobody_can_name_is_refused(tmp_path: Path, output: str) -> None:
    with pytest.raises(BadParameter, match=r"^output '"):
        reserved(tmp_path / output)
    assert everything(tmp_path) == []


def test_existing_files_are_not_touched_unless_told(tmp_path: Path) -> None:
    files = written(tmp_path / "scan_raw")
    before = [file.read_bytes() for file in files]
    with pytest.raises(StorageError, match=r"scan_raw_0_00000\.h5 and 2 more .*exists already"):
        reserved(tmp_path)
    with pytest.raises(StorageError, match=r"abort .*overwrite, append-number"):
        reserved(tmp_path)
    assert [file.read_bytes() for file in files] == before


def test_overwriting_deletes_what_the_run_before_wrote_and_no_more(tmp_path: Path) -> None:
    old = written(tmp_path / "scan_raw", "1_00001.h5.part", "master.h5.part")
    (tmp_path / "scan_raw_12_00003.h5").write_bytes(b"torn")
    others = ["scan_raw.txt", "scan_raw2_0_00000.h5", "scan_raw_view_0_00000.h5", "scan_raw_0_0.h5"]
    for name in others:
        (tmp_path / name).touch()
    assert reserved(tmp_path, exists="overwrite") == str(tmp_path / "scan_raw")
    assert everything(tmp_path) == sorted(others)
    assert not any(file.exists() for file in old)


def test_overwriting_spares_the_files_of_other_programs(tmp_path: Path) -> None:
    old = written(tmp_path / "scan_raw")
    with h5py.File(old[-1], "w") as file:
        file.attrs["creator"] = "a detector"
    with pytest.raises(StorageError, match="written by a detector, not by lima2py"):
        reserved(tmp_path, exists="overwrite")
    assert all(file.exists() for file in old)


def test_nothing_is_deleted_when_another_sink_is_refused(tmp_path: Path) -> None:
    old = [*written(tmp_path / "scan_raw"), *written(tmp_path / "scan_view")]
    sinks = {"raw": sink(exists="overwrite"), "view": sink()}
    with pytest.raises(StorageError, match='task "view"'):
        reserve(sinks, tmp_path, "scan", RUN)
    assert all(file.exists() for file in old)


def test_appended_numbers_are_the_first_that_are_free(tmp_path: Path) -> None:
    policy = {"exists": "append-number"}
    assert reserved(tmp_path, **policy) == str(tmp_path / "scan_raw")
    written(tmp_path / "scan_raw")
    assert reserved(tmp_path, **policy) == str(tmp_path / "scan_raw_0001")
    (tmp_path / "scan_raw_0001_1_00000.h5.part").touch()
    (tmp_path / "scan_raw_0003_master.h5.part").touch()
    assert reserved(tmp_path, **policy) == str(tmp_path / "scan_raw_0002")
    sinks = {"raw": sink(file="{name}_raw", **policy), "other": sink(file="{name}_raw_0002")}
    reservation = reserve(sinks, tmp_path, "scan", RUN)
    assert reservation.paths == {
        "raw": str(tmp_path / "scan_raw_0004"),
        "other": str(tmp_path / "scan_raw_0002"),
    }
    reservation.release()


def test_what_another_run_reserved_is_refused_or_counted_past(tmp_path: Path) -> None:
    with reserving(tmp_path) as first:
        for policy in ("abort", "overwrite"):
            with pytest.raises(StorageError, match=r'written by run "scan" \(01234567\) on '):
                reserved(tmp_path, exists=policy)
        assert reserved(tmp_path, exists="append-number").endswith("scan_raw_0001")
        assert first.taken[0].ours
    assert reserved(tmp_path) == first.paths["raw"]


def _write(path: str, ready: Barrier) -> None:
    """A node that writes until it is killed."""
    disk = SteadyFile(path)
    with h5py.File(path, "w", driver="fileobj", fileobj=disk) as file:
        file.attrs["creator"] = CREATOR
        file["entry_0000/lima2py/run"] = '{"name": "night", "run": "feedbeef1234", "host": "id10"}'
        file.flush()
        disk.commit()
        ready.wait()
        time.sleep(100)


def test_a_file_that_is_written_cannot_be_overwritten_until_its_writer_is_dead(
    tmp_path: Path,
) -> None:
    path = tmp_path / "scan_raw_1_00000.h5.part"
    old = written(tmp_path / "scan_raw", "0_00001.h5.part")[-1]
    (tmp_path / "scan_raw_1_00000.h5").unlink()
    ready = PROCESSES.Barrier(2)
    writer = PROCESSES.Process(target=_write, args=(str(path), ready), daemon=True)
    writer.start()
    try:
        ready.wait(30)
        with h5py.File(path, "r"):  # readers are not disturbed
            pass
        for policy in ("overwrite", "abort"):
            with pytest.raises(StorageError, match=r'by run "night" \(feedbeef\) on id10.* wait'):
                reserved(tmp_path, exists=policy)
        assert path.exists()
        assert old.exists()
        assert reserved(tmp_path, exists="append-number").endswith("scan_raw_0001")
    finally:
        writer.kill()
        writer.join()
        writer.close()
    with pytest.raises(StorageError, match="exists already"):
        reserved(tmp_path)
    reserved(tmp_path, exists="overwrite")
    assert everything(tmp_path) == []


def _race(folder: str, policy: str, barrier: Barrier, number: int) -> None:
    barrier.wait()
    said = Path(folder) / f"said_{number}"
    try:
        path = reserved_for_good(Path(folder), policy, number)
        said.write_text(path)
    except StorageError as error:
        said.write_text(f"refused: {error}")
    barrier.wait()  # who has it keeps it until all have tried


def reserved_for_good(folder: Path, policy: str, number: int) -> str:
    """The path of a run whose process ends without giving it back."""
    sinks = {"raw": sink(exists=policy)}
    global kept
    kept = reserve(sinks, folder, "scan", f"{number:032x}")
    return kept.paths["raw"]


kept: Reservation


@pytest.mark.parametrize("policy", ["abort", "overwrite", "append-number"])
def test_of_runs_that_want_one_path_at_once_only_one_gets_it(tmp_path: Path, policy: str) -> None:
    if policy == "overwrite":
        written(tmp_path / "scan_raw", "master.h5.part")
    barrier = PROCESSES.Barrier(6, timeout=20)
    racers = [
        PROCESSES.Process(target=_race, args=(str(tmp_path), policy, barrier, number), daemon=True)
        for number in range(6)
    ]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()  # the barrier ends those that wait in vain
    ended = [racer.exitcode for racer in racers]
    for racer in racers:
        racer.close()
    assert ended == [0] * 6
    said = [(tmp_path / f"said_{number}").read_text() for number in range(6)]
    paths = [text for text in said if not text.startswith("refused")]
    assert len(set(paths)) == len(paths) == (6 if policy == "append-number" else 1)
    files = [name for name in everything(tmp_path) if not name.startswith("said")]
    assert files == sorted(f"{Path(path).name}_master.h5.part" for path in paths)


def test_a_file_in_the_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(StorageError, match="a part of the path is a file"):
        reserved(tmp_path / "out")
    with pytest.raises(StorageError, match="a part of the path is a file"):
        reserved(tmp_path / "out" / "deeper")
    assert everything(tmp_path) == ["out"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_one_may_not_write_to_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        for folder in (tmp_path, tmp_path / "new"):
            with pytest.raises(StorageError, match="this user may not write there"):
                reserved(folder)
    finally:
        tmp_path.chmod(stat.S_IRWXU)


def test_a_folder_the_system_lets_nobody_write_to_is_refused() -> None:
    for folder in (Path("/proc"), Path("/proc/self/new")):
        with pytest.raises(StorageError, match=f"{folder}.* cannot be (written|made)"):
            reserved(folder)


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """A file system of its own in memory."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount file systems")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_read_only_disk_is_refused(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=1m,ro"):
        for folder, what in ((tmp_path / "disk", "written to"), (tmp_path / "disk/a", "made")):
            said = f"{folder} cannot be {what}: Read-only file system; that disk is read-only"
            with pytest.raises(StorageError, match=said):
                reserved(folder)


def test_a_full_disk_is_refused_at_once(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=64k"):
        with (tmp_path / "disk" / "rest").open("wb", buffering=0) as rest:
            while rest.write(bytes(4096)) == 4096:
                if not os.statvfs(tmp_path / "disk").f_bavail:
                    break
        with pytest.raises(StorageError, match=r"No space left .*\(0 B free on that disk\); make"):
            reserved(tmp_path / "disk")
        assert everything(tmp_path / "disk") == ["rest"]


def test_a_disk_without_room_for_another_file_is_refused(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=1m,nr_inodes=3"):
        for name in ("a", "b"):
            (tmp_path / "disk" / name).touch()
        with pytest.raises(StorageError, match="holds as many files as it can: delete some"):
            reserved(tmp_path / "disk")


def test_a_folder_that_goes_in_circles_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(StorageError, match="a symbolic link of the path leads to itself"):
        reserved(tmp_path / "loop" / "deeper")


def test_a_device_is_no_output_folder() -> None:
    for folder in (Path("/dev/null"), Path("/dev/null/new")):
        with pytest.raises(StorageError, match="a part of the path is a file"):
            reserved(folder)


def test_files_of_nodes_that_died_before_the_run_began_are_cleared_but_no_others(
    tmp_path: Path,
) -> None:
    taken = reserve({"raw": SaveDense()}, tmp_path, "a", RUN)
    dead, living, done = (
        Path(f"{taken.paths['raw']}_{rank}_00000.h5{part}")
        for rank, part in enumerate((".part", ".part", ""))
    )
    for path in (dead, done):
        path.touch()
    file = LockedFile(str(living))
    try:
        taken.clear()
        assert not dead.exists()
        assert living.exists()
        assert done.exists()
    finally:
        file.close()
        taken.release()
