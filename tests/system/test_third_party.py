"""A package of somebody else brings tasks: it is installed, and they work like any other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401 - registers the filters
import numpy as np
import pytest
from lima2py_detectors.simulator import verifiable_frames

from lima2py.control.files import REFUSED
from tests.system.rig import LIMA2PY, check_account

PROJECT = """
[project]
name = "beamline-tasks"
version = "1.0"

[project.entry-points."lima2py.tasks"]
gain = "beamline_tasks:Gain"
brightest = "beamline_tasks:Brightest"
breaks = "beamline_tasks:Breaks"

[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[tool.setuptools]
py-modules = ["beamline_tasks"]
"""
MODULE = '''
"""Tasks of a beamline."""

import numpy as np

from lima2py.errors import BadParameter
from lima2py.frame import Block, FrameSpec
from lima2py.onepass import Operation, Pixelwise
from lima2py.tags import Tags
from lima2py.task import Task


class Gain(Pixelwise):
    """Multiply by a gain."""

    by: float = 1.0

    def operation(self, spec: FrameSpec) -> Operation:
        return Operation("v * by", np.dtype("float32"), values={"by": np.float32(self.by)})


class Brightest(Task):
    """Where the brightest pixel is."""

    needs: Tags = {"gpu": 1}

    def prepare(self, spec: FrameSpec) -> FrameSpec:
        if spec.kind != "dense" or spec.bands > 1:
            raise BadParameter("from: one image is needed")
        self._spec = FrameSpec("vector", (2,), np.dtype("int64"), span=spec.span)
        return self._spec

    def process(self, block: Block) -> Block:
        flat = block.pixels.reshape(block.count, -1).argmax(axis=1)
        return block.carry(self._spec, np.stack(np.divmod(flat, block.spec.width)[::-1], axis=1))


class Breaks(Task):
    """Raise what no task should."""

    def prepare(self, spec: FrameSpec) -> FrameSpec:
        return spec

    def process(self, block: Block) -> Block:
        raise KeyboardInterrupt
'''
TESTS = """
import pytest
from beamline_tasks import Brightest, Gain

from lima2py.frame import FrameSpec
from lima2py.testing.tasks import TaskTests


class TestGain(TaskTests):
    @pytest.fixture
    def task(self):
        return Gain.load({"by": 2}, "gain")


class TestBrightest(TaskTests):
    @pytest.fixture
    def task(self):
        return Brightest()

    @pytest.fixture
    def spec(self):
        return FrameSpec.dense(12, 16, "uint16")
"""
GRAPH = """
graph: beamline
tasks:
  gained: {do: gain, from: detector, by: 0.5}
  where:  {do: brightest, from: gained}
  images: {do: save_dense, from: gained}
  places: {do: save_vector, from: where}
"""
SYSTEMS = {
    "0": "{system: one, detector: simulator, tags: {gpu: 1}}",
    "2": """
system: two
detector: simulator
acquisition: [{node: acq0}]
processing: [{node: proc0, tags: {gpu: 1}}, {node: proc1, tags: {gpu: 2}}]
""",
}
"""By the number of nodes, one that has what they need."""
SMALL = ["--set", "detector.pattern=verifiable", "--set", "detector.shape=[48,64]"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder the package is installed into."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("target")
    (source / "pyproject.toml").write_text(PROJECT)
    (source / "beamline_tasks.py").write_text(MODULE)
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--no-build-isolation"),
            *("--no-deps", "--no-index", "--target", target, source),
        ],
        check=True,
        capture_output=True,
    )
    return target


def follow(words: list[str], installed: Path, folder: Path, status: int = 0) -> str:
    """What a command says where the package is installed."""
    done = subprocess.run(
        words,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "PYTHONPATH": str(installed), "NO_COLOR": "1", "COLUMNS": "100"},
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


def test_its_tasks_are_listed_with_the_others(installed: Path, tmp_path: Path) -> None:
    listed = dict(
        line.split(maxsplit=1)
        for line in follow([LIMA2PY, "list", "tasks"], installed, tmp_path).splitlines()
    )
    assert listed["gain"] == "Multiply by a gain."
    assert listed["brightest"] == "Where the brightest pixel is."
    assert "bin" in listed


def test_a_check_says_what_they_need(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "beamline.yaml").write_text(GRAPH)
    (tmp_path / "system.yaml").write_text(SYSTEMS["2"])
    words = [LIMA2PY, "check", "beamline.yaml", *SMALL]
    said = follow([*words, "--system", "system.yaml"], installed, tmp_path)
    assert "where needs nodes with gpu 1" in said
    assert "gained needs" not in said
    follow(words, installed, tmp_path, REFUSED)


@pytest.mark.parametrize("nodes", ["0", "2"])
def test_they_run_on_nodes(installed: Path, tmp_path: Path, nodes: str) -> None:
    (tmp_path / "beamline.yaml").write_text(GRAPH)
    (tmp_path / "system.yaml").write_text(SYSTEMS[nodes])
    words = [LIMA2PY, "run", "beamline.yaml", *SMALL, "--nb-frames", "60", "--expo-time", "10 us"]
    said = follow([*words, "--system", "system.yaml", "--json"], installed, tmp_path)
    report: dict[str, Any] = json.loads(said)
    assert report["saved"] == 60
    check_account(report)
    frames = verifiable_frames(0, 60, (48, 64), "uint16").reshape(60, 48, 64)
    expected = frames * np.float32(0.5)
    with h5py.File(report["masters"]["images"], "r") as file:
        np.testing.assert_array_equal(file["entry_0000/measurement/data"][()], expected)
    with h5py.File(report["masters"]["places"], "r") as file:
        for frame, (x, y) in zip(frames, file["entry_0000/measurement/data"][()], strict=True):
            assert frame[y, x] == frame.max()


@pytest.mark.parametrize("nodes", ["0", "2"])
def test_one_that_breaks_its_node_ends_the_run_at_once(
    installed: Path, tmp_path: Path, nodes: str
) -> None:
    (tmp_path / "broken.yaml").write_text("tasks: {bad: {do: breaks, from: detector}}\n")
    words = [LIMA2PY, "run", "broken.yaml", *SMALL, "--nb-frames", "60", "--expo-time", "10 us"]
    said = follow([*words, "--processing-nodes", nodes, "--json"], installed, tmp_path, status=1)
    report: dict[str, Any] = json.loads(said)
    assert report["outcome"] == "failed"
    assert any("KeyboardInterrupt" in text for text in report["errors"])
    assert sum(report["absent"].values()) == 60
    assert report["seconds"] < 30, "nobody waits until a silent node counts as lost"


def test_they_pass_the_suite_of_tests(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "test_beamline.py").write_text(TESTS)
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_beamline.py"]
    assert "passed" in follow(words, installed, tmp_path)
