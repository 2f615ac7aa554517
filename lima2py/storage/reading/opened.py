"""A file of ours that has been opened: which frames it holds, and all about their run.

One that is being written, a `.part`, can be half updated when it is looked at: then it is opened
again, a few times.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import h5py
import hdf5plugin  # noqa: F401  (frames are compressed with its filters)
import numpy as np
from numpy.typing import NDArray

from lima2py.errors import BadParameter, StorageError, did_you_mean
from lima2py.frame import Array
from lima2py.storage.entry import detector_group, our_entries, run_of, spec_of, text_of
from lima2py.storage.failures import HDF5_ERRORS, unreadable
from lima2py.storage.layout import CREATOR
from lima2py.storage.logs import Series, read_logs
from lima2py.storage.names import PART

T = TypeVar("T")
PATIENCE = 1.0
"""Seconds for which a file that is being written is tried again when it is half updated."""


class NodePart(NamedTuple):
    """A file in which frames of a master lie.

    Attributes:
        rank: of the node that wrote it.
        first_row: the number of its first row among all that the node wrote.
        rows: how many it has.
        path: of the file.
    """

    rank: int
    first_row: int
    rows: int
    path: Path


def is_ours(path: str | Path) -> bool:
    """Whether lima2py wrote a file, as far as it can be read."""
    for how in ({}, {"locking": False}):
        with suppress(*HDF5_ERRORS), h5py.File(path, "r", **how) as file:
            return str(file.attrs.get("creator", "")).startswith(CREATOR)
    return False


class OpenedFile:
    """A master or the file of a node, opened for the frames of one sink.

    Attributes:
        path: of the file.
        sinks: all that the file holds the frames of, in the order of the graph.
        sink: the one whose frames these are.
        spec: what the frames look like.
        facts: all about the run, as the sink was told.
        is_master: whether it shows the frames of all nodes.
        detector_group: the group of the detector in the file.

    Raises:
        BadParameter: if no such sink wrote to it.
        StorageError: if it cannot be read, or is not ours.
    """

    def __init__(self, path: str | Path, sink: str | None = None):
        self.path = Path(path)
        self._wanted = sink
        self._file: h5py.File | None = None
        self._locks = not self.is_part  # as h5py does, and so whoever else opens it in here
        self._length = -1  # of what was there when it was opened first
        self.read(lambda: None)

    def __len__(self) -> int:
        """How many frames it has a record of."""
        return self._length

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
        if self._file is not None:
            self._file.close()

    @property
    def matrix(self) -> NDArray[np.float64] | None:
        """3×3, from the pixels of these frames to those of the detector; see `FrameSpec`."""
        place = self.spec.to_detector
        return None if place is None else np.array(place.matrix)

    @property
    def metadata(self) -> dict[str, Any]:
        """What the user said of sample, instrument and experiment."""
        return dict(self.facts.metadata)

    @property
    def parameters(self) -> dict[str, dict[str, Any]]:
        """The three parameter sets: requested, hardware, pipeline."""
        return self.facts.parameters._asdict()

    @property
    def rois(self) -> dict[str, tuple[int, int, int, int]]:
        """What the tasks of the run looked at, in detector pixels, by `task.roi`."""
        return dict(self.facts.rois)

    @property
    def node(self) -> str | None:
        """The node that wrote it; None for a master."""
        return None if self.is_master else self.read(lambda: str(self._ours.attrs["node"]))

    @property
    def outcome(self) -> str | None:
        """How the run ended, or `running`; only a master knows."""
        return self.read(lambda: text_of(self._ours["outcome"])) if self.is_master else None

    @property
    def errors(self) -> list[str]:
        """What went wrong in the run; only a master knows."""
        if not self.is_master:
            return []
        return self.read(lambda: self._ours["errors"].asstr()[:].tolist())

    @property
    def put_aside(self) -> str | None:
        """Why its frames were put aside as poison; None for any other file."""
        return self.read(lambda: text_of(self._ours["why"]) if "why" in self._ours else None)

    @property
    def started(self) -> str:
        """When the run was started, ISO 8601; before a master is written, when it was prepared."""
        return self.read(lambda: text_of(self._entry["start_time"]))

    @property
    def ended(self) -> str | None:
        """When the run ended, ISO 8601; while it goes on, when the preview was written."""
        return self.read(lambda: text_of(self._entry["end_time"])) if self.is_master else None

    @cached_property
    def logs(self) -> Mapping[str, Series]:
        """Values over time by name, with their times and units; only a master has them."""
        return self.read(lambda: read_logs(self._entry)) if self.is_master else {}

    @cached_property
    def files(self) -> list[NodePart]:
        """The files that the frames lie in."""
        return self.read(self._files)

    def _files(self) -> list[NodePart]:
        if not self.is_master:
            first, rank = self._ours.attrs["first_row"], self._ours.attrs["rank"]
            return [NodePart(int(rank), int(first), len(self), self.path)]
        group = self._ours["files"]
        numbers = [group[name][:].tolist() for name in ("node", "first_row", "rows")]
        paths = [self.path.parent / name for name in group["name"].asstr()[:]]
        return [NodePart(*known) for known in zip(*numbers, paths, strict=True)]

    @property
    def has_pixels(self) -> bool:
        """Whether its frames are sparse pixels."""
        return {"index", "value"} <= set(self.spec.dtype.names or ())

    def check_images(self) -> None:
        """Refuse what can be shown neither as images nor as sparse pixels.

        Raises:
            BadParameter: saying what it is.
        """
        if self.spec.kind != "dense" and not self.has_pixels:
            raise BadParameter(f"{self.path}: {self.sink} saved {self.spec}, and no images")

    def dataset(self, path: str) -> h5py.Dataset:
        """A dataset in the group of the detector, opened once: that takes long if it is virtual."""
        if path not in self._datasets:
            self._datasets[path] = self.detector_group[path]
        return self._datasets[path]

    @cached_property
    def _datasets(self) -> dict[str, h5py.Dataset]:
        return {}

    def stored(self, path: str, rows: slice = slice(None)) -> Array:
        """What a dataset in the group of the detector holds."""
        found: Array = self.read(lambda: self.dataset(path)[rows])
        return found

    @property
    def is_part(self) -> bool:
        """Whether it is not finished, by its name."""
        return self.path.name.endswith(PART)

    def read(self, what: Callable[[], T]) -> T:
        """Read something; of a file that is being written again and again, if need be."""
        if self._file is not None and not self._file:
            raise StorageError(f"{self.path} has been closed: open it again")
        deadline = time.monotonic() + (PATIENCE if self.is_part else 0)
        other_way = False
        while True:
            try:
                if self._file is None:
                    self._open()
                return what()
            except (StorageError, *HDF5_ERRORS) as error:
                # HDF5 opens no file twice in a process with locks and without; some disks have none
                if "lock" in str(error) and not other_way:
                    other_way, self._locks = True, not self._locks
                elif time.monotonic() < deadline:
                    time.sleep(0.05)
                elif isinstance(error, StorageError):
                    raise
                else:
                    raise unreadable(self.path, error) from error
            self._forget()

    def _forget(self) -> None:
        """Close the file, and forget all that may have changed in it."""
        self.close()
        self._file = None
        for name in list(vars(self)):
            if isinstance(getattr(type(self), name, None), cached_property):
                delattr(self, name)

    def _open(self) -> None:
        path = self.path
        if self.is_part and not path.exists():  # it may have been finished meanwhile
            finished = path.with_name(path.name.removesuffix(PART))
            path = finished if finished.exists() else path
        elif not path.exists() and Path(f"{path}{PART}").exists():
            raise StorageError(f"{path} is not finished: what there is of it is {path.name}{PART}")
        file = h5py.File(path, "r", **({} if self._locks else {"locking": False}))
        try:
            self._load(file)
        except BaseException:
            file.close()
            raise
        self.path, self._file = path, file

    def _load(self, file: h5py.File) -> None:
        names = {text_of(file[name]["lima2py/sink"]): name for name in our_entries(file, self.path)}
        wanted = self._wanted or next(iter(names))
        if wanted not in names:
            raise BadParameter(
                f"sink: none that is called {wanted!r} wrote to {self.path}"
                f"{did_you_mean(wanted, names)}"
            )
        entry = file[names[wanted]]
        self.sinks, self.sink = tuple(names), wanted
        self.spec, self.facts = spec_of(entry), run_of(entry)
        self._entry, self._ours = entry, entry["lima2py"]
        self.detector_group = detector_group(entry)
        self.is_master = "first_row" not in self._ours.attrs
        if self._length < 0:
            frames, data = self.detector_group["frames"], self.detector_group["data"]
            rows = len(data["nnz"]) if self.spec.kind == "sparse" else len(data)
            self._length = min(len(frames["index"]), len(frames["fate"]), rows)
