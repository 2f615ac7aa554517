"""Read a file of ours, a master or what one node wrote: frames, records, and all about the run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import hdf5plugin  # noqa: F401  (frames are compressed with its filters)
import numpy as np
from numpy.typing import NDArray

from lima2py.errors import BadParameter, StorageError
from lima2py.frame import Absence, Array, Fate, Frame, FrameSpec
from lima2py.storage.failures import HDF5_ERRORS, unreadable
from lima2py.storage.layout import CREATOR, ENTRY, fill_value

READ_BYTES = 64 * 2**20
"""About how much is read at once where all frames are."""


class RunFile:
    """A file that lima2py wrote: a master, or what one node wrote.

    Attributes:
        path: of the file.
        spec: what the frames look like.
        is_master: whether it shows the frames of all nodes.
        index: numbers of its frames in the acquisition, by row.
        fate: what became of each, by row.

    Raises:
        StorageError: if it cannot be read, or is not ours.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        with self._reading():
            self._file = h5py.File(self.path, "r", locking=False)
        try:
            self._load()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close it; may be called twice."""
        self._file.close()

    def __len__(self) -> int:
        """How many frames it has a record of."""
        return len(self.index)

    @property
    def name(self) -> str:
        """What the user called the run."""
        return _text(self._entry["title"])

    @property
    def run(self) -> str:
        """Id of the run."""
        return _text(self._entry["entry_identifier"])

    @property
    def sink(self) -> str:
        """The task that saved it."""
        return _text(self._run["sink"])

    @property
    def node(self) -> str | None:
        """The node that wrote it; None for a master."""
        return None if self.is_master else str(self._run.attrs["node"])

    @property
    def outcome(self) -> str | None:
        """How the run ended; only a master knows."""
        return _text(self._run["outcome"]) if self.is_master else None

    @property
    def errors(self) -> list[str]:
        """What went wrong in the run; only a master knows."""
        return list(self._run["errors"].asstr()[:]) if self.is_master else []

    @property
    def started(self) -> str:
        """When the run was prepared, ISO 8601."""
        return _text(self._entry["start_time"])

    @property
    def ended(self) -> str | None:
        """When the master was written, ISO 8601."""
        return _text(self._entry["end_time"]) if self.is_master else None

    @property
    def nb_frames(self) -> int:
        """How many frames the run was asked for; 0 if endless."""
        return int(self._run["nb_frames"][()])

    @property
    def graph(self) -> str:
        """The graph as it was written."""
        return _text(self._run["graph"])

    @property
    def detector(self) -> dict[str, Any]:
        """What was known of the detector."""
        described: dict[str, Any] = json.loads(_text(self._run["detector"]))
        return described

    @property
    def parameters(self) -> dict[str, dict[str, Any]]:
        """The three parameter sets: requested, hardware, pipeline."""
        group = self._run["parameters"]
        return {name: json.loads(_text(group[name])) for name in group}

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 of each parameter set."""
        return {name: str(item.attrs["sha256"]) for name, item in self._run["parameters"].items()}

    @property
    def rois(self) -> dict[str, tuple[int, int, int, int]]:
        """What the tasks of the run looked at, in detector pixels, by `task.roi`."""
        group = self._run["rois"]
        return {
            name: (box[0], box[1], box[2], box[3])
            for name, box in zip(group["name"].asstr()[:], group["box"][:].tolist(), strict=True)
        }

    @cached_property
    def files(self) -> dict[int, Path]:
        """The files the pixels lie in, by rank of their node."""
        if not self.is_master:
            return {int(self._run.attrs["rank"]): self.path}
        group = self._run["files"]
        names = zip(group["node"][:].tolist(), group["name"].asstr()[:], strict=True)
        return {rank: self.path.parent / name for rank, name in names}

    @property
    def columns(self) -> list[str]:
        """Names of the per-frame values."""
        return list(self._detector["frames"])

    def column(self, name: str) -> Array:
        """One of the per-frame values, by row."""
        with self._reading():
            values: Array = self._detector["frames"][name][:]
        return values

    @property
    def counts(self) -> dict[str, int]:
        """Frames by fate."""
        fates, numbers = np.unique(self.fate, return_counts=True)
        return {
            Fate(fate).word: number
            for fate, number in zip(fates.tolist(), numbers.tolist(), strict=True)
        }

    @cached_property
    def absences(self) -> list[tuple[int, int, Absence]]:
        """Why frames have no data: first and last index, and the reason."""
        with self._reading():
            group = self._detector["absences"]
            columns = (
                group["first"][:].tolist(),
                group["last"][:].tolist(),
                group["fate"][:].tolist(),
                group["who"].asstr()[:].tolist(),
                group["detail"].asstr()[:].tolist(),
            )
        return [
            (first, last, Absence(Fate(fate), who, detail))
            for first, last, fate, who, detail in zip(*columns, strict=True)
        ]

    def frame(self, index: int) -> Frame:
        """One frame by its number in the acquisition.

        Raises:
            BadParameter: if the file has no record of it.
            StorageError: if its pixels cannot be read.
        """
        rows = np.flatnonzero(self.index == index)
        if not len(rows):
            raise BadParameter(f"frame {index}: {self._extent()}")
        row = int(rows[-1])
        time = float(self._detector["frames/timestamp"][row])
        if self.fate[row] != Fate.SAVED:
            return Frame(index, None, self._reason(index, Fate(self.fate[row])), time)
        self._check_there(self._nodes[row : row + 1])
        with self._reading():
            data: Array = self._data[row]
        return Frame(index, data, None, time)

    def first(self) -> int:
        """The number of the first frame with data.

        Raises:
            BadParameter: if there is none.
        """
        saved = self.index[self.fate == Fate.SAVED]
        if not len(saved):
            raise BadParameter(f"{self._extent()}, none of them with data")
        return int(saved.min())

    def blocks(self) -> Iterator[tuple[NDArray[np.uint64], Array]]:
        """All frames with data, many at a time: their numbers, and an array of them."""
        saved = self.fate == Fate.SAVED
        self._check_there(self._nodes[saved])
        step = max(1, READ_BYTES // max(1, self.spec.nbytes))
        for row in range(0, len(self), step):
            part = saved[row : row + step]
            if part.any():
                with self._reading():
                    data = self._data[row : row + step]
                yield self.index[row : row + step][part], data[part]

    def total(self) -> np.ma.MaskedArray[Any, np.dtype[Any]]:
        """The sum of all frames with data; masked where none of them has a number.

        What reads as the fill value, or is nan, is not added.
        """
        kind = self.spec.dtype.kind
        dtype = {"f": "f8", "c": "c16", "u": "u8"}.get(kind, "i8")
        total = np.zeros(self.spec.saved_shape, dtype)
        seen = np.zeros(self.spec.saved_shape, bool)
        for _, data in self.blocks():
            good = self.is_number(data)
            seen |= good.any(axis=0)
            total += np.where(good, data, 0).sum(axis=0, dtype=dtype)
        return np.ma.masked_array(total, ~seen)

    def is_number(self, data: Array) -> NDArray[np.bool_]:
        """Where data are neither the fill value nor nan."""
        if self.spec.dtype.kind in "fc":
            good: NDArray[np.bool_] = ~np.isnan(data)
        elif self.spec.dtype.kind in "iu":
            good = data != fill_value(self.spec.dtype)
        else:
            good = np.ones(data.shape, bool)
        return good

    def _load(self) -> None:
        creator = str(self._file.attrs.get("creator", ""))
        if not creator.startswith(CREATOR) or ENTRY not in self._file:
            made = f"made by {creator}" if creator else "without the name of its maker"
            raise StorageError(f"{self.path} is not a file of lima2py: it is {made}")
        with self._reading():
            self._entry = self._file[ENTRY]
            self._run = self._entry["lima2py"]
            self.is_master = "outcome" in self._run
            self.spec = FrameSpec.from_plain(json.loads(_text(self._run["spec"])))
            steps = str(self._entry.attrs["default"]).split("/")
            self._detector = self._entry["/".join(steps[:-1])]
            self._data = self._detector["data"]
            self.index: NDArray[np.uint64] = self._detector["frames/index"][:]
            self.fate: NDArray[np.uint8] = self._detector["frames/fate"][:]

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except HDF5_ERRORS as error:
            raise unreadable(self.path, error) from error

    @cached_property
    def _nodes(self) -> Array:
        """By row, the rank of the node whose file the frame lies in."""
        if self.is_master:
            return self.column("node")
        return np.full(len(self), int(self._run.attrs["rank"]))

    def _check_there(self, nodes: Array) -> None:
        """Refuse to take the fill value for pixels because a node's file has gone."""
        for rank in np.unique(nodes).tolist():
            file = self.files.get(rank)
            if file is None or not file.exists():
                raise StorageError(
                    f"{self.path}: the file of node {rank} is not there, {file}; keep all files of"
                    " a run in one folder"
                )

    def _reason(self, index: int, fate: Fate) -> Absence:
        for first, last, reason in self.absences:
            if first <= index <= last:
                return reason
        return Absence(fate, "")

    def _extent(self) -> str:
        if not len(self):
            return f"{self.path} has no frames"
        return f"{self.path} has {len(self)} frames from {self.index.min()} to {self.index.max()}"


def _text(dataset: h5py.Dataset) -> str:
    return str(dataset.asstr()[()])
