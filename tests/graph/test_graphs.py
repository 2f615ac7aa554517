"""The ready graphs in graphs/: each runs by the command it shows, and gives what it says.

What is saved is computed again, with numpy, scipy or pyFAI, from the frames of the same detector.
"""

from __future__ import annotations

import json
import re
import runpy
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import fabio
import h5py
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from lima2py.acquisition import Acquisition
from lima2py.control import cli
from lima2py.detector_file import open_detector
from lima2py.frame import Array, Fate
from lima2py.graph import measure
from lima2py.graph.definition import known_graphs, load_graph
from lima2py.graph.schema import graph_schema
from lima2py.session.report import Report
from lima2py.session.session import Session
from lima2py.session.system import System
from lima2py.storage.reading.run_file import RunFile
from lima2py.testing.detectors import read_all

ROOT = Path(__file__).parents[2]
GRAPHS = sorted((ROOT / "graphs").glob("*.yaml"))
FILES = ROOT / "graphs" / "files"
SCHEMA = "docs/reference/graph.schema.json"
each_graph = pytest.mark.parametrize("path", GRAPHS, ids=[path.stem for path in GRAPHS])


def command_of(path: Path) -> str:
    """The command that the comment at the top of a graph shows."""
    found = re.search(r"^#   (lima2py run .+)$", path.read_text(), re.MULTILINE)
    assert found, f"{path} shows no command"
    return found[1]


def detector_of(path: Path) -> str:
    """The detector of this command."""
    words = shlex.split(command_of(path))
    return words[words.index("--detector") + 1] if "--detector" in words else "simulator"


def test_every_ready_graph_is_known_by_its_name() -> None:
    assert list(known_graphs()) == [path.stem for path in GRAPHS]
    assert set(known_graphs()) == set(RUNS)


@each_graph
def test_a_ready_graph_says_what_it_is(path: Path) -> None:
    graph = load_graph(path.stem)
    assert graph.name == path.stem
    assert graph.about.endswith(".")
    assert known_graphs()[path.stem] == graph.about
    assert path.read_text().startswith(f"# yaml-language-server: $schema=../{SCHEMA}\n")


@pytest.mark.parametrize("page", ["graphs/README.md", "docs/how-to/choose_a_graph.md"])
def test_a_page_about_the_ready_graphs_names_all_of_them(page: str) -> None:
    text = (ROOT / page).read_text()
    assert sorted(re.findall(r"^\| `(\w+)`", text, re.MULTILINE)) == sorted(RUNS)


def test_the_readme_shows_the_command_of_every_graph() -> None:
    text = (ROOT / "graphs" / "README.md").read_text()
    for path in GRAPHS:
        assert f"`{command_of(path)}`" in text


def test_the_schema_in_the_reference_is_that_of_the_tasks() -> None:
    written = json.loads((ROOT / SCHEMA).read_text())
    assert written == graph_schema(), (
        f"{SCHEMA} is stale; write it again:  python -m lima2py.graph.schema > {SCHEMA}"
    )


def test_the_calibration_files_are_those_of_the_simulated_detectors() -> None:
    made = runpy.run_path(str(FILES / "make.py"))["made"]()
    assert {path.name for path in FILES.iterdir() if path.suffix in (".h5", ".poni")} == set(made)
    for name, content in made.items():
        if isinstance(content, str):
            assert (FILES / name).read_text() == content
            continue
        with h5py.File(FILES / name) as file:
            assert set(file) == set(content)
            for image, values in content.items():
                np.testing.assert_array_equal(file[image][()], values, f"{name}, {image}")
    assert sum(path.stat().st_size for path in FILES.iterdir()) < 300_000


@each_graph
def test_check_prints_what_the_command_of_a_graph_would_do(
    path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measure, "SECONDS", 0.01)
    words = shlex.split(command_of(path))
    monkeypatch.setattr(sys, "argv", [words[0], "check", *words[2:]])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    assert not ended.value.code, said.err
    graph = load_graph(path.stem)
    assert said.out.startswith(f"{path.stem}: {graph.about}\n")
    for name in graph.tasks:
        assert re.search(rf"^{name} ", said.out, re.MULTILINE)
    assert re.search(r"^speed: about \S+ frames/s", said.out, re.MULTILINE)
    assert not list(tmp_path.iterdir())


