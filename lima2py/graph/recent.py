"""The latest small products of a task, for whoever reads them while the run goes on.

Blocks are kept as they are, not copied, up to a number of bytes; then the oldest give way.
"""

from __future__ import annotations

from collections.abc import Mapping

from lima2py.frame import Array, Block, FrameSpec, Ragged
from lima2py.shelf import Row, usual_bytes
from lima2py.task import RunContext

BUDGET = 64 * 2**20
"""Bytes that are kept of one product, if the memory budget has room."""
_BESIDES = 1000
"""About what a block takes besides its data, in bytes."""
_PER_ABSENCE = 100
"""About what an absence takes, in bytes."""


class Recent:
    """Blocks with a running number; written by one thread, read by any.

    Args:
        spec: of the products.
        run: which they are made in.
    """

    def __init__(self, spec: FrameSpec, run: RunContext):
        self.spec = spec
        self._lock = run.shelf.lock
        self._row: Row[tuple[int, Block]] = run.shelf.row(run.run)
        self._serial = 0
        self._ended = False
        together = max(1, run.frames_per_block // spec.span)
        block = _BESIDES + together * usual_bytes(spec)
        blocks = run.nb_frames // (spec.span * together * run.nodes) + 1
        self._row.expect(
            min(BUDGET, blocks * block) if run.nb_frames else BUDGET, block, most_bytes=BUDGET
        )

    def keep(self, block: Block) -> None:
        """Keep one more."""
        if not block.count:
            return
        self._row.add((self._serial, block), _size(block))
        self._serial += 1

    def end(self) -> None:
        """No more will come."""
        self._ended = True
        self._row.end()

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
            there = self._row.kept
            first = serial + 1 - there[0].value[0] if there else 0
            for place in range(max(0, first), len(there)):
                kept = there[place].value
                nbytes -= there[place].nbytes
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
