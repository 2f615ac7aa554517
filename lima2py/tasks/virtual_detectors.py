"""Virtual detectors: what a detector of any shape, or any sensitivity, would have counted."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, PrivateAttr

from lima2py.frame import Array, Block, FrameSpec
from lima2py.geometry import Roi
from lima2py.onepass import Stripwise
from lima2py.tasks.images import lay_under, read_images
from lima2py.tasks.regions import Pieces, RegionOrFile, inside, labels, named

MASK_PRODUCTS = np.dtype([("sum", np.float64)])


class MaskProducts(Stripwise):
    """The sum of the pixels under each of some masks (virtual detectors of 4D-STEM).

    What comes out is a table with one column, `sum`, and a row for every mask, in the order given;
    with several bands a row for every band of every mask. Sums are float64. For shapes, and
    for images that hold nothing but 0 and 1, only the pixels inside are read, and integers are
    added exactly as long as sums stay below 2**53. A NaN inside a mask makes its sum NaN.
    """

    masks: Annotated[dict[str, RegionOrFile], AfterValidator(named)]
    """By name, in detector pixels: `{centre: [x, y], radii: [inner, outer]}` for a ring (`[0, r]`
    for a disk), with `angles: [first, last]` a part of it, as for ROIs; `[x, y, width, height]`
    for a box or a pixel; or the path of an image of the whole detector (`.npy`, HDF5 or what
    fabio opens) with a weight for every pixel."""

    function = "lima2py.kernels.regions:products"

    _constants: tuple[Any, ...] = PrivateAttr()
    _order: NDArray[np.intp] = PrivateAttr()
    """Where each mask stands in what the kernel gives."""

    def product(self, spec: FrameSpec) -> FrameSpec:
        """Read the masks and find what is inside of each."""
        shapes: dict[str, NDArray[np.bool_] | Roi] = {}
        images: dict[str, Array] = {}
        for name, mask in self.masks.items():
            if not isinstance(mask, str):
                shapes[name] = inside(mask, spec, f"masks.{name}")
                continue
            field_name = f"masks.{name}"
            image = lay_under(read_images(mask, spec, field_name), spec, field_name)
            if np.isin(image, (0, 1)).all():
                shapes[name] = image != 0
            else:
                images[name] = np.broadcast_to(image, spec.shape)
        plain = Pieces.of(list(shapes.values()), spec)
        weighted = Pieces.of([image != 0 for image in images.values()], spec)
        places, weights = _weights(weighted, images, spec)
        self._constants = (*plain, *weighted, places, weights)
        made = [*shapes, *images]
        first = np.array([made.index(name) for name in self.masks], np.intp) * spec.bands
        self._order = (first[:, np.newaxis] + np.arange(spec.bands)).ravel()
        rows = labels(self.masks, spec)
        return FrameSpec("table", (len(rows),), MASK_PRODUCTS, labels=rows, span=spec.span)

    @property
    def constants(self) -> tuple[Any, ...]:
        """What is inside, and the weights."""
        return self._constants

    def buffers(self, count: int) -> tuple[Array, ...]:
        """Sums of nothing."""
        return (np.zeros((count, len(self._order))),)

    def conclude(self, block: Block, buffers: tuple[Array, ...]) -> Block:
        """The sums in the order of the masks."""
        return block.carry(self._spec, buffers[0][:, self._order].view(MASK_PRODUCTS))


def _weights(
    weighted: Pieces, images: dict[str, Array], spec: FrameSpec
) -> tuple[NDArray[np.int64], Array]:
    """The weights of all pieces one after the other, and where those of each begin."""
    narrow = all(np.can_cast(image.dtype, np.float32) for image in images.values())
    parts = [np.zeros(0, np.float32 if narrow else np.float64)]
    lines = [image.reshape(-1, spec.width)[band * spec.height : (band + 1) * spec.height]
             for image in images.values() for band in range(spec.bands)]  # fmt: skip
    for number, own in enumerate(lines):
        shift = number % spec.bands * spec.height
        for top, bottom, left, right in weighted.pieces[slice(*weighted.starts[number:][:2])]:
            parts.append(own[top - shift : bottom - shift, left:right].ravel())
    weights = np.concatenate(parts).astype(parts[0].dtype)
    return np.cumsum([0, *map(len, parts[1:-1])], dtype=np.int64), weights
