"""What is kept for who looks gives way in the right order, and within its bytes."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lima2py.frame import FrameSpec
from lima2py.shelf import Row, Shelf, usual_bytes


class Keeping(RuleBasedStateMachine):
    """A shelf against lists of what is on it, as (number, bytes), by row."""

    @initialize(limit=st.none() | st.integers(0, 300))
    def build(self, limit: int | None) -> None:
        self.shelf = Shelf()
        self.shelf.resize(limit)
        self.rows: list[tuple[Row[int], list[tuple[int, int]]]] = []
        self.number = 0

    @rule(run=st.sampled_from("abc"), most=st.none() | st.integers(1, 5), full=st.integers(50, 200))
    def begin(self, run: str, most: int | None, full: int) -> None:
        row: Row[int] = self.shelf.row(run)
        row.expect(full, full // 4, most, full)
        self.rows.append((row, []))

    @precondition(lambda self: self.rows)
    @rule(data=st.data(), nbytes=st.integers(1, 80))
    def add(self, data: st.DataObject, nbytes: int) -> None:
        row, kept = data.draw(st.sampled_from(self.rows))
        row.add(self.number, nbytes)
        kept.append((self.number, nbytes))
        self.number += 1
        while len(kept) > 1 and (
            len(kept) > (row.most or 1000) or sum(n for _, n in kept) > row.wanted
        ):
            kept.pop(0)
        self.make_room()

    @rule(limit=st.none() | st.integers(0, 300))
    def resize(self, limit: int | None) -> None:
        self.shelf.resize(limit)
        self.make_room()

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.rows))[0].end()

    @rule(run=st.sampled_from("abc"))
    def forget(self, run: str) -> None:
        self.shelf.forget(run)
        self.rows = [(row, kept) for row, kept in self.rows if row.run != run]

    def make_room(self) -> None:
        while self.shelf.limit is not None and self.total > self.shelf.limit:
            able = [kept for row, kept in self.rows if len(kept) > (0 if row.ended else 1)]
            if not able:
                return
            min(able, key=lambda kept: kept[0]).pop(0)

    @property
    def total(self) -> int:
        return sum(nbytes for _, kept in self.rows for _, nbytes in kept)

    @invariant()
    def what_is_kept_is_what_should_be(self) -> None:
        if not hasattr(self, "shelf"):
            return
        assert self.shelf.held == self.total <= self.shelf.peak
        for row, kept in self.rows:
            assert row.values() == [number for number, _ in kept]
            assert row.held == sum(nbytes for _, nbytes in kept)
        living = [row for row, _ in self.rows if not row.ended]
        assert self.shelf.wanted == sum(row.wanted for row in living)
        assert self.shelf.least == sum(row.least for row in living)


TestKeeping = Keeping.TestCase


@given(st.integers(1, 30), st.integers(1, 100))
def test_of_a_run_that_goes_on_the_newest_is_always_there(count: int, limit: int) -> None:
    shelf = Shelf()
    shelf.resize(limit)
    rows: list[Row[int]] = [shelf.row("run") for _ in range(3)]
    for number in range(count):
        rows[number % 3].add(number, 10)
    assert sum(max(row.values(), default=-1) == count - 1 for row in rows) == 1
    assert shelf.held <= max(limit, 30)


def test_a_sparse_frame_is_expected_to_have_few_rows() -> None:
    rows = np.dtype([("index", "u4"), ("value", "u2")])
    assert usual_bytes(FrameSpec("sparse", (1, 100, 100), rows)) == 3000
    assert usual_bytes(FrameSpec.dense(100, 100, "u2")) == 20000
