"""Compress and decompress frames ourselves, so that no pixel waits for HDF5's lock.

What comes out are whole chunks just as HDF5's own filters would have made them, ready for
`write_direct_chunk`; every reader of HDF5 decodes them. What a detector compresses is of the same
formats, and `decode` undoes it. The work is done in C without Python's lock.

Formats: bitshuffle (https://github.com/kiyo-masui/bitshuffle, HDF5 filter 32008), LZ4 (HDF5
filter 32004), Blosc2 (HDF5 filter 32026), gzip (RFC 1950, HDF5 filter 1).
"""

from __future__ import annotations

import ctypes
import struct
import zlib
from abc import ABC, abstractmethod
from functools import cache
from pathlib import Path
from typing import Any, Literal

import hdf5plugin
import numpy as np
from numpy.typing import NDArray

from lima2py.errors import LimaError, StorageError
from lima2py.frame import Array

Compression = Literal["none", "bslz4", "bszstd", "gzip", "blosc2"]
"""What frames can be compressed with."""
Encoding = Literal["none", "bslz4", "bszstd", "gzip", "lz4"]
"""How frames can come compressed."""
Payload = NDArray[np.uint8]
"""The bytes of one frame as it came, one dimension."""

_LEVEL = 1
"""Of zstd and deflate: more takes much longer and gains a few per cent of detector frames."""
_BLOSC2 = {"cname": "zstd", "clevel": _LEVEL, "filters": hdf5plugin.Blosc2.BITSHUFFLE}


class DamagedPayload(LimaError):
    """What cannot be decoded: cut short, or changed on its way."""


def filters(name: Compression | Encoding) -> dict[str, Any]:
    """What `create_dataset` must be told so that readers undo a compression."""
    if name == "none":
        return {}
    if name == "gzip":
        return {"compression": "gzip", "compression_opts": _LEVEL}
    if name == "blosc2":
        return dict(hdf5plugin.Blosc2(**_BLOSC2))
    if name == "lz4":
        return dict(hdf5plugin.LZ4())
    if name == "bszstd":
        return dict(hdf5plugin.Bitshuffle(cname="zstd", clevel=_LEVEL))
    return dict(hdf5plugin.Bitshuffle(cname="lz4"))


class Codec(ABC):
    """Makes chunks of arrays; serves one thread.

    Attributes:
        filters: what `create_dataset` must be told so that readers undo it.
        skipped: the filter mask of a chunk that is written as it is.
    """

    def __init__(self, compression: Compression | Encoding):
        self.filters = filters(compression)
        self.skipped = 1 if self.filters else 0

    @abstractmethod
    def encode(self, chunk: Array) -> memoryview | bytes:
        """The bytes of a chunk as they stand in the file; valid until the next call.

        Args:
            chunk: C-contiguous, not empty.
        """


class _Plain(Codec):
    def encode(self, chunk: Array) -> memoryview:
        return raw(chunk)


class _Gzip(Codec):
    def encode(self, chunk: Array) -> bytes:
        return zlib.compress(raw(chunk), _LEVEL)


class _Bitshuffle(Codec):
    def __init__(self, compression: Literal["bslz4", "bszstd"]):
        super().__init__(compression)
        library, inner = _bitshuffle(compression), compression.removeprefix("bs")
        self._block_size = library.bshuf_default_block_size
        self._compress = getattr(library, f"bshuf_compress_{inner}")
        self._bound = getattr(library, f"bshuf_compress_{inner}_bound")
        self._level = (_LEVEL,) if inner == "zstd" else ()
        self._out = np.empty(0, np.uint8)

    def encode(self, chunk: Array) -> memoryview:
        itemsize = chunk.itemsize
        needed = _HEADER.size + self._bound(chunk.size, itemsize, 0)
        if self._out.nbytes < needed:
            self._out = np.empty(needed, np.uint8)
        block = self._block_size(itemsize)
        _HEADER.pack_into(self._out.data, 0, chunk.nbytes, block * itemsize)
        length = self._compress(
            chunk.ctypes.data,
            self._out.ctypes.data + _HEADER.size,
            chunk.size,
            itemsize,
            block,
            *self._level,
        )
        if length < 0:
            raise StorageError(f"bitshuffle cannot compress a chunk of {chunk.dtype}: {length}")
        return self._out[: _HEADER.size + length].data


