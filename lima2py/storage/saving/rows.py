"""How the data of each kind of product lie in a file, one row a frame.

Images, vectors and tables are stacked in one dataset. Sparse frames are, as the field has it (CSR),
one array for each column with the rows of all frames, and `frame_ptr`, which says where each frame
begins. Each kind answers to `put`, `make_safe` (what was put is in the file) and `conclude` (what
refers to it, written when that is safe).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import h5py
import numpy as np

from lima2py.codec import Codec
from lima2py.codec import codec as codec_named
from lima2py.frame import Array, Block, FrameSpec
from lima2py.storage.layout import (
    describe_data,
    describe_sparse,
    fill_value,
    new_group,
    saved_column,
)
from lima2py.storage.saving.appender import Appender
from lima2py.storage.saving.records import RECORD_CHUNK

ALONE = 32 * 2**10
"""Bytes of a frame from which on it has a chunk of its own."""
IMAGES_PER_CHUNK = 256 * 2**10
"""Bytes of a chunk of several smaller images."""
ROWS_PER_CHUNK = 64 * 2**10
"""Bytes of a chunk of vectors or tables: small, since it is written again at each flush."""
COLUMN_CHUNK = 128 * 2**10
"""Bytes of a chunk of a column of sparse frames."""


class Rows(Protocol):
    """The data of one product in one file."""

    def put(self, block: Block, *others: Block) -> None:
        """Take the frames of a block, absent ones too."""

    def make_safe(self) -> None:
        """See to it that all frames taken are in the file."""

    def conclude(self) -> None:
        """Write what refers to them."""


class Stacked:
    """Images, vectors, tables: `data`, with as many rows as frames.

    Args:
        detector: the group it is made in.
        spec: of the frames.
        codec: compresses them.
        chunk: frames of a chunk.
    """

    def __init__(self, detector: h5py.Group, spec: FrameSpec, codec: Codec, chunk: int):
        fill = fill_value(spec.dtype)
        self._data = Appender(
            detector, "data", spec.saved_shape, spec.dtype, chunk, codec, fill=fill
        )
        describe_data(self._data.dataset, spec)

    def put(self, block: Block, *others: Block) -> None:
        """See `Rows`."""
        data = None if block.data is None else block.pixels
        self._data.append(data, block.count, block.present if block.absences else None)

    def make_safe(self) -> None:
        """See `Rows`."""
        self._data.write_tail()

    def conclude(self) -> None:
        """See `Rows`: nothing refers to the rows but the records."""
        return


class RaggedRows:
    """Sparse frames: the group `data`, with `frame_ptr` and an array for each column.

    A second input is the background of each frame, as `radial_sigma_clip` gives it.

    Args:
        detector: the group it is made in.
        spec: of the frames.
        codec: compresses the columns.
        maps: arrays that readers need (`Task.maps`).
        bins: of the background; None if there is none.
    """

    def __init__(
        self,
        detector: h5py.Group,
        spec: FrameSpec,
        codec: Codec,
        maps: Mapping[str, Array],
        bins: int | None,
    ):
        group = new_group(detector, "data", "NXdata")
        names = spec.dtype.names or ()
        self._columns = {
            name: Appender(
                group,
                saved_column(name, spec),
                spec.dtype[name].shape,
                spec.dtype[name].base,
                max(1, COLUMN_CHUNK // max(1, spec.dtype[name].itemsize)),
                codec,
            )
            for name in names
        }
        plain = codec_named("none")
        self._pointer = Appender(group, "frame_ptr", (), np.dtype("u8"), RECORD_CHUNK, plain)
        self._pointer.append(np.zeros(1, np.uint64), 1)
        self._pointer.write_tail()
        self._counts = Appender(group, "nnz", (), np.dtype("u4"), RECORD_CHUNK, plain)
        self._background: dict[str, Appender] = {}
        maps = dict(maps)
        self._edges = bins is not None and {"mask", "radius"} <= maps.keys()
        if self._edges:
            maps["radius"], maps["mask"] = with_edges(maps["radius"], maps["mask"])
        if bins is not None:
            bins += 2 * self._edges
            chunk = max(1, ROWS_PER_CHUNK // (4 * bins))
            self._background = {
                column: Appender(
                    group, f"background_{column}", (bins,), np.dtype("f4"), chunk, codec
                )
                for column in ("avg", "std")
            }
        for name, values in maps.items():
            group.create_dataset(name, data=np.asarray(values, np.float32))
        describe_sparse(group, spec)
        self._rows = 0
        self._waiting: list[Array] = []

    def put(self, block: Block, *others: Block) -> None:
        """See `Rows`."""
        counts = np.zeros(block.count, np.int64)
        if block.data is not None:
            rows = block.rows
            counts = np.where(block.present, rows.counts, 0)
            keep = np.repeat(block.present, rows.counts) if block.absences else None
            for name, appender in self._columns.items():
                values = rows.columns[name]
                values = values if keep is None else values[keep]
                appender.append(values, len(values))
        for table in others:
            self._put_background(block, table)
        self._waiting.append(counts)

    def _put_background(self, block: Block, table: Block) -> None:
        present = block.present if block.absences else None
        for column, appender in self._background.items():
            level = None
            if table.data is not None:
                edges = int(self._edges)
                level = np.pad(
                    without_gaps(table.pixels[column]), ((0, 0), (edges, edges)), mode="edge"
                )
            appender.append(level, block.count, present)

    def make_safe(self) -> None:
        """See `Rows`."""
        for appender in (*self._columns.values(), *self._background.values()):
            appender.write_tail()

    def conclude(self) -> None:
        """See `Rows`: write where each frame begins."""
        counts = np.concatenate(self._waiting)
        self._counts.append(counts, len(counts))
        self._pointer.append(self._rows + np.cumsum(counts), len(counts))
        self._counts.write_tail()
        self._pointer.write_tail()
        self._rows += int(counts.sum())
        self._waiting.clear()


def with_edges(radius: Array, mask: Array) -> tuple[Array, Array]:
    """Bins and pixels such that every pixel lies between the centres of two bins.

    fabio takes all bins to be equally wide, and gives the pixels outside the first and last centre
    no value. Hence one more bin on each side, where the background is that of its neighbour.

    Args:
        radius: of the centres of the bins.
        mask: the radius of every pixel, NaN where it is not valid.

    Returns:
        The radii of two bins more; and the mask, NaN also where a pixel lies outside all of them
        and has no background.
    """
    step = (radius[-1] - radius[0]) / (len(radius) - 1)
    low, high = radius[0] - step, radius[-1] + step
    outside = (mask <= low) | (mask >= high)
    return np.linspace(low, high, len(radius) + 2), np.where(outside, np.nan, mask)


def without_gaps(levels: Array) -> Array:
    """A background of each frame, `(frames, bins)`, interpolated where a bin has none, as float32.

    That is how readers of these files take it: they interpolate between all bins.
    """
    filled = np.array(levels, np.float32)
    for row in filled:
        known = np.isfinite(row)
        if not known.all():
            places = np.arange(len(row))
            row[~known] = (
                np.interp(places[~known], places[known], row[known]) if known.any() else 0.0
            )
    return filled


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