@dataclass(frozen=True)
class Done:
    """A run of a graph that is over.

    Attributes:
        lima: the session, still open.
        report: of the run.
        frames: what the detector gives: array `(frames, height, width)`, or with bands.
    """

    lima: Session
    report: Report
    frames: Array

    def saved(self, sink: str) -> Array:
        """What a sink saved of every frame."""
        index, data = self.hits(sink)
        np.testing.assert_array_equal(index, np.arange(len(index)))
        with RunFile(self.report.masters[sink]) as file:
            assert len(index) == len(self.frames) // file.spec.span
        return data

    def hits(self, sink: str) -> tuple[NDArray[np.uint64], Array]:
        """The frames a sink has data of, by number, and these data."""
        with RunFile(self.report.masters[sink]) as file:
            saved = file.fate == Fate.SAVED
            return file.index[saved], file[:][saved]

    def looked_at(self, tap: str) -> dict[int, Array]:
        """What a tap kept, by index."""
        kept = {frame.index: frame.data for frame in self.lima.tap(tap, timeout=10)}
        found = {index: data for index, data in kept.items() if data is not None}
        assert found
        return found


@cache
def frames_of(detector: str, settings: str, count: int) -> Array:
    """The frames of a detector."""
    opened = open_detector(detector, json.loads(settings), Path())
    frames = read_all(opened, Acquisition(nb_frames=count, expo_time=1e-6))
    opened.close()
    return np.stack([frame.data for frame in frames if frame.data is not None])


def image(file: str, name: str) -> Array:
    """One of the calibration images."""
    with h5py.File(FILES / file) as opened:
        values: Array = opened[name][()]
    return values


def ring(shape: tuple[int, int], x: float, y: float, inner: float, outer: float) -> Array:
    """Which pixels have their centre in a ring."""
    rows, columns = np.ogrid[0.5 : shape[0], 0.5 : shape[1]]
    distance = np.hypot(columns - x, rows - y)
    return (distance >= inner) & (distance < outer)


def added(frames: Array, x: int, y: int, width: int, height: int) -> NDArray[np.int64]:
    """The sum of a box in every frame."""
    total: NDArray[np.int64] = frames[:, y : y + height, x : x + width].sum((1, 2), np.int64)
    return total


