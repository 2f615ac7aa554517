"""PONI files for tests, and a place for what is computed from them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from pyFAI.geometry import core

from lima2py.tasks import kept


def write_poni(
    folder: Path,
    shape: tuple[int, int],
    centre: tuple[float, float],
    *,
    pixel: float = 1e-3,
    distance: float = 0.05,
    tilt: float = 0.1,
    wavelength: float = 1e-10,
    name: str = "geometry.poni",
) -> str:
    """Write a PONI file; `shape` is `(height, width)`, `centre` `(x, y)` in pixels."""
    path = folder / name
    path.write_text(
        f"""poni_version: 2.1
Detector: Detector
Detector_config: {{"pixel1": {pixel}, "pixel2": {pixel}, "max_shape": [{shape[0]}, {shape[1]}], "orientation": 3}}
Distance: {distance}
Poni1: {centre[1] * pixel}
Poni2: {centre[0] * pixel}
Rot1: {tilt}
Rot2: {-tilt / 2}
Rot3: 0
Wavelength: {wavelength}
"""  # noqa: E501
    )
    return str(path)


@pytest.fixture(autouse=True, scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A fresh folder in which what is computed for a module of tests is kept.

    pyFAI collects garbage each time it reads a file, which takes most of the time of small tests.
    """
    folder = tmp_path_factory.mktemp("tables")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(core, "gc", SimpleNamespace(collect=lambda: 0))
        patch.setattr(kept, "cache_folder", lambda: folder)
        yield folder
