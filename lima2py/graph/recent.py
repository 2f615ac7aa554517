"""The latest small products of a task, for whoever reads them while the run goes on.

Blocks are kept as they are, not copied, up to a number of bytes; then the oldest give way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from threading import Lock

from lima2py.frame import Array, Block, FrameSpec, Ragged

BUDGET = 64 * 2**20
"""Bytes that are kept of one product."""
_BESIDES = 1000
"""About what a block takes besides its data, in bytes."""
_PER_ABSENCE = 100
"""About what an absence takes, in bytes."""


class Recent:
    """Blocks with a running number; written by one thread, read by any.

    Args:
        spec: of the products.
    """

    def __init__(self, spec: FrameSpec):
        self.spec = spec
        self._kept: deque[tuple[int, Block]] = deque()
        self._bytes = 0
        self._serial = 0
        self._ended = False
        self._lock = Lock()

    def keep(self, block: Block) -> None:
        """Keep one more."""
        if not block.count:
            return
        with self._lock:
            self._kept.append((self._serial, block))
            self._serial += 1
            self._bytes += _size(block)
            while self._bytes > BUDGET and len(self._kept) > 1:
                self._bytes -= _size(self._kept.popleft()[1])

    def end(self) -> None:
        """No more will come."""
        self._ended = True

    def after(
        self, serial: int, most: int, nbytes: int = BUDGET
    ) -> tuple[list[tuple[int, Block]], int, bool]:
        """Blocks with a larger number than this, oldest first.

        Args:
            serial: the number.
            most: how many blocks at most.
            nbytes: and how large, all together; one block is always given.

        Returns:
            Numbers and blocks, the number of the newest block there is, and whether the last of all
            is among these.
        """
        with self._lock:
            ended, newest = self._ended, self._serial - 1
            found: list[tuple[int, Block]] = []
            first = serial + 1 - self._kept[0][0] if self._kept else 0
            for place in range(max(0, first), len(self._kept)):
                kept = self._kept[place]
                nbytes -= _size(kept[1])
                if len(found) == most or (found and nbytes < 0):
                    break
                found.append(kept)
        return found, newest, ended and max([serial, *(number for number, _ in found)]) >= newest


def _size(block: Block) -> int:
    size = _BESIDES + _PER_ABSENCE * len(block.absences) + _nbytes(block.columns)
    if isinstance(block.data, Ragged):
        return size + block.data.offsets.nbytes + _nbytes(block.data.columns)
    return size + (0 if block.data is None else block.data.nbytes)


def _nbytes(columns: Mapping[str, Array]) -> int:
    return sum(values.nbytes for values in columns.values())
