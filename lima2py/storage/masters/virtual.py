"""The frames of all nodes as one dataset, in their order, without a copy of any pixel.

It is a virtual dataset: a list of mappings, each saying which frames are which rows of which
file. One mapping a frame is what NeXpy (nexusformat) needs: it takes the number of mappings for
the number of frames. Beyond `MAX_MAPPINGS` frames, and while files are not finished, there is one
for each stretch of consecutive rows, and if these are too many, one for each regular series of
stretches: quick to write, open and read, but NeXpy then shows fewer frames than there are.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from lima2py.frame import FrameSpec
from lima2py.storage.layout import fill_value
from lima2py.storage.names import PART

MAX_MAPPINGS = 2000
"""HDF5 takes about 24 kB of memory for each while it writes them."""


class Part(NamedTuple):
    """Frames that lie in one file.

    Attributes:
        path: of the file.
        dataset: path of the dataset in the file.
        length: rows of that dataset.
        frames: indices of the frames, increasing; absent ones too, if the file has rows for them.
        rows: where each of them lies.
    """

    path: Path
    dataset: str
    length: int
    frames: NDArray[np.int64]
    rows: NDArray[np.int64]


class Series(NamedTuple):
    """A stretch of `length` frames, and again every `step` frames; the rows go on through all."""

    frame: int
    row: int
    length: int
    step: int
    times: int


def stretches(frames: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Frames and rows cut where either does not go on by one.

    Returns:
        Array `(stretches, 3)`: the first frame, its row, and how many there are.
    """
    goes_on = (np.diff(frames) == 1) & (np.diff(rows) == 1)
    firsts = np.flatnonzero(np.concatenate([[True], ~goes_on])[: len(frames)])
    return np.stack([frames[firsts], rows[firsts], np.diff(firsts, append=len(frames))], axis=1)


def series(parts: NDArray[np.int64]) -> list[Series]:
    """Stretches of equal length at equal distances, whose rows go on, taken together."""
    frames, rows, lengths = parts.T
    steps = np.diff(frames)
    fits = (np.diff(lengths) == 0) & (np.diff(rows) == lengths[:-1])
    same = fits[1:] & fits[:-1] & (np.diff(steps) == 0)  # as the joint before
    ends = np.append(np.flatnonzero(~same) + 1, len(fits))  # joints before each are alike
    found: list[Series] = []
    at = 0
    for end in [*ends.tolist(), len(parts)]:
        if end <= at:
            continue
        times = end - at + 1 if at < len(fits) and fits[at] else 1
        step = steps[at] if times > 1 else lengths[at]
        found.append(Series(*map(int, (frames[at], rows[at], lengths[at], step, times))))
        at += times
    return found


def create(
    group: h5py.Group, name: str, nb_frames: int, spec: FrameSpec, parts: list[Part]
) -> h5py.Dataset:
    """Make the virtual dataset; frames in none of the parts read as the fill value.

    A file that does not exist when it is read counts as fill values too. Paths are written
    relative to the file, so that its folder can be moved.

    Args:
        group: where it is made.
        name: of the dataset.
        nb_frames: how many frames it shows.
        spec: of the frames.
        parts: where the frames lie; no frame twice.
    """
    shape = spec.saved_shape
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_obj_track_times(False)  # like all others, which h5py makes
    layout.set_fill_value(fill_value(spec.dtype))
    if nb_frames:
        layout.set_layout(h5py.h5d.VIRTUAL)
    everything = _Rows(nb_frames, shape)
    folder = Path(group.file.filename).parent
    each = nb_frames <= MAX_MAPPINGS and not any(part.path.name.endswith(PART) for part in parts)
    for part, pieces in zip(parts, _mappings(parts, each=each), strict=True):
        source = _Rows(part.length, shape)
        names, dataset = source_names(part.path, folder), part.dataset
        for piece in pieces:
            here = everything.select(piece.frame, piece.length, piece.step, piece.times)
            there = source.select(piece.row, piece.length * piece.times)
            for name_there in names:
                layout.set_virtual(here, escaped(name_there), escaped(dataset), there)
    if each:
        nothing = _Rows(1, shape).select(0, 1)
        for frame in _unmapped(nb_frames, parts):
            layout.set_virtual(everything.select(frame, 1), b".", b"/absent", nothing)
    kind = h5py.h5t.py_create(spec.dtype, logical=True)
    space = _Rows(nb_frames, shape).space
    return h5py.Dataset(h5py.h5d.create(group.id, name.encode(), kind, space, layout))


class _Rows:
    """A dataspace of rows of one shape."""

    def __init__(self, length: int, shape: tuple[int, ...]):
        self.space = h5py.h5s.create_simple((length, *shape))
        self._shape = shape

    def select(self, start: int, length: int, step: int = 0, times: int = 1) -> h5py.h5s.SpaceID:
        """The space with `length` rows selected, `times` times, every `step` rows."""
        ones = (1,) * len(self._shape)
        self.space.select_hyperslab(
            (start, *(0 for _ in ones)),
            (times, *ones),
            stride=(max(step, length), *self._shape),
            block=(length, *self._shape),
        )
        return self.space


def _mappings(parts: list[Part], *, each: bool) -> list[list[Series]]:
    """The mappings of every part: one for each frame, or as few as can be."""
    if each:
        return [
            [
                Series(frame, row, 1, 1, 1)
                for frame, row in zip(part.frames.tolist(), part.rows.tolist(), strict=True)
            ]
            for part in parts
        ]
    found = [stretches(part.frames, part.rows) for part in parts]
    if sum(map(len, found)) > MAX_MAPPINGS:
        return [series(part) for part in found]
    return [
        [Series(frame, row, length, length, 1) for frame, row, length in part.tolist()]
        for part in found
    ]


def _unmapped(nb_frames: int, parts: list[Part]) -> list[int]:
    missing = np.ones(nb_frames, bool)
    for part in parts:
        missing[part.frames] = False
    return np.flatnonzero(missing).tolist()


def source_names(path: Path, folder: Path) -> list[str]:
    """What a file of a node is called, seen from the folder of the master.

    One that is not finished has two names, since it will soon have another: of two mappings to the
    same place the one whose file is there counts.
    """
    name = os.path.relpath(path, folder)
    return [name, name.removesuffix(PART)] if name.endswith(PART) else [name]


def escaped(name: str) -> bytes:
    """A name as HDF5 takes it in a mapping, where % has a meaning."""
    return os.fsencode(name.replace("%", "%%"))
