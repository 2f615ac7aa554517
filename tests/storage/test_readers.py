"""Files open with no click in the programs people have."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import fabio
import numpy as np
import pytest
import silx.io
from nexusformat.nexus import nxload
from silx.io.nxdata import get_default

from lima2py.frame import Array, FrameSpec
from tests.storage.made_up import MadeUpRun, round_robin

COUNTERS = np.dtype([("min", "f8"), ("sum", "f8")])
ABSENT = [4, 9, 29]


@pytest.fixture(scope="module", params=["alone", "small", "bands"])
def images(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> MadeUpRun:
    """Images that have chunks of their own, share chunks, or have several bands."""
    spec, block = {
        "alone": (FrameSpec.dense(150, 140, np.uint16), 1),
        "small": (FrameSpec.dense(12, 16, np.uint32), 4),
        "bands": (FrameSpec.dense(12, 16, np.float32, bands=2), 4),
    }[request.param]
    run = round_robin(spec, 30, block, 2, absent=ABSENT)
    run.write(tmp_path_factory.mktemp("images") / "a")
    return run


def seen_by(run: MadeUpRun, kind: str) -> tuple[str, Array]:
    """A file, and what should be seen in it."""
    file = Path(run.node_files[0][0])
    if kind == "node":
        return str(file), run.expected()[run.table.node == 0]
    return str(file.with_name("a_master.h5")), run.expected()


@pytest.mark.parametrize("kind", ["master", "node"])
def test_silx_shows_the_images(images: MadeUpRun, kind: str) -> None:
    path, expected = seen_by(images, kind)
    with silx.io.open(path) as file:
        default = get_default(file)
        assert default.interpretation == "image"
        assert default.plot_style.signal_scale_type == "log"
        assert np.array_equal(default.signal[()], expected, equal_nan=True)
        frames = images.table.node == 0 if kind == "node" else slice(None)
        assert np.array_equal(default.axes[0][()], np.arange(30)[frames])


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


def test_libertem_loads_them(images: MadeUpRun, tmp_path: Path) -> None:
    """In a process of its own, since it leaves threads."""
    wanted = [seen_by(images, kind) for kind in ("master", "node")]
    command = [sys.executable, "-W", "ignore", "-c", LIBERTEM, str(tmp_path)]
    subprocess.run([*command, *(path for path, _ in wanted)], check=True, timeout=100)
    for number, (_, expected) in enumerate(wanted):
        frames = np.load(tmp_path / f"{number}.npy")
        flat = expected.reshape(-1, *expected.shape[-2:])
        assert np.array_equal(frames.reshape(flat.shape), flat, equal_nan=True)
