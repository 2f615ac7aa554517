"""Arrays are kept and found again, and made anew when what was kept cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from lima2py.frame import Array
from lima2py.tasks.kept import KeptArrays

Kept = Callable[[], KeptArrays]


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One item for each time the arrays were computed."""
    monkeypatch.setenv("LIMA2PY_CACHE", str(tmp_path / "cache"))
    return []


@pytest.fixture
def kept(made: list[int]) -> Kept:
    """Some arrays, as they would be asked for in a prepare."""

    def make() -> Mapping[str, Array]:
        made.append(1)
        return {"radius": np.arange(12.0), "bins": np.arange(5)}

    return lambda: KeptArrays("things", {"of": 1}, ("radius", "bins"), make)


def right(found: KeptArrays) -> bool:
    arrays = found.arrays
    return np.array_equal(arrays["radius"], range(12)) and np.array_equal(arrays["bins"], range(5))


def test_arrays_are_computed_once_and_found_again(kept: Kept, made: list[int]) -> None:
    assert right(kept())
    assert right(kept())
    assert len(made) == 1


@pytest.mark.parametrize("left", [0, 5, 60, 140])
def test_a_damaged_file_is_made_anew(
    kept: Kept, made: list[int], left: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept()
    (path,) = tmp_path.glob("cache/things-*/radius.npy")
    path.write_bytes(path.read_bytes()[:left])
    assert right(kept())
    assert "is damaged, and made anew" in caplog.text
    assert right(kept())
    assert len(made) == 2


def test_a_file_that_was_deleted_is_made_anew(kept: Kept, made: list[int], tmp_path: Path) -> None:
    kept()
    for path in tmp_path.glob("cache/things-*/bins.npy"):
        path.unlink()
    assert right(kept())
    assert len(made) == 2


def test_a_change_made_to_an_array_is_not_kept(kept: Kept) -> None:
    kept().arrays["radius"][:] = 7
    assert right(kept())


def test_where_nothing_can_be_kept_it_works_and_says_so(
    kept: Kept, made: list[int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file is in the way")
    assert right(kept())
    assert "set LIMA2PY_CACHE to a folder that can be written" in caplog.text
    assert right(kept())
    assert len(made) == 2
