"""The ring: slots that all frames in flight lie in, cut from one arena that runs share.

The arena is all the memory a node has for frames. It is divided into chunks; a run owns those that
its slots lie in, and takes more as it needs them, as long as any are free. A run that acquires no
more lets go of each chunk whose last slot was done: so the next run begins in the memory that the
one before no longer needs, and both together never have more than the arena.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lima2py.errors import LimaError
from lima2py.frame import FrameSpec
from lima2py.memory import Allocator, Buffer, pages
from lima2py.units import as_size

BLOCK_BYTES = 8 * 2**20
"""Small frames are gathered into blocks of up to about this size."""
MAX_FRAMES_PER_BLOCK = 256
"""The most frames of any block, with data or without."""
BLOCK_SECONDS = 0.02
"""Slow frames are not gathered for longer than this: neighbours shall go to several nodes."""
BLOCKS_PER_NODE = 4
"""Few frames are cut into at least so many blocks for each node."""
MIN_SLOTS = 3
"""One to fill, one to process, one on its way."""
_CHUNKS = 64
_SPARE_SLOTS = 16


class RingShape(NamedTuple):
    """How a ring is cut: slots of `stride` bytes, each with room for `frames` frames.

    A run uses at most `slots` of them at a time; their numbers may be greater.
    """

    frames: int
    slots: int
    stride: int

    @classmethod
    def plan(
        cls,
        spec: FrameSpec,
        ring_bytes: int,
        *,
        most: int | None = None,
        group: int = 1,
        nb_frames: int = 0,
        period: float = 0.0,
        nodes: int = 1,
    ) -> RingShape:
        """Cut about `ring_bytes` into slots for frames of one spec.

        Args:
            spec: what a frame looks like.
            ring_bytes: the memory to use.
            most: frames of a slot, where these are only a part of what is processed.
            group: frames that must stay together; a slot holds whole groups, or part of one.
            nb_frames: frames of the acquisition, which need no more slots; 0 if endless.
            period: shortest time from frame to frame, in seconds; a block spans little of it.
            nodes: among which the frames are shared out; each shall have some blocks.

        Raises:
            LimaError: if not even three frames fit.
        """
        limits = [BLOCK_BYTES // spec.nbytes if most is None else most, MAX_FRAMES_PER_BLOCK]
        if period:
            limits.append(int(BLOCK_SECONDS / period))
        if nb_frames:
            limits.append(nb_frames // (BLOCKS_PER_NODE * nodes))
        frames = max(1, min(limits))
        while frames > 1 and pages(frames * spec.nbytes) * 8 > ring_bytes:
            frames //= 2
        if frames > group:
            frames -= frames % group
        stride = pages(frames * spec.nbytes)
        slots = ring_bytes // stride
        if nb_frames:
            # The readout fills slots when half of them are used (`Ring.room`); a group whose frames
            # come one by one must find room on more than one node.
            needed = max(2 * -(-nb_frames // frames), 3 * group) + _SPARE_SLOTS
            slots = min(slots, max(MIN_SLOTS, min(nb_frames, needed)))
        if slots < MIN_SLOTS:
            raise LimaError(
                f"a ring of {as_size(ring_bytes)} holds {slots} frames of {as_size(spec.nbytes)}"
                f" and needs at least {MIN_SLOTS}: make it {as_size(MIN_SLOTS * stride)} or more"
                " (memory: {ring: ...}, or {budget: ...}, in the system file)"
            )
        return cls(frames, slots, stride)

    @property
    def nbytes(self) -> int:
        """The memory of the whole ring."""
        return self.slots * self.stride


class Arena:
    """The memory of a node for frames; several runs have parts of it at a time.

    Args:
        allocator: where it comes from.
        nbytes: how much there is; it is taken chunk by chunk, when it is needed.

    Attributes:
        limit: how much of it runs may have, in bytes; at first all. See `resize`.
    """

    def __init__(self, allocator: Allocator, nbytes: int):
        self.buffer = allocator.reserve(nbytes)
        self.nbytes = len(self.buffer.bytes)
        self.chunk = pages(-(-self.nbytes // _CHUNKS), self.buffer.page)
        self._free = set(range(-(-self.nbytes // self.chunk)))
        self._committed: set[int] = set()
        self._lock = threading.Lock()
        self._retired = False
        self._all = len(self._free)
        self.limit = self.nbytes

    @property
    def held_bytes(self) -> int:
        """How much runs have."""
        return self._size(self._all - len(self._free))

    @property
    def free_bytes(self) -> int:
        """How much nobody has, and somebody may."""
        return max(0, self.limit - self.held_bytes)

    @property
    def committed_bytes(self) -> int:
        """How much memory it takes now."""
        return self._size(len(self._committed))

    def resize(self, limit: int) -> None:
        """Let runs have so much; what they have already they keep. From any thread.

        Args:
            limit: in bytes; it is cut to whole chunks. What is committed beyond it, and nobody
                has, goes back to the system.
        """
        with self._lock:
            self.limit = min(self.nbytes, limit // self.chunk * self.chunk)
            for number in sorted(self._free & self._committed, reverse=True):
                if self.committed_bytes > self.limit:
                    self._release(number)

    def claim(self) -> int | None:
        """A chunk for a ring, the lowest that is free; None if no more may be had.

        Raises:
            LimaError: if the host has no more memory.
        """
        with self._lock:
            if not self._free or not self.free_bytes:
                return None
            number = min(self._free)
            if number not in self._committed:
                if spare := self.committed_bytes >= self.limit and self._free & self._committed:
                    self._release(max(spare))
                first = number * self.chunk
                self.buffer.commit(first, min(self.chunk, self.nbytes - first))
                self._committed.add(number)
            self._free.remove(number)
            return number

    def give_back(self, number: int) -> None:
        """A chunk that a ring needs no more."""
        with self._lock:
            self._free.add(number)
            if self.committed_bytes > self.limit:
                self._release(number)
        self._close_if_done()

    def retire(self) -> None:
        """Nobody takes from it any more; its memory goes when the last ring has closed."""
        self._retired = True
        self._close_if_done()

    def _size(self, chunks: int) -> int:
        return min(self.nbytes, chunks * self.chunk)

    def _release(self, number: int) -> None:
        first = number * self.chunk
        self.buffer.release(first, min(self.chunk, self.nbytes - first))
        self._committed.remove(number)

    def _close_if_done(self) -> None:
        if self._retired and len(self._free) == self._all:
            self.buffer.close()


class Ring:
    """The slots of one run. Used by one thread.

    Args:
        spec: of the frames.
        shape: how they are cut.
        arena: where they lie.

    Attributes:
        peak: the largest number of slots that were in use at once.

    Raises:
        LimaError: if not even a few slots are free in the arena.
    """

    def __init__(self, spec: FrameSpec, shape: RingShape, arena: Arena):
        self.spec = spec
        self.shape = shape
        self.arena = arena
        self.peak = 0
        self.used = 0
        self._free: deque[int] = deque()
        self._owned: set[int] = set()  # chunks
        self._used_of: Counter[int] = Counter()  # by chunk, how many of its slots are used
        self._slots = 0
        self._leaving = False
        self._views = SlotViews(arena.buffer, spec, shape)
        while self._slots < shape.slots and self._grow():
            pass
        self._check()

    @property
    def held_bytes(self) -> int:
        """How much of the arena is ours."""
        return len(self._owned) * self.arena.chunk

    @property
    def wanted_bytes(self) -> int:
        """How much of the arena it would use if it could."""
        return self._in_chunks(self.shape.slots)

    @property
    def least_bytes(self) -> int:
        """How much of the arena it needs to work at all."""
        return self._in_chunks(MIN_SLOTS)

    def fit(self) -> None:
        """Give back what the arena is not to hold any more; no slot may be in use.

        Raises:
            LimaError: if too few slots are left.
        """
        for chunk in sorted(self._owned, reverse=True):
            if self.arena.held_bytes > self.arena.limit:
                self._let_go([chunk])
        self._slots = len(self._free)
        self._check()

    @property
    def slots(self) -> int:
        """How many slots there are, used and free."""
        return self._slots

    @property
    def room(self) -> int:
        """How many frames fit for sure, however few come at a time.

        The readout fills slots when more than half of them are used.
        """
        half = self._slots // 2
        return half + (self._slots - half - 1) * self.shape.frames

    def take(self) -> int | None:
        """The number of a free slot, now in use; None when there is none."""
        while not self._free and self._slots < self.shape.slots and self._grow():
            pass
        if not self._free:
            return None
        slot = self._free.popleft()
        self._count(slot, 1)
        self.peak = max(self.peak, self.used)
        return slot

    def release(self, slot: int) -> None:
        """Make a slot free again."""
        self._count(slot, -1)
        self._free.append(slot)
        if self._leaving:
            self._let_go(self._chunks(slot))

    def give_back(self, slot: int) -> None:
        """Undo `take`: the slot was not used, and is the next one to be taken."""
        self._count(slot, -1)
        self._free.appendleft(slot)

    def leave(self) -> None:
        """No slot is taken any more: what is not used goes back to the arena, now and later."""
        self._leaving = True
        self._let_go(list(self._owned))

    def view(self, slot: int) -> NDArray[Any]:
        """The frames of a slot: array `(frames, *spec.shape)`."""
        return self._views[slot]

    def close(self) -> None:
        """Let go of the memory; may be called twice."""
        self._views.close()
        for chunk in self._owned:
            self.arena.give_back(chunk)
        self._owned.clear()

    def _check(self) -> None:
        if self._slots < MIN_SLOTS:
            limit, held = self.arena.limit, self.arena.held_bytes - self.held_bytes
            self.close()
            raise LimaError(
                f"the ring of {as_size(limit)} is taken: {as_size(held)} are held by runs that are"
                f" still processed, and {as_size(MIN_SLOTS * self.shape.stride)} are needed at"
                " least; wait for them, cancel one, or make it larger (memory: {ring: ...}, or"
                " {budget: ...})"
            )

    def _count(self, slot: int, change: int) -> None:
        self.used += change
        for chunk in self._chunks(slot):
            self._used_of[chunk] += change

    def _in_chunks(self, slots: int) -> int:
        """Bytes of the chunks that so many slots lie in, wherever they begin."""
        chunk = self.arena.chunk
        return min(self.arena.nbytes, (-(-slots * self.shape.stride // chunk) + 1) * chunk)

    def _chunks(self, slot: int) -> range:
        """The chunks a slot lies in."""
        first, stride, chunk = slot * self.shape.stride, self.shape.stride, self.arena.chunk
        return range(first // chunk, (first + stride - 1) // chunk + 1)

    def _slots_of(self, chunk: int) -> Iterator[int]:
        """The slots that lie in a chunk, at least partly, and in others that are ours."""
        size, stride = self.arena.chunk, self.shape.stride
        last = self.arena.nbytes // stride - 1
        for slot in range(
            chunk * size // stride, min(last, ((chunk + 1) * size - 1) // stride) + 1
        ):
            if self._owned.issuperset(self._chunks(slot)):
                yield slot

    def _grow(self) -> bool:
        """Take one more chunk; whether there was one."""
        chunk = self.arena.claim()
        if chunk is None:
            return False
        self._owned.add(chunk)
        for slot in self._slots_of(chunk):
            self._free.append(slot)
            self._slots += 1
        return True

    def _let_go(self, chunks: Iterable[int]) -> None:
        for chunk in chunks:
            if chunk in self._owned and not self._used_of[chunk]:
                gone = set(self._slots_of(chunk))
                self._free = deque(slot for slot in self._free if slot not in gone)
                self._owned.remove(chunk)
                self.arena.give_back(chunk)


class SlotViews:
    """The frames of every slot: arrays `(shape.frames, *spec.shape)`, made when they are needed."""

    def __init__(self, buffer: Buffer, spec: FrameSpec, shape: RingShape):
        self._bytes = buffer.bytes
        self._spec = spec
        self._shape = shape
        self._made: dict[int, NDArray[Any]] = {}

    def __len__(self) -> int:
        return len(self._bytes) // self._shape.stride

    def __getitem__(self, slot: int) -> NDArray[Any]:
        if slot not in self._made:
            first, frames = slot * self._shape.stride, self._shape.frames
            part = self._bytes[first : first + frames * self._spec.nbytes]
            self._made[slot] = part.view(self._spec.dtype).reshape(frames, *self._spec.shape)
        return self._made[slot]

    def close(self) -> None:
        """Let go of the memory; may be called twice."""
        self._made.clear()
        self._bytes = np.empty(0, np.uint8)
