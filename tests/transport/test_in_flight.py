"""Blocks in flight are settled once, and their slot is free when nothing in it is needed."""

from __future__ import annotations

import numpy as np

from lima2py.frame import Absence, Block, Fate, FrameSpec
from lima2py.transport.dispatch import Dispatch, Item
from lima2py.transport.in_flight import InFlight, nobody_did

SPEC = FrameSpec.dense(2, 2, "uint16")


def item(index: int, count: int, slot: int) -> Item:
    data = np.zeros((count, *SPEC.shape), np.uint16)
    return Item(Block(SPEC, index, count, data, {}, {}), slot)


def test_the_slot_of_a_block_that_was_split_is_free_when_all_its_frames_are_settled() -> None:
    queue = Dispatch("least_loaded", 8)
    queue.add(0, 4)
    flying = InFlight(queue)
    flying.add(item(0, 3, slot=7))
    flying.add(item(3, 1, slot=8))
    whole, other = queue.next(), queue.next()
    assert whole is not None
    assert other is not None
    parts = flying.split(whole)
    assert flying.firsts == [3, 0, 1, 2]
    assert queue.loads == {0: 1}
    assert [flying.settle(part) for part in parts] == [-1, -1, 7]
    assert flying.of([0]) == [other]
    assert flying.settle(other) == 8
    assert not flying
    assert queue.loads == {0: 0}


def test_what_nobody_does_is_absent_on_every_track() -> None:
    why = Absence(Fate.NODE_LOST, "ledger", "gone")
    block = item(3, 4, slot=0)
    block.block = block.block.refuse({1: Absence(Fate.CORRUPT, "detector", "half of it")})
    done = nobody_did(block, why, spans=[1, 5, 100], source=2)
    lost, corrupt = (int(Fate.NODE_LOST), "ledger", "gone"), (13, "detector", "half of it")
    frames = [(0, 1, *lost), (1, 1, *corrupt), (2, 2, *lost)]
    assert done.rows == [-1, -1, -1]
    assert [said for track, said in done.absences if track == 0] == frames
    assert [said for track, said in done.absences if track == 1] == frames
    assert [said for track, said in done.absences if track == 2] == [(0, 1, *lost)]  # frame 0 to 4
    assert not [said for track, said in done.absences if track == 3]


def test_parts_of_a_block_that_are_settled_apart_free_its_slot_together() -> None:
    queue = Dispatch("least_loaded", 8, 4)
    queue.add(0, 4)
    flying = InFlight(queue)
    block = item(0, 3, slot=7)
    block.group = 0
    flying.add(block)
    whole = queue.next()
    assert whole is not None
    first = flying.cut(whole, 1)
    second = flying.find(1)
    assert second is not None
    assert (first.block.count, second.block.count, second.offset) == (1, 2, 1)
    assert [(part.owner, part.epoch) for part in (first, second)] == [(0, 0), (0, 0)]
    assert queue.loads == {0: 2}
    assert flying.settle(first) == -1
    assert flying.settle(second) == 7
    assert queue.loads == {0: 0}
    assert not flying
