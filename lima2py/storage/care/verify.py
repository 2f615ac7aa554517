"""Check a run's files: every frame has one record, and lies where the record says.

What is checked of a master: its records by themselves, against those of the files of the nodes, and
what its virtual datasets show; of the file of one node: its records. On request every frame is read
too. What cannot be seen: a changed byte in frames that are neither compressed nor have checksums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from lima2py.frame import Array, Fate
from lima2py.storage.care.reread import files_of
from lima2py.storage.care.verify_data import damaged_frames
from lima2py.storage.care.verify_mapping import Part, wrong_frames
from lima2py.storage.entry import (
    NodeEntry,
    detector_group,
    our_entries,
    read_absences,
    read_entry,
    run_of,
    spec_of,
)
from lima2py.storage.failures import HDF5_ERRORS, unreadable
from lima2py.storage.names import PART
from lima2py.storage.saving.records import CHECKSUM
from lima2py.storage.steady import is_being_written

_SHOWN = 8
"""The most stretches of frames that are named."""


@dataclass
class Verdict:
    """What was found.

    Attributes:
        path: of the file.
        kind: `master` or `node file`.
        frames: by sink, how many frames met which fate.
        files: how many files of nodes were looked at.
        read: how many frames were read.
        compared: how many of them with their checksums.
        problems: what is wrong, in words; empty if nothing is.
    """

    path: Path
    kind: str = "node file"
    frames: dict[str, dict[str, int]] = field(default_factory=dict)
    files: int = 0
    read: int = 0
    compared: int = 0
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """The same as plain values."""
        return {**vars(self), "path": str(self.path), "ok": not self.problems}

    def __str__(self) -> str:
        lines = [f"{self.path}: {'good' if not self.problems else 'NOT good'}"]
        lines += [f"  {text}" for text in self.problems]
        lines += [f"  note: {text}" for text in dict.fromkeys(self.remarks)]
        for sink, counts in self.frames.items():
            said = ", ".join(f"{number} {word}" for word, number in counts.items())
            lines.append(f"  {sink}: {said or 'no frame'}")
        if self.read:
            lines.append(f"  frames read: {self.read}, compared with checksums: {self.compared}")
        return "\n".join(lines)


def verify(path: Path, *, pixels: bool = False) -> Verdict:
    """Check a file.

    Args:
        path: a master, or the file of a node.
        pixels: whether every frame is read too.

    Raises:
        StorageError: if it cannot be read, or is not ours.
    """
    verdict = Verdict(path)
    try:
        with h5py.File(path, "r", locking=False) as file:
            names = our_entries(file, path)
            if "outcome" in file[names[0]]["lima2py"]:
                verdict.kind = "master"
            if path.name.endswith(PART):
                verdict.problems.append(_unfinished(path))
            for name in names:
                _Check(verdict, file[name], name, pixels).run()
    except HDF5_ERRORS as error:
        raise unreadable(path, error) from error
    return verdict


def _unfinished(path: Path) -> str:
    if is_being_written(path):
        return "it is not finished: it is being written"
    return "it is not finished: its run goes on, or died and is to be recovered (lima2py recover)"


class _Check:
    """The check of one entry."""

    def __init__(self, verdict: Verdict, entry: h5py.Group, name: str, pixels: bool):
        self._verdict = verdict
        self._entry = entry
        self._name = name
        self._pixels = pixels
        self._group = detector_group(entry)
        self._run = run_of(entry)
        self._spec = spec_of(entry)
        self._sink = self._run.task
        frames = self._group["frames"]
        self._index: Array = frames["index"][:]
        self._fate: Array = frames["fate"][:]

    def run(self) -> None:
        """Note everything that is wrong."""
        self._counts()
        if not self._lengths():
            return
        self._absences()
        if self._verdict.kind == "master":
            self._of_master()
        else:
            mine = read_entry(self._verdict.path, self._name)
            self._verdict.files += 1
            self._of_node(mine)
            self._try(mine, np.flatnonzero(mine.fate == Fate.SAVED))

    def _bad(self, text: str, frames: Array | Sequence[int] | None = None) -> None:
        which = "" if frames is None else f" {in_words(frames)}"
        self._verdict.problems.append(f"{self._sink}: {text}{which}")

    def _counts(self) -> None:
        fates, numbers = np.unique(self._fate, return_counts=True)
        known = [int(fate) for fate in Fate]
        words = [Fate(fate).word if fate in known else f"fate_{fate}" for fate in fates.tolist()]
        counts = dict(zip(words, numbers.tolist(), strict=True))
        self._verdict.frames[self._sink] = counts
        unknown = (self._fate == Fate.NO_RECORD) | ~np.isin(self._fate, known)
        if unknown.any():
            self._bad("no record of", self._index[: len(unknown)][unknown[: len(self._index)]])
        if self._verdict.kind == "master":
            said = self._entry["lima2py/frames_by_fate"]
            told = {word: int(said[word][()]) for word in said}
            if told != counts:
                self._bad(f"frames_by_fate says {told}, and there are {counts}")

    def _lengths(self) -> bool:
        lengths = {name: len(values) for name, values in self._group["frames"].items()}
        if self._spec.kind != "sparse":
            lengths["data"] = len(self._group["data"])
        if len(set(lengths.values())) == 1:
            return True
        self._bad(f"the records are not of one length: {lengths}")
        return False

    def _absences(self) -> None:
        """Every frame without data has a reason, and no other has."""
        ranges = [(first, last, reason.cause) for first, last, reason in read_absences(self._group)]
        first, last, cause = np.array(sorted([(0, 0, Fate.SAVED), *ranges]), np.uint64).T
        which = np.searchsorted(first, self._index, side="right") - 1
        said = np.where(self._index <= last[which], cause[which], np.uint64(Fate.SAVED))
        if (wrong := self._index[said != self._fate]).size:
            self._bad("the fates are not those that `absences` gives reasons for:", wrong)

    def _of_node(self, mine: NodeEntry) -> None:
        if mine.pointer is not None:
            steps = np.diff(mine.pointer.astype(np.int64))
            if (steps < 0).any() or mine.pointer[-1] > mine.length:
                self._bad("frame_ptr does not fit to the columns")

    def _of_master(self) -> None:
        nb_frames = len(self._index)
        if not np.array_equal(self._index, np.arange(nb_frames)):
            self._bad("the indices are not 0, 1, 2 ...")
            return
        if self._run.nb_frames not in (0, nb_frames):
            self._bad(f"{self._run.nb_frames} frames were asked for, and {nb_frames} have a record")
        for name, digest in self._run.parameters.digests().items():
            if self._entry["lima2py/parameters"][name].attrs["sha256"] != digest:
                self._bad(f"the {name} parameters are not those of their hash")
        node, row = self._group["frames/node"][:], self._group["frames/row"][:]
        saved = self._fate == Fate.SAVED
        places = np.stack([node[saved], row[saved]])
        if np.unique(places, axis=1).shape[1] < places.shape[1]:
            self._bad("two frames lie in one row")
        parts: list[Part] = []
        held = np.zeros(nb_frames, bool)
        for rank, name in files_of(self._entry):
            theirs = self._node_file(rank, name)
            if theirs is None:
                continue
            self._verdict.files += 1
            frames = np.flatnonzero((node == rank) & (row >= 0))
            rows = row[frames] - theirs.first_row
            inside = (rows >= 0) & (rows < len(theirs))
            frames, rows = frames[inside], rows[inside]
            self._compare(theirs, frames, rows)
            held[frames] = True
            shown = saved[frames] & (theirs.index[rows] == frames)
            parts.append(Part(theirs, frames[shown], rows[shown]))
        if (missing := np.flatnonzero(saved & ~held)).size:
            self._bad("no file of a node holds", missing)
        lost = ~held & (saved | (row >= 0))
        path, group = self._verdict.path, self._group
        wrong = wrong_frames(path, group, self._spec, nb_frames, parts, pixels=self._pixels)
        if (others := wrong[~lost[wrong]]).size:
            self._bad("the dataset does not show what the records say for", others)
        for part in parts:
            order = np.argsort(part.rows)
            self._try(part.entry, part.rows[order])

    def _node_file(self, rank: int, name: str) -> NodeEntry | None:
        """The records of a file of a node, if it is what the master says it is."""
        path = self._verdict.path.parent / name
        finished = path.with_name(path.name.removesuffix(PART))
        if not path.exists() and finished.exists():
            path = finished  # its node was lost to the run, and closed it all the same
        try:
            theirs = read_entry(path, self._name)
        except FileNotFoundError:
            self._bad(f"{name} is not there")
            return None
        except HDF5_ERRORS as error:
            self._bad(str(unreadable(path, error)))
            return None
        if theirs.run.run != self._run.run:
            self._bad(f"{name} is of another run, {theirs.run.run[:8]}, not {self._run.run[:8]}")
            return None
        if (theirs.run.rank, theirs.spec) != (rank, self._spec):
            self._bad(f"{name} is not of node {rank}, or holds other frames")
            return None
        if path.name.endswith(PART):
            self._verdict.remarks.append(
                f"{name} was left by a lost node; lima2py recover {path.parent} finishes it"
            )
        return theirs

    def _compare(
        self, theirs: NodeEntry, frames: NDArray[np.int64], rows: NDArray[np.int64]
    ) -> None:
        """The records of master and node about the same frames."""
        name = theirs.path.name
        here = self._fate[frames] == Fate.SAVED
        bad = theirs.index[rows] != frames
        bad |= here & (theirs.fate[rows] != Fate.SAVED)
        if bad.any():
            self._bad(f"{name} does not hold what the master says it holds:", frames[bad])
        for column, values in theirs.columns.items():
            ours = self._group[column][:][frames] if column in self._group else None
            same = ours is not None and np.array_equal(
                ours[~bad], values[rows][~bad], equal_nan=values.dtype.kind == "f"
            )
            if not same:
                self._bad(f"{column} is not what {name} says")

    def _try(self, entry: NodeEntry, rows: NDArray[np.int64]) -> None:
        """Read the frames of some rows, if that is wanted."""
        if not self._pixels:
            return
        try:
            spoilt, changed = damaged_frames(entry, rows)
        except HDF5_ERRORS as error:
            self._bad(str(unreadable(entry.path, error)))
            return
        self._verdict.read += len(rows)
        self._verdict.compared += len(rows) if CHECKSUM in entry.columns else 0
        if spoilt:
            self._bad(f"{entry.path.name} is damaged, and cannot be decoded for", spoilt)
        if changed:
            self._bad(f"{entry.path.name} has changed since it was written, in", changed)


def in_words(frames: Array | Sequence[int]) -> str:
    """Frames as stretches: `frames 3-7, 9`."""
    numbers = np.unique(np.asarray(frames, np.int64))
    cuts = np.flatnonzero(np.diff(numbers) != 1) + 1
    stretches = [_stretch(part) for part in np.split(numbers, cuts)]
    more = f" and {len(stretches) - _SHOWN} more stretches" if len(stretches) > _SHOWN else ""
    return f"frame{'s' * (len(numbers) > 1)} {', '.join(stretches[:_SHOWN])}{more}"


def _stretch(part: Array) -> str:
    return f"{part[0]}" if len(part) == 1 else f"{part[0]}-{part[-1]}"
