"""One graph gives the same products, bit by bit, whichever nodes there are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from lima2py.frame import Array
from lima2py.session.session import Session
from lima2py.session.system import System
from tests.system.rig import check_account, detector_group

SHAPE = (60, 48)
FRAMES = 240
MODULES = [f"module_{row}_{column}" for row in range(3) for column in range(2)]
GRAPH = """
graph: products
tasks:
  raw: {do: save_dense, from: detector, file: "{name}_raw"}
  masked: {do: threshold, from: detector, low: 100, needs: {fast: 2}}
  small: {do: bin, from: masked, by: [4, 3]}
  sums: {do: accumulate, from: small, frames: 6}
  bright: {do: sparsify, from: masked, above: 39000}
  beam: {do: roi_counters, from: detector, rois: {all: [0, 0, 48, 60], some: [7, 9, 20, 30]}}
  binned: {do: save_dense, from: small, file: "{name}_binned"}
  summed: {do: save_dense, from: sums, file: "{name}_sums"}
  photons: {do: save_sparse, from: bright, file: "{name}_photons"}
  counted: {do: save_table, from: beam, file: "{name}_counted"}
  live: {do: tap, from: small}
"""
FAST: dict[str, Any] = {"tags": {"fast": 2}}


def of_modules() -> list[dict[str, Any]]:
    parts = MODULES[:1], MODULES[1:4], MODULES[4:]
    return [{"node": f"acq{n}", "modules": modules} for n, modules in enumerate(parts)]


def pool(count: int, name: str = "proc", **more: Any) -> list[dict[str, Any]]:
    return [{"node": f"{name}{n}", **more} for n in range(count)]


TOPOLOGIES: dict[str, dict[str, Any]] = {
    "one process": FAST,
    "one acquisition node and two that process": {
        "acquisition": pool(1, "acq"), "processing": pool(2, **FAST),
    },
    "frames shared out over two and two": {
        "acquisition": pool(2, "acq"), "processing": pool(2, **FAST),
    },
    "modules of three joined in two": {
        "acquisition": of_modules(), "processing": pool(2, **FAST),
    },
    "modules joined in one stage and dealt out to another": {
        "acquisition": of_modules(),
        "processing": [*pool(2, "join", stage="join"), *pool(2, stage="work", **FAST)],
        "stages": {"join": {"reserved": True}},
    },
    "tasks where their tags are": {
        "acquisition": pool(1, "acq"),
        "processing": [*pool(1), *pool(2, "quick", stage="quick", tags={"fast": 3})],
    },
}  # fmt: skip


def products(topology: dict[str, Any], folder: Path) -> dict[str, Array]:
    """What is saved: every dataset of every sink, by name."""
    values = {
        "system": "topologies",
        "detector": "simulator",
        "set": {
            "shape": SHAPE, "modules": [3, 2], "pattern": "verifiable", "drop": [11, 100, 101],
        },
        "memory": {"ring": "4 MiB"},
        **topology,
    }  # fmt: skip
    (folder / "products.yaml").write_text(GRAPH)
    with Session.open(System.load(values, "test")) as session:
        session.prepare(
            graph=folder / "products.yaml", output=folder, nb_frames=FRAMES, expo_time=1e-6
        )
        session.start()
        report = session.wait(60)
    assert report.ok, report
    assert report.absent == {"detector_gap": 12}  # three, and those that are summed with them
    check_account(report.plain())
    found: dict[str, Array] = {}
    for sink, master in report.masters.items():
        with h5py.File(master, "r") as file:
            detector = detector_group(file)
            found[f"{sink}/fate"] = detector["frames/fate"][()]
            data = detector["data"]
            columns = data if isinstance(data, h5py.Group) else {"": data}
            for name, column in columns.items():
                if isinstance(column, h5py.Dataset):
                    found[f"{sink}/{name}"] = column[()]
    return found


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Array]:
    """What one process saves."""
    return products(TOPOLOGIES["one process"], tmp_path_factory.mktemp("one"))


@pytest.mark.parametrize("topology", [name for name in TOPOLOGIES if name != "one process"])
def test_products_are_the_same_as_of_one_process(
    tmp_path: Path, topology: str, expected: dict[str, Array]
) -> None:
    found = products(TOPOLOGIES[topology], tmp_path)
    assert found.keys() == expected.keys()
    assert len(found) > 10
    for name, values in expected.items():
        assert (found[name].dtype, found[name].shape) == (values.dtype, values.shape)
        assert found[name].tobytes() == values.tobytes(), name


def test_what_one_process_saves_is_right(expected: dict[str, Array]) -> None:
    from lima2py_detectors.simulator import verifiable_frames

    frames = verifiable_frames(0, FRAMES, SHAPE)[:, 0]
    there = expected["raw/fate"] == 1
    assert list(np.flatnonzero(~there)) == [11, 100, 101]
    np.testing.assert_array_equal(expected["raw/"][there], frames[there])
