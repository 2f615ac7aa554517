"""Find the files that may be of a run, by their names, and those that share a master with them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from lima2py.storage.care.glance import Looker
from lima2py.storage.names import FLAT_MASTER, JOURNAL, MASTER, PART
from lima2py.storage.saving.flat import read_flat

DEPTH = 5
"""How many folders below the given one are looked into."""
_NODE_FILE = re.compile(rf".*_\d{{5,}}(_.*)?\.(h5|raw)({re.escape(PART)})?", re.DOTALL)


def candidates(where: Path) -> Iterator[Path]:
    """Files that may be of a run, by their names."""
    if os.path.isdir(where):
        depth = len(where.parts) + DEPTH
        for folder, below, names in os.walk(where):
            inner = Path(folder)
            below[:] = sorted(name for name in below if len(inner.parts) < depth)
            yield from _looking_right(inner, names)
    elif os.path.isdir(where.parent):
        ending = rf"({JOURNAL.pattern}|({re.escape(MASTER)})?({re.escape(PART)})?\Z)"
        yield from beginning_with(where.parent, re.sub(ending, "", where.name))


def with_others_of(paths: Sequence[Path], looker: Looker) -> list[Path]:
    """Files, and all that share a master with one of them: it would be written without these."""
    found = list(paths)
    masters: set[Path] = set()
    for path in found:  # which grows meanwhile
        master = _master_of(path, looker)
        if master is not None and master not in masters:
            masters.add(master)
            stem = master.name.removesuffix(MASTER).removesuffix(FLAT_MASTER)
            known = set(found)
            found += [one for one in beginning_with(master.parent, stem) if one not in known]
    return found


def _master_of(path: Path, looker: Looker) -> Path | None:
    """The master a file belongs to, if it can be read."""
    own = path.with_name(path.name.removesuffix(PART))
    if own.name.endswith(MASTER):
        return own
    if is_flat(path):
        with suppress(OSError, ValueError, KeyError):  # recover_flat says why
            return Path(read_flat(str(own))[1])
        return None
    if JOURNAL.search(path.name):
        return None
    name = looker.look(path, records=False).master
    return path.with_name(name) if name else None


def is_flat(path: Path) -> bool:
    """Whether it is a binary file of `save_flat`, by its name."""
    return path.name.removesuffix(PART).endswith(".raw")


def beginning_with(folder: Path, stem: str) -> Iterator[Path]:
    """Files of a folder that may be of a run, and whose names begin so."""
    yield from _looking_right(
        folder, [name for name in os.listdir(folder) if name.startswith(stem)]
    )


def _looking_right(folder: Path, names: Sequence[str]) -> Iterator[Path]:
    for name in sorted(names):
        if (
            _NODE_FILE.fullmatch(name)
            or name.removesuffix(PART).endswith(MASTER)
            or JOURNAL.search(name)
        ):
            if not (folder / name).is_symlink():
                yield folder / name
