"""The shape of the project: what may import what, what is public, what is installed."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import lima2py

ROOT = Path(__file__).parent.parent
PLACES = {"lima2py": "lima2py", "lima2py_detectors": "detectors", "lima2py_graphs": "graphs"}
SHAPELESS = {"utils", "util", "common", "helpers", "misc", "tools"}
UNSAFE = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve"}
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())


def modules() -> Iterator[Path]:
    for place in PLACES.values():
        yield from sorted((ROOT / place).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """First names of the packages a module imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").partition(".")[0])
    return names


def test_imports_go_down() -> None:
    linter = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_module_has_a_name_that_says_what_it_holds() -> None:
    assert not [path for path in modules() if path.stem.strip("_") in SHAPELESS]


def test_nothing_that_runs_code_from_data_is_imported() -> None:
    assert not [path for path in modules() if imported(path) & UNSAFE]


def test_asyncio_lives_in_the_web_server_only() -> None:
    assert {path.name for path in modules() if "asyncio" in imported(path)} <= {"web.py"}


def test_every_public_name_is_there_and_documented() -> None:
    assert list(lima2py.__all__) == sorted(lima2py.__all__)
    for name in lima2py.__all__:
        public = getattr(lima2py, name)
        assert inspect.getdoc(public), name
        assert public.__module__.startswith("lima2py."), name
    with pytest.raises(AttributeError, match="'lima2py' has no attribute 'Detektor'"):
        _ = lima2py.Detektor


def test_every_package_is_installed() -> None:
    found = {
        ".".join([name, *folder.relative_to(ROOT / place).parts])
        for name, place in PLACES.items()
        for folder in {path.parent for path in (ROOT / place).rglob("*.py")}
    }
    assert found == set(PROJECT["tool"]["setuptools"]["packages"])


def test_every_yaml_file_of_a_package_is_installed() -> None:
    patterns = PROJECT["tool"]["setuptools"]["package-data"]
    for name in ("lima2py_detectors", "lima2py_graphs"):
        folder = ROOT / PLACES[name]
        covered = {path for pattern in patterns[name] for path in folder.glob(pattern)}
        assert set(folder.rglob("*.yaml")) <= covered


@pytest.mark.parametrize("group", ["lima2py.detectors", "lima2py.tasks"])
def test_every_entry_point_leads_to_a_class(group: str) -> None:
    for value in PROJECT["project"]["entry-points"][group].values():
        module, _, name = value.partition(":")
        assert inspect.isclass(getattr(import_module(module), name))
