"""Trees of tasks in one pass give what each task gives alone, and store what is wanted, no more."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lima2py import onepass
from lima2py.errors import BadParameter
from lima2py.frame import Absence, Array, Block, Fate, FrameSpec
from lima2py.kernels.compiled import function_from
from lima2py.onepass import Member, OnePass, Operation, Pixelwise, Stripwise

SPEC = FrameSpec.dense(7, 10, np.uint16, bands=2)
GONE = Absence(Fate.CORRUPT, "detector")

KERNELS = '''"""A compiled function for the tests of passes."""

from numba import njit


@njit(nogil=True, cache=True, error_model="numpy")
def sums(strip, first, frame, weight, order, totals):
    if order[frame] != first:
        order[frame] = -1000
    order[frame] += strip.shape[0]
    for y in range(strip.shape[0]):
        for x in range(strip.shape[1]):
            totals[frame, first + y] += weight * strip[y, x]
'''


@pytest.fixture(scope="module", autouse=True)
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A module with compiled functions, as a third party's package would have one."""
    folder = tmp_path_factory.mktemp("kernels")
    (folder / "onepass_test_kernels.py").write_text(KERNELS)
    sys.path.insert(0, str(folder))
    yield
    sys.path.remove(str(folder))
    sys.modules.pop("onepass_test_kernels", None)


@pytest.fixture(scope="module", autouse=True)
def short_strips() -> Iterator[None]:
    """Strips of three rows, so that a frame of 14 has several and the last one is shorter."""
    patch = pytest.MonkeyPatch()
    patch.setattr(onepass, "STRIP", 3 * SPEC.width)
    yield
    patch.undo()


class Scaled(Pixelwise):
    """Multiply, in float32."""

    by: float = 0.3

    def operation(self, spec: FrameSpec) -> Operation:
        values = {"by": np.float32(self.by)}
        return Operation("float32(v) * by", np.dtype("f4"), values=values)

    def by_numpy(self, data: Array) -> Array:
        scaled: Array = data.astype("f4") * np.float32(self.by)
        return scaled


class Ramp(Pixelwise):
    """Add an image of its own for every band, in float64."""

    def operation(self, spec: FrameSpec) -> Operation:
        return Operation("float64(v) + ramp", np.dtype("f8"), {"ramp": self.image(spec.shape)})

    @staticmethod
    def image(shape: tuple[int, ...]) -> Array:
        return np.arange(np.prod(shape), dtype="f8").reshape(shape) / 7

    def by_numpy(self, data: Array) -> Array:
        return data.astype("f8") + self.image(data.shape[1:])


class Capped(Pixelwise):
    """Keep the type; the same image for all bands decides where."""

    def operation(self, spec: FrameSpec) -> Operation:
        where, most = self.image(spec.image), spec.dtype.type(20)
        text = "most if where and v > most else v"
        return Operation(text, spec.dtype, {"where": where}, {"most": most})

    @staticmethod
    def image(shape: tuple[int, ...]) -> Array:
        where: Array = np.indices(shape).sum(axis=0) % 2 == 0
        return where

    def by_numpy(self, data: Array) -> Array:
        where = self.image(data.shape[2:])
        return np.where(where & (data > 20), data.dtype.type(20), data)


class Sums(Stripwise):
    """Sums of rows, all bands below one another."""

    function: ClassVar[str] = "onepass_test_kernels:sums"
    fails: bool = False
    _given: list[Block]

    def product(self, spec: FrameSpec) -> FrameSpec:
        self._given = []
        return FrameSpec("vector", (spec.bands * spec.height,), np.dtype("f8"))

    @property
    def constants(self) -> tuple[Any, ...]:
        return (np.float64(1),)

    def buffers(self, count: int) -> tuple[Array, ...]:
        rows = self._spec.shape[0]
        return np.zeros(count, np.int64), np.zeros((count, rows))

    def conclude(self, block: Block, buffers: tuple[Array, ...]) -> Block:
        if self.fails and block.count:
            raise ValueError("nothing can be concluded")
        order, totals = buffers
        seen = np.where(block.present, self._spec.shape[0], 0)
        np.testing.assert_array_equal(order, seen, "strips came in another order")
        self._given.append(block)
        return block.carry(self._spec, totals)

    def by_numpy(self, data: Array) -> Array:
        frames, bands, height, width = data.shape
        rows = data.reshape(frames, bands * height, width).astype("f8")
        totals = np.zeros(rows.shape[:2])
        for x in range(rows.shape[-1]):  # in the order of the compiled function
            totals += rows[..., x]
        return totals


KINDS = {"scaled": Scaled, "ramp": Ramp, "capped": Capped, "sums": Sums}


def block_of(data: Array, index: int = 40) -> Block:
    _, bands, height, width = data.shape
    spec = FrameSpec.dense(height, width, data.dtype, bands=bands)
    times = {"timestamp": np.arange(len(data), dtype="f8")}
    return Block(spec, index, len(data), data, columns=times)


def frames(count: int = 4, dtype: str = "u2", spec: FrameSpec = SPEC) -> Array:
    return np.random.default_rng(count).integers(0, 60, (count, *spec.shape)).astype(dtype)


