"""What HDF5 takes for its disk while it writes a file: one that never fails, and loses nothing.

HDF5 does not survive a disk that is full: what is written again through the same handles can be
lost without a word, and closing them can bring down the process. So it never hears of it: what
the disk does not take is kept here and tried again by `commit`, which says what is wrong.

New bytes go to the disk at once, past its end. What changes bytes that were there at the last
`commit` waits for the next one, and is written when all new bytes are safe, in the order of the
file, the superblock first: if the process is killed in between, what is there still opens.

A file server that has come back may know the file, but no longer what it was opened as; then it is
opened again by its path.

While it is open it carries a shared lock (flock): readers are not disturbed, and whoever wants to
recover or replace it can see that it is still being written.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import groupby
from typing import TypeVar

from lima2py.storage.patience import Patience

T = TypeVar("T")
PAGE = 4096
_FORGOTTEN = frozenset({errno.ESTALE, errno.EIO, errno.ENODEV, errno.ENOTCONN})
"""What is heard of a file that the server, or a disk mounted again, must be asked for anew."""


class LockedFile:
    """A new file on the disk, locked; asked for again by its path where the disk has forgotten it.

    Attributes:
        path: of the file.

    Raises:
        OSError: if it exists or cannot be made; from every method, if the disk refuses.
    """

    def __init__(self, path: str):
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        lock(self._fd)
        self._number = os.fstat(self._fd).st_ino
        self._end = 0

    def put(self, at: int, data: bytes | memoryview) -> None:
        """Write bytes; what is there already is written over."""
        view = memoryview(data)
        while view:
            done = self._ask(partial(self._write, at, view))
            at, view = at + done, view[done:]
        self._end = max(self._end, at)

    def get(self, at: int, length: int) -> bytes:
        """Bytes of the file; zeros where there are none."""
        data = self._ask(lambda: os.pread(self._fd, length, at))
        return data if len(data) == length else data.ljust(length, b"\0")

    def resize(self, size: int) -> None:
        """Cut it, or fill it up with zeros."""
        if self._ask(lambda: os.fstat(self._fd)).st_size != size:
            self._ask(lambda: os.ftruncate(self._fd, size))
            self._end = size

    def close(self) -> None:
        """Let go of it; may be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _write(self, at: int, data: memoryview) -> int:
        return os.pwrite(self._fd, data, at)

    def _ask(self, what: Callable[[], T]) -> T:
        try:
            return what()
        except OSError as error:
            if error.errno not in _FORGOTTEN or not self._found_again():
                raise
        return what()

    def _found_again(self) -> bool:
        """Open it by its path, if all that was written is there."""
        with suppress(OSError):
            fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
            about = os.fstat(fd)
            if about.st_ino == self._number and about.st_size >= self._end:
                lock(fd)
                old, self._fd = self._fd, fd
                with suppress(OSError):
                    os.close(old)
                return True
            os.close(fd)
        return False


