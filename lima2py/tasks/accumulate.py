"""Make one frame of several consecutive ones: their sum, mean, extremes or spread.

Product g of an accumulation of n frames stands for the frames g n .. (g + 1) n - 1, whatever the
size of blocks and the number of nodes; the block that holds the last of them gives it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, PrivateAttr

from lima2py.errors import BadParameter
from lima2py.frame import NO_FRAME, Absence, Array, Block, Fate, FrameSpec
from lima2py.inputs import needs_numbers
from lima2py.task import RunContext, Task

_MOST_OPEN = 8
"""Products of which only a part has come. One whose other frames went to another node stays."""
_KERNELS = {"max": "largest", "min": "smallest", "variance": "spread", "std": "spread"}
_Arrays = tuple[Array, ...]


@dataclass
class _Product:
    """What is known of a product.

    Attributes:
        arrays: what was accumulated; anything, if no frame was used.
        seen: the frame of the product that comes next, from 0.
        used: how many frames are in it.
        missing: why the first frame that is not in it is not.
        columns: the values of its first frame, arrays of length 1.
    """

    arrays: _Arrays
    seen: int = 0
    used: int = 0
    missing: Absence | None = None
    columns: dict[str, Array] = field(default_factory=dict)


class Accumulate(Task):
    """Accumulate n consecutive frames into one: sum, mean, max, min, variance or std.

    Pixels are accumulated one by one; bands stay apart. Vectors (histograms, profiles) can be
    accumulated too. The product g stands for the frames g n to (g + 1) n - 1 and has the timestamp,
    and the other columns, of the first of them; its column `nb_frames` says how many frames are in
    it. All n frames go to one node. Frames left over at the end of the acquisition, fewer than n,
    belong to no product.

    What comes out:

    - `sum` of integers: the narrowest type of the same kind (signed or not) that cannot overflow,
      or the type of the pixels with `overflow: saturate`. Sums of floating point numbers are added
      up in float64 and given in the type of the pixels.
    - `max`, `min`: the type of the pixels.
    - `mean`, `variance`, `std`: float32 for pixels of up to 16 bits and float32, else float64,
      unless `dtype` says otherwise; they are computed in float64, means of integers from exact
      sums as long as these fit 64 bits. The variance is that of the n frames (divided by n, not
      n - 1), computed by Welford's recurrence: a large mean does not spoil it.

    A pixel that is NaN in any of the frames is NaN in the product.
    """

    frames: Annotated[int, Field(ge=1, le=10**9)]
    """How many consecutive frames make one product. After another accumulation: how many of its
    products."""
    how: Literal["sum", "mean", "max", "min", "variance", "std"] = "sum"
    """What is made of the n values of a pixel."""
    absent: Literal["spoil", "skip"] = "spoil"
    """What a frame without data does to its product: `spoil` makes the product absent, with the
    cause of the first such frame; `skip` makes it from the other frames, and makes it absent only
    if there are none. Events for which another detector takes no frame are always skipped."""
    overflow: Literal["widen", "saturate"] = "widen"
    """For sums of integers: `widen` the type, or keep the type of the pixels and give sums that do
    not fit as the nearest number that does (`saturate`)."""
    dtype: Literal["float32", "float64"] | None = None
    """Of means, variances and standard deviations."""

    takes_absent: ClassVar[bool] = True
    remembers: ClassVar[bool] = True

    _input_span: int = 1
    _pixel: np.dtype[Any] = PrivateAttr()
    """The type that is computed with."""
    _types: tuple[np.dtype[Any], ...] = PrivateAttr()
    """Of the arrays that are accumulated in."""
    _kernel: Callable[..., None] = PrivateAttr()
    _name: str = "accumulate"
    _open: dict[tuple[int, int], _Product] = PrivateAttr(default_factory=dict)
    """By the node that frames come from, and number; those touched last at the end."""
    _spare: list[_Arrays] = PrivateAttr(default_factory=list)
    """Arrays used before: new memory would cost as much time as adding a frame."""

    @property
    def group(self) -> int:
        """All frames of a product must meet in one node."""
        return self.frames * self._input_span

    def prepare(self, spec: FrameSpec) -> FrameSpec:
        """Choose the types; what comes out stands for n times as many frames."""
        if spec.kind not in ("dense", "vector"):
            raise BadParameter(
                f"from: a {spec.kind} product cannot be accumulated, only images and vectors can;"
                " accumulate the images before it is made"
            )
        needs_numbers(spec.dtype)
        if self.overflow == "saturate" and (self.how != "sum" or spec.dtype.kind not in "iu"):
            what = self.how if self.how != "sum" else f"sum of {spec.dtype}"
            raise BadParameter(
                f"overflow: only sums of integers can saturate, not {what}; leave it out"
            )
        if self.dtype is not None and self.how in ("sum", "max", "min"):
            raise BadParameter(
                f"dtype: can be chosen for mean, variance and std only; {self.how} has its own"
                " type, leave it out"
            )
        self._input_span = spec.span
        self._pixel = np.dtype(np.uint8) if spec.dtype == np.bool_ else spec.dtype
        self._types, given = self._choose_types(spec.dtype)
        self._spec = spec.replace(dtype=given, span=spec.span * self.frames)
        return self._spec

    def _choose_types(
        self, pixel: np.dtype[Any]
    ) -> tuple[tuple[np.dtype[Any], ...], np.dtype[Any]]:
        """Of what is accumulated in, and of what comes out."""
        double = np.dtype(np.float64)
        if self.how in ("max", "min"):
            return (self._pixel,), pixel
        summed = _sum_type(pixel, self.frames)
        if self.how == "sum":
            if summed is None:
                raise BadParameter(
                    f"frames: sums of {self.frames} frames of {pixel} may need more than 64 bits;"
                    " take fewer frames, or how: mean"
                )
            if self.overflow == "saturate" or pixel.kind == "f":
                return (summed,), pixel
            return (summed,), summed
        narrow = pixel.itemsize <= 2 or pixel == np.float32
        given = np.dtype(self.dtype or (np.float32 if narrow else np.float64))
        return ((summed or double,) if self.how == "mean" else (double, double)), given

    def start(self, run: RunContext) -> None:
        """Compile what adds frames up."""
        from lima2py.kernels import accumulate

        self._name = run.task or self._name
        self._kernel = getattr(accumulate, _KERNELS.get(self.how, "add"))
        nothing = _read_only(np.empty((0, 0), self._pixel))
        self._kernel(nothing, np.empty(0, np.intp), 0, *self._new_arrays(0))

    def process(self, block: Block) -> Block:
        """Add the frames; give the products whose last frame is among them."""
        n = self.frames
        first, end = block.index // n, block.end // n
        data = np.empty((end - first, *self._spec.shape), self._spec.dtype)
        absences: dict[int, Absence] = {}
        finished: list[_Product] = []
        pixels = self._pixels_of(block)
        for number in range(first, -(-block.end // n)):
            since = max(block.index, number * n)
            until = min(block.end, (number + 1) * n)
            product = self._take((block.origin[0], number), since - number * n)
            self._add(product, number, block, pixels, since - block.index, until - block.index)
            if number < end:
                self._open.pop((block.origin[0], number))
                self._spare.append(product.arrays)
                if product.used and (product.missing is None or self.absent == "skip"):
                    self._conclude(product, data[number - first])
                else:
                    absences[number - first] = product.missing or NO_FRAME
                    product.used = 0
                finished.append(product)
        columns = {
            name: np.concatenate([values[:0], *(product.columns[name] for product in finished)])
            for name, values in block.columns.items()
            if all(name in product.columns for product in finished)
        }
        columns["nb_frames"] = np.array([product.used for product in finished], np.int64)
        some = data if len(absences) < len(finished) else None
        return Block(self._spec, first, end - first, some, absences, columns, block.origin)

    def finish(self) -> None:
        """Let go of the memory."""
        self._open.clear()
        self._spare.clear()

    def _pixels_of(self, block: Block) -> Array | None:
        """Frames as `(count, pixels)`."""
        if block.data is None or not block.count:
            return None
        pixels = np.ascontiguousarray(block.pixels).view(self._pixel)
        return _read_only(pixels.reshape(block.count, -1))

    def _take(self, which: tuple[int, int], offset: int) -> _Product:
        """A product to which frames from this one on are to be added."""
        product = self._open.pop(which, None)
        if product is None or offset == 0:  # its frames are given anew: a node died
            if product is not None:
                self._spare.append(product.arrays)
            arrays = self._spare.pop() if self._spare else self._new_arrays(prod(self._spec.shape))
            product = _Product(arrays)
        self._open[which] = product
        if len(self._open) > _MOST_OPEN:
            oldest = next(iter(self._open))
            self._spare.append(self._open.pop(oldest).arrays)
        return product

    def _new_arrays(self, pixels: int) -> _Arrays:
        return tuple(np.empty(pixels, dtype) for dtype in self._types)

    def _add(
        self,
        product: _Product,
        number: int,
        block: Block,
        pixels: Array | None,
        since: int,
        until: int,
    ) -> None:
        """Add the frames of a block from offset `since` to before `until` to a product."""
        begin = block.index - number * self.frames  # of the block, in frames of the product
        if begin + since > product.seen and product.missing is None:
            span = self._input_span
            lost = range(number * self.frames + product.seen, block.index + since)
            product.missing = Absence(
                Fate.NODE_LOST,
                self._name,
                f"frames {lost.start * span} to {lost.stop * span - 1} were given to a node that"
                " was lost",
            )
        since = max(since, product.seen - begin)  # what was added already is not added again
        if since >= until:
            return
        if product.seen == 0:
            product.columns = {
                name: values[since : since + 1].copy() for name, values in block.columns.items()
            }
        chosen = since + np.flatnonzero(block.present[since:until])
        if product.missing is None:
            gone = [
                offset
                for offset, said in block.absences.items()
                if since <= offset < until and said.cause.harm
            ]
            if gone:
                product.missing = block.absences[min(gone)]
        if chosen.size and (self.absent == "skip" or product.missing is None):
            self._kernel(pixels, chosen, product.used, *product.arrays)
            product.used += len(chosen)
        product.seen = begin + until

    def _conclude(self, product: _Product, given: Array) -> None:
        """Make the product of what was accumulated."""
        first, *others = product.arrays
        flat = given.reshape(-1)
        with np.errstate(over="ignore"):  # what does not fit float32 is infinite there
            if self.how == "mean":
                np.divide(first, product.used, out=flat, casting="same_kind")
            elif others:
                (squares,) = others
                np.divide(squares, product.used, out=squares)
                if self.how == "std":
                    np.sqrt(squares, out=squares)
                np.copyto(flat, squares, casting="same_kind")
            elif self.overflow == "saturate":
                limits = np.iinfo(given.dtype)
                np.clip(first, limits.min, limits.max, out=flat, casting="unsafe")
            else:
                np.copyto(flat, first, casting="unsafe")  # from the same type, float64 or a flag


def _sum_type(pixel: np.dtype[Any], n: int) -> np.dtype[Any] | None:
    """The type sums of n pixels are added up in; None if no integer is wide enough."""
    if pixel.kind == "f":
        return np.dtype(np.float64)
    low, high = (0, 1) if pixel.kind == "b" else (np.iinfo(pixel).min, np.iinfo(pixel).max)
    for size in (1, 2, 4, 8):
        wide = np.iinfo(f"{'i' if pixel.kind == 'i' else 'u'}{size}")
        if wide.min <= n * int(low) and n * int(high) <= wide.max:
            return wide.dtype
    return None


def _read_only(array: Array) -> Array:
    """A view that nobody writes to: for the compiler these are one type, and others another."""
    view = array.view()
    view.flags.writeable = False
    return view
