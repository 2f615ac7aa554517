"""The file of one node: rows of frames, appended, and safe once `flush` has returned.

HDF5 never compresses: whole chunks are, by us, and go to the file as they are. A chunk that must
be made safe before it is full is written uncompressed and stays so: then each further frame is
written in its place, and what was safe before is never moved.

A full disk shows at the next `flush`, not at once: until then HDF5 believes that all is well (see
`steady`), and the rows keep their numbers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from lima2py.frame import Absence, Array, Block, Fate, FrameSpec
from lima2py.storage.codec import Codec, raw
from lima2py.storage.failures import telling
from lima2py.storage.layout import (
    ENTRY,
    FATE_TYPE,
    absence_ranges,
    add_absences,
    column_path,
    curves,
    describe_data,
    fill_value,
    lay_out,
    link,
    new_absences,
    new_record,
    safe_text,
    unknown,
)
from lima2py.storage.steady import SteadyFile
from lima2py.task import RunContext

ALONE = 32 * 2**10
"""Bytes of a frame from which on it has a chunk of its own."""
IMAGES_PER_CHUNK = 256 * 2**10
"""Bytes of a chunk of several smaller images."""
ROWS_PER_CHUNK = 64 * 2**10
"""Bytes of a chunk of vectors or tables: small, since it is written again at each flush."""


def frames_per_chunk(spec: FrameSpec, frames_per_block: int, nb_frames: int) -> int:
    """How many frames share a chunk; chunks of images and blocks fit into each other if they can.

    Args:
        spec: of the frames.
        frames_per_block: the most that come together.
        nb_frames: how many will come in all; 0 if nobody knows.
    """
    if spec.nbytes >= ALONE:
        return 1
    bytes_per_chunk = IMAGES_PER_CHUNK if spec.kind == "dense" else ROWS_PER_CHUNK
    most = max(1, bytes_per_chunk // max(1, spec.nbytes))
    if nb_frames:
        most = min(most, nb_frames)
    if spec.kind != "dense":
        return most
    if frames_per_block <= most:
        return most // frames_per_block * frames_per_block
    return max(n for n in range(1, most + 1) if frames_per_block % n == 0)


class _Note(NamedTuple):
    """The records of one block, not yet written: by path one value for each frame."""

    frames: int
    values: dict[str, Array]
    absences: list[tuple[int, Absence]]


class NodeFile:
    """A file being written.

    Args:
        path: of the file; it must not exist.
        spec: of the frames.
        run: the run, on this node.
        codec: compresses the frames.

    Attributes:
        rows: frames written so far.

    Raises:
        StorageError: from every method, if the disk or HDF5 refuses.
    """

    def __init__(self, path: str, spec: FrameSpec, run: RunContext, codec: Codec):
        self.path = path
        self.rows = 0
        self._spec = spec
        self._codec = codec
        self._fill = fill_value(spec.dtype)
        self._chunk = frames_per_chunk(spec, run.frames_per_block, run.nb_frames)
        self._tail = np.empty((self._chunk, *spec.shape), spec.dtype)
        self._tail_in_file = False
        self._curves = curves(spec)
        self._records: dict[str, np.dtype[Any]] = {
            "frames/index": np.dtype("u8"),
            "frames/fate": FATE_TYPE,
            "frames/timestamp": np.dtype("f8"),
            **dict.fromkeys(self._curves, np.dtype("f8")),
        }
        self._notes: list[_Note] = []
        self._noted = 0
        self._ranges = 0
        self._dirty = False
        self._open: dict[str, h5py.Dataset] = {}
        with telling(path, "cannot be made"):
            self._disk = SteadyFile(path)
            self._file = h5py.File(path, "w", driver="fileobj", fileobj=self._disk)
            try:
                self._detector = self._lay_out(run)
                self._commit()
            except BaseException:
                self._discard()
                raise

    def append(self, block: Block) -> int:
        """Write the frames of a block, absent ones too; returns the row of the first.

        Absent frames read as the fill value.
        """
        row, end = self.rows, self.rows + block.count
        note = self._note(block)
        with telling(self.path, "cannot be written"):
            self._disk.catch_up()
            self._dirty = True
            self._dataset("data").id.set_extent((end, *self._spec.saved_shape))
            self._put(block)
        self._notes.append(note)
        self.rows = end
        return row

    def flush(self) -> None:
        """Make all rows readable, whatever becomes of this process."""
        if not self._dirty:
            return
        with telling(self.path, "cannot be written"):
            self._disk.catch_up()
            self._write_tail()
            self._commit()
            self._write_notes()  # after the frames they speak of
            self._commit()
        self._dirty = False

    def close(self) -> None:
        """Flush and close; a file without a frame is removed."""
        if not self._file:
            return
        if not self.rows:
            self._discard()
            return
        with telling(self.path, "cannot be closed"):
            try:
                self._write_tail()
                self._write_notes()
                self._file.close()
                self._disk.commit()
            finally:
                self._disk.close()

    def _lay_out(self, run: RunContext) -> h5py.Group:
        spec, shape = self._spec, self._spec.saved_shape
        detector = lay_out(self._file, spec, run)
        self._file[ENTRY]["lima2py"].attrs.update(node=safe_text(run.node), rank=run.rank)
        data = detector.create_dataset(
            "data",
            (0, *shape),
            spec.dtype,
            maxshape=(None, *shape),
            chunks=(self._chunk, *shape),
            fillvalue=self._fill,
            **self._codec.filters,
        )
        describe_data(data, spec)
        for path, dtype in self._records.items():
            new_record(detector, path, dtype)
        new_absences(detector)
        link(detector, spec)
        return detector

    def _put(self, block: Block) -> None:
        """Cut a block into chunks; what does not fill one waits in the tail."""
        present = block.present
        done = 0
        while done < block.count:
            row = self.rows + done
            start = row % self._chunk
            take = min(self._chunk - start, block.count - done)
            part, here = slice(done, done + take), present[done : done + take]
            done += take
            if take == self._chunk and here.all():
                whole = np.ascontiguousarray(block.pixels[part])
                self._write(row, self._codec.encode(whole), 0)
                continue
            if take == self._chunk and not here.any():
                continue  # a chunk that is not written reads as the fill value
            tail = self._tail[start : start + take]
            if here.any():
                tail[:] = block.pixels[part]
            tail[~here] = self._fill
            if start + take == self._chunk:
                at = row - start
                if self._tail_in_file:
                    self._write(at, raw(self._tail), self._codec.skipped)
                else:
                    self._write(at, self._codec.encode(self._tail), 0)
                self._tail_in_file = False

    def _write(self, row: int, content: memoryview | bytes, filter_mask: int) -> None:
        """Write a whole chunk, the one that begins with this row."""
        at = (row, *[0] * len(self._spec.saved_shape))
        self._dataset("data").id.write_direct_chunk(at, content, filter_mask)

    def _write_tail(self) -> None:
        """Write the last chunk though it is not full."""
        filled = self.rows % self._chunk
        if filled:
            self._tail[filled:] = self._fill
            self._tail_in_file = True
            self._write(self.rows - filled, raw(self._tail), self._codec.skipped)

    def _commit(self) -> None:
        self._file.flush()
        self._disk.commit()

    def _note(self, block: Block) -> _Note:
        fates = np.full(block.count, Fate.SAVED, np.uint8)
        for offset, absence in block.absences.items():
            fates[offset] = absence.cause
        values: dict[str, Array] = {
            "frames/index": np.arange(block.index, block.end, dtype=np.uint64),
            "frames/fate": fates,
        }
        for name, given in block.columns.items():
            path = column_path(name)
            values[path] = np.array(given)
            self._records.setdefault(path, values[path].dtype)
        for path, (column, row) in self._curves.items():
            if block.data is not None:
                values[path] = np.where(block.present, block.pixels[column][:, row], np.nan)
        absences = [(block.index + offset, said) for offset, said in sorted(block.absences.items())]
        return _Note(block.count, values, absences)

    def _write_notes(self) -> None:
        """Write the records that wait."""
        if not self._notes:
            return
        for path, dtype in self._records.items():
            record = self._dataset(path)
            record.resize((self.rows,))
            record[self._noted :] = np.concatenate(
                [
                    note.values[path] if path in note.values else unknown(note.frames, dtype)
                    for note in self._notes
                ]
            )
        absences = (absence for note in self._notes for absence in note.absences)
        group = self._detector["absences"]
        self._ranges = add_absences(group, absence_ranges(absences), self._ranges)
        self._noted = self.rows
        self._notes.clear()

    def _dataset(self, path: str) -> h5py.Dataset:
        """A dataset below the detector's group; made if it is a record that is new."""
        if path not in self._open:
            if path not in self._detector:
                new_record(self._detector, path, self._records[path])
            self._open[path] = self._detector[path]
        return self._open[path]

    def _discard(self) -> None:
        self._file.close()
        self._disk.close()
        Path(self.path).unlink(missing_ok=True)
