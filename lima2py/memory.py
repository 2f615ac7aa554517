"""Memory: how a node takes it, and how others on the same host find it.

Shared memory is anonymous (memfd): it has no name that could leak or be destroyed by a stranger,
and goes back to the system when the last process that holds it ends, however it ends. Another
process of the same user on the same host opens it through `/proc/<pid>/fd`. It is committed before
it is used, so a full host is an error here and never a SIGBUS later.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
from abc import ABC, abstractmethod
from functools import cache
from pathlib import Path

import msgspec
import numpy as np
import psutil

from lima2py.errors import LimaError
from lima2py.memory_settings import MemorySettings
from lima2py.units import as_size

PAGE = mmap.PAGESIZE
_POPULATE_WRITE = 23
"""MADV_POPULATE_WRITE of linux/mman.h, from Linux 5.14 on."""
_PUNCH_HOLE = 1 | 2
"""FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE of linux/falloc.h."""
_NO_RESERVE = 0x40 if platform.machine().startswith("ppc") else 0x4000
"""MAP_NORESERVE of linux/mman.h, which Python's `mmap` has from 3.12 on only."""
_TRANSPARENT = Path("/sys/kernel/mm/transparent_hugepage")


class Buffer:
    """A piece of memory, of which as much is there as was committed.

    Attributes:
        bytes: the memory, as an array of uint8.
        handle: how another process on this host finds it; None for private memory.
        page: what is committed and released is a multiple of this, in bytes.
        locked: whether what is committed is kept in physical memory.
    """

    def __init__(
        self, region: mmap.mmap, handle: Handle | None = None, fd: int = -1, page: int = PAGE
    ):
        self.bytes = np.frombuffer(region, np.uint8)
        self.handle = handle
        self.page = page
        self.locked = False
        self._fd = fd

    def commit(self, first: int, nbytes: int) -> None:
        """Take the memory from `first` on, so that there is no error, and no delay, later.

        Raises:
            LimaError: if there is not enough.
        """
        check_available(nbytes)
        try:
            if self._fd >= 0:
                os.posix_fallocate(self._fd, first, nbytes)
        except OSError as error:
            if self.page > PAGE:
                raise LimaError(
                    f"{as_size(nbytes)} of huge pages: too few are free; let the host keep more of"
                    " them (sysctl vm.nr_hugepages=N), or use a smaller ring"
                ) from None
            raise _no_memory(nbytes, error) from None
        where = self._address(first), ctypes.c_size_t(nbytes)
        _libc().madvise(*where, _POPULATE_WRITE)  # where it is not known: a bit later
        if self.locked and _libc().mlock(*where):
            raise LimaError(
                f"locking {as_size(nbytes)} of memory: {os.strerror(ctypes.get_errno())}; raise the"
                " limit (ulimit -l, LimitMEMLOCK= in a systemd unit) or set locked: false"
            )

    def release(self, first: int, nbytes: int) -> None:
        """Give committed memory back to the system; what it held is gone."""
        where = self._address(first), ctypes.c_size_t(nbytes)
        if self.locked:
            _libc().munlock(*where)
        if self._fd >= 0:
            offsets = ctypes.c_long(first), ctypes.c_long(nbytes)
            _libc().fallocate(ctypes.c_int(self._fd), ctypes.c_int(_PUNCH_HOLE), *offsets)
        else:
            _libc().madvise(*where, mmap.MADV_DONTNEED)

    def _address(self, first: int) -> ctypes.c_void_p:
        return ctypes.c_void_p(self.bytes.ctypes.data + first)

    def close(self) -> None:
        """Let go of it; the memory lives on while an array of it does. May be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self.bytes = np.empty(0, np.uint8)


class Handle(msgspec.Struct, frozen=True):
    """How a process finds the shared memory of another one on the same host."""

    host: str
    pid: int
    fd: int
    inode: int
    nbytes: int


class Allocator(ABC):
    """Where memory comes from."""

    @abstractmethod
    def reserve(self, nbytes: int) -> Buffer:
        """Room for at least `nbytes`, aligned to pages, of which nothing is committed yet.

        Raises:
            LimaError: if there is not enough.
        """

    def allocate(self, nbytes: int) -> Buffer:
        """Memory of at least `nbytes`, aligned to pages; what it holds is nobody's business.

        Raises:
            LimaError: if there is not enough.
        """
        check_available(nbytes)
        buffer = self.reserve(nbytes)
        try:
            buffer.commit(0, len(buffer.bytes))
        except LimaError:
            buffer.close()
            raise
        return buffer


class Heap(Allocator):
    """Private memory of this process.

    Args:
        huge_pages: whether in transparent huge pages.
    """

    def __init__(self, huge_pages: bool = False):
        self._huge = huge_pages

    def reserve(self, nbytes: int) -> Buffer:
        """See `Allocator`."""
        if self._huge and not transparent_huge_pages("enabled"):
            raise _no_huge_pages("enabled")
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE
        try:
            region = mmap.mmap(-1, pages(nbytes), flags=flags)
        except OSError as error:
            raise _no_memory(nbytes, error) from None
        if self._huge:
            region.madvise(mmap.MADV_HUGEPAGE)
        return Buffer(region)


class Shared(Allocator):
    """Anonymous memory that other processes of this user on this host can map.

    Args:
        huge_pages: whether in huge pages: those that the host keeps, or transparent ones.
    """

    def __init__(self, huge_pages: bool = False):
        self._huge = huge_pages

    def reserve(self, nbytes: int) -> Buffer:
        """See `Allocator`."""
        flags, page = os.MFD_CLOEXEC, PAGE
        if kept := self._huge and kept_huge_pages():
            flags, page = flags | os.MFD_HUGETLB, kept
        elif self._huge and not transparent_huge_pages("shmem_enabled"):
            raise _no_huge_pages("shmem_enabled")
        nbytes = pages(nbytes, page)
        fd = os.memfd_create("lima2py", flags)
        try:
            os.ftruncate(fd, nbytes)
            region = mmap.mmap(fd, nbytes, flags=mmap.MAP_SHARED | _NO_RESERVE)
        except OSError as error:
            os.close(fd)
            raise _no_memory(nbytes, error) from None
        if self._huge and not kept:
            region.madvise(mmap.MADV_HUGEPAGE)
        handle = Handle(host_identity(), os.getpid(), fd, os.fstat(fd).st_ino, nbytes)
        return Buffer(region, handle, fd, page)


class Placed(Allocator):
    """Memory of another allocator, locked or bound to a NUMA node as the settings say."""

    def __init__(self, inner: Allocator, settings: MemorySettings):
        self._inner = inner
        self._settings = settings

    def reserve(self, nbytes: int) -> Buffer:
        """See `Allocator`."""
        buffer = self._inner.reserve(nbytes)
        buffer.locked = self._settings.locked
        try:
            if self._settings.numa_node is not None:
                bind_to_numa_node(buffer, self._settings.numa_node)
        except LimaError:
            buffer.close()
            raise
        return buffer


def kept_huge_pages() -> int:
    """The size of the huge pages that this host keeps for whoever asks; 0 if it keeps none."""
    told = dict(line.split()[:2] for line in Path("/proc/meminfo").read_text().splitlines())
    return int(told.get("Hugepagesize:", 0)) * 1024 if int(told.get("HugePages_Total:", 0)) else 0


def transparent_huge_pages(what: str) -> bool:
    """Whether this host gives transparent huge pages to who asks.

    Args:
        what: `enabled` for private memory, `shmem_enabled` for shared memory.
    """
    try:
        told = (_TRANSPARENT / what).read_text()
    except OSError:
        return False
    return "[never]" not in told and "[deny]" not in told


def check_available(nbytes: int, advice: str = "use a smaller ring") -> None:
    """Refuse what this host cannot give now.

    Args:
        nbytes: the memory to take.
        advice: what to do if there is not enough.

    Raises:
        LimaError: with what was asked, what is free, and the advice.
    """
    free = psutil.virtual_memory().available
    if nbytes > free:
        raise LimaError(
            f"{as_size(nbytes)} of memory asked, {as_size(free)} available on this host; {advice}"
        )


def bind_to_numa_node(buffer: Buffer, node: int) -> None:
    """Move a buffer to the memory of one NUMA node (mbind, strictly).

    Raises:
        LimaError: if there is no such node or the system refuses.
    """
    nodes = numa_nodes()
    if node not in nodes:
        raise LimaError(f"numa_node {node}: this host has {nodes}")
    number = {"x86_64": 237, "aarch64": 235, "ppc64le": 259}.get(platform.machine())
    if number is None:
        raise LimaError(f"numa_node: not known how to bind memory on {platform.machine()}")
    words = node // 64 + 1
    mask = (ctypes.c_ulong * words)()
    mask[node // 64] = 1 << (node % 64)
    failed = _libc().syscall(
        ctypes.c_long(number),
        ctypes.c_void_p(buffer.bytes.ctypes.data),
        ctypes.c_ulong(buffer.bytes.nbytes),
        ctypes.c_int(2),  # MPOL_BIND
        mask,
        ctypes.c_ulong(words * 64 + 1),
        ctypes.c_uint(1 | 2),  # MPOL_MF_STRICT | MPOL_MF_MOVE
    )
    if failed:
        raise LimaError(f"binding memory to NUMA node {node}: {os.strerror(ctypes.get_errno())}")


def numa_nodes() -> list[int]:
    """The NUMA nodes of this host."""
    nodes = Path("/sys/devices/system/node").glob("node[0-9]*")
    return sorted(int(path.name[4:]) for path in nodes) or [0]


@cache
def host_identity() -> str:
    """What two processes that share memory have in common: boot and process namespace."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}:{os.stat('/proc/self/ns/pid').st_ino}"


