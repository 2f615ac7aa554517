"""The latest small products of a task, for whoever reads them while the run goes on.

Blocks are kept as they are, not copied, up to a number of bytes; then the oldest give way.
"""

from __future__ import annotations

from collections import deque
from threading import Lock

from lima2py.frame import Block, FrameSpec, Ragged

BUDGET = 64 * 2**20
"""Bytes that are kept of one product."""
_BESIDES = 1000
"""About what a block takes besides its data, in bytes."""


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

    def after(self, serial: int, most: int) -> tuple[list[tuple[int, Block]], bool]:
        """At most so many blocks with a larger number than this, oldest first.

        Returns:
            Numbers and blocks, and whether these are the last.
        """
        with self._lock:
            ended = self._ended
            if not self._kept:
                return [], ended
            first = max(0, serial + 1 - self._kept[0][0])
            found = [
                self._kept[place] for place in range(first, min(first + most, len(self._kept)))
            ]
            return found, ended and first + most >= len(self._kept)


def _size(block: Block) -> int:
    if isinstance(block.data, Ragged):
        rows = sum(values.nbytes for values in block.data.columns.values())
        return _BESIDES + block.data.offsets.nbytes + rows
    return _BESIDES + (0 if block.data is None else block.data.nbytes)
