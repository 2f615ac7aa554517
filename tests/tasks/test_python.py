"""Functions and classes of users: what they give, and what becomes of frames they fail on."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401 - registers the filters
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lima2py
from lima2py.errors import BadGraph, BadParameter, LimaError
from lima2py.frame import Absence, Array, Block, Fate, FrameSpec
from lima2py.graph.definition import parse_graph
from lima2py.graph.flow import Flow
from lima2py.graph.plan import Plan
from lima2py.session.report import Report
from lima2py.session.session import Session
from lima2py.task import RunContext, Task
from lima2py.tasks.python import Python
from lima2py.testing.tasks import TaskTests
from tests.system.rig import detector_group

MINE = """
import numpy as np

limit = 5

def doubled(frame):
    frame *= 2                  # in place: the array is its own
    return frame

def turned(frame):
    return frame.T[::-1]        # a view that is not contiguous

def pair(frame, other):
    return frame.astype("f8") - other

def profile(frame, axis=0, power=1.0):
    return (frame.astype("f8") ** power).sum(axis=axis)

def total(frame):
    return frame.sum()

def numbers(frame):
    return {"low": frame.min(), "mean": frame.mean(), "bright": bool(frame.max() > 50)}

def profiles(frames):
    return frames.sum(axis=2)

def many(frames):
    return {"low": frames.min(axis=(1, 2)), "mean": frames.mean(axis=(1, 2))}

def peaked(rows):
    return len(rows)

def look(frame):
    assert frame.shape == (12, 16)

class Counts:
    def __init__(self, first=0):
        self.seen = first

    def __call__(self, frame):
        self.seen += 1
        return {"seen": self.seen, "corner": frame[0, 0]}

class Keeps:
    def __init__(self):
        self.kept = []

    def __call__(self, frame):
        self.kept.append(frame)
        return float(sum(old.sum() for old in self.kept))

class Buffered:
    def __init__(self):
        self.buffer = np.zeros((12, 16))

    def __call__(self, frame):
        self.buffer[:] = frame
        return self.buffer          # the same memory each time

class Closes:
    def __init__(self, path):
        self.path = path

    def __call__(self, frame):
        with open(self.path, "a") as file:
            file.write("frame\\n")

    def finish(self):
        with open(self.path, "a") as file:
            file.write("finish\\n")
"""
FAILS = """import numpy as np

def checked(frame):
    number = int(frame.flat[0])
    if number == 17:
        raise ValueError("no beam")
    return frame * 2

def solved(frame):
    if frame.flat[0] == 17:
        np.linalg.inv(np.zeros((2, 2)))
    return 1

def leaves(frame):
    if frame.flat[0] == 17:
        raise SystemExit("enough")
    return 1

class Counts:
    def __init__(self):
        self.seen = 0

    def __call__(self, frame):
        self.seen += 1
        if frame.flat[0] in (17, 18):
            raise ValueError("no beam")
        return self.seen

def shape(frame):
    return frame[:-1] if frame.any() else frame

def interrupts(frame):
    if frame.flat[0] == 17:
        raise KeyboardInterrupt
    return 1

def dtype(frame):
    return frame / 2 if frame.any() else frame

def kind(frame):
    return 1.0 if frame.any() else frame

def key(frame):
    return {"a": 1.0, "b": 2.0} if frame.any() else {"a": 1.0}

def none(frame):
    return None if frame.any() else frame

def some(frame):
    return 1.0 if frame.any() else None

def text(frame):
    return "bright" if frame.any() else 1.0

def items(frames):
    return frames.sum(axis=(1, 2))[:-1] if frames.any() else frames.sum(axis=(1, 2))
