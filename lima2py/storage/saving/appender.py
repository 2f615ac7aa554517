"""A dataset that grows by rows: whole chunks are compressed; the last one waits until it is full.

A chunk that must be made safe before it is full is written uncompressed and stays so: then each
further row is written in its place, and what was safe before is never moved.
"""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from lima2py.codec import Codec, raw
from lima2py.frame import Array


class Appender:
    """A dataset being written.

    Args:
        parent: the group it is made in.
        name: of the dataset.
        shape: of one row.
        dtype: of one element.
        chunk: rows of a chunk.
        codec: compresses the chunks.
        fill: what stands where nothing was written; zero if not given.

    Attributes:
        dataset: it.
        dtype: see above.
        rows: appended so far.
    """

    def __init__(
        self,
        parent: h5py.Group,
        name: str,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        chunk: int,
        codec: Codec,
        fill: Array | None = None,
    ):
        self.rows = 0
        self.dataset = parent.create_dataset(
            name,
            (0, *shape),
            dtype,
            maxshape=(None, *shape),
            chunks=(chunk, *shape),
            fillvalue=fill,
            **codec.filters,
        )
        self._id = self.dataset.id
        self._shape = shape
        self._chunk = chunk
        self._codec = codec
        self._fill: Any = 0 if fill is None else fill
        self.dtype = dtype
        self._tail = np.empty((chunk, *shape), dtype)
        self._tail_in_file = False
        self._origin = (0,) * len(shape)

    def append(self, data: Array | None, count: int, here: NDArray[np.bool_] | None = None) -> None:
        """Write rows.

        Args:
            data: array `(count, *shape)`; None if no row is there.
            count: how many rows.
            here: which of them are there; all if not given. The others read as the fill value.
        """
        begin = self.rows
        self._id.set_extent((begin + count, *self._shape))
        if self._chunk == 1 and here is None and data is not None:
            for row, part in enumerate(data, begin):
                self._write(row, self._codec.encode(np.ascontiguousarray(part)), 0)
            self.rows = begin + count
            return
        done = 0
        while done < count:
            row = begin + done
            start = row % self._chunk
            take = min(self._chunk - start, count - done)
            part = slice(done, done + take)
            done += take
            some = data is not None if here is None else bool(here[part].any())
            every = some if here is None else bool(here[part].all())
            if take == self._chunk and every and data is not None:
                self._write(row, self._codec.encode(np.ascontiguousarray(data[part])), 0)
                continue
            if take == self._chunk and not some:
                continue  # a chunk that is not written reads as the fill value
            tail = self._tail[start : start + take]
            if some and data is not None:
                tail[:] = data[part].reshape(tail.shape)
            if not every:
                tail[~here[part] if here is not None and some else ...] = self._fill
            if start + take == self._chunk:
                self._finish_chunk(row - start)
        self.rows = begin + count

    def write_tail(self) -> None:
        """Write the last chunk though it is not full."""
        filled = self.rows % self._chunk
        if filled:
            self._tail[filled:] = self._fill
            self._tail_in_file = True
            self._write(self.rows - filled, raw(self._tail), self._codec.skipped)

    def _finish_chunk(self, at: int) -> None:
        if self._tail_in_file:
            self._write(at, raw(self._tail), self._codec.skipped)
        else:
            self._write(at, self._codec.encode(self._tail), 0)
        self._tail_in_file = False

    def _write(self, row: int, content: memoryview | bytes, filter_mask: int) -> None:
        """Write a whole chunk, the one that begins with this row."""
        self._id.write_direct_chunk((row, *self._origin), content, filter_mask)
