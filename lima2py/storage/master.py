"""The master file: every frame of a run in order, and what became of each.

It is written when the run has ended, however it ended, under another name, and then put in its
place in one step: a master that exists is complete.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from lima2py.frame import Absence, Array, Fate, FrameSpec
from lima2py.storage import virtual
from lima2py.storage.failures import HDF5_ERRORS, telling
from lima2py.storage.layout import (
    ENTRY,
    FATE_TYPE,
    TEXT_TYPE,
    absence_ranges,
    add_absences,
    curves,
    describe_data,
    describe_record,
    iso_time,
    lay_out,
    link,
    new_absences,
    new_group,
    safe_text,
    unknown,
)
from lima2py.task import RunContext


@dataclass(frozen=True, slots=True)
class FrameTable:
    """What became of every frame on its way to one sink.

    Attributes:
        fate: by frame index, a `Fate`.
        node: rank of the node that had it, -1 if none.
        row: its row in that node's file, -1 if it has none.
        absences: the reasons that are known, by frame index; `fate` counts where they differ.
    """

    fate: NDArray[np.uint8]
    node: NDArray[np.int16]
    row: NDArray[np.int64]
    absences: Mapping[int, Absence] = field(default_factory=dict)


class Master(NamedTuple):
    """What `write_master` did.

    Attributes:
        path: of the master.
        problems: node files that are missing, damaged or do not say what the table says; their
            frames read as the fill value. They stand in the master among the errors, too.
    """

    path: str
    problems: list[str]


def write_master(
    prefix: str,
    table: FrameTable,
    node_files: Mapping[int, Sequence[str]],
    spec: FrameSpec,
    run: RunContext,
    *,
    outcome: str,
    errors: Sequence[str] = (),
) -> Master:
    """Write `{prefix}_master.h5`, in place of any that is there.

    Args:
        prefix: what the sink's files begin with.
        table: what became of each frame.
        node_files: the files each node wrote, by rank; at most one.
        spec: of the frames.
        run: the run; `task` is the sink.
        outcome: how the run ended.
        errors: what went wrong in it.

    Raises:
        StorageError: if it cannot be written.
    """
    path = f"{prefix}_master.h5"
    with telling(path, "cannot be written"):
        content = io.BytesIO()  # HDF5 does not survive a disk that is full
        with h5py.File(
            path, "w", driver="fileobj", fileobj=content, libver=("v110", "v110")
        ) as file:
            problems = _write(file, table, node_files, spec, run)
            _write_ending(file[ENTRY], table, outcome, [*errors, *problems])
            _write_files(file[ENTRY]["lima2py"], node_files)
        with content.getbuffer() as whole:
            _put_in_place(path, whole)
    return Master(path, problems)


def _put_in_place(path: str, content: memoryview) -> None:
    """Make a file that is there either whole or not at all."""
    temporary = Path(f"{path}.part")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _write(
    file: h5py.File,
    table: FrameTable,
    node_files: Mapping[int, Sequence[str]],
    spec: FrameSpec,
    run: RunContext,
) -> list[str]:
    nb_frames = len(table.fate)
    detector = lay_out(file, spec, run)
    records: dict[str, Array] = {
        "frames/index": np.arange(nb_frames, dtype=np.uint64),
        "frames/fate": table.fate,
        "frames/timestamp": np.full(nb_frames, np.nan),
        "frames/node": table.node,
        "frames/row": table.row,
        **{path: np.full(nb_frames, np.nan) for path in curves(spec)},
    }
    parts: list[virtual.Part] = []
    problems: list[str] = []
    for rank in np.unique(table.node[table.row >= 0]).tolist():
        had = np.flatnonzero((table.node == rank) & (table.row >= 0))
        paths = node_files.get(rank, ())
        if not paths:
            problems.append(f"node {rank} names no file, though it had {len(had)} frames")
            continue
        try:
            length, kept = _collect(paths[0], detector.name, had, table, records)
        except FileNotFoundError:
            problems.append(f"{paths[0]} cannot be found; {len(had)} frames lie in it")
            length, kept = int(table.row[had].max()) + 1, had
        except HDF5_ERRORS as error:
            said = " ".join(str(error).split())
            problems.append(f"{paths[0]} cannot be read: {said}; {len(had)} frames lie in it")
            continue
        if len(kept) < len(had):
            problems.append(f"{paths[0]} does not hold {len(had) - len(kept)} frames it should")
        shown = kept[table.fate[kept] == Fate.SAVED]
        if len(shown):
            place = f"{detector.name}/data"
            parts.append(virtual.Part(Path(paths[0]), place, length, shown, table.row[shown]))
    data = virtual.create(detector, "data", nb_frames, spec, parts)
    describe_data(data, spec)
    for path, values in records.items():
        dtype = FATE_TYPE if path == "frames/fate" else values.dtype
        describe_record(detector.create_dataset(path, data=values, dtype=dtype), path)
    new_absences(detector)
    add_absences(detector["absences"], absence_ranges(_absences(table)), 0)
    link(detector, spec)
    return problems


def _collect(
    path: str,
    detector: str,
    frames: NDArray[np.int64],
    table: FrameTable,
    records: dict[str, Array],
) -> tuple[int, NDArray[np.int64]]:
    """Copy the records of one node's file to where they belong.

    Args:
        path: of the file.
        detector: path of the detector's group in it.
        frames: indices of the frames that should lie in it.
        table: says in which rows.
        records: of all frames, by path below the detector's group; written to.

    Returns:
        How many rows the file has, and the frames that do lie where the table says.
    """
    with h5py.File(path, "r", locking=False) as file:
        group = file[detector]
        index, fate = group["frames/index"][:], group["frames/fate"][:]
        rows = table.row[frames]
        found = rows < len(index)
        found[found] &= index[rows[found]] == frames[found]
        found[found] &= (fate[rows[found]] == Fate.SAVED) | (
            table.fate[frames[found]] != Fate.SAVED
        )
        frames, rows = frames[found], rows[found]
        names = [f"frames/{name}" for name in group["frames"] if name not in ("index", "fate")]
        for name in [*names, *(name for name in records if name.startswith("plot/"))]:
            values = group[name][:]
            if name not in records:
                records[name] = unknown(len(table.fate), values.dtype)
            records[name][frames] = values[rows]
        return group["data"].shape[0], frames


def _absences(table: FrameTable) -> Iterator[tuple[int, Absence]]:
    """Every frame that is not saved, with the reason as far as it is known."""
    unsaid = {int(fate): Absence(fate, "") for fate in Fate}
    absent = np.flatnonzero(table.fate != Fate.SAVED)
    for index, fate in zip(absent.tolist(), table.fate[absent].tolist(), strict=True):
        said = table.absences.get(index)
        yield index, said if said is not None and said.cause == fate else unsaid[fate]


def _write_ending(
    entry: h5py.Group, table: FrameTable, outcome: str, errors: Sequence[str]
) -> None:
    entry["end_time"] = iso_time(time.time())
    group = entry["lima2py"]
    group["outcome"] = outcome
    group.create_dataset("errors", data=[safe_text(text) for text in errors], dtype=TEXT_TYPE)
    counts = new_group(group, "frames_by_fate", "NXcollection")
    fates, numbers = np.unique(table.fate, return_counts=True)
    for fate, number in zip(fates.tolist(), numbers.tolist(), strict=True):
        counts[Fate(fate).word] = number


def _write_files(group: h5py.Group, node_files: Mapping[int, Sequence[str]]) -> None:
    """Name the nodes' files, relative to the master."""
    folder = Path(group.file.filename).parent
    named = [
        (rank, safe_text(os.path.relpath(path, folder)))
        for rank, paths in sorted(node_files.items())
        for path in paths
    ]
    files = new_group(group, "files", "NXcollection")
    files.create_dataset("node", data=[rank for rank, _ in named], dtype="i2")
    files.create_dataset("name", data=[name for _, name in named], dtype=TEXT_TYPE)
