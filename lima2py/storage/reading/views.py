"""Saved frames as other libraries want them: dask, xarray, scipy; and their sum.

Whatever is lazy opens its file by itself where it is computed, without locking, so that it works in
any number of processes that see the folder.
"""

from __future__ import annotations

import operator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lima2py.errors import BadParameter, LimaError
from lima2py.frame import Array, Fate, FrameSpec, Ragged
from lima2py.geometry import Affine
from lima2py.storage.layout import fill_value

if TYPE_CHECKING:
    import dask.array
    import scipy.sparse
    import xarray
    from dask.delayed import Delayed

    from lima2py.storage.reading.run_file import RunFile

PIECE_BYTES = 64 * 2**20
"""About how many bytes one task of dask reads."""


def as_dask(file: RunFile) -> dask.array.Array | list[Delayed]:
    """All frames, read where and when they are computed.

    Every piece holds whole chunks of the file, and lies in the file of one node, unless the frames
    of the nodes alternate so often that it would hold next to nothing.

    Returns:
        An array `(frame, ...)`. Sparse frames have no shape that dask could reckon with, and
        `scipy.sparse` knows but two dimensions: they come as a list, in order, of delayed `Ragged`
        of some frames each. (Not as a bag: by default that would start other processes.)

    Raises:
        LimaError: if dask is missing.
    """
    if file.spec.kind == "sparse":
        delayed, rows = _needed("dask", "dask").delayed, _Rows(file)
        read = delayed(operator.getitem, pure=False)
        return [read(rows, slice(first, end)) for first, end in pairwise(_pieces(file))]
    return _as_array(file)


def _as_array(file: RunFile) -> dask.array.Array:
    rows = _Rows(file)
    chunks = (tuple(np.diff(_pieces(file)).tolist()) or (0,), *((n,) for n in rows.shape[1:]))
    made: dask.array.Array = _needed("dask.array", "dask").from_array(
        rows, chunks, name=False, lock=False, fancy=False, meta=np.empty((), rows.dtype)
    )
    return made


def as_xarray(file: RunFile) -> xarray.DataArray | xarray.Dataset:
    """All frames with names for their axes, on dask.

    Returns:
        Images as an array of `(frame, y, x)` or `(frame, band, y, x)`, vectors `(frame, element)`,
        tables as a data set with a variable `(frame, row)` for each column. `frame` is the number
        of the frame; along it lie `timestamp` and `fate` (in words: `saved`, ...). Where pixels lie
        straight on the detector, `x` and `y` are the places of their centres there, in detector
        pixels: the first one is at 0.5, and `.sel(x=slice(100, 200))` is a ROI from 100 to 200.

    Raises:
        BadParameter: if the frames are sparse.
        LimaError: if xarray or dask is missing.
    """
    spec = file.spec
    if spec.kind == "sparse":
        raise BadParameter(
            f"{file.path}: sparse frames lie on no grid that xarray could name; use csr(), dense(i)"
            " or dask()"
        )
    labelled = _needed("xarray", "xarray")
    data = _as_array(file)
    words = {int(fate): fate.word for fate in Fate}
    coords: dict[str, Any] = {
        "frame": file.index,
        "timestamp": ("frame", file.records["timestamp"], {"units": "s since 1970-01-01 UTC"}),
        "fate": ("frame", np.array([words[int(fate)] for fate in file.fate], dtype="U16")),
    }
    about = {"sink": file.sink, "run": file.facts.run, "title": file.facts.name}
    if spec.kind == "table":
        if spec.labels:
            coords["row"] = list(spec.labels)
        columns = {}
        for name in spec.dtype.names or ():
            within = [f"{name}_{axis}" for axis in range(len(spec.dtype[name].shape))]
            columns[name] = (("frame", "row", *within), data[name])
        table: xarray.Dataset = labelled.Dataset(columns, coords, about)
        return table
    names = ("element",) if spec.kind == "vector" else ("band", "y", "x")[-data.ndim + 1 :]
    if spec.kind == "dense" and spec.to_detector is not None:
        coords |= _on_detector(spec.to_detector, spec.image)
    found: xarray.DataArray = labelled.DataArray(
        data, coords, ("frame", *names), name=file.sink, attrs=about
    )
    return found


def as_csr(file: RunFile, frames: slice) -> scipy.sparse.csr_array:
    """Sparse pixels as a matrix in memory, a row for each frame and a column for each pixel.

    Raises:
        BadParameter: if the frames are no sparse pixels.
        LimaError: if scipy is missing.
    """
    if not file.has_pixels:
        raise BadParameter(f"{file.path}: {file.sink} saved {file.spec}, and no sparse pixels")
    sparse = _needed("scipy.sparse", "scipy")
    taken = file[frames]
    values = (taken.columns["value"], taken.columns["index"], taken.offsets)
    matrix: scipy.sparse.csr_array = sparse.csr_array(
        values, shape=(len(taken), int(np.prod(file.spec.image)))
    )
    return matrix


