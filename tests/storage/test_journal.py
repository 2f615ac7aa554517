"""The journal tells what became of every block, whenever its writer is killed."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lima2py.detector import Share
from lima2py.errors import LimaError, StorageError
from lima2py.frame import Absence, Fate
from lima2py.storage.care import glance
from lima2py.storage.care.glance import Glance, Looker
from lima2py.storage.care.journal_content import JournalContent, read_journal, tracks_of
from lima2py.storage.care.recover import recover, recover_run
from lima2py.storage.care.verify import verify
from lima2py.storage.names import journal_path
from lima2py.storage.saving import journal as module
from lima2py.storage.saving.flat import SaveFlat
from lima2py.storage.saving.journal import Head, Journal, JournalLine, begin_journal
from lima2py.storage.saving.sinks import SaveDense
from tests.storage import plain
from tests.storage.left_behind import IMAGES, AtWork, at_work, block_of, due
from tests.storage.made_up import context_of, files_no_larger_than, reasons_of

RUN = "0123456789abcdef" * 2
"""Of all made-up runs."""
N = 24


def head(nb_frames: int = N, share: Share | None = None, **spans: int) -> Head:
    places = {"scan": "{file}_{rank}_{number}"}
    return Head(RUN, "scan 42", nb_frames, share or Share(), spans or {"raw": 1}, places)


@contextmanager
def kept(path: Path, about: Head, complaints: list[str] | None = None) -> Iterator[Journal]:
    """A journal that writes when the test says so."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "WRITE_EVERY", 1e6)
        told: list[str] = []
        complain = told.append if complaints is None else complaints.append
        journal = Journal(str(path), about, complain)
        try:
            yield journal
        finally:
            journal.close()
    assert told == []


