"""Chunks made by us are what HDF5's own filters undo."""

from __future__ import annotations

from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lima2py.errors import StorageError
from lima2py.frame import Array
from lima2py.storage import codec as codec_module
from lima2py.storage.codec import Compression, codec, raw

COMPRESSIONS: tuple[Compression, ...] = ("none", "bslz4", "gzip")
DTYPES = [np.dtype(name) for name in ("u1", "i2", ">u2", "u4", "i8", "f2", "f4", ">f8", "c8", "?")]
COUNTERS = np.dtype([("sum", "f8"), ("n", "<u2"), ("flags", "u1", 3)])


@given(
    st.sampled_from(COMPRESSIONS),
    st.sampled_from([*DTYPES, COUNTERS]),
    st.tuples(st.integers(1, 5), st.integers(1, 70), st.integers(1, 70)),
    st.integers(0, 2**32 - 1),
    st.sampled_from([2, 255]),
)
def test_any_reader_decodes_what_was_encoded(
    compression: Compression,
    dtype: np.dtype[np.generic],
    shape: tuple[int, int, int],
    seed: int,
    most: int,
) -> None:
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2 if dtype.kind == "b" else most, int(np.prod(shape)) * dtype.itemsize)
    chunk = bits.astype(np.uint8).view(dtype).reshape(shape)
    made = codec(compression)
    with h5py.File("x", "w", driver="core", backing_store=False) as file:
        whole = (shape[0] * 2, *shape[1:])
        data = file.create_dataset("data", whole, dtype, chunks=shape, **made.filters)
        data.id.write_direct_chunk((0, 0, 0), made.encode(chunk), 0)
        data.id.write_direct_chunk((shape[0], 0, 0), raw(chunk), made.skipped)
        assert data[: shape[0]].tobytes() == chunk.tobytes()
        assert data[shape[0] :].tobytes() == chunk.tobytes()


@given(hnp.arrays(np.uint16, st.integers(1, 5000), elements=st.integers(0, 3)))
def test_bslz4_is_what_hdf5plugin_makes_of_the_same_numbers(chunk: Array) -> None:
    with h5py.File("x", "w", driver="core", backing_store=False) as file:
        data = file.create_dataset("d", data=chunk, chunks=chunk.shape, **hdf5plugin.Bitshuffle())
        file.flush()
        _, theirs = data.id.read_direct_chunk((0,))
    assert bytes(codec("bslz4").encode(chunk)) == theirs


def test_counts_get_smaller() -> None:
    counts = np.random.default_rng(1).poisson(0.1, (1, 256, 256)).astype(np.uint32)
    for compression in ("bslz4", "gzip"):
        assert len(codec(compression).encode(counts)) < counts.nbytes / 10


def test_a_missing_library_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdf5plugin, "PLUGIN_PATH", str(tmp_path))
    codec_module._bitshuffle.cache_clear()
    try:
        with pytest.raises(StorageError, match="choose compression: gzip"):
            codec("bslz4")
    finally:
        codec_module._bitshuffle.cache_clear()
