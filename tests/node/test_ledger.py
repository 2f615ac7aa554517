"""The ledger gives every frame exactly one fate, whatever order the answers come in."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lima2py.detector import Share
from lima2py.errors import LimaError
from lima2py.frame import Absence, Fate
from lima2py.node.ledger import Ledger
from lima2py.storage.care.journal_content import JournalContent, tracks_of
from lima2py.storage.masters.master import FrameTable
from lima2py.storage.reasons import Reasons
from lima2py.storage.saving.journal import Head, JournalLine, Rest
from lima2py.transport.wire import AbsentRange, DoneBlock
from tests.storage.made_up import reasons_of

REST = Absence(Fate.NOT_ACQUIRED, "run", "stopped")


@st.composite
def answers(draw: st.DrawFn) -> tuple[int, list[tuple[int, DoneBlock]]]:
    """A number of frames, and answers to some blocks of them, in any order."""
    nb_frames = draw(st.integers(1, 60))
    cuts = sorted(draw(st.sets(st.integers(1, nb_frames), max_size=8)) | {0, nb_frames})
    blocks = []
    for first, end in pairwise(cuts):
        if not draw(st.booleans()):
            continue
        count = end - first
        absences: list[tuple[int, AbsentRange]] = []
        for track in range(2):
            for offset in draw(st.sets(st.integers(0, count - 1), max_size=3)):
                cause = draw(st.sampled_from([Fate.REJECTED, Fate.CORRUPT, Fate.TASK_FAILED]))
                absences.append((track, (offset, 1, int(cause), "who", "why")))
        row = draw(st.integers(0, 1000))
        blocks.append((draw(st.integers(0, 3)), DoneBlock(first, count, 0, 0, [row], absences)))
    return nb_frames, draw(st.permutations(blocks))


@given(answers())
def test_every_frame_has_one_fate_and_the_counts_add_up(
    given_: tuple[int, list[tuple[int, DoneBlock]]],
) -> None:
    nb_frames, blocks = given_
    ledger = Ledger({"raw": 1}, nb_frames)
    expected = np.full((2, nb_frames), Fate.NOT_ACQUIRED, np.uint8)
    rows = np.full(nb_frames, -1)
    for node, done in blocks:
        ledger.settle(done, node)
        part = slice(done.index, done.index + done.count)
        expected[:, part] = Fate.SAVED
        rows[part] = np.arange(done.rows[0], done.rows[0] + done.count)
        for track, (offset, _, cause, _, _) in done.absences:
            expected[track, done.index + offset] = cause
    assert ledger.settled == sum(done.count for _, done in blocks)
    ledger.close(REST)
    table = ledger.table("raw")
    np.testing.assert_array_equal(table.fate, expected[1])
    np.testing.assert_array_equal(table.row, rows)
    counts = ledger.counts()
    assert sum(counts.values()) == nb_frames
    assert counts == {
        Fate(fate).word: int(number)
        for fate, number in zip(*np.unique(expected[0], return_counts=True), strict=True)
    }
    assert sum(ledger.sink_counts()["raw"].values()) == nb_frames
    told = reasons_of(table)
    assert {index for index, fate in enumerate(table.fate) if fate != 1} == set(told)
    assert all(said.who for said in told.values())


@given(st.integers(1, 200), st.integers(2, 4), st.integers(1, 9))
def test_the_accounts_of_several_nodes_make_one(nb_frames: int, size: int, group: int) -> None:
    ledgers = [Ledger({"raw": 1}, nb_frames) for _ in range(size)]
    for index in range(nb_frames):
        owner = index // group % size
        absent: list[tuple[int, AbsentRange]] = [(1, (0, 1, int(Fate.NOT_SAVED), "raw", "full"))]
        ledgers[owner].settle(
            DoneBlock(index, 1, owner, 0, [index], absent if index % 5 == 0 else []), owner
        )
        ledgers[owner].acquired(index + 1)
    lead, *others = ledgers
    lead.close(REST, Share(0, size, group))
    for other in others:
        lead.merge(other.pack())
    lead.close(Absence(Fate.NODE_LOST, "ledger"))
    table = lead.table("raw")
    np.testing.assert_array_equal(table.row, np.arange(nb_frames))
    np.testing.assert_array_equal(table.node, np.arange(nb_frames) // group % size)
    assert lead.counts() == {"saved": nb_frames}
    lost = len(range(0, nb_frames, 5))
    assert lead.sink_counts()["raw"].get("not_saved", 0) == lost
    assert set(reasons_of(table).values()) == {Absence(Fate.NOT_SAVED, "raw", "full")}
    assert reasons_of(table).keys() == set(range(0, nb_frames, 5))


@given(answers())
def test_what_a_journal_noted_is_what_the_ledger_knew(
    given_: tuple[int, list[tuple[int, DoneBlock]]],
) -> None:
    nb_frames, blocks = given_
    knew, read = Ledger({"raw": 1}, nb_frames), Ledger({"raw": 1}, nb_frames)
    lines = []
    for node, done in blocks:
        knew.settle(done, node, 2)
        lines.append(JournalLine(done.index, done.count, node, 2, done.rows, done.absences))
    knew.close(REST)
    head = Head("run", "name", nb_frames, Share(), {"raw": 1}, {})
    read.take(tracks_of([JournalContent(head, lines, Rest(0, *REST))]))
    assert read.counts() == knew.counts()
    assert read.sink_counts() == knew.sink_counts()
    assert list(read.ranges()) == list(knew.ranges())
    ours, theirs = read.table("raw"), knew.table("raw")
    for name in ("fate", "row", "attempts"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    assert reasons_of(ours) == reasons_of(theirs)


def test_frames_lost_with_a_node_are_what_the_masters_show() -> None:
    """Of a frame as a whole the worst that its sinks say: absent beats rejected."""
    lost, veto = Absence(Fate.NODE_LOST, "ledger", "gone"), Absence(Fate.REJECTED, "veto", "dark")
    disk = Absence(Fate.NOT_SAVED, "raw", "full")
    ledger = Ledger({"raw": 1, "sums": 3}, 8)
    ledger.settle(DoneBlock(0, 2, 0, 0, [0, -1], []), 0)
    ledger.close(lost)
    node, row = np.zeros(8, np.int16), np.zeros(8, np.int64)
    raw = np.array([1, 1, 2, 31, 1, 1, 1, 21], np.uint8)
    sums = np.array([1, 2], np.uint8)
    ledger.show(
        {
            "raw": FrameTable(
                raw, node, row, Reasons.of_ranges(8, [(2, 2, veto), (3, 3, disk), (7, 7, lost)])
            ),
            "sums": FrameTable(sums, node, row, Reasons.of_ranges(2, [(1, 1, veto)])),
        }
    )
    assert ledger.counts() == {"saved": 3, "rejected": 3, "node_lost": 1, "not_saved": 1}
    assert list(ledger.ranges()) == [
        (2, 1, *veto), (3, 1, *disk), (4, 2, *veto), (7, 1, *lost),
    ]  # fmt: skip
    assert ledger.sink_counts()["sums"] == {"saved": 1, "rejected": 1}


def test_an_endless_run_asks_for_what_was_acquired() -> None:
    ledger = Ledger({"raw": 1}, 0)
    for index in range(0, 20_000, 100):
        ledger.acquired(index + 100)
        ledger.settle(DoneBlock(index, 100, 0, 0, [index], []), 0)
    ledger.close(REST)
    assert ledger.asked == 20_000
    assert ledger.counts() == {"saved": 20_000}
    assert len(ledger.table("raw").fate) == 20_000


def test_neighbours_with_one_reason_are_told_as_one_range() -> None:
    ledger = Ledger({}, 100)
    ledger.settle(DoneBlock(0, 40, 0, 0, [], []), 0)
    ledger.close(REST)
    assert list(ledger.ranges()) == [(40, 60, int(Fate.NOT_ACQUIRED), "run", "stopped")]


def test_a_ledger_that_cannot_fit_is_refused_with_a_way_out() -> None:
    with pytest.raises(LimaError, match=r"for each of 1000000000000 frames: ask for fewer"):
        Ledger({"raw": 1}, 10**12)
