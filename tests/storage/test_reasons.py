"""Why lines are absent is told as ranges, whatever the pattern, and takes two bytes a line."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lima2py.frame import Absence, Fate
from lima2py.storage import reasons as module
from lima2py.storage.reasons import Reasons

SAID = [
    Absence(Fate.REJECTED, "veto", "dark"),
    Absence(Fate.REJECTED, "veto", "bright"),
    Absence(Fate.NODE_LOST, "ledger"),
]


def by_line(reasons: Reasons, fates: np.ndarray) -> dict[int, Absence]:
    """Line by line; fails unless the ranges are in order, and as few as can be."""
    found: dict[int, Absence] = {}
    before: tuple[int, Absence] | None = None
    for first, last, said in reasons.ranges(fates):
        assert before is None or first > before[0]
        assert before != (first - 1, said)
        before = last, said
        found.update(dict.fromkeys(range(first, last + 1), said))
    return found


@given(
    st.lists(st.tuples(st.integers(0, 29), st.integers(1, 9), st.sampled_from(SAID)), max_size=9),
    st.lists(st.sampled_from([1, 2, 21, 40]), min_size=30, max_size=30),
    st.booleans(),
)
def test_a_line_has_the_reason_that_was_said_if_its_fate_agrees(
    notes: list[tuple[int, int, Absence]], fates: list[int], first_counts: bool
) -> None:
    lines: dict[int, Absence] = {}
    for first, count, said in reversed(notes) if first_counts else notes:
        lines.update(dict.fromkeys(range(first, min(first + count, 30)), said))
    ranges = [(first, first + count - 1, said) for first, count, said in notes]
    reasons = Reasons(30)
    if first_counts:
        reasons.add(ranges)
    else:
        reasons = Reasons.of_ranges(30, ranges)
    copy = Reasons(3)
    copy.grow(30)
    copy.take(slice(30), reasons)
    for one in (reasons, reasons.copy(), copy):
        assert by_line(one, np.array(fates, np.uint8)) == {
            line: lines[line]
            if line in lines and lines[line].cause == fate
            else Absence(Fate(fate), "")
            for line, fate in enumerate(fates)
            if fate != Fate.SAVED
        }


def test_more_reasons_than_can_be_told_apart_leave_the_fates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MOST_WORDS", 2)
    reasons = Reasons(4)
    for line in range(4):
        reasons.note(slice(line, line + 1), Absence(Fate.TASK_FAILED, "fit", f"{line}"))
    fates = np.full(4, Fate.TASK_FAILED, np.uint8)
    assert [said.detail for _, _, said in reasons.ranges(fates)] == ["0", "1", ""]
    assert list(reasons.ranges(fates))[-1][:2] == (2, 3)
