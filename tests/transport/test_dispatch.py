"""Blocks are given away once, within credits, groups together, suspects alone."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lima2py.frame import Block, FrameSpec
from lima2py.transport.dispatch import NO_GROUP, NOBODY, Dispatch, Item, shared_group

SPEC = FrameSpec.dense(2, 2, "uint16")


def item(index: int, count: int = 1, group: int = 1) -> Item:
    part_of = shared_group(index, index + count, group)
    return Item(Block.absent(SPEC, index, count, None, {}), -1, part_of)  # type: ignore[arg-type]


def given_to(dispatch: Dispatch) -> dict[int, list[int]]:
    """Everything that can be given away now, by node."""
    found: dict[int, list[int]] = {}
    while (given := dispatch.next()) is not None:
        found.setdefault(given.owner, []).append(given.block.index)
    return found


def test_with_round_robin_stretches_take_turns() -> None:
    dispatch = Dispatch("round_robin", 2)
    for rank in range(3):
        dispatch.add(rank, 10)
    for index in range(12):
        dispatch.put(item(index))
    assert given_to(dispatch) == {0: [0, 1, 6, 7], 1: [2, 3, 8, 9], 2: [4, 5, 10, 11]}


def test_with_least_loaded_a_node_that_does_nothing_is_given_nothing_more() -> None:
    dispatch = Dispatch("least_loaded", 1)
    dispatch.add(0, 4)
    dispatch.add(1, 4)
    done: list[Item] = []
    for index in range(40):
        dispatch.put(item(index))
        while (given := dispatch.next()) is not None:
            if given.owner == 1:
                dispatch.take_back(given)
                done.append(given)
    assert len(done) == 39
    assert dispatch.loads == {0: 1, 1: 0}


def test_the_blocks_of_a_group_go_to_one_node_in_their_order() -> None:
    dispatch = Dispatch("least_loaded", 10, 10)
    dispatch.add(0, 99)
    dispatch.add(1, 99)
    for index, count in ((0, 4), (4, 4), (8, 2), (10, 12), (22, 8), (30, 4), (34, 6)):
        dispatch.put(item(index, count, 10))
    owners = {index: rank for rank, indices in given_to(dispatch).items() for index in indices}
    assert owners[0] == owners[4] == owners[8]
    assert owners[10] == owners[22]  # 10 to 21 is a group, and part of another
    assert owners[30] == owners[34]


def test_a_group_with_a_suspect_in_it_is_tried_from_its_beginning() -> None:
    dispatch = Dispatch("least_loaded", 1, 3)
    dispatch.add(0, 9)
    group = [item(index, 1, 3) for index in range(3)]
    for one in group:
        dispatch.put(one)
    next_, *_ = given_to(dispatch)
    for one in group:
        dispatch.take_back(one)
    dispatch.remove(next_)
    group[1].deaths = 1
    dispatch.put_back(group[:2])  # and it had not been given the third one
    dispatch.put(group[2])
    dispatch.add(1, 9)
    dispatch.add(2, 9)
    given = given_to(dispatch)
    assert list(given.values()) == [[0, 1, 2]]


def test_who_has_part_of_a_group_can_be_given_suspects_and_then_the_rest() -> None:
    """Else each would wait for the other, on a node that is the only one left."""
    dispatch = Dispatch("least_loaded", 1, 3)
    dispatch.add(0, 9)
    first, second, third = (item(index, 1, 3) for index in range(3, 6))
    dispatch.put(first)
    given_to(dispatch)
    suspect = item(0, 3, 3)
    suspect.deaths = 1
    dispatch.put_back([suspect])
    for one in (item(6, 3, 3), second, third):
        dispatch.put(one)
    assert given_to(dispatch) == {0: [0]}
    dispatch.take_back(suspect)
    assert given_to(dispatch) == {0: [6, 4, 5]}


def test_a_suspect_is_alone_and_keeps_nobody_else_from_working() -> None:
    dispatch = Dispatch("least_loaded", 1)
    for rank in range(2):
        dispatch.add(rank, 4)
    suspect = item(7)
    suspect.deaths = 1
    busy = [item(index) for index in range(3)]
    for one in busy:
        dispatch.put(one)
    given_to(dispatch)
    dispatch.put_back([suspect])
    for index in range(10, 20):
        dispatch.put(item(index))
    given_to(dispatch)
    assert suspect.owner == NOBODY  # the prober has something else still
    for one in busy:
        dispatch.take_back(one)
    after = given_to(dispatch)
    assert after[suspect.owner] == [7]
    assert dispatch.load(suspect.owner) == 1
    assert dispatch.load(1 - suspect.owner) == 4
    owner = suspect.owner
    dispatch.take_back(suspect)
    assert owner in given_to(dispatch)  # it is like the others again


@dataclass(eq=False)
class Given:
    item: Item
    alone: bool
    sent: int = 0


@dataclass
class Facts:
    credits: dict[int, int] = field(default_factory=dict)
    leaving: set[int] = field(default_factory=set)
    ranks: int = 0
    index: int = 0


class Dispatching(RuleBasedStateMachine):
    """Nodes come, leave and die, blocks are put and done, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.dispatch = Dispatch("least_loaded", 8, 4)
        self.facts = Facts()
        self.with_nodes: list[Item] = []
        self.waiting: list[Item] = []

    @rule(credits=st.integers(1, 5))
    def come(self, credits: int) -> None:
        self.dispatch.add(self.facts.ranks, credits)
        self.facts.credits[self.facts.ranks] = credits
        self.facts.ranks += 1

    @rule(count=st.integers(1, 9))
    def put(self, count: int) -> None:
        within = self.facts.index % 4
        count = min(count, 4 - within) if within else count
        made = item(self.facts.index, count, 4)
        self.facts.index += count
        self.waiting.append(made)
        self.dispatch.put(made)

    @rule()
    def give(self) -> None:
        while (given := self.dispatch.next()) is not None:
            assert given in self.waiting
            assert given.owner in self.facts.credits
            others = [other for other in self.with_nodes if other.owner == given.owner]
            assert len(others) < self.facts.credits[given.owner]
            holders = {other.owner for other in self.with_nodes if self.together(other, given)}
            assert holders <= {given.owner}
            before = [one.block.index for one in self.waiting if self.together(one, given)]
            assert given.block.index == min(before, default=given.block.index)
            if given.owner in self.facts.leaving:
                assert holders
            for other in others:
                if given.deaths and not self.together(given, other):
                    assert self.unfinished(other.group)
                if other.deaths and not holders:
                    assert self.unfinished(other.group)
            self.waiting.remove(given)
            self.with_nodes.append(given)

    def together(self, one: Item, other: Item) -> bool:
        """Whether two blocks are parts of one group."""
        return one.group == other.group != NO_GROUP

    def unfinished(self, group: int) -> bool:
        """Whether a node was given the beginning of a group, and not its end."""
        ends = [one.block.end for one in self.with_nodes if one.group == group]
        return group != NO_GROUP and max(ends) < (group + 1) * 4

    @precondition(lambda self: self.with_nodes)
    @rule(data=st.data())
    def done(self, data: st.DataObject) -> None:
        which = data.draw(st.sampled_from(range(len(self.with_nodes))))
        settled = self.with_nodes.pop(which)
        self.dispatch.take_back(settled)
        settled.over = True

    @precondition(lambda self: self.facts.credits)
    @rule(data=st.data(), culprit=st.booleans())
    def die(self, data: st.DataObject, culprit: bool) -> None:
        rank = data.draw(st.sampled_from(sorted(self.facts.credits)))
        orphans = [one for one in self.with_nodes if one.owner == rank]
        for one in orphans:
            self.with_nodes.remove(one)
            self.dispatch.take_back(one)
        if culprit and orphans:
            orphans[0].deaths += 1
        self.dispatch.remove(rank)
        del self.facts.credits[rank]
        self.facts.leaving.discard(rank)
        self.waiting += orphans
        self.dispatch.put_back(orphans)

    @precondition(lambda self: self.facts.credits)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        rank = data.draw(st.sampled_from(sorted(self.facts.credits)))
        self.facts.leaving.add(rank)
        self.dispatch.see_off(rank)

    @invariant()
    def loads_are_true(self) -> None:
        counted = dict.fromkeys(self.facts.credits, 0)
        for one in self.with_nodes:
            counted[one.owner] += 1
        assert self.dispatch.loads == counted

    def teardown(self) -> None:
        """With one good node everything is given away in the end."""
        self.come(5)
        for _ in range(3 * len(self.waiting) + 3 * len(self.with_nodes) + 9):
            self.give()
            for settled in list(self.with_nodes):
                self.with_nodes.remove(settled)
                self.dispatch.take_back(settled)
                settled.over = True
        assert self.waiting == []


TestDispatching = Dispatching.TestCase


@pytest.mark.parametrize("way", ["least_loaded", "round_robin"])
def test_nobody_is_given_anything_without_nodes(way: str) -> None:
    dispatch = Dispatch(way, 1)  # type: ignore[arg-type]
    dispatch.put(item(0))
    assert dispatch.next() is None
    assert dispatch.waiting == 1
