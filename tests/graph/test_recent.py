"""Small products wait to be read, up to a number of bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lima2py.frame import Block, FrameSpec, Ragged
from lima2py.graph import recent
from lima2py.graph.recent import Recent
from lima2py.transport.products import pack_product, product_of

SPEC = FrameSpec("vector", (10,), np.dtype("f8"))


def block(index: int, count: int = 2) -> Block:
    return Block(SPEC, index, count, np.full((count, 10), index, float))


@given(st.lists(st.integers(1, 7), max_size=8), st.integers(1, 40))
def test_a_reader_gets_every_block_once_and_in_order(reads: list[int], blocks: int) -> None:
    kept = Recent(SPEC)
    for index in range(blocks):
        kept.keep(block(2 * index))
    kept.end()
    after, found, ended = -1, [], False
    for most in [*reads, 100]:
        some, ended = kept.after(after, most)
        found += [item.index for _, item in some]
        after = some[-1][0] if some else after
        assert ended == (after == blocks - 1)
    assert found == [2 * index for index in range(blocks)]


def test_the_oldest_give_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "BUDGET", 5000)
    kept = Recent(SPEC)
    for index in range(100):
        kept.keep(block(index))
    found, _ = kept.after(-1, 1000)
    assert [serial for serial, _ in found] == [96, 97, 98, 99]


def test_blocks_without_frames_are_not_kept() -> None:
    kept = Recent(SPEC)
    kept.keep(Block(SPEC, 3, 0, None))
    assert kept.after(-1, 10) == ([], False)


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
