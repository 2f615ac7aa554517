"""The shelf: what a node keeps of passing frames for whoever looks, within a number of bytes.

Each task that keeps something has a row on it. When the shelf is full, the oldest of all things
gives way, but for the newest in each row of a run that goes on: so a reader finds something of
everything, and what is kept of runs that are over goes first to make room.
"""

from __future__ import annotations

from collections import deque
from itertools import count
from threading import Lock
from typing import Any, Generic, NamedTuple, TypeVar

from lima2py.frame import FrameSpec

T = TypeVar("T")
_SPARSE = 20
"""One pixel in so many is taken to have a row, where nobody knows yet."""


class Kept(NamedTuple, Generic[T]):
    """Something on a shelf: the number it was put there as, its size in bytes, and the thing."""

    number: int
    nbytes: int
    value: T


class Row(Generic[T]):
    """What one task keeps, oldest first; made by `Shelf.row`. From any thread.

    Attributes:
        run: id of the run.
        wanted: the bytes it is expected to take if there is room.
        least: those of one thing.
        held: those of what it has now.
        ended: whether its run is over.
        kept: what it has.
    """

    def __init__(self, shelf: Shelf, run: str):
        self.run = run
        self.wanted = self.least = self.held = 0
        self.ended = False
        self.kept: deque[Kept[T]] = deque()
        self.most: int | None = None
        self.most_bytes: int | None = None
        self._shelf = shelf

    def expect(
        self, wanted: int, least: int, most: int | None = None, most_bytes: int | None = None
    ) -> None:
        """Say what it shall keep from now on.

        Args:
            wanted: the bytes it is expected to take if there is room.
            least: those of one thing.
            most: how many things at most.
            most_bytes: how many bytes at most; one thing is always kept.
        """
        self.wanted, self.least = wanted, least
        self.most, self.most_bytes = most, most_bytes
        self._shelf.tidy(self)

    def add(self, value: T, nbytes: int) -> None:
        """Keep one more thing."""
        self._shelf.add(self, value, nbytes)

    def values(self) -> list[T]:
        """All things there are."""
        with self._shelf.lock:
            return [kept.value for kept in self.kept]

    def end(self) -> None:
        """Its run is over: all of it may give way."""
        self.ended = True


class Shelf:
    """What a node keeps of passing frames.

    Attributes:
        limit: the most bytes; None if there is no limit.
        held: the bytes on it now.
        peak: the most there were.
        lock: is held while anything changes.
    """

    def __init__(self) -> None:
        self.limit: int | None = None
        self.held = 0
        self.peak = 0
        self.lock = Lock()
        self._rows: list[Row[Any]] = []
        self._numbers = count()

    def row(self, run: str) -> Row[Any]:
        """A row for what one task of a run keeps."""
        row: Row[Any] = Row(self, run)
        with self.lock:
            self._rows.append(row)
        return row

    def add(self, row: Row[T], value: T, nbytes: int) -> None:
        """Keep one more thing in a row; what is too much gives way."""
        with self.lock:
            row.kept.append(Kept(next(self._numbers), nbytes, value))
            self._count(row, nbytes)
            self._tidy(row)
            self._make_room()
            self.peak = max(self.peak, self.held)

    def tidy(self, row: Row[T]) -> None:
        """Drop what a row shall not keep any more."""
        with self.lock:
            self._tidy(row)

    def resize(self, limit: int | None) -> None:
        """From now on it has so many bytes. From any thread."""
        with self.lock:
            self.limit = limit
            self._make_room()

    def forget(self, run: str) -> None:
        """Drop all that was kept of a run."""
        with self.lock:
            for row in self._rows:
                if row.run == run:
                    self._count(row, -row.held)
                    row.kept.clear()
            self._rows = [row for row in self._rows if row.run != run]

    @property
    def wanted(self) -> int:
        """The bytes that runs which are not over take if there is room."""
        return sum(row.wanted for row in list(self._rows) if not row.ended)

    @property
    def least(self) -> int:
        """The bytes without which they do not keep even one thing each."""
        return sum(row.least for row in list(self._rows) if not row.ended)

    def _tidy(self, row: Row[T]) -> None:
        while len(row.kept) > 1 and (
            (row.most is not None and len(row.kept) > row.most)
            or (row.most_bytes is not None and row.held > row.most_bytes)
        ):
            self._drop(row)

    def _make_room(self) -> None:
        while self.limit is not None and self.held > self.limit:
            able = [row for row in self._rows if len(row.kept) > (not row.ended)]
            if not able:
                return
            self._drop(min(able, key=lambda row: row.kept[0].number))

    def _drop(self, row: Row[T]) -> None:
        self._count(row, -row.kept.popleft().nbytes)

    def _count(self, row: Row[T], nbytes: int) -> None:
        row.held += nbytes
        self.held += nbytes


def usual_bytes(spec: FrameSpec) -> int:
    """Bytes of a frame as they usually are; sparse frames have few rows."""
    return spec.nbytes // _SPARSE if spec.kind == "sparse" else spec.nbytes
