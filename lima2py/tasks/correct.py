"""Correct frames pixel by pixel: the mask.

A mask is an image of the whole detector, in detector pixels, whatever was cropped, binned or
turned on the way here: a pixel is masked if any of the detector pixels under it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import h5py
import hdf5plugin  # noqa: F401  (masks of Dectris detectors are compressed)
import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, PrivateAttr

from lima2py.errors import BadParameter
from lima2py.frame import Array, Block, FrameSpec
from lima2py.geometry import Affine, Roi
from lima2py.task import InputFile, Task


def _number(value: object) -> object:
    if type(value) is int or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise ValueError("should be a number")


class Mask(Task):
    """Give the pixels of a mask a fixed value, in all bands."""

    file: InputFile
    """The mask: `.npy`, HDF5 (`path` or `path::/dataset`) or any image that fabio opens. It has
    the shape of the whole detector; where it is not 0 the pixel is masked, as in NeXus."""
    value: Annotated[int | float, BeforeValidator(_number)] = 0
    """What masked pixels are set to; the type of the pixels must be able to hold it."""

    _where: NDArray[np.intp] = PrivateAttr()
    """The masked pixels, as positions in the flattened image."""
    _filler: np.generic = PrivateAttr()

    def prepare(self, spec: FrameSpec) -> FrameSpec:
        """Read the mask and find the pixels that lie under it; the frames look as before."""
        if spec.kind != "dense" or spec.to_detector is None:
            raise BadParameter(f"file: a {spec.kind} product has no pixels on the detector to mask")
        self._filler = _as_pixel(self.value, spec.dtype)
        with _opened(self.file) as image:
            self._check(image, spec, spec.to_detector)
            masked = np.asarray(image[()]) != 0
        self._where = np.flatnonzero(_any_under(masked, spec.to_detector, spec.image))
        self._spec = spec
        return spec

    def process(self, block: Block) -> Block:
        """A copy with the masked pixels set."""
        data = block.pixels.copy()
        # One image at a time: by far the quickest of what numpy offers, however much is masked.
        for image in data.reshape(-1, self._spec.height * self._spec.width):
            image[self._where] = self._filler
        return block.carry(self._spec, data)

    def _check(self, image: Any, spec: FrameSpec, to_detector: Affine) -> None:
        """Refuse an image that cannot be the mask of this detector."""
        shape = " × ".join(map(str, image.shape))
        if len(image.shape) != 2 or image.dtype.kind not in "biuf":
            raise BadParameter(
                f"file: {self.file} holds {shape or 'one'} of {image.dtype}; a mask is one image of"
                " numbers, height × width"
            )
        if spec.detector_shape is not None and image.shape != spec.detector_shape:
            height, width = spec.detector_shape
            raise BadParameter(
                f"file: {self.file} is {shape} and the detector {height} × {width} pixels"
                " (height × width); a mask has the shape of the whole detector, also where"
                " frames are cropped, binned or turned before it"
            )
        height, width = image.shape
        seen = to_detector.covered(spec.box)
        if not seen.inside(Roi(0, 0, width, height)):
            raise BadParameter(
                f"file: {self.file} is {shape} (height × width) and does not cover the detector"
                f" pixels seen here, {seen} ([x, y, width, height])"
            )


def _as_pixel(value: float, dtype: np.dtype[Any]) -> np.generic:
    """A value as one pixel."""
    if dtype.kind in "iu":
        low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
        if value != int(value) or not low <= value <= high:
            raise BadParameter(
                f"value: {value} does not fit pixels of {dtype}, which hold whole numbers from"
                f" {low} to {high}"
            )
        value = int(value)
    elif dtype.kind != "f":
        raise BadParameter(f"value: pixels of {dtype} cannot be masked, only numbers can")
    elif abs(value) > float(np.finfo(dtype).max):
        raise BadParameter(
            f"value: {value} does not fit pixels of {dtype}, which go up to {np.finfo(dtype).max:g}"
        )
    pixel: np.generic = dtype.type(value)
    return pixel


def _any_under(
    masked: NDArray[np.bool_], to_detector: Affine, shape: tuple[int, int]
) -> NDArray[np.bool_]:
    """Which pixels of an image of this shape have a masked detector pixel under them."""
    # How many are masked above and left of every detector pixel's corner. The differences between
    # the corners of a pixel here are how many are masked under it; they are exact even if the
    # count wraps around.
    before = np.zeros((masked.shape[0] + 1, masked.shape[1] + 1), np.uint32)
    before[1:, 1:] = masked
    before.cumsum(axis=0, out=before).cumsum(axis=1, out=before)
    rows, columns = (np.arange(length + 1) for length in shape)
    m = to_detector
    if m.b == m.d == 0:
        x, y = m.a * columns + m.c, m.e * rows + m.f
        corners = before[np.ix_(y.astype(np.intp), x.astype(np.intp))]
    else:
        x, y = m.b * rows + m.c, m.d * columns + m.f
        corners = before[np.ix_(y.astype(np.intp), x.astype(np.intp))].T
    under: NDArray[np.bool_] = np.diff(np.diff(corners, axis=0), axis=1) != 0
    return under


@contextmanager
def _opened(file: str) -> Iterator[Any]:
    """The image in a file: `shape` and `dtype`, and by `[()]` the pixels."""
    path, _, dataset = file.partition("::")
    try:
        Path(path).open("rb").close()
        if h5py.is_hdf5(path):
            with h5py.File(path, "r") as opened:
                yield _image_in(opened, dataset)
        elif path.endswith(".npy"):
            yield np.load(path, mmap_mode="r", allow_pickle=False)
        else:
            yield _by_fabio(path)
    except (OSError, ValueError) as error:
        why = (isinstance(error, OSError) and error.strerror) or error
        raise BadParameter(
            f"file: {file} cannot be read: {why}; a mask is .npy, HDF5 or an image that fabio opens"
        ) from error


def _image_in(opened: h5py.File, dataset: str) -> h5py.Dataset:
    """The dataset of this name; without a name the only image there is."""
    images: list[str] = []

    def note(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset) and item.ndim == 2:
            images.append(f"/{name}")

    if isinstance(found := dataset and opened.get(dataset), h5py.Dataset):
        return found
    opened.visititems(note)
    if not dataset and len(images) == 1:
        return opened[images[0]]
    problem = f"there is no dataset {dataset}" if dataset else "which dataset is the mask?"
    advice = f"write file: {opened.filename}::DATASET with one of {', '.join(images)}"
    raise ValueError(f"{problem}; {advice if images else 'it holds no image at all'}")


def _by_fabio(path: str) -> Array:
    try:
        import fabio
    except ImportError:
        raise BadParameter(
            f'file: reading {path} needs fabio: pip install "lima2py[replay]", or save the mask'
            " as .npy or HDF5"
        ) from None
    try:
        with fabio.open(path) as image:
            if image.nframes != 1:
                raise ValueError(f"it holds {image.nframes} images; a mask is one")
            data: Array = image.data
            return data
    except (OSError, ValueError):
        raise
    except Exception as error:  # fabio's readers raise whatever a damaged file makes them
        raise ValueError(f"{type(error).__name__}: {error}") from error
