"""Memory for frames: allocators, and the ring of slots that everything in flight lies in.

Shared memory is anonymous (memfd): it has no name that could leak or be destroyed by a stranger,
and goes back to the system when the last process that holds it ends, however it ends. Another
process of the same user on the same host opens it through `/proc/<pid>/fd`. It is allocated
before it is mapped, so a full host is an error here and never a SIGBUS later.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
from abc import ABC, abstractmethod
from collections import deque
from functools import cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np
import psutil
from numpy.typing import NDArray
from pydantic import Field

from lima2py.errors import LimaError
from lima2py.frame import FrameSpec
from lima2py.units import Bytes, Model, as_size

PAGE = mmap.PAGESIZE
BLOCK_BYTES = 8 * 2**20
"""Small frames are gathered into blocks of up to about this size."""
MAX_FRAMES_PER_BLOCK = 256
BLOCK_SECONDS = 0.02
"""Slow frames are not gathered for longer than this: neighbours shall go to several nodes."""
BLOCKS_PER_NODE = 4
"""Few frames are cut into at least so many blocks for each node."""


class MemorySettings(Model):
    """How a node takes its memory and which processors it uses."""

    ring: Annotated[Bytes, Field(ge=2**16)] = 256 * 2**20
    """Size of the ring of an acquisition node, in bytes."""
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
    """A piece of memory.

    Attributes:
        bytes: the memory, as an array of uint8.
        handle: how another process on this host finds it; None for private memory.
    """

    def __init__(self, content: NDArray[np.uint8], handle: Handle | None = None, fd: int = -1):
        self.bytes = content
        self.handle = handle
        self._fd = fd

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
    """Where a ring takes its memory."""

    @abstractmethod
    def allocate(self, nbytes: int) -> Buffer:
        """Memory of at least `nbytes`, aligned to pages; what it holds is nobody's business.

        Raises:
            LimaError: if there is not enough.
        """


class Heap(Allocator):
    """Private memory of this process."""

    def allocate(self, nbytes: int) -> Buffer:
        """See `Allocator`."""
        check_available(nbytes)
        try:
            region = mmap.mmap(
                -1, _pages(nbytes), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
            )
        except OSError as error:
            raise _no_memory(nbytes, error) from None
        return Buffer(np.frombuffer(region, np.uint8))


class Shared(Allocator):
    """Anonymous memory that other processes of this user on this host can map."""

    def allocate(self, nbytes: int) -> Buffer:
        """See `Allocator`."""
        check_available(nbytes)
        nbytes = _pages(nbytes)
        fd = os.memfd_create("lima2py", os.MFD_CLOEXEC)
        try:
            os.posix_fallocate(fd, 0, nbytes)
            region = mmap.mmap(fd, nbytes, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
        except OSError as error:
            os.close(fd)
            raise _no_memory(nbytes, error) from None
        handle = Handle(host_identity(), os.getpid(), fd, os.fstat(fd).st_ino, nbytes)
        return Buffer(np.frombuffer(region, np.uint8), handle, fd)


class Placed(Allocator):
    """Memory of another allocator, locked or bound to a NUMA node as the settings say."""

    def __init__(self, inner: Allocator, settings: MemorySettings):
        self._inner = inner
        self._settings = settings

    def allocate(self, nbytes: int) -> Buffer:
        """See `Allocator`."""
        buffer = self._inner.allocate(nbytes)
        try:
            if self._settings.numa_node is not None:
                bind_to_numa_node(buffer, self._settings.numa_node)
            if self._settings.locked:
                lock(buffer)
        except LimaError:
            buffer.close()
            raise
        return buffer


class Spare:
    """Memory kept from one ring for the next, if that is alike: getting it takes long."""

    def __init__(self) -> None:
        self._kept: tuple[tuple[object, ...], Buffer] | None = None

    def allocator(self, kind: type[Heap | Shared], settings: MemorySettings) -> Allocator:
        """An allocator that uses the kept memory where it can, and keeps its own when closed."""
        return _Sparing(self, kind, settings)

    def take(self, key: tuple[object, ...]) -> Buffer | None:
        """The kept memory, if it is of this kind; any other is let go of."""
        kept, self._kept = self._kept, None
        if kept is None or kept[0] == key:
            return kept and kept[1]
        kept[1].close()
        return None

    def keep(self, key: tuple[object, ...], buffer: Buffer) -> None:
        """Take memory back."""
        self.close()
        self._kept = key, buffer

    def close(self) -> None:
        """Let go of what is kept; may be called twice."""
        if self._kept is not None:
            self._kept[1].close()
            self._kept = None


class _Sparing(Allocator):
    def __init__(self, spare: Spare, kind: type[Heap | Shared], settings: MemorySettings):
        self._spare = spare
        self._kind = kind
        self._settings = settings

    def allocate(self, nbytes: int) -> Buffer:
        """See `Allocator`."""
        key = (self._kind, self._settings, _pages(nbytes))
        buffer = self._spare.take(key)
        if buffer is None:
            buffer = Placed(self._kind(), self._settings).allocate(nbytes)
        return _Lent(buffer, self._spare, key)


class _Lent(Buffer):
    """Memory that goes back to where it is kept."""

    def __init__(self, buffer: Buffer, spare: Spare, key: tuple[object, ...]):
        super().__init__(buffer.bytes, buffer.handle)
        self._back: tuple[Spare, Buffer] | None = (spare, buffer)
        self._key = key

    def close(self) -> None:
        """See `Buffer`."""
        if self._back is not None:
            spare, buffer = self._back
            self._back = None
            spare.keep(self._key, buffer)
        super().close()


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
    return Buffer(np.frombuffer(region, np.uint8), handle)


class RingShape(NamedTuple):
    """How a ring is cut: `slots` of `stride` bytes, each with room for `frames` frames."""

    frames: int
    slots: int
    stride: int

    @classmethod
    def plan(
        cls,
        spec: FrameSpec,
        ring_bytes: int,
        *,
        group: int = 1,
        nb_frames: int = 0,
        period: float = 0.0,
        nodes: int = 1,
    ) -> RingShape:
        """Cut about `ring_bytes` into slots for frames of one spec.

        Args:
            spec: what a frame looks like.
            ring_bytes: the memory to use.
            group: frames that must stay together; a slot holds whole groups, or part of one.
            nb_frames: frames of the acquisition, which need no more slots; 0 if endless.
            period: shortest time from frame to frame, in seconds; a block spans little of it.
            nodes: among which the frames are shared out; each shall have some blocks.

        Raises:
            LimaError: if not even three frames fit.
        """
        most = [BLOCK_BYTES // spec.nbytes, MAX_FRAMES_PER_BLOCK]
        if period:
            most.append(int(BLOCK_SECONDS / period))
        if nb_frames:
            most.append(nb_frames // (BLOCKS_PER_NODE * nodes))
        frames = max(1, min(most))
        while frames > 1 and _pages(frames * spec.nbytes) * 8 > ring_bytes:
            frames //= 2
        if frames > group:
            frames -= frames % group
        stride = _pages(frames * spec.nbytes)
        slots = ring_bytes // stride
        if nb_frames:
            slots = min(slots, max(3, nb_frames))
        if slots < 3:
            raise LimaError(
                f"a ring of {as_size(ring_bytes)} holds {slots} frames of {as_size(spec.nbytes)}"
                f" and needs at least 3: make it {as_size(3 * stride)} or more"
                " (memory: {ring: ...} in the system file)"
            )
        return cls(frames, slots, stride)

    @property
    def nbytes(self) -> int:
        """The memory of the whole ring."""
        return self.slots * self.stride


class Ring:
    """Slots for blocks of frames in one buffer. Used by one thread.

    Attributes:
        buffer: the memory.
        shape: how it is cut.
        peak: the largest number of slots that were in use at once.
    """

    def __init__(self, spec: FrameSpec, shape: RingShape, allocator: Allocator):
        self.spec = spec
        self.shape = shape
        self.buffer = allocator.allocate(shape.nbytes)
        self._free = deque(range(shape.slots))
        self._views = slot_views(self.buffer, spec, shape)
        self.peak = 0

    def take(self) -> int | None:
        """The number of a free slot, now in use; None when there is none."""
        if not self._free:
            return None
        slot = self._free.popleft()
        self.peak = max(self.peak, self.used)
        return slot

    def release(self, slot: int) -> None:
        """Make a slot free again."""
        self._free.append(slot)

    def give_back(self, slot: int) -> None:
        """Undo `take`: the slot was not used, and is the next one to be taken."""
        self._free.appendleft(slot)

    @property
    def used(self) -> int:
        """How many slots are in use."""
        return self.shape.slots - len(self._free)

    def view(self, slot: int) -> NDArray[Any]:
        """The frames of a slot: array `(frames, *spec.shape)`."""
        return self._views[slot]

    def close(self) -> None:
        """Let go of the memory; may be called twice."""
        self._views = []
        self.buffer.close()


def slot_views(buffer: Buffer, spec: FrameSpec, shape: RingShape) -> list[NDArray[Any]]:
    """The frames of every slot of a ring: arrays `(shape.frames, *spec.shape)`."""
    used = shape.frames * spec.nbytes
    slots = buffer.bytes[: shape.nbytes].reshape(shape.slots, shape.stride)[:, :used]
    return [slot.view(spec.dtype).reshape(shape.frames, *spec.shape) for slot in slots]


def _pages(nbytes: int) -> int:
    return max(1, -(-nbytes // PAGE)) * PAGE


def _no_memory(nbytes: int, error: OSError) -> LimaError:
    reason = "not enough memory" if error.errno == errno.ENOMEM else error.strerror
    return LimaError(f"{as_size(nbytes)} of memory: {reason}; use a smaller ring")


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