class _Plugin(Codec):
    """Calls the function of a filter as HDF5 would."""

    def __init__(self, compression: Literal["blosc2", "lz4"]):
        super().__init__(compression)
        self._filter = _filter(compression)
        self._name = compression

    def encode(self, chunk: Array) -> bytes:
        options = self.filters["compression_opts"]
        if self._name == "blosc2":  # the shape is left out: rows of pixels are compressed fastest
            options = (1, 0, chunk.itemsize, chunk.nbytes, *options[4:])
        # The filter frees what it is given and leaves what it made in its place.
        content = ctypes.c_void_p(_libc().malloc(chunk.nbytes))
        if not content:
            raise StorageError(f"{self._name}: no memory for a chunk of {chunk.nbytes} bytes")
        ctypes.memmove(content, chunk.ctypes.data, chunk.nbytes)
        length = self._filter(
            0,
            len(options),
            (ctypes.c_uint * len(options))(*options),
            chunk.nbytes,
            ctypes.byref(ctypes.c_size_t(chunk.nbytes)),
            ctypes.byref(content),
        )
        try:
            if not length:
                raise StorageError(
                    f"{self._name} cannot compress a chunk of {chunk.dtype}, {chunk.nbytes} bytes"
                )
            return ctypes.string_at(content, length)
        finally:
            _libc().free(content)


def codec(compression: Compression | Encoding) -> Codec:
    """The codec of this name.

    Raises:
        StorageError: if its library is not there.
    """
    if compression == "none":
        return _Plain("none")
    if compression == "gzip":
        return _Gzip("gzip")
    if compression == "blosc2" or compression == "lz4":
        return _Plugin(compression)
    return _Bitshuffle(compression)


def decode(encoding: Encoding, payload: Payload, out: Array) -> None:
    """Undo a compression.

    Args:
        encoding: what it was compressed with.
        payload: a chunk as HDF5's filter makes it; may be damaged in any way.
        out: C-contiguous; what is in it after an error is undefined.

    Raises:
        DamagedPayload: if it cannot be decoded, or is not of the size of `out`.
        StorageError: if the library is not there.
    """
    payload = np.ascontiguousarray(payload)
    if encoding == "none":
        if len(payload) != out.nbytes:
            raise DamagedPayload(f"{len(payload)} bytes where {out.nbytes} are due")
        out.reshape(-1).view(np.uint8)[:] = payload
    elif encoding == "gzip":
        _inflate(payload, out)
    elif encoding == "lz4":
        _decode_lz4(payload, out)
    else:
        _decode_bitshuffle(encoding, payload, out)


def bound(encoding: Encoding, nbytes: int) -> int:
    """The most bytes that a frame of `nbytes` takes compressed.

    LZ4 and zstd add 1/128 and 64 bytes at most to each of their blocks, which hold 8 KiB or are
    the only one; deflate adds less.
    """
    return nbytes if encoding == "none" else nbytes + nbytes // 64 + 128


_HEADER = struct.Struct(">QI")
"""What stands before compressed blocks: uncompressed size and size of a block, in bytes."""
_BLOCK = struct.Struct(">I")
"""What stands before a compressed block: its size in bytes."""


def _inflate(payload: Payload, out: Array) -> None:
    inflating = zlib.decompressobj()
    try:
        content = inflating.decompress(payload.data, out.nbytes + 1)
    except zlib.error as error:
        raise DamagedPayload(f"gzip: {error}") from None
    if len(content) != out.nbytes or not inflating.eof or inflating.unused_data:
        raise DamagedPayload(f"gzip: {len(payload)} bytes do not give the {out.nbytes} due")
    raw(out)[:] = content


