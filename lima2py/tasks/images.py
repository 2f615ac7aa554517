"""Images that tasks need (masks, darks, flats, gains): read from files and laid under the pixels.

An image in a file shows the whole detector, in detector pixels, whatever was cropped, binned or
turned on the way to the task that uses it. One image serves all bands; a stack `(bands, height,
width)` has one for each. A product without a place on the detector needs images of its own shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  (masks of Dectris detectors are compressed)
import numpy as np
from numpy.lib.format import read_array
from numpy.typing import NDArray

from lima2py.errors import BadParameter
from lima2py.frame import Array, FrameSpec
from lima2py.geometry import Affine, Roi

PIECE = 2**15
"""About how many pixels `by_pieces` takes at a time."""


def read_images(file: str, spec: FrameSpec, field_name: str, stack: int = 0) -> Array:
    """The image of the whole detector that a file holds.

    Args:
        file: `.npy`, HDF5 (`path` or `path::/dataset`) or any image that fabio opens.
        spec: of the product the image is for.
        field_name: the parameter the file came from, for the complaint.
        stack: if not 0, so many images are wanted, along a first axis.

    Returns:
        Array `(height, width)` or `(bands, height, width)`, with a stack's axis in front; a copy.

    Raises:
        BadParameter: if the file cannot be read, or the image cannot be one of this detector.
    """
    fewest = 3 if stack else 2
    with _opened(file, field_name, range(fewest, fewest + (2 if spec.bands > 1 else 1))) as image:
        _check(image, file, spec, field_name, stack)
        return np.asarray(image[()], dtype=image.dtype.newbyteorder("="))


def lay_under(images: Array, spec: FrameSpec, field_name: str) -> Array:
    """Detector images as the pixels of a product see them: one pixel under each.

    Args:
        images: array `(..., height, width)` of the detector, as `read_images` gives it.
        spec: of the product.
        field_name: the parameter they came from, for the complaint.

    Returns:
        Array `(..., spec.height, spec.width)`, a view.

    Raises:
        BadParameter: if the pixels of the product are not those of the detector, but binned.
    """
    place = spec.to_detector
    if place is None:
        return images
    if not _is_one_to_one(place):
        raise BadParameter(
            f"{field_name}: the pixels here are not those of the detector, each covers"
            f" {abs(place.determinant):g} of them; put this task before the bin"
        )
    seen = images[(..., *place.covered(spec.box).slices)]
    if place.a == 0:
        return seen.swapaxes(-1, -2)[..., :: int(place.b), :: int(place.d)]
    return seen[..., :: int(place.e), :: int(place.a)]


def by_pieces(change: Callable[[Array], Array], images: Array, dtype: np.dtype[Any]) -> Array:
    """Images changed some rows at a time: what there is meanwhile needs no memory, and stays near.

    Args:
        change: what to do with some rows, float64 `(..., rows, width)`.
        images: array `(..., height, width)`.
        dtype: of what comes out.
    """
    made = np.empty(images.shape, dtype)
    rows = max(1, PIECE // max(1, images.size // images.shape[-2]))
    with np.errstate(over="ignore", divide="ignore"):  # infinity speaks for itself
        for first in range(0, images.shape[-2], rows):
            here = (..., slice(first, first + rows), slice(None))
            made[here] = change(images[here].astype(np.float64))
    return made


def read_mask(file: str, spec: FrameSpec, field_name: str) -> NDArray[np.bool_]:
    """Which pixels of a product are masked: those that have a masked detector pixel under them.

    Args:
        file: as for `read_images`; a pixel is masked where the image is not 0, as in NeXus.
        spec: of the product, which may be binned.
        field_name: the parameter the file came from, for the complaint.

    Returns:
        Array `(height, width)` or `(bands, height, width)`.

    Raises:
        BadParameter: if the file cannot be read, or the mask cannot be one of this detector.
    """
    masked = read_images(file, spec, field_name) != 0
    place = spec.to_detector
    if place is None or _is_one_to_one(place):
        return lay_under(masked, spec, field_name)
    return _any_under(masked, place, spec.image)


def _is_one_to_one(place: Affine) -> bool:
    """Whether every pixel here lies exactly on one of the detector."""
    turned = {abs(place.a), abs(place.b), abs(place.d), abs(place.e)} == {0, 1}
    whole = place.c == int(place.c) and place.f == int(place.f)
    return turned and abs(place.determinant) == 1 and whole


def _any_under(
    masked: NDArray[np.bool_], place: Affine, shape: tuple[int, int]
) -> NDArray[np.bool_]:
    """Which pixels of an image of this shape have a masked detector pixel under them."""
    # How many are masked above and left of every detector pixel's corner. The differences between
    # the corners of a pixel here are how many are masked under it; they are exact even if the
    # count wraps around.
    *bands, height, width = masked.shape
    before = np.zeros((*bands, height + 1, width + 1), np.uint32)
    before[..., 1:, 1:] = masked
    before.cumsum(axis=-2, out=before).cumsum(axis=-1, out=before)
    row, column = np.ogrid[: shape[0] + 1, : shape[1] + 1]
    x = (place.a * column + place.b * row + place.c).astype(np.intp)
    y = (place.d * column + place.e * row + place.f).astype(np.intp)
    corners = before[..., y, x]
    under: NDArray[np.bool_] = np.diff(np.diff(corners, axis=-2), axis=-1) != 0
    return under


def _check(image: Any, file: str, spec: FrameSpec, field_name: str, stack: int) -> None:
    """Refuse an image that cannot be one of this detector."""
    if spec.kind != "dense":
        raise BadParameter(f"{field_name}: a {spec.kind} product has no pixels to lay {file} under")
    shape = tuple(image.shape)
    said = " × ".join(map(str, shape)) or "one"
    first = (stack,) if stack else ()
    shapes = [(*first, *shape[-2:]), (*first, spec.bands, *shape[-2:])]
    if len(shape) < 2 or shape not in shapes or image.dtype.kind not in "biuf":
        wanted = f"a stack of {stack} images" if stack else "one image"
        axes = "".join(f"{n} × " for n in first)
        bands = f" or {axes}{spec.bands} bands × height × width" if spec.bands > 1 else ""
        raise BadParameter(
            f"{field_name}: {file} holds {said} of {image.dtype}; it should be {wanted} of numbers,"
            f" {axes}height × width{bands}"
        )
    height, width = shape[-2:]
    if spec.to_detector is None:
        if (height, width) != spec.image:
            raise BadParameter(
                f"{field_name}: {file} is {height} × {width} and the frames here"
                f" {spec.height} × {spec.width} pixels (height × width), which have no place on the"
                " detector: both must be the same"
            )
        return
    if spec.detector_shape is not None and spec.detector_shape != (height, width):
        whole = " × ".join(map(str, spec.detector_shape))
        raise BadParameter(
            f"{field_name}: {file} is {height} × {width} and the detector {whole} pixels"
            " (height × width); an image in a file has the shape of the whole detector, also where"
            " frames are cropped, binned or turned before it"
        )
    seen = spec.to_detector.covered(spec.box)
    if not seen.inside(Roi(0, 0, width, height)):
        raise BadParameter(
            f"{field_name}: {file} is {height} × {width} (height × width) and does not cover the"
            f" detector pixels seen here, {seen} ([x, y, width, height])"
        )


@contextmanager
def _opened(file: str, field_name: str, dimensions: range) -> Iterator[Any]:
    """What a file holds: `shape` and `dtype`, and by `[()]` the pixels."""
    path, _, dataset = file.partition("::")
    try:
        Path(path).open("rb").close()
        if h5py.is_hdf5(path):
            with h5py.File(path, "r") as opened:
                yield _dataset_in(opened, dataset, field_name, dimensions)
        elif path.endswith(".npy"):
            with Path(path).open("rb") as npy:  # not mapped: a file cut short would end the node
                yield read_array(npy, allow_pickle=False)  # np.load would guess what else it is
        else:
            yield _by_fabio(path, field_name)
    except (OSError, ValueError, EOFError) as error:
        why = (isinstance(error, OSError) and error.strerror) or error
        raise BadParameter(
            f"{field_name}: {file} cannot be read: {why}; it should be .npy, HDF5 or an image that"
            " fabio opens"
        ) from error


def _dataset_in(
    opened: h5py.File, dataset: str, field_name: str, dimensions: range
) -> h5py.Dataset:
    """The dataset of this name; without a name the only one of so many dimensions there is."""
    images: list[str] = []
    others: list[str] = []

    def note(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset) and item.ndim in dimensions:
            images.append(f"/{name}")
        elif isinstance(item, h5py.Dataset) and item.shape:
            others.append(f"/{name} ({' × '.join(map(str, item.shape))})")

    if isinstance(found := dataset and opened.get(dataset), h5py.Dataset):
        if found.shape is None:
            raise ValueError(f"the dataset {dataset} is empty")
        return found
    opened.visititems(note)
    if not dataset and len(images) == 1:
        return opened[images[0]]
    problem = f"there is no dataset {dataset}" if dataset else "which dataset is meant?"
    advice = f"write {field_name}: {opened.filename}::DATASET with one of {', '.join(images)}"
    none = f"it holds no image, only {', '.join(others)}" if others else "it holds no image at all"
    raise ValueError(f"{problem}; {advice if images else none}")


def _by_fabio(path: str, field_name: str) -> Array:
    try:
        import fabio
    except ImportError:
        raise BadParameter(
            f'{field_name}: reading {path} needs fabio: pip install "lima2py[replay]", or save the'
            " image as .npy or HDF5"
        ) from None
    try:
        with fabio.open(path) as image:
            if image.nframes != 1:
                raise ValueError(
                    f"it holds {image.nframes} images; stacks are read from .npy and HDF5 only"
                )
            data: Array = image.data
            return data
    except (OSError, ValueError):
        raise
    except Exception as error:  # fabio's readers raise whatever a damaged file makes them
        raise ValueError(f"{type(error).__name__}: {error}") from error
