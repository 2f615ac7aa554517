"""Frames that are put together from modules: whatever the cuts, the order and the losses."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lima2py_detectors.simulator import verifiable_frames

from lima2py.detector import spec_of_modules
from lima2py.frame import Absence, Block, Fate, FrameSpec
from lima2py.geometry import Roi
from lima2py.policies import Policies
from lima2py.transport.join import MODULE_MISSING, Join, Piece

SPEC = FrameSpec.dense(12, 6, np.uint16)
BOXES = {0: (Roi(0, 0, 6, 4),), 1: (Roi(0, 8, 6, 4),), 2: (Roi(0, 4, 6, 2), Roi(0, 6, 6, 2))}
PIECES = {
    rank: Piece(f"acq{rank}", (f"m{rank}",), boxes, 1 << rank) for rank, boxes in BOXES.items()
}
MOST = 8


def piece(
    source: int, first: int, count: int, epoch: int = 1, without: tuple[int, ...] = ()
) -> Block:
    """What an acquisition node gives of some frames; of those without, that it has none."""
    frames = verifiable_frames(first, count, (12, 6))
    pixels = np.concatenate([frames[:, :, *box.slices] for box in BOXES[source]], axis=2)
    absences = {
        index - first: Absence(Fate.DETECTOR_GAP, f"acq{source}", "skipped")
        for index in without
        if first <= index < first + count
    }
    spec = spec_of_modules(SPEC, BOXES[source])
    data = pixels if len(absences) < count else None
    return Block(spec, first, count, data, absences, {}, (source, epoch), 0.0)


def join(**policies: object) -> Join:
    return Join(SPEC, MOST, PIECES, 7, Policies.load(policies, "policies"), {})


def whole(block: Block) -> None:
    """Every frame that is there is as the detector saw it."""
    expected = verifiable_frames(block.index, block.count, (12, 6))
    for offset in np.flatnonzero(block.present).tolist():
        np.testing.assert_array_equal(block.pixels[offset], expected[offset])


@st.composite
def cuts(draw: st.DrawFn, end: int, most: int = 64) -> list[tuple[int, int]]:
    """Frames up to `end` in blocks: first and count."""
    inner = draw(st.sets(st.integers(1, end - 1), max_size=end - 1)) if end > 1 else set()
    edges = sorted({0, end, *inner})
    return [
        (at, min(most, last - at))
        for first, last in pairwise(edges)
        for at in range(first, last, most)
    ]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_frames_are_whole_whatever_the_cuts_and_the_order_of_pieces(data: st.DataObject) -> None:
    end = data.draw(st.integers(1, 30))
    lead = [piece(0, *cut) for cut in data.draw(cuts(end, MOST))]
    gaps = {source: data.draw(st.sets(st.integers(0, end - 1), max_size=3)) for source in (1, 2)}
    queues = [list(lead)] + [
        [piece(source, *cut, without=tuple(gaps[source])) for cut in data.draw(cuts(end))]
        for source in (1, 2)
    ]
    joined, made = join(), list[Block]()
    while any(queues):
        turn = data.draw(st.sampled_from([n for n, queue in enumerate(queues) if queue]))
        for block in joined.take(queues[turn].pop(0)):
            made.append(block)
            whole(block)
            joined.done([(block.index, block.origin[1])])  # its memory is used again
    assert [(block.index, block.count) for block in made] == [(b.index, b.count) for b in lead]
    absent = {
        block.index + offset: said for block in made for offset, said in block.absences.items()
    }
    assert set(absent) == gaps[1] | gaps[2]
    assert {said.cause for said in absent.values()} <= {Fate.INCOMPLETE}
    for index, said in absent.items():
        assert ("m1" in said.detail, "m2" in said.detail) == (index in gaps[1], index in gaps[2])


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_modules_that_are_missing_are_named_and_filled(data: st.DataObject) -> None:
    end = data.draw(st.integers(1, 20))
    gaps = {source: data.draw(st.sets(st.integers(0, end - 1))) for source in (0, 1, 2)}
    joined, made = join(missing_modules="keep"), list[Block]()
    for source in (1, 2, 0):
        for cut in data.draw(cuts(end, MOST)):
            made += joined.take(piece(source, *cut, without=tuple(gaps[source])))
    for block in made:
        expected = verifiable_frames(block.index, block.count, (12, 6))
        for offset in range(block.count):
            index = block.index + offset
            missing = [source for source in BOXES if index in gaps[source]]
            assert block.columns[MODULE_MISSING][offset] == sum(1 << source for source in missing)
            if len(missing) == len(BOXES):
                assert block.absences[offset].cause is Fate.DETECTOR_GAP  # as all of them say
                continue
            assert offset not in block.absences
            for source, boxes in BOXES.items():
                for box in boxes:
                    there = block.pixels[offset, :, *box.slices]
                    right = 65535 if source in missing else expected[offset, :, *box.slices]
                    assert (there == right).all()
    assert sum(block.count for block in made) == end


def test_what_is_late_is_not_waited_for_again_until_it_has_caught_up() -> None:
    joined = join(join_timeout=1e-6)
    made = list(joined.take(piece(1, 0, 4)))
    made += joined.take(piece(0, 0, 4))
    while not made:
        made += joined.ready()
    assert set(made[0].absences) == {0, 1, 2, 3}
    assert made[0].absences[0] == Absence(
        Fate.INCOMPLETE, "join", "m2: acquisition node acq2 gave nothing in 1e-06 s"
    )
    assert joined.late == 0
    assert not list(joined.take(piece(2, 0, 4)))
    assert joined.late == 1
    assert joined.incomplete == {"acq2": 4}


def test_without_a_time_out_a_frame_waits_for_its_modules_and_others_wait_behind_it() -> None:
    joined = join(join_timeout=3600)
    assert not list(joined.take(piece(0, 0, 2)))
    assert not list(joined.take(piece(0, 2, 2)))
    assert not list(joined.take(piece(1, 2, 2)))
    assert not list(joined.take(piece(2, 2, 2)))
    assert not list(joined.take(piece(2, 0, 2)))
    assert [block.index for block in joined.take(piece(1, 0, 2))] == [0, 2]


def test_a_lost_acquisition_node_is_not_waited_for() -> None:
    ends: dict[int, int] = {}
    joined = Join(SPEC, MOST, PIECES, 0, Policies(join_timeout=3600), ends)
    assert not list(joined.take(piece(0, 0, 2)))
    list(joined.take(piece(2, 0, 2)))
    ends[1] = 0
    (block,) = joined.ready()
    assert block.absences[1].detail == "m1: acquisition node acq1 is lost"
    assert block.data is None


def test_pieces_of_another_epoch_belong_to_another_unit() -> None:
    """A block that was given again comes with pieces that are given again."""
    joined = join(join_timeout=3600)
    list(joined.take(piece(0, 0, 2, epoch=2)))
    list(joined.take(piece(1, 0, 2, epoch=1)))
    list(joined.take(piece(2, 0, 2, epoch=1)))
    list(joined.take(piece(1, 0, 2, epoch=2)))
    (block,) = joined.take(piece(2, 0, 2, epoch=2))
    assert block.origin == (0, 2)
    whole(block)


def test_pixels_between_modules_have_the_value_of_gaps() -> None:
    spec = FrameSpec.dense(5, 4, np.float32)
    boxes = {0: (Roi(0, 0, 4, 2),), 1: (Roi(0, 3, 4, 2),)}
    pieces = {
        rank: Piece(f"acq{rank}", (f"m{rank}",), box, 1 << rank) for rank, box in boxes.items()
    }
    joined = Join(spec, 1, pieces, -1, Policies(missing_modules="keep"), {1: 0})
    part = spec_of_modules(spec, boxes[0])
    (block,) = joined.take(
        Block(part, 0, 1, np.ones((1, 1, 2, 4), np.float32), {}, {}, (0, 1), 0.0)
    )
    assert (block.pixels[0, 0, :2] == 1).all()
    assert (block.pixels[0, 0, 2] == -1).all()
    assert all(math.isnan(value) for value in block.pixels[0, 0, 3:].ravel())


def test_frames_are_refused_or_the_run_stopped_by_policy() -> None:
    reasons: list[str] = []
    policies = Policies(missing_modules="stop")
    joined = Join(SPEC, MOST, PIECES, 0, policies, {1: 0, 2: 0}, reasons.append)
    (block,) = joined.take(piece(0, 5, 1))
    assert block.absences[0].cause is Fate.INCOMPLETE
    assert reasons == [f"frame 5: {block.absences[0]}"]


@pytest.mark.parametrize("policy", ["mark", "keep", "stop"])
def test_frames_that_the_ledger_gives_up_are_no_frames_that_miss_modules(policy: str) -> None:
    asked: list[str] = []
    policies = Policies.load({"missing_modules": policy}, "policies")
    joined = Join(SPEC, MOST, PIECES, 0, policies, {}, asked.append)
    said = Absence(Fate.NODE_LOST, "ledger", "node proc1 was lost")
    made = list(joined.take(piece(0, 0, 2).refuse({0: said, 1: said})))
    for source in (1, 2):
        made += joined.take(piece(source, 0, 2))
    (block,) = made
    assert (block.absences, block.data) == ({0: said, 1: said}, None)
    assert (asked, joined.remarks) == ([], [])


@pytest.mark.parametrize("keep", [False, True])
def test_frames_that_had_no_room_in_the_lead_take_no_memory(keep: bool) -> None:
    joined = join(missing_modules="keep" if keep else "mark")
    absent = {n: Absence(Fate.OVERRUN, "ring") for n in range(200)}
    spec = spec_of_modules(SPEC, BOXES[0])
    list(joined.take(Block(spec, 0, 200, None, absent, {}, (0, 1), 0.0)))
    list(joined.take(piece(1, 0, 200)))
    (block,) = joined.take(piece(2, 0, 200))
    assert block.data is None
    assert len(block.absences) == 200
    assert block.absences[0].detail.startswith("m0: overrun")
