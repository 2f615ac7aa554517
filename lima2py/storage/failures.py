"""What a person is told when a file cannot be made, written or read."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from types import TracebackType

from lima2py.errors import StorageError
from lima2py.units import as_size

HDF5_ERRORS = (OSError, RuntimeError, ValueError, KeyError)
"""What h5py raises when the library or the disk refuses."""

_ADVICE = {
    errno.ENOSPC: "make room on that disk, or choose another output folder",
    errno.EDQUOT: "the quota is used up: make room, or choose another output folder",
    errno.EFBIG: "the disk or a limit (ulimit -f) allows no larger file",
    errno.EEXIST: "choose another name, or exists: overwrite, or exists: append-number",
    errno.ENOENT: "the folder is not there on this host: is the disk mounted?",
    errno.ENOTDIR: "a part of the path is a file: choose another output folder",
    errno.EACCES: "this user may not write there: change its rights or choose another folder",
    errno.EPERM: "this user may not write there: change its rights or choose another folder",
    errno.EROFS: "that disk is read-only: choose another output folder",
    errno.ESTALE: "the file server has lost the file: is the disk still mounted?",
    errno.ELOOP: "a symbolic link of the path leads to itself: choose another output folder",
    errno.ENAMETOOLONG: "choose a shorter name or output folder",
}

_NOT_ABOUT_ROOM = frozenset(_ADVICE) - {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class telling:  # noqa: N801 - used like the functions of contextlib, and quicker: once a block
    """Make a `StorageError` of whatever goes wrong with a file.

    Args:
        path: of the file.
        what: what cannot be done if it goes wrong: `cannot be written`.
    """

    __slots__ = ("_path", "_what")

    def __init__(self, path: str | Path, what: str):
        self._path = path
        self._what = what

    def __enter__(self) -> None:
        return

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, HDF5_ERRORS):
            raise failure(self._path, self._what, error) from error


def failure(path: str | Path, what: str, error: Exception) -> StorageError:
    """The error for a person: which file, why, the room left if that may matter, what to do."""
    number = errno_of(error)
    reason = os.strerror(number) if number else " ".join(str(error).split()) or repr(error)
    advice = _ADVICE.get(number, "look at that disk and at the system log of this host")
    room = "" if number in _NOT_ABOUT_ROOM else _room(path)
    return StorageError(f"{path} {what}: {reason}{room}; {advice}")


def unreadable(path: str | Path, error: Exception) -> StorageError:
    """The error for a person whose file cannot be opened or read."""
    text = " ".join(str(error).split())
    number = errno_of(error)
    if number == errno.EISDIR:
        reason = "it is a folder; give a file in it, a master for instance"
    elif number:
        reason = os.strerror(number)
    elif "signature not found" in text:
        reason = "it is not an HDF5 file"
    elif "truncated" in text or "addr overflow" in text:
        reason = "it is cut off: its writer or a copy was interrupted"
    else:
        reason = text or repr(error)
    return StorageError(f"{path} cannot be read: {reason}")


def errno_of(error: Exception) -> int:
    """The number of the system's error; HDF5 often has it in its text alone."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    found = re.search(r"errno = (\d+)", str(error))
    return int(found[1]) if found else 0


def _room(path: str | Path) -> str:
    try:
        disk = os.statvfs(path if os.path.isdir(path) else Path(path).parent)
    except OSError:
        return ""
    if disk.f_files and not disk.f_favail:
        return " (that disk holds as many files as it can: delete some)"
    return f" ({as_size(disk.f_bavail * disk.f_frsize)} free on that disk)"
