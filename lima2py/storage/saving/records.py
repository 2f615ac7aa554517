"""What is kept of every frame besides its data: index, fate, times, and why data are absent.

Records of a block wait until its data are safe; then they are written, so that whatever a record
speaks of is in the file.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence, Set
from typing import Any, NamedTuple

import h5py
import numpy as np

from lima2py.codec import codec
from lima2py.frame import Absence, Array, Block, Fate, FrameSpec
from lima2py.storage.layout import (
    ABSENCE_COLUMNS,
    FATE_TYPE,
    absence_ranges,
    add_absences,
    column_path,
    curves,
    describe_record,
    new_absences,
    no_value,
)
from lima2py.storage.saving.appender import Appender

CHECKSUM = "frames/crc32"
_WORDS = frozenset({"who", "detail"})
RECORD_CHUNK = 1024
"""Frames of a chunk."""


class _Note(NamedTuple):
    """What is to be said of one block: by path one value for each frame, where there is one."""

    first: int
    frames: int
    absences: list[tuple[int, Absence]]
    values: dict[str, Array]


class Records:
    """The records of one product in one file.

    Args:
        detector: the group they are made in.
        spec: of the frames.
        checksum: whether there is a checksum of every frame.
    """

    def __init__(self, detector: h5py.Group, spec: FrameSpec, *, checksum: bool):
        self._detector = detector
        self._curves = curves(spec)
        self._checksum = checksum
        self._columns: dict[str, Appender] = {}
        self._notes: list[_Note] = []
        self._written = 0
        self._ranges = 0
        for path, dtype in (
            ("frames/index", np.dtype("u8")),
            ("frames/fate", FATE_TYPE),
            ("frames/timestamp", np.dtype("f8")),
            *([(CHECKSUM, np.dtype("u4"))] if checksum else []),
            *((path, np.dtype("f8")) for path in self._curves),
        ):
            self._column(path, dtype)
        new_absences(detector)

    def note(self, block: Block) -> None:
        """Take down what is to be said of a block."""
        values = {column_path(name): np.array(given) for name, given in block.columns.items()}
        if self._checksum:
            values[CHECKSUM] = checksums(block)
        if block.data is not None:
            for path, (column, row) in self._curves.items():
                values[path] = np.where(block.present, block.pixels[column][:, row], np.nan)
        absences = [
            (block.index + offset, block.absences[offset]) for offset in sorted(block.absences)
        ]
        self._notes.append(_Note(block.index, block.count, absences, values))

    def write_words(self) -> None:
        """Write the words of the absences that wait; may be done again.

        They lie elsewhere in the file, and must be safe before a row refers to them.
        """
        self._add_absences(self._notes, _WORDS)

    def write(self) -> None:
        """Write the records that wait, after their words."""
        notes, self._notes = self._notes, []
        for path, dtype in {
            path: values.dtype for note in notes for path, values in note.values.items()
        }.items():
            if path not in self._columns:
                self._column(path, dtype).append(None, self._written)
        counts = np.array([note.frames for note in notes])
        total = int(counts.sum())
        firsts = np.array([note.first for note in notes])
        index = np.arange(total) + np.repeat(firsts - np.cumsum(counts) + counts, counts)
        fate = np.full(total, Fate.SAVED, np.uint8)
        at = 0
        for note in notes:
            for frame, absence in note.absences:
                fate[at + frame - note.first] = absence.cause
            at += note.frames
        ours = {"frames/index": index, "frames/fate": fate}
        for path, column in self._columns.items():
            made = ours[path] if path in ours else _joined(notes, path, column.dtype)
            column.append(made, total)
            column.write_tail()
        self._ranges = self._add_absences(notes, ABSENCE_COLUMNS.keys() - _WORDS)
        self._written += total

    @property
    def waiting(self) -> bool:
        """Whether there is anything to write."""
        return bool(self._notes)

    def _add_absences(self, notes: Sequence[_Note], columns: Set[str]) -> int:
        absences = [absence for note in notes for absence in note.absences]
        if not absences:
            return self._ranges
        group = self._detector["absences"]
        return add_absences(group, absence_ranges(absences), self._ranges, columns)

    def _column(self, path: str, dtype: np.dtype[Any]) -> Appender:
        chunk, plain = RECORD_CHUNK, codec("none")
        made = Appender(self._detector, path, (), dtype, chunk, plain, fill=no_value(dtype))
        describe_record(made.dataset, path)
        self._columns[path] = made
        return made


def _joined(notes: Sequence[_Note], path: str, dtype: np.dtype[Any]) -> Array:
    """The values of one record for the frames of some blocks."""
    return np.concatenate(
        [
            note.values[path] if path in note.values else np.full(note.frames, no_value(dtype))
            for note in notes
        ]
    )


def checksums(block: Block) -> Array:
    """The CRC-32 of every frame of a block; 0 where it is absent.

    That of an array is made of its bytes in C order; that of sparse frames of the bytes of each
    column, one after the other as in the type of their rows; that of encoded ones of the bytes that
    are used.
    """
    found = np.zeros(block.count, np.uint32)
    for offset in np.flatnonzero(block.present).tolist():
        found[offset] = checksum(_columns_of(block, offset))
    return found


def checksum(columns: Mapping[str, Array]) -> int:
    """The CRC-32 of one frame, given as the columns of its rows, or as one."""
    crc = 0
    for values in columns.values():
        crc = zlib.crc32(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data, crc)
    return crc


def _columns_of(block: Block, offset: int) -> Mapping[str, Array]:
    if block.spec.kind == "sparse":
        columns = block.rows[offset : offset + 1].columns
        return {name: columns[name] for name in block.spec.dtype.names or ()}
    if block.spec.kind == "encoded":
        return {"": block.pixels[offset, : int(block.columns["nbytes"][offset])]}
    return {"": block.pixels[offset]}
