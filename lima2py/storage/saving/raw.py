"""`save_raw`: keep compressed frames as the detector sent them."""

from __future__ import annotations

from typing import ClassVar, cast

import h5py
import numpy as np

from lima2py.codec import Encoding, filters
from lima2py.frame import Block, Decoded, FrameSpec
from lima2py.storage.layout import describe_data, fill_value
from lima2py.storage.saving.rows import Rows
from lima2py.storage.saving.sinks import Hdf5Sink


class SaveRaw(Hdf5Sink):
    """Save frames that come compressed as they are, without compressing them again.

    In the files they are what `save_dense` would have made of their images: readers see images, and
    HDF5 decompresses each when it is read. That takes hardly any processor time here. The bytes
    are not looked at: a frame that came damaged is kept so, and reading it is an error (`decode`
    finds such frames).
    """

    kinds = ("encoded",)
    takes_encoded: ClassVar[bool] = True

    @property
    def saved(self) -> FrameSpec:
        """The images."""
        return self._decoded.image

    def rows(self, detector: h5py.Group) -> Rows:
        """See `Hdf5Sink`."""
        return _Payloads(detector, self._decoded)

    @property
    def _decoded(self) -> Decoded:
        decoded = self._input.decoded
        assert decoded is not None  # noqa: S101 - prepare has refused all others
        return decoded


class _Payloads:
    """The dataset `data`, each frame a chunk that somebody else has compressed."""

    def __init__(self, detector: h5py.Group, decoded: Decoded):
        encoding, image = decoded
        self._shape = image.saved_shape
        self._data = detector.create_dataset(
            "data",
            (0, *self._shape),
            image.dtype,
            maxshape=(None, *self._shape),
            chunks=(1, *self._shape),
            fillvalue=fill_value(image.dtype),
            **filters(cast("Encoding", encoding)),
        )
        self._rows = 0
        describe_data(self._data, image)

    def put(self, block: Block, *others: Block) -> None:
        """See `Rows`."""
        first, self._rows = self._rows, self._rows + block.count
        self._data.id.set_extent((self._rows, *self._shape))
        origin = (0,) * len(self._shape)
        for offset in np.flatnonzero(block.present).tolist():
            payload = np.ascontiguousarray(block.payload(offset))
            self._data.id.write_direct_chunk((first + offset, *origin), payload.data, 0)

    def make_safe(self) -> None:
        """See `Rows`: every frame is in the file already."""
        return

    def conclude(self) -> None:
        """See `Rows`: nothing refers to the rows but the records."""
        return