@st.composite
def lines(draw: st.DrawFn) -> list[tuple[JournalLine, bool]]:
    """Blocks as they may be settled, in any order; and after which of them the disk is written."""
    found, at = [], 0
    while at < N:
        count = min(draw(st.integers(1, 5)), N - at)
        absences = []
        for track, room in ((0, count), (1, count), (2, (at + count) // 3 - at // 3)):
            if room and not draw(st.integers(0, 5)):
                cause = draw(st.sampled_from([Fate.REJECTED, Fate.POISON, Fate.NOT_SAVED]))
                absences.append((track, (room - 1, 1, int(cause), "who", "why é")))
        rows = [at, at // 3]
        if not draw(st.integers(0, 3)):
            rows = draw(st.lists(st.integers(-1, 9), min_size=2, max_size=2))
        node, attempts = draw(st.integers(-1, 1)), draw(st.integers(1, 2))
        if draw(st.integers(0, 6)):
            found.append(JournalLine(at, count, node, attempts, rows, absences))
        at += count
    if draw(st.booleans()):
        found = draw(st.permutations(found))
    return [(line, draw(st.booleans())) for line in found]


def by_frame(told: Sequence[JournalLine]) -> list[tuple[object, ...]]:
    """Lines as what they say of every frame on every track, in their order."""
    found: list[tuple[object, ...]] = []
    for line in told:
        for number, span in enumerate((1, 1, 3)):
            first, end = line.index // span, (line.index + line.count) // span
            why = {first + offset + n: (cause, who, detail)
                   for track, (offset, count, cause, who, detail) in line.absences
                   if track == number for n in range(count)}  # fmt: skip
            row = line.rows[number - 1] if number else -1
            found += [
                (number, at, line.node, line.attempts, row + at - first if row >= 0 else -1,
                 why.get(at))
                for at in range(first, end)
            ]  # fmt: skip
    return found


@given(lines(), st.one_of(st.none(), st.just(Absence(Fate.NOT_ACQUIRED, "run", "stopped"))))
@settings(max_examples=8)
def test_every_prefix_of_a_journal_tells_a_prefix_of_the_truth(
    blocks: list[tuple[JournalLine, bool]], rest: Absence | None
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "scan_journal_0.part")
        with kept(path, head(raw=1, sums=3)) as journal:
            for line, written in blocks:
                journal.note(line)
                if written:
                    journal._write()
            journal.close(rest, N)
        content = path.read_bytes()
        truth = sorted(by_frame([line for line, _ in blocks]), key=str)
        before: list[tuple[object, ...]] = []
        last: JournalContent | None = None
        for size in range(len(content) + 1):
            path.write_bytes(content[:size])
            told = read_journal(path)
            if told == last:
                continue
            assert told is not None
            now = by_frame(told.lines)
            assert now[: len(before)] == before
            assert (told.rest is None) == (size < len(content) or rest is None)
            before, last = now, told
        assert sorted(before, key=str) == truth


def test_frames_that_a_sink_has_not_are_not_told_as_rows(tmp_path: Path) -> None:
    """Though counted on from none, which is -1, the rows of the others would follow."""
    path = tmp_path / "scan_journal_0.part"
    said = [JournalLine(0, 4, 0, 1, [-1], []), JournalLine(4, 4, 0, 1, [3], [])]
    with kept(path, head(raw=1)) as journal:
        for line in said:
            journal.note(line)
        journal.close()
        told = read_journal(path)
    assert told is not None
    assert told.lines == said


@given(lines())
@settings(max_examples=25)
def test_the_tracks_of_a_journal_are_what_its_lines_say(
    blocks: list[tuple[JournalLine, bool]],
) -> None:
    said = [line for line, _ in blocks]
    tracks = tracks_of([JournalContent(head(raw=1, sums=3), said, None)])
    assert [len(track.fate) for track in tracks] == [N, N, N // 3]
    told = {(number, at): rest for number, at, *rest in by_frame(said)}
    for number, track in enumerate(tracks):
        reasons = reasons_of(track)
        for at, fate in enumerate(track.fate.tolist()):
            node, attempts, row, why = told.get((number, at), (-1, 0, -1, None))
            known = Fate.SAVED if (number, at) in told else Fate.NO_RECORD
            assert fate == (why[0] if why else known)  # type: ignore[index]
            assert (track.node[at], track.row[at]) == (node, row)
            assert track.attempts is not None
            assert track.attempts[at] == attempts
            if fate:
                assert reasons.get(at) == (Absence(*why) if why else None)  # type: ignore[misc]


def test_journals_of_several_nodes_make_one_and_close_their_own_shares() -> None:
    shares = [Share(rank, 2, 4) for rank in range(2)]
    told = [
        JournalContent(
            head(0, shares[0]),
            [JournalLine(0, 4, 0, 1, [0], [])],
            module.Rest(20, 40, "run", "stop"),
        ),
        JournalContent(head(0, shares[1]), [JournalLine(4, 4, 1, 1, [0], [])], None),
    ]
    _, raw = tracks_of(told)
    assert raw.fate.tolist() == [1] * 8 + [40] * 4 + [0] * 4 + [40] * 4
    assert {said for at, said in reasons_of(raw).items() if raw.fate[at]} == {
        Absence(Fate.NOT_ACQUIRED, "run", "stop")
    }


@pytest.mark.parametrize(
    "wrong",
    [
        JournalLine(-1, 2, 0, 1, [0], []), JournalLine(0, 0, 0, 1, [0], []),
        JournalLine(N - 1, 2, 0, 1, [0], []),
        JournalLine(0, 2, 0, 1, [], []), JournalLine(0, 2, 0, 1, [0], [(2, (0, 1, 2, "", ""))]),
        JournalLine(0, 2, 0, 1, [0], [(0, (1, 2, 2, "", ""))]),
        JournalLine(0, 2, 0, 1, [0], [(0, (0, 1, 99, "", ""))]),
    ],
)  # fmt: skip
def test_lines_that_cannot_be_end_what_a_journal_says(tmp_path: Path, wrong: JournalLine) -> None:
    with kept(tmp_path / "j", head()) as journal:
        for line in (JournalLine(0, 2, 0, 1, [0], []), wrong, JournalLine(2, 2, 0, 1, [2], [])):
            journal.note(line)
            journal._write()
    told = read_journal(tmp_path / "j")
    assert told is not None
    assert told.lines == [JournalLine(0, 2, 0, 1, [0], [])]


def test_a_changed_byte_ends_what_a_journal_says(tmp_path: Path) -> None:
    with kept(tmp_path / "j", head()) as journal:
        for index in range(0, 10, 2):
            journal.note(JournalLine(index, 2, index, 1, [0], []))
            journal._write()
    content = bytearray((tmp_path / "j").read_bytes())
    content[-3] ^= 1
    (tmp_path / "j").write_bytes(content)
    told = read_journal(tmp_path / "j")
    assert told is not None
    assert [line.index for line in told.lines] == [0, 2, 4, 6]
    for garbage in (b"", b"x" * 100, module.MAGIC + b"\xff" * 100, module.MAGIC[:5]):
        (tmp_path / "j").write_bytes(garbage)
        assert read_journal(tmp_path / "j") is None
    with pytest.raises(StorageError, match="cannot be read"):
        read_journal(tmp_path / "k")


def test_consecutive_blocks_of_one_node_are_one_line_and_a_million_frames_take_little(
    tmp_path: Path,
) -> None:
    with kept(tmp_path / "j", head(10**6)) as journal:
        for index in range(0, 10**6, 1000):
            journal.note(JournalLine(index, 1000, 0, 1, [index], []))
    assert (tmp_path / "j").stat().st_size < 200
    with kept(tmp_path / "k", head(10**6)) as journal:
        for index in range(0, 10**6, 25):
            journal.note(JournalLine(index, 25, index // 25 % 2, 1, [index // 2], []))
    assert (tmp_path / "k").stat().st_size < 10**6


def test_what_a_full_disk_did_not_take_is_written_when_there_is_room_and_said_once(
    tmp_path: Path,
) -> None:
    said: list[str] = []
    blocks = [JournalLine(index, 2, index % 3, 1, [index], []) for index in range(0, N, 2)]
    with kept(tmp_path / "j", head(), said) as journal:
        with files_no_larger_than((tmp_path / "j").stat().st_size + 20):
            for line in blocks[:8]:
                journal.note(line)
                journal._write()
        torn = read_journal(tmp_path / "j")
        for line in blocks[8:]:
            journal.note(line)
    assert len(said) == 1
    assert "cannot be written" in said[0]
    assert "the run goes on" in said[0]
    told = read_journal(tmp_path / "j")
    assert torn is not None
    assert told is not None
    assert torn.lines == blocks[: len(torn.lines)]
    assert told.lines == blocks


@pytest.mark.parametrize("limit", ["MOST_WAITING", "MOST_UNWRITTEN"])
def test_a_journal_with_a_gap_does_not_say_what_became_of_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr(module, limit, 3)
    said: list[str] = []
    with kept(tmp_path / "j", head(), said) as journal:
        with files_no_larger_than((tmp_path / "j").stat().st_size):
            for index in range(0, 12, 2):
                journal.note(JournalLine(index, 2, 0, 1, [index], [(0, (0, 1, 2, "", ""))]))
            journal._write()
        journal.close(Absence(Fate.NOT_ACQUIRED, "run"), N)
    told = read_journal(tmp_path / "j")
    assert told is not None
    assert told.rest is None
    assert len(told.lines) == (3 if limit == "MOST_WAITING" else 0)


def test_a_journal_that_cannot_be_made_is_complained_of_and_the_run_goes_on(
    tmp_path: Path,
) -> None:
    said: list[str] = []
    journal = Journal(str(tmp_path / "gone" / "j"), head(), said.append)
    journal.note(JournalLine(0, 2, 0, 1, [0], []))
    journal.close(Absence(Fate.NOT_ACQUIRED, "run"), N)
    assert len(said) == 1
    assert "gone/j cannot be made" in said[0]


def test_a_disk_that_hangs_keeps_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    go, hangs = threading.Event(), threading.Event()
    monkeypatch.setattr(module, "WRITE_EVERY", 0.001)
    monkeypatch.setattr(module, "PATIENCE", 0.05)
    journal = Journal(str(tmp_path / "j"), head(), said.append)
    real = os.pwrite

    def pwrite(*arguments: object) -> int:
        hangs.set()
        assert go.wait(20)
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "pwrite", pwrite)
    journal.note(JournalLine(0, 2, 0, 1, [0], []))
    assert hangs.wait(20)
    journal.close(Absence(Fate.NOT_ACQUIRED, "run"), N)
    assert len(said) == 1
    assert "it hangs for 0.05 s" in said[0]
    go.set()
    journal._thread.join(20)


def test_a_run_without_sinks_has_none(tmp_path: Path) -> None:
    assert begin_journal(RUN, "x", 1, Share(), {}, {}, {}, pytest.fail) is None
    assert list(tmp_path.iterdir()) == []


# With the files of nodes


@pytest.fixture
def looking_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at files in this process, which is quicker: none of them is torn."""
    monkeypatch.setattr(Looker, "look", _look)


def _look(self: Looker, path: Path, *, records: bool) -> Glance:
    return glance.glance(path, records=records)


def row_of(nodes: AtWork, rank: int, index: int, count: int) -> int:
    """A node writes frames, and flushes; the row of the first."""
    row = nodes.node(rank)["raw"].write(block_of(IMAGES, index, count))
    nodes.flush(rank)
    return row


def shown(folder: Path) -> tuple[list[int], plain.Plain]:
    """What the master of a folder tells, checked against the files and what was written."""
    master = folder / "scan_master.h5"
    assert verify(master, pixels=True).problems == []
    told = plain.read(master)
    fates = told.frames["fate"].tolist()
    for frame, fate in enumerate(fates):
        if fate == Fate.SAVED:
            assert np.array_equal(told.data["data"][frame], due(IMAGES, frame))
    return fates, told


@given(
    blocks=st.lists(
        st.tuples(
            st.integers(0, 2), st.integers(0, N - 1), st.integers(1, 5),
            st.sampled_from(["done", "not told", "given up", "rejected"]),
        ),
        min_size=1, max_size=12,
    ),
    killed=st.floats(0, 1),
)  # fmt: skip
@settings(max_examples=15)
def test_what_the_journal_says_counts_and_of_other_frames_what_the_files_say(
    blocks: list[tuple[int, int, int, str]], killed: float
) -> None:
    expected: dict[int, int] = {}
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(Looker, "look", _look)
        live = Path(name, "live")
        with at_work(live, nb_frames=N) as nodes, kept(live / "scan_journal_0.part", head()) as log:
            safe: set[int] = set()
            for rank, index, count, fate in blocks:
                count = min(count, N - index)
                frames = set(range(index, index + count))
                if frames & expected.keys():
                    continue
                if fate == "given up":
                    why = (0, count, int(Fate.POISON), "ledger", "it died twice")
                    row_of(nodes, rank, index, count)  # as a zombie does
                    log.note(JournalLine(index, count, -1, 2, [-1], [(0, why), (1, why)]))
                    expected.update(dict.fromkeys(frames, int(Fate.POISON)))
                elif fate == "rejected":
                    said = Absence(Fate.REJECTED, "veto", "dark")
                    row = nodes.node(rank)["raw"].write(
                        block_of(IMAGES, index, count, absences=dict.fromkeys(range(count), said))
                    )
                    nodes.flush(rank)
                    why = (0, count, int(said.cause), said.who, said.detail)
                    log.note(JournalLine(index, count, rank, 1, [row], [(0, why), (1, why)]))
                    expected.update(dict.fromkeys(frames, int(Fate.REJECTED)))
                else:
                    row_of(nodes, (rank + 1) % 3, index, count)  # a first try
                    row = row_of(nodes, rank, index, count)
                    if fate == "done":
                        log.note(JournalLine(index, count, rank, 2, [row], []))
                    expected.update(dict.fromkeys(frames, int(Fate.SAVED)))
                    safe |= frames
            log._write()
            left = nodes.killed(Path(name, "left"))
            path = left / "scan_journal_0.part"
            path.write_bytes(path.read_bytes()[: int(killed * path.stat().st_size) + 1])
            torn = read_journal(path)
        found, _ = recover(left, force=True)
        assert all(not one.problems and not one.refused for one in found)
        assert not path.exists()
        fates, told = shown(left)
        assert {frame for frame, fate in enumerate(fates) if fate == Fate.SAVED} >= safe
        journaled = {
            frame: line
            for line in (torn.lines if torn is not None else ())
            for frame in range(line.index, line.index + line.count)
        }
        for frame, line in journaled.items():
            assert fates[frame] == expected[frame]
            assert told.frames["attempts"][frame] == line.attempts
            if expected[frame] != Fate.POISON:
                assert told.frames["node"][frame] == line.node
                assert told.frames["row"][frame] == line.rows[0] + frame - line.index
        for frame in set(range(N)) - expected.keys():
            assert fates[frame] == Fate.NODE_LOST
        assert recover(left, force=True) == ([], 1)


def simple(folder: Path) -> Path:
    """What two killed nodes left, and the journal of a killed acquisition node."""
    gone = (0, 2, int(Fate.OVERRUN), "ring", "full")
    with at_work(folder / "live", nb_frames=N, frames_per_file=4) as nodes:
        with kept(folder / "live" / "scan_journal_0.part", head()) as journal:
            for index in range(0, 12, 4):
                journal.note(JournalLine(index, 4, 0, 1, [row_of(nodes, 0, index, 4)], []))
            journal.note(JournalLine(12, 2, -1, 0, [-1], [(0, gone), (1, gone)]))
            row_of(nodes, 1, 14, 2)  # reported done to nobody
            journal.close(Absence(Fate.NOT_ACQUIRED, "run", "stopped"), N)
        return nodes.killed(folder / "left")


@pytest.mark.usefixtures("looking_here")
def test_fates_that_no_file_knows_come_from_the_journal(tmp_path: Path) -> None:
    left = simple(tmp_path)
    (found,), _ = recover(left, force=True)
    assert found.problems == ()
    assert found.done[-2:] == (
        "raw: 12 saved, 2 overrun, 10 not_acquired",
        "removed scan_journal_0.part, which was needed no more",
    )
    _, told = shown(left)
    assert told.absences[12] == Absence(Fate.OVERRUN, "ring", "full")
    assert told.absences[20] == Absence(Fate.NOT_ACQUIRED, "run", "stopped")


@pytest.mark.usefixtures("looking_here")
def test_killed_at_any_point_and_given_again_recovering_with_a_journal_does_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = simple(tmp_path)
    shutil.copytree(left, tmp_path / "once")
    recover(tmp_path / "once", force=True)
    due_then = {path.name: path.read_bytes() for path in (tmp_path / "once").iterdir()}
    for points in range(20):
        folder = tmp_path / f"stopped_{points}"
        shutil.copytree(left, folder)
        with monkeypatch.context() as patch:
            room = [points]

            def stopping(real: object, room: list[int] = room) -> object:
                def act(*arguments: object, **more: object) -> object:
                    if not room[0]:
                        raise KeyboardInterrupt
                    room[0] -= 1
                    return real(*arguments, **more)  # type: ignore[operator]

                return act

            for name in ("rename", "unlink", "replace"):
                patch.setattr(Path, name, stopping(getattr(Path, name)))
            try:
                recover(folder, force=True)
                break
            except KeyboardInterrupt:
                pass
        recover(folder, force=True)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == due_then
    assert points >= 4


@pytest.mark.usefixtures("looking_here")
def test_a_row_that_is_not_there_is_never_shown_and_the_journal_waits_for_its_file(
    tmp_path: Path,
) -> None:
    left = simple(tmp_path)
    away = tmp_path / "away.h5"
    (left / "scan_0_00001.h5").rename(away)
    for _ in range(2):
        (found,), _ = recover(left, force=True)
        assert "raw: 4 frames were saved in files that are not there; put these back" in (
            found.problems
        )
        fates, told = shown(left)
        assert fates[:12] == [1] * 4 + [Fate.NODE_LOST] * 4 + [1] * 4
        assert "the file that had it is not there" in told.absences[5].detail
        assert (left / "scan_journal_0.part").exists()
    away.rename(left / "scan_0_00001.h5")
    (found,), _ = recover(left, force=True)
    assert found.problems == ()
    assert shown(left)[0][:12] == [1] * 12
    assert recover(left, force=True) == ([], 1)
    assert not (left / "scan_journal_0.part").exists()


@pytest.mark.usefixtures("looking_here")
def test_the_journal_of_a_living_node_is_left_alone(tmp_path: Path) -> None:
    left = simple(tmp_path)
    recover(left, force=True)
    with kept(left / "scan_journal_1.part", head()) as journal:
        (found,), _ = recover(left, force=True)
        assert found.refused.startswith("scan_journal_1.part is still being written")
        assert (left / "scan_journal_1.part").exists()
        journal.close()
    (found,), _ = recover(left, force=True)
    assert found.done[-1] == "removed scan_journal_1.part, which was needed no more"
    assert recover(left, force=True) == ([], 1)


@pytest.mark.usefixtures("looking_here")
def test_a_journal_is_kept_until_all_masters_of_its_run_are_there(tmp_path: Path) -> None:
    """The files of the second sink, which are flat, lie in another folder."""
    left = simple(tmp_path)
    places = dict.fromkeys(["scan", "flat/f"], "{file}_{rank}_{number}")
    about = Head(RUN, "scan 42", N, Share(), {"raw": 1, "flat": 1}, places)
    (left / "scan_journal_0.part").unlink()
    (left / "flat").mkdir()
    sink = SaveFlat()
    sink.prepare(IMAGES)
    paths = {"raw": str(left / "scan"), "flat": str(left / "flat" / "f")}
    sink.start(context_of(left / "scan", IMAGES, nb_frames=N, task="flat", paths=paths))
    sink.write(block_of(IMAGES, 0, 4))
    sink.flush()
    poison = (0, 4, int(Fate.POISON), "ledger", "twice")
    with kept(left / "scan_journal_0.part", about) as journal:
        journal.note(JournalLine(0, 4, 0, 1, [0, 0], []))
        journal.note(JournalLine(4, 4, -1, 2, [-1, -1], [(0, poison), (1, poison), (2, poison)]))
    shutil.copytree(left, tmp_path / "copy")
    sink.finish()
    copy = tmp_path / "copy"
    (found,), _ = recover(copy / "scan", force=True)
    assert found.problems == ()
    assert (copy / "scan_journal_0.part").exists()
    (found,), _ = recover(copy / "flat" / "f", force=True)
    assert found.done[-2:] == (
        "flat: 4 saved, 16 node_lost, 4 poison",
        "removed scan_journal_0.part, which was needed no more",
    )
    assert recover(copy, force=True) == ([], 2)


@pytest.mark.usefixtures("looking_here")
def test_a_run_is_recovered_alone_and_what_stands_there_already_is_told(tmp_path: Path) -> None:
    left = simple(tmp_path)
    assert recover_run([left / "scan"], "f" * 32) == []
    (found,) = recover_run([left / "scan"], RUN)
    assert [product.run.task for product in found.saved] == ["raw"]
    (again,) = recover_run([left / "scan"], RUN)
    assert again.done == ()
    assert np.array_equal(again.saved[0].table.fate, found.saved[0].table.fate)
    assert recover_run([tmp_path / "gone" / "scan"], RUN) == []


@pytest.mark.usefixtures("looking_here")
def test_a_journal_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    left = simple(tmp_path)
    (left / "scan_journal_0.part").unlink()
    (left / "scan_journal_0.part").mkdir()
    found, _ = recover(left, force=True)
    assert "scan_journal_0.part cannot be read" in found[-1].problems[0]
    assert shown(left)[0].count(Fate.SAVED) == 14


def test_a_journal_of_more_frames_than_memory_holds_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LimaError, match="a journal tells of 1000000000000 frames"):
        tracks_of([JournalContent(head(10**12), [], None)])


def test_the_name_of_a_journal_is_that_of_its_prefix(tmp_path: Path) -> None:
    path = Path(journal_path(tmp_path / "scan", 3))
    journal = begin_journal(
        RUN, "x", 1, Share(3, 4, 1), {"raw": SaveDense()}, {"raw": str(tmp_path / "scan")},
        {"raw": 1}, pytest.fail,
    )  # fmt: skip
    assert journal is not None
    journal.close()
    told = read_journal(path)
    assert told is not None
    assert told.head.prefixes == {"scan": "{file}_{rank}_{number}"}
