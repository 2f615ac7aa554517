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
from typing import Annotated

import msgspec
import numpy as np
import psutil
from pydantic import Field

from lima2py.errors import LimaError
from lima2py.units import Bytes, Model, as_size

PAGE = mmap.PAGESIZE
_POPULATE_WRITE = 23
"""MADV_POPULATE_WRITE of linux/mman.h, from Linux 5.14 on."""


class MemorySettings(Model):
    """How a node takes its memory and which processors it uses."""

    ring: Annotated[Bytes, Field(ge=2**16)] = 256 * 2**20
    """The most memory for frames in an acquisition node, in bytes; runs that are still processed
    share it with the one that acquires."""
    locked: bool = False
    """Keep the ring in memory (mlock); refused when the limit on locked memory is too low."""
    numa_node: Annotated[int, Field(ge=0)] | None = None
    """Take the ring from this NUMA node; from wherever the system likes when not given."""
    cpus: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Run only on these processors; on all when empty."""

    def apply_affinity(self) -> None:
        """Bind this process to `cpus`.

        Raises:
            LimaError: if this host has no such processor.
        """
        if not self.cpus:
            return
        available = os.sched_getaffinity(0)
        if not set(self.cpus) <= available:
            raise LimaError(f"cpus {sorted(self.cpus)}: this host allows {sorted(available)}")
        os.sched_setaffinity(0, self.cpus)


class Buffer:
    """A piece of memory, of which as much is there as was committed.

    Attributes:
        bytes: the memory, as an array of uint8.
        handle: how another process on this host finds it; None for private memory.
    """

    def __init__(self, region: mmap.mmap, handle: Handle | None = None, fd: int = -1):
        self.bytes = np.frombuffer(region, np.uint8)
        self.handle = handle
        self._fd = fd

    def commit(self, first: int, nbytes: int) -> None:
        """Take the memory from `first` on, so that there is no error, and no delay, later.

        Raises:
            LimaError: if there is not enough.
        """
        check_available(nbytes)
        part = self.bytes[first : first + nbytes]
        try:
            if self._fd >= 0:
                os.posix_fallocate(self._fd, first, nbytes)
        except OSError as error:
            raise _no_memory(nbytes, error) from None
        address, size = ctypes.c_void_p(part.ctypes.data), ctypes.c_size_t(nbytes)
        _libc().madvise(address, size, _POPULATE_WRITE)  # where it is not known: a bit later

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
    """Private memory of this process."""

    def reserve(self, nbytes: int) -> Buffer:
        """See `Allocator`."""
        try:
            return Buffer(mmap.mmap(-1, pages(nbytes), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        except OSError as error:
            raise _no_memory(nbytes, error) from None


class Shared(Allocator):
    """Anonymous memory that other processes of this user on this host can map."""

    def reserve(self, nbytes: int) -> Buffer:
        """See `Allocator`."""
        nbytes = pages(nbytes)
        fd = os.memfd_create("lima2py", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, nbytes)
            region = mmap.mmap(fd, nbytes, flags=mmap.MAP_SHARED)
        except OSError as error:
            os.close(fd)
            raise _no_memory(nbytes, error) from None
        handle = Handle(host_identity(), os.getpid(), fd, os.fstat(fd).st_ino, nbytes)
        return Buffer(region, handle, fd)


class Placed(Allocator):
    """Memory of another allocator, locked or bound to a NUMA node as the settings say."""

    def __init__(self, inner: Allocator, settings: MemorySettings):
        self._inner = inner
        self._settings = settings

    def reserve(self, nbytes: int) -> Buffer:
        """See `Allocator`; memory that is locked is committed."""
        buffer = self._inner.reserve(nbytes)
        try:
            if self._settings.numa_node is not None:
                bind_to_numa_node(buffer, self._settings.numa_node)
            if self._settings.locked:
                buffer.commit(0, len(buffer.bytes))
                lock(buffer)
        except LimaError:
            buffer.close()
            raise
        return buffer


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


def lock(buffer: Buffer) -> None:
    """Keep a buffer in physical memory (mlock).

    Raises:
        LimaError: if this user may not lock so much.
    """
    address = ctypes.c_void_p(buffer.bytes.ctypes.data)
    if _libc().mlock(address, ctypes.c_size_t(buffer.bytes.nbytes)):
        raise LimaError(
            f"locking {as_size(buffer.bytes.nbytes)} of memory: {os.strerror(ctypes.get_errno())};"
            " raise the limit (ulimit -l, LimitMEMLOCK= in a systemd unit) or set locked: false"
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
        region = mmap.mmap(fd, handle.nbytes, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
    finally:
        os.close(fd)
    return Buffer(region, handle)


def pages(nbytes: int) -> int:
    """The same in whole pages, at least one."""
    return max(1, -(-nbytes // PAGE)) * PAGE


def _no_memory(nbytes: int, error: OSError) -> LimaError:
    reason = "not enough memory" if error.errno == errno.ENOMEM else error.strerror
    return LimaError(f"{as_size(nbytes)} of memory: {reason}; use a smaller ring")


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
