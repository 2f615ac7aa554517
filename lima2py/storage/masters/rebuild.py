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
from lima2py.storage.reasons import Reasons, longer

_GONE = Absence(Fate.NODE_LOST, "recover", "it was saved, and the file that had it is not there")


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
    reasons = Reasons(count)
    node_files: dict[int, list[str]] = {}
    for entry in entries:
        frames = entry.index.astype(np.int64)
        better = (fate[frames] == Fate.NO_RECORD) | (
            (fate[frames] != Fate.SAVED) & (entry.fate == Fate.SAVED)
        )
        frames, rows = frames[better], np.flatnonzero(better)
        fate[frames] = entry.fate[rows]
        node[frames], row[frames] = entry.run.rank, entry.first_row + rows
        reasons.add(entry.absences)
        name = str(entry.path).removesuffix(PART)
        node_files.setdefault(entry.run.rank, []).append(name)
    table = FrameTable(fate, node, row, reasons)
    return Saved(entries[0].name, run, entries[0].spec, table, node_files)


def found_again(told: Saved, held: Saved) -> Saved:
    """What was told, but what is told of no frame the files tell, as far as they go.

    Frames that are lost with a node and lie in its files are not lost.

    Args:
        told: by a ledger, the master made of it, or journals.
        held: by the files.
    """
    old, new = told.table, held.table
    count = min(len(old.fate), len(new.fate))
    before, theirs = old.fate[:count], new.fate[:count]
    found = np.flatnonzero(
        ((before == Fate.NODE_LOST) & (theirs == Fate.SAVED)) | (before == Fate.NO_RECORD)
    )
    fate, node, row = old.fate.copy(), old.node.copy(), old.row.copy()
    fate[found], node[found], row[found] = new.fate[found], new.node[found], new.row[found]
    reasons = old.reasons.copy()
    reasons.take(found, new.reasons)
    return replace(told, table=FrameTable(fate, node, row, reasons, old.attempts))


def as_told(told: FrameTable, held: Saved, entries: Sequence[NodeEntry]) -> tuple[Saved, int]:
    """What one sink saved, by the journals, and of what they do not tell by the files.

    A row that is in no file is never shown, whatever the journals say.

    Args:
        told: by the journals.
        held: by the files.
        entries: of the files.

    Returns:
        What was saved; and how many frames the journals call saved that no file holds.
    """
    count = max(len(told.fate), len(held.table.fate))
    fate = longer(told.fate, count, Fate.NO_RECORD)
    node, row = longer(told.node, count, -1), longer(told.row, count, -1)
    there = np.zeros(count, bool)
    for entry in entries:
        frames = entry.index.astype(np.int64)
        rows = entry.first_row + np.arange(len(entry))
        good = (node[frames] == entry.run.rank) & (row[frames] == rows)
        good &= (entry.fate == Fate.SAVED) | (fate[frames] != Fate.SAVED)
        there[frames[good]] = True
    row[~there] = -1
    missing = np.flatnonzero((fate == Fate.SAVED) & ~there)
    fate[missing] = Fate.NODE_LOST
    reasons = told.reasons.copy()
    reasons.grow(count)
    reasons.note(missing, _GONE)
    attempts = None if told.attempts is None else longer(told.attempts, count, 0)
    table = FrameTable(fate, node, row, reasons, attempts)
    saved = found_again(replace(held, table=table), held)
    return saved, int((saved.table.fate[missing] != Fate.SAVED).sum())
