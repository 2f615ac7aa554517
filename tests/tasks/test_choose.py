"""Choice of frames, by index and by what reducers found: the others stay accounted for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lima2py
from lima2py.errors import BadParameter
from lima2py.frame import Absence, Array, Block, Fate, FrameSpec, Ragged
from lima2py.task import RunContext, Task
from lima2py.tasks.choose import Every, FrameRange, Reject
from lima2py.testing.strategies import absences
from lima2py.testing.tasks import TaskTests

IMAGES = FrameSpec.dense(2, 3, "u2")
TABLE = FrameSpec("table", (2,), np.dtype([("sum", "f8"), ("max", "u2")]), labels=("beam", "halo"))
ONE_ROW = FrameSpec("table", (1,), np.dtype([("sum", "f8")]))
VECTOR = FrameSpec("vector", (4,), np.dtype("f4"))
PEAKS = FrameSpec("sparse", (1, 20, 30), np.dtype([("index", "u4"), ("value", "u2")]))
RUN = RunContext(run="0" * 32, name="test", task="chosen")
GAP = Absence(Fate.DETECTOR_GAP, "detector")


class TestEvery(TaskTests):
    @pytest.fixture(params=[{"n": 1}, {"n": 3}, {"n": 2, "first": 720_723}], ids=str)
    def task(self, request: pytest.FixtureRequest) -> Task:
        return Every(**request.param)


class TestEveryOfSparseFrames(TestEvery):
    @pytest.fixture
    def spec(self) -> FrameSpec:
        return PEAKS.replace(span=4)


class TestFrameRange(TaskTests):
    @pytest.fixture(params=[{"start": 720_721}, {"stop": 720_726}, {"start": 5, "stop": 720_729}])
    def task(self, request: pytest.FixtureRequest) -> Task:
        return FrameRange.load(request.param, "range")


class TestReject(TaskTests):
    @pytest.fixture(params=[{}, {"prescale": 2}], ids=str)
    def task(self, request: pytest.FixtureRequest) -> Task:
        return Reject(channel="count", below=5, **request.param)

    @pytest.fixture
    def specs(self, spec: FrameSpec) -> Sequence[FrameSpec]:
        return [spec, PEAKS]


class TestRejectBySeveral(TaskTests):
    @pytest.fixture
    def task(self) -> Task:
        return Reject.load(
            {
                "when": [
                    {"input": "input1", "channel": "max", "row": "halo", "above": 30},
                    {"input": "input2", "row": 2, "at_most": 70},
                ],
                "match": "all",
            },
            "veto",
        )

    @pytest.fixture
    def specs(self, spec: FrameSpec) -> Sequence[FrameSpec]:
        return [spec, TABLE, VECTOR]


class TestRejectByItself(TaskTests):
    @pytest.fixture
    def task(self) -> Task:
        return Reject(channel="sum", row="beam", above=50)

    @pytest.fixture
    def spec(self) -> FrameSpec:
        return TABLE


def ready(task: Task, *specs: FrameSpec, names: tuple[str, ...] = ()) -> Task:
    """The task, so that frames can be given to it."""
    if names:
        task.know_inputs(names)
    assert task.prepare(*specs) == specs[0]
    task.start(RUN)
    return task


def kept_of(block: Block) -> list[int]:
    """The numbers of the frames that are not absent."""
    return [frame.index for frame in block.frames() if frame.absence is None]


def images(index: int, count: int, absent: dict[int, Absence] | None = None) -> Block:
    return Block(IMAGES, index, count, np.ones((count, *IMAGES.shape), "u2"), absent or {})


@given(st.integers(1, 7), st.integers(0, 30), st.integers(0, 40), st.integers(0, 20), st.data())
def test_every_nth_frame_is_kept(
    n: int, first: int, index: int, count: int, data: st.DataObject
) -> None:
    missing = data.draw(absences(count)) if count else {}
    task = ready(Every(n=n, first=first), IMAGES)
    block = images(index, count, missing)
    made = task.process(block)
    wanted = set(range(first, index + count, n)) & set(range(index, index + count))
    assert kept_of(made) == sorted(wanted - {index + offset for offset in missing})
    for offset, said in made.absences.items():
        rejected = Absence(Fate.REJECTED, "chosen", f"one of {n} is kept")
        assert said == missing.get(offset, rejected)
    if made.data is not None:
        assert made.data is block.data


@given(
    st.integers(0, 30), st.one_of(st.none(), st.integers(1, 30)), st.integers(0, 40),
    st.integers(0, 20),
)  # fmt: skip
def test_a_range_of_frames_is_kept(start: int, more: int | None, index: int, count: int) -> None:
    stop = None if more is None else start + more
    task = ready(FrameRange.load({"start": start, "stop": stop}, "r"), IMAGES)
    made = task.process(images(index, count))
    wanted = range(start, 10**6 if stop is None else stop)
    assert kept_of(made) == [frame for frame in range(index, index + count) if frame in wanted]
    assert {said.cause for said in made.absences.values()} <= {Fate.REJECTED}
    assert {said.who for said in made.absences.values()} <= {"chosen"}


def test_why_a_frame_is_not_in_the_range_is_said() -> None:
    for parameters, reason in (
        ({"start": 5}, "only frames from 5 on are kept"),
        ({"start": 5, "stop": 9}, "only frames from 5 to 8 are kept"),
    ):
        task = ready(FrameRange.load(parameters, "r"), IMAGES)
        assert task.process(images(0, 1)).absences[0].detail == reason


def test_a_range_without_frames_is_refused() -> None:
    with pytest.raises(BadParameter, match=r"^stop: 5 keeps no frame.*above start, 5"):
        FrameRange.load({"start": 5, "stop": 5}, "r").prepare(IMAGES)


BOUNDS = {
    "below": np.less, "above": np.greater, "at_least": np.greater_equal, "at_most": np.less_equal,
}  # fmt: skip


@given(
    st.dictionaries(st.sampled_from(sorted(BOUNDS)), st.integers(-3, 3), min_size=1),
    st.lists(st.sampled_from([-3.0, -1.0, 0.0, 0.5, 2.0, 3.0, np.nan, np.inf]), max_size=12),
    st.sampled_from(["column", "vector", "self"]),
    st.one_of(st.none(), st.integers(1, 4)),
    st.data(),
)
def test_frames_that_meet_a_condition_are_rejected(
    bounds: dict[str, int], numbers: list[float], where: str, prescale: int | None,
    data: st.DataObject,
) -> None:  # fmt: skip
    count, values = len(numbers), np.array(numbers)
    missing = data.draw(absences(count)) if count else {}
    if where == "vector":
        spec, array = VECTOR, np.zeros((count, 4), "f4")
        array[:, 2] = values
        task = Reject(row=2, prescale=prescale, **bounds)
    else:
        spec, array = TABLE, np.zeros((count, 2), TABLE.dtype)
        array["sum"][:, 1] = values
        task = Reject(channel="sum", row="halo", prescale=prescale, **bounds)
    judged = Block(spec, 7, count, array, missing)
    if where == "self":
        ready(task, spec)
        frames, made = judged, task.process(judged)
    else:
        ready(task, IMAGES, spec)
        frames = images(7, count, missing)
        made = task.process(frames, judged)
    with np.errstate(invalid="ignore"):
        met = np.all([BOUNDS[name](values, bound) for name, bound in bounds.items()], axis=0)
    for offset in range(count):
        said = made.absences.get(offset)
        sampled = prescale is not None and (7 + offset) % prescale == 0
        if offset in missing:
            assert said == missing[offset]
        elif met[offset] and not sampled:
            assert said is not None
            assert (said.cause, said.who) == (Fate.REJECTED, "chosen")
        else:
            assert said is None
        if prescale is not None:
            sample = bool(met[offset]) and sampled and offset not in missing
            assert made.columns["prescaled"][offset] == sample
    assert ("prescaled" in made.columns) == (prescale is not None)
    if made.data is not None:
        assert made.data is frames.data


@given(st.lists(st.integers(0, 5), max_size=10), st.integers(0, 6))
def test_sparse_frames_are_judged_by_how_many_rows_they_have(counts: list[int], least: int) -> None:
    total = sum(counts)
    columns = {"index": np.zeros(total, "u4"), "value": np.zeros(total, "u2")}
    peaks = Block(PEAKS, 0, len(counts), Ragged.of(np.array(counts, "i8"), columns))
    for channel in ("count", None):
        task = ready(Reject(channel=channel, below=least), IMAGES, PEAKS)
        made = task.process(images(0, len(counts)), peaks)
        assert kept_of(made) == [n for n, count in enumerate(counts) if count >= least]


@pytest.mark.parametrize("match", ["any", "all"])
def test_conditions_on_several_products_combine(match: str) -> None:
    random = np.random.default_rng(4)
    table = np.zeros((50, 1), ONE_ROW.dtype)
    table["sum"] = random.integers(0, 10, (50, 1))
    vector = random.integers(0, 10, (50, 4)).astype("f4")
    task = Reject.load(
        {
            "when": [
                {"input": "beam", "channel": "sum", "below": 4},
                {"input": "rings", "row": 3, "above": 2, "at_most": 7},
            ],
            "match": match,
        },
        "veto",
    )
    ready(task, IMAGES, ONE_ROW, VECTOR, names=("images", "beam", "rings"))
    made = task.process(images(0, 50), Block(ONE_ROW, 0, 50, table), Block(VECTOR, 0, 50, vector))
    low, ring = table["sum"][:, 0] < 4, (vector[:, 3] > 2) & (vector[:, 3] <= 7)
    met = low | ring if match == "any" else low & ring
    assert kept_of(made) == np.flatnonzero(~met).tolist()
    word = "or" if match == "any" else "and"
    assert {said.detail for said in made.absences.values()} == {
        f"beam: sum below 4 {word} rings: row 3 above 2 and at most 7"
    }


def test_a_frame_whose_number_is_nan_is_kept() -> None:
    table = np.array([[(np.nan,)], [(1.0,)]], ONE_ROW.dtype)
    for bound in BOUNDS:
        task = ready(Reject(channel="sum", **{bound: 1}), IMAGES, ONE_ROW)
        assert 0 in kept_of(task.process(images(0, 2), Block(ONE_ROW, 0, 2, table)))


def test_when_every_frame_is_absent_nothing_is_judged() -> None:
    task = ready(Reject(channel="sum", below=1, prescale=2), IMAGES, ONE_ROW)
    frames = images(0, 2).refuse({0: GAP, 1: GAP})
    made = task.process(frames, Block(ONE_ROW, 0, 2, None, {0: GAP, 1: GAP}))
    assert (made.data, made.absences) == (None, {0: GAP, 1: GAP})
    assert made.columns["prescaled"].tolist() == [0, 0]


def test_the_number_of_nodes_makes_no_difference_to_the_sample() -> None:
    """The sample of rejected frames is chosen by their index."""
    table = np.zeros((40, 1), ONE_ROW.dtype)
    whole = ready(Reject(channel="sum", below=1, prescale=10), IMAGES, ONE_ROW)
    made = whole.process(images(0, 40), Block(ONE_ROW, 0, 40, table))
    assert kept_of(made) == [0, 10, 20, 30]
    nodes = [ready(Reject(channel="sum", below=1, prescale=10), IMAGES, ONE_ROW) for _ in range(3)]
    kept: list[int] = []
    for n in range(40):
        part = nodes[n % 3].process(images(n, 1), Block(ONE_ROW, n, 1, table[:1]))
        kept += kept_of(part)
    assert kept == [0, 10, 20, 30]


def test_in_a_graph_inputs_are_called_by_name() -> None:
    raw = np.arange(12, dtype="u2")[:, np.newaxis, np.newaxis] * np.ones((1, 6, 8), "u2")
    graph = """
    tasks:
      counts: {do: roi_counters, from: detector, rois: {a: [0, 0, 2, 2], b: [4, 4, 2, 1]}}
      half:   {do: every, from: detector, n: 2}
      middle: {do: frame_range, from: half, start: 3, stop: 9}
      bright: {do: reject, from: [middle, counts], channel: max, row: b, below: 5}
      window:
        do: reject
        from: [detector, counts]
        when:
          - {input: counts, channel: avg, row: a, below: 2}
          - {input: counts, channel: avg, row: a, above: 10}
    """
    made = lima2py.apply(graph, raw)
    assert kept_of(made["bright"]) == [6, 8]
    assert [made["bright"].absences[n].who for n in (1, 2, 4)] == ["half", "middle", "bright"]
    assert kept_of(made["window"]) == list(range(2, 11))


@pytest.mark.parametrize(
    ("parameters", "specs", "complaint"),
    [
        ({"channel": "sum", "below": 1}, [IMAGES],
         "input: frames are images.*from: .frames, counters"),
        ({"channel": "sum", "below": 1}, [ONE_ROW, IMAGES], "input: second are images"),
        ({"channel": "sum"}, [IMAGES, ONE_ROW], "below: give at least one of below, above"),
        ({"below": 1}, [IMAGES, ONE_ROW], "channel: is required, one of sum"),
        ({"channel": "sun", "below": 1}, [IMAGES, ONE_ROW],
         'channel: second has no column "sun".*did you mean "sum"'),
        ({"channel": "sum", "below": 1}, [IMAGES, TABLE],
         "row: second has 2 rows; say which: one of beam, halo"),
        ({"channel": "sum", "row": "hallo", "below": 1}, [IMAGES, TABLE],
         'row: second has no row hallo.*did you mean "halo"'),
        ({"channel": "sum", "row": 2, "below": 1}, [IMAGES, TABLE], "row: second has no row 2"),
        ({"channel": "sum", "row": -1, "below": 1}, [IMAGES, TABLE], "row: second has no row -1"),
        ({"below": 1}, [IMAGES, VECTOR], "row: second has 4 rows; say which: a number from 0 to 3"),
        ({"channel": "sum", "row": 1, "below": 1}, [IMAGES, VECTOR],
         "channel: second is a vector and has none"),
        ({"channel": "value", "below": 1}, [IMAGES, PEAKS], "channel: sparse.*one channel, count"),
        ({"row": 1, "below": 1}, [IMAGES, PEAKS], "row: sparse frames .second. are judged by"),
        ({"below": 1}, [IMAGES, PEAKS, ONE_ROW], "input: which of second, third is meant"),
        ({"input": "secnd", "below": 1}, [IMAGES, PEAKS],
         'input: "secnd" is no input of this task .did you mean "second".*name it in from'),
        ({"when": [{"below": 1}], "above": 4}, [IMAGES, PEAKS], "when: takes all conditions"),
        ({"when": [{"below": 1}, {"input": "second"}]}, [IMAGES, PEAKS], "when.1.below: give"),
        ({"when": [{"below": 1, "input": "4th"}]}, [IMAGES, PEAKS], 'when.0.input: "4th" is no'),
    ],
)  # fmt: skip
def test_a_condition_that_cannot_be_judged_is_refused(
    parameters: dict[str, Any], specs: list[FrameSpec], complaint: str
) -> None:
    task = Reject.load(parameters, "veto")
    task.know_inputs(("frames", "second", "third")[: len(specs)])
    with pytest.raises(BadParameter, match=f"(?s)^{complaint}"):
        task.prepare(*specs)


@pytest.mark.parametrize(
    ("kind", "parameters", "complaint"),
    [
        (Every, {"n": 0}, "x, n: should be greater than or equal to 1"),
        (Every, {}, "x, n: is required"),
        (FrameRange, {"start": -1}, "x, start: should be"),
        (Reject, {"below": "10"}, "x, below: should be a number"),
        (Reject, {"when": [{"blow": 1}]}, r"x, when.0.blow: there is no such field.*\"below\""),
        (Reject, {"prescale": 0}, "x, prescale: should be"),
        (Reject, {"match": "some"}, "x, match: should be 'any' or 'all'"),
    ],
)
def test_parameters_that_cannot_be_are_refused(
    kind: type[Task], parameters: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(BadParameter, match=complaint):
        kind.load(parameters, "x")


@pytest.mark.parametrize("dtype", ["u1", "u8", "i4", "?"])
def test_columns_of_any_type_can_be_judged_by_numbers_they_cannot_hold(dtype: str) -> None:
    spec = FrameSpec("table", (1,), np.dtype([("n", dtype)]))
    data: Array = np.array([[(0,)], [(1,)]], spec.dtype)
    task = ready(Reject(channel="n", above=-0.5, below=300.5), IMAGES, spec)
    assert kept_of(task.process(images(0, 2), Block(spec, 0, 2, data))) == []