def built(spec: FrameSpec, tree: list[tuple[str, int, bool]]) -> list[Member]:
    """Prepared members: what each does, whose product it takes, whether its own is wanted."""
    members: list[Member] = []
    for kind, source, wanted in tree:
        task = KINDS[kind]()
        task.prepare(spec if source < 0 else members[source].task._spec)
        members.append(Member(task, source, wanted))
    return members


def passed(data: Array, tree: list[tuple[str, int, bool]]) -> list[Any]:
    """What a pass gives for frames: arrays, or None."""
    block = block_of(data)
    made: list[Any] = OnePass(block.spec, built(block.spec, tree))(block)
    for item in made:
        if isinstance(item, Exception):
            raise item
        assert item is None or (item.index, item.count, item.columns) == (
            block.index, block.count, block.columns,
        )  # fmt: skip
    return [None if item is None else item.data for item in made]


def by_numpy(data: Array, tree: list[tuple[str, int, bool]]) -> list[Array]:
    made: list[Array] = []
    for kind, source, _ in tree:
        made.append(KINDS[kind]().by_numpy(data if source < 0 else made[source]))
    return made


@st.composite
def trees(draw: st.DrawFn) -> list[tuple[str, int, bool]]:
    """Up to five tasks that hang together; those that only look are leaves."""
    tree: list[tuple[str, int, bool]] = []
    for number in range(draw(st.integers(1, 5))):
        inner = [place for place in range(number) if tree[place][0] != "sums"]
        kind = draw(st.sampled_from(list(KINDS)))
        tree.append((kind, draw(st.sampled_from([-1, *inner])), draw(st.booleans())))
    return tree


@settings(max_examples=8)
@given(trees())
def test_a_tree_gives_what_its_tasks_would_give_one_after_the_other(
    tree: list[tuple[str, int, bool]],
) -> None:
    data = frames()
    for (kind, _, wanted), found, expected in zip(
        tree, passed(data, tree), by_numpy(data, tree), strict=True
    ):
        if wanted or kind == "sums":
            assert found.dtype == expected.dtype
            np.testing.assert_array_equal(found.reshape(expected.shape), expected)
        else:
            assert found is None


BRANCHED = [
    ("scaled", -1, False),
    ("ramp", 0, True),
    ("sums", 0, True),
    ("sums", 1, True),
    ("sums", -1, True),
    ("capped", -1, True),
]


def test_what_looks_is_given_the_block_of_its_input_stored_or_not() -> None:
    block = block_of(frames())
    members = built(SPEC, BRANCHED)
    made = OnePass(SPEC, members)(block)
    looks = [item.task for item in members if isinstance(item.task, Sums)]
    unstored, stored, raw = (look._given[-1] for look in looks)
    assert (unstored.spec, unstored.data) == (members[0].task._spec, None)
    assert stored is made[1]
    assert raw is block


def test_absent_frames_are_neither_read_nor_concluded_from() -> None:
    data = frames(6)
    block = block_of(data).refuse({0: GONE, 4: GONE})
    made = OnePass(SPEC, built(SPEC, BRANCHED))(block)
    present = block.present
    for found, expected in zip(made, by_numpy(data, BRANCHED), strict=True):
        if found is not None:
            assert isinstance(found, Block)
            assert found.absences == {0: GONE, 4: GONE}
            shape = expected.shape
            np.testing.assert_array_equal(found.pixels.reshape(shape)[present], expected[present])
    (sums,) = (item for item in made[4:5] if isinstance(item, Block))
    assert not sums.pixels[~present].any()


@pytest.mark.parametrize("way", ["mirrored", "turned", "every other", "read-only"])
def test_frames_may_lie_in_memory_in_any_way(way: str) -> None:
    data = frames()
    if way == "mirrored":
        view = data[..., ::-1, ::-1].copy()[..., ::-1, ::-1]
    elif way == "turned":
        view = np.moveaxis(np.moveaxis(data, -1, 1).copy(), 1, -1)
    elif way == "every other":
        view = np.repeat(data, 2, axis=-1)[..., ::2]
    else:
        view = data.copy()
        view.flags.writeable = False
    for found, expected in zip(passed(view, BRANCHED), by_numpy(data, BRANCHED), strict=True):
        if found is not None:
            np.testing.assert_array_equal(found.reshape(expected.shape), expected)


def test_all_is_compiled_before_the_first_block_wherever_its_pixels_lie() -> None:
    made = OnePass(SPEC, built(SPEC, BRANCHED))
    function: Any = made._function
    (before,) = function.signatures
    data = frames()
    made(block_of(data))
    data.flags.writeable = False
    made(block_of(data))
    made(block_of(data[..., ::-1]))
    assert function.signatures == [before]
    assert data.flags.writeable is False


def test_the_block_that_came_in_can_still_be_written_by_its_owner() -> None:
    data = frames()
    passed(data, BRANCHED)
    assert data.flags.writeable


