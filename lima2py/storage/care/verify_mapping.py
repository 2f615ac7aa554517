"""Whether the virtual datasets of a master show what its records say."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from lima2py.frame import Fate, FrameSpec
from lima2py.storage.entry import NodeEntry, ragged_columns
from lima2py.storage.names import PART


class Part(NamedTuple):
    """Frames that should be shown from the file of a node.

    Attributes:
        entry: of the file.
        frames: their indices, increasing.
        rows: where each of them lies in the file.
    """

    entry: NodeEntry
    frames: NDArray[np.int64]
    rows: NDArray[np.int64]


class _Piece(NamedTuple):
    """Some rows of a virtual dataset, and what they are of what file."""

    file: Path
    dataset: str
    here: NDArray[np.int64]
    there: NDArray[np.int64]


def wrong_frames(
    path: Path,
    group: h5py.Group,
    spec: FrameSpec,
    nb_frames: int,
    parts: Sequence[Part],
    *,
    pixels: bool,
) -> NDArray[np.int64]:
    """The frames that a master does not show from where its records say they lie.

    Args:
        path: of the master.
        group: of the detector.
        spec: of the frames.
        nb_frames: how many it shows.
        parts: where the frames lie, by the records.
        pixels: whether columns that are copied, not mapped, are compared with their origin.
    """
    if spec.kind == "sparse":
        return _wrong_sparse(path, group["data"], spec, nb_frames, parts, pixels=pixels)
    shown: dict[tuple[Path, str], NDArray[np.int64]] = {}
    for piece in _pieces(path, group["data"]):
        rows = shown.setdefault((piece.file, piece.dataset), np.full(nb_frames, -1, np.int64))
        rows[piece.here] = piece.there
    wrong = np.zeros(nb_frames, bool)
    absent = np.ones(nb_frames, bool)
    for part in parts:
        absent[part.frames] = False
    for part in parts:
        due = np.full(nb_frames, -1, np.int64)
        rows = shown.pop((_finished(part.entry.path), f"{part.entry.group}/data"), due.copy())
        due[part.frames] = part.rows
        wrong |= (rows != due) & ~(absent & _is_blank(part.entry, rows))
    for rows in shown.values():
        wrong |= rows >= 0
    return np.flatnonzero(wrong)


def _is_blank(entry: NodeEntry, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """By frame, whether the row shown for it is its own, and has the fill value."""
    blank = (rows >= 0) & (rows < len(entry))
    frames = np.flatnonzero(blank)
    theirs = rows[frames]
    blank[frames] = (entry.index[theirs] == frames) & (entry.fate[theirs] != Fate.SAVED)
    return blank


def _wrong_sparse(
    path: Path,
    data: h5py.Group,
    spec: FrameSpec,
    nb_frames: int,
    parts: Sequence[Part],
    *,
    pixels: bool,
) -> NDArray[np.int64]:
    pointer = data["frame_ptr"][:].astype(np.int64)
    counts, due = np.diff(pointer), np.zeros(nb_frames, np.int64)
    if len(counts) != nb_frames or pointer[0] != 0:
        return np.arange(nb_frames)
    wrong = data["nnz"][:] != counts
    for part in parts:
        theirs = _pointer(part.entry)
        due[part.frames] = theirs[part.rows + 1] - theirs[part.rows]
    wrong |= counts != due
    if wrong.any():
        return np.flatnonzero(wrong)
    for name in ragged_columns(spec):
        column = data[name]
        if column.is_virtual:
            _check_mapped(path, column, name, pointer, parts, wrong)
        elif len(column) != pointer[-1]:
            wrong[:] = True
        elif pixels:
            _check_copied(column, name, pointer, parts, wrong)
    return np.flatnonzero(wrong)


def _check_mapped(
    path: Path,
    column: h5py.Dataset,
    name: str,
    pointer: NDArray[np.int64],
    parts: Sequence[Part],
    wrong: NDArray[np.bool_],
) -> None:
    """Stretches of a column: each frame should lie in one, where its file has it."""
    pieces = sorted(_stretches(path, column))
    begins = np.array([to for to, *_ in pieces], np.int64)
    for part in parts:
        theirs = _pointer(part.entry)
        at, length = theirs[part.rows], np.diff(pointer)[part.frames]
        file = (_finished(part.entry.path), f"{part.entry.group}/data/{name}")
        mine = np.array([(where, dataset) == file for *_, where, dataset in pieces], bool)
        sources = np.array([source for _, source, *_ in pieces], np.int64)
        ends = np.array([to + count for to, _, count, *_ in pieces], np.int64)
        some = length > 0
        frames, to = part.frames[some], pointer[:-1][part.frames[some]]
        if not pieces:
            wrong[frames] = True
            continue
        piece = np.searchsorted(begins, to, side="right") - 1
        good = (piece >= 0) & mine[piece] & (to + length[some] <= ends[piece])
        good &= sources[piece] + to - begins[piece] == at[some]
        wrong[frames[~good]] = True


def _check_copied(
    column: h5py.Dataset,
    name: str,
    pointer: NDArray[np.int64],
    parts: Sequence[Part],
    wrong: NDArray[np.bool_],
) -> None:
    for part in parts:
        theirs = _pointer(part.entry)
        with h5py.File(part.entry.path, "r", locking=False) as file:
            values = file[f"{part.entry.group}/data/{name}"]
            for frame, row in zip(part.frames.tolist(), part.rows.tolist(), strict=True):
                mine = column[pointer[frame] : pointer[frame + 1]]
                same = mine.tobytes() == values[theirs[row] : theirs[row + 1]].tobytes()
                wrong[frame] |= not same


def _pieces(path: Path, data: h5py.Dataset) -> Iterator[_Piece]:
    """What a virtual dataset maps, but for what it says is absent."""
    for source in data.virtual_sources() if data.is_virtual else ():
        if source.file_name != ".":
            file, dataset = _named(path, source)
            yield _Piece(file, dataset, _rows(source.vspace), _rows(source.src_space))


def _stretches(path: Path, column: h5py.Dataset) -> Iterator[tuple[int, int, int, Path, str]]:
    """Of a column, for each mapping: first row, the same in the file, how many, file, dataset."""
    for source in column.virtual_sources():
        (to, *_), (last, *_) = source.vspace.get_select_bounds()
        (at, *_), _ = source.src_space.get_select_bounds()
        yield to, at, last - to + 1, *_named(path, source)


def _named(path: Path, source: h5py._hl.vds.VDSmap) -> tuple[Path, str]:
    file, dataset = (name.replace("%%", "%") for name in (source.file_name, source.dset_name))
    return _finished(path.parent / file), dataset


def _rows(space: h5py.h5s.SpaceID) -> NDArray[np.int64]:
    """The first coordinate of what is selected in a space."""
    if not space.is_regular_hyperslab():
        (first, *_), (last, *_) = space.get_select_bounds()
        return np.arange(first, last + 1)
    (start, *_), (stride, *_), (count, *_), (block, *_) = space.get_regular_hyperslab()
    rows: NDArray[np.int64] = start + stride * np.arange(count)[:, None] + np.arange(block)
    return rows.reshape(-1)


def _pointer(entry: NodeEntry) -> NDArray[np.int64]:
    assert entry.pointer is not None  # noqa: S101 - for the type checker
    return entry.pointer.astype(np.int64)


def _finished(path: Path) -> Path:
    """The full name a file has, or will have: of one that is unfinished, both are mapped."""
    return Path(os.path.abspath(path).removesuffix(PART))
