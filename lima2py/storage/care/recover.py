"""Finish what dead writers left: files of nodes get their names, masters are built from them.

The bytes of a node's file are never changed, and none that holds a frame is removed. A run that
somebody still writes is left alone: its files carry a lock (see `steady`), and where locks do not
reach, from one host to another, files that changed lately count as being written too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from lima2py.errors import LimaError, StorageError
from lima2py.storage.care.glance import Glance, Looker
from lima2py.storage.care.journals import Journals
from lima2py.storage.care.recover_flat import recover_flat
from lima2py.storage.care.recovery import (
    SAID,
    Recovery,
    counted,
    frames_twice,
    product_of,
    why_not,
)
from lima2py.storage.care.reread import reread
from lima2py.storage.care.search import (
    DEPTH,
    beginning_with,
    candidates,
    is_flat,
    with_others_of,
)
from lima2py.storage.entry import NodeEntry
from lima2py.storage.failures import HDF5_ERRORS, telling
from lima2py.storage.logs import Series
from lima2py.storage.masters.master import Ending, Saved, write_master
from lima2py.storage.masters.rebuild import entries_of, found_again
from lima2py.storage.names import JOURNAL, MASTER, PART


@dataclass
class _Files:
    """What lies at one prefix, of one run; and the journals of that run."""

    master: Path
    run: str
    name: str
    journals: Sequence[Path] = ()
    nodes: dict[Path, Glance] = field(default_factory=dict)
    final: Glance | None = None
    preview: bool = False

    @property
    def who(self) -> str:
        return f'"{self.name}" ({self.run[:8]})'

    @property
    def parts(self) -> list[Path]:
        return [path for path in self.nodes if path.name.endswith(PART)]

    @property
    def part_of_master(self) -> Path:
        return self.master.with_name(f"{self.master.name}{PART}")

    @property
    def all(self) -> list[Path]:
        masters = [self.master] * (self.final is not None) + [self.part_of_master] * self.preview
        return [*self.nodes, *masters, *self.journals]

    @property
    def gone(self) -> list[str]:
        """The files that its master shows, and that are not there."""
        names = self.final.names if self.final is not None else []
        return [name for name in names if not (self.master.parent / name).exists()]

    @property
    def finished(self) -> bool:
        """Whether nothing is to be done."""
        if self.final is None or self.parts or self.preview:
            return False
        if self.final.recovered and self.journals:  # something was missing, and may be back
            return False
        folder = self.master.parent
        return not any(
            name.endswith(PART) and os.path.exists(folder / name.removesuffix(PART))
            for name in self.gone
        )


def recover(where: Path, *, force: bool = False) -> tuple[list[Recovery], int]:
    """Recover the runs that were left unfinished.

    Args:
        where: a folder, and those below it; or what the files of one sink begin with, or one of
            them, which stands for all of its run at that prefix.
        force: recover also what changed in the last seconds.

    Returns:
        What was done, for every run and prefix where anything was to be done; and at how many
        prefixes nothing was.

    Raises:
        StorageError: if there is no file of a run.
    """
    with Looker() as looker:
        paths = list(candidates(where))
        if not os.path.isdir(where):
            paths = with_others_of(paths, looker)
        return _recover_all(paths, looker, force=force, where=str(where))


def recover_run(prefixes: Sequence[Path], run: str) -> list[Recovery]:
    """Recover a run of which nobody writes any more, and no other.

    Args:
        prefixes: what the files of its sinks begin with.
        run: its id.

    Returns:
        What stands at each prefix now; empty if no file of it is there.

    Raises:
        StorageError: if a file or a folder cannot be read.
    """
    paths = [
        path
        for prefix in prefixes
        if os.path.isdir(prefix.parent)
        for path in beginning_with(prefix.parent, prefix.name)
    ]
    with Looker() as looker, suppress(_NothingThere):
        found, _ = _recover_all(paths, looker, force=True, where=f"run {run}", only=run)
        known = {one.master for one in found}
        for master in (path for path in paths if path.name.endswith(MASTER) and path not in known):
            told, _ = reread(master)
            if told[0].run.run == run:
                found.append(Recovery(master, saved=tuple(told)))
        return found
    return []


class _NothingThere(StorageError):
    """No file of a run is there."""


def _recover_all(
    paths: Sequence[Path], looker: Looker, *, force: bool, where: str, only: str = ""
) -> tuple[list[Recovery], int]:
    """Recover the runs that files belong to; of all, or only of one."""
    journals = Journals()
    journals.add(path for path in paths if JOURNAL.search(path.name))
    flat = [path for path in paths if is_flat(path)]
    found, finished = recover_flat(flat, journals, force=force, only=only)
    runs, damaged = _runs(paths, looker, only)
    if not (runs or damaged or found or finished or journals.problems):
        raise _NothingThere(
            f"{where}: no file of a run of lima2py is there, nor up to {DEPTH} folders below; give"
            " the folder the run was saved to"
        )
    for files in runs:
        for path, seen in files.nodes.items():
            journals.add_at(path.parent / seen.journals)
        files.journals = journals.of(files.run)
        stem = files.master.name.removesuffix(MASTER)
        mine = {
            path: seen
            for path, seen in damaged.items()
            if path.parent == files.master.parent and path.name.startswith(f"{stem}_")
        }
        if files.finished and not any(_is_left(*item) for item in mine.items()):
            if files.gone:
                problems = tuple(f"{name} is not there; put it back" for name in files.gone)
                found.append(Recovery(files.master, files.who, problems=problems))
            else:
                finished += 1
            continue
        found.append(_recover(files, mine, looker, journals, force))
        for path in mine:
            del damaged[path]
    found += [
        Recovery(path, problems=(_left(path, seen),))
        for path, seen in damaged.items()
        if _is_left(path, seen) and not only
    ]
    return journals.clear(found), finished


def _is_left(path: Path, seen: Glance) -> bool:
    """Whether a file that cannot be read is one of an unfinished run, and may have held frames."""
    return path.name.endswith(PART) and not seen.never_safe


def _left(path: Path, seen: Glance) -> str:
    return f"{path.name} {seen.problem}; it is left as it is"


def _runs(
    paths: Sequence[Path], looker: Looker, only: str
) -> tuple[list[_Files], dict[Path, Glance]]:
    """The runs that HDF5 files belong to; and the files that cannot be read."""
    runs: dict[tuple[Path, str], _Files] = {}
    damaged: dict[Path, Glance] = {}
    for path in paths:
        if is_flat(path) or JOURNAL.search(path.name):
            continue
        seen = looker.look(path, records=path.name.endswith(PART))
        own = path.with_name(path.name.removesuffix(PART))
        is_master = own.name.endswith(MASTER)
        if seen.problem:
            damaged[path] = seen
        elif seen.ours and only in ("", seen.run) and (is_master or seen.master):
            # and not a master by another name
            master = own if is_master else path.with_name(seen.master)
            files = runs.setdefault((master, seen.run), _Files(master, seen.run, seen.name))
            if not is_master:
                files.nodes[path] = seen
            elif path == own:
                files.final = seen
            else:
                files.preview = True
    return list(runs.values()), damaged


def _recover(
    files: _Files,
    damaged: Mapping[Path, Glance],
    looker: Looker,
    journals: Journals,
    force: bool,
) -> Recovery:
    said = Recovery(files.master, files.who)
    try:
        if refused := why_not([*files.all, *damaged], force):
            return replace(said, refused=refused)
        done, problems, saved = _finish(files, looker, journals)
    except LimaError as error:
        return replace(said, refused=str(error))
    for path, seen in damaged.items():
        if path.name.endswith(PART) and seen.never_safe:
            done.append(f"left {path.name}: its writer died before any frame was safe in it")
        else:
            problems.append(_left(path, seen))
    return replace(said, done=tuple(done), problems=tuple(problems), saved=tuple(saved))


def _finish(
    files: _Files, looker: Looker, journals: Journals
) -> tuple[list[str], list[str], list[Saved]]:
    """Name the files, and write the master.

    Returns:
        What was done, what is missing, and what the master says.
    """
    done, problems = _name(files)
    nodes: list[Path] = []
    for path in files.nodes:
        seen = looker.look(path, records=True)
        if seen.problem:
            problems.append(f"{path.name} {seen.problem}")
        else:
            nodes.append(path)
    held = []
    tracks = journals.tracks(files.run)
    for entries in entries_of(nodes).values():
        entries.sort(key=lambda entry: (entry.run.rank, entry.first_row))
        problems += _holes(entries)
        product, missing = product_of(entries, tracks.get(entries[0].run.task))
        held.append(product)
        problems += missing
        if twice := frames_twice(entries):
            done.append(f"{product.run.task}: {twice} frames lie in two files, and count once")
    products, ending = _told(files, held)
    if held:
        problems += write_master(str(files.master), products, ending)
        done += [counted(product) for product in products]
    elif files.final is None and (names := _shown(files, looker)):
        problems.append(f"none of the files with the frames is there: {', '.join(names)}")
        return done, problems, []
    if files.preview:
        with telling(files.part_of_master, "cannot be removed"):
            files.part_of_master.unlink(missing_ok=True)
        if not held:
            done.append(f"removed {files.part_of_master.name}, which showed no frame")
    return done, problems, products


def _name(files: _Files) -> tuple[list[str], list[str]]:
    """Give the files of nodes their final names; those without a frame are removed."""
    done: list[str] = []
    problems: list[str] = []
    for part in files.parts:
        path, seen = part.with_name(part.name.removesuffix(PART)), files.nodes.pop(part)
        with telling(part, "cannot be given its final name"):
            if not seen.frames:
                part.unlink()
                done.append(f"removed {part.name}, which held no frame")
            elif os.path.lexists(path):
                files.nodes[part] = seen
                problems.append(f"{part.name} keeps its name, since {path.name} exists already")
            else:
                part.rename(path)
                files.nodes[path] = seen
                done.append(f"finished {path.name}, {seen.frames} frames")
    return done, problems


def _told(files: _Files, held: list[Saved]) -> tuple[list[Saved], Ending]:
    """What the master shall say: what it says already, and what the files hold besides."""
    if files.final is None:
        ended = max((path.stat().st_mtime for path in files.nodes), default=0.0)
        logs = _logged(files)
        return held, Ending("failed", [SAID], logs, ended=ended, recovered=True)
    told, ending = reread(files.master)
    if files.final.recovered and files.journals:
        return held, ending
    by_entry = {product.entry: product for product in held}
    products = [
        _merged(product, by_entry[product.entry]) if product.entry in by_entry else product
        for product in told
    ]
    return products, ending._replace(recovered=True)


def _logged(files: _Files) -> Mapping[str, Series]:
    """What was logged until the last preview."""
    if files.preview:
        with suppress(LimaError, *HDF5_ERRORS):  # it was taken, but never became a preview
            return reread(files.part_of_master)[1].logs
    return {}


def _merged(told: Saved, held: Saved) -> Saved:
    """What the master says, with the frames and files found since."""
    return replace(found_again(told, held), node_files={**told.node_files, **held.node_files})


def _holes(entries: Sequence[NodeEntry]) -> Iterator[str]:
    """Rows that a node wrote, to judge by its later files, and that are in no file."""
    due: dict[int, int] = {}
    for entry in entries:
        rank = entry.run.rank
        if entry.first_row > due.get(rank, 0):
            yield (
                f"{entry.run.task}: rows {due.get(rank, 0)} to {entry.first_row - 1} of node"
                f" {entry.run.node}, which lay before {entry.path.name}"
            )
        due[rank] = entry.first_row + len(entry)


def _shown(files: _Files, looker: Looker) -> list[str]:
    """The files of nodes that the preview shows."""
    return looker.look(files.part_of_master, records=False).names if files.preview else []
