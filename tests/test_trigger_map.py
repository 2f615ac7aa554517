"""Trigger maps say the same as plain counting, for any pattern and any range of events."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lima2py.frame import NO_FRAME, Absence, Block, Fate, FrameSpec
from lima2py.trigger_map import TriggerMap

SPEC = FrameSpec.dense(1, 2, "uint32")
LATE = Absence(Fate.INCOMPLETE, "basler", "gave nothing")
GAP = Absence(Fate.DETECTOR_GAP, "basler", "skipped")


@st.composite
def patterns(draw: st.DrawFn) -> list[int | None]:
    """Frames 0, 1, 2 ..., each for one to three events, and events without any between them."""
    found: list[int | None] = []
    for frame in range(draw(st.integers(1, 4))):
        found += [None] * draw(st.integers(0, 2)) + [frame] * draw(st.integers(1, 3))
    return found + [None] * draw(st.integers(0, 2))


def plain(pattern: Sequence[int | None], events: int) -> list[int | None]:
    """The frame of each of the first events, counted one by one."""
    frames = 1 + max(number for number in pattern if number is not None)
    cycles = (divmod(event, len(pattern)) for event in range(events))
    return [
        None if (number := pattern[left]) is None else cycle * frames + number
        for cycle, left in cycles
    ]


def pixels(first: int, end: int) -> Block:
    """Frames whose pixels are their number."""
    data = np.arange(first, end, dtype=np.uint32).repeat(2).reshape(-1, 1, 1, 2)
    return Block(SPEC, first, end - first, data, columns={"timestamp": data[:, 0, 0, 0] / 2})


@given(patterns(), st.integers(0, 40), st.integers(1, 40))
def test_the_frames_of_events_are_those_one_counts(
    pattern: list[int | None], first: int, count: int
) -> None:
    events = TriggerMap(pattern)
    counted = plain(pattern, first + count)
    wanted = counted[first:]
    assert [None if n < 0 else n for n in events.numbers(first, count).tolist()] == wanted
    needed = [number for number in wanted if number is not None]
    begin, end = events.frames(first, first + count)
    assert list(range(begin, end)) == sorted(set(needed))
    assert events.nb_frames(first + count) == len(set(counted) - {None})
    for frame in range(begin, end):
        assert plain(pattern, 200).index(frame) == events.event(frame)
    assert events.group == (len(pattern) if len(set(pattern)) - (None in pattern)
                            < len(pattern) - pattern.count(None) else 1)  # fmt: skip


@given(patterns(), st.integers(0, 20), st.integers(1, 30), st.data())
def test_frames_come_to_their_events_in_whatever_parts_they_came(
    pattern: list[int | None], index: int, count: int, data: st.DataObject
) -> None:
    events = TriggerMap(pattern)
    begin, end = events.frames(index, index + count)
    cuts = data.draw(st.lists(st.integers(begin, end), max_size=3).map(sorted))
    edges = [begin, *cuts, end]
    parts = [pixels(a, b) for a, b in pairwise(edges) if a < b]
    lost = set(data.draw(st.lists(st.sampled_from(range(len(parts))), max_size=1)) if parts else [])
    gap = data.draw(st.integers(begin, max(begin, end - 1)))
    parts = [
        part.refuse({gap - part.index: GAP} if part.index <= gap < part.end else {})
        for n, part in enumerate(parts)
        if n not in lost
    ]
    came = {frame for part in parts for frame in range(part.index, part.end)}
    made = events.by_event(SPEC, index, count, parts, LATE)
    assert (made.spec, made.index, made.count) == (SPEC, index, count)
    for frame, number in zip(made.frames(), plain(pattern, index + count)[index:], strict=True):
        if number is None:
            assert frame.absence == NO_FRAME
        elif number not in came:
            assert frame.absence == LATE
        elif number == gap:
            assert frame.absence == GAP
        else:
            assert frame.absence is None
            assert frame.data is not None
            assert frame.data.tolist() == [[number, number]]
            assert frame.timestamp == number / 2


def test_frames_that_lie_together_are_not_copied() -> None:
    part = pixels(4, 8)
    assert np.shares_memory(TriggerMap([0]).by_event(SPEC, 5, 2, [part], LATE).pixels, part.pixels)
    assert np.shares_memory(
        TriggerMap.every(4).by_event(SPEC, 20, 1, [part], LATE).pixels, part.pixels
    )


@pytest.mark.parametrize(
    "pattern", [[], [None], [1], [0, 2], [1, 0], [0, 1, 0], [-1], [0] * 200_000]
)
def test_what_is_no_map_is_refused(pattern: list[int | None]) -> None:
    with pytest.raises(ValueError, match="should"):
        TriggerMap(pattern)
