"""Holdings: what the process of a node takes of the memory of its host, by who holds it.

There are three holders: the `process` itself with its tasks, the `shelf` with what taps and small
products keep, and the `ring` of an acquisition node. The session shares a budget out among them.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import msgspec

from lima2py.node.life import ACTIVE, State
from lima2py.node.run import Run, private_memory
from lima2py.ring import Arena, Ring
from lima2py.shelf import Shelf

_SHARE = re.compile(r"^Pss_File: +(\d+) kB", re.MULTILINE)
_MAPPED = re.compile(r"^RssFile:\s+(\d+) kB", re.MULTILINE)
_HARDLY = 2**20
"""A change of mapped files that is not worth a look at all pages, in bytes."""


class Needs(msgspec.Struct, frozen=True):
    """What a node needs of the memory of its host, in bytes, for all runs it has prepared.

    Attributes:
        host: what nodes of one host have in common.
        process: its process, as measured, with what the tasks will still take.
        shelf: what taps and small products keep if there is room.
        least_shelf: what they keep of one frame, or block, each.
        ring: what the frames in flight can take.
        least_ring: without which they cannot.
        fresh: whether its process has prepared no run yet, and not what tasks need.
    """

    host: str
    process: int
    shelf: int = 0
    least_shelf: int = 0
    ring: int = 0
    least_ring: int = 0
    fresh: bool = False


class Granted(msgspec.Struct, frozen=True):
    """What a node may take; None where nobody says."""

    process: int
    shelf: int | None
    ring: int | None


class Holdings:
    """What the process of a node takes, by holder.

    Attributes:
        shelf: what is kept of frames for who looks.
        arena: the memory for frames, of an acquisition node.
    """

    def __init__(self) -> None:
        self.shelf = Shelf()
        self.arena: Arena | None = None
        self._files = MappedFiles()
        self._graphs: set[str] = set()
        self._idle = 0
        self._fresh = True
        self._most = 0
        self._asked: dict[str, int] = {}
        self._granted: dict[str, int] = {}
        self._peaks: dict[str, int] = {}

    def needs(
        self, host: str, runs: Iterable[Run], ring: Ring | None = None, whole: bool = False
    ) -> Needs:
        """What the node needs now.

        What the process takes is measured, and what the tasks of runs that have not begun will
        take is added. If more was seen while the same graphs ran, it is that.

        Args:
            host: see `Needs`.
            runs: all it knows.
            ring: of the run that was prepared last; None if there is none.
            whole: whether that run cannot do with less of the ring than it has.
        """
        _libc().malloc_trim(ctypes.c_size_t(0))  # of runs that were forgotten: it is not needed
        self._files.look()
        living = [run for run in runs if run.living]
        if living and (graphs := {run.plan.definition.text for run in living}) != self._graphs:
            self._graphs, self._most = graphs, 0
        self._fresh = self._fresh and not living
        now = self._process()
        if not any(run.life.state in ACTIVE for run in living):
            self._idle = now
        begin = sum(run.footprint for run in living if run.life.state is State.PREPARED)
        process = max(now + begin, self._idle + sum(run.footprint for run in living), self._most)
        asked = least = 0
        if self.arena is not None:
            asked = least = self.arena.held_bytes
            if ring is not None:
                asked += max(0, ring.wanted_bytes - ring.held_bytes)
                least += 0 if whole else min(0, ring.least_bytes - ring.held_bytes)
        self._asked = {"process": process, "shelf": self.shelf.wanted, "ring": asked}
        return Needs(host, process, self.shelf.wanted, self.shelf.least, asked, least,
                     self._fresh)  # fmt: skip

    def grant(self, granted: Granted) -> None:
        """From now on it may take so much; what is kept for who looks gives way to that."""
        self._granted = {name: told for name, told in msgspec.structs.asdict(granted).items()
                         if told is not None}  # fmt: skip
        self.shelf.resize(granted.shelf)
        if self.arena is not None and granted.ring is not None:
            self.arena.resize(granted.ring)
        self._peaks = {}

    def look(self) -> dict[str, dict[str, int]]:
        """By holder: bytes `asked` for, `granted`, `used` now, and their `peak` since prepare."""
        used = {"process": self._process(), "shelf": self.shelf.held}
        if self.arena is not None:
            used["ring"] = self.arena.committed_bytes
        self._most = max(self._most, used["process"])
        found = {}
        for name, now in used.items():
            self._peaks[name] = max(self._peaks.get(name, 0), now)
            found[name] = {"asked": self._asked.get(name, 0), "used": now,
                           "peak": self._peaks[name]}  # fmt: skip
            if name in self._granted:
                found[name]["granted"] = self._granted[name]
        return found

    def _process(self) -> int:
        """What the process takes besides what is counted by itself."""
        counted = self.shelf.held
        if self.arena is not None and self.arena.buffer.handle is None:
            counted += self.arena.committed_bytes
        return max(0, private_memory() + self._files.share - counted)


class MappedFiles:
    """Libraries and other files that are mapped in this process.

    Attributes:
        share: this process's share of their memory, in bytes: a page that n processes have mapped
            counts as an n-th.
    """

    def __init__(self) -> None:
        self.share = 0
        self._mapped = 0

    def look(self) -> None:
        """Measure again, if there is something new: the system has to look at all pages."""
        mapped = _bytes(_MAPPED, "/proc/self/status")
        if abs(mapped - self._mapped) > _HARDLY:
            self._mapped, self.share = mapped, _bytes(_SHARE, "/proc/self/smaps_rollup")


def _bytes(pattern: re.Pattern[str], path: str) -> int:
    found = pattern.search(Path(path).read_text())
    return int(found[1]) * 1024 if found else 0


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)
