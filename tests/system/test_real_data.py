"""Recorded frames through acquisition, two processing nodes and files: every pixel, in order."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path

import fabio
import h5py
import numpy as np
import pytest

from tests.system.rig import Command, check_account, detector_group, unpack

GRAPH = """
graph: recorded
tasks:
  whole: {do: roi_counters, from: detector, rois: {all: [0, 0, 256, 256]}}
  raw: {do: save_dense, from: detector}
  counts: {do: save_table, from: whole}
"""


def spec_columns(path: Path, scan: int) -> dict[str, np.ndarray]:
    """The columns of a scan in a SPEC log; names are separated by two blanks."""
    lines = iter(path.read_text().splitlines())
    names: list[str] = []
    rows: list[list[float]] = []
    for line in lines:
        if line.startswith(f"#S {scan} "):
            break
    for line in lines:
        if line.startswith("#S"):
            break
        if line.startswith("#L"):
            names = line.removeprefix("#L ").split("  ")
        elif line and not line.startswith("#"):
            rows.append([float(word) for word in line.split()])
    return dict(zip(names, np.array(rows).T, strict=True))


def test_timepix_frames_arrive_unchanged_and_their_sums_are_those_of_the_beamline(
    shared_data: Path, tmp_path: Path, command: Callable[..., Command]
) -> None:
    with tarfile.open(shared_data / "aps34idc_bcdi.tar.xz") as archive:
        unpack(archive, tmp_path / "aps")
    folder = tmp_path / "aps/example/exp_data/Staff20-1a_S0054"
    (tmp_path / "recorded.yaml").write_text(GRAPH)
    report = command(
        "run", "recorded.yaml", "--detector", "replay", "--processing-nodes", 2,
        "--set", f"detector.files={folder}/*.tif", "--set", "detector.pace=flat_out",
        "--output", "out", "--json",
    ).report()  # fmt: skip
    assert (report["outcome"], report["asked"], report["saved"]) == ("completed", 201, 201)
    check_account(report)
    with h5py.File(report["masters"]["raw"], "r") as file:
        data = file["entry_0000/measurement/data"]
        assert data.dtype == np.int32
        for index, path in enumerate(sorted(folder.glob("*.tif"))):
            np.testing.assert_array_equal(data[index], fabio.open(path).data, err_msg=path.name)
        nodes = detector_group(file)["frames/node"][()]
        assert set(nodes) == {0, 1}
    log = spec_columns(tmp_path / "aps/example/example.spec", 54)
    with h5py.File(report["masters"]["counts"], "r") as file:
        counts = file["entry_0000/measurement/data"][()][:, 0]
    np.testing.assert_array_equal(counts["sum"], log["ImageTot"])
    np.testing.assert_array_equal(counts["max"], log["ImageMax"])


@pytest.mark.timeout(240)
def test_pilatus_frames_arrive_unchanged(
    shared_data: Path, tmp_path: Path, command: Callable[..., Command]
) -> None:
    files = sorted((shared_data / "dials_thaumatin_grid").glob("*.cbf.bz2"))
    assert len(files) == 19
    report = command(
        "run", "save_raw", "--detector", "replay", "--processing-nodes", 2,
        "--set", f"detector.files={shared_data}/dials_thaumatin_grid/*.cbf.bz2",
        "--set", "detector.pace=flat_out", "--output", "out", "--json",
    ).report()  # fmt: skip
    assert (report["outcome"], report["asked"], report["saved"]) == ("completed", 19, 19)
    check_account(report)
    (master,) = report["masters"].values()
    with h5py.File(master, "r") as file:
        data = file["entry_0000/measurement/data"]
        for index, path in enumerate(files):
            np.testing.assert_array_equal(data[index], fabio.open(path).data, err_msg=path.name)
