"""Frames that lima2py saved, as `lima2py.open` gives them: images, and sparse pixels as images."""

from __future__ import annotations

import numpy as np
from lima2py_detectors.replay.recorded import Facts, FramesFile, Sizes, Times, UnreadableError

from lima2py.errors import LimaError
from lima2py.frame import Array, Fate
from lima2py.storage.reading.opened import is_ours
from lima2py.storage.reading.run_file import RunFile


class SavedFile(FramesFile):
    """A master, or the file of a node; of the first of the sinks that share it."""

    def __init__(self, path: str):
        super().__init__(path)
        self._file: RunFile | None = None

    def facts(self) -> Facts:
        """See `FramesFile`."""
        try:
            with RunFile(self.path) as file:
                file.check_images()
                if len(file):
                    file.check_there(slice(0, len(file)))
                return _facts(file)
        except LimaError as error:
            raise UnreadableError(str(error)) from error

    def read(self, first: int, step: int, out: Array, times: Times, sizes: Sizes) -> None:
        """See `FramesFile`."""
        if self._file is None:
            self._file = RunFile(self.path)
        rows = slice(first, first + len(out) * step, step)
        if self._file.spec.kind == "dense":
            self._file.read_into(rows, out)
        else:
            for at, row in enumerate(range(len(self._file))[rows]):
                out[at, 0] = self._file.dense(row)
        times[:] = self._file.records["timestamp"][rows]

    def close(self) -> None:
        """See `FramesFile`."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _facts(file: RunFile) -> Facts:
    dense = file.spec.kind == "dense"
    asked = file.parameters["hardware"].get("acquisition", {})
    period = asked.get("expo_time", 0.0) + asked.get("latency_time", 0.0)
    times = file.records["timestamp"]
    return Facts(
        file.spec.shape if dense else (1, *file.spec.image),  # type: ignore[arg-type]
        file.spec.dtype if dense else file.spec.dtype["value"],
        len(file),
        times if np.isfinite(times).any() else None,
        period * file.spec.span or None,
        _pixel_size(file),
        absences(file),
    )


def _pixel_size(file: RunFile) -> tuple[float, float] | None:
    """Of these frames, whatever was binned and turned: `x, y` in metres."""
    size, place = file.facts.detector.get("info", {}).get("pixel_size"), file.matrix
    if size is None or place is None:
        return None
    x, y = np.abs(place[:2, :2].T) @ np.array(size)
    return float(x), float(y)


def absences(file: RunFile) -> dict[int, str]:
    """The frames that were not recorded, by row, and why."""
    return {
        row: f"was absent when it was recorded: {file.absence(row)}"
        for row in np.flatnonzero(file.fate != Fate.SAVED).tolist()
    }


def absences_in(path: str, count: int) -> dict[int, str]:
    """The same of a file that may be ours, if it has so many frames."""
    if not is_ours(path):
        return {}
    with RunFile(path) as file:
        return absences(file) if len(file) == count else {}
