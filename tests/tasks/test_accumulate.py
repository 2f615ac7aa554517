"""Accumulation: what numpy makes of the same frames, however they come and whatever is missing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lima2py
from lima2py.errors import BadParameter
from lima2py.frame import Absence, Array, Block, Fate, FrameSpec
from lima2py.task import RunContext, Task
from lima2py.tasks.accumulate import Accumulate
from lima2py.testing.tasks import TaskTests

HOW = ("sum", "mean", "max", "min", "variance", "std")
GAP = Absence(Fate.DETECTOR_GAP, "detector")
BROKEN = Absence(Fate.CORRUPT, "detector", "checksum")
SUMS = {"u1": "u2", "i2": "i4", "u4": "u8", "f4": "f4"}
"""Types of pixels, and that of the sums of a few of them: each is compiled for."""


class TestSum(TaskTests):
    @pytest.fixture(
        params=[{}, {"overflow": "saturate"}, {"absent": "skip"}],
        ids=["widen", "saturate", "skip"],
    )
    def task(self, request: pytest.FixtureRequest) -> Task:
        return Accumulate(frames=3, **request.param)


class TestStatistics(TaskTests):
    @pytest.fixture(params=["mean", "max", "min"])
    def task(self, request: pytest.FixtureRequest) -> Task:
        return Accumulate(frames=4, how=request.param)

    @pytest.fixture
    def spec(self) -> FrameSpec:
        return FrameSpec.dense(12, 16, "f4")


class TestOfVectorsThatStandForSeveralFrames(TaskTests):
    @pytest.fixture
    def task(self) -> Task:
        return Accumulate(frames=2, how="std")

    @pytest.fixture
    def spec(self) -> FrameSpec:
        return FrameSpec("vector", (10,), np.dtype("f4"), span=3)


def ready(spec: FrameSpec, **parameters: Any) -> Accumulate:
    """A task that frames can be given to."""
    task = Accumulate(**parameters)
    task.prepare(spec)
    task.start(RunContext(run="0" * 32, name="test", task="summed"))
    return task


def block_of(spec: FrameSpec, data: Array, index: int, absent: dict[int, Absence]) -> Block:
    """Some frames; what is said of absent ones is by their number, not their offset."""
    count = len(data)
    missing = {
        number - index: said for number, said in absent.items() if index <= number < index + count
    }
    times = {"timestamp": 100.0 + np.arange(index, index + count)}
    return Block(spec, index, count, data if len(missing) < count else None, missing, times)


def expected(values: Array, how: str, dtype: np.dtype[Any]) -> Array:
    """What numpy makes of frames, the first axis."""
    wide = values.astype(np.float64 if values.dtype.kind == "f" else np.int64)
    with np.errstate(invalid="ignore"):
        made: Array = {
            "sum": lambda: wide.sum(axis=0),
            "mean": lambda: wide.mean(axis=0),
            "max": lambda: values.max(axis=0),
            "min": lambda: values.min(axis=0),
            "variance": lambda: wide.var(axis=0, dtype=np.float64),
            "std": lambda: wide.std(axis=0, dtype=np.float64),
        }[how]()
    return made.astype(dtype)


def random_frames(seed: int, shape: Sequence[int], dtype: str) -> Array:
    """Over the whole range of a type; floating point numbers with some NaN."""
    random = np.random.default_rng(seed)
    if dtype.startswith("f"):
        values = random.normal(1000, 30, shape).astype(dtype)
        values[random.random(shape) < 0.02] = np.nan
        return values
    limits = np.iinfo(dtype)
    return random.integers(limits.min, limits.max, shape, dtype, endpoint=True)


@given(
    st.sampled_from(sorted(SUMS)),
    st.sampled_from(HOW),
    st.integers(1, 7),
    st.sampled_from(["spoil", "skip"]),
    st.lists(st.integers(0, 9), min_size=1, max_size=6),
    st.sets(st.integers(0, 40), max_size=6),
    st.integers(0, 2**32),
)
def test_a_product_is_what_numpy_makes_of_its_frames(
    dtype: str, how: str, n: int, absent: str, sizes: list[int], missing: set[int], seed: int
) -> None:
    spec = FrameSpec.dense(5, 3, dtype, bands=2)
    task = Accumulate(frames=n, how=how, absent=absent)
    promised = task.prepare(spec)
    task.start(RunContext(run="0" * 32, name="test"))
    raw = random_frames(seed, (sum(sizes), *spec.shape), dtype)
    absences = {number: (GAP, BROKEN)[number % 2] for number in missing}
    first, found = 2 * n, []
    for size in sizes:
        at = first - 2 * n
        made = task.process(
            block_of(spec, raw[at : at + size], first, {m + 2 * n: a for m, a in absences.items()})
        )
        assert made.spec == promised
        assert (made.index, made.end) == (first // n, (first + size) // n)
        found += [
            (frame, int(made.columns["nb_frames"][offset]))
            for offset, frame in enumerate(made.frames())
        ]
        first += size
    assert len(found) == len(raw) // n
    for number, (frame, nb_frames) in enumerate(found):
        members = range(number * n, number * n + n)
        gone = [member for member in members if member in missing]
        assert frame.index == 2 + number
        assert frame.timestamp == 100.0 + 2 * n + members.start
        if gone and (absent == "spoil" or len(gone) == n):
            assert frame.absence == absences[gone[0]]
            assert nb_frames == 0
            continue
        used = raw[[member for member in members if member not in missing]]
        assert (frame.absence, nb_frames) == (None, len(used))
        assert frame.data is not None
        assert frame.data.dtype == promised.dtype
        reference = expected(used, how, promised.dtype)
        exact = how in ("max", "min") or (how == "sum" and dtype != "f4")
        rtol = 0 if exact else (2e-6 if promised.dtype == np.float32 else 1e-13)
        np.testing.assert_allclose(frame.data, reference, rtol=rtol, atol=0)


@pytest.mark.parametrize(("dtype", "total"), SUMS.items())
def test_sums_of_the_largest_numbers_fit(dtype: str, total: str) -> None:
    spec = FrameSpec.dense(2, 3, dtype)
    values = [1e38] if dtype == "f4" else [np.iinfo(dtype).max, np.iinfo(dtype).min]
    for value in values:
        task = ready(spec, frames=3)
        made = task.process(block_of(spec, np.full((3, *spec.shape), value, dtype), 0, {}))
        assert made.pixels.dtype == total
        assert (made.pixels == np.array(3 * value).astype(total)).all()


@pytest.mark.parametrize(
    ("dtype", "n", "total"),
    [
        ("?", 255, "u1"), ("?", 256, "u2"), ("u1", 1, "u1"), ("u1", 257, "u2"), ("u1", 258, "u4"),
        ("i1", 256, "i2"), ("i1", 257, "i4"), ("u2", 65537, "u4"), ("u2", 65538, "u8"),
        ("u4", 2**20, "u8"), ("f4", 10, "f4"), ("f8", 10, "f8"),
    ],
)  # fmt: skip
def test_sums_have_the_narrowest_type_that_cannot_overflow(dtype: str, n: int, total: str) -> None:
    assert Accumulate(frames=n).prepare(FrameSpec.dense(2, 3, dtype)).dtype == total


@pytest.mark.parametrize("dtype", ["u1", "i2"])
def test_a_saturating_sum_is_the_nearest_number_its_type_can_hold(dtype: str) -> None:
    spec = FrameSpec.dense(40, 40, dtype)
    raw = random_frames(1, (4, *spec.shape), dtype)
    raw[2:] //= 8
    task = ready(spec, frames=4, overflow="saturate")
    found = [task.process(block_of(spec, raw[n : n + 2], n, {})) for n in (0, 2)][-1].pixels[0]
    limits = np.iinfo(dtype)
    reference = raw.sum(axis=0, dtype="i8").clip(limits.min, limits.max)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, reference)
    assert (reference == limits.max).any()
    assert (reference < limits.max).any()


def test_sums_of_single_precision_do_not_lose_small_numbers() -> None:
    spec = FrameSpec.dense(1, 2, "f4")
    raw = np.full((4097, 1, 1, 2), 0.25, "f4")
    raw[0] = 2**24
    task = ready(spec, frames=4097)
    made = task.process(block_of(spec, raw, 0, {}))
    assert (made.pixels == 2**24 + 1024).all()


def test_flags_are_counted() -> None:
    spec = FrameSpec.dense(2, 2, "?")
    raw = np.array([[1, 0, 1, 0], [1, 0, 0, 0]], "?").reshape(2, *spec.shape)
    for how, result in {"sum": [2, 0, 1, 0], "max": [1, 0, 1, 0], "mean": [1, 0, 0.5, 0]}.items():
        made = ready(spec, frames=2, how=how).process(block_of(spec, raw, 0, {}))
        assert made.pixels.dtype == {"sum": "u1", "max": "?", "mean": "f4"}[how]
        assert made.pixels.ravel().tolist() == result


@pytest.mark.parametrize(
    ("dtype", "asked", "given"),
    [("u2", None, "f4"), ("f4", None, "f4"), ("i4", None, "f8"), ("f8", None, "f8"),
     ("u2", "float64", "f8"), ("f8", "float32", "f4")],
)  # fmt: skip
def test_means_have_the_precision_of_the_pixels_or_the_one_asked_for(
    dtype: str, asked: str | None, given: str
) -> None:
    for how in ("mean", "variance", "std"):
        task = Accumulate(frames=3, how=how, dtype=asked)
        assert task.prepare(FrameSpec.dense(2, 3, dtype)).dtype == given


def test_a_large_mean_does_not_spoil_the_variance() -> None:
    spec = FrameSpec.dense(1, 3, "u4")
    raw = np.full((1000, 1, 1, 3), 4_000_000_000, "u4")
    raw[::2] += 2
    made = ready(spec, frames=1000, how="variance").process(block_of(spec, raw, 0, {}))
    np.testing.assert_allclose(made.pixels, 1, rtol=1e-9)


def test_pixels_that_never_change_have_no_spread() -> None:
    spec = FrameSpec.dense(1, 3, "f8")
    raw = np.full((77, 1, 1, 3), 0.1)
    raw[..., 1], raw[..., 2] = np.inf, 1e300
    made = ready(spec, frames=77, how="std").process(block_of(spec, raw, 0, {})).pixels.ravel()
    assert (made[0], made[2]) == (0, 0)
    assert np.isnan(made[1])


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("n", [1, 3])
def test_what_is_not_finite_is_told_as_numpy_does(how: str, n: int) -> None:
    spec = FrameSpec.dense(1, 10, "f4")
    raw = np.ones((n, *spec.shape), "f4")
    for frame in range(n):
        raw[frame, 0, 0, frame], raw[frame, 0, 0, frame + 3] = np.nan, np.inf
        raw[frame, 0, 0, frame + 6] = -np.inf
    made = ready(spec, frames=n, how=how).process(block_of(spec, raw, 0, {}))
    reference = expected(raw, how, np.dtype("f4"))
    np.testing.assert_allclose(made.pixels[0], reference, rtol=1e-6)


def test_the_mean_of_infinite_pixels_and_of_those_too_large_gives_no_warning() -> None:
    spec = FrameSpec.dense(1, 3, "f8")
    raw = np.array([[1e300, np.inf, np.nan]] * 2).reshape(2, *spec.shape)
    task = ready(spec, frames=2, how="mean", dtype="float32")
    made = task.process(block_of(spec, raw, 0, {})).pixels.ravel()
    np.testing.assert_array_equal(made, np.array([np.inf, np.inf, np.nan], "f4"))


@given(st.data())
def test_a_group_may_be_given_again_from_its_beginning(data: st.DataObject) -> None:
    """A node that takes over gets whole groups, between those it has; none spoils another."""
    n = data.draw(st.integers(2, 5))
    spec = FrameSpec.dense(2, 3, "u1")
    raw = random_frames(5, (6 * n, *spec.shape), "u1")
    task = ready(spec, frames=n)
    begun = data.draw(st.lists(st.integers(0, 5), max_size=4, unique=True))
    for group in begun:  # their other frames go elsewhere, for now
        part = data.draw(st.integers(1, n - 1))
        assert task.process(block_of(spec, raw[group * n :][:part], group * n, {})).count == 0
    for group in data.draw(st.permutations(range(6))):
        cut = data.draw(st.integers(0, n - 1))
        for first, end in ((0, cut), (cut, n)):
            made = task.process(
                block_of(spec, raw[group * n + first : group * n + end], group * n + first, {})
            )
        assert (made.index, made.count, dict(made.absences)) == (group, 1, {})
        np.testing.assert_array_equal(
            made.pixels[0], expected(raw[group * n :][:n], "sum", np.dtype("u2"))
        )


@given(st.integers(2, 6), st.data())
def test_frames_that_were_given_to_another_node_are_missing(n: int, data: st.DataObject) -> None:
    seen = [*sorted(data.draw(st.sets(st.integers(0, n - 2)))), n - 1]
    spec = FrameSpec.dense(2, 3, "u1", detector_shape=(2, 3)).replace(span=10)
    raw = random_frames(6, (n, *spec.shape), "u1")
    spoiled, skipped = (ready(spec, frames=n, absent=absent) for absent in ("spoil", "skip"))
    for number in seen:
        block = block_of(spec, raw[number : number + 1], 3 * n + number, {})
        products = [task.process(block) for task in (spoiled, skipped)]
    unseen = next((number for number in range(n) if number not in seen), None)
    some, others = products
    np.testing.assert_array_equal(others.pixels[0], expected(raw[seen], "sum", np.dtype("u2")))
    assert others.columns["nb_frames"].tolist() == [len(seen)]
    if unseen is None:
        np.testing.assert_array_equal(some.pixels, others.pixels)
    else:
        end = next(number for number in seen if number > unseen)
        assert some.absences == {
            0: Absence(
                Fate.NODE_LOST,
                "summed",
                f"frames {10 * (3 * n + unseen)} to {10 * (3 * n + end) - 1} were given to a node"
                " that was lost",
            )
        }


def test_a_group_given_again_is_not_spoilt_by_what_was_missing_before() -> None:
    spec = FrameSpec.dense(1, 1, "u1")
    raw = np.array([1, 2, 4, 8], "u1").reshape(4, *spec.shape)
    task = ready(spec, frames=4)
    task.process(block_of(spec, raw[1:3], 1, {2: GAP}))
    made = task.process(block_of(spec, raw, 0, {}))
    assert made.pixels.ravel().tolist() == [15]


@pytest.mark.parametrize("together", [True, False])
def test_of_several_absent_frames_the_first_one_is_told(together: bool) -> None:
    spec = FrameSpec.dense(1, 1, "u1")
    raw = np.ones((4, *spec.shape), "u1")
    task = ready(spec, frames=4)
    absent = {3: GAP, 1: BROKEN}
    for first, end in ((0, 4),) if together else ((0, 2), (2, 4)):
        made = task.process(block_of(spec, raw[first:end], first, absent))
    assert made.absences == {0: BROKEN}
    assert made.data is None


def test_frames_that_come_twice_are_added_once() -> None:
    spec = FrameSpec.dense(1, 1, "u1")
    raw = np.array([1, 2, 4, 8, 16], "u1").reshape(5, *spec.shape)
    task = ready(spec, frames=5)
    for first, end in ((0, 3), (1, 2), (2, 4), (3, 5)):
        made = task.process(block_of(spec, raw[first:end], first, {}))
    assert made.pixels.ravel().tolist() == [31]


def test_parts_whose_other_frames_never_come_are_forgotten_in_the_end() -> None:
    spec = FrameSpec.dense(2, 2, "u1")
    task = ready(spec, frames=2)
    raw = np.ones((2, *spec.shape), "u1")
    for group in range(100):
        task.process(block_of(spec, raw[:1], 2 * group, {}))
    assert len(task._open) <= 8
    assert len(task._spare) <= 9
    made = task.process(block_of(spec, raw[1:], 199, {}))
    assert (made.pixels == 2).all()
    made = task.process(block_of(spec, raw[1:], 1, {}))
    assert made.absences[0].cause is Fate.NODE_LOST
    task.finish()
    assert not task._open
    assert not task._spare


def test_no_more_memory_is_taken_than_for_the_products_that_are_open() -> None:
    spec = FrameSpec.dense(2, 2, "u1")
    task = ready(spec, frames=3)
    for first in range(0, 300, 10):
        task.process(block_of(spec, np.ones((10, *spec.shape), "u1"), first, {}))
    assert len(task._open) + len(task._spare) <= 2


def test_accumulations_can_follow_one_another() -> None:
    raw = random_frames(3, (13, 4, 5), "u1")
    graph = """
    tasks:
      fours:  {do: accumulate, from: detector, frames: 4}
      twelve: {do: accumulate, from: fours, frames: 3, how: max}
      all:    {do: accumulate, from: detector, frames: 14}
    """
    made = lima2py.apply(graph, raw)
    fours = raw[:12].reshape(3, 4, 4, 5).sum(axis=1)
    np.testing.assert_array_equal(made["fours"].pixels[:, 0], fours)
    np.testing.assert_array_equal(made["twelve"].pixels[:, 0], fours.max(axis=0)[np.newaxis])
    assert (made["fours"].spec.span, made["twelve"].spec.span) == (4, 12)
    assert made["all"].count == 0


def test_where_pixels_lie_and_how_many_frames_must_meet_is_said() -> None:
    spec = FrameSpec.dense(6, 4, "u2", bands=2).replace(span=5)
    task = Accumulate(frames=3)
    made = task.prepare(spec)
    assert made == spec.replace(dtype=np.dtype("u4"), span=15)
    assert task.group == 15


def test_a_column_that_only_some_blocks_have_is_left_out_where_it_is_not_known() -> None:
    spec = FrameSpec.dense(1, 1, "u1")
    task = ready(spec, frames=2)
    raw = np.ones((1, *spec.shape), "u1")

    def given(index: int, columns: Iterable[str]) -> set[str]:
        values = {name: np.array([index]) for name in columns}
        return set(task.process(Block(spec, index, 1, raw, columns=values)).columns)

    given(0, ["current"])
    assert given(1, ["current"]) == {"current", "nb_frames"}
    given(2, [])
    assert given(3, ["current"]) == {"nb_frames"}


@pytest.mark.parametrize(
    ("parameters", "spec", "complaint"),
    [
        ({"frames": 2}, FrameSpec("table", (1,), np.dtype([("sum", "f8")])),
         "from: a table product cannot be accumulated"),
        ({"frames": 2}, FrameSpec("sparse", (1, 4, 4), np.dtype([("index", "u4")])),
         "from: a sparse product cannot be accumulated.*images before"),
        ({"frames": 2}, FrameSpec.dense(4, 4, ">u2"), "from: pixels of >u2 cannot be"),
        ({"frames": 2}, FrameSpec.dense(4, 4, "f2"), "from: pixels of float16 cannot be"),
        ({"frames": 2}, FrameSpec.dense(4, 4, "c8"), "from: pixels of complex64 cannot be"),
        ({"frames": 2}, FrameSpec.dense(4, 4, "u8"), "frames: sums of 2.*64 bits.*how: mean"),
        ({"frames": 2, "overflow": "saturate"}, FrameSpec.dense(4, 4, "f4"),
         "overflow: only sums of integers can saturate, not sum of float32"),
        ({"frames": 2, "overflow": "saturate", "how": "max"}, FrameSpec.dense(4, 4, "u2"),
         "overflow: only sums of integers can saturate, not max"),
        ({"frames": 2, "dtype": "float64"}, FrameSpec.dense(4, 4, "u2"), "dtype: can be chosen"),
    ],
)  # fmt: skip
def test_what_cannot_be_accumulated_is_refused(
    parameters: dict[str, Any], spec: FrameSpec, complaint: str
) -> None:
    with pytest.raises(BadParameter, match=f"(?s)^{complaint}"):
        Accumulate(**parameters).prepare(spec)


@pytest.mark.parametrize("frames", [0, -1, 2.5, "3", None])
def test_a_number_of_frames_that_is_none_is_refused(frames: object) -> None:
    with pytest.raises(BadParameter, match="sums, frames: should be"):
        Accumulate.load({"frames": frames}, "sums")


def test_wide_integers_can_be_averaged() -> None:
    spec = FrameSpec.dense(1, 2, "u8")
    raw = np.array([[2**64 - 1, 4], [2**64 - 1, 8]], "u8").reshape(2, *spec.shape)
    made = ready(spec, frames=2, how="mean").process(block_of(spec, raw, 0, {}))
    assert made.pixels.ravel().tolist() == [2.0**64, 6]