def total(file: RunFile) -> np.ma.MaskedArray[Any, np.dtype[Any]]:
    """The sum of all frames with data; masked where none of them has a number.

    What reads as the fill value, or is nan, is not added. Sparse pixels are added as an image.
    """
    sparse = file.spec.kind == "sparse"
    if sparse:
        file.check_images()
    element = file.spec.dtype["value"] if sparse else file.spec.dtype
    dtype = {"f": "f8", "c": "c16", "u": "u8"}.get(element.kind, "i8")
    added = np.zeros(file.spec.image if sparse else file.spec.saved_shape, dtype)
    seen = np.zeros(added.shape, bool)
    for block in file.blocks():
        if isinstance(block.data, Ragged):
            columns = block.rows.columns
            np.add.at(added.reshape(-1), columns["index"], columns["value"].astype(dtype))
            seen[:] = True
        elif block.data is not None:
            data = block.pixels[block.present].reshape(-1, *added.shape)
            good = is_number(data)
            seen |= good.any(axis=0)
            added += np.where(good, data, 0).sum(axis=0, dtype=dtype)
    return np.ma.masked_array(added, ~seen)


def as_image(spec: FrameSpec, data: Array) -> Array:
    """What `file[row]` gives of images or sparse pixels, as an image: pixels are put upon zeros."""
    if spec.kind == "dense":
        return data
    image = np.zeros(spec.image, spec.dtype["value"])
    image.reshape(-1)[data["index"]] = data["value"]
    return image


def is_number(data: Array) -> NDArray[np.bool_]:
    """Where data are neither the fill value nor nan."""
    if data.dtype.kind in "fc":
        good: NDArray[np.bool_] = ~np.isnan(data)
    elif data.dtype.kind in "iu":
        good = data != fill_value(data.dtype)
    else:
        good = np.ones(data.shape, bool)
    return good


class _Rows:
    """The frames of a file as dask takes them: what can be sent to a worker, and opened there."""

    def __init__(self, file: RunFile):
        self.shape, self.dtype, self.ndim = file.shape, file.dtype, len(file.shape)
        self._path, self._sink = file.path.absolute(), file.sink

    def __getitem__(self, key: Any) -> Any:
        from lima2py.storage.reading.run_file import RunFile

        with RunFile(self._path, self._sink) as file:
            return file[key]


def _pieces(file: RunFile) -> list[int]:
    """Where the pieces begin that are read at once, and where the last one ends."""
    size = max(1, PIECE_BYTES // _bytes_of_frame(file))
    chunk = _chunk(file)
    whole = max(1, size // chunk) * chunk
    lies_in = file.lies_in
    lies_in = lies_in[np.maximum.accumulate(np.where(lies_in < 0, 0, np.arange(len(lies_in))))]
    borders = [0]
    for end in [*(np.flatnonzero(np.diff(lies_in)) + 1).tolist(), len(file)]:
        if end - borders[-1] >= whole // 2 or end == len(file):
            borders += range(borders[-1] + whole, end, whole)
            borders += [end] if end > borders[-1] else []
    return borders


def _bytes_of_frame(file: RunFile) -> int:
    if file.spec.kind != "sparse":
        return max(1, file.spec.nbytes)
    return max(1, file.nb_rows * file.dtype.itemsize // max(1, len(file)))


def _chunk(file: RunFile) -> int:
    """Frames that share a chunk in the files of the nodes."""
    from lima2py.storage.reading.run_file import RunFile

    there = [part.path for part in file.files if part.path.exists()]
    if file.spec.kind == "sparse" or not there:
        return 1
    with RunFile(there[0], file.sink) as node:
        return node.read(lambda: int(node.detector_group["data"].chunks[0]))


def _on_detector(place: Affine, image: tuple[int, int]) -> dict[str, Any]:
    """Where the centres of columns and rows lie on the detector, if they lie straight on it."""
    if place.b or place.d:
        return {}
    (height, width), about = image, {"units": "pixel", "long_name": "centre, in detector pixels"}
    x = place.a * (np.arange(width) + 0.5) + place.c
    y = place.e * (np.arange(height) + 0.5) + place.f
    return {"x": ("x", x, about), "y": ("y", y, about)}


def _needed(module: str, package: str) -> Any:
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError:
        raise LimaError(
            f'{package} is not installed, and this needs it: pip install "lima2py[analysis]"'
        ) from None
