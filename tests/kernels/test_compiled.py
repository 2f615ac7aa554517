"""Compiled functions are kept, found again, and made anew when anything about them changes."""

from __future__ import annotations

import errno
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lima2py.kernels.compiled import cache_folder, function_from, modules_of, njit

TWICE = """from numba import njit

@njit(**OPTIONS)
def run(values):
    for place in range(values.size):
        values[place] *= 2
"""

BY_HELPER = """from numba import njit
from changing_helper import factor

@njit(**OPTIONS)
def run(values):
    for place in range(values.size):
        values[place] *= factor()
"""

HELPER = """from numba import njit

@njit(nogil=True, cache=True)
def factor():
    return {}
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder for compiled functions; what this process knows already is forgotten."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("LIMA2PY_CACHE", str(folder))
    function_from.cache_clear()
    yield folder
    function_from.cache_clear()


def of_ones(source: str, uses: tuple[str, ...] = ()) -> list[float]:
    values = np.ones(3)
    function_from(source, uses)(values)
    return [float(value) for value in values]


def sources(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.py"))


def machine_code(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.nbc"))


def test_the_folder_is_the_users_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMA2PY_CACHE", "/a/b")
    assert cache_folder() == Path("/a/b")
    monkeypatch.delenv("LIMA2PY_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    assert cache_folder() == Path("/c/lima2py")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "lima2py"


def test_source_and_machine_code_are_kept_for_this_user_only(cache: Path) -> None:
    assert of_ones(TWICE) == [2, 2, 2]
    (source,) = sources(cache)
    assert source.read_text() == TWICE
    assert machine_code(cache)
    assert cache.stat().st_mode & 0o777 == 0o700
    assert not list(cache.glob("*.part"))


def test_a_function_is_built_once_in_a_process(cache: Path) -> None:
    assert function_from(TWICE) is function_from(TWICE)


def test_another_process_finds_the_machine_code_and_adds_none(cache: Path) -> None:
    of_ones(TWICE)
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()}
    program = (
        "import numpy as np, sys\n"
        "from lima2py.kernels.compiled import function_from\n"
        "values = np.ones(3)\n"
        "run = function_from(sys.stdin.read())\n"
        "run(values)\n"
        "assert values.tolist() == [2, 2, 2]\n"
        "assert sum(run.stats.cache_hits.values()) == 1, run.stats\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], input=TWICE, capture_output=True, text=True,
        env={**os.environ, "LIMA2PY_CACHE": str(cache)}, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    after = {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()}
    assert after == before


def test_another_source_is_another_function(cache: Path) -> None:
    assert of_ones(TWICE) == [2, 2, 2]
    assert of_ones(TWICE.replace("2", "3")) == [3, 3, 3]
    assert len(sources(cache)) == 2


def test_a_changed_function_that_is_called_makes_a_new_one(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    helper = tmp_path / "changing_helper.py"
    try:
        for number in (5, 7):
            helper.write_text(HELPER.format(number))
            sys.modules.pop("changing_helper", None)
            importlib.invalidate_caches()
            monkeypatch.setattr(sys, "dont_write_bytecode", True)
            function_from.cache_clear()  # as a new process would begin
            assert of_ones(BY_HELPER, ("changing_helper",)) == [number] * 3
    finally:
        sys.modules.pop("changing_helper", None)
    assert len(sources(cache)) == 2


def test_another_numba_makes_a_new_one(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numba

    function_from(TWICE)
    function_from.cache_clear()
    monkeypatch.setattr(numba, "__version__", "0.0")
    function_from(TWICE)
    assert len(sources(cache)) == 2


@pytest.mark.parametrize("how", ["a file is in the way", "read-only"])
def test_where_nothing_can_be_kept_it_works_and_says_so(
    cache: Path,
    how: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if how == "read-only":
        function_from(TWICE)
        function_from.cache_clear()
        monkeypatch.setattr(os, "access", lambda path, mode: False)
    else:
        cache.write_text("")
    assert of_ones(TWICE) == [2, 2, 2]
    (record,) = caplog.records
    assert f"cannot be kept in {cache}" in record.getMessage()
    assert "set LIMA2PY_CACHE to a folder that can be written" in record.getMessage()


@pytest.mark.parametrize("kept", ["*.py", "__pycache__/*.nbi", "__pycache__/*.nbc"])
def test_a_damaged_file_costs_time_only(cache: Path, kept: str) -> None:
    of_ones(TWICE)
    (path,) = cache.glob(kept)
    before, status = path.read_bytes(), path.stat()
    path.write_bytes(before[:20])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    function_from.cache_clear()  # as a new process would begin
    assert of_ones(TWICE) == [2, 2, 2]
    assert all(path.stat().st_size > 20 for path in cache.glob(kept))
    function_from.cache_clear()
    run: Any = function_from(TWICE)
    run(np.ones(3))
    assert sum(run.stats.cache_hits.values()) == 1  # it has been mended


def test_a_full_disk_costs_time_only(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from numba.core.caching import IndexDataCacheFile

    def full(self: object, key: object, data: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(IndexDataCacheFile, "save", full)
    assert of_ones(TWICE) == [2, 2, 2]
    assert f"cannot be kept in {cache} (No space left on device)" in caplog.text


def test_without_a_home_folder_it_works_and_says_so(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("LIMA2PY_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", home)
    assert of_ones(TWICE) == [2, 2, 2]
    assert "cannot be kept in the user's cache folder (this user has no home" in caplog.text


def test_a_kernel_that_numba_can_keep_nowhere_is_compiled_all_the_same() -> None:
    namespace: dict[str, Any] = {"njit": njit}
    source = "@njit(nogil=True, cache=True)\ndef twice(number):\n    return 2 * number\n"
    exec(compile(source, "/nowhere/kernel.py", "exec"), namespace)  # a file that is not there
    assert namespace["twice"](4) == 8


def test_an_error_in_a_function_that_cannot_be_kept_shows_its_source(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.write_text("")
    run = function_from(TWICE.replace("values.size", "values.absent"))
    with pytest.raises(Exception, match="for place in range"):
        run(np.ones(3))


def test_modules_are_named_once_each_in_their_order() -> None:
    assert modules_of(["b:one", "a:two", "b:three"]) == ("b", "a")
    assert modules_of([]) == ()


def test_importing_lima2py_does_not_import_numba() -> None:
    program = (
        "import sys, lima2py, lima2py.graph.flow, lima2py.tasks.correct, lima2py.tasks.gain\n"
        "import lima2py.tasks.count_rate\n"
        "assert 'numba' not in sys.modules, 'numba was imported'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_options_let_other_threads_run_and_keep_nan_and_infinity(cache: Path) -> None:
    run: Any = function_from(
        TWICE.replace("values[place] *= 2", "values[place] = 1 / values[place]")
    )
    assert run.targetoptions["nogil"]
    assert "fastmath" not in run.targetoptions
    values = np.array([0.0, -0.0, np.nan, np.inf])
    run(values)
    np.testing.assert_array_equal(values, [np.inf, -np.inf, np.nan, 0])
