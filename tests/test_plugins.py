"""Plugins are found among installed packages, and nowhere else."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lima2py import plugins
from lima2py.detector import Detector
from lima2py.errors import BadParameter, LimaError
from lima2py.task import Task

WHERE = "graph.yaml, task view, do"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder where packages that are put into it are installed."""
    monkeypatch.syspath_prepend(tmp_path)
    plugins.known.cache_clear()
    loaded = set(sys.modules)
    yield tmp_path
    plugins.known.cache_clear()
    for name in set(sys.modules) - loaded:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def install(folder: Path, package: str, code: str, points: str, group: str) -> None:
    """Put a package of one module into a folder, as an installer would."""
    (folder / f"{package}.py").write_text(code)
    metadata = folder / f"{package}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[{group}]\n{points}\n")


TASK = """
from lima2py.task import Task
class Halve(Task):
    def prepare(self, spec): return spec
    def process(self, block): return block
"""


def test_the_tasks_that_come_with_lima2py_are_found() -> None:
    names = {"mask", "crop", "bin", "flip", "rotate", "roi_counters", "tap"}
    assert names <= set(plugins.known(plugins.TASKS))
    for name in names:
        assert issubclass(plugins.load(plugins.TASKS, name, Task, WHERE), Task)


def test_the_detectors_that_come_with_lima2py_are_offered() -> None:
    assert {"simulator", "replay"} <= set(plugins.known(plugins.DETECTORS))


def test_a_task_of_another_package_is_found_without_a_change_here(installed: Path) -> None:
    install(installed, "halving", TASK, "halve = halving:Halve", plugins.TASKS)
    found = plugins.load(plugins.TASKS, "halve", Task, WHERE)
    assert found.__name__ == "Halve"
    assert found.__module__ == "halving"


def test_an_unknown_name_is_refused_with_the_nearest_known_one() -> None:
    with pytest.raises(BadParameter) as refused:
        plugins.load(plugins.TASKS, "roi_counter", Task, WHERE)
    assert str(refused.value) == (
        f'{WHERE}: there is no task "roi_counter" (did you mean "roi_counters"?)'
    )
    with pytest.raises(BadParameter, match='there is no detector "eiger"'):
        plugins.load(plugins.DETECTORS, "eiger", Detector, WHERE)


@pytest.mark.parametrize("name", ["lima2py.tasks.reshape:Bin", "./bin.py", "", "os:system"])
def test_code_is_never_taken_from_a_name_that_is_not_registered(name: str) -> None:
    with pytest.raises(BadParameter, match="there is no task"):
        plugins.load(plugins.TASKS, name, Task, WHERE)


def test_a_class_that_is_no_task_is_refused(installed: Path) -> None:
    points = "halve = halving:Task\nhalf = halving:__doc__"
    install(installed, "halving", "class Task: pass", points, plugins.TASKS)
    for name in ("halve", "half"):
        with pytest.raises(BadParameter, match=f'"{name}" .*is not a Task'):
            plugins.load(plugins.TASKS, name, Task, WHERE)


def test_a_plugin_that_cannot_be_imported_says_what_is_missing(installed: Path) -> None:
    install(installed, "vendor", "import acme_sdk", "acme = vendor:Acme", plugins.DETECTORS)
    with pytest.raises(BadParameter, match=r"vendor:Acme.*cannot be imported.*acme_sdk"):
        plugins.load(plugins.DETECTORS, "acme", Detector, WHERE)


def test_two_packages_with_one_name_are_refused_by_both_names(installed: Path) -> None:
    for package in ("first", "second"):
        install(installed, package, TASK, f"halve = {package}:Halve", plugins.TASKS)
    with pytest.raises(LimaError, match='two installed packages offer "halve"') as refused:
        plugins.known(plugins.TASKS)
    assert "first:Halve" in str(refused.value)
    assert "second:Halve" in str(refused.value)


def test_listing_plugins_imports_none_of_them() -> None:
    """A listing must work where the libraries of some maker are broken."""
    script = (
        "import sys; from lima2py.plugins import *; known(DETECTORS); known(TASKS);"
        " print([m for m in sys.modules if m.startswith(('lima2py.tasks', 'lima2py_detectors'))])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")
