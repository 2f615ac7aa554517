"""The speed of a graph is measured as it will run, and what could not be measured is told."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from lima2py.acquisition import Acquisition
from lima2py.codec import Encoding, bound
from lima2py.frame import FrameSpec
from lima2py.graph.definition import parse_graph
from lima2py.graph.measure import Speed, measure

SPEC = FrameSpec.dense(16, 16, "uint16")


def measured(tasks: str, folder: Path, spec: FrameSpec = SPEC) -> Speed:
    graph = parse_graph(f"tasks:\n{tasks}", base=folder)
    return measure(graph, spec, 4, folder / "output", Acquisition(expo_time=1e-3))


def test_every_pass_and_the_files_have_their_part(tmp_path: Path) -> None:
    speed = measured(
        """
  sums: {do: accumulate, from: detector, frames: 6}
  all: {do: statistics, from: detector}
  bright: {do: fill_factor, from: detector}
  keep: {do: save_dense, from: sums}
""",
        tmp_path,
    )
    assert list(speed.seconds) == ["sums", "all + bright", "keep", "flush"]
    assert all(seconds > 0 for seconds in speed.seconds.values())
    assert speed.frames % 4 == 0
    assert not speed.errors
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("encoding", get_args(Encoding))
def test_frames_that_come_compressed_are_made_up_so(tmp_path: Path, encoding: Encoding) -> None:
    speed = measured(
        """
  images: {do: decode, from: detector}
  all: {do: statistics, from: images}
  keep: {do: save_raw, from: detector}
""",
        tmp_path,
        FrameSpec.encoded(SPEC, encoding, bound(encoding, SPEC.nbytes)),
    )
    assert not speed.errors
    assert list(speed.seconds) == ["images", "all", "keep", "flush"]


def test_tasks_are_told_the_exposure_time_that_is_asked_for(tmp_path: Path) -> None:
    speed = measured(
        """
  right: {do: count_rate_correction, from: detector, dead_time: 1 us}
  live: {do: tap, from: right}
""",
        tmp_path,
    )
    assert not speed.errors


def test_a_task_that_fails_on_the_frames_made_up_is_told(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def look(frame):\n    raise ValueError('never')\n")
    speed = measured(
        "  mine: {do: python, from: detector, file: mine.py, call: look, columns: [x]}\n", tmp_path
    )
    (error,) = speed.errors
    assert error.startswith('task "mine" failed: ValueError: never')
