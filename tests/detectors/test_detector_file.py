"""A detector is named by a plugin, by a YAML file that is shipped, or by the path of one's own."""

from __future__ import annotations

import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from fabio.tifimage import TifImage
from lima2py_detectors.replay import Replay
from lima2py_detectors.simulator import Simulator

from lima2py.acquisition import Acquisition
from lima2py.detector_file import known_detectors, open_detector
from lima2py.documents import read_yaml
from lima2py.errors import BadParameter
from lima2py.testing.detectors import read_all

HERE = Path()
SHIPPED = sorted(Path(str(files("lima2py_detectors"))).glob("*/*.yaml"))


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_file_opens_under_its_stem_and_delivers(path: Path, tmp_path: Path) -> None:
    assert path.stem == read_yaml(path)["detector"]
    overrides = {}
    if path.stem == "replay":
        TifImage(data=np.ones((3, 4), "uint16")).write(str(tmp_path / "a.tif"))
        overrides = {"files": "a.tif"}
    detector = open_detector(path.stem, overrides, tmp_path)
    assert detector.info.name == path.stem
    assert len(read_all(detector, Acquisition(expo_time=1e-3))) == 1
    detector.close()


@pytest.mark.parametrize(
    ("name", "image", "pixels"),
    [
        ("eiger2_4m_like", (2162, 2068), 8 * 512 * 1028),
        ("pilatus3_6m_like", (2527, 2463), 60 * 195 * 487),
    ],
)
def test_detectors_like_real_ones_have_their_size(
    name: str, image: tuple[int, int], pixels: int
) -> None:
    info = open_detector(name, {}, HERE).info
    assert info.shape == image
    assert sum(place.size[0] * place.size[1] for place in info.modules) == pixels


def test_a_file_of_ones_own_says_plugin_name_and_parameters(tmp_path: Path) -> None:
    text = "detector: moby\nplugin: simulator\nabout: A test.\nshape: [6, 8]\npulse_period: 2 ms\n"
    write(tmp_path / "own.yaml", text)
    detector = open_detector("own.yaml", {"dtype": "uint8"}, tmp_path)
    assert isinstance(detector, Simulator)
    assert (detector.name, detector.shape, detector.dtype) == ("moby", (6, 8), "uint8")
    assert detector.pulse_period == 0.002
    assert open_detector(str(tmp_path / "own.yaml"), {"name": "dick"}, HERE).info.name == "dick"


def test_the_name_is_the_plugins_when_the_file_gives_none(tmp_path: Path) -> None:
    path = write(tmp_path / "own.yaml", "plugin: simulator\n")
    assert open_detector(path, {}, HERE).info.name == "simulator"


def test_relative_paths_are_relative_to_where_they_were_written(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    path = write(tmp_path / "tape.yaml", "plugin: replay\nfiles: [data/*.tif, /data/b.tif]\n")
    detector = open_detector(path, {}, HERE)
    assert isinstance(detector, Replay)
    assert detector.files == (f"{tmp_path}/data/*.tif", "/data/b.tif")
    again = open_detector(path, {"files": "mine.h5"}, tmp_path / "here")
    assert isinstance(again, Replay)
    assert again.files == (f"{tmp_path}/here/mine.h5",)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("detector: a\n", "own.yaml, plugin: should be a name, one of replay, simulator"),
        ("plugin: [a]\n", "own.yaml, plugin: should be a name"),
        ("plugin: simulator\ndetector: 12\n", "own.yaml, detector: should be a name; given: 12"),
        (
            "plugin: simulater\n",
            r'own.yaml, plugin: there is no detector "simulater" \(did you mean',
        ),
        ("plugin: simulator\nshpe: 1\n", r"own.yaml, shpe: there is no such field \(did you mean"),
        ("plugin: simulator\nshape: [1]\n", "own.yaml, shape.1: is required"),
        ("plugin: simulator\nplugin: replay\n", "own.yaml, line 2"),
        ("plugin: replay\nfiles: 12\n", "own.yaml, files: "),
        ("plugin: replay\nfiles: [12]\n", "own.yaml, files.0: "),
        ("[]\n", "own.yaml: "),
    ],
)
def test_a_faulty_file_is_refused_with_its_path_and_field(
    tmp_path: Path, text: str, says: str
) -> None:
    with pytest.raises(BadParameter, match=says):
        open_detector(write(tmp_path / "own.yaml", text), {}, HERE)


@pytest.mark.parametrize("name", ["simulater", "", "replay "])
def test_an_unknown_detector_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(BadParameter, match=f'no detector "{name}"; known are .*replay, simulator'):
        open_detector(name, {}, HERE)


def test_what_a_detector_known_by_name_still_needs_is_said_by_this_name() -> None:
    with pytest.raises(BadParameter, match=r"^detector replay, files: is required"):
        open_detector("replay", {}, HERE)


@pytest.mark.parametrize("path", ["there/is/none", "none.yaml", "none.yml"])
def test_a_file_that_is_not_there_is_refused(path: str, tmp_path: Path) -> None:
    with pytest.raises(BadParameter, match=f"{path}: there is no such detector file"):
        open_detector(path, {}, tmp_path)


def test_every_known_detector_has_a_line() -> None:
    lines = known_detectors()
    assert {"simulator", "replay", *(path.stem for path in SHIPPED)} == set(lines)
    assert all(0 < len(line) < 100 and "\n" not in line for line in lines.values())


THIRD_PARTY = '''
"""A detector somebody else wrote."""

from lima2py_detectors.simulator import Simulator


class Camera(Simulator):
    """Looks at the sample."""

    lens: str = "wide"
'''
USE_IT = """
from pathlib import Path
from lima2py.acquisition import Acquisition
from lima2py.detector_file import known_detectors, open_detector
from lima2py.testing.detectors import read_all

camera = open_detector("camera", {"lens": "tele", "shape": [4, 5]}, Path())
frames = read_all(camera, Acquisition(nb_frames=3, expo_time=1e-3))
print(type(camera).__name__, camera.lens, camera.info.name, len(frames))
print(known_detectors()["camera"])
print(known_detectors()["broken"])
"""


def test_a_plugin_of_another_package_is_found_when_it_is_installed(tmp_path: Path) -> None:
    """A package put where Python looks for packages: nothing of lima2py knows its name."""
    (tmp_path / "camera_plugin.py").write_text(THIRD_PARTY)
    about = tmp_path / "camera_plugin-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: camera-plugin\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "[lima2py.detectors]\ncamera = camera_plugin:Camera\nbroken = camera_plugin:Nothing\n"
    )
    code = f"import sys; sys.path.append({str(tmp_path)!r})\n{USE_IT}"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    first, second, third = done.stdout.splitlines()
    assert first == "Camera tele camera 3"
    assert second == "Looks at the sample."
    assert "cannot be imported" in third
