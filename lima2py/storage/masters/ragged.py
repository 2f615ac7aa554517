"""The sparse frames of all nodes as one set of columns, in the order of the frames (CSR).

As long as the columns are made of few stretches of the nodes' columns they are virtual datasets;
otherwise, since HDF5 looks through all stretches for whatever is read, they are copied.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from lima2py.codec import codec
from lima2py.frame import Array, FrameSpec
from lima2py.storage.entry import alone, ragged_columns
from lima2py.storage.layout import describe_sparse, new_group
from lima2py.storage.masters.virtual import MAX_MAPPINGS, escaped, source_names

if TYPE_CHECKING:
    from lima2py.storage.masters.master import Part

CHUNK = 128 * 2**10
"""Bytes of a chunk of a column that is copied."""
AT_ONCE = 64 * 2**20
"""About how many bytes are copied at once."""


class Stretch(NamedTuple):
    """Rows that follow each other in a file of a node, and in the master.

    Attributes:
        part: number of the file.
        at: the first row, in the file.
        to: the same, in the master.
        length: how many.
    """

    part: int
    at: int
    to: int
    length: int


def create(detector: h5py.Group, spec: FrameSpec, nb_frames: int, parts: Sequence[Part]) -> None:
    """Make the group `data`, with `frame_ptr`, `nnz` and a dataset for each column.

    Args:
        detector: where it is made.
        spec: of the frames.
        nb_frames: how many the master has; those in none of the parts have no rows.
        parts: the files of the nodes.
    """
    group = new_group(detector, "data", "NXdata")
    counts = np.zeros(nb_frames, np.int64)
    source = np.full(nb_frames, -1, np.int64)
    begin = np.zeros(nb_frames, np.int64)
    for number, part in enumerate(parts):
        pointer = part.entry.pointer
        assert pointer is not None  # noqa: S101 - for the type checker
        ends = pointer.astype(np.int64)
        counts[part.frames] = ends[part.rows + 1] - ends[part.rows]
        begin[part.frames] = ends[part.rows]
        source[part.frames] = number
    pointer = np.zeros(nb_frames + 1, np.uint64)
    np.cumsum(counts, out=pointer[1:].view(np.int64))
    group.create_dataset("frame_ptr", data=pointer)
    group.create_dataset("nnz", data=counts.astype(np.uint32))
    stretches = list(_stretches(source, begin, counts))
    total = int(pointer[-1])
    for name, dtype in ragged_columns(spec).items():
        make = _map if len(stretches) <= MAX_MAPPINGS else _copy
        make(group, name, dtype, total, stretches, parts)
    _copy_maps(group, spec, nb_frames, parts)
    describe_sparse(group, spec)


def _stretches(
    source: NDArray[np.int64], begin: NDArray[np.int64], counts: NDArray[np.int64]
) -> Iterator[Stretch]:
    """Frame by frame what follows each other, joined where the same file goes on."""
    frames = np.flatnonzero(counts)
    if not len(frames):
        return
    source, begin, counts = source[frames], begin[frames], counts[frames]
    goes_on = (np.diff(source) == 0) & (begin[1:] == begin[:-1] + counts[:-1])
    firsts = np.concatenate([[0], np.flatnonzero(~goes_on) + 1])
    lengths = np.add.reduceat(counts, firsts)
    places = np.cumsum(lengths) - lengths
    for first, to, length in zip(firsts.tolist(), places.tolist(), lengths.tolist(), strict=True):
        yield Stretch(int(source[first]), int(begin[first]), to, length)


def _map(
    group: h5py.Group,
    name: str,
    dtype: np.dtype[Any],
    total: int,
    stretches: Sequence[Stretch],
    parts: Sequence[Part],
) -> None:
    """One column as a virtual dataset."""
    folder = Path(group.file.filename).parent
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_obj_track_times(False)  # like all others, which h5py makes
    here = h5py.h5s.create_simple((total,))
    if total:
        layout.set_layout(h5py.h5d.VIRTUAL)
    for part, at, to, length in stretches:
        entry = parts[part].entry
        there = h5py.h5s.create_simple((entry.length,))
        here.select_hyperslab((to,), (1,), block=(length,))
        there.select_hyperslab((at,), (1,), block=(length,))
        for path in source_names(entry.path, folder):
            layout.set_virtual(here, escaped(path), escaped(f"{entry.group}/data/{name}"), there)
    space = h5py.h5s.create_simple((total,))
    h5py.h5d.create(group.id, name.encode(), h5py.h5t.py_create(dtype, logical=True), space, layout)


def _copy(
    group: h5py.Group,
    name: str,
    dtype: np.dtype[Any],
    total: int,
    stretches: Sequence[Stretch],
    parts: Sequence[Part],
) -> None:
    """One column as a dataset of its own."""
    squeeze = codec("bslz4")
    chunk = min(total, max(1, CHUNK // dtype.itemsize))
    column = group.create_dataset(name, (total,), dtype, chunks=(chunk,), **squeeze.filters)
    room = np.empty(chunk, dtype)
    filled = written = 0
    for values in _pieces(name, stretches, parts):
        while len(values):
            take = min(chunk - filled, len(values))
            room[filled : filled + take] = values[:take]
            values = values[take:]
            filled += take
            if filled == chunk or written + filled == total:
                room[filled:] = 0
                column.id.write_direct_chunk((written,), squeeze.encode(room), 0)
                written += filled
                filled = 0


def _pieces(name: str, stretches: Sequence[Stretch], parts: Sequence[Part]) -> Iterator[Array]:
    """The rows of one column in the order of the frames; each file is read once, as it goes on."""
    with ExitStack() as opened:
        files = [opened.enter_context(alone(part.entry.path)) for part in parts]
        readers = [
            _Ahead(file[f"{part.entry.group}/data/{name}"])
            for file, part in zip(files, parts, strict=True)
        ]
        for part, at, _, length in stretches:
            yield readers[part].read(at, length)


class _Ahead:
    """Reads a dataset in large pieces, for somebody who takes it in small ones."""

    def __init__(self, dataset: h5py.Dataset):
        self._dataset = dataset
        self._most = max(1, AT_ONCE // dataset.dtype.itemsize)
        self._begin = 0
        self._piece: Array = np.empty(0, dataset.dtype)

    def read(self, at: int, length: int) -> Array:
        if not self._begin <= at <= at + length <= self._begin + len(self._piece):
            self._begin = at
            self._piece = self._dataset[at : at + max(length, self._most)]
        return self._piece[at - self._begin : at - self._begin + length]


def _copy_maps(group: h5py.Group, spec: FrameSpec, nb_frames: int, parts: Sequence[Part]) -> None:
    """What belongs to all frames, and the background of each, as the files of the nodes have it."""
    known = {*ragged_columns(spec), "frame_ptr", "nnz", "frame"}
    backgrounds: dict[str, Array] = {}
    for part in parts:
        with alone(part.entry.path) as file:
            theirs = file[f"{part.entry.group}/data"]
            for name in theirs.keys() - known:
                if name in ("background_avg", "background_std"):
                    levels = theirs[name][:]
                    shape = (nb_frames, levels.shape[1])
                    backgrounds.setdefault(name, np.zeros(shape, levels.dtype))
                    backgrounds[name][part.frames] = levels[part.rows]
                elif name not in group:
                    theirs.copy(name, group)
    for name, levels in backgrounds.items():
        group.create_dataset(name, data=levels)
