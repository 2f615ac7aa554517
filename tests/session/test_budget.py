"""A memory budget is shared out in the right order, and kept while something does not move."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lima2py.errors import LimaError
from lima2py.node.holdings import Granted, Needs
from lima2py.session.budget import Budgets, share_out, table
from lima2py.session.launch import Handle
from lima2py.session.system import System

MIB = 2**20


@st.composite
def some_needs(draw: st.DrawFn) -> dict[str, Needs]:
    found = {}
    for number in range(draw(st.integers(1, 4))):
        least_shelf, least_ring = draw(st.tuples(st.integers(0, 9), st.integers(0, 30)))
        acquires = draw(st.booleans())
        found[f"node{number}"] = Needs(
            host="here",
            process=draw(st.integers(1, 100)),
            shelf=least_shelf + draw(st.integers(0, 90)),
            least_shelf=least_shelf,
            ring=(least_ring + draw(st.integers(1, 500))) * acquires,
            least_ring=least_ring * acquires,
        )
    return found


@given(st.integers(1, 3000), some_needs())
def test_no_more_than_the_budget_is_shared_out_and_rings_come_before_what_is_looked_at(
    budget: int, needs: dict[str, Needs]
) -> None:
    least = sum(need.process + need.least_shelf + need.least_ring for need in needs.values())
    if least > budget:
        with pytest.raises(LimaError, match=r"memory budget of .* is too small: at least") as told:
            share_out(budget, needs)
        assert all(f"{name}: process" in str(told.value) for name in needs)
        return
    granted = share_out(budget, needs)
    assert sum(g.process + (g.shelf or 0) + (g.ring or 0) for g in granted.values()) <= budget
    for name, need in needs.items():
        assert granted[name].process == need.process
        assert need.least_shelf <= (granted[name].shelf or 0) <= need.shelf
        if need.ring:
            assert (granted[name].ring or 0) >= need.least_ring
    rest = budget - sum(need.process for need in needs.values())
    shelves = sum(g.shelf or 0 for g in granted.values())
    rings = sum(g.ring or 0 for g in granted.values())
    if rings < sum(need.ring for need in needs.values()) - len(needs):  # it is tight
        assert shelves <= max(rest // 4, sum(need.least_shelf for need in needs.values()))
    if math.fsum(need.shelf + need.ring for need in needs.values()) <= rest:
        assert all((granted[name].shelf or 0) == need.shelf for name, need in needs.items())


def test_what_is_kept_gives_way_first_then_the_ring_then_it_is_refused() -> None:
    needs = {
        "acq": Needs("here", 80 * MIB, ring=200 * MIB, least_ring=24 * MIB),
        "proc": Needs("here", 100 * MIB, shelf=64 * MIB, least_shelf=4 * MIB),
    }
    granted = [share_out(size * MIB, needs) for size in (500, 400, 210)]
    assert [told["proc"].shelf for told in granted] == [64 * MIB, 55 * MIB, 6 * MIB]
    assert [(told["acq"].ring or 0) >= 24 * MIB for told in granted] == [True] * 3
    assert share_out(208 * MIB, needs)["proc"].shelf == 4 * MIB
    with pytest.raises(LimaError) as told:
        share_out(207 * MIB, needs)
    assert str(told.value).startswith(
        "the memory budget of 207 MiB is too small: at least 208 MiB are needed, acq: process"
        " 80 MiB, ring 24 MiB; proc: process 100 MiB, taps 4 MiB. Wait for runs"
    )


def test_the_table_says_what_was_asked_and_what_is_given() -> None:
    needs = {
        "acq": Needs("here", 80 * MIB, ring=200 * MIB, least_ring=24 * MIB),
        "proc": Needs("there", 100 * MIB, shelf=64 * MIB),
    }
    granted = {"acq": Granted(80 * MIB, 0, 120 * MIB)}
    assert table({"here": 200 * MIB}, needs, granted).splitlines() == [
        "memory  process  kept for taps  ring",
        "acq     80 MiB   -              120 MiB (200 MiB asked)",
        "proc    100 MiB  64 MiB         -",
        "memory budget of 200 MiB on a host",
    ]


class Told(Handle):
    """A node that only says what it needs."""

    def __init__(self, name: str, needs: Needs):
        self.name, self.rank = name, 0
        self._needs = needs

    def call(self, command: str, *, timeout: float = 30.0, **parameters: Any) -> Any:
        assert command == "needs"
        return msgspec.to_builtins(self._needs)

    look = call

    def close(self) -> None:
        return


def test_nodes_that_hand_on_to_another_stage_have_a_part_of_the_memory_for_rings() -> None:
    told = {
        "system": "staged",
        "detector": "simulator",
        "memory": {"budget": 600 * MIB},
        "acquisition": [{"node": "acq0"}],
        "processing": [{"node": "proc0"}, {"node": "late0", "stage": "late"}],
    }
    nodes = [Told(name, Needs("here", 60 * MIB)) for name in ("acq0", "proc0", "late0")]
    rings = Budgets().begin(System.load(told, "test"), nodes, ["acq0", "proc0"], "graph")
    assert rings.keys() == {"acq0", "proc0"}
    assert 300 * MIB < sum(rings.values()) < 420 * MIB


def test_a_ring_that_can_use_no_more_leaves_the_rest_to_others() -> None:
    needs = {
        "acq0": Needs("here", 60, ring=500, least_ring=10),
        "proc0": Needs("here", 60, ring=50, least_ring=50),
    }
    granted = share_out(400, needs)
    assert (granted["acq0"].ring, granted["proc0"].ring) == (230, 50)
