"""What recovering has in common, whatever the format: when it may be done, and what it says."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lima2py.frame import Absence, Fate
from lima2py.storage.entry import NodeEntry
from lima2py.storage.masters.master import FrameTable, Saved
from lima2py.storage.masters.rebuild import as_told, saved_in
from lima2py.storage.names import PART
from lima2py.storage.steady import is_being_written

QUIET = 10.0
"""Seconds for which the files of a run must not have changed."""
SAID = "recovered: the run did not end by itself; this was put together from what it left"
_NOTHING_KNOWN = Absence(Fate.NODE_LOST, "recover", "no file has a record of it")


@dataclass(frozen=True)
class Recovery:
    """What became of the files of one run at one prefix.

    Attributes:
        master: its path.
        run: what the user called the run, and the beginning of its id; empty if nobody knows.
        done: what was done, in words.
        problems: what is missing, in words.
        refused: why nothing was done; empty if something was.
        saved: what every sink saved, as it stands in the master.
    """

    master: Path
    run: str = ""
    done: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    refused: str = ""
    saved: tuple[Saved, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.master}, run {self.run}" if self.run else str(self.master)]
        lines += [f"  {text}" for text in self.done]
        lines += [f"  missing: {text}" for text in self.problems]
        return "\n".join([*lines, f"  left alone: {self.refused}"] if self.refused else lines)


def why_not(paths: Sequence[Path], force: bool) -> str:
    """Why a run cannot be recovered now; empty if it can."""
    folder = paths[0].parent
    try:
        for path in paths:
            if path.name.endswith(PART) and is_being_written(path):
                return (
                    f"{path.name} is still being written, or a program holds it open; end the run"
                )
        age = time.time() - max(path.stat().st_mtime for path in paths)
    except FileNotFoundError as error:  # so the list of files is out of date already
        return (
            f"{os.path.basename(error.filename)} has just got another name, or was deleted: the run"
            " goes on; end it"
        )
    if age < QUIET and not force:
        return (
            f"its files changed {max(age, 0):.0f} s ago, and a node on another host may still write"
            f" them; wait {QUIET:g} s, or give --force if you know that the run is over"
        )
    if not os.access(folder, os.W_OK):
        return (
            f"{folder} is read-only for this user or on this host, and files must be renamed and a"
            " master be written there; do it from where it can be written to"
        )
    return ""


def product_of(entries: Sequence[NodeEntry], told: FrameTable | None) -> tuple[Saved, list[str]]:
    """What one sink saved, with a fate for every frame; and what is missing.

    Args:
        entries: of the files of nodes, one at least.
        told: by the journals, if there are any.
    """
    held = saved_in(entries, whole=True)
    if told is None:
        return _closed(held), []
    saved, missing = as_told(told, held, entries)
    task = entries[0].run.task
    text = f"{task}: {missing} frames were saved in files that are not there; put these back"
    return _closed(saved), [text] if missing else []


def frames_twice(entries: Sequence[NodeEntry]) -> int:
    """How many times a frame lies in a file of nodes, and in another before."""
    frames = np.concatenate([entry.index[entry.fate == Fate.SAVED] for entry in entries])
    return len(frames) - len(np.unique(frames))


def _closed(product: Saved) -> Saved:
    """The same, with a fate for the frames that no file knows."""
    table = product.table
    unknown = table.fate == Fate.NO_RECORD
    reasons = table.reasons.copy()
    reasons.note(np.flatnonzero(unknown), _NOTHING_KNOWN)
    fate = np.where(unknown, np.uint8(Fate.NODE_LOST), table.fate)
    return replace(product, table=replace(table, fate=fate, reasons=reasons))


def counted(product: Saved) -> str:
    """How many frames met which fate, in words."""
    fates, numbers = np.unique(product.table.fate, return_counts=True)
    counts = zip(fates.tolist(), numbers.tolist(), strict=True)
    return (
        f"{product.run.task}: {', '.join(f'{number} {Fate(fate).word}' for fate, number in counts)}"
    )
