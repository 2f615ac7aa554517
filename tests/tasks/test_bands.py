"""Bands chosen, stacked and added: against numpy, and never out of the range of their type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lima2py
from lima2py.errors import BadParameter
from lima2py.frame import Array, Block, FrameSpec
from lima2py.geometry import Affine
from lima2py.task import RunContext, Task
from lima2py.tasks.bands import Combine, SelectBands, StackBands
from lima2py.testing.tasks import TaskTests

SPEC = FrameSpec.dense(12, 16, np.uint16, bands=3)


class TestSelectBands(TaskTests):
    @pytest.fixture(params=[(1,), (0, 2), (2, 0, 1)], ids=str)
    def task(self, request: pytest.FixtureRequest) -> Task:
        return SelectBands(bands=request.param)

    @pytest.fixture
    def spec(self) -> FrameSpec:
        return SPEC


class TestStackBands(TaskTests):
    @pytest.fixture
    def task(self) -> Task:
        return StackBands()

    @pytest.fixture
    def specs(self) -> Sequence[FrameSpec]:
        return [SPEC, SPEC.replace(shape=(1, 12, 16)), SPEC]


class TestCombineBands(TaskTests):
    @pytest.fixture(params=[(2, -1, 1), (0.5, 0.25, 1)], ids=str)
    def task(self, request: pytest.FixtureRequest) -> Task:
        return Combine(weights=request.param)

    @pytest.fixture
    def spec(self) -> FrameSpec:
        return SPEC


class TestCombineInputs(TaskTests):
    @pytest.fixture
    def task(self) -> Task:
        return Combine(weights=(1, -1.5))

    @pytest.fixture
    def specs(self) -> Sequence[FrameSpec]:
        return [FrameSpec.dense(12, 16, np.float32, bands=2)] * 2


def frames(shape: tuple[int, ...], dtype: str, seed: int) -> Array:
    """Frames that use the whole range of their type, its ends often."""
    random = np.random.default_rng(seed)
    if dtype[0] == "f":
        values = random.normal(0, 1e3, shape).astype(dtype)
        values[random.random(shape) < 0.01] = np.nan
        return values
    ends = np.iinfo(dtype)
    values = random.integers(ends.min, ends.max, shape, dtype, endpoint=True)
    values[random.random(shape) < 0.2] = ends.min
    values[random.random(shape) < 0.2] = ends.max
    return values


def made_by(task: Task, *inputs: Array) -> Array:
    specs = [
        FrameSpec.dense(data.shape[2], data.shape[3], data.dtype, bands=data.shape[1])
        for data in inputs
    ]
    spec = task.prepare(*specs)
    blocks = [Block(s, 0, len(data), data) for s, data in zip(specs, inputs, strict=True)]
    made = task.process(*blocks)
    assert made.spec == spec
    assert (made.pixels.dtype, made.pixels.shape[1:]) == (spec.dtype, spec.shape)
    return made.pixels


@given(st.permutations(range(5)), st.integers(1, 5))
def test_bands_come_in_the_order_asked_for(order: Sequence[int], count: int) -> None:
    data = np.arange(2 * 5 * 6).reshape(2, 5, 2, 3)
    bands = tuple(order[:count])
    np.testing.assert_array_equal(made_by(SelectBands(bands=bands), data), data[:, list(bands)])


@pytest.mark.parametrize("bands", [(0,), (3,), (0, 2, 4), (4, 2, 0), (3, 2), (1, 0), (1, 4)])
def test_evenly_spaced_bands_are_not_copied(bands: tuple[int, ...]) -> None:
    data = np.arange(2 * 5 * 6).reshape(2, 5, 2, 3)
    made = made_by(SelectBands(bands=bands), data)
    np.testing.assert_array_equal(made, data[:, list(bands)])
    assert np.shares_memory(made, data)


@settings(max_examples=60)
@given(
    st.sampled_from(["u1", "u2", "i4", "u4"]),
    st.lists(st.integers(-300, 300), min_size=2, max_size=3).filter(any),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_whole_weights_give_exact_sums_in_the_narrowest_integers_that_hold_them_all(
    dtype: str, weights: list[int], of_bands: bool, seed: int
) -> None:
    data = frames((2, len(weights), 5, 1000), dtype, seed)  # more pixels than are done at a time
    inputs = [data] if of_bands else [data[:, [n]] for n in range(len(weights))]
    made = made_by(Combine(weights=tuple(weights)), *inputs)
    ends = [int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)]
    low = sum(min(w * end for end in ends) for w in weights)
    high = sum(max(w * end for end in ends) for w in weights)
    kinds = [np.dtype(f"{'i' if low < 0 else 'u'}{size}") for size in (1, 2, 4, 8)]
    fitting = [kind for kind in kinds if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max]
    assert made.dtype == fitting[0]
    true = sum(w * data[:, n].astype(object) for n, w in enumerate(weights))
    np.testing.assert_array_equal(made[:, 0].astype(object), true)


@settings(max_examples=40)
@given(
    st.sampled_from(["u2", "i4", "f4"]),
    st.lists(st.floats(-2, 2, width=16), min_size=2, max_size=3).filter(any),
    st.integers(0, 2**32),
)
def test_other_weights_give_real_numbers(dtype: str, weights: list[float], seed: int) -> None:
    if dtype != "f4" and all(weight == int(weight) for weight in weights):
        weights[0] += 0.5
    inputs = [frames((2, 2, 3, 4), dtype, seed + n) for n in range(len(weights))]
    made = made_by(Combine(weights=tuple(weights)), *inputs)
    assert made.dtype == {"u2": "f4", "i4": "f8", "f4": "f4"}[dtype]
    parts = [w * data.astype("f8") for w, data in zip(weights, inputs, strict=True)]
    largest = max(float(np.nanmax(np.abs(part))) for part in parts)
    tolerance = 8 * float(np.finfo(made.dtype).eps) * largest
    np.testing.assert_allclose(made, sum(parts), rtol=0, atol=tolerance)


def test_a_difference_of_64_bit_integers_is_refused_with_a_way_out() -> None:
    spec = FrameSpec.dense(4, 4, "u8", bands=2)
    with pytest.raises(BadParameter, match=r"^weights: sums of uint64 .* set dtype: float64"):
        Combine(weights=(1, -1)).prepare(spec)
    data = np.full((1, 2, 4, 4), 2**60, "u8")
    made = made_by(Combine(weights=(3, -1), dtype="float64"), data)
    assert (made == 2.0**61).all()


def test_inputs_that_lie_elsewhere_on_the_detector_make_something_without_a_place() -> None:
    """The two halves of a sensor behind an image splitter."""
    graph = """
    tasks:
      left: {do: crop, from: detector, box: [0, 0, 3, 4]}
      right: {do: crop, from: detector, box: [3, 0, 3, 4]}
      both: {do: stack_bands, from: [left, right]}
      difference: {do: combine, from: [left, right], weights: [1, -1]}
      same: {do: stack_bands, from: [left, left]}
    """
    data = frames((3, 4, 6), "u2", 1)
    made = lima2py.apply(graph, data)
    np.testing.assert_array_equal(made["both"].pixels[:, 1], data[..., 3:])
    true = data[..., :3].astype("i4") - data[..., 3:]
    np.testing.assert_array_equal(made["difference"].pixels[:, 0], true)
    assert made["both"].spec.to_detector is None
    assert made["difference"].spec.to_detector is None
    assert made["same"].spec.to_detector == Affine()


def test_nothing_is_compiled_after_start() -> None:
    from lima2py.kernels.combine import weighted_sums

    spec = FrameSpec.dense(6, 8, "u2", bands=2)
    task = Combine(weights=(1, -1))
    task.prepare(spec)
    task.start(RunContext(run="0" * 32, name="test"))
    compiled = list(weighted_sums.signatures)
    data = np.ones((3, *spec.shape), "u2")
    frozen = data.copy()
    frozen.flags.writeable = False
    for pixels in (data, frozen, data[..., ::-1]):
        task.process(Block(spec, 0, 3, pixels))
    assert list(weighted_sums.signatures) == compiled


@pytest.mark.parametrize(
    ("task", "inputs", "complaint"),
    [
        (SelectBands(bands=(0, 3)), [SPEC], "bands: there is no band 3; the frames have 3"),
        (SelectBands(bands=(0,)), [FrameSpec("table", (3,), np.dtype("f8"))], "from: .* a table"),
        (StackBands(), [SPEC, SPEC.replace(dtype=np.dtype("f4"))], "from: input 1 is .*float32"),
        (StackBands(), [SPEC, FrameSpec.dense(16, 12, "u2")], "from: input 1 is .*input 0 is"),
        (StackBands(), [SPEC, FrameSpec("vector", (3,), np.dtype("f8"))], "from: .* a vector"),
        (Combine(weights=(1, -1)), [SPEC], "weights: 2 are given and 3 bands come in"),
        (
            Combine(weights=(1, -1)),
            [FrameSpec.dense(2, 2, "u2")],
            "weights: 2 are given and 1 band comes in",
        ),
        (Combine(weights=(1, -1)), [SPEC] * 3, "weights: 2 are given and 3 inputs come in"),
        (
            Combine(weights=(1, -1)),
            [SPEC, SPEC.replace(shape=(1, 12, 16))],
            "from: inputs have 3, 1 bands and are added band by band",
        ),
        (
            Combine(weights=(1e39, 0.5, 1)),
            [SPEC],
            r"weights: float32 cannot hold 1e\+39; set dtype: float64",
        ),
        (Combine(weights=(1e-60, 0.5, 1)), [SPEC], "weights: float32 cannot hold 1e-60"),
        (
            Combine(weights=(1, 1)),
            [FrameSpec.dense(2, 2, "?", bands=2)],
            "dtype: pixels of bool .* set dtype",
        ),
        (Combine(weights=(1, 1)), [FrameSpec.dense(2, 2, ">u2", bands=2)], "from: pixels of >u2"),
        (
            Combine(weights=(1, 1), dtype="float32"),
            [FrameSpec.dense(2, 2, "f2", bands=2)],
            "from: pixels of float16",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(
    task: Task, inputs: list[FrameSpec], complaint: str
) -> None:
    with pytest.raises(BadParameter, match=f"^{complaint}"):
        task.prepare(*inputs)


@pytest.mark.parametrize(
    ("task", "parameters", "complaint"),
    [
        (SelectBands, {"bands": []}, "bands: .* at least 1"),
        (SelectBands, {"bands": [1, 1]}, "bands: should name no band twice"),
        (SelectBands, {"bands": [-1]}, "bands.0: should be greater than or equal to 0"),
        (Combine, {"weights": []}, "weights: .* at least 1"),
        (Combine, {"weights": [0, 0]}, "weights: should hold a weight that is not 0"),
        (Combine, {"weights": [1, "a"]}, "weights.1: should be a number"),
        (Combine, {"weights": [1], "dtype": "int8"}, "dtype: should be 'float32' or 'float64'"),
    ],
)
def test_parameters_that_cannot_be_are_refused(
    task: type[Task], parameters: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(BadParameter, match=complaint):
        task.load(parameters, "graph.yaml")


def test_stacked_bands_keep_the_byte_order_that_was_promised() -> None:
    spec = FrameSpec.dense(2, 3, ">u2")
    task, data = StackBands(), np.arange(6, dtype=">u2").reshape(1, 1, 2, 3)
    promised = task.prepare(spec, spec)
    made = task.process(Block(spec, 0, 1, data), Block(spec, 0, 1, data + 1)).pixels
    assert made.dtype == promised.dtype == spec.dtype
    np.testing.assert_array_equal(made, np.concatenate([data, data + 1], axis=1))