"""
SPEC = FrameSpec.dense(12, 16, "u2")
RUN = RunContext("0" * 32, "test", task="mine")


@pytest.fixture
def mine(tmp_path: Path) -> str:
    """A file of a user."""
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return str(path)


@pytest.fixture
def fails(tmp_path: Path) -> str:
    path = tmp_path / "fails.py"
    path.write_text(FAILS)
    return str(path)


def numbered(count: int, shape: tuple[int, ...] = (3, 4), dtype: str = "u2") -> Array:
    """Frames whose pixels are all equal to their number."""
    frames = np.empty((count, *shape), dtype)
    frames[:] = np.arange(count).reshape(-1, *[1] * len(shape))
    return frames


def applied(frames: Array, **parameters: Any) -> Block:
    """What a function makes of frames, through a graph."""
    entry = {"do": "python", "from": "detector", **parameters}
    return lima2py.apply(json.dumps({"tasks": {"mine": entry}}) + "\n", frames)["mine"]


class Suite(TaskTests):
    @pytest.fixture
    def spec(self) -> FrameSpec:
        return SPEC


def suite(call: str, **parameters: Any) -> type[Suite]:
    """The conformance suite for a function of `mine.py`."""

    class Made(Suite):
        @pytest.fixture
        def task(self, mine: str) -> Task:
            return Python.load({"call": call, "file": mine, **parameters}, "mine")

    return Made


TestInPlace = suite("doubled")
TestAView = suite("turned")
TestAVector = suite("profile", **{"with": {"axis": 1, "power": 2.0}})
TestANumber = suite("total")
TestADict = suite("numbers")
TestOnlyLooking = suite("look")
TestBlocks = suite("profiles", each="block")
TestBlocksOfNumbers = suite("many", each="block", group=4)
TestABuffer = suite("Buffered")


class TestTwoInputs(suite("pair")):  # type: ignore[misc]
    @pytest.fixture
    def specs(self) -> list[FrameSpec]:
        return [SPEC, SPEC.replace(dtype=np.dtype("f4"))]


class TestSparse(suite("peaked")):  # type: ignore[misc]
    @pytest.fixture
    def spec(self) -> FrameSpec:
        return FrameSpec("sparse", (1, 12, 16), np.dtype([("index", "u4"), ("value", "u2")]))


EXPECTED: dict[str, Callable[[Array], Array]] = {
    "doubled": lambda frames: frames * 2,
    "turned": lambda frames: np.swapaxes(frames, 1, 2)[:, ::-1],
    "profile": lambda frames: frames.astype("f8").sum(axis=1),
    "total": lambda frames: frames.sum(axis=(1, 2), dtype="f8")[:, None],
}


@settings(max_examples=25)
@given(st.sampled_from(sorted(EXPECTED)), st.integers(1, 90), st.sampled_from(["u1", "i4", "f8"]))
def test_what_a_function_gives_is_what_comes_out(
    tmp_path_factory: pytest.TempPathFactory, call: str, count: int, dtype: str
) -> None:
    path = tmp_path_factory.mktemp("mine") / "mine.py"
    path.write_text(MINE)
    frames = np.random.default_rng(count).integers(0, 100, (count, 5, 7)).astype(dtype)
    before, made = frames.copy(), applied(frames, call=call, file=str(path))
    expected = EXPECTED[call](frames)
    data = made.pixels["value"] if made.spec.dtype.names else made.pixels
    np.testing.assert_array_equal(data.reshape(expected.shape), expected)
    assert data.dtype == expected.dtype
    np.testing.assert_array_equal(frames, before)


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"call": "doubled"}, SPEC),
        ({"call": "turned"}, FrameSpec("dense", (1, 16, 12), np.dtype("u2"))),
        ({"call": "profile"}, FrameSpec("vector", (16,), np.dtype("f8"))),
        ({"call": "total"}, FrameSpec("table", (1,), np.dtype([("value", "f8")]))),
        (
            {"call": "numbers"},
            FrameSpec("table", (1,), np.dtype([(n, "f8") for n in ("low", "mean", "bright")])),
        ),
        ({"call": "profiles", "each": "block"}, FrameSpec("vector", (12,), np.dtype("u8"))),
        ({"call": "look"}, SPEC),
        (
            {"call": "doubled", "shape": [2, 12, 16], "dtype": "float32"},
            SPEC.replace(shape=(2, 12, 16), dtype=np.dtype("f4")),
        ),
        (
            {"call": "total", "columns": ["value"]},
            FrameSpec("table", (1,), np.dtype([("value", "f8")])),
        ),
    ],
    ids=str,
)
def test_what_will_come_out_is_known_in_prepare(
    mine: str, parameters: dict[str, Any], expected: FrameSpec
) -> None:
    assert Python.load({"file": mine, **parameters}, "mine").prepare(SPEC) == expected


def test_an_image_of_the_same_size_keeps_its_place_and_its_span(mine: str) -> None:
    spec = FrameSpec("dense", (3, 5, 5), np.dtype("f4"), None, span=4)
    for call in ("doubled", "turned", "total"):
        made = Python(call=call, file=mine, **{"with": {}}).prepare(spec)
        assert made.span == 4
    assert Python(call="doubled", file=mine).prepare(SPEC).to_detector == SPEC.to_detector


def test_a_group_is_counted_in_frames_of_the_detector(mine: str) -> None:
    task = Python.load({"call": "total", "file": mine, "group": 5}, "mine")
    task.prepare(SPEC.replace(span=3))
    assert task.group == 15


def test_nan_and_infinity_pass(mine: str) -> None:
    frames = numbered(3, dtype="f4")
    frames[1, 0, 0], frames[2, 0, 0] = np.nan, np.inf
    made = applied(frames, file=mine, call="numbers").pixels
    assert np.isnan(made["mean"][1, 0])
    assert made["mean"][2, 0] == np.inf
    np.testing.assert_array_equal(made["bright"][:, 0], [0, 0, 1])


def test_an_object_meets_every_frame_once_and_in_order(mine: str) -> None:
    made = applied(numbered(100), file=mine, call="Counts", **{"with": {"first": 1000}})
    np.testing.assert_array_equal(made.pixels["seen"][:, 0], 1001 + np.arange(100))
    np.testing.assert_array_equal(made.pixels["corner"][:, 0], np.arange(100))


def test_frames_that_are_kept_do_not_change_under_it(mine: str) -> None:
    """The memory of a block is used again for others."""
    task = Python(call="Keeps", file=mine)
    spec = FrameSpec.dense(2, 2, "u2")
    task.prepare(spec)
    task.start(RUN)
    memory, found = np.empty((2, 1, 2, 2), "u2"), []
    for first in range(0, 8, 2):
        memory[:] = np.arange(first, first + 2).reshape(-1, 1, 1, 1)
        found += task.process(Block(spec, first, 2, memory)).pixels["value"][:, 0].tolist()
    task.finish()
    assert found == (4 * np.cumsum(np.arange(8.0))).tolist()


def test_finish_is_called_in_the_end_and_after_the_trial(mine: str, tmp_path: Path) -> None:
    told = tmp_path / "told"
    made = applied(numbered(3, (12, 16)), file=mine, call="Closes", **{"with": {"path": str(told)}})
    np.testing.assert_array_equal(made.pixels[:, 0], numbered(3, (12, 16)))
    assert told.read_text().split() == ["frame", "finish", "frame", "frame", "frame", "finish"]


def test_absent_frames_are_not_given_to_it(mine: str) -> None:
    frames = numbered(6)[:, None]
    spec = FrameSpec.dense(3, 4, "u2")
    gap = Absence(Fate.DETECTOR_GAP, "detector")
    for parameters in ({"call": "Counts"}, {"call": "many", "each": "block"}):
        task = Python.load({"file": mine, **parameters}, "mine")
        task.prepare(spec)
        task.start(RUN)
        made = task.process(Block(spec, 0, 6, frames, {1: gap, 4: gap}))
        task.finish()
        names = made.pixels.dtype.names
        assert names is not None
        expected = [1, 2, 3, 4] if "seen" in names else [0, 2, 3, 5]
        assert made.pixels[names[0]][[0, 2, 3, 5], 0].tolist() == expected
        assert made.absences == {1: gap, 4: gap}


def test_a_module_that_is_installed_is_imported() -> None:
    made = applied(numbered(4), call="numpy:mean")
    np.testing.assert_array_equal(made.pixels["value"][:, 0], np.arange(4))
    made = applied(numbered(4), call="numpy:linalg.norm", **{"with": {"ord": "fro"}}, each="frame")
    np.testing.assert_allclose(made.pixels["value"][:, 0], np.arange(4) * 12**0.5)


def test_a_file_is_read_anew_by_every_prepare(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    for number in (1, 2):
        path.write_text(f"def f(frame):\n    return {number}\n")
        assert applied(numbered(1), file=str(path), call="f").pixels["value"][0, 0] == number
    assert [item.name for item in tmp_path.iterdir()] == ["mine.py"]


def test_a_file_lies_beside_the_graph(mine: str, tmp_path: Path) -> None:
    graph = tmp_path / "graph.yaml"
    graph.write_text("tasks:\n  t: {do: python, from: detector, file: mine.py, call: total}\n")
    assert lima2py.apply(str(graph), numbered(2))["t"].pixels["value"].tolist() == [[0.0], [12.0]]


def test_a_dataclass_in_a_file_may_have_annotations(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass, KW_ONLY\n"
        "@dataclass\nclass Scale:\n    _: KW_ONLY\n    by: int = 2\n"
        "    def __call__(self, frame):\n        return frame * self.by\n"
    )
    made = applied(numbered(3), file=str(path), call="Scale", **{"with": {"by": 5}})
    np.testing.assert_array_equal(made.pixels[:, 0], numbered(3) * 5)


class Ran:
    """Frames through one task in a flow, some in a block."""

    def __init__(self, frames: Array, size: int, **parameters: Any):
        self.stopped: list[str] = []
        entry = {"do": "python", "from": "detector", **parameters}
        text = json.dumps({"tasks": {"mine": entry}})
        spec = FrameSpec.dense(frames.shape[1], frames.shape[2], frames.dtype)
        plan = Plan.make(parse_graph(text), spec, keep_all=True)
        run = RunContext("0" * 32, "test", stop=self.stopped.append)
        flow, made = Flow(plan, run, 1), []
        for first in range(0, len(frames), size):
            part = frames[first : first + size, None]
            flow.process(Block(spec, first, len(part), part))
            product = flow.product("mine")
            assert product is not None
            made.append(product)
        flow.finish()
        self.made = Block.join(made)
        self.errors = flow.errors
        self.absences = {n: (said.cause, said.detail) for n, said in self.made.absences.items()}


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_a_function_that_raises_loses_its_frame_and_no_other(fails: str, size: int) -> None:
    ran = Ran(numbered(1000), size, file=fails, call="checked")
    assert ran.absences == {17: (Fate.TASK_FAILED, "ValueError: no beam (fails.py:6)")}
    assert ran.errors == ['task "mine" failed: ValueError: no beam (fails.py:6), on frame 17']
    assert ran.stopped == []
    others = np.delete(np.arange(1000), 17)
    np.testing.assert_array_equal(ran.made.pixels[others, 0], numbered(1000)[others] * 2)


def test_a_function_that_raises_stops_the_acquisition_if_it_should(fails: str) -> None:
    ran = Ran(numbered(100), 8, file=fails, call="checked", if_fails="stop")
    assert list(ran.absences) == [17]
    assert len(ran.stopped) == 1
    assert "ValueError: no beam (fails.py:6)" in ran.stopped[0]


@pytest.mark.parametrize("size", [1, 7, 100])
def test_an_object_that_raises_meets_every_frame_once_all_the_same(fails: str, size: int) -> None:
    ran = Ran(numbered(100), size, file=fails, call="Counts")
    assert list(ran.absences) == [17, 18]
    seen = ran.made.pixels["value"][:, 0]
    others = np.delete(np.arange(100), [17, 18])
    np.testing.assert_array_equal(seen[others], others + 1)
    assert ran.errors == [
        'task "mine" failed: ValueError: no beam (fails.py:26), on 2 frames, the first of them 17'
    ]


def test_an_error_below_the_function_names_its_line(fails: str) -> None:
    ran = Ran(numbered(30), 10, file=fails, call="solved")
    assert ran.absences == {17: (Fate.TASK_FAILED, "LinAlgError: Singular matrix (fails.py:11)")}


def test_a_function_that_wants_to_exit_loses_its_frame(fails: str) -> None:
    ran = Ran(numbered(30), 10, file=fails, call="leaves")
    assert ran.absences == {17: (Fate.TASK_FAILED, "SystemExit: enough (fails.py:16)")}


def test_a_keyboard_interrupt_of_its_own_loses_its_frame_and_not_the_node(fails: str) -> None:
    with ThreadPoolExecutor(1) as pool:  # as in a node; in the main thread it is a Ctrl-C
        ran = pool.submit(Ran, numbered(30), 10, file=fails, call="interrupts").result()
    assert [fate for fate, _ in ran.absences.values()] == [Fate.TASK_FAILED]
    assert ran.absences[17][1].startswith("KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        Ran(numbered(30), 10, file=fails, call="interrupts")


@pytest.mark.parametrize(
    ("call", "told"),
    [
        ("shape", "gave an array 2 × 4 of uint16, promised was an array 3 × 4 of uint16"),
        ("dtype", "gave an array 3 × 4 of float64, promised was an array 3 × 4 of uint16"),
        ("kind", "gave the columns value, promised was an array 3 × 4 of uint16"),
        ("key", "gave the columns a, b, promised was the columns a"),
        ("none", "gave None, promised was an array 3 × 4 of uint16"),
        ("some", "gave the columns value, where it gave None before"),
        (
            "text",
            "gave a str; it should give an array, a number, a dict of numbers, or None",
        ),
    ],
)
def test_another_result_than_before_is_told_once(fails: str, call: str, told: str) -> None:
    ran = Ran(numbered(1000), 64, file=fails, call=call)
    assert ran.errors == [f'task "mine" failed: {told}, on 999 frames, the first of them 1']
    assert list(ran.absences) == list(range(1, 1000))
    assert set(ran.absences.values()) == {(Fate.TASK_FAILED, told)}


def test_a_block_with_too_few_items_is_refused(fails: str) -> None:
    ran = Ran(numbered(20), 10, file=fails, call="items", each="block")
    assert len(ran.absences) == 19
    assert ran.absences[19][1] == "gave an array 0 of uint64 for 1 frames; should be 1 items"


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"call": "total"}, "call: total should be package.module:function; or say by file"),
        ({"call": "no_such_module:f"}, "call: no_such_module cannot be imported: No module named"),
        ({"call": "numpy:meen"}, 'call: there is no meen in numpy (did you mean "mean"?)'),
        ({"call": "numpy:pi"}, "call: numpy:pi is a float, which cannot be called"),
        ({"call": "mine:total", "file": "mine.py"}, "call: with file, only what is in it"),
        ({"call": "totel", "file": "mine.py"}, "call: there is no totel in"),
        ({"call": "limit", "file": "mine.py"}, "call: limit is a int, which cannot be called"),
        (
            {"call": "f", "file": "none.py"},
            "none.py cannot be read: No such file or directory; it should be",
        ),
        ({"call": "f", "file": "wrong.py"}, "cannot be read as Python: SyntaxError"),
        ({"call": "f", "file": "raises.py"}, "cannot be imported: KeyError: 'a' (raises.py:2)"),
        ({"call": "pair", "file": "mine.py"}, "call: pair(frame, other) cannot be called with an"),
        (
            {"call": "profile", "file": "mine.py", "with": {"powr": 2}},
            "with: profile(frame, axis=0, power=1.0) cannot be called with an array and"
            ' {"powr": 2}: got an unexpected keyword argument',
        ),
        (
            {"call": "Counts", "file": "mine.py", "with": {"last": 2}},
            "with: Counts(first=0) cannot be called",
        ),
        (
            {"call": "nothing", "file": "odd.py"},
            "call: nothing() cannot be called with an array: too many",
        ),
        ({"call": "Bare", "file": "odd.py"}, "call: the class Bare has no method __call__(frame)"),
        ({"call": "Two", "file": "odd.py"}, "call: Two(self, frame, other) cannot be called with"),
        (
            {"call": "divides", "file": "odd.py"},
            "call: divides was tried on a frame of zeros, to see what it gives: ZeroDivisionError:"
            " integer division or modulo by zero (odd.py:11); if it is right for"
            " real frames, declare what it gives by shape and dtype, or by columns",
        ),
        ({"call": "objects", "file": "odd.py"}, "gave an array 2 of object; an array should hold"),
        ({"call": "complex_", "file": "odd.py"}, "of complex128; an array should hold numbers"),
        ({"call": "listed", "file": "odd.py"}, "gave a list; it should give an array, a number"),
        ({"call": "empty", "file": "odd.py"}, "an array should hold numbers, in 1 to 3 dim"),
        ({"call": "deep", "file": "odd.py"}, "an array should hold numbers, in 1 to 3 dim"),
        ({"call": "nested", "file": "odd.py"}, 'gave an array 2 of int64 as "a"; in a dict'),
        ({"call": "unnamed", "file": "odd.py"}, "gave a dict whose keys are not names"),
        ({"call": "raises_at_first", "file": "odd.py"}, "RuntimeError: not ready (odd.py:"),
        ({"call": "total", "file": "mine.py", "each": "block"}, "for 2 frames; should be 2 items"),
        ({"call": "total", "file": "mine.py", "shape": [3]}, "shape: is declared together with"),
        ({"call": "total", "file": "mine.py", "dtype": "int8"}, "shape: is declared together with"),
        (
            {"call": "total", "file": "mine.py", "columns": ["a", "a"]},
            "columns: should be different names",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_called_is_refused(
    mine: str, tmp_path: Path, parameters: dict[str, Any], told: str
) -> None:
    (tmp_path / "wrong.py").write_text("def f(\n")
    (tmp_path / "raises.py").write_text("\n{}['a']\n")
    (tmp_path / "odd.py").write_text(
        "import numpy as np\nclass Bare:\n    pass\nclass Two:\n"
        "    def __call__(self, frame, other):\n        return frame\n\n"
        "def nothing():\n    pass\n"
        "def divides(frame):\n    return 1 // int(frame.sum())\n"
        "def objects(frame):\n    return np.array([None, 1])\n"
        "def complex_(frame):\n    return np.fft.fft(frame)\n"
        "def listed(frame):\n    return [1, 2]\n"
        "def empty(frame):\n    return frame[:0]\n"
        "def deep(frame):\n    return frame[None, None]\n"
        "def nested(frame):\n    return {'a': np.arange(2)}\n"
        "def unnamed(frame):\n    return {1: 2.0}\n"
        "class raises_at_first:\n    def __init__(self):\n"
        "        raise RuntimeError('not ready')\n    def __call__(self, frame):\n"
        "        return frame\n"
    )
    entry = json.dumps({"tasks": {"mine": {"do": "python", "from": "detector", **parameters}}})
    with pytest.raises(BadGraph) as refused:
        lima2py.apply(entry + "\n", numbered(1), base=tmp_path)
    assert str(refused.value).startswith('graph, task "mine", ')
    assert told in str(refused.value)
    raised = re.search(r"zeros, to see what it gives: \w+Error: ", str(refused.value))
    assert ("declare what it gives by shape" in str(refused.value)) == bool(raised)


@pytest.mark.parametrize("call", ["", "a b:c", "os:system()", "1:f", "a:b:c", "../x:f"])
def test_what_is_no_name_is_refused(call: str) -> None:
    with pytest.raises(BadParameter, match="mine, call: "):
        Python.load({"call": call}, "mine")


def test_sparse_frames_are_given_one_by_one(mine: str) -> None:
    spec = FrameSpec("sparse", (1, 3, 4), np.dtype([("index", "u4")]))
    task = Python.load({"call": "peaked", "file": mine, "each": "block"}, "mine")
    with pytest.raises(BadParameter, match=r"^each: sparse frames can only be given one by one"):
        task.prepare(spec)


def test_an_object_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "class Camera:\n    def __init__(self):\n        raise OSError('not there')\n"
        "    def __call__(self, frame):\n        return frame\n"
    )
    parameters = {"call": "Camera", "file": str(path), "columns": ["value"]}
    task = Python.load(parameters, "mine")
    task.prepare(SPEC)
    with pytest.raises(LimaError, match=r"^OSError: not there \(mine.py:3\)$"):
        task.start(RUN)
    task.finish()


SEVENTEEN = """
from lima2py_detectors.simulator import verifiable_frames

