"""Files open with no click in the programs people have: dense, sparse, curves, of several nodes.

Frames are absent at the begin, in between and at the end; each node's files are rotated.
"""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import fabio
import h5py
import numpy as np
import pytest
import silx.io
from nexusformat.nexus import nxload
from silx.io.nxdata import get_default

from lima2py.frame import Array, Block, FrameSpec, Ragged
from tests.storage.made_up import LOST, MadeUpRun, round_robin

COUNTERS = np.dtype([("min", "f8"), ("sum", "f8")])
ABSENT = [0, 4, 9, 29]


IMAGES = {
    "alone": (FrameSpec.dense(150, 140, np.uint16), 1),
    "small": (FrameSpec.dense(12, 16, np.uint32), 4),
    "bands": (FrameSpec.dense(12, 16, np.float32, bands=2), 4),
}
"""Images that have chunks of their own, share chunks, or have several bands."""


@pytest.fixture(scope="module", params=IMAGES)
def images(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> MadeUpRun:
    return written(request.param, tmp_path_factory.mktemp("images"))


def written(kind: str, folder: Path) -> MadeUpRun:
    spec, block = IMAGES[kind]
    run = round_robin(spec, 30, block, 2, absent=ABSENT)
    run.write(folder / "a", frames_per_file=12)
    return run


def seen_by(run: MadeUpRun, kind: str) -> tuple[str, Array]:
    """A file, and what should be seen in it."""
    file = Path(run.node_files[0][0])
    if kind == "node":
        with h5py.File(file) as opened:
            index = opened["entry_0000/measurement/index"][:]
        return str(file), run.expected()[index]
    return str(file.with_name("a_master.h5")), run.expected()


@pytest.mark.parametrize("kind", ["master", "node"])
def test_silx_shows_the_images(images: MadeUpRun, kind: str) -> None:
    path, expected = seen_by(images, kind)
    with silx.io.open(path) as file:
        default = get_default(file)
        assert default.interpretation == "image"
        assert default.plot_style.signal_scale_type == "log"
        assert np.array_equal(default.signal[()], expected, equal_nan=True)
        frames = images.expected()[default.axes[0][()].astype(int)]
        assert np.array_equal(frames, expected, equal_nan=True)


@pytest.mark.parametrize("kind", ["master", "node"])
def test_fabio_opens_them_as_lima_images(images: MadeUpRun, kind: str) -> None:
    path, expected = seen_by(images, kind)
    with fabio.open(path) as opened:
        assert type(opened).__name__ == "LimaImage"
        assert opened.nframes == len(expected)
        for number, frame in enumerate(expected):
            assert np.array_equal(opened.getframe(number).data, frame, equal_nan=True)


@pytest.mark.parametrize("kind", ["master", "node"])
def test_nexusformat_plots_them(images: MadeUpRun, kind: str) -> None:
    path, expected = seen_by(images, kind)
    plotted = nxload(path).plottable_data
    assert plotted.nxsignal.shape == expected.shape
    assert np.array_equal(plotted.nxsignal[()].nxdata, expected, equal_nan=True)


def classless(path: str) -> list[str]:
    """The groups of a file that are of no class of NeXus."""
    with h5py.File(path) as file:
        found = [file]
        file.visititems(lambda _, item: found.append(item))
        return [one.name for one in found
                if isinstance(one, h5py.Group) and "NX_class" not in one.attrs]  # fmt: skip


@pytest.mark.parametrize("kind", ["master", "node"])
def test_every_group_has_a_class(images: MadeUpRun, sparse: Sparse, kind: str) -> None:
    assert classless(seen_by(images, kind)[0]) == []
    assert classless(sparse.path if kind == "master" else sparse.run.node_files[0][0]) == []


@pytest.mark.parametrize("kind", ["master", "node"])
@pytest.mark.parametrize(
    "spec",
    [
        FrameSpec("vector", (7,), np.dtype("f4")),
        FrameSpec("table", (2,), COUNTERS, labels=("direct beam", "halo")),
    ],
)
def test_vectors_and_tables_have_a_default_plot(tmp_path: Path, spec: FrameSpec, kind: str) -> None:
    run = round_robin(spec, 30, 4, 2, absent=ABSENT)
    run.write(tmp_path / "a")
    path, expected = seen_by(run, kind)
    if spec.kind == "table":
        expected = expected["sum"][:, 0]
    with silx.io.open(path) as file:
        default = get_default(file)
        assert np.array_equal(default.signal[()], expected, equal_nan=True)
        if spec.kind == "table":
            assert default.signal_dataset_name == "direct_beam_sum"
            assert default.auxiliary_signals_dataset_names == ["halo_sum"]
        else:
            assert default.interpretation == "spectrum"
    plotted = nxload(path).plottable_data
    assert np.array_equal(plotted.nxsignal[()].nxdata, expected, equal_nan=True)


PIXELS = FrameSpec("sparse", (1, 40, 50), np.dtype([("index", "u4"), ("value", "i4")]))
BINS = 9


@pytest.fixture(scope="module", params=["plain", "background"])
def sparse(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Sparse:
    """Sparse pixels of two nodes, perhaps with their background."""
    rng = np.random.default_rng(3)
    images = rng.poisson(0.05, (30, *PIXELS.image)).astype(np.int32) * 1000
    images[ABSENT] = 0
    images[:, ~VALID] = 0
    unsure = np.zeros(images.shape, bool)
    background = request.param == "background"
    run = MadeUpRun(PIXELS, [], 30, 3, levels if background else None)
    for number, index in enumerate(range(0, 30, 3)):
        part = images[index : index + 3].reshape(3, -1)
        columns = {"index": part.nonzero()[1].astype("u4"), "value": part[part != 0]}
        data = Ragged.of((part != 0).sum(axis=1), columns)
        gone = {n - index: LOST for n in ABSENT if index <= n < index + 3}
        run.blocks = [*run.blocks, (number % 2, Block(PIXELS, index, 3, data, gone))]
    folder = tmp_path_factory.mktemp("sparse")
    if background:
        run.maps = {"radius": RADIUS, "mask": MASK, "normalization": NORMALIZATION}
        at = np.interp(MASK, RADIUS, np.arange(BINS))  # what `levels` gives is linear in the bin
        for index in range(30):
            level = 0 * at if index in ABSENT else (index % 7 + at) * NORMALIZATION
            under = np.where(images[index] == 0, level, images[index])
            unsure[index] = np.abs(under % 1 - 0.5) < 1e-4  # rounded up or down
            dummy = np.iinfo(np.int32).max
            images[index] = np.where(VALID, np.floor(under + 0.5), dummy)
    assert unsure.mean() < 0.01
    return Sparse(run, run.write(folder / "a", frames_per_file=12), images, unsure)


RADIUS = np.linspace(2, 50, BINS, dtype=np.float32)
MASK = np.hypot(*np.meshgrid(np.arange(50), np.arange(40))).astype(np.float32)
MASK[3:5, 7] = np.nan
VALID = np.array(MASK < 56)  # more than a bin beyond the last centre there is no background
NORMALIZATION = np.linspace(0.5, 1, 2000, dtype=np.float32).reshape(40, 50)
LEVELS = np.dtype([("q_nm^-1", "f8"), ("avg", "f8"), ("std", "f8"), ("count", "u4")])


def levels(block: Block) -> Block:
    """A background of each frame that grows by one from bin to bin."""
    table = np.zeros((block.count, BINS), LEVELS)
    table["avg"] = (np.arange(block.count) + block.index)[:, None] % 7 + np.arange(BINS)
    return block.carry(FrameSpec("table", (BINS,), LEVELS), table)


class Sparse(NamedTuple):
    """A run, its master, and the images that readers should make of it, or one less or more."""

    run: MadeUpRun
    path: str
    images: Array
    unsure: Array

    def check(self, found: list[Array], frames: Iterable[int]) -> None:
        """Compare images with those of some frames."""
        for image, frame in zip(found, frames, strict=True):
            assert image.dtype == self.images.dtype
            off = image.astype(np.int64) - self.images[frame]
            assert not off[~self.unsure[frame]].any(), frame
            assert np.abs(off).max() <= 1, frame


def test_fabio_gives_the_images_back_and_says_nothing(
    sparse: Sparse, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "fabio"), fabio.open(sparse.path) as opened:
        assert type(opened).__name__ == "SparseImage"
        assert opened.nframes == 30
        sparse.check([opened.getframe(number).data for number in range(30)], range(30))
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_fabio_gives_back_the_images_of_one_node(sparse: Sparse) -> None:
    path = sparse.run.node_files[1][0]
    with h5py.File(path) as file:
        index = file["entry_0000/measurement/index"][:]
    with fabio.open(path) as opened:
        sparse.check([opened.getframe(row).data for row in range(len(index))], index)


def test_densify_bragg_makes_a_stack_of_them(sparse: Sparse, tmp_path: Path) -> None:
    densify, out = Path(sys.executable).parent / "densify_Bragg", f"{tmp_path}/{{basename}}.h5"
    command = [str(densify), "-N", "0", "-o", out]
    done = subprocess.run(
        [*command, sparse.path], capture_output=True, text=True, timeout=100, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    (made,) = tmp_path.glob("*.h5")
    with fabio.open(str(made)) as opened:
        found = [opened.getframe(number).data for number in range(30)]
    sparse.check(found, range(30))


def test_silx_and_nexusformat_plot_how_many_pixels_there_are(sparse: Sparse) -> None:
    counts = [len(rows) for rows in sparse.run.expected_rows()]
    assert max(counts) > min(counts)
    with silx.io.open(sparse.path) as file:
        assert get_default(file).signal[()].tolist() == counts
    assert nxload(sparse.path).plottable_data.nxsignal[()].nxdata.tolist() == counts


LIBERTEM = """
import sys, warnings
import numpy as np
from libertem.api import Context
from libertem.executor.inline import InlineJobExecutor
from libertem.udf.base import NoOpUDF
from libertem.udf.raw import PickUDF

with Context(executor=InlineJobExecutor()) as context:
    for number, path in enumerate(sys.argv[2:]):
        data = context.load("auto", path=path)
        picked = context.run_udf(data, PickUDF(), roi=np.ones(data.shape.nav, dtype=bool))
        np.save(f"{sys.argv[1]}/{number}.npy", picked["intensity"].raw_data)
"""


def test_libertem_loads_them(tmp_path: Path) -> None:
    """In a process of its own, since it leaves threads; in one, since it takes seconds to begin."""
    wanted = []
    for images in IMAGES:
        (tmp_path / images).mkdir()
        run = written(images, tmp_path / images)
        wanted += [seen_by(run, kind) for kind in ("master", "node")]
    command = [sys.executable, "-W", "ignore", "-c", LIBERTEM, str(tmp_path)]
    subprocess.run([*command, *(path for path, _ in wanted)], check=True, timeout=100)
    for number, (_, expected) in enumerate(wanted):
        frames = np.load(tmp_path / f"{number}.npy")
        flat = expected.reshape(-1, *expected.shape[-2:])
        assert np.array_equal(frames.reshape(flat.shape), flat, equal_nan=True)
