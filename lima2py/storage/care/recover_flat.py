"""Finish the flat files that dead writers left, as `recover` does with those in HDF5."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from lima2py.errors import LimaError
from lima2py.storage.care.journals import Journals
from lima2py.storage.care.recovery import SAID, Recovery, counted, product_of, why_not
from lima2py.storage.entry import NodeEntry
from lima2py.storage.failures import telling
from lima2py.storage.masters.master import Ending
from lima2py.storage.names import PART
from lima2py.storage.saving.flat import head_of, read_flat, records_of, write_flat_master


def recover_flat(
    paths: Sequence[Path], journals: Journals, *, force: bool, only: str = ""
) -> tuple[list[Recovery], int]:
    """Recover the runs of which flat files are left.

    Args:
        paths: of binary files, finished or not.
        journals: of their runs.
        force: recover also what changed in the last seconds.
        only: id of the only run to recover; empty for all.

    Returns:
        What was done, by master; and at how many nothing was to be done.
    """
    left: list[Recovery] = []
    by_master: dict[Path, list[NodeEntry]] = {}
    for path in paths:
        try:
            entry, written_to = read_flat(str(path).removesuffix(PART))
        except (OSError, ValueError, KeyError) as error:
            left.append(Recovery(path, problems=(f"{path.name} cannot be read: {error}",)))
            continue
        if only in ("", entry.run.run):
            by_master.setdefault(Path(written_to), []).append(entry)
            journals.add_at(path.parent / head_of(str(entry.path).removesuffix(PART))["journals"])
    finished = 0
    for master, entries in sorted(by_master.items()):
        if master.exists() and not any(entry.path.name.endswith(PART) for entry in entries):
            finished += 1
        else:
            left.append(_recover(master, entries, journals, force))
    return left, finished


def _recover(
    master: Path, entries: Sequence[NodeEntry], journals: Journals, force: bool
) -> Recovery:
    run = entries[0].run
    who = f'"{run.name}" ({run.run[:8]})'
    if refused := why_not([*(entry.path for entry in entries), *journals.of(run.run)], force):
        return Recovery(master, who, refused=refused)
    done: list[str] = []
    try:
        done += [_name(entry) for entry in entries if entry.path.name.endswith(PART)]
        product, problems = product_of(entries, journals.tracks(run.run).get(run.task))
        problems += write_flat_master(str(master), [product], Ending("failed", [SAID]))
    except LimaError as error:
        return Recovery(master, who, tuple(done), refused=str(error))
    return Recovery(master, who, (*done, counted(product)), tuple(problems), saved=(product,))


def _name(entry: NodeEntry) -> str:
    """Give a binary file and its JSON their final names."""
    part = str(entry.path)
    path = part.removesuffix(PART)
    for old, new in ((f"{records_of(path)}{PART}", records_of(path)), (part, path)):
        with telling(old, "cannot be given its final name"):
            if os.path.lexists(old):
                os.rename(old, new)
    return f"finished {os.path.basename(path)}, {len(entry)} frames"
