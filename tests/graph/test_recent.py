"""Small products wait to be read, up to a number of bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lima2py.frame import Absence, Block, Fate, FrameSpec, Ragged
from lima2py.graph import recent
from lima2py.graph.recent import Recent
from lima2py.task import RunContext
from lima2py.transport.products import pack_product, product_of

SPEC = FrameSpec("vector", (10,), np.dtype("f8"))
RUN = RunContext(run="0" * 32, name="test")


def block(index: int, count: int = 2) -> Block:
    return Block(SPEC, index, count, np.full((count, 10), index, float))


@given(st.lists(st.integers(1, 7), max_size=8), st.integers(1, 40))
def test_a_reader_gets_every_block_once_and_in_order(reads: list[int], blocks: int) -> None:
    kept = Recent(SPEC, RUN)
    for index in range(blocks):
        kept.keep(block(2 * index))
    kept.end()
    after, found, ended = -1, [], False
    for most in [*reads, 100]:
        some, newest, ended = kept.after(after, most)
        assert newest == blocks - 1
        found += [item.index for _, item in some]
        after = some[-1][0] if some else after
        assert ended == (after == blocks - 1)
    assert found == [2 * index for index in range(blocks)]


def test_the_oldest_give_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "BUDGET", 5000)
    kept = Recent(SPEC, RUN)
    for index in range(100):
        kept.keep(block(index))
    found, *_ = kept.after(-1, 1000)
    assert [serial for serial, _ in found] == [96, 97, 98, 99]


def test_a_reader_is_given_no_more_at_once_than_so_many_bytes() -> None:
    kept = Recent(SPEC, RUN)
    for index in range(10):
        kept.keep(block(2 * index))
    kept.end()
    assert [serial for serial, _ in kept.after(3, 1000, 4000)[0]] == [4, 5, 6]
    assert [serial for serial, _ in kept.after(3, 1000, 10)[0]] == [4]
    assert kept.after(8, 1000, 10)[1:] == (9, True)
    assert kept.after(9, 1000, 10) == ([], 9, True)


def test_what_a_block_has_besides_its_data_counts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "BUDGET", 1_000_000)
    absences = dict.fromkeys(range(500), Absence(Fate.REJECTED, "veto"))
    columns = {"timestamp": np.zeros(1000), "pulse": np.zeros(1000, "u4")}
    kept = Recent(SPEC, RUN)
    for index in range(100):
        kept.keep(Block(SPEC, 1000 * index, 1000, np.zeros((1000, 10)), absences, columns))
    assert len(kept.after(-1, 1000)[0]) == 1_000_000 // (80_000 + 50_000 + 12_000 + 1000)


def test_blocks_without_frames_are_not_kept() -> None:
    kept = Recent(SPEC, RUN)
    kept.keep(Block(SPEC, 3, 0, None))
    assert kept.after(-1, 10) == ([], -1, False)


@pytest.mark.parametrize("kind", ["vector", "table", "sparse"])
def test_a_product_is_the_same_after_its_way_to_a_reader(kind: str) -> None:
    rows = np.dtype([("index", "u4"), ("value", "f4")])
    times = {"timestamp": np.array([1.0, 2.0, 3.0])}
    if kind == "sparse":
        spec = FrameSpec("sparse", (1, 4, 4), rows)
        columns = {"index": np.arange(5, dtype="u4"), "value": np.arange(5, dtype="f4")}
        given = Block(spec, 7, 3, Ragged.of(np.array([2, 0, 3]), columns), {}, times)
    elif kind == "table":
        spec = FrameSpec("table", (2,), rows)
        given = Block(spec, 7, 3, np.ones((3, 2), rows), {}, times)
    else:
        given = Block(SPEC, 7, 3, np.ones((3, 10)), {}, times)
    again = product_of(given.spec, pack_product(given))
    for one, other in zip(given.frames(), again.frames(), strict=True):
        assert (one.index, one.timestamp) == (other.index, other.timestamp)
        np.testing.assert_array_equal(one.data, other.data)
