"""Any graph gives what plain numpy gives, in every file and stream, wherever it runs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from lima2py_detectors.simulator import verifiable_frames

import lima2py
from lima2py.errors import BadGraph
from lima2py.frame import Array, Block, Frame, FrameSpec
from lima2py.geometry import Roi
from lima2py.graph.definition import parse_graph
from lima2py.graph.plan import Plan
from lima2py.session.report import Report
from lima2py.session.session import Session
from lima2py.storage.reading.run_file import RunFile
from lima2py.testing.strategies import Chain, Entry, boxes, chains, graphs
from tests.system.plain_graph import Product, Said, compute, fates

SHAPE = (12, 18)
MISSING = {
    "drop": ([5, 40], "detector_gap"),
    "corrupt": ([17], "corrupt"),
    "incomplete": ([30, 31], "incomplete"),
}
QUICKLY = (Phase.explicit, Phase.generate)
"""Looking for a smaller graph that fails too would compile for minutes."""
FILES = {name: f"{name}.npy" for name in ("mask", "dark", "flat")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the images are that tasks need."""
    made = tmp_path_factory.mktemp("images")
    for name, image in images().items():
        np.save(made / name, image)
    return made


def images() -> dict[str, Array]:
    random = np.random.default_rng(7)
    flat = random.uniform(0.5, 2, SHAPE)
    flat[2, 3] = 0
    return {
        "mask.npy": (random.random(SHAPE) < 0.1).astype("u1"),
        "dark.npy": random.integers(0, 400, SHAPE) / np.float32(4),
        "flat.npy": flat,
    }


def detector(spec: FrameSpec, count: int, absent: Mapping[int, Said]) -> Product:
    """What comes from the detector."""
    y, x = np.indices(spec.image)
    data = verifiable_frames(0, count, spec.image, spec.dtype, spec.bands)
    return Product(data, absent, 1, np.stack([x, y, x + 1, y + 1]))


def assert_alike(made: Array, expected: Array, where: str) -> None:
    """Integers exactly, real numbers apart from rounding."""
    assert made.shape == expected.shape, where
    if expected.dtype.names:
        assert set(made.dtype.names or ()) == set(expected.dtype.names), where
        for name in expected.dtype.names:
            assert_alike(made[name].astype("f8"), expected[name].astype("f8"), f"{where}, {name}")
        return
    assert made.dtype == expected.dtype, where
    if made.dtype.kind != "f":
        np.testing.assert_array_equal(made, expected, where)
        return
    largest = np.abs(expected[np.isfinite(expected)]).max(initial=0)
    digits = 16 * np.finfo(made.dtype).eps
    np.testing.assert_allclose(made, expected, digits, digits * largest, err_msg=where)


def assert_frames(frames: Iterator[Frame], expected: Product, where: str) -> int:
    """Fail unless frames are those that are expected; give the number of the last one and 1."""
    end = 0
    for frame in frames:
        at = f"{where}, frame {frame.index}"
        said = frame.absence and (frame.absence.cause.word, frame.absence.who)
        assert said == expected.absent.get(frame.index), at
        if frame.data is not None:
            data = np.asarray(expected.data[frame.index])
            assert_alike(frame.data, data.reshape(frame.data.shape), at)
        end = frame.index + 1
    return end


SPECS = [FrameSpec.dense(*SHAPE, "uint16", bands=2), FrameSpec.dense(*SHAPE, "float32")]


@pytest.mark.parametrize("spec", SPECS, ids=str)
@settings(max_examples=3, phases=QUICKLY)
@given(data=st.data())
def test_a_graph_over_frames_in_memory_gives_what_numpy_gives(
    folder: Path, spec: FrameSpec, data: st.DataObject
) -> None:
    graph = data.draw(graphs(spec, {name: str(folder / file) for name, file in FILES.items()}))
    tasks = {name: entry for name, entry in graph.items() if not entry["do"].startswith("save_")}
    if not tasks:
        return
    source = detector(spec, 24, {})
    found = lima2py.apply(json.dumps({"tasks": tasks}), source.data)
    files = {str(folder / name): image for name, image in images().items()}
    for name, expected in compute(tasks, source, files).items():
        if name != "detector":
            assert assert_frames(found[name].frames(), expected, name) == len(expected.data)


TOPOLOGIES = [(1, 0), (1, 1), (1, 2), (2, 3)]
"""Acquisition nodes and processing nodes."""
NB_FRAMES = 101


def test_a_graph_gives_the_same_files_and_streams_wherever_it_runs(
    folder: Path, tmp_path: Path
) -> None:
    spec = SPECS[0]
    said: dict[int, Said] = {
        frame: (cause, "simulator") for frames, cause in MISSING.values() for frame in frames
    }
    source = detector(spec, NB_FRAMES, said)
    settings_of_detector = {
        "pattern": "verifiable", "shape": SHAPE, "dtype": str(spec.dtype), "bands": spec.bands,
        **{name: frames for name, (frames, _) in MISSING.items()},
    }  # fmt: skip
    with ExitStack() as stack:
        sessions = [
            stack.enter_context(
                Session.open(
                    "simulator", acquisition_nodes=acquisition, processing_nodes=processing,
                    detector=settings_of_detector,
                )
            )
            for acquisition, processing in TOPOLOGIES
        ]  # fmt: skip
        numbers = iter(range(10_000))

        @settings(max_examples=3, phases=QUICKLY)
        @given(graphs(spec, {name: str(folder / file) for name, file in FILES.items()}))
        def check(graph: dict[str, Entry]) -> None:
            files = {str(folder / name): image for name, image in images().items()}
            made = compute(graph, source, files)
            number = next(numbers)
            path = tmp_path / f"{number}.yaml"
            path.write_text(json.dumps({"tasks": graph}))
            reports = []
            for place, session in enumerate(sessions):
                session.prepare(
                    graph=path, output=tmp_path / f"{number}-{place}", nb_frames=NB_FRAMES,
                    expo_time=1e-4,
                )  # fmt: skip
                session.start()
                reports.append(session.wait(60))
                assert_report(reports[-1], fates(graph, made, NB_FRAMES))
                assert_streams(session, graph, made)
            for name in reports[0].masters:
                assert_masters([Path(report.masters[name]) for report in reports], made[name])

        check()


