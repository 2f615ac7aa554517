"""Look at files that a dead writer may have left, in a process of its own: a torn one can hang it.

Run as a program it reads lines of JSON, `[path, whether to read its records]`, and answers each
with a `Glance`.
"""

from __future__ import annotations

import select
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import h5py
import msgspec

from lima2py.storage.entry import entry_names, read_entry, text_of
from lima2py.storage.failures import HDF5_ERRORS, unreadable
from lima2py.storage.layout import CREATOR

PATIENCE = 30.0
"""Seconds a file may take."""
COMMAND = [sys.executable, "-m", "lima2py.storage.care.glance"]


class Glance(msgspec.Struct, frozen=True):
    """What a file is.

    Attributes:
        ours: whether lima2py wrote it; the rest is empty if not.
        run: id of its run.
        name: of the run, as the user called it.
        master: the name of the run's master; empty if it is one.
        journals: what the journals of its run begin with, relative to it; empty if it is a master.
        recovered: of a master: whether it was put together from what dead writers left.
        frames: of the file of a node, if its records were read: how many rows it has, of the
            entry with the most.
        names: of a master: the files it shows frames of, relative to it.
        problem: why it cannot be read; empty if it can.
        never_safe: of one that cannot be read: whether its writer died before the first commit, so
            that no frame was ever safe in it.
    """

    ours: bool = False
    run: str = ""
    name: str = ""
    master: str = ""
    journals: str = ""
    recovered: bool = False
    frames: int = 0
    names: list[str] = []
    problem: str = ""
    never_safe: bool = False


class Looker:
    """Looks at files in another process, which it starts again when a file brings it down."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def look(self, path: Path, *, records: bool) -> Glance:
        """What a file is; never raises because of the file.

        Args:
            path: of the file.
            records: whether all its records shall be read.
        """
        process = self._process = self._process or _started()
        assert process.stdin is not None  # noqa: S101 - for the type checker
        assert process.stdout is not None  # noqa: S101 - for the type checker
        process.stdin.write(msgspec.json.encode([str(path), records]) + b"\n")
        ready, _, _ = select.select([process.stdout], [], [], PATIENCE)
        line = process.stdout.readline() if ready else b""
        if line:
            return msgspec.json.decode(line, type=Glance)
        self._end()
        how = "brings down" if ready else f"keeps, for {PATIENCE:g} s,"
        return Glance(problem=f"{how} the process that reads it")

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def _started() -> subprocess.Popen[bytes]:
    return subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)


def glance(path: Path, *, records: bool) -> Glance:
    """See `Looker.look`."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            if not str(file.attrs.get("creator", "")).startswith(CREATOR):
                return Glance()
            entries = entry_names(file)
            if not entries:  # a master-to-be
                run, name = str(file.attrs.get("run", "")), str(file.attrs.get("run_name", ""))
                return Glance(ours=True, run=run, name=name)
            entry = file[entries[0]]
            about = entry["lima2py"]
            known = Glance(
                ours=True,
                run=text_of(entry["entry_identifier"]),
                name=text_of(entry["title"]),
                master=str(about.attrs.get("master", "")),
                journals=str(about.attrs.get("journals", "")),
                recovered=bool(about.attrs.get("recovered", False)),
                names=sorted(
                    {name for entry in entries for name in _names(file[entry]["lima2py"])}
                ),
            )
        if not records or not known.master:  # previews and masters have none of their own
            return known
        frames = max(len(read_entry(path, entry)) for entry in entries)
        return msgspec.structs.replace(known, frames=frames)
    except HDF5_ERRORS as error:
        problem = str(unreadable(path, error)).removeprefix(f"{path} ")
        return Glance(problem=problem, never_safe=_is_blank(path))


def _names(about: h5py.Group) -> list[str]:
    return list(about["files/name"].asstr()[:]) if "files" in about else []


def _is_blank(path: Path) -> bool:
    """Whether a file has no superblock: the first commit writes it, last of all."""
    with suppress(OSError), path.open("rb") as file:
        return not any(file.read(8))
    return False


def main() -> None:
    """Answer until there are no more questions."""
    for line in sys.stdin.buffer:
        path, records = msgspec.json.decode(line, type=tuple[str, bool])
        sys.stdout.buffer.write(msgspec.json.encode(glance(Path(path), records=records)) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