@pytest.mark.parametrize("count", [0, 1, 9])
def test_a_block_may_have_any_number_of_frames(count: int) -> None:
    data = frames(count)
    for found, expected in zip(passed(data, BRANCHED), by_numpy(data, BRANCHED), strict=True):
        if found is not None:
            np.testing.assert_array_equal(found.reshape(expected.shape), expected)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 40), (3, 5, 2)])
def test_frames_may_have_any_shape(shape: tuple[int, int, int]) -> None:
    """Rows longer than a strip, one pixel, more bands than rows."""
    data = frames(spec=SPEC.replace(shape=shape))
    for found, expected in zip(passed(data, BRANCHED), by_numpy(data, BRANCHED), strict=True):
        if found is not None:
            np.testing.assert_array_equal(found.reshape(expected.shape), expected)


@pytest.mark.parametrize("dtype", ["?", "i1", "u4", "i8", "f4", "f8"])
def test_pixels_may_be_of_any_type_that_can_be_computed_with(dtype: str) -> None:
    tree = [("scaled", -1, True), ("sums", -1, True)]
    data = frames(dtype=dtype)
    for found, expected in zip(passed(data, tree), by_numpy(data, tree), strict=True):
        np.testing.assert_array_equal(found.reshape(expected.shape), expected)


@pytest.mark.parametrize("dtype", [">u2", "f2", "c8", "S3"])
@pytest.mark.parametrize("kind", KINDS)
def test_other_types_are_refused(dtype: str, kind: str) -> None:
    with pytest.raises(BadParameter, match=r"^from: pixels of .* cannot be computed with"):
        KINDS[kind]().prepare(SPEC.replace(dtype=np.dtype(dtype)))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_image_is_refused(kind: str) -> None:
    with pytest.raises(
        BadParameter, match=r"^from: .* a table product comes in; begin from the images"
    ):
        KINDS[kind]().prepare(FrameSpec("table", (3,), np.dtype("f8")))


def test_one_that_fails_harms_no_other() -> None:
    members = built(SPEC, [("scaled", -1, True), ("sums", 0, True), ("sums", 0, True)])
    failing = Sums(fails=True)
    failing.prepare(members[0].task._spec)
    members[1] = Member(failing, 0, True)
    data = frames()
    scaled, failed, sums = OnePass(SPEC, members)(block_of(data))
    assert isinstance(failed, ValueError)
    expected = Scaled().by_numpy(data)
    assert isinstance(scaled, Block)
    assert isinstance(sums, Block)
    np.testing.assert_array_equal(scaled.pixels, expected)
    np.testing.assert_array_equal(sums.pixels, Sums().by_numpy(expected))


@pytest.mark.parametrize("kind", KINDS)
def test_alone_a_task_is_a_pass_of_its_own(kind: str) -> None:
    task, data = KINDS[kind](), frames()
    task.prepare(SPEC)
    found = task.process(block_of(data)).pixels
    np.testing.assert_array_equal(found, task.by_numpy(data))


def test_alone_a_task_raises_what_went_wrong() -> None:
    task = Sums(fails=True)
    task.prepare(SPEC)
    with pytest.raises(ValueError, match="nothing can be concluded"):
        task.process(block_of(frames()))


class Names(Pixelwise):
    """Names that also stand in the written function, or are parts of each other."""

    def operation(self, spec: FrameSpec) -> Operation:
        text = "float64(v) + x * 1e5 + vv * vx + math.floor(a) + y"
        values = {"x": 2.0, "vv": 5.0, "a": 7.5, "y": 11.0}
        numbers = {name: np.float64(value) for name, value in values.items()}
        return Operation(text, np.dtype("f8"), {"vx": np.full(spec.image, 3.0)}, numbers)


def test_names_in_an_expression_stand_for_nothing_else() -> None:
    task, data = Names(), frames()
    task.prepare(SPEC)
    found = task.process(block_of(data)).pixels
    np.testing.assert_array_equal(found, data + 2e5 + 15 + 7 + 11)


class OneOfTwo(Pixelwise):
    """The pixel of one of two images, by what came in."""

    def operation(self, spec: FrameSpec) -> Operation:
        images = {"low": np.full(spec.image, 3.0), "high": np.full(spec.image, 5.0)}
        return Operation("low if v < nine else high", np.dtype("f8"), images, {"nine": np.int64(9)})


def test_images_are_read_before_a_condition_chooses_among_them() -> None:
    task, data = OneOfTwo(), frames()
    task.prepare(SPEC)
    np.testing.assert_array_equal(task.process(block_of(data)).pixels, np.where(data < 9, 3, 5))
    source = OnePass(SPEC, [Member(task, -1, True)]).source
    (choice,) = (line for line in source.splitlines() if " else " in line)
    assert re.findall(r"\w+\[x\]", choice) == ["a[x]"]  # what came in


def test_without_a_folder_to_keep_functions_in_it_gives_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LIMA2PY_CACHE", str(tmp_path / "file" / "cache"))
    function_from.cache_clear()
    data = frames()
    for found, expected in zip(passed(data, BRANCHED), by_numpy(data, BRANCHED), strict=True):
        if found is not None:
            np.testing.assert_array_equal(found.reshape(expected.shape), expected)
    function_from.cache_clear()
    assert "cannot be kept" in caplog.text
