"""The tap: recent frames for readers who never hold up the pipeline."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lima2py.errors import BadParameter
from lima2py.frame import Absence, Block, Fate, FrameSpec, Ragged
from lima2py.task import RunContext, Task
from lima2py.tasks import tap as module
from lima2py.tasks.tap import Tap
from lima2py.testing.tasks import TaskTests

SPEC = FrameSpec.dense(3, 4, "i8")
RUN = RunContext(run="0" * 32, name="test")
GAP = Absence(Fate.DETECTOR_GAP, "detector")


class TestTap(TaskTests):
    @pytest.fixture(params=[{"every": 1}, {"every": 3, "history": 2}, {"every": "5 ms"}], ids=str)
    def task(self, request: pytest.FixtureRequest) -> Task:
        return Tap(**request.param)


ROWS = np.dtype([("index", "u4"), ("value", "u2")])


class TestTapOfOtherProducts(TaskTests):
    @pytest.fixture(params=[{"every": 2}, {"every": "5 ms"}], ids=str)
    def task(self, request: pytest.FixtureRequest) -> Task:
        return Tap(**request.param)

    @pytest.fixture(
        params=[
            FrameSpec("vector", (10,), np.dtype("f4"), span=3),
            FrameSpec("table", (2,), np.dtype([("sum", "f8"), ("max", "u2")])),
            FrameSpec("sparse", (1, 20, 30), ROWS, span=2),
        ],
        ids=str,
    )
    def spec(self, request: pytest.FixtureRequest) -> FrameSpec:
        spec: FrameSpec = request.param
        return spec


def block(first: int, count: int, absent: tuple[int, ...] = ()) -> Block:
    """Frames whose pixels are all equal to their index."""
    data = np.empty((count, *SPEC.shape), SPEC.dtype)
    data[:] = np.arange(first, first + count)[:, None, None, None]
    return Block(SPEC, first, count, data, dict.fromkeys(absent, GAP))


def started(nodes: int = 1, **parameters: Any) -> Tap:
    """A tap that frames can be given to."""
    tap = Tap(**parameters)
    assert tap.prepare(SPEC) is SPEC
    tap.start(RunContext(run=RUN.run, name=RUN.name, nodes=nodes))
    return tap


def indices(tap: Tap, after: int = -1) -> list[int]:
    """The numbers of the frames that are kept."""
    return [item.frame.index for item in tap.recent(after)]


@given(st.integers(1, 20), st.integers(1, 20), st.lists(st.integers(1, 30), max_size=8), st.data())
def test_every_nth_frame_is_kept_and_old_ones_give_way(
    every: int, history: int, sizes: list[int], data: st.DataObject
) -> None:
    tap, first, expected = started(every=every, history=history), 0, []
    for size in sizes:
        tap.process(block(first, size))
        expected += [index for index in range(first, first + size) if index % every == 0]
        first += size
        assert indices(tap) == expected[-history:]
    after = data.draw(st.integers(-1, 100))
    assert [item.serial for item in tap.recent(after)] == [
        serial for serial in range(max(0, len(expected) - history), len(expected)) if serial > after
    ]
    for item in tap.recent():
        assert item.frame.index == expected[item.serial]
        assert item.frame.data is not None
        assert (item.frame.data == item.frame.index).all()
        assert item.frame.data.shape == SPEC.saved_shape


@given(st.integers(1, 10), st.integers(1, 4), st.integers(1, 7))
def test_several_nodes_together_keep_every_nth_frame_once(
    every: int, nodes: int, group: int
) -> None:
    taps = [started(nodes, every=every, history=1000) for _ in range(nodes)]
    for first in range(0, 60, group):
        taps[first // group % nodes].process(block(first, group))
    kept = sorted(index for tap in taps for index in indices(tap))
    assert kept == [index for index in range(-(-60 // group) * group) if index % every == 0]


def test_a_kept_frame_is_a_copy_that_nobody_can_change() -> None:
    tap, source = started(), block(0, 1)
    assert tap.process(source) is source
    source.pixels[:] = 77
    latest = tap.latest()
    assert latest is not None
    assert latest.frame.data is not None
    assert (latest.frame.data == 0).all()
    assert not latest.frame.data.flags.writeable
    assert latest.frame.data.flags.c_contiguous


def test_a_view_is_copied_without_what_it_is_a_view_of() -> None:
    spec = FrameSpec.dense(3, 4, "i8", bands=2)
    whole = np.zeros((1, 2, 300, 400), "i8")
    tap = started()
    tap.process(Block(spec, 0, 1, whole[:, :, :3, 4:0:-1]))
    latest = tap.latest()
    assert latest is not None
    assert latest.frame.data is not None
    assert latest.frame.data.base is None
    assert latest.frame.data.shape == (2, 3, 4)


def test_absent_frames_are_kept_with_their_cause() -> None:
    tap = started()
    tap.process(block(5, 3, absent=(1,)))
    tap.process(Block.absent(SPEC, 8, 1, GAP))
    assert [(item.frame.index, item.frame.absence) for item in tap.recent()] == [
        (5, None), (6, GAP), (7, None), (8, GAP),
    ]  # fmt: skip
    assert tap.recent()[1].frame.data is None


def test_the_rows_of_sparse_frames_are_kept_as_copies() -> None:
    spec = FrameSpec("sparse", (1, 20, 30), ROWS)
    columns = {"index": np.arange(5, dtype="u4"), "value": np.arange(5, 10, dtype="u2")}
    tap = started(every=1)
    tap.process(Block(spec, 3, 3, Ragged.of(np.array([2, 0, 3]), columns), {1: GAP}))
    for values in columns.values():
        values[:] = 0
    first, gap, last = (item.frame for item in tap.recent())
    assert first.data is not None
    assert last.data is not None
    assert first.data.tolist() == [(0, 5), (1, 6)]
    assert last.data.tolist() == [(2, 7), (3, 8), (4, 9)]
    assert (gap.data, gap.absence) == (None, GAP)
    assert not last.data.flags.writeable


def test_rows_of_tables_are_kept_as_copies() -> None:
    spec = FrameSpec("table", (2,), np.dtype([("sum", "f8")]))
    data = np.array([[(1,), (2,)], [(3,), (4,)]], spec.dtype)
    tap = started(every=1)
    tap.process(Block(spec, 0, 2, data))
    data["sum"] = 0
    kept = [item.frame.data for item in tap.recent()]
    assert [[] if rows is None else rows["sum"].tolist() for rows in kept] == [[1, 2], [3, 4]]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that is set by hand."""
    now = [1000.0]
    monkeypatch.setattr(module, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize("nodes", [1, 3])
def test_a_time_is_shared_out_among_the_nodes(clock: list[float], nodes: int) -> None:
    """A frame each 50 ms for a minute, kept every 200 ms by all nodes together."""
    taps = [started(nodes, every="200 ms", history=1000) for _ in range(nodes)]
    for index in range(1200):
        clock[0] = 1000 + 0.05 * index
        taps[index % nodes].process(block(index, 1))
    kept = sum(len(tap.recent()) for tap in taps)
    assert 270 <= kept <= 300 + nodes


def test_by_time_the_newest_frame_with_data_is_kept(clock: list[float]) -> None:
    tap = started(every="1 s")
    tap.process(block(0, 5, absent=(4,)))
    assert indices(tap) == [3]
    clock[0] += 0.9
    tap.process(block(5, 5))
    assert indices(tap) == [3]
    clock[0] += 0.1
    tap.process(Block.absent(SPEC, 10, 5, GAP))
    assert indices(tap) == [3, 14]


def test_after_a_pause_frames_are_not_kept_in_a_burst(clock: list[float]) -> None:
    tap = started(every="1 s")
    tap.process(block(0, 1))
    clock[0] += 100
    for index in range(1, 10):
        tap.process(block(index, 1))
    assert indices(tap) == [0, 1]


def test_blocks_without_frames_change_nothing(clock: list[float]) -> None:
    for every in (3, "1 s"):
        tap = started(every=every)
        tap.process(Block(SPEC, 6, 0, None))
        assert tap.latest() is None
        tap.process(block(6, 1))
        assert indices(tap) == [6]


def test_a_tap_can_be_changed_while_frames_pass(clock: list[float]) -> None:
    tap = started(nodes=2, every=1, history=10)
    tap.process(block(0, 6))
    tap.change(Tap(every=2, history=3))
    assert indices(tap) == [3, 4, 5]
    tap.process(block(6, 5))
    assert indices(tap) == [6, 8, 10]
    assert [item.serial for item in tap.recent()] == [6, 7, 8]
    tap.change(Tap(every="1 s", history=5))
    tap.process(block(11, 2))
    clock[0] += 1.9
    tap.process(block(13, 1))
    assert indices(tap) == [6, 8, 10, 12]
    clock[0] += 0.2
    tap.process(block(14, 1))
    assert indices(tap) == [6, 8, 10, 12, 14]
    tap.change(Tap(every="1 ms", history=5))
    tap.process(block(15, 1))
    assert indices(tap) == [8, 10, 12, 14, 15]
    tap.change(Tap(every=1, history=1))
    tap.process(block(16, 1))
    assert indices(tap) == [16]


def test_before_the_first_frame_there_is_none_and_after_the_last_they_stay() -> None:
    tap = started()
    assert tap.latest() is None
    assert tap.recent() == []
    tap.process(block(0, 2))
    assert not tap.ended
    tap.finish()
    assert tap.ended
    latest = tap.latest()
    assert latest is not None
    assert (latest.serial, latest.frame.index) == (1, 1)


def test_a_reader_in_another_thread_sees_whole_frames_in_order() -> None:
    tap = started(history=4)
    seen: list[int] = []
    broken: list[object] = []
    reading = threading.Event()

    def read() -> None:
        after, ended = -1, False
        while not ended:
            ended = tap.ended
            for item in tap.recent(after):
                reading.set()
                if item.serial <= after or item.frame.data is None:
                    broken.append(item)
                elif not (item.frame.data == item.frame.index).all():
                    broken.append(item)
                after = item.serial
                seen.append(item.frame.index)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        tap.process(block(0, 1))
        assert reading.wait(30)
        memory = block(0, 3)
        for first in range(1, 3000, 3):  # one memory for all blocks, as in a ring
            memory.pixels[:] = np.arange(first, first + 3)[:, None, None, None]
            tap.process(Block(SPEC, first, 3, memory.pixels))
    finally:
        tap.finish()
        reader.join()
    assert not broken
    assert seen == sorted(set(seen))
    assert seen[-1] == 3000


@pytest.mark.parametrize("every", [0, -1, True, 0.2, "0 s", "-1 s", None, [1]])
def test_what_is_neither_a_number_of_frames_nor_a_time_is_refused(every: object) -> None:
    with pytest.raises(BadParameter, match=r"live, every: should be a number of frames.*200 ms"):
        Tap.load({"every": every}, "live")


@pytest.mark.parametrize("every", ["10", "2 GiB", "often"])
def test_text_that_is_no_time_is_refused(every: str) -> None:
    with pytest.raises(BadParameter, match="live, every: is not a time"):
        Tap.load({"every": every}, "live")


def test_no_history_is_refused() -> None:
    with pytest.raises(BadParameter, match="history: should be greater than or equal to 1"):
        Tap.load({"history": 0}, "live")
