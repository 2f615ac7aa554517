"""Blocks leave with the frames of other detectors that belong to them, in whatever order."""

from __future__ import annotations

import time
from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lima2py.frame import Block, Fate, FrameSpec
from lima2py.policies import Policies
from lima2py.transport.gather import Gather, Giver
from lima2py.trigger_map import Companion, TriggerMap

SPEC = FrameSpec.dense(1, 1, "uint16")
PATTERNS: list[list[int | None]] = [[0], [0, None, None], [0, 0, 0, 0], [None, 0, 1, 1]]


def block(source: int, first: int, end: int, epoch: int = 1) -> Block:
    data = np.arange(first, end, dtype=np.uint16).reshape(-1, 1, 1, 1)
    return Block(SPEC, first, end - first, data, origin=(source, epoch))


def make(
    *patterns: list[int | None], **policies: object
) -> tuple[Gather, dict[int, int], list[str]]:
    ends: dict[int, int] = {}
    stops: list[str] = []
    givers = {
        rank: Giver(f"acq{rank}", f"other{rank}", Companion(SPEC, TriggerMap(pattern)))
        for rank, pattern in enumerate(patterns, 1)
    }
    return Gather(givers, ends, Policies.load(policies, "policies"), stops.append), ends, stops


def values(found: Mapping[str, Block], name: str) -> list[int | None]:
    """The pixel of each event, None where there is no frame."""
    return [None if f.data is None else int(f.data[0, 0]) for f in found[name].frames()]


@given(
    st.lists(st.sampled_from(PATTERNS), min_size=1, max_size=3),
    st.lists(st.integers(1, 6), min_size=1, max_size=5),
    st.randoms(use_true_random=False),
)
def test_every_frame_comes_to_its_event_in_whatever_order_nodes_are_heard(
    patterns: list[list[int | None]], sizes: list[int], random: object
) -> None:
    edges = np.cumsum([0, *sizes]).tolist()
    maps = [TriggerMap(pattern) for pattern in patterns]
    lines: list[list[Block]] = [[block(0, a, b) for a, b in pairwise(edges)]]
    for source, events in enumerate(maps, 1):  # what each node sends, in its order
        parts = [events.frames(a, b) for a, b in pairwise(edges)]
        lines.append([block(source, n, n + 1) for a, b in parts for n in range(a, b)])
    gathered, _, _ = make(*patterns)
    left: list[Block] = []
    while any(lines):
        line = random.choice([line for line in lines if line])  # type: ignore[attr-defined]
        gathered.take(line.pop(0))
        left += gathered.ready()
    assert [(one.index, one.end) for one in left] == [*pairwise(edges)]
    for one in left:
        for source, events in enumerate(maps, 1):
            numbers = events.numbers(one.index, one.count).tolist()
            wanted = [None if number < 0 else number for number in numbers]
            assert values(one.companions, f"other{source}") == wanted
    assert not gathered.remarks


def test_what_does_not_come_in_time_is_incomplete_and_nobody_waits_again_until_it_has_caught_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    gathered, _, _ = make([0, None], join_timeout=1.0)
    gathered.take(block(0, 0, 2))
    assert not list(gathered.ready())
    now = 1.5
    (late,) = gathered.ready()
    said = late.companions["other1"].absences
    assert said[0].cause is Fate.INCOMPLETE
    assert "acq1 gave nothing in 1 s" in said[0].detail
    assert said[1].cause is Fate.NOT_TRIGGERED
    gathered.take(block(0, 2, 4))
    assert len(list(gathered.ready())) == 1, "it is behind: nobody waits for it"
    for frame in (0, 1):  # too late, and dropped
        gathered.take(block(1, frame, frame + 1))
        assert not list(gathered.ready())
    gathered.take(block(0, 4, 6))
    assert not list(gathered.ready()), "it has caught up, and is waited for again"
    gathered.take(block(1, 2, 3))
    (last,) = gathered.ready()
    assert values(last.companions, "other1") == [2, None]
    assert gathered.remarks == ["2 frames of detector other1 did not come in time, or not at all"]


def test_a_lost_node_is_not_waited_for() -> None:
    gathered, ends, stops = make([0], [0, 0], missing_modules="stop")
    ends[1] = 0
    gathered.take(block(0, 0, 2))
    gathered.take(block(2, 0, 1))
    (left,) = gathered.ready()
    assert {said.detail for said in left.companions["other1"].absences.values()} == {
        "acquisition node acq1 is lost"
    }
    assert values(left.companions, "other2") == [0, 0]
    assert stops == ["frames 0 to 1 of detector other1: acquisition node acq1 is lost"]


def test_frames_of_an_earlier_giving_do_not_count() -> None:
    gathered, _, _ = make([0])
    gathered.take(block(1, 0, 1, epoch=1))
    gathered.take(block(0, 0, 1, epoch=2))
    assert not list(gathered.ready())
    gathered.take(block(1, 0, 1, epoch=2))
    assert len(list(gathered.ready())) == 1
