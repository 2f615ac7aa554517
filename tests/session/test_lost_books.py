"""When the node that keeps the books is gone the report says what journals and files say."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lima2py.detector import Share
from lima2py.errors import StorageError
from lima2py.frame import Absence, Fate
from lima2py.session import lost_books
from lima2py.session.lost_books import report_of
from lima2py.session.report import Report
from lima2py.storage.saving.journal import Head, Journal, JournalLine
from tests.storage import plain
from tests.storage.left_behind import IMAGES, TABLE, at_work, block_of

RUN = "0123456789abcdef" * 2
"""Of all made-up runs."""
SPECS = {"raw": IMAGES, "sums": TABLE}
OVERRUN = (0, 2, int(Fate.OVERRUN), "ring", "full")


def left(folder: Path, nb_frames: int = 20, journal: bool = True) -> dict[str, str]:
    """What two nodes left, which have closed their files, and a killed acquisition node."""
    prefix = folder / "scan"
    with at_work(folder, SPECS, nb_frames=nb_frames) as nodes:
        log = Journal(
            f"{prefix}_journal_0.part",
            Head(RUN, "scan 42", nb_frames, Share(), dict.fromkeys(SPECS, 1), {"scan": ""}),
            pytest.fail,
        )
        for index in (0, 4):
            rows = [sink.write(block_of(SPECS[name], index, 4))
                    for name, sink in nodes.node(0).items()]  # fmt: skip
            log.note(JournalLine(index, 4, 0, 1, rows, []))
        log.note(JournalLine(8, 2, -1, 0, [-1, -1], [(track, OVERRUN) for track in range(3)]))
        nodes.write(1, 10, 3)  # it told nobody
        log.close()
    if not journal:
        os.unlink(f"{prefix}_journal_0.part")
    return dict.fromkeys(SPECS, str(prefix))


def report(
    paths: dict[str, str], asked: int = 20, acquired: int = 15, may_write: bool = True
) -> Report:
    return Report.make(report_of(RUN, "scan", paths, asked, acquired, may_write), {}, {}, {}, [])


def test_who_does_not_command_the_nodes_says_what_the_journal_says_and_writes_nothing(
    tmp_path: Path,
) -> None:
    paths = left(tmp_path)
    before = {path.name for path in tmp_path.iterdir()}
    found = report(paths, may_write=False)
    assert (found.saved, found.absent["overrun"], found.masters) == (8, 2, {})
    assert f"if there is none: lima2py recover {tmp_path}" in found.errors[0]
    assert {path.name for path in tmp_path.iterdir()} == before


def test_it_says_what_the_journal_and_the_files_say_and_so_do_the_masters(tmp_path: Path) -> None:
    paths = left(tmp_path / "out")
    found = report(paths)
    assert (found.outcome, found.asked, found.saved) == ("failed", 20, 11)
    assert found.absent == {"overrun": 2, "node_lost": 7}
    assert found.absences[0] == (8, 2, "overrun", "ring", "full")
    assert found.errors == []
    assert dict.fromkeys(SPECS, f"{paths['raw']}_master.h5") == found.masters
    for number, name in enumerate(SPECS):
        told = plain.read(found.masters[name], f"entry_000{number}")
        assert told.frames["fate"].tolist() == [1] * 8 + [20] * 2 + [1] * 3 + [21] * 7
        assert told.absences[8] == Absence(Fate.OVERRUN, "ring", "full")
        assert found.sinks[name] == {"saved": 11, "overrun": 2, "node_lost": 7}
    assert not list((tmp_path / "out").glob("*.part"))
    again = report(paths)  # all that is left to do is to read the masters
    assert (again.saved, again.sinks, again.masters) == (11, found.sinks, found.masters)


@pytest.mark.parametrize("nb_frames", [20, 0])
def test_without_a_journal_it_says_what_the_files_say(tmp_path: Path, nb_frames: int) -> None:
    found = report(left(tmp_path / "out", nb_frames, journal=False), nb_frames)
    assert found.asked == (nb_frames or 15)
    assert found.saved == 11
    assert found.absent == {"node_lost": found.asked - 11}


def test_an_endless_run_is_about_the_frames_that_are_known(tmp_path: Path) -> None:
    found = report(left(tmp_path / "out", 0), 0)
    assert (found.asked, found.saved) == (15, 11)
    assert found.absent == {"overrun": 2, "node_lost": 2}


def test_files_that_cannot_be_seen_from_here_are_said_to_be(tmp_path: Path) -> None:
    paths = {"raw": str(tmp_path / "gone" / "scan")}
    found = report(paths)
    assert found.absent == {"node_lost": 20}
    assert found.masters == {}
    assert found.errors == [
        "no file of the run can be seen from here; where they can:"
        f" lima2py recover {tmp_path / 'gone'}"
    ]


def test_a_run_without_sinks_has_no_books_to_find() -> None:
    found = report({})
    assert (found.asked, found.absent, found.errors) == (20, {"node_lost": 20}, [])


def test_whatever_goes_wrong_the_journal_still_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise StorageError("no room")

    paths = left(tmp_path / "out")
    monkeypatch.setattr(lost_books, "recover_run", fails)
    found = report(paths)
    assert (found.saved, found.masters) == (8, {})
    assert found.absent == {"overrun": 2, "node_lost": 10}
    assert found.errors == [
        f"no room; when that is mended, give: lima2py recover {tmp_path / 'out'}"
    ]
