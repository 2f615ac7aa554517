"""Where files go is settled, or refused, before anything starts; and nothing is left behind."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import h5py
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lima2py.errors import BadParameter, StorageError
from lima2py.frame import FrameSpec
from lima2py.storage.dense import SaveDense
from lima2py.storage.reserve import Reservation, files_of, reserve
from tests.storage.made_up import round_robin

RUN = "0123456789abcdef" * 2


def sink(**fields: object) -> SaveDense:
    return SaveDense.load(fields, "test")


def reserved(folder: Path, name: str = "scan", **fields: object) -> str:
    """The path of one sink, `raw`."""
    return reserve({"raw": sink(**fields)}, folder, name, RUN).paths["raw"]


def written(prefix: Path) -> list[Path]:
    """Files of a run of two nodes."""
    round_robin(FrameSpec.dense(2, 3, "u2"), 4, 1, 2).write(prefix)
    return [
        prefix.with_name(f"{prefix.name}_{part}.h5") for part in ("0_00000", "1_00000", "master")
    ]


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_templates_are_filled(tmp_path: Path) -> None:
    assert reserved(tmp_path) == str(tmp_path / "scan_raw")
    assert reserved(tmp_path, file="{sink}/{{x}}_{run}") == str(tmp_path / "raw" / f"{{x}}_{RUN}")
    assert reserved(tmp_path, name="a/b.c", file="{name}") == str(tmp_path / "a" / "b.c")
    assert reserved(tmp_path, file=f"{tmp_path}/deep/x") == str(tmp_path / "deep" / "x")


def test_folders_are_made_and_given_back(tmp_path: Path) -> None:
    output = tmp_path / "2026" / "visit"
    sinks = {"raw": sink(file="raw/{name}"), "view": sink(file="view/deep/{name}")}
    reservation = reserve(sinks, output, "scan", RUN)
    assert everything(output) == ["raw", "view", "view/deep"]
    reservation.release()
    assert everything(tmp_path) == []
    again = reserve(sinks, output, "scan", RUN)
    (output / "raw" / "scan_0_00000.h5").touch()
    again.release()
    assert everything(tmp_path) == ["2026", "2026/visit", "2026/visit/raw",
                                    "2026/visit/raw/scan_0_00000.h5"]  # fmt: skip


def test_two_sinks_may_not_write_one_file(tmp_path: Path) -> None:
    sinks = {"raw": sink(file="{name}"), "view": sink(file="./x/../{name}")}
    with pytest.raises(BadParameter, match=r'task "view", file: .*where task "raw" writes already'):
        reserve(sinks, tmp_path / "new", "scan", RUN)
    assert everything(tmp_path) == []


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
    ],
)
def test_what_cannot_be_a_path_is_refused(
    tmp_path: Path, template: str, name: str, said: str
) -> None:
    with pytest.raises(BadParameter, match=f'(?s)^task "raw", file: .*{said}'):
        reserved(tmp_path / "new", name=name, file=template)
    assert everything(tmp_path) == []


@given(st.text(max_size=40), st.sampled_from(["{name}", "{name}_{sink}", "a/{name}"]))
def test_any_name_stays_inside_or_is_refused(name: str, template: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "out"
        try:
            reservation = reserve({"raw": sink(file=template)}, output, name, RUN)
        except BadParameter:
            assert everything(Path(folder)) == []
            return
        path = Path(reservation.paths["raw"] + "_0_00000.h5")
        path.touch()
        assert output in path.resolve().parents
        path.unlink()
        reservation.release()
        assert everything(Path(folder)) == []


def test_existing_files_are_not_touched_unless_told(tmp_path: Path) -> None:
    files = written(tmp_path / "scan_raw")
    before = [file.read_bytes() for file in files]
    with pytest.raises(StorageError, match=r"scan_raw_0_00000\.h5 and 2 more .*exists already"):
        reserved(tmp_path)
    with pytest.raises(StorageError, match=r"abort .*overwrite, append-number"):
        reserved(tmp_path)
    assert [file.read_bytes() for file in files] == before


def test_overwriting_deletes_what_the_run_before_wrote_and_no_more(tmp_path: Path) -> None:
    old = written(tmp_path / "scan_raw")
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
    written(tmp_path / "scan_raw_0001")
    (tmp_path / "scan_raw_0003_master.h5").touch()
    assert reserved(tmp_path, **policy) == str(tmp_path / "scan_raw_0002")
    sinks = {"raw": sink(file="{name}_raw", **policy), "other": sink(file="{name}_raw_0002")}
    taken = reserve(sinks, tmp_path, "scan", RUN).paths
    assert taken == {
        "raw": str(tmp_path / "scan_raw_0004"),
        "other": str(tmp_path / "scan_raw_0002"),
    }


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


def test_releasing_nothing_does_nothing(tmp_path: Path) -> None:
    Reservation({}).release()
    assert files_of(tmp_path / "gone" / "x") == []