def _decode_bitshuffle(encoding: Encoding, payload: Payload, out: Array) -> None:
    # The library believes every size it reads, so all of them are checked before.
    library, itemsize = _bitshuffle(encoding), out.itemsize
    block_bytes = _check_header(encoding, payload, out)
    block, rest = divmod(block_bytes, itemsize)
    if not block or rest or block % 8:
        raise DamagedPayload(f"{encoding}: blocks of {block_bytes} bytes")
    content, at = payload.data, _HEADER.size
    for _ in range(out.size // block + (out.size % block >= 8)):
        if at + _BLOCK.size > len(content):
            raise DamagedPayload(f"{encoding}: ends after {at} bytes, between two blocks")
        at += _BLOCK.size + _BLOCK.unpack_from(content, at)[0]
    at += out.size % 8 * itemsize  # the last few pixels are not compressed
    if at != len(content):
        raise DamagedPayload(f"{encoding}: {len(content)} bytes where its blocks take {at}")
    decompress = getattr(library, f"bshuf_decompress_{encoding.removeprefix('bs')}")
    begin = payload.ctypes.data + _HEADER.size
    read = decompress(begin, out.ctypes.data, out.size, itemsize, block)
    if read != len(content) - _HEADER.size:
        raise DamagedPayload(f"{encoding}: a block does not decompress ({read})")


def _decode_lz4(payload: Payload, out: Array) -> None:
    decompress = _bitshuffle("lz4").LZ4_decompress_safe
    block = _check_header("lz4", payload, out)
    if not block:
        raise DamagedPayload("lz4: blocks of 0 bytes")
    begin, target, view = payload.ctypes.data, out.ctypes.data, out.reshape(-1).view(np.uint8)
    content, at = payload.data, _HEADER.size
    for done in range(0, out.nbytes, block):
        due = min(block, out.nbytes - done)
        length = _BLOCK.unpack_from(content, at)[0] if at + _BLOCK.size <= len(content) else 0
        at += _BLOCK.size
        if not 0 < length <= len(content) - at:
            raise DamagedPayload(f"lz4: ends after {done} of {out.nbytes} bytes")
        if length == due:  # it was not compressed
            view[done : done + due] = payload[at : at + due]
        elif decompress(begin + at, target + done, length, due) != due:
            raise DamagedPayload(f"lz4: the block of byte {done} does not decompress")
        at += length
    if at != len(content):
        raise DamagedPayload(f"lz4: {len(content)} bytes where its blocks take {at}")


def _check_header(encoding: str, payload: Payload, out: Array) -> int:
    """Compare the header with what is due; returns the size of a block in bytes."""
    if len(payload) < _HEADER.size:
        raise DamagedPayload(f"{encoding}: {len(payload)} bytes are not even a header")
    nbytes, block = _HEADER.unpack_from(payload.data)
    if nbytes != out.nbytes:
        raise DamagedPayload(f"{encoding}: says it holds {nbytes} bytes where {out.nbytes} are due")
    return int(block)


def raw(chunk: Array) -> memoryview:
    """The bytes of a C-contiguous array."""
    return chunk.reshape(-1).view(np.uint8).data


_Function = ctypes.CFUNCTYPE(
    ctypes.c_size_t,
    ctypes.c_uint,
    ctypes.c_size_t,
    ctypes.POINTER(ctypes.c_uint),
    ctypes.c_size_t,
    ctypes.POINTER(ctypes.c_size_t),
    ctypes.POINTER(ctypes.c_void_p),
)


class _FilterClass(ctypes.Structure):
    """`H5Z_class2_t` of H5Zpublic.h: what a plugin of HDF5 says about its filter."""

    _fields_ = (
        ("version", ctypes.c_int),
        ("id", ctypes.c_int),
        ("encoder_present", ctypes.c_uint),
        ("decoder_present", ctypes.c_uint),
        ("name", ctypes.c_char_p),
        ("can_apply", ctypes.c_void_p),
        ("set_local", ctypes.c_void_p),
        ("filter", _Function),
    )


def _library(compression: str, file: str) -> ctypes.CDLL:
    """A library that hdf5plugin brings."""
    try:
        return ctypes.CDLL(str(Path(hdf5plugin.PLUGIN_PATH) / file))
    except OSError as error:
        raise StorageError(
            f"compression: {compression} needs a library of hdf5plugin: {error}; install"
            " hdf5plugin from its wheel, or choose compression: gzip"
        ) from error


@cache
def _bitshuffle(compression: str) -> ctypes.CDLL:
    """The library of bitshuffle, with the types of what we call in it."""
    library = _library(compression, "libh5bshuf.so")
    size, address = ctypes.c_size_t, ctypes.c_void_p
    for name, result, *arguments in (
        ("bshuf_compress_lz4", ctypes.c_int64, address, address, size, size, size),
        ("bshuf_compress_zstd", ctypes.c_int64, address, address, size, size, size, ctypes.c_int),
        ("bshuf_compress_lz4_bound", size, size, size, size),
        ("bshuf_compress_zstd_bound", size, size, size, size),
        ("bshuf_decompress_lz4", ctypes.c_int64, address, address, size, size, size),
        ("bshuf_decompress_zstd", ctypes.c_int64, address, address, size, size, size),
        ("bshuf_default_block_size", size, size),
        ("LZ4_decompress_safe", ctypes.c_int, address, address, ctypes.c_int, ctypes.c_int),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


@cache
def _filter(compression: str) -> Any:
    """The function of a filter; it must be given what its `set_local` would add."""
    library = _library(compression, f"libh5{compression}.so")
    library.H5PLget_plugin_info.restype = ctypes.POINTER(_FilterClass)
    return library.H5PLget_plugin_info().contents.filter


@cache
def _libc() -> ctypes.CDLL:
    library = ctypes.CDLL(None)
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    library.free.restype, library.free.argtypes = None, [ctypes.c_void_p]
    return library