class SteadyFile:
    """A new file, to be given to `h5py.File`.

    Args:
        path: of the file.
        patience: with what the disk refuses to `catch_up`, to `commit`, and to read.

    Attributes:
        size: of the file as HDF5 sees it, in bytes.

    Raises:
        OSError: if it exists or cannot be made.
    """

    def __init__(self, path: str, patience: Patience | None = None):
        self._file = LockedFile(path)
        self._patience = patience or Patience()
        self._at = 0
        self.size = 0
        self._solid = PAGE
        """Bytes that must not change but by a commit; at first only the page of the superblock, so
        that a file without one was never committed."""
        self._pages: dict[int, bytearray] = {}
        """Changed pages of what is solid, by number; the last may reach beyond it."""
        self._backlog: list[tuple[int, bytes]] = []
        """New bytes that the disk did not take."""

    def catch_up(self) -> None:
        """Bring to the disk the new bytes that it has refused.

        Raises:
            OSError: if it refuses again.
        """
        if self._backlog:
            self._patience(self._catch_up)

    def commit(self) -> None:
        """Bring to the disk all that waits; right after a flush of HDF5.

        Raises:
            OSError: if it does not take it; all of it still waits.
        """
        self._patience(self._commit)

    def _catch_up(self) -> None:
        for at, data in self._backlog:
            self._file.put(at, data)
        self._backlog.clear()

    def _commit(self) -> None:
        self._catch_up()
        self._file.resize(self.size)
        solid = min(self._solid, self.size)
        for _, run in groupby(enumerate(sorted(self._pages)), lambda pair: pair[1] - pair[0]):
            numbers = [number for _, number in run]
            data = b"".join(self._pages[number] for number in numbers)
            at = numbers[0] * PAGE
            self._file.put(at, data[: solid - at])
        self._pages.clear()
        self._solid = self.size

    def close(self) -> None:
        """Let go of the file, whatever still waits; may be called twice."""
        self._file.close()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Called by HDF5."""
        if whence != os.SEEK_SET:
            offset += self._at if whence == os.SEEK_CUR else self.size
        self._at = offset
        return offset

    def tell(self) -> int:
        """Called by HDF5."""
        return self._at

    def truncate(self, size: int) -> int:
        """Called by HDF5."""
        self.size = size
        return size

    def flush(self) -> None:
        """Called by HDF5; `commit` does the work."""

    def write(self, data: memoryview) -> int:
        """Called by HDF5."""
        length, at = len(data), self._at
        self._at = end = at + length
        self.size = max(self.size, end)
        inside = max(0, min(end, self._solid) - at)
        if inside:
            self._change(at, data[:inside])
        if inside < length:
            self._add(at + inside, data[inside:])
        return length

    def readinto(self, buffer: memoryview) -> int:
        """Called by HDF5."""
        at, end = self._at, min(self._at + len(buffer), self.size)
        if end <= at:
            return 0
        buffer[: end - at] = self._get(at, end - at)
        for start, data in self._backlog:
            _lay(buffer[: end - at], at, start, data)
        for number in range(at // PAGE, -(-end // PAGE)):
            if number in self._pages:
                page = self._pages[number][: self._solid - number * PAGE]
                _lay(buffer[: end - at], at, number * PAGE, page)
        self._at = end
        return end - at

    def _change(self, at: int, data: memoryview) -> None:
        """Bytes in place of others that must stand until the next commit."""
        done = 0
        while done < len(data):
            number, start = divmod(at + done, PAGE)
            part = data[done : done + PAGE - start]
            if number not in self._pages:
                self._pages[number] = bytearray(
                    PAGE if len(part) == PAGE else self._get(number * PAGE, PAGE)
                )
            self._pages[number][start : start + len(part)] = part
            done += len(part)

    def _add(self, at: int, data: memoryview) -> None:
        """Bytes where nothing is yet that anybody refers to."""
        if not self._backlog:
            try:
                self._file.put(at, data)
                return
            except OSError:
                pass  # commit tries again, and tells
        self._backlog.append((at, bytes(data)))

    def _get(self, at: int, length: int) -> bytes:
        """Bytes on the disk; zeros where there are none."""
        return self._patience(partial(self._file.get, at, length))


def _lay(buffer: memoryview, at: int, start: int, data: bytes | bytearray) -> None:
    """Copy what of `data`, at `start` in the file, lies within `buffer`, at `at` in the file."""
    first, last = max(at, start), min(at + len(buffer), start + len(data))
    if first < last:
        buffer[first - at : last - at] = data[first - start : last - start]


def lock(descriptor: int) -> None:
    """Show that a file is being written, until it is closed."""
    with suppress(OSError):  # a file system without locks
        fcntl.flock(descriptor, fcntl.LOCK_SH)  # who looks whether it is locked is soon done


def is_being_written(path: str | os.PathLike[str]) -> bool:
    """Whether a living process writes a file (or another program has locked it)."""
    flags = os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        fd = os.open(path, os.O_RDWR | flags)  # NFS locks only what may be written
    except OSError:
        fd = os.open(path, os.O_RDONLY | flags)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks: nobody can tell
        return False
    finally:
        os.close(fd)
    return False
