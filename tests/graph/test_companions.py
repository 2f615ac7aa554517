"""Graphs of several detectors: products by event, fates that add up, and files that say whose."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lima2py.acquisition import Parameters
from lima2py.errors import BadGraph
from lima2py.frame import Absence, Block, Fate, FrameSpec
from lima2py.graph.definition import GraphDefinition, parse_graph
from lima2py.graph.flow import Flow
from lima2py.graph.plan import Plan
from lima2py.storage.reading.run_file import RunFile
from lima2py.storage.saving.space import needs
from lima2py.task import OtherDetector, RunContext
from lima2py.transport.packing import unpack_absences
from lima2py.trigger_map import Companion, TriggerMap

SPEC = FrameSpec.dense(2, 3, "uint16")
SMALL = FrameSpec.dense(2, 3, "uint16", detector_shape=(20, 30))
GAP = Absence(Fate.DETECTOR_GAP, "basler", "skipped")
LATE = Absence(Fate.INCOMPLETE, "basler", "late")
GRAPH = """
tasks:
  both: {do: stack_bands, from: [detector, basler]}
  four: {do: accumulate, from: basler, frames: 4}
  raw: {do: save_dense, from: detector, file: raw}
  other: {do: save_dense, from: basler, file: other}
  pairs: {do: save_dense, from: both, file: pairs}
  sums: {do: save_dense, from: four, file: sums}
