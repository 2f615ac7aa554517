"""What the file of a node says of one product: its records, without the pixels."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from lima2py.errors import StorageError
from lima2py.frame import Absence, Array, Fate, FrameSpec
from lima2py.storage.layout import CREATOR, saved_column
from lima2py.task import RunContext


@dataclass(frozen=True)
class NodeEntry:
    """The records of one product in one file of a node.

    Attributes:
        path: of the file.
        name: of the entry.
        group: path of the detector's group in it.
        spec: of the frames.
        run: all about the run, as the sink was told.
        first_row: number of its first row among all of the node.
        index: by row, the frame.
        fate: by row, a `Fate`.
        columns: the other records, by path below the detector's group.
        length: rows of `data`; of sparse frames, of each of its columns.
        pointer: of sparse frames: where each begins, one more than there are rows.
        absences: why frames have no data: first and last frame, and the reason.
    """

    path: Path
    name: str
    group: str
    spec: FrameSpec
    run: RunContext
    first_row: int
    index: NDArray[np.uint64]
    fate: NDArray[np.uint8]
    columns: dict[str, Array]
    length: int
    pointer: NDArray[np.uint64] | None
    absences: list[tuple[int, int, Absence]]

    def __len__(self) -> int:
        return len(self.index)


def entry_names(file: h5py.File) -> list[str]:
    """The entries of a file of ours, in the order of the graph."""
    return sorted(name for name in file if name.startswith("entry_"))


def our_entries(file: h5py.File, path: str | Path) -> list[str]:
    """The same of any file.

    Raises:
        StorageError: if it is not ours, or is the master of a run that has just been prepared.
    """
    creator = str(file.attrs.get("creator", ""))
    if not creator.startswith(CREATOR):
        made = f"made by {creator}" if creator else "without the name of its maker"
        raise StorageError(f"{path} is not a file of lima2py: it is {made}")
    if not (names := entry_names(file)):
        raise StorageError(
            f"{path} shows no frames yet: its run has just been prepared, or died then"
        )
    return names


def detector_group(entry: h5py.Group) -> h5py.Group:
    """The detector's group of an entry of ours."""
    steps = str(entry.attrs["default"]).split("/")
    return entry["/".join(steps[:-1])]


def run_of(entry: h5py.Group) -> RunContext:
    """All about the run of an entry of ours."""
    return RunContext.from_plain(json.loads(text_of(entry["lima2py/run"])))


def spec_of(entry: h5py.Group) -> FrameSpec:
    """What the frames of an entry of ours look like."""
    return FrameSpec.from_plain(json.loads(text_of(entry["lima2py/spec"])))


def text_of(dataset: h5py.Dataset) -> str:
    """The text in a dataset."""
    return str(dataset.asstr()[()])


@contextmanager
def alone(path: str | Path) -> Iterator[h5py.File]:
    """A file as it is on the disk, to be read, whoever else in this process has it open.

    What HDF5 opens by its name it shares in a process: with what others have read of it before, and
    only if they do it with locks, or without, alike.
    """
    with open(path, "rb") as plain, h5py.File(plain, "r") as file:
        yield file


def read_entry(path: str | Path, name: str) -> NodeEntry:
    """Read the records of a product; the file may still be written.

    Args:
        path: of the file.
        name: of the entry.

    Raises:
        OSError, RuntimeError, ValueError, KeyError: what h5py raises when it cannot be read.
    """
    with alone(path) as file:
        entry = file[name]
        group = detector_group(entry)
        spec = spec_of(entry)
        fate = group["frames/fate"][:]
        index = group["frames/index"][:]
        known = np.flatnonzero(fate[: len(index)])  # the fates are written last
        count = int(known[-1]) + 1 if len(known) else 0
        columns = {
            f"frames/{column}": _padded(values[:], count)
            for column, values in group["frames"].items()
            if column not in ("index", "fate")
        }
        columns |= {
            f"plot/{column}": _padded(values[:], count)
            for column, values in group.get("plot", {}).items()
            if column not in ("data", "frame")
        }
        pointer = None
        if spec.kind == "sparse":
            pointer = group["data/frame_ptr"][: count + 1]
            count = min(count, len(pointer) - 1)
            length = min(len(group["data"][column]) for column in ragged_columns(spec))
        else:
            length = group["data"].shape[0]
            count = min(count, length)
        return NodeEntry(
            Path(path), name, group.name, spec, run_of(entry),
            int(entry["lima2py"].attrs["first_row"]), index[:count], fate[:count],
            {name: values[:count] for name, values in columns.items()},
            length, pointer, read_absences(group),
        )  # fmt: skip


def read_absences(group: h5py.Group) -> list[tuple[int, int, Absence]]:
    """Why frames have no data: first and last, and the reason."""
    table = group["absences"]
    fates = table["fate"][:].tolist()
    count = len(fates)  # of a row that was just being written the words may not be there
    columns = (
        table["first"][:count].tolist(),
        table["last"][:count].tolist(),
        fates,
        table["who"].asstr()[:count].tolist(),
        table["detail"].asstr()[:count].tolist(),
    )
    return [
        (first, last, Absence(Fate(fate), who, detail))
        for first, last, fate, who, detail in zip(*columns, strict=False)
        if fate != Fate.NO_RECORD
    ]


def ragged_columns(spec: FrameSpec) -> dict[str, np.dtype[Any]]:
    """The columns of sparse frames as they are called in files, with the type of each."""
    return {saved_column(name, spec): spec.dtype[name] for name in spec.dtype.names or ()}


def _padded(values: Array, count: int) -> Array:
    """A record that may be shorter than the others in a file that is just being written."""
    if len(values) >= count:
        return values
    missing = np.nan if values.dtype.kind == "f" else 0
    return np.concatenate([values, np.full(count - len(values), missing, values.dtype)])