def checked(frame):
    if (frame == verifiable_frames(17, 1, frame.shape, "uint16")[0]).all():
        raise ValueError("no beam")
    return frame

def half(frame):
    return frame[::2] if frame.any() else frame
"""


def acquired(folder: Path, nodes: int, nb_frames: int, **parameters: Any) -> tuple[Report, Path]:
    """What a session says of frames that go through a function; and where they were saved."""
    (folder / "mine.py").write_text(SEVENTEEN)
    entry = {"do": "python", "from": "detector", "file": "mine.py", **parameters}
    tasks = {"mine": entry, "raw": {"do": "save_dense", "from": "mine"}}
    (folder / "graph.yaml").write_text(json.dumps({"tasks": tasks}))
    detector = {"pattern": "verifiable", "shape": [48, 64]}
    with Session.open("simulator", processing_nodes=nodes, detector=detector) as session:
        session.prepare(
            graph=str(folder / "graph.yaml"), output=folder, nb_frames=nb_frames, expo_time=1e-5
        )
        session.start()
        report = session.wait(60)
    return report, Path(report.masters["raw"])


@pytest.mark.parametrize("nodes", [0, 2])
def test_in_a_session_one_frame_is_lost_and_999_are_saved(tmp_path: Path, nodes: int) -> None:
    report, master = acquired(tmp_path, nodes, 1000, call="checked")
    assert (report.saved, report.absent) == (999, {"task_failed": 1})
    assert any("ValueError: no beam (mine.py:6), on frame 17" in text for text in report.errors)
    with h5py.File(master, "r") as file:
        fates = detector_group(file)["frames/fate"][()]
        assert np.flatnonzero(fates != Fate.SAVED).tolist() == [17]
        table = detector_group(file)["absences"]
        assert [text.decode() for text in table["detail"]] == ["ValueError: no beam (mine.py:6)"]


@pytest.mark.parametrize("nodes", [0, 1])
def test_in_a_session_a_frame_that_fails_stops_an_endless_acquisition(
    tmp_path: Path, nodes: int
) -> None:
    report, _ = acquired(tmp_path, nodes, 0, call="checked", if_fails="stop")
    assert report.absent["task_failed"] == 1
    assert any("no beam" in text for text in report.errors)


@pytest.mark.parametrize("nodes", [0, 2])
def test_in_a_session_a_wrong_shape_is_told_once_by_every_node(tmp_path: Path, nodes: int) -> None:
    report, _ = acquired(tmp_path, nodes, 1000, call="half")
    assert (report.saved, report.absent) == (0, {"task_failed": 1000})
    told = [text for text in report.errors if "gave an array 24 × 64 of uint16, promised" in text]
    assert 1 <= len(told) <= max(1, nodes)
    assert len(report.errors) == len(told)