"""
PATTERNS: list[list[int | None]] = [[0], [0, None, None, None], [0, 0, 0, 0], [None, 0, 1]]


def graph(text: str = GRAPH) -> GraphDefinition:
    return parse_graph(text, detectors=["basler", "pilatus"])


def numbered(spec: FrameSpec, first: int, count: int, plus: int) -> Block:
    data = np.zeros((count, *spec.shape), spec.dtype)
    data += np.arange(first + plus, first + plus + count, dtype="u2").reshape(-1, 1, 1, 1)
    return Block(spec, first, count, data, columns={"timestamp": np.arange(count) * 1.0})


def events(pattern: Sequence[int | None], first: int, count: int, gaps: Sequence[int]) -> Block:
    """A block of the main detector, and with it frames whose pixels are 1000 and their number."""
    mapped = TriggerMap(pattern)
    begin, end = mapped.frames(first, first + count)
    frames = numbered(SMALL, begin, end - begin, 1000)
    frames = frames.refuse({gap - begin: GAP for gap in gaps if begin <= gap < end})
    other = mapped.by_event(SMALL, first, count, [frames] if frames.count else [], LATE)
    block = numbered(SPEC, first, count, 0)
    return Block(block.spec, first, count, block.data, columns=block.columns,
                 companions={"basler": other})  # fmt: skip


@settings(max_examples=15)
@given(
    st.sampled_from(PATTERNS),
    st.lists(st.integers(1, 7), min_size=4, max_size=7),
    st.lists(st.integers(0, 12), max_size=2),
)
def test_every_event_is_saved_with_the_frame_that_the_map_says_or_says_why_not(
    pattern: list[int | None], sizes: list[int], gaps: list[int]
) -> None:
    mapped, nb_frames = TriggerMap(pattern), sum(sizes)
    plan = Plan.make(graph(), SPEC, {"basler": Companion(SMALL, mapped)})
    assert plan.group == np.lcm(4, mapped.group)
    with tempfile.TemporaryDirectory() as folder:
        paths = {sink: f"{folder}/{sink}" for sink in plan.sinks}
        run = RunContext("a" * 32, "scan", nb_frames=nb_frames, paths=paths)
        flow = Flow(plan, run, 100)
        at, done = 0, []
        for size in sizes:
            flow.process(events(pattern, at, size, gaps))
            done += flow.collect(idle=True)
            at += size
        done += flow.finish()
        assert not flow.failures
        saved = {sink: RunFile(f"{paths[sink]}_0_00000.h5") for sink in plan.sinks}
        for file in saved.values():
            file.__enter__()
        try:
            check(saved, mapped, nb_frames, set(gaps))
        finally:
            for file in saved.values():
                file.__exit__(None, None, None)
    whole: dict[int, Absence] = {}
    tracks = [Counter[int]() for _ in range(1 + len(plan.sinks))]
    for block in done:
        for track, part in block.absences:
            tracks[track][part[2]] += part[1]
        ranges = [part for track, part in block.absences if track == 0]
        for offset, said in unpack_absences(ranges, block.count).items():
            whole[block.index + offset] = said
    numbers = mapped.numbers(0, nb_frames)
    gone = {event for event, number in enumerate(numbers.tolist()) if number in gaps}
    touched = {event for event in range(nb_frames // 4 * 4)
               if any(event // 4 == other // 4 for other in gone)}  # fmt: skip
    assert set(whole) == gone | touched, "events without a frame are as good as any"
    assert all(said.cause is Fate.DETECTOR_GAP for said in whole.values())
    assert sum(block.count for block in done) == nb_frames
    none = int((numbers < 0).sum())
    for track in (2, 3):  # other, pairs
        assert tracks[track] == +Counter({int(Fate.NOT_TRIGGERED): none,
                                          int(Fate.DETECTOR_GAP): len(gone)})  # fmt: skip


def check(saved: dict[str, RunFile], mapped: TriggerMap, nb_frames: int, gaps: set[int]) -> None:
    """What files of a node show, event by event."""
    numbers = mapped.numbers(0, nb_frames).tolist()
    for event, number in enumerate(numbers):
        assert saved["raw"].frame(event).data is not None
        for sink in ("other", "pairs"):
            frame = saved[sink].frame(event)
            if number < 0 or number in gaps:
                cause = Fate.NOT_TRIGGERED if number < 0 else Fate.DETECTOR_GAP
                assert frame.absence is not None
                assert frame.absence.cause is cause
            else:
                assert frame.data is not None
                wanted = [event, 1000 + number] if sink == "pairs" else [1000 + number]
                assert np.unique(frame.data).tolist() == wanted
    for product in range(nb_frames // 4):
        mine = [number for number in numbers[4 * product : 4 * product + 4] if number >= 0]
        frame = saved["sums"].frame(product)
        if gaps.intersection(mine) or not mine:
            assert frame.data is None
        else:
            assert frame.data is not None
            assert np.unique(frame.data).tolist() == [sum(1000 + number for number in mine)]


def test_files_of_another_detector_say_so(tmp_path: Path) -> None:
    """Its own name and times, and nothing of the geometry of the main one."""
    plan = Plan.make(graph(), SPEC, {"basler": Companion(SMALL, TriggerMap.every(4))})
    paths = {sink: str(tmp_path / sink) for sink in plan.sinks}
    hardware = {"acquisition": {"expo_time": 0.5}}
    other = OtherDetector({"info": {"name": "basler"}}, hardware)
    of_other = dict.fromkeys(plan.only_of, other)
    assert set(of_other) == {"basler", "four", "other", "sums"}
    metadata = {"title": "both", "geometry": {"distance": 0.1}}
    told = Parameters({"asked": 1}, {"acquisition": {"expo_time": 0.1}}, {})
    main = {"info": {"name": "eiger"}}
    run = RunContext("a" * 32, "scan", detector=main, parameters=told, metadata=metadata,
                     paths=paths, of_other=of_other)  # fmt: skip
    flow = Flow(plan, run, 100)
    flow.process(events([0, None, None, None], 0, 8, ()))
    flow.finish()
    for sink, name in (("raw", "eiger"), ("pairs", "eiger"), ("other", "basler")):
        with h5py.File(f"{paths[sink]}_0_00000.h5") as file:
            assert name in file["entry_0000/instrument"]
        with RunFile(f"{paths[sink]}_0_00000.h5") as file:
            assert file.facts.detector["info"]["name"] == name
            ours = name == "eiger"
            assert ("geometry" in file.facts.metadata) == ours
            assert file.facts.parameters.requested == {"asked": 1}
            expo_time = file.facts.parameters.hardware["acquisition"]["expo_time"]
            assert expo_time == (0.1 if ours else 0.5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tasks: {b: {do: tap, from: basle}}", 'no task "basle" (did you mean "basler"?)'),
        ("tasks: {b: {do: tap, from: eiger}}", "other detectors: basler, pilatus"),
        ("tasks: {basler: {do: tap, from: detector}}", "a detector of the system has this name"),
    ],
)
def test_names_that_mean_nothing_are_refused_with_those_there_are(text: str, said: str) -> None:
    with pytest.raises(BadGraph) as caught:
        graph(text)
    assert said in str(caught.value)


@pytest.mark.parametrize("every", [1, "1 us"])
def test_a_tap_shows_frames_and_no_events_without(every: int | str) -> None:
    text = f"tasks: {{live: {{do: tap, from: basler, every: {every}}}}}"
    plan = Plan.make(graph(text), SPEC, {"basler": Companion(SMALL, TriggerMap.every(4))})
    flow = Flow(plan, RunContext("a" * 32, "scan"), 100)
    for first, count in ((0, 8), (9, 2), (12, 8)):
        flow.process(events([0, None, None, None], first, count, [1]))
    kept = [(item.frame.index, item.frame.data is None) for item in plan.taps["live"].recent()]
    if every == 1:
        assert kept == [(0, False), (4, True), (12, False), (16, False)], "4 is a gap, and shown"
    else:
        assert kept == [(0, False), (16, False)], "a block without any costs no turn"
    flow.finish()


def test_disks_need_room_for_what_detectors_take() -> None:
    companions = {"basler": Companion(SMALL, TriggerMap([0, 0, None, None]))}
    plan = Plan.make(graph(), SPEC, companions)
    paths = {sink: Path(sink) for sink in plan.sinks}
    wanted = {
        need.sink: need.nbytes for need in needs(plan.sinks, plan.specs, paths, 100, plan.shares)
    }
    assert wanted == {"raw": 100 * 12, "other": 50 * 12, "pairs": 50 * 24, "sums": 25 * 24}


def test_frames_that_nobody_delivers_are_refused() -> None:
    with pytest.raises(BadGraph, match="there are no frames of detector basler here"):
        Plan.make(graph(), SPEC)


def test_only_the_detectors_whose_frames_a_graph_takes_are_needed() -> None:
    assert graph().companions == ("basler",)
    assert graph("tasks: {b: {do: tap, from: detector}}").companions == ()
