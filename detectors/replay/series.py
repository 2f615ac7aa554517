"""Frames recorded in files, as one series.

All frames have the shape and dtype of the first file's; those that have not, and those that cannot
be read, are refused one by one. At most one file is open at a time.
"""

from __future__ import annotations

import glob
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable
from itertools import accumulate
from pathlib import Path

import h5py
import numpy as np
from lima2py_detectors.replay.encoded import EncodedFile
from lima2py_detectors.replay.images import ImageFile
from lima2py_detectors.replay.recorded import (
    Facts,
    FramesFile,
    Sizes,
    Times,
    UnreadableError,
    reason,
)
from lima2py_detectors.replay.saved import SavedFile
from lima2py_detectors.replay.stacks import Hdf5File

from lima2py.errors import BadParameter
from lima2py.frame import Array, Fate
from lima2py.storage.reading.opened import is_ours

Refuse = Callable[[int, Fate, str], None]
"""Called with a frame's offset, the cause and the detail of why it cannot be had."""


class Series:
    """The frames of several files, one after the other, or a selection of them.

    Args:
        paths: the files; all HDF5 files or all images.
        dataset: where the frames are in HDF5 files; found when not given.
        first: number of the first frame to take.
        step: take every so manieth.
        last: number of the last frame that may be taken; None for no limit.
        encoded: whether frames are handed on compressed, as they are stored.

    Attributes:
        facts: about the first file.
        capacity: the most bytes of a frame that is handed on compressed.
        count: how many frames are selected.

    Raises:
        UnreadableError: if a file cannot be read whose number of frames must be known.
    """

    def __init__(
        self,
        paths: list[str],
        dataset: str | None,
        first: int,
        step: int,
        last: int | None,
        encoded: bool,
    ):
        hdf5 = h5py.is_hdf5(paths[0])
        if encoded and not hdf5:
            raise UnreadableError(
                f"{paths[0]} is no HDF5 file, of which alone frames are handed on compressed; set"
                " encoded: false"
            )
        self._files = [_file(path, dataset, encoded, hdf5) for path in paths]
        self._facts = [self._look(self._files[0])]
        self.facts = self._facts[0]
        if hdf5 or self.facts.count > 1:
            self._facts += [self._look(file) for file in self._files[1:]]
        else:  # one image a file: looking into thousands of them would take minutes
            self._facts *= len(paths)
        self.capacity = max(facts.capacity for facts in self._facts)
        self._ends = list(accumulate(facts.count for facts in self._facts))
        self._first, self._step = first, step
        in_all = self._ends[-1] if last is None else min(self._ends[-1], last + 1)
        self.count = len(range(first, in_all, step))
        self._open: FramesFile | None = None

    @staticmethod
    def _look(file: FramesFile) -> Facts:
        try:
            return file.facts()
        except UnreadableError as error:
            raise UnreadableError(f"{file.path}: {error}") from error.__cause__

    @property
    def offsets(self) -> Times | None:
        """When each selected frame was recorded, in seconds after the first; None if not known."""
        if any(facts.times is None for facts in self._facts):
            return None
        times = np.concatenate([facts.times for facts in self._facts if facts.times is not None])
        times = times[self._first :: self._step][: self.count]
        if not (np.isfinite(times).all() and (np.diff(times) >= 0).all()):
            return None
        offsets: Times = times - times[0]
        return offsets

    @property
    def period(self) -> float | None:
        """Seconds between selected frames as the first file says; None if it does not."""
        return self.facts.period and self.facts.period * self._step

    def read(self, number: int, out: Array, times: Times, sizes: Sizes, refuse: Refuse) -> int:
        """Put the selected frames `number` and following into `out`, up to the end of their file.

        Returns:
            How many were put or refused: at least one.
        """
        frame = self._first + number * self._step
        at = bisect_right(self._ends, frame)
        inside = frame - (self._ends[at - 1] if at else 0)
        count = min(
            len(out), self.count - number, len(range(inside, self._facts[at].count, self._step))
        )
        file, facts = self._files[at], self._facts[at]
        if file is not self._open:
            self.close()
            self._open = file
        if facts.look != self.facts.look:
            for offset in range(count):
                refuse(offset, Fate.CORRUPT, f"{file.path}: {facts} where {self.facts} is due")
            return count
        self._read(file, inside, out[:count], times[:count], sizes[:count], refuse)
        if facts.absent:
            for offset in range(count):
                if why := facts.absent.get(inside + offset * self._step):
                    refuse(offset, Fate.DETECTOR_GAP, f"{why} ({file.path})")
        return count

    def _read(
        self,
        file: FramesFile,
        first: int,
        out: Array,
        times: Times,
        sizes: Sizes,
        refuse: Refuse,
    ) -> None:
        # Decoders raise anything, and one bad frame must not end a run: hence `Exception`.
        try:
            file.read(first, self._step, out, times, sizes)
            return
        except Exception:
            file.close()
        for at in range(len(out)):  # which one is it?
            frame, one = first + at * self._step, slice(at, at + 1)
            try:
                file.read(frame, 1, out[one], times[one], sizes[one])
            except Exception as error:
                file.close()
                refuse(at, Fate.CORRUPT, f"{file.path}, frame {frame}: {reason(error)}")

    def close(self) -> None:
        """Close the file that is open; may be called twice."""
        if self._open is not None:
            self._open.close()
            self._open = None


def _file(path: str, dataset: str | None, encoded: bool, hdf5: bool) -> FramesFile:
    if not hdf5:
        return ImageFile(path)
    if encoded:
        return EncodedFile(path, dataset)
    return SavedFile(path) if dataset is None and is_ours(path) else Hdf5File(path, dataset)


def expand(patterns: Iterable[str]) -> list[str]:
    """The files that paths and patterns name; those of a pattern sorted with 2 before 10.

    Raises:
        BadParameter: naming what matches no file.
    """
    paths: list[str] = []
    for pattern in patterns:
        found = [pattern] if Path(pattern).exists() else sorted(glob.glob(pattern), key=_natural)
        if not found:
            raise BadParameter(f"files: there is no file {pattern}")
        paths += found
    folder = next((path for path in paths if Path(path).is_dir()), None)
    if folder is not None:
        raise BadParameter(f"files: {folder} is a folder; say which files, for instance {folder}/*")
    return paths


def _natural(path: str) -> list[tuple[int, str]]:
    parts = re.split(r"(\d+)", path)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]
