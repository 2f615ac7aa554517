"""Compress frames ourselves, so that no pixel waits for HDF5's lock.

What comes out are whole chunks just as HDF5's own filters would have made them, ready for
`write_direct_chunk`; every reader of HDF5 decodes them. The work is done in C without Python's
lock. A codec serves one thread.
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

from lima2py.errors import StorageError
from lima2py.frame import Array

Compression = Literal["none", "bslz4", "gzip"]


class Codec(ABC):
    """Makes chunks of arrays."""

    @property
    @abstractmethod
    def filters(self) -> dict[str, Any]:
        """What `create_dataset` must be told so that readers undo it."""

    @abstractmethod
    def encode(self, chunk: Array) -> memoryview | bytes:
        """The bytes of a chunk as they stand in the file; valid until the next call.

        Args:
            chunk: C-contiguous.
        """

    @property
    def skipped(self) -> int:
        """The filter mask of a chunk that is written as it is."""
        return 1 if self.filters else 0


class Plain(Codec):
    """No compression."""

    @property
    def filters(self) -> dict[str, Any]:
        """See `Codec`."""
        return {}

    def encode(self, chunk: Array) -> memoryview:
        """See `Codec`."""
        return raw(chunk)


class Gzip(Codec):
    """Deflate at its quickest: slow, but any reader of HDF5 has it."""

    _LEVEL = 1

    @property
    def filters(self) -> dict[str, Any]:
        """See `Codec`."""
        return {"compression": "gzip", "compression_opts": self._LEVEL}

    def encode(self, chunk: Array) -> bytes:
        """See `Codec`."""
        return zlib.compress(raw(chunk), self._LEVEL)


class BitshuffleLz4(Codec):
    """Bitshuffle and LZ4, as Dectris detectors write them."""

    def __init__(self) -> None:
        self._library = _bitshuffle()
        self._out = np.empty(0, np.uint8)

    @property
    def filters(self) -> dict[str, Any]:
        """See `Codec`."""
        return dict(hdf5plugin.Bitshuffle(cname="lz4"))

    def encode(self, chunk: Array) -> memoryview:
        """See `Codec`."""
        library, itemsize = self._library, chunk.itemsize
        needed = _HEADER.size + library.bshuf_compress_lz4_bound(chunk.size, itemsize, 0)
        if self._out.nbytes < needed:
            self._out = np.empty(needed, np.uint8)
        block = library.bshuf_default_block_size(itemsize)
        _HEADER.pack_into(self._out.data, 0, chunk.nbytes, block * itemsize)
        length = library.bshuf_compress_lz4(
            chunk.ctypes.data,
            self._out.ctypes.data + _HEADER.size,
            chunk.size,
            itemsize,
            block,
        )
        if length < 0:
            raise StorageError(f"bitshuffle cannot compress a chunk of {chunk.dtype}: {length}")
        return self._out[: _HEADER.size + length].data


_HEADER = struct.Struct(">QI")
"""What stands before the compressed bytes: uncompressed size and size of a block, in bytes."""


def raw(chunk: Array) -> memoryview:
    """The bytes of a C-contiguous array."""
    return chunk.reshape(-1).view(np.uint8).data


def codec(compression: Compression) -> Codec:
    """The codec of this name.

    Raises:
        StorageError: if its library is not there.
    """
    if compression == "none":
        return Plain()
    return Gzip() if compression == "gzip" else BitshuffleLz4()


@cache
def _bitshuffle() -> ctypes.CDLL:
    """The library that hdf5plugin brings, with the types of what we call in it."""
    path = Path(hdf5plugin.PLUGIN_PATH) / "libh5bshuf.so"
    try:
        library = ctypes.CDLL(str(path))
        compress = library.bshuf_compress_lz4
        bound = library.bshuf_compress_lz4_bound
        block_size = library.bshuf_default_block_size
    except (OSError, AttributeError) as error:
        raise StorageError(
            f"compression: bslz4 needs the bitshuffle library of hdf5plugin: {error}; install"
            " hdf5plugin from its wheel, or choose compression: gzip"
        ) from error
    size, address = ctypes.c_size_t, ctypes.c_void_p
    compress.argtypes, compress.restype = [address, address, size, size, size], ctypes.c_int64
    bound.argtypes, bound.restype = [size, size, size], size
    block_size.argtypes, block_size.restype = [size], size
    return library
