"""Recorded frames as a source of blocks: to replay them, or to run them through another graph."""

from __future__ import annotations

from collections.abc import Iterator

from lima2py.frame import Block, FrameSpec
from lima2py.ring import BLOCK_BYTES, MAX_FRAMES_PER_BLOCK
from lima2py.source import Source
from lima2py.storage.reading.run_file import RunFile


class FileSource(Source):
    """The frames of a file, in its order, with absences and the detector's values as recorded.

    Args:
        file: where they are; stays open.
        frames: which rows of it, by step 1.
        size: the most frames of one block; as many as a run would put into one if 0.

    Attributes:
        frames_per_block: as given, or found.
        spec: as in the file, but each frame counts as one: what was accumulated is not taken apart.
    """

    def __init__(self, file: RunFile, frames: slice = slice(None), size: int = 0):
        self.spec = file.spec.replace(span=1)
        self._file = file
        self._frames = range(*slice(frames.start, frames.stop).indices(len(file)))
        self.frames_per_block = size or frames_per_block(self.spec)

    def __len__(self) -> int:
        """How many frames will come."""
        return len(self._frames)

    def __iter__(self) -> Iterator[Block]:
        """The blocks; see `Source`. Where numbers of frames leave something out, a block ends."""
        rows = self._frames
        for block in self._file.blocks(rows.start, rows.stop, self.frames_per_block):
            yield Block(
                self.spec, block.index, block.count, block.data, block.absences, block.columns
            )


def frames_per_block(spec: FrameSpec) -> int:
    """How many frames travel well together."""
    return max(1, min(MAX_FRAMES_PER_BLOCK, BLOCK_BYTES // max(1, spec.nbytes)))
