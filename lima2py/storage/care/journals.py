"""The journals of the runs that are recovered: found, read, and removed when all is in masters."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from lima2py.errors import StorageError
from lima2py.storage.care.journal_content import JournalContent, read_journal, tracks_of
from lima2py.storage.care.recovery import Recovery
from lima2py.storage.failures import telling
from lima2py.storage.masters.master import FrameTable
from lima2py.storage.names import FLAT_MASTER, JOURNAL, MASTER, NODE_FILE, files_at, journals_at
from lima2py.storage.steady import is_being_written


class Journals:
    """The journals of the runs that are recovered, each read once.

    Attributes:
        problems: why some of them cannot be read.
    """

    def __init__(self) -> None:
        self.problems: dict[Path, str] = {}
        self._told: dict[Path, JournalContent | None] = {}
        self._tracks: dict[str, Mapping[str, FrameTable]] = {}

    def add(self, paths: Iterable[Path]) -> None:
        """Know of these, too."""
        for path in map(Path, map(os.path.normpath, paths)):
            if path not in self._told and path not in self.problems:
                try:
                    self._told[path] = read_journal(path)
                except StorageError as error:
                    self.problems[path] = str(error)

    def add_at(self, prefix: Path) -> None:
        """Know of those that lie at a prefix."""
        with suppress(StorageError):  # a folder that is gone has none
            self.add(journals_at(Path(os.path.normpath(prefix))))

    def of(self, run: str) -> list[Path]:
        """Those of a run."""
        return [path for path, told in self._told.items() if told and told.head.run == run]

    def tracks(self, run: str) -> Mapping[str, FrameTable]:
        """What became of every frame of a run on its way to each sink; empty if none tells.

        Raises:
            LimaError: if there is not enough memory for so many frames.
        """
        told = [told for told in self._told.values() if told and told.head.run == run]
        if not told:
            return {}
        if run not in self._tracks:
            self._tracks[run] = dict(zip(told[0].head.sinks, tracks_of(told)[1:], strict=True))
        return self._tracks[run]

    def clear(self, found: Sequence[Recovery]) -> list[Recovery]:
        """Remove those of which all stands in masters now; what was done, with that.

        Args:
            found: what was done.
        """
        found = [
            *found,
            *(Recovery(path, problems=(text,)) for path, text in self.problems.items()),
        ]
        done = {Path(os.path.normpath(one.master)): not (one.refused or one.problems)
                for one in found}  # fmt: skip
        for path, told in self._told.items():
            prefixes = {path.with_name(JOURNAL.sub("", path.name)): NODE_FILE}
            if told is not None:
                prefixes = {path.parent / prefix: template
                            for prefix, template in told.head.prefixes.items()}  # fmt: skip
            if all(_in_place(*item, done) for item in prefixes.items()) and _removed(path):
                who = f'"{told.head.name}" ({told.head.run[:8]})' if told else ""
                text = f"removed {path.name}, which was needed no more"
                at = [number for number, one in enumerate(found) if one.run == who]
                if at:
                    one = found[at[-1]]
                    found[at[-1]] = replace(one, done=(*one.done, text))
                else:
                    found.append(Recovery(path, who, done=(text,)))
        return found


def _in_place(prefix: Path, template: str, done: Mapping[Path, bool]) -> bool:
    """Whether what lies at a prefix needs no journal: its master is there, or no frame is."""
    prefix = Path(os.path.normpath(prefix))
    masters = [Path(f"{prefix}{suffix}") for suffix in (MASTER, FLAT_MASTER)]
    for master in masters:
        if master in done:
            return done[master]
    if any(map(os.path.exists, masters)):
        return True
    return not any(path for path in files_at(prefix, template) if not JOURNAL.search(path.name))


def _removed(path: Path) -> bool:
    """Remove a journal, unless somebody writes it."""
    with telling(path, "cannot be removed"), suppress(FileNotFoundError):
        if is_being_written(path):
            return False
        path.unlink()
    return True
