"""A dataset that grows by rows: all of them readable, whole chunks compressed, none moved."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lima2py.codec import Compression, codec
from lima2py.frame import Array
from lima2py.storage.saving.appender import Appender

FILL = np.array(9999, "u2")


@contextmanager
def a_file() -> Iterator[h5py.File]:
    """One in memory."""
    with h5py.File("a.h5", "w", driver="core", backing_store=False) as file:
        yield file


def rows_of(count: int, first: int = 0) -> Array:
    """Rows of shape (2, 3), each element another number."""
    return np.arange(first * 6, (first + count) * 6, dtype="u2").reshape(count, 2, 3)


def appender(file: h5py.File, chunk: int, compression: Compression = "bslz4") -> Appender:
    kind = np.dtype("u2")
    return Appender(file, "data", (2, 3), kind, chunk, codec(compression), fill=FILL)


def seen(made: Appender) -> Array:
    """The rows as another reader sees them: HDF5 itself trips over them through the same handle."""
    made.dataset.file.flush()
    content = io.BytesIO(made.dataset.file.id.get_file_image())
    with h5py.File(content, "r") as file:
        rows: Array = file["data"][()]
        return rows


def chunks_of(made: Appender) -> list[h5py.h5d.StoreInfo]:
    dataset = made.dataset.id
    return [dataset.get_chunk_info(number) for number in range(dataset.get_num_chunks())]


@st.composite
def steps(draw: st.DrawFn) -> list[tuple[str, Any]]:
    """Rows that come, some not there, now and then made safe."""
    found: list[tuple[str, Any]] = []
    for _ in range(draw(st.integers(0, 8))):
        if draw(st.booleans()):
            found.append(("safe", None))
        here = draw(st.lists(st.booleans(), min_size=1, max_size=9))
        found.append((draw(st.sampled_from(["some", "all", "none"])), np.array(here)))
    return found


@given(steps(), st.integers(1, 7), st.sampled_from(["none", "bslz4", "gzip"]))
def test_rows_come_back_whatever_chunks_they_share_and_however_often_they_are_made_safe(
    todo: list[tuple[str, Any]], chunk: int, compression: Compression
) -> None:
    expected = np.empty((0, 2, 3), "u2")
    with a_file() as file:
        made = appender(file, chunk, compression)
        for what, here in todo:
            if what == "safe":
                made.write_tail()
                assert np.array_equal(seen(made), expected)  # at this moment, too
                continue
            count = len(here)
            rows = rows_of(count, len(expected))
            if what == "none":
                made.append(None, count)
                rows[:] = FILL
            elif what == "all":
                made.append(rows, count)
            else:
                made.append(rows, count, here)
                rows = np.where(here[:, None, None], rows, FILL)
            expected = np.concatenate([expected, rows])
        made.write_tail()
        assert made.rows == len(made.dataset) == len(expected)
        assert np.array_equal(seen(made), expected)


def test_rows_that_are_not_there_take_no_room() -> None:
    with a_file() as file:
        made = appender(file, 4)
        made.append(rows_of(12), 12, np.repeat([True, False, True], 4))
        made.append(None, 8)
        assert [chunk.chunk_offset[0] for chunk in chunks_of(made)] == [0, 8]
        assert (seen(made)[12:] == FILL).all()


def test_rows_that_were_made_safe_are_not_moved_by_those_that_follow() -> None:
    with a_file() as file:
        made = appender(file, 8)
        places = set()
        for number in range(8):
            made.append(rows_of(1, number), 1)
            made.write_tail()
            (chunk,) = chunks_of(made)
            places.add((chunk.byte_offset, chunk.size))
        assert len(places) == 1
        assert np.array_equal(seen(made), rows_of(8))


@pytest.mark.parametrize("compression", ["bslz4", "bszstd", "gzip", "blosc2"])
def test_only_chunks_that_were_not_full_when_made_safe_are_not_compressed(
    compression: Compression,
) -> None:
    with a_file() as file:
        made = appender(file, 400, compression)
        made.append(np.zeros((500, 2, 3), "u2"), 500)
        made.write_tail()
        made.append(np.zeros((700, 2, 3), "u2"), 700)
        assert [chunk.filter_mask for chunk in chunks_of(made)] == [0, 1, 0]
        whole = 400 * 6 * 2
        assert [chunk.size == whole for chunk in chunks_of(made)] == [False, True, False]


def test_rows_that_are_no_whole_piece_of_memory_are_kept_too() -> None:
    whole = np.arange(5 * 10 * 12, dtype="u2").reshape(5, 10, 12)
    cut = whole[:, 3:5, 9:3:-2]
    with a_file() as file:
        made = appender(file, 2)
        made.append(cut, 5)
        made.write_tail()
        assert np.array_equal(seen(made), cut)
