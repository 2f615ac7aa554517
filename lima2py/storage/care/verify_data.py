"""Read and decode every frame of a file, and compare it with its checksum, if it has one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import h5py
import hdf5plugin  # noqa: F401 - registers the filters
import numpy as np
from numpy.typing import NDArray

from lima2py.frame import Array
from lima2py.storage.entry import NodeEntry, ragged_columns
from lima2py.storage.failures import HDF5_ERRORS
from lima2py.storage.saving.records import CHECKSUM, checksum

AT_ONCE = 16 * 2**20
"""About how many bytes are read at once."""


def damaged_frames(entry: NodeEntry, rows: NDArray[np.int64]) -> tuple[list[int], list[int]]:
    """Try frames of a node's file.

    Args:
        entry: of the file.
        rows: which of its rows to try, increasing.

    Returns:
        The indices of the frames that cannot be read or decoded, and of those that are not what
        was saved, where there are checksums.

    Raises:
        OSError, RuntimeError, ValueError, KeyError: what h5py raises when the file cannot be read.
    """
    checksums = entry.columns.get(CHECKSUM)
    unreadable: list[int] = []
    changed: list[int] = []
    with h5py.File(entry.path, "r", locking=False) as file:
        data = file[entry.group]["data"]
        for row, found in _found(entry, data, rows, of_chunk=_is_raw(entry)):
            if found is None:
                unreadable.append(int(entry.index[row]))
            elif checksums is not None and found != checksums[row]:
                changed.append(int(entry.index[row]))
    return unreadable, changed


def _is_raw(entry: NodeEntry) -> bool:
    """Whether the checksums are those of the compressed frames."""
    task = entry.run.parameters.pipeline.get("tasks", {}).get(entry.run.task, {})
    return bool(task.get("do") == "save_raw")


def _found(
    entry: NodeEntry, data: Any, rows: NDArray[np.int64], *, of_chunk: bool
) -> Iterator[tuple[int, int | None]]:
    """The checksum of every row as it is now; None if it cannot be read."""
    for some in _pieces(entry, rows):
        try:
            yield from _tried(entry, data, some, of_chunk=of_chunk)
        except HDF5_ERRORS:
            for row in some.tolist():  # which of them is it
                try:
                    yield from _tried(entry, data, np.array([row]), of_chunk=of_chunk)
                except HDF5_ERRORS:
                    yield row, None


def _tried(
    entry: NodeEntry, data: Any, rows: NDArray[np.int64], *, of_chunk: bool
) -> list[tuple[int, int]]:
    frames = _read(entry, data, rows)
    return [
        (row, _of_chunk(data, row) if of_chunk else checksum(columns))
        for row, columns in zip(rows.tolist(), frames, strict=True)
    ]


def _of_chunk(data: h5py.Dataset, row: int) -> int:
    content = data.id.read_direct_chunk((row, *(0,) * (data.ndim - 1)))[1]
    return checksum({"": np.frombuffer(content, np.uint8)})


def _pieces(entry: NodeEntry, rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """The rows, as many at once as is convenient."""
    if entry.pointer is None:
        sizes = np.full(len(rows), entry.spec.nbytes, np.int64)
    else:
        pointer = entry.pointer.astype(np.int64)
        sizes = (pointer[rows + 1] - pointer[rows]) * entry.spec.dtype.itemsize
    numbers = np.cumsum(sizes) // AT_ONCE
    yield from np.split(rows, np.flatnonzero(np.diff(numbers)) + 1) if len(rows) else ()


def _read(entry: NodeEntry, data: Any, rows: NDArray[np.int64]) -> list[dict[str, Array]]:
    """The columns of each row."""
    first, last = int(rows[0]), int(rows[-1])
    if entry.pointer is None:
        found = data[first : last + 1]
        return [{"": found[row - first]} for row in rows.tolist()]
    begin, end = entry.pointer[first], entry.pointer[last + 1]
    columns = {name: data[name][begin:end] for name in ragged_columns(entry.spec)}
    edges = [(entry.pointer[row] - begin, entry.pointer[row + 1] - begin) for row in rows.tolist()]
    return [{name: values[at:to] for name, values in columns.items()} for at, to in edges]