def attach(handle: Handle) -> Buffer:
    """Map the shared memory of another process on this host, read-only.

    Raises:
        LimaError: if it is on another host, or gone, or belongs to another user.
    """
    if handle.host != host_identity():
        raise LimaError("this memory is on another host")
    try:
        fd = os.open(f"/proc/{handle.pid}/fd/{handle.fd}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise LimaError(f"shared memory of process {handle.pid}: {error.strerror}") from None
    try:
        status = os.fstat(fd)
        if status.st_ino != handle.inode or status.st_size != handle.nbytes:
            raise LimaError(f"shared memory of process {handle.pid}: it has been replaced")
        flags = mmap.MAP_SHARED | _NO_RESERVE
        region = mmap.mmap(fd, handle.nbytes, flags=flags, prot=mmap.PROT_READ)
    finally:
        os.close(fd)
    return Buffer(region, handle)


def pages(nbytes: int, page: int = PAGE) -> int:
    """The same in whole pages, at least one."""
    return max(1, -(-nbytes // page)) * page


def _no_memory(nbytes: int, error: OSError) -> LimaError:
    reason = "not enough memory" if error.errno == errno.ENOMEM else error.strerror
    return LimaError(f"{as_size(nbytes)} of memory: {reason}; use a smaller ring")


def _no_huge_pages(what: str) -> LimaError:
    way = f"echo madvise > {_TRANSPARENT / what}  allows transparent ones"
    if what == "shmem_enabled":
        way = f"sysctl vm.nr_hugepages=N  keeps N, or  {way.replace('madvise', 'advise')}"
    return LimaError(
        f"huge_pages: this host has none to give; as root,  {way}; or set huge_pages: false"
    )


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