def binned(frames: Array, n: int) -> Array:
    """Frames with `n × n` pixels added up; integers become int64."""
    count, height, width = frames.shape
    kind = np.int64 if frames.dtype.kind in "iu" else np.float64
    parts = frames.reshape(count, height // n, n, width // n, n)
    total: Array = parts.sum((2, 4), kind)
    return total


def check_view_only(done: Done) -> None:
    for index, data in done.looked_at("live").items():
        np.testing.assert_array_equal(data, done.frames[index])


def check_save_raw(done: Done) -> None:
    np.testing.assert_array_equal(done.saved("raw"), done.frames)


def check_counters(done: Done) -> None:
    table = done.saved("counts")
    np.testing.assert_array_equal(table["sum"][:, 0], added(done.frames, 0, 0, 512, 512))
    np.testing.assert_array_equal(table["sum"][:, 1], added(done.frames, 224, 224, 64, 64))


def check_first_light(done: Done) -> None:
    np.testing.assert_array_equal(done.saved("raw"), done.frames)
    view = binned(done.frames[:, 128:384, 128:384], 2)
    np.testing.assert_array_equal(done.saved("small"), view)
    np.testing.assert_array_equal(
        done.saved("counts")["sum"][:, 0], added(done.frames, 224, 224, 64, 64)
    )


def check_classic(done: Done) -> None:
    flat = image("simulator.h5", "flat").astype(np.float64)
    factor = (flat.mean() / flat).astype(np.float32)
    masked = image("simulator.h5", "mask") != 0
    corrected = (done.frames - image("simulator.h5", "dark")) * factor
    corrected[:, masked] = 0
    assert corrected.max() < done.frames.max() / 5, "the mask hides the hot pixels"
    sums = corrected.reshape(-1, 10, *flat.shape).sum(1, np.float64)
    np.testing.assert_allclose(done.saved("images"), sums, rtol=1e-5, atol=1e-4)
    table = done.saved("counts")
    own = corrected[:, ring((512, 512), 256, 256, 60, 80)]
    np.testing.assert_allclose(table["sum"][:, 1], own.sum(1, np.float64), rtol=1e-6)
    for index, data in done.looked_at("live").items():
        np.testing.assert_allclose(data, binned(corrected[index : index + 1], 2)[0] / 4, rtol=1e-4)


def check_xpcs(done: Done) -> None:
    masked = image("eiger2_xpcs.h5", "mask") != 0
    assert (done.frames[:, masked] > 8).all(), "the mask hides the hot pixels"
    clean = np.where(masked | (done.frames > 8), 0, done.frames)
    np.testing.assert_array_equal(done.saved("frames"), clean)
    photons = (clean > 0).sum((1, 2))
    assert 0 < photons.mean() < 0.01 * clean[0].size, "frames are nearly empty"
    np.testing.assert_array_equal(done.saved("counts")["nb_above"][:, 0], photons)
    means = clean.reshape(-1, 20, *masked.shape).mean(1)
    np.testing.assert_allclose(done.saved("averages"), means, rtol=1e-6)
    with fabio.open(done.report.masters["events"]) as opened:
        assert opened.nframes == len(clean)
        for index, pixels in enumerate(clean):
            np.testing.assert_array_equal(opened.getframe(index).data, pixels)
    for frame, pixels in zip(done.lima.stream("photons", timeout=10), clean, strict=True):
        assert frame.data is not None
        np.testing.assert_array_equal(frame.data["index"], np.flatnonzero(pixels))
        np.testing.assert_array_equal(frame.data["value"], pixels[pixels > 0])


def check_smx(done: Done) -> None:
    frames, masked = done.frames, image("eiger2_serial.h5", "mask") != 0
    nb_peaks = done.saved("numbers")["value"][:, 0]
    reach, centre = min(masked.shape) / 6, (masked.shape[1] / 2, masked.shape[0] / 2)
    rows, columns = np.ogrid[0.5 : masked.shape[0], 0.5 : masked.shape[1]]
    true = 12 / (1 + (np.hypot(columns - centre[0], rows - centre[1]) / reach) ** 2)
    expected = [
        np.count_nonzero(np.bincount(ndimage.label(bright, np.ones((3, 3)))[0].ravel())[1:] >= 3)
        for bright in (frames > true + 6 * np.sqrt(true + 4)) & ~masked
    ]
    assert np.abs(nb_peaks - expected).max() <= 1, "one at the limit may differ"
    assert np.mean(nb_peaks == expected) > 0.7
    index, images = done.hits("images")
    hit = (nb_peaks >= 8) | (np.arange(len(frames)) % 10 == 0)
    assert 0 < np.count_nonzero(~hit) < len(frames) / 2
    np.testing.assert_array_equal(index, np.flatnonzero(hit))
    np.testing.assert_array_equal(images, np.where(masked, 65535, frames[hit]))
    assert done.report.rejected == np.count_nonzero(~hit)
    with RunFile(done.report.masters["images"]) as file:
        assert set(np.unique(file.fate)) == {Fate.SAVED, Fate.REJECTED}
        blank = hit & (nb_peaks < 8)
        np.testing.assert_array_equal(file.records["prescaled"] == 1, blank)
    kept = (frames > true + 8 * np.sqrt(true + 4)) & ~masked
    assert kept.any((1, 2)).all()
    with fabio.open(done.report.masters["events"]) as opened:
        assert opened.nframes == len(frames)
        for number, frame in enumerate(frames):
            shown = opened.getframe(number).data
            np.testing.assert_array_equal(shown[kept[number]], frame[kept[number]])
            assert (shown[masked] == 65535).all()
            rest = (shown != 65535) & (shown != frame)  # the background, in whole photons
            assert np.count_nonzero(shown == 65535) - masked.sum() < 50, "pyFAI masks a few more"
            assert np.abs(shown[rest] - true[rest]).max() < 1.5
    profiles = done.saved("profiles")
    q, average = profiles["q_nm^-1"][0], profiles["avg"].mean(0)
    angle = 2 * np.arcsin(q * 0.09762535 / (4 * np.pi))
    radius = 0.15 * np.tan(angle) / 75e-6
    seen = profiles["count"].min(0) > 500
    background = 12 / (1 + (radius / reach) ** 2) / np.cos(angle) ** 3
    np.testing.assert_allclose(average[seen], background[seen], rtol=0.05)


def check_fai(done: Done) -> None:
    from pyFAI.integrator.azimuthal import AzimuthalIntegrator

    curves = done.saved("curves")
    pyfai = AzimuthalIntegrator.sload(str(FILES / "simulator.poni"))
    for index in range(0, len(curves), 7):
        expected = pyfai.integrate1d_ng(
            done.frames[index], 400, unit="q_nm^-1", mask=image("simulator.h5", "mask"),
            polarization_factor=0.99, error_model="poisson", method=("full", "csr", "cython"),
        )  # fmt: skip
        full = expected.count > 0
        found = curves[index][full]
        np.testing.assert_allclose(found["q_nm^-1"], expected.radial[full], rtol=1e-5)
        np.testing.assert_allclose(found["intensity"], expected.intensity[full], rtol=1e-5)
        np.testing.assert_allclose(found["sigma"], expected.sigma[full], rtol=1e-5)
    for index, data in done.looked_at("live").items():
        np.testing.assert_array_equal(data, curves[index])


def check_stem_4d(done: Done) -> None:
    shape = done.frames.shape[1:]
    bright = ring(shape, 128, 128, 0, 40)
    left = np.arange(256) < 128
    masks = [bright, ring(shape, 128, 128, 20, 40), ring(shape, 128, 128, 48, 120),
             bright & left, bright & ~left]  # fmt: skip
    expected = np.stack([done.frames[:, mask].sum(1, np.int64) for mask in masks], axis=1)
    np.testing.assert_array_equal(done.saved("signals")["sum"], expected)
    turn = 2 * np.pi * np.arange(len(done.frames)) / 32
    centre = done.saved("shifts")[:, 0]
    np.testing.assert_allclose(centre["x"], 128 + 32 * np.cos(turn), atol=0.05)
    np.testing.assert_allclose(centre["y"], 128 + 32 * np.sin(turn), atol=0.05)
    for index, data in done.looked_at("live").items():
        np.testing.assert_array_equal(data["sum"], expected[index])


def check_tomography(done: Done) -> None:
    np.testing.assert_array_equal(done.saved("raw"), done.frames)
    dark, flat = (image("tomography_camera.h5", name).astype(float) for name in ("dark", "flat"))
    view = done.saved("quick")
    expected = binned((done.frames - dark) / flat, 4) / 16
    np.testing.assert_allclose(view, expected, rtol=1e-5)
    np.testing.assert_allclose(view.mean(0), 1, atol=0.03)  # nothing is in the beam
    assert abs(view.mean() - 1) < 2e-3
    beam = done.saved("beam")["sum"]
    np.testing.assert_array_equal(beam[:, 1], added(done.frames, 592, 200, 40, 140))


def check_modules(done: Done) -> None:
    whole = done.saved("frames")
    for number, (corner, other) in enumerate(
        [((0, 0), (0, 1023)), ((0, 1547), (1023, 1547)), ((1547, 1547), (1547, 524)),
         ((1547, 0), (524, 0))]
    ):  # fmt: skip
        module = done.frames[:, number]
        np.testing.assert_array_equal(whole[:, *corner], module[:, 0, 0])
        np.testing.assert_array_equal(whole[:, *other], module[:, 0, 1023])
    covered = np.zeros((1548, 1548), bool)
    covered[:512, :1024] = covered[:1024, 1036:] = covered[1036:, 524:] = covered[524:, :512] = True
    assert (whole[:, ~covered] == 65535).all()
    values = np.sort(whole[0][covered])
    np.testing.assert_array_equal(values, np.sort(done.frames[0].ravel()))
    for index, data in done.looked_at("live").items():
        shown = np.where(whole[index : index + 1] == 65535, 0, whole[index : index + 1])
        np.testing.assert_array_equal(data, binned(shown, 4)[0])


def check_multi_threshold(done: Done) -> None:
    low, high = done.frames[:, 0], done.frames[:, 1]
    np.testing.assert_array_equal(done.saved("all_photons"), low)
    np.testing.assert_array_equal(done.saved("hard_photons"), high)
    between = low.astype(np.int64) - high
    assert between.min() < 0, "noise makes some of them negative"
    np.testing.assert_array_equal(done.saved("soft_photons"), between)
    for index, data in done.looked_at("live").items():
        np.testing.assert_array_equal(data, binned(between[index : index + 1], 2)[0])


@dataclass(frozen=True)
class Trial:
    """How a graph is tried out: what must be so, how many frames, what is set of its detector."""

    check: Callable[[Done], None]
    frames: int
    settings: dict[str, Any]


FEW = {"prefetch": 8}
RUNS = {
    "classic": Trial(check_classic, 40, {}),
    "counters": Trial(check_counters, 40, FEW),
    "fai": Trial(check_fai, 30, FEW),
    "first_light": Trial(check_first_light, 40, FEW),
    "modules": Trial(check_modules, 8, {"pattern": "verifiable"}),
    "multi_threshold": Trial(check_multi_threshold, 20, FEW),
    "save_raw": Trial(check_save_raw, 20, {"prefetch": 2, "shape": [512, 512], "modules": [1, 1]}),
    "smx": Trial(check_smx, 24, {"prefetch": 24}),
    "stem_4d": Trial(check_stem_4d, 64, {}),
    "tomography": Trial(check_tomography, 24, {}),
    "view_only": Trial(check_view_only, 40, FEW),
    "xpcs": Trial(check_xpcs, 40, FEW),
}


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[Session]:
    """Processes that run one graph after the other: starting them takes longest."""
    with Session.open("simulator", processing_nodes=2, detector=FEW) as lima:
        lima.prepare(graph="view_only", nb_frames=1, expo_time=1e-6)
        lima.start()
        lima.wait(60)
        yield lima


def run(lima: Session, path: Path, output: Path) -> None:
    """A graph on its detector, and all that must be so afterwards."""
    trial, detector = RUNS[path.stem], detector_of(path)
    frames = frames_of(detector, json.dumps(trial.settings), trial.frames)
    if frames.shape[1] == 1:
        frames = frames[:, 0]
    places = {name: getattr(lima.system, name) for name in ("acquisition", "processing")}
    lima.system = System(system="trial", detector=detector, set=trial.settings, **places)
    lima.prepare(graph=path.stem, output=output, nb_frames=trial.frames, expo_time=1e-4)
    lima.start()
    report = lima.wait(60)
    assert report.ok, report
    assert report.errors == []
    assert report.asked == trial.frames == report.saved + report.rejected
    assert set(report.masters) == set(load_graph(path.stem).sinks)
    for sink, master in report.masters.items():
        with RunFile(master) as file:
            assert len(file) == trial.frames // file.spec.span
            assert set(np.unique(file.fate)) <= {Fate.SAVED, Fate.REJECTED}, sink
    trial.check(Done(lima, report, frames))


@each_graph
def test_a_ready_graph_gives_what_it_says_in_one_process(path: Path, tmp_path: Path) -> None:
    with Session.open() as lima:
        run(lima, path, tmp_path)


@each_graph
def test_a_ready_graph_gives_what_it_says_on_two_nodes(
    path: Path, tmp_path: Path, two_nodes: Session
) -> None:
    run(two_nodes, path, tmp_path)
