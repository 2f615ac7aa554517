"""What became of every frame, as far as the files of the nodes tell, without any ledger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from lima2py.errors import StorageError
from lima2py.frame import Absence, Fate
from lima2py.storage.entry import NodeEntry, alone, entry_names, read_entry
from lima2py.storage.masters.master import FrameTable, Saved
from lima2py.storage.names import PART


def gather(files: Sequence[Path], *, whole: bool) -> list[Saved]:
    """What each sink of a run saved, by the files that nodes wrote at one prefix.

    Args:
        files: see `entries_of`.
        whole: see `saved_in`.

    Raises:
        StorageError, OSError, RuntimeError, ValueError, KeyError: see `entries_of`.
    """
    return [saved_in(entries, whole=whole) for entries in entries_of(files).values()]


def entries_of(files: Sequence[Path]) -> dict[str, list[NodeEntry]]:
    """What the files that nodes wrote at one prefix say, by entry, in the order of the graph.

    Args:
        files: of all nodes of one run.

    Raises:
        StorageError: if they belong to several runs.
        OSError, RuntimeError, ValueError, KeyError: what h5py raises when one cannot be read.
    """
    found: dict[str, list[NodeEntry]] = {}
    for path in files:
        if not path.exists():  # it has been finished meanwhile
            path = path.with_name(path.name.removesuffix(PART))
        with alone(path) as file:
            names = entry_names(file)
        for name in names:
            found.setdefault(name, []).append(read_entry(path, name))
    runs = {entry.run.run for entries in found.values() for entry in entries}
    if len(runs) > 1:
        raise StorageError(
            f"{files[0].parent}: files of {len(runs)} runs have one name, from {files[0].name} on"
        )
    return dict(sorted(found.items()))


def saved_in(entries: Sequence[NodeEntry], *, whole: bool) -> Saved:
    """What one sink saved.

    A frame that several files have data of is taken from the first of them.

    Args:
        entries: of all files, at least one; those without any frame count for nothing.
        whole: whether there is a line for all frames that were asked for, not only to the last that
            a file has a record of.
    """
    ends = [int(entry.index.max()) + 1 for entry in entries if len(entry)]
    run = entries[0].run
    count = max([run.nb_frames if whole else 0, *ends], default=0)
    fate = np.zeros(count, np.uint8)
    node, row = np.full(count, -1, np.int16), np.full(count, -1, np.int64)
    absences: dict[int, Absence] = {}
    node_files: dict[int, list[str]] = {}
    for entry in entries:
        frames = entry.index.astype(np.int64)
        better = (fate[frames] == Fate.NO_RECORD) | (
            (fate[frames] != Fate.SAVED) & (entry.fate == Fate.SAVED)
        )
        frames, rows = frames[better], np.flatnonzero(better)
        fate[frames] = entry.fate[rows]
        node[frames], row[frames] = entry.run.rank, entry.first_row + rows
        for frame, reason in entry.absences.items():
            absences.setdefault(frame, reason)
        name = str(entry.path).removesuffix(PART)
        node_files.setdefault(entry.run.rank, []).append(name)
    table = FrameTable(fate, node, row, absences)
    return Saved(entries[0].name, run, entries[0].spec, table, node_files)


def found_again(told: Saved, held: Saved) -> Saved:
    """What was told, but frames that are lost with a node and lie in its files are not lost.

    Args:
        told: by a ledger, or the master made of it.
        held: by the files.
    """
    old, new = told.table, held.table
    count = min(len(old.fate), len(new.fate))
    found = np.flatnonzero((old.fate[:count] == Fate.NODE_LOST) & (new.fate[:count] == Fate.SAVED))
    fate, node, row = old.fate.copy(), old.node.copy(), old.row.copy()
    fate[found], node[found], row[found] = new.fate[found], new.node[found], new.row[found]
    return replace(told, table=replace(old, fate=fate, node=node, row=row))
