"""The report says in few words what became of every frame."""

from __future__ import annotations

from typing import Any

from lima2py.frame import Fate
from lima2py.session.report import Report


def told(**more: Any) -> dict[str, Any]:
    return {
        "run": "7f3a" * 8,
        "name": "scan42",
        "outcome": "completed",
        "asked": 1000,
        "counts": {"saved": 990, "rejected": 3, "detector_gap": 6, "corrupt": 1},
        "sinks": {"raw": {"saved": 993, "detector_gap": 6, "corrupt": 1}},
        "absences": [
            (3, 3, int(Fate.REJECTED), "veto", "dark"),
            (411, 2, int(Fate.DETECTOR_GAP), "detector", "a"),
            (413, 1, int(Fate.DETECTOR_GAP), "detector", "b"),
            (500, 3, int(Fate.DETECTOR_GAP), "detector", "a"),
            (900, 1, int(Fate.CORRUPT), "detector", "crc"),
        ],
        "masters": {"raw": "/data/scan42_raw_master.h5"},
        "errors": [],
        "remarks": [],
        "seconds": 1.04,
        "ring_bytes": 2**28,
        **more,
    }


def test_frames_add_up_and_ranges_that_touch_are_one() -> None:
    report = Report.make(told(), {"acq0": 1}, {}, {}, [])
    assert report.asked == report.saved + report.rejected + sum(report.absent.values())
    text = str(report)
    assert "scan42: completed in 1.04 s (7f3a7f3a)" in text
    assert "asked 1000: saved 990, rejected 3, absent 7" in text
    assert "detector_gap 6: 411-413, 500-502" in text
    assert "corrupt 1: 900" in text
    assert "raw: /data/scan42_raw_master.h5" in text


def test_an_error_is_told_once() -> None:
    report = Report.make(
        told(errors=["node proc1 was lost: killed"]), {}, {}, {}, ["killed", "other"]
    )
    assert report.errors == ["node proc1 was lost: killed", "other"]


def test_the_plain_report_begins_with_what_scripts_ask_for() -> None:
    plain = Report.make(told(), {}, {}, {}, []).plain()
    assert list(plain)[:8] == [
        "outcome", "asked", "saved", "rejected", "absent", "masters", "errors", "seconds",
    ]  # fmt: skip


def test_a_graph_without_a_sink_says_that_nothing_was_written() -> None:
    report = Report.make(told(sinks={}, masters={}), {}, {}, {}, [])
    assert "no sink: nothing was written" in str(report)
