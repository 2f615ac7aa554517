"""Chunks made by us are what HDF5's own filters undo, and the other way round."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import h5py
import hdf5plugin
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lima2py import codec as codec_module
from lima2py.codec import (
    Compression,
    DamagedPayload,
    Encoding,
    Payload,
    bound,
    codec,
    decode,
    filters,
    raw,
)
from lima2py.errors import StorageError
from lima2py.frame import Array

COMPRESSIONS: tuple[Compression | Encoding, ...] = (*get_args(Compression), "lz4")
ENCODINGS: tuple[Encoding, ...] = get_args(Encoding)
DTYPES = [np.dtype(name) for name in ("u1", "i2", ">u2", "u4", "i8", "f2", "f4", ">f8", "c8", "?")]
COUNTERS = np.dtype([("sum", "f8"), ("n", "<u2"), ("flags", "u1", 3)])
WIDE = np.dtype([("spectrum", "f4", 75)])

dtypes = st.sampled_from([*DTYPES, COUNTERS, WIDE])
shapes = st.tuples(st.integers(1, 5), st.integers(1, 70), st.integers(1, 70))
seeds = st.integers(0, 2**32 - 1)
images = st.sampled_from([np.dtype(name) for name in ("u1", "i2", "u4", "f8")])


def numbers(dtype: np.dtype[Any], shape: tuple[int, ...], seed: int, most: int = 2) -> Array:
    """Any bits, few of them set unless `most` is larger."""
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2 if dtype.kind == "b" else most, int(np.prod(shape)) * dtype.itemsize)
    return bits.astype(np.uint8).view(dtype).reshape(shape)


def by_hdf5(encoding: Encoding, chunk: Array) -> Payload:
    """A chunk as HDF5's own filter makes it."""
    with h5py.File("x", "w", driver="core", backing_store=False) as file:
        data = file.create_dataset("d", data=chunk, chunks=chunk.shape, **filters(encoding))
        file.flush()
        mask, content = data.id.read_direct_chunk((0,) * chunk.ndim)
        assert mask == 0
    return np.frombuffer(content, np.uint8)


@given(st.sampled_from(COMPRESSIONS), dtypes, shapes, seeds, st.sampled_from([2, 255]))
def test_any_reader_decodes_what_was_encoded(
    compression: Compression | Encoding,
    dtype: np.dtype[Any],
    shape: tuple[int, int, int],
    seed: int,
    most: int,
) -> None:
    chunk = numbers(dtype, shape, seed, most)
    made = codec(compression)
    with h5py.File("x", "w", driver="core", backing_store=False) as file:
        whole = (shape[0] * 2, *shape[1:])
        data = file.create_dataset("data", whole, dtype, chunks=shape, **made.filters)
        data.id.write_direct_chunk((0, 0, 0), made.encode(chunk), 0)
        data.id.write_direct_chunk((shape[0], 0, 0), raw(chunk), made.skipped)
        assert data[: shape[0]].tobytes() == chunk.tobytes()
        assert data[shape[0] :].tobytes() == chunk.tobytes()


@given(
    st.sampled_from(COMPRESSIONS),
    st.sampled_from([*DTYPES, COUNTERS]),
    st.integers(1, 5000),
    seeds,
)
def test_it_is_what_hdf5_makes_of_the_same_numbers(
    compression: Compression | Encoding, dtype: np.dtype[Any], size: int, seed: int
) -> None:
    chunk = numbers(dtype, (size,), seed)
    with h5py.File("x", "w", driver="core", backing_store=False) as file:
        data = file.create_dataset("d", data=chunk, chunks=(size,), **filters(compression))
        file.flush()
        mask, theirs = data.id.read_direct_chunk((0,))
    assert mask == 0
    assert bytes(codec(compression).encode(chunk)) == theirs


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_one_codec_makes_chunk_after_chunk_of_any_size(compression: Compression | Encoding) -> None:
    made = codec(compression)
    for height in (700, 3, 1, 900):
        chunk = numbers(np.dtype("u2"), (1, height, 1000), height)
        with h5py.File("x", "w", driver="core", backing_store=False) as file:
            data = file.create_dataset(
                "d", chunk.shape, chunk.dtype, chunks=chunk.shape, **made.filters
            )
            data.id.write_direct_chunk((0, 0, 0), made.encode(chunk), 0)
            np.testing.assert_array_equal(data[()], chunk)


def test_counts_get_smaller() -> None:
    counts = np.random.default_rng(1).poisson(0.1, (1, 256, 256)).astype(np.uint32)
    for compression in COMPRESSIONS:
        if compression != "none":
            assert len(codec(compression).encode(counts)) < counts.nbytes / 5


