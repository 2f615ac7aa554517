"""Reduced data are there while a run goes on: in order, without gaps, from all nodes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lima2py_detectors.simulator import verifiable_frames

from lima2py.errors import BadCommand, BadParameter
from lima2py.frame import Fate, Frame
from lima2py.session.launch import Child
from lima2py.session.session import Session

GRAPH = """
tasks:
  beam: {do: roi_counters, from: detector, rois: {all: [0, 0, 64, 48], spot: [10, 12, 8, 6]}}
  four: {do: accumulate, from: detector, frames: 4}
  slow: {do: roi_counters, from: four, rois: {all: [0, 0, 64, 48]}}
  bright: {do: sparsify, from: detector, above: 65000}
  live: {do: tap, from: detector, every: 50}
"""
SHAPE = (48, 64)
DETECTOR = {"pattern": "verifiable", "shape": list(SHAPE), "drop": [5, 77]}


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    path = tmp_path / "test.yaml"
    path.write_text(GRAPH)
    return path


@pytest.fixture(scope="module", params=[0, 1, 3], ids=["inline", "one node", "three nodes"])
def session(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Session]:
    """A session on so many processing nodes, which are there already."""
    nodes: int = request.param
    path = tmp_path_factory.mktemp("first") / "first.yaml"
    path.write_text(GRAPH)
    with Session.open("simulator", detector=DETECTOR, processing_nodes=nodes) as opened:
        begin(opened, path, nb_frames=10)
        assert opened.wait(60).ok
        yield opened


def begin(session: Session, graph: Path | None, **more: Any) -> None:
    session.prepare(graph=graph, **{"nb_frames": 500, "expo_time": 1e-6, **more})
    session.start()


def sums(first: int, count: int) -> list[int]:
    frames = verifiable_frames(first, count, SHAPE, "uint16")
    return [int(frame.sum(dtype=np.int64)) for frame in frames]


def values(frames: Iterator[Frame], row: int = 0) -> dict[int, float | None]:
    found = {}
    for expected, frame in enumerate(frames):
        assert frame.index == expected
        found[frame.index] = None if frame.data is None else float(frame.data[row])
    return found


def test_every_frame_of_a_stream_comes_once_and_in_order(session: Session, graph: Path) -> None:
    begin(session, graph)
    found = values(session.stream("beam", "sum", timeout=30))
    expected: dict[int, float | None] = dict(enumerate(map(float, sums(0, 500))))
    assert found == {**expected, 5: None, 77: None}
    session.wait(30)
    assert values(session.stream("beam", "sum")) == found, "it can be read again after the run"


def test_a_stream_of_accumulated_frames_counts_them(session: Session, graph: Path) -> None:
    begin(session, graph)
    found = values(session.stream("slow", "sum", timeout=30))
    assert len(found) == 125
    assert [number for number, value in found.items() if value is None] == [1, 19]
    assert found[3] == sum(sums(12, 4))
    session.wait(30)


def test_an_absent_frame_of_a_stream_says_why(session: Session, graph: Path) -> None:
    begin(session, graph)
    absent = {frame.index: frame.absence for frame in session.stream("beam") if frame.absence}
    session.wait(30)
    assert {index: said.cause for index, said in absent.items()} == {
        5: Fate.DETECTOR_GAP,
        77: Fate.DETECTOR_GAP,
    }


def test_a_lost_node_ends_no_stream(graph: Path) -> None:
    with Session.open("simulator", detector=DETECTOR, processing_nodes=3) as session:
        begin(session, graph, nb_frames=3000, expo_time=2e-4)
        stream = session.stream("beam", "sum", timeout=30)
        found = [next(stream) for _ in range(100)]
        child = session.nodes.processing[1]
        assert isinstance(child, Child)
        os.kill(child.pid, signal.SIGKILL)
        found += stream
        report = session.wait(30)
    assert [frame.index for frame in found] == list(range(3000))
    assert report.saved == 3000 - 8, "of the frames that were accumulated with an absent one"
    absent = {frame.index: frame.absence.cause for frame in found if frame.absence}
    assert {absent.pop(5), absent.pop(77)} == {Fate.DETECTOR_GAP}
    # What the lost node had saved, and nobody had read yet, is not made again.
    assert set(absent.values()) <= {Fate.NO_RECORD}
    assert len(absent) < 1000


def test_how_many_rows_sparse_frames_have_can_be_followed(session: Session, graph: Path) -> None:
    begin(session, graph, nb_frames=20)
    counts = [frame.data for frame in session.stream("bright", "count", timeout=30)]
    assert session.wait(30).ok
    frames = verifiable_frames(0, 20, SHAPE, "uint16")
    above = [None if index == 5 else int((frames[index] > 65000).sum()) for index in range(20)]
    assert counts == above
    assert sum(filter(None, above)) > 20
    with pytest.raises(BadParameter, match=r'no channel "sum" \(known: count, index, value\)'):
        next(session.stream("bright", "sum"))


def test_what_cannot_be_followed_is_said(session: Session, graph: Path) -> None:
    begin(session, graph)
    session.wait(30)
    with pytest.raises(BadParameter, match=r'no channel "sun" \(did you mean "sum"'):
        next(session.stream("beam", "sun"))
    with pytest.raises(BadParameter, match=r'task "bean": .* \(did you mean "beam"'):
        next(session.stream("bean"))
    with pytest.raises(BadParameter, match='task "four": has no product that can be followed'):
        next(session.stream("four"))


def test_nothing_is_followed_or_updated_before_a_run() -> None:
    with Session.open("simulator", detector=DETECTOR) as session:
        with pytest.raises(BadCommand, match="cannot stream while"):
            session.stream("beam")
        with pytest.raises(BadCommand, match="no graph yet"):
            session.update("beam", rois={})


@pytest.mark.parametrize("nodes", [0, 2])
def test_nothing_is_followed_after_the_session_was_closed(nodes: int, graph: Path) -> None:
    session = Session.open("simulator", detector=DETECTOR, processing_nodes=nodes)
    begin(session, graph)
    stream = session.stream("beam")
    next(stream)
    session.close()
    assert all(frame.absence is not None or frame.data is not None for frame in stream)
    for look, name in ((session.stream, "beam"), (session.tap, "live")):
        with pytest.raises(BadCommand, match="the session cannot look: it is closed"):
            look(name)
    with pytest.raises(BadCommand, match="cannot update: it is closed"):
        session.update("beam", rois={"a": [0, 0, 1, 1]})


def test_an_update_changes_the_next_run_only(session: Session, graph: Path) -> None:
    begin(session, graph)
    session.update("beam", rois={"corner": [0, 0, 2, 2]})
    assert {len(frame.data) for frame in session.stream("beam") if frame.data is not None} == {2}
    session.wait(30)
    begin(session, None)
    assert {len(frame.data) for frame in session.stream("beam") if frame.data is not None} == {1}
    session.wait(30)


def test_a_tap_follows_an_update_while_the_run_goes_on(session: Session, graph: Path) -> None:
    begin(session, graph, nb_frames=0, expo_time=1e-3)
    tap = session.tap("live", timeout=30)
    assert next(tap).index % 50 == 0
    session.update("live", every=7)
    while next(tap).index % 50 == 0:
        pass
    session.stop()
    session.wait(30)


def test_an_update_that_cannot_be_is_refused(session: Session, graph: Path) -> None:
    begin(session, graph)
    with pytest.raises(BadParameter, match=r'task "beam", rois: .*at least one'):
        session.update("beam", rois={})
    with pytest.raises(BadParameter, match='there is no task "bean"'):
        session.update("bean", rois={})
    session.wait(30)


def test_a_prepared_run_is_not_taken_for_the_one_before_it(session: Session, graph: Path) -> None:
    begin(session, graph, nb_frames=10)
    session.wait(30)
    session.prepare(graph=graph, nb_frames=20)
    with pytest.raises(BadCommand, match="cannot wait while prepared; it can: prepare, start"):
        session.wait(30)
    with pytest.raises(BadCommand, match="cannot stream while"):
        session.stream("beam")
    session.start()
    assert len(list(session.stream("beam", timeout=30))) == 20
    assert session.wait(30).asked == 20


def test_a_stream_ends_where_a_run_was_stopped(session: Session, graph: Path) -> None:
    begin(session, graph, nb_frames=10**6, expo_time=1e-3)
    stream = session.stream("beam", timeout=30)
    first = next(stream)
    session.stop()
    found = [first, *stream]
    report = session.wait(30)
    assert len(found) == report.asked - report.absent["not_acquired"]
    assert [frame.index for frame in found if frame.data is None] == [
        index for index in (5, 77) if index < len(found)
    ]
