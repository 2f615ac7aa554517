"""Write a master file: every frame of a run in order, and what became of each.

It is written when the run has ended, however it ended, under another name, and then put in its
place in one step: a master that exists is complete. Sinks that share their files share the master.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from lima2py.frame import Array, Fate, FrameSpec
from lima2py.storage.entry import NodeEntry, read_entry
from lima2py.storage.failures import HDF5_ERRORS, telling
from lima2py.storage.layout import (
    FATE_TYPE,
    TEXT_TYPE,
    add_absences,
    curves,
    describe_data,
    describe_record,
    link,
    new_absences,
    new_entry,
    new_file,
    new_group,
    no_value,
    safe_text,
)
from lima2py.storage.logs import Series, write_logs
from lima2py.storage.masters import ragged, virtual
from lima2py.storage.masters.experiment import write_experiment
from lima2py.storage.masters.provenance import write_ending, write_provenance
from lima2py.storage.names import PART
from lima2py.storage.reasons import Reasons
from lima2py.task import RunContext

RUNNING = "running"
"""The outcome of a run that goes on, in previews."""
_MANY = 2**16
"""Frames in a row of which nothing is known, from which on no room is taken for them."""


@dataclass(frozen=True, slots=True)
class FrameTable:
    """What became of every frame on its way to one sink.

    Attributes:
        fate: by frame index, a `Fate`.
        node: rank of the node that had it, -1 if none.
        row: its row among all that node wrote, -1 if it has none.
        reasons: why frames are absent, as far as it is known; `fate` counts where they differ.
        attempts: how many times it was given to a node; None if that is not known.
    """

    fate: NDArray[np.uint8]
    node: NDArray[np.int16]
    row: NDArray[np.int64]
    reasons: Reasons
    attempts: NDArray[np.uint8] | None = None


@dataclass(frozen=True, slots=True)
class Saved:
    """What one sink saved.

    Attributes:
        entry: its entry in the files.
        run: the run; `task` is the sink.
        spec: of the frames as they lie in the files.
        table: what became of each.
        node_files: the paths of the files each node wrote, by rank, in their order.
    """

    entry: str
    run: RunContext
    spec: FrameSpec
    table: FrameTable
    node_files: Mapping[int, Sequence[str]]


class Ending(NamedTuple):
    """How a run ended.

    Attributes:
        outcome: completed, stopped, failed, aborted; or running.
        errors: what went wrong.
        logs: what was logged meanwhile.
        ended: when, in seconds since 1970; now if not given.
        recovered: whether files of the run were finished by `lima2py recover`.
    """

    outcome: str
    errors: Sequence[str] = ()
    logs: Mapping[str, Series] = {}
    ended: float | None = None
    recovered: bool = False


def write_master(path: str, products: Sequence[Saved], ending: Ending) -> list[str]:
    """Write a master, in place of any that is there.

    Args:
        path: of the master.
        products: of all sinks that have it, in the order of the graph.
        ending: how the run ended.

    Returns:
        What is wrong: node files that are missing, damaged or do not say what the table says; their
        frames read as the fill value. It stands in the master among the errors, too.

    Raises:
        StorageError: if it cannot be written.
    """
    problems: list[str] = []
    with telling(path, "cannot be written"):
        content = io.BytesIO()  # HDF5 does not survive a disk that is full
        with h5py.File(
            path, "w", driver="fileobj", fileobj=content, libver=("v110", "v110")
        ) as file:
            new_file(file, products[0].run)
            for product in products:
                problems += _write(file, product, ending)
        with content.getbuffer() as whole:
            put_in_place(path, whole)
    return problems


def put_in_place(path: str, content: memoryview | bytes) -> None:
    """Make a file that is there either whole or not at all."""
    temporary = Path(f"{path}.new")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _write(file: h5py.File, product: Saved, ending: Ending) -> list[str]:
    """Write one entry; returns the problems."""
    name, run, spec, table = product.entry, product.run, product.spec, product.table
    detector = new_entry(file, name, spec, run)
    parts, problems = _parts(product)
    _write_records(detector, product, parts)
    if spec.kind == "sparse":
        ragged.create(detector, spec, len(table.fate), parts)
    else:
        rows = [virtual.Part(part.entry.path, f"{part.entry.group}/data", part.entry.length,
                             part.mapped, part.mapped_rows)
                for part in parts]  # fmt: skip
        data = virtual.create(detector, "data", len(table.fate), spec, rows)
        describe_data(data, spec)
    new_absences(detector)
    add_absences(detector["absences"], table.reasons.ranges(table.fate), 0)
    link(file[name], detector, spec, run)
    if ending.outcome != RUNNING:  # a preview, written again and again, has what it needs
        write_provenance(file[name], detector, spec, run)
        write_experiment(file[name], detector, spec, run)
    write_logs(file[name], ending.logs, run.started)
    errors = [*ending.errors, *problems]
    write_ending(
        file[name], table.fate, ending.outcome, errors, ending.ended, recovered=ending.recovered
    )
    _write_files(file[name]["lima2py"], parts, Path(file.filename).parent)
    return problems


@dataclass(frozen=True, slots=True)
class Part:
    """One file of a node, and the frames of it that the master shows.

    Attributes:
        rank: of the node.
        entry: what the file says.
        had: all frames that should lie in it, increasing.
        had_rows: where each of these lies in the file.
        frames: those of them that have data.
        rows: where each of these lies.
        mapped: `frames`, and those that are absent and for which the file has the fill value: with
            them a dataset takes few mappings, however many frames a veto rejects.
        mapped_rows: where each of these lies.
    """

    rank: int
    entry: NodeEntry
    had: NDArray[np.int64]
    had_rows: NDArray[np.int64]
    frames: NDArray[np.int64]
    rows: NDArray[np.int64]
    mapped: NDArray[np.int64]
    mapped_rows: NDArray[np.int64]


def _parts(product: Saved) -> tuple[list[Part], list[str]]:
    """The files of all nodes with the frames that lie in each, and what is wrong with them."""
    table = product.table
    parts: list[Part] = []
    problems: list[str] = []
    for rank in np.unique(table.node[table.row >= 0]).tolist():
        frames = np.flatnonzero((table.node == rank) & (table.row >= 0))
        missing = len(frames)
        unread: list[str] = []
        for path in product.node_files.get(rank, ()):
            try:
                entry = read_entry(existing(path), product.entry)
            except FileNotFoundError:
                unread.append(f"{path} cannot be found")
                continue
            except HDF5_ERRORS as error:
                unread.append(f"{path} cannot be read: {' '.join(str(error).split())}")
                continue
            part = _part(rank, entry, frames, table)
            missing -= len(part.had)
            parts.append(part)
        if missing:  # if not: it was begun when its node was lost, and no frame is safe in it
            problems += unread
            problems.append(
                f"node {rank} had {missing} frames that none of its files holds:"
                f" {', '.join(product.node_files.get(rank, ())) or 'it names no file'}"
            )
    return parts, problems


def _part(rank: int, entry: NodeEntry, frames: NDArray[np.int64], table: FrameTable) -> Part:
    """The frames of a node that do lie in this file, where the table says."""
    rows = table.row[frames] - entry.first_row
    found = (rows >= 0) & (rows < len(entry))
    frames, rows = frames[found], rows[found]
    good = entry.index[rows] == frames
    good &= (entry.fate[rows] == Fate.SAVED) | (table.fate[frames] != Fate.SAVED)
    frames, rows = frames[good], rows[good]
    shown = table.fate[frames] == Fate.SAVED
    mapped = shown | (entry.fate[rows] != Fate.SAVED)
    return Part(rank, entry, frames, rows, frames[shown], rows[shown], frames[mapped], rows[mapped])


def existing(path: str) -> str:
    """A file of a node as it is called now: one that was not finished has `.part` behind it."""
    part = f"{path}{PART}"
    return part if not os.path.exists(path) and os.path.exists(part) else path


def _write_records(detector: h5py.Group, product: Saved, parts: Iterable[Part]) -> None:
    table = product.table
    nb_frames = len(table.fate)
    records: dict[str, Array] = {
        "frames/index": np.arange(nb_frames, dtype=np.uint64),
        "frames/fate": table.fate,
        "frames/timestamp": np.full(nb_frames, np.nan),
        "frames/node": table.node,
        "frames/row": table.row,
        **({} if table.attempts is None else {"frames/attempts": table.attempts}),
        **{path: np.full(nb_frames, np.nan) for path in curves(product.spec)},
    }
    for part in parts:
        for name, values in part.entry.columns.items():
            if name not in records:
                records[name] = np.full(nb_frames, no_value(values.dtype))
            records[name][part.had] = values[part.had_rows]
    for path, values in records.items():
        if path == "frames/fate":
            record = detector.create_dataset(path, data=values, dtype=FATE_TYPE)
        else:
            record = _create(detector, path, values)
        describe_record(record, path)


def _create(detector: h5py.Group, path: str, values: Array) -> h5py.Dataset:
    """A record; of a long run that was cut short, the end, which is all alike, takes no room."""
    raw = values.view(f"u{values.itemsize}")  # nan is like nan
    other = raw[::-1] != raw[-1:]
    used = len(values) - int(other.argmax()) if other.any() else 0
    if len(values) - used < _MANY:
        return detector.create_dataset(path, data=values)
    record = detector.create_dataset(
        path, values.shape, values.dtype, chunks=(_MANY,), fillvalue=values[-1]
    )
    record[:used] = values[:used]
    return record


def _write_files(group: h5py.Group, parts: Iterable[Part], folder: Path) -> None:
    """Name the nodes' files, relative to the master."""
    parts = list(parts)
    names = [safe_text(os.path.relpath(part.entry.path, folder)) for part in parts]
    files = new_group(group, "files", "NXcollection")
    files.create_dataset("node", data=[part.rank for part in parts], dtype="i2")
    files.create_dataset("first_row", data=[part.entry.first_row for part in parts], dtype="i8")
    files.create_dataset("rows", data=[len(part.entry) for part in parts], dtype="i8")
    files.create_dataset("name", data=names, dtype=TEXT_TYPE)