def assert_report(report: Report, expected: Sequence[str]) -> None:
    assert report.ok, report
    found = {"saved": report.saved, "rejected": report.rejected, **report.absent}
    counts = {word: expected.count(word) for word in {"saved", "rejected", *expected}}
    assert found == counts
    told = {
        frame: cause
        for first, count, cause, *_ in report.absences
        for frame in range(first, first + count)
    }
    assert told == {frame: cause for frame, cause in enumerate(expected) if cause != "saved"}


def assert_streams(
    session: Session, graph: Mapping[str, Entry], made: Mapping[str, Product]
) -> None:
    for name, entry in graph.items():
        data = made[name].data
        if entry["do"] == "tap":
            assert_frames(session.tap(name), made[name], name)
        small = isinstance(data, list) or data.ndim == 2
        if small and not entry["do"].startswith("save_"):
            end = assert_frames(session.stream(name), made[name], name)
            assert end == len(data), f"the stream {name} ends too early"


def assert_masters(paths: Sequence[Path], expected: Product) -> None:
    """The same bytes in all of them, and what numpy says."""
    first: dict[str, Any] = {}
    for path in paths:
        with RunFile(path) as file:
            frames = [file.frame(index) for index in range(len(expected.data))]
            absent = {
                index: (said.cause.word, said.who)
                for begin, last, said in file.absences
                for index in range(begin, last + 1)
            }
            found = {"fate": file.fate.tolist(), "spec": file.spec, "absent": absent}
            assert file.index.tolist() == list(range(len(expected.data)))
        found["bytes"] = [None if frame.data is None else frame.data.tobytes() for frame in frames]
        assert absent == expected.absent, path
        assert assert_frames(iter(frames), expected, str(path)) == len(expected.data)
        first = first or found
        for name, value in found.items():
            assert value == first[name], f"{name} in {path} is not that in {paths[0]}"


def reshaped(chain: Chain, cut: Roi) -> str:
    """A graph of a chain, with a task that cuts this out of its end and one that counts it."""
    tasks: dict[str, Entry] = {}
    last = "detector"
    for number, step in enumerate(chain.steps):
        how = {"how": "max"} if step.do == "bin" else {}
        tasks[f"{step.do}_{number}"] = {"do": step.do, "from": last, **step.parameters, **how}
        last = f"{step.do}_{number}"
    tasks["cut"] = {"do": "crop", "from": last, "box": list(cut)}
    tasks["count"] = {"do": "roi_counters", "from": last, "rois": {"spot": list(cut)}}
    return json.dumps({"tasks": tasks})


def planned(chain: Chain, cut: Roi) -> Plan:
    return Plan.make(parse_graph(reshaped(chain, cut)), FrameSpec.dense(*chain.detector, "uint16"))


@given(st.data())
def test_a_roi_drawn_on_a_product_is_that_part_of_it_in_any_graph(data: st.DataObject) -> None:
    chain = data.draw(chains())
    drawn = data.draw(boxes(chain.box))
    plan = planned(chain, chain.to_detector.covered(drawn))
    cut = plan.specs["cut"]
    assert cut.image == (drawn.height, drawn.width)
    assert cut.to_detector is not None
    assert plan.rois == {"count.spot": tuple(cut.to_detector.covered(cut.box))}
    x, y = np.meshgrid(np.arange(chain.detector[1]) * 256, np.arange(chain.detector[0]))
    block = Block(plan.spec, 0, 1, (x + y).astype("u2")[None, None])
    *reshape, crop = (step.task for step in plan.steps if step.name != "count")
    for task in reshape:
        block = task.process(block)
    expected = block.pixels[(..., *drawn.slices)]
    np.testing.assert_array_equal(crop.process(block).pixels, expected)


@given(st.data())
def test_a_roi_of_the_detector_is_found_in_any_graph_or_refused_with_one_that_is(
    data: st.DataObject,
) -> None:
    chain = data.draw(chains())
    roi = data.draw(boxes(Roi(0, 0, chain.detector[1], chain.detector[0])))
    try:
        plan = planned(chain, roi)
    except BadGraph as error:
        lines = str(error).split("\n")
        assert [line.split(": ")[0] for line in lines] == [
            'graph, task "cut", box', 'graph, task "count", rois.spot'
        ]  # fmt: skip
        if "reaches outside" in lines[0]:
            assert not roi.inside(chain.to_detector.covered(chain.box))
            return
        (nearest,) = re.findall(
            r"the nearest that does is \[(\d+), (\d+), (\d+), (\d+)\]", lines[0]
        )
        wider = Roi(*map(int, nearest))
        assert roi.inside(wider)
        plan = planned(chain, wider)
        roi = wider
    cut = plan.specs["cut"]
    assert cut.to_detector is not None
    assert cut.to_detector.covered(cut.box) == roi
