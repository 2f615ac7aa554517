"""The masters of all sinks of a run, at its end and, as a preview, while it goes on."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import chain, cycle
from pathlib import Path
from threading import Thread

import h5py

from lima2py.errors import LimaError
from lima2py.frame import Fate
from lima2py.storage.entry import read_entry
from lima2py.storage.failures import HDF5_ERRORS
from lima2py.storage.layout import entry_of
from lima2py.storage.logs import Series
from lima2py.storage.masters.master import RUNNING, Ending, FrameTable, Saved, write_master
from lima2py.storage.masters.rebuild import found_again, gather, saved_in
from lima2py.storage.names import (
    FLAT_MASTER,
    PART,
    journals_at,
    master_path,
    node_files_at,
    unfinished_at,
)
from lima2py.storage.saving.flat import SaveFlat, read_flat, write_flat_master
from lima2py.storage.saving.sinks import Hdf5Sink
from lima2py.task import RunContext, Sink

PREVIEW_EVERY = 1.0
"""Seconds between two previews of one master, at least."""
PREVIEW_SHARE = 0.05
"""Of the time, at most, that is spent on previews."""


def by_prefix(sinks: Mapping[str, Sink], paths: Mapping[str, str]) -> dict[str, list[str]]:
    """The sinks that share a master, by the path their files begin with."""
    found: dict[str, list[str]] = {}
    for name in sinks:
        found.setdefault(paths[name], []).append(name)
    return found


def write_masters(
    sinks: Mapping[str, Sink],
    context: RunContext,
    tables: Mapping[str, FrameTable],
    node_files: Mapping[int, Mapping[str, Sequence[str]]],
    ending: Ending,
) -> tuple[dict[str, str], dict[str, FrameTable], list[str]]:
    """Write the masters of a run that is over; take away their previews and the journals.

    Args:
        sinks: by name, in the order of the graph, prepared.
        context: the run; `paths` says where the files of each sink begin.
        tables: what became of every frame, by sink.
        node_files: the files that nodes say they wrote, by rank and sink.
        ending: how the run ended.

    Returns:
        By sink, the path of its master, and what that says of every frame; and what is wrong with
        masters or could not be written.
    """
    masters: dict[str, str] = {}
    shown: dict[str, FrameTable] = {}
    problems: list[str] = []
    failed = False
    for prefix, names in by_prefix(sinks, context.paths).items():
        products = []
        for name in names:
            sink = sinks[name]
            if not isinstance(sink, (Hdf5Sink, SaveFlat)):
                continue  # of somebody else, who sees to it
            found = {
                rank: all_files(prefix, sink.node_file, files.get(name, ()))
                for rank, files in node_files.items()
            }
            run = context.of_task(name, sink.saved.span)
            told = Saved(entry_of(run), run, sink.saved, tables[name], found)
            products.append(_with_found(told, flat=isinstance(sink, SaveFlat)))
        if not products:
            continue
        flat = isinstance(sinks[names[0]], SaveFlat)
        path = f"{prefix}{FLAT_MASTER}" if flat else master_path(prefix)
        write = write_flat_master if flat else write_master
        try:
            problems += write(path, products, ending)
            masters.update(dict.fromkeys(names, path))
            shown.update((product.run.task, product.table) for product in products)
            Path(f"{path}{PART}").unlink(missing_ok=True)
        except Exception as error:  # the other masters are still to be written
            failed = True
            problems.append(
                f"the master of {' and '.join(names)}: {error}; when that is mended, write it by:"
                f" lima2py recover {prefix}"
            )
    if sinks and not failed:
        for journal in journals_at(Path(next(iter(context.paths.values())))):
            with suppress(OSError):  # recover does it
                journal.unlink()
    return masters, shown, problems


def _with_found(told: Saved, *, flat: bool) -> Saved:
    """With the frames that were done when the acquisition node that knew of it was lost."""
    if Fate.NODE_LOST not in told.table.fate:
        return told
    entries = []
    for path in chain.from_iterable(told.node_files.values()):
        with suppress(*HDF5_ERRORS):  # whoever writes the master says what is wrong with a file
            entries.append(read_flat(path)[0] if flat else read_entry(path, told.entry))
    return found_again(told, saved_in(entries, whole=True)) if entries else told


def all_files(prefix: str, template: str, told: Sequence[str]) -> list[str]:
    """All files of a node: those it told of, and those it began after that, before it was lost.

    Args:
        prefix: what the files begin with.
        template: the sink's `node_file`.
        told: the first of them at least.
    """
    if not told:
        return []
    with suppress(LimaError):  # the folder is gone: what was told is told
        names = node_files_at(Path(prefix), template)
        known = {os.fspath(name.path).removesuffix(PART): name for name in names}
        first = known.get(told[0])
        if first is not None:
            mine = [path for path, name in known.items()
                    if (name.rank, name.node) == (first.rank, first.node)
                    and Path(path).suffix == Path(told[0]).suffix]  # fmt: skip
            return [*told, *sorted(set(mine) - set(told), key=lambda path: known[path].number)]
    return list(told)


def left_behind(sinks: Mapping[str, Sink], paths: Mapping[str, str]) -> str:
    """What to say of files that lost nodes did not finish, as far as they can be seen from here.

    Args:
        sinks: by name, in the order of the graph.
        paths: where the files of each begin.
    """
    found: list[Path] = []
    for prefix, (name, *_) in by_prefix(sinks, paths).items():
        if isinstance(sink := sinks[name], (Hdf5Sink, SaveFlat)):
            with suppress(LimaError):  # its folder is gone
                found += unfinished_at(Path(prefix), sink.node_file)
    if not found:
        return ""
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return (
        f"lost nodes left {', '.join(path.name for path in found[:3])}{more}; the masters show what"
        f" is safe there: lima2py recover {found[0].parent} finishes such files"
    )


class Previews:
    """What the masters would be by now, written again and again while a run goes on.

    A preview is called like the master, with `.part` behind it. It is made from the files of the
    nodes, as far as they can be seen from here; in a thread of its own, since that of a long run
    takes seconds, and frames do not wait.

    Args:
        sinks: by name, in the order of the graph.
        paths: where the files of each begin.
        logs: gives what was logged so far.
    """

    def __init__(
        self,
        sinks: Mapping[str, Sink],
        paths: Mapping[str, str],
        logs: Callable[[], Mapping[str, Series]],
    ):
        self._logs = logs
        self._templates = {
            prefix: sink.node_file
            for prefix, (name, *_) in by_prefix(sinks, paths).items()
            if isinstance(sink := sinks[name], Hdf5Sink)
        }
        self._turns = cycle(self._templates.items())
        self._every = PREVIEW_EVERY / max(1, len(self._templates))
        self._next = time.monotonic() + PREVIEW_EVERY
        self._writer: Thread | None = None

    def refresh(self) -> None:
        """Have one of them written, if it is time: they take turns; returns at once."""
        if self._writer is not None and self._writer.is_alive():
            return
        if self._templates and time.monotonic() >= self._next:
            self._writer = Thread(target=self._write, name="preview", daemon=True)
            self._writer.start()

    def finish(self) -> None:
        """Wait for the one being written; there will be no more."""
        self._templates = {}
        if self._writer is not None:
            self._writer.join()

    def _write(self) -> None:
        began = time.monotonic()
        try:
            # A file that is half updated just now will be whole the next time.
            with suppress(LimaError, *HDF5_ERRORS):
                write_preview(*next(self._turns), self._logs())
        finally:
            cost = time.monotonic() - began
            self._next = began + max(self._every, cost / PREVIEW_SHARE)


def write_preview(prefix: str, template: str, logs: Mapping[str, Series]) -> None:
    """Write what the master of a run that goes on would be by now.

    Raises:
        StorageError, OSError, RuntimeError, ValueError, KeyError: if a file cannot be read now.
    """
    names = node_files_at(Path(prefix), template)
    files = [name.path for name in names if h5py.is_hdf5(name.path)]  # others are just begun
    if products := gather(files, whole=False):
        write_master(f"{master_path(prefix)}{PART}", products, Ending(RUNNING, logs=logs))
