"""The account of a run: every frame asked for has one fate, in the report and in every master.

`Ended` looks at every run that ends under a session of this process, whether or not the test that
made it asks for the report; `problems` looks at any report, that of a command too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import h5py
import hdf5plugin  # noqa: F401 - registers the filters
import numpy as np
import pytest

from lima2py.frame import Fate
from lima2py.node.ledger import KEPT_RANGES
from lima2py.session.report import Report
from lima2py.session.watch import Watch

WORDS = {fate.word for fate in Fate} - {Fate.NO_RECORD.word}


def problems(report: Mapping[str, Any]) -> list[str]:
    """What does not add up in a report, given as `Report.plain` does, and in its HDF5 masters."""
    found = [*_of_counts(report), *_of_absences(report)]
    seen: set[str] = set()
    masters = {sink: path for sink, path in report["masters"].items() if path.endswith(".h5")}
    for path in sorted(set(masters.values())):
        try:
            with h5py.File(path, "r", locking=False) as file:
                for entry in (file[name] for name in file if name.startswith("entry_")):
                    sink = str(entry["lima2py/sink"].asstr()[()])
                    seen.add(sink)
                    found += [f"{sink} in {path}: {text}" for text in _of_entry(entry, report)]
        except (OSError, KeyError, RuntimeError) as error:
            found.append(f"{path}: {error!r}")
    if missing := set(masters) - seen:
        found.append(f"no master shows {sorted(missing)}")
    return found


def _of_counts(report: Mapping[str, Any]) -> Iterator[str]:
    asked, absent = report["asked"], report["absent"]
    told = report["saved"] + report["rejected"] + sum(absent.values())
    if asked != told:
        yield (
            f"asked {asked}, but saved {report['saved']}, rejected {report['rejected']},"
            f" absent {absent}"
        )
    if strange := set(absent) - WORDS:
        yield f"absent by {sorted(strange)}"
    for sink, counts in report["sinks"].items():
        if strange := set(counts) - WORDS:
            yield f"{sink} has frames that are {sorted(strange)}"
        rows = sum(counts.values())
        if rows > asked:
            yield f"{sink} has {rows} rows of {asked} frames"
        passed = sum(counts.get(word, 0) for word in ("saved", "rejected", "not_triggered"))
        if rows == asked and passed < report["saved"]:
            yield f"{report['saved']} frames are saved, but {sink} says {counts}"


def _of_absences(report: Mapping[str, Any]) -> Iterator[str]:
    """Of the ranges; unless there are too many to be told, or nobody kept the books."""
    by_cause: Counter[str] = Counter()
    end = 0
    for first, count, cause, who, _ in report["absences"]:
        if first < end:
            yield f"frame {first} is absent twice"
        if not who:
            yield f"frames from {first} are {cause}, and nobody says so"
        by_cause[cause] += count
        end = first + count
    if end > report["asked"]:
        yield f"frame {end - 1} is absent, of {report['asked']}"
    wanted = {**report["absent"], "rejected": report["rejected"]}
    wanted = {cause: number for cause, number in wanted.items() if number}
    many = len(report["absences"]) >= KEPT_RANGES
    if by_cause != wanted and not many and report["sinks"]:
        yield f"the absences are {dict(by_cause)}, the counts {wanted}"


def _of_entry(entry: h5py.Group, report: Mapping[str, Any]) -> Iterator[str]:
    sink = str(entry["lima2py/sink"].asstr()[()])
    steps = str(entry.attrs["default"]).split("/")
    group = entry["/".join(steps[:-1])]
    fates, data = group["frames/fate"][()], group["data"]
    words, numbers = np.unique(fates, return_counts=True)
    counts = {Fate(word).word: number for word, number in zip(words, numbers.tolist(), strict=True)}
    if counts != report["sinks"].get(sink):
        yield f"the master has {counts}, the report {report['sinks'].get(sink)}"
    saved = np.flatnonzero(fates == Fate.SAVED)
    ragged = isinstance(data, h5py.Group)
    length = len(data["nnz"] if ragged else data)
    if length != len(fates):
        yield f"{length} rows of data and {len(fates)} fates"
    if ragged and int(data["nnz"][()][saved].sum()) != int(data["frame_ptr"][-1]):
        yield "the rows of its saved frames are not all the rows there are"
    if not ragged:
        for row in saved[[0, -1]] if len(saved) else ():  # can they be read?
            data[int(row)]


class Ended:
    """Looks at every run that ends in this process."""

    def __init__(self) -> None:
        self._going: list[Watch] = []
        self.runs = 0
        self._problems: list[str] = []

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Do so as long as this lasts."""
        start, report = Watch.start, Watch.report

        def starts(watch: Watch) -> None:
            self._going.append(watch)
            start(watch)

        def reports(watch: Watch) -> Report:
            told = report(watch)
            if watch in self._going and watch.over.is_set():
                self._going.remove(watch)
                self.runs += 1
                self._problems += [f"run {told.run[:8]}: {text}" for text in problems(told.plain())]
            return told

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Watch, "start", starts)
            patch.setattr(Watch, "report", reports)
            yield

    def take(self) -> list[str]:
        """What did not add up since the last time, also of runs whose report nobody wanted."""
        for watch in [*self._going]:
            if watch.over.is_set():
                watch.report()
        found, self._problems = self._problems, []
        return found
