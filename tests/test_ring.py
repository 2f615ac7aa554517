"""A ring never hands out a slot in use, and runs share an arena without touching each other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lima2py.errors import LimaError
from lima2py.frame import FrameSpec
from lima2py.memory import PAGE, Allocator, Heap, Shared
from lima2py.ring import BLOCK_BYTES, MAX_FRAMES_PER_BLOCK, Arena, Ring, RingShape, SlotViews
from lima2py.testing.strategies import specs

large_specs = st.builds(
    FrameSpec.dense,
    st.integers(1, 5000),
    st.integers(1, 5000),
    st.sampled_from(["u1", "u2", "f8"]),
    bands=st.integers(1, 3),
)


@given(large_specs, st.integers(2**16, 2**36), st.integers(1, 3000))
def test_a_ring_is_cut_within_its_memory(spec: FrameSpec, ring: int, group: int) -> None:
    least = 3 * -(-spec.nbytes // PAGE) * PAGE
    if ring < least:
        with pytest.raises(LimaError, match="needs at least 3: make it"):
            RingShape.plan(spec, ring, group=group)
        ring = least
    shape = RingShape.plan(spec, ring, group=group)
    assert shape.nbytes == shape.slots * shape.stride <= ring
    assert shape.slots >= 3
    assert shape.stride % PAGE == 0
    assert shape.stride >= shape.frames * spec.nbytes
    assert 1 <= shape.frames <= MAX_FRAMES_PER_BLOCK
    if shape.frames > 1:
        assert shape.slots >= 8
        assert shape.frames * spec.nbytes <= BLOCK_BYTES
    assert shape.frames < group or shape.frames % group == 0


def test_small_frames_travel_together_and_large_ones_alone() -> None:
    assert RingShape.plan(FrameSpec.dense(64, 64, "u2"), 2**28).frames == 256
    assert RingShape.plan(FrameSpec.dense(8, 8, "u1"), 2**28).frames == MAX_FRAMES_PER_BLOCK
    assert RingShape.plan(FrameSpec.dense(2048, 2048, "u2"), 2**28) == (1, 32, 2**23)


@pytest.mark.parametrize(("group", "frames"), [(2, 256), (10, 250), (200, 200), (1000, 256)])
def test_small_groups_travel_together_too(group: int, frames: int) -> None:
    assert RingShape.plan(FrameSpec.dense(64, 64, "u2"), 2**28, group=group).frames == frames


def test_a_short_run_takes_no_more_than_it_can_need() -> None:
    shape = RingShape.plan(FrameSpec.dense(64, 64, "u2"), 2**28, nb_frames=1000, nodes=2)
    assert shape.frames == 125
    assert shape.slots == 2 * 8 + 16
    shape = RingShape.plan(FrameSpec.dense(64, 64, "u2"), 2**30, nb_frames=1000, group=100)
    assert shape.slots == 3 * 100 + 16


@settings(max_examples=30)
@given(specs(), st.sampled_from([Heap(), Shared()]))
def test_slots_do_not_overlap(spec: FrameSpec, allocator: Allocator) -> None:
    shape = RingShape.plan(spec, 2**16)
    arena = Arena(allocator, 2**16)
    ring = Ring(spec, shape, arena)
    slots = [ring.take() for _ in range(ring.slots)]
    assert ring.take() is None
    for slot in slots:
        assert slot is not None
        view = ring.view(slot)
        assert view.shape == (ring.shape.frames, *spec.shape)
        assert view.dtype == spec.dtype
        view.view(np.uint8)[:] = slot + 1
    same = SlotViews(arena.buffer, spec, shape)  # as another process sees them
    for slot in slots:
        assert slot is not None
        assert (same[slot].view(np.uint8) == slot + 1).all()
    same.close()
    del view
    ring.close()
    ring.close()
    arena.retire()


class Shares(RuleBasedStateMachine):
    """Several runs, with slots of different sizes, in one arena, against a map of its bytes."""

    PAGES = 96

    @initialize()
    def build(self) -> None:
        self.arena = Arena(Heap(), self.PAGES * PAGE)
        self.rings: list[Ring] = []
        self.in_use: dict[int, list[int]] = {}
        self.left: set[int] = set()

    def pages_of(self, ring: Ring, slot: int) -> set[int]:
        step = ring.shape.stride // PAGE
        return set(range(slot * step, (slot + 1) * step))

    def all_used(self) -> list[int]:
        return [
            page
            for ring in self.rings
            for slot in self.in_use[id(ring)]
            for page in self.pages_of(ring, slot)
        ]

    @rule(step=st.integers(1, 7), slots=st.integers(3, 40))
    def begin(self, step: int, slots: int) -> None:
        spec = FrameSpec.dense(16, 16, "u2")
        try:
            ring = Ring(spec, RingShape(1, slots, step * PAGE), self.arena)
        except LimaError:
            return  # too little is free
        self.rings.append(ring)
        self.in_use[id(ring)] = []

    @precondition(lambda self: self.rings)
    @rule(data=st.data())
    def take(self, data: st.DataObject) -> None:
        ring = data.draw(st.sampled_from(self.rings))
        if id(ring) in self.left:
            return
        slot = ring.take()
        if slot is None:
            assert ring.used == ring.slots
            return
        assert not self.pages_of(ring, slot) & set(self.all_used())
        assert max(self.pages_of(ring, slot)) < self.PAGES
        assert ring.view(slot).nbytes == 512
        self.in_use[id(ring)].append(slot)

    @precondition(lambda self: any(self.in_use.values()))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        ring = data.draw(st.sampled_from([r for r in self.rings if self.in_use[id(r)]]))
        slot = data.draw(st.sampled_from(self.in_use[id(ring)]))
        self.in_use[id(ring)].remove(slot)
        ring.release(slot)

    @precondition(lambda self: self.rings)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        ring = data.draw(st.sampled_from(self.rings))
        self.left.add(id(ring))
        ring.leave()

    @precondition(lambda self: self.rings)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        ring = data.draw(st.sampled_from(self.rings))
        self.rings.remove(ring)
        self.left.discard(id(ring))
        del self.in_use[id(ring)]
        ring.close()
        ring.close()

    @rule(pages=st.integers(0, PAGES))
    def resize(self, pages: int) -> None:
        self.arena.resize(pages * PAGE)

    @invariant()
    def no_more_is_taken_than_may_be_or_than_runs_had_before(self) -> None:
        if hasattr(self, "arena"):
            most = max(self.arena.limit, self.arena.held_bytes)
            assert self.arena.held_bytes <= self.arena.committed_bytes <= most
            assert self.arena.free_bytes == max(0, self.arena.limit - self.arena.held_bytes)

    @invariant()
    def nothing_is_used_twice_and_what_is_left_is_free(self) -> None:
        if not hasattr(self, "arena"):
            return
        used = self.all_used()
        assert len(used) == len(set(used))
        for ring in self.rings:
            assert ring.used == len(self.in_use[id(ring)])
            assert ring.peak >= ring.used
        if all(id(ring) in self.left for ring in self.rings):
            chunks = {page * PAGE // self.arena.chunk for page in used}
            assert self.arena.held_bytes <= len(chunks) * self.arena.chunk

    def teardown(self) -> None:
        if hasattr(self, "arena"):
            for ring in self.rings:
                ring.close()
            self.arena.retire()
            assert self.arena.buffer.bytes.size == 0


Shares.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestRunsShareAnArena = Shares.TestCase


def test_an_arena_grows_with_what_is_needed_and_keeps_what_it_has() -> None:
    arena = Arena(Shared(), 64 * PAGE)
    spec = FrameSpec.dense(8, 8, "u2")
    first = Ring(spec, RingShape(1, 4, PAGE), arena)
    assert arena.free_bytes == 60 * PAGE
    slots = [first.take() for _ in range(4)]
    first.leave()
    second = Ring(spec, RingShape(1, 60, PAGE), arena)
    assert second.slots == 60
    assert second.take() not in slots
    with pytest.raises(LimaError, match=r"256 KiB are held by runs that are still processed"):
        Ring(spec, RingShape(1, 3, PAGE), arena)
    second.close()
    first.close()
    arena.retire()


def test_an_arena_that_is_made_smaller_gives_memory_back_and_runs_what_they_do_not_use() -> None:
    arena = Arena(Shared(), 64 * PAGE)
    spec = FrameSpec.dense(8, 8, "u2")
    first = Ring(spec, RingShape(1, 10, PAGE), arena)
    slots = [first.take() for _ in range(10)]
    second = Ring(spec, RingShape(1, 54, PAGE), arena)
    assert arena.committed_bytes == 64 * PAGE
    arena.resize(40 * PAGE)
    assert arena.committed_bytes == 64 * PAGE  # a run has it
    second.fit()
    assert (second.slots, arena.committed_bytes, arena.limit) == (30, 40 * PAGE, 40 * PAGE)
    taken = {second.take() for _ in range(30)}
    assert not taken & {None, *slots}
    assert second.take() is None
    assert arena.claim() is None
    arena.resize(64 * PAGE)
    assert second.take() is not None
    first.close()
    second.close()
    arena.retire()


def test_a_run_that_is_left_too_little_says_what_holds_the_rest() -> None:
    arena = Arena(Heap(), 64 * PAGE)
    spec = FrameSpec.dense(8, 8, "u2")
    first = Ring(spec, RingShape(1, 10, PAGE), arena)
    second = Ring(spec, RingShape(1, 20, PAGE), arena)
    arena.resize(12 * PAGE)
    with pytest.raises(LimaError, match=r"ring of 48 KiB is taken: 40 KiB are held .* 12 KiB are"):
        second.fit()
    assert arena.held_bytes == 10 * PAGE
    first.close()
    arena.retire()