@pytest.mark.parametrize("compression", ["bslz4", "bszstd", "blosc2", "lz4"])
def test_a_missing_library_says_what_to_do(
    compression: Compression | Encoding, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hdf5plugin, "PLUGIN_PATH", str(tmp_path))
    loaded = (codec_module._bitshuffle, codec_module._filter)
    for library in loaded:
        library.cache_clear()
    try:
        with pytest.raises(StorageError, match=f"{compression} needs.*choose compression: gzip"):
            codec(compression)
    finally:
        for library in loaded:
            library.cache_clear()


@given(st.sampled_from(ENCODINGS), images, shapes, seeds, st.sampled_from([2, 255]))
def test_what_hdf5_filters_make_is_decoded(
    encoding: Encoding, dtype: np.dtype[Any], shape: tuple[int, ...], seed: int, most: int
) -> None:
    chunk = numbers(dtype, shape, seed, most)
    payload = by_hdf5(encoding, chunk)
    assert len(payload) <= bound(encoding, chunk.nbytes)
    out = np.empty_like(chunk)
    decode(encoding, payload, out)
    assert out.tobytes() == chunk.tobytes()


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_what_was_encoded_here_is_decoded_here(encoding: Encoding) -> None:
    chunk = numbers(np.dtype("u4"), (1, 515, 487), 3, 40)
    content = np.frombuffer(codec(encoding).encode(chunk), np.uint8)
    decode(encoding, content, out := np.empty_like(chunk))
    np.testing.assert_array_equal(out, chunk)


def test_lz4_in_several_blocks_is_decoded() -> None:
    """As the filter makes them when it is told the size of a block; one does not shrink."""
    chunk = np.concatenate([np.zeros(5000, np.uint8), numbers(np.dtype("u1"), (5000,), 1, 256)])
    with h5py.File("x", "w", driver="core", backing_store=False) as file:
        options = dict(hdf5plugin.LZ4(nbytes=3000))
        data = file.create_dataset("d", data=chunk, chunks=chunk.shape, **options)
        file.flush()
        payload = np.frombuffer(data.id.read_direct_chunk((0,))[1], np.uint8)
    decode("lz4", payload, out := np.empty_like(chunk))
    np.testing.assert_array_equal(out, chunk)
    for end in range(len(payload)):
        with pytest.raises(DamagedPayload):
            decode("lz4", payload[:end], out)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_payload_cut_anywhere_is_refused(encoding: Encoding) -> None:
    chunk = numbers(np.dtype("u2"), (45, 37), 4)
    payload = by_hdf5(encoding, chunk)
    out = np.empty_like(chunk)
    for end in range(len(payload)):
        with pytest.raises(DamagedPayload):
            decode(encoding, payload[:end].copy(), out)
    with pytest.raises(DamagedPayload):
        decode(encoding, np.append(payload, np.uint8(0)), out)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_payload_of_another_image_is_refused(encoding: Encoding) -> None:
    payload = by_hdf5(encoding, numbers(np.dtype("u2"), (45, 37), 4))
    for shape in [(45, 38), (45, 36), (1, 1), (4500, 37)]:
        with pytest.raises(DamagedPayload):
            decode(encoding, payload, np.empty(shape, np.uint16))


damages = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=6)


@settings(max_examples=200)
@given(st.sampled_from(ENCODINGS), images, seeds, damages)
def test_a_damaged_payload_is_refused_or_gives_other_pixels_and_harms_nobody(
    encoding: Encoding, dtype: np.dtype[Any], seed: int, damage: list[tuple[int, int]]
) -> None:
    chunk = numbers(dtype, (3, 41, 29), seed)
    payload = by_hdf5(encoding, chunk).copy()
    for at, value in damage:
        payload[at % len(payload)] = value
    fence = np.full(chunk.nbytes + 64, 0x5A, np.uint8)
    out = fence[32:-32].view(dtype).reshape(chunk.shape)
    try:
        decode(encoding, payload, out)
    except DamagedPayload:
        pass
    assert (fence[:32] == 0x5A).all()
    assert (fence[-32:] == 0x5A).all()


@settings(max_examples=200)
@given(st.sampled_from(ENCODINGS), st.binary(max_size=300), st.sampled_from([0, 2**13, 2**32 - 8]))
def test_garbage_behind_a_good_header_is_refused(
    encoding: Encoding, garbage: bytes, block: int
) -> None:
    out = np.empty((64, 64), np.uint16)
    header = out.nbytes.to_bytes(8, "big") + block.to_bytes(4, "big")
    with pytest.raises(DamagedPayload):
        decode(encoding, np.frombuffer(header + garbage, np.uint8), out)
