"""A graph computed by plain numpy, all frames at once: what every sink and stream must hold.

Written from the documentation of the tasks, not from their code: there are no blocks, no passes
and no matrices. Instead of those every product carries the detector pixels that lie under each of
its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lima2py.frame import Array

Said = tuple[str, str]
"""Why a frame has no data: the cause, and who says so."""
Entry = Mapping[str, Any]


@dataclass(frozen=True)
class Product:
    """What a task makes of all frames.

    Attributes:
        data: images `(frames, bands, height, width)`, vectors `(frames, length)`, tables `(frames,
            rows)`; of sparse frames a list of arrays of rows. Anything where a frame is absent.
        absent: by number, the frames without data.
        span: how many frames of the detector each stands for.
        under: `(4, height, width)`: left, top, right and bottom edge of the detector pixels under
            each pixel; None if it has no place on the detector.
    """

    data: Any
    absent: Mapping[int, Said] = field(default_factory=dict)
    span: int = 1
    under: Array | None = None

    @property
    def present(self) -> list[int]:
        return [n for n in range(len(self.data)) if n not in self.absent]


def compute(
    graph: Mapping[str, Entry], detector: Product, files: Mapping[str, Array]
) -> dict[str, Product]:
    """What every task gives, by name; that of a sink is what it should hold."""
    made = {"detector": detector}
    for name, entry in graph.items():
        names = entry["from"] if isinstance(entry["from"], list) else [entry["from"]]
        inputs = [made[source] for source in names]
        absent = dict(inputs[0].absent)
        for other in inputs[1:]:
            absent = {**other.absent, **absent}
        inputs[0] = replace(inputs[0], absent=absent)
        made[name] = _TASKS[entry["do"]](name, entry, inputs, files)
    return made


def fates(graph: Mapping[str, Entry], made: Mapping[str, Product], count: int) -> list[str]:
    """What becomes of every frame as a whole: absent beats rejected, its own what its product."""
    whole = ["saved"] * count
    for product in sorted(made.values(), key=lambda item: item.span):
        for number, (cause, _) in product.absent.items():
            for frame in range(number * product.span, (number + 1) * product.span):
                if whole[frame] == "saved" or (whole[frame] == "rejected" and cause != "rejected"):
                    whole[frame] = cause
    return whole


def _narrowest(dtype: np.dtype[Any], low: int, high: int) -> np.dtype[Any]:
    """The narrowest integer type, at least this one, that holds both numbers."""
    for size in (1, 2, 4, 8):
        wide = np.dtype(f"{'i' if low < 0 or dtype.kind == 'i' else 'u'}{size}")
        if size >= dtype.itemsize and np.iinfo(wide).min <= low and high <= np.iinfo(wide).max:
            return wide
    raise AssertionError("no type is wide enough, and the task should have refused it")


def _limits(dtype: np.dtype[Any]) -> tuple[int, int]:
    return int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)


def _sums(dtype: np.dtype[Any], n: int) -> np.dtype[Any]:
    if dtype.kind == "f" or n == 1:
        return dtype
    low, high = _limits(dtype)
    return _narrowest(dtype, n * low, n * high)


def _means(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype("f4" if dtype.itemsize <= 2 or dtype == np.float32 else "f8")


def _each_by_itself(change: Callable[[Entry, Array, Any], Any]) -> Any:
    """A task that changes where pixels lie: the same is done to what lies under them."""

    def task(name: str, entry: Entry, inputs: list[Product], files: Any) -> Product:
        (given,) = inputs
        data = change(entry, given.data, given.under)
        under = None if given.under is None else change(entry, given.under, given.under)
        return replace(given, data=data, under=under)

    return task


def _crop(entry: Entry, data: Array, under: Array) -> Array:
    inside = _inside(under, entry["box"])
    return data[..., inside.any(axis=1), :][..., inside.any(axis=0)]


def _inside(under: Array, box: Any) -> Array:
    x, y, width, height = box
    left, top, right, bottom = under
    inside: Array = (left >= x) & (top >= y) & (right <= x + width) & (bottom <= y + height)
    return inside


def _bin(name: str, entry: Entry, inputs: list[Product], files: Any) -> Product:
    (given,) = inputs
    x, y = entry["by"]

    def bins(data: Array) -> Array:
        *first, height, width = data.shape
        apart = data.reshape(*first, height // y, y, width // x, x)
        return np.moveaxis(apart, -3, -2).reshape(*first, height // y, width // x, x * y)

    under, dtype = None, given.data.dtype
    if given.under is not None:
        left, top, right, bottom = bins(given.under)
        under = np.stack([left.min(-1), top.min(-1), right.max(-1), bottom.max(-1)])
    pixels = bins(given.data)
    if entry["how"] == "max":
        data = pixels.max(axis=-1)
    elif entry["how"] == "mean":
        data = pixels.astype("f8").mean(axis=-1).astype(_means(dtype))
    else:
        data = pixels.astype("f8" if dtype.kind == "f" else dtype).sum(
            axis=-1, dtype=None if dtype.kind == "f" else _sums(dtype, x * y)
        )
        data = data.astype(_sums(dtype, x * y))
    return replace(given, data=data, under=under)


def _laid(image: Array, under: Array | None) -> Array:
    """The pixels of an image of the detector that lie under those of a product, one each."""
    return image if under is None else image[under[1], under[0]]


def _fill(value: Any, dtype: np.dtype[Any]) -> Any:
    if value != "fill":
        return value
    return np.nan if dtype.kind == "f" else _limits(dtype)[1]


def _correction(correct: Callable[..., Array]) -> Any:
    def task(name: str, entry: Entry, inputs: list[Product], files: Any) -> Product:
        (given,) = inputs
        return replace(given, data=correct(entry, given.data, given.under, files))

    return task


def _masked(image: Array, under: Array | None) -> Array:
    """Which pixels have one under them where a mask is not 0."""
    if under is None:
        return np.asarray(image != 0)
    masked = np.empty(under.shape[1:], bool)
    for place in np.ndindex(masked.shape):
        left, top, right, bottom = under[:, *place]
        masked[place] = image[top:bottom, left:right].any()
    return masked


def _mask(entry: Entry, data: Array, under: Array | None, files: Mapping[str, Array]) -> Array:
    value = np.asarray(_fill(entry["value"], data.dtype)).astype(data.dtype)
    return np.where(_masked(files[entry["file"]], under), value, data)


def _real(data: Array, entry: Entry) -> np.dtype[Any]:
    both = [data.dtype, np.dtype(entry["dtype"])] if entry["dtype"] else [data.dtype]
    return np.dtype("f4" if all(_means(dtype) == np.float32 for dtype in both) else "f8")


def _given(data: Array, entry: Entry) -> Array:
    """Computed pixels as the type that is wanted."""
    if not entry["dtype"]:
        return data
    low, high = _limits(np.dtype(entry["dtype"]))
    whole: Array = np.rint(np.clip(np.nan_to_num(data, nan=high), low, high))
    return whole.astype(entry["dtype"])


def _dark(entry: Entry, data: Array, under: Array | None, files: Mapping[str, Array]) -> Array:
    real = _real(data, entry)
    return _given(data.astype(real) - _laid(files[entry["image"]], under).astype(real), entry)


def _flat(entry: Entry, data: Array, under: Array | None, files: Mapping[str, Array]) -> Array:
    real, flat = _real(data, entry), files[entry["image"]]
    factor = np.full(flat.shape, np.nan)
    factor[flat > 0] = flat[flat > 0].mean() / flat[flat > 0]
    return _given(data.astype(real) * _laid(factor, under).astype(real), entry)


def _linear(entry: Entry, data: Array, under: Array | None, files: Any) -> Array:
    real = _real(data, entry).type
    return _given(data.astype(real) * real(entry["slope"]) + real(entry["offset"]), entry)


def _threshold(entry: Entry, data: Array, under: Array | None, files: Any) -> Array:
    if entry.get("binary"):
        return np.asarray(data <= entry["high"]).astype("u1")
    return np.where(data >= entry["low"], data, data.dtype.type(entry["value"]))


def _cosmic(entry: Entry, data: Array, under: Array | None, files: Any) -> Array:
    value = np.asarray(_fill(entry["value"], data.dtype)).astype(data.dtype)
    return np.where(data > entry["max_count"], value, data)


def _reducer(reduce: Callable[..., Any]) -> Any:
    """A task that makes a row of numbers of every band; or a vector, those of bands in turn."""

    def task(name: str, entry: Entry, inputs: list[Product], files: Mapping[str, Array]) -> Product:
        (given,) = inputs
        rows = []
        for frame in given.data:
            seen = [reduce(entry, band, given.under, files) for band in frame]
            if isinstance(seen[0], dict):
                table = np.empty(len(seen), [(column, "f8") for column in seen[0]])
                for column in seen[0]:
                    table[column] = [row[column] for row in seen]
                rows.append(table)
            else:
                rows.append(np.concatenate(seen))
        return Product(np.array(rows), given.absent, given.span)

    return task


def _numbers(pixels: Array) -> dict[str, Any]:
    return {
        "min": pixels.min(),
        "max": pixels.max(),
        "avg": pixels.mean(),
        "std": pixels.std(),
        "sum": pixels.sum(),
    }


def _roi_counters(entry: Entry, band: Array, under: Array, files: Any) -> dict[str, Any]:
    (box,) = entry["rois"].values()
    return _numbers(band[_inside(under, box)].astype("f8"))


def _statistics(
    entry: Entry, band: Array, under: Array | None, files: Mapping[str, Array]
) -> dict[str, Any]:
    masked = _masked(files[entry["mask"]], under) if "mask" in entry else np.zeros(band.shape, bool)
    pixels = band[~masked].astype("f8")
    numbers = pixels[~np.isnan(pixels)]
    found = _numbers(numbers) if len(numbers) else dict.fromkeys(_numbers(np.zeros(1)), np.nan)
    found["sum"] = numbers.sum()
    return {**found, "nb_nan": len(pixels) - len(numbers), "nb_zero": (numbers == 0).sum()}


def _fill_factor(entry: Entry, band: Array, under: Any, files: Any) -> dict[str, Any]:
    above = (band > entry["above"]).sum()
    return {"nb_above": above, "fraction": above / band.size}


def _centre_of_mass(entry: Entry, band: Array, under: Array, files: Any) -> dict[str, Any]:
    weights = np.where(band <= entry["above"], 0, band).astype("f8")
    total = weights.sum()
    left, top, right, bottom = under
    with np.errstate(divide="ignore", invalid="ignore"):
        x = (weights * (left + right) / 2).sum() / total
        y = (weights * (top + bottom) / 2).sum() / total
    return {"x": x, "y": y, "sum": total}


def _roi_profiles(entry: Entry, band: Array, under: Array, files: Any) -> Array:
    inside = _inside(under, entry["box"])
    edge = under[0 if entry["axis"] == "x" else 1]
    pixels = band.astype("f8")
    return np.array([pixels[inside & (edge == place)].sum() for place in np.unique(edge[inside])])


def _histogram(entry: Entry, band: Array, under: Any, files: Any) -> Array:
    return np.histogram(band.astype("f8"), entry["bins"], entry["range"])[0].astype("u4")


def _sparsify(name: str, entry: Entry, inputs: list[Product], files: Any) -> Product:
    (given,) = inputs
    dtype = [("index", "u4"), ("value", given.data.dtype)]
    frames = []
    for flat in given.data.reshape(len(given.data), -1):
        index = np.flatnonzero(flat > entry["above"])
        rows = np.empty(len(index), dtype)
        rows["index"], rows["value"] = index, flat[index]
        frames.append(rows)
    return Product(frames, given.absent, given.span)


def _accumulate(name: str, entry: Entry, inputs: list[Product], files: Any) -> Product:
    (given,), n, dtype = inputs, entry["frames"], inputs[0].data.dtype
    how = entry["how"]
    types = {"sum": _sums(dtype, n), "max": dtype, "min": dtype}
    data = np.zeros((len(given.data) // n, *given.data.shape[1:]), types.get(how) or _means(dtype))
    absent: dict[int, Said] = {}
    for number in range(len(data)):
        frames = range(number * n, (number + 1) * n)
        gone = [given.absent[frame] for frame in frames if frame in given.absent]
        used = [frame for frame in frames if frame not in given.absent]
        if not used or (gone and entry["absent"] == "spoil"):
            absent[number] = gone[0]
            continue
        some = given.data[used]
        wide = some.astype("f8") if dtype.kind == "f" or how in ("mean", "std") else some
        more = {"dtype": data.dtype} if how == "sum" and dtype.kind != "f" else {}
        data[number] = getattr(np, how)(wide, axis=0, **more)
    return Product(data, absent, given.span * n, given.under)


def _several(put_together: Callable[[Entry, list[Array]], Array]) -> Any:
    def task(name: str, entry: Entry, inputs: list[Product], files: Any) -> Product:
        places: list[Any] = [item.under for item in inputs]
        same = all(place is not None and np.array_equal(place, places[0]) for place in places)
        data = put_together(entry, [item.data for item in inputs])
        return replace(inputs[0], data=data, under=places[0] if same else None)

    return task


def _combine(entry: Entry, data: list[Array]) -> Array:
    weights, dtype = entry["weights"], data[0].dtype
    if dtype.kind != "f":
        whole = all(isinstance(weight, int) for weight in weights)
        ends = [sorted(weight * end for end in _limits(dtype)) for weight in weights]
        low, high = (int(sum(end)) for end in zip(*ends, strict=True))
        dtype = _narrowest(np.dtype("u1"), low, high) if whole else _means(dtype)
    total: Array = sum(item.astype(dtype) * dtype.type(weight)
                       for item, weight in zip(data, weights, strict=True))  # fmt: skip
    return total


def _choose(rejects: Callable[[Entry, int, list[Product]], bool]) -> Any:
    def task(name: str, entry: Entry, inputs: list[Product], files: Any) -> Product:
        first = inputs[0]
        rejected = {n: ("rejected", name) for n in first.present if rejects(entry, n, inputs)}
        return replace(first, absent={**first.absent, **rejected})

    return task


def _rejects(entry: Entry, number: int, inputs: list[Product]) -> bool:
    return bool(inputs[1].data[number][entry["row"]][entry["channel"]] < entry["below"])


def _as_it_is(name: str, entry: Entry, inputs: list[Product], files: Any) -> Product:
    return inputs[0]


_TASKS: Mapping[str, Callable[[str, Entry, list[Product], Mapping[str, Array]], Product]] = {
    "crop": _each_by_itself(_crop),
    "bin": _bin,
    "flip": _each_by_itself(
        lambda entry, data, _: np.flip(data, -1 if entry["axis"] == "x" else -2)
    ),
    "rotate": _each_by_itself(
        lambda entry, data, _: np.rot90(data, -entry["angle"] // 90, axes=(-2, -1))
    ),
    "transpose": _each_by_itself(lambda entry, data, _: np.swapaxes(data, -1, -2)),
    "mask": _correction(_mask),
    "dark": _correction(_dark),
    "flat": _correction(_flat),
    "linear": _correction(_linear),
    "threshold": _correction(_threshold),
    "cosmic": _correction(_cosmic),
    "roi_counters": _reducer(_roi_counters),
    "roi_profiles": _reducer(_roi_profiles),
    "statistics": _reducer(_statistics),
    "fill_factor": _reducer(_fill_factor),
    "centre_of_mass": _reducer(_centre_of_mass),
    "histogram": _reducer(_histogram),
    "sparsify": _sparsify,
    "accumulate": _accumulate,
    "stack_bands": _several(lambda _, data: np.concatenate(data, axis=1)),
    "combine": _several(_combine),
    "select_bands": lambda name, entry, inputs, files: replace(
        inputs[0], data=inputs[0].data[:, entry["bands"]]
    ),
    "every": _choose(
        lambda entry, n, _: n < entry["first"] or (n - entry["first"]) % entry["n"] != 0
    ),
    "frame_range": _choose(lambda entry, n, _: not entry["start"] <= n < entry["stop"]),
    "reject": _choose(_rejects),
    "tap": _as_it_is,
    **dict.fromkeys(["save_dense", "save_vector", "save_table", "save_sparse"], _as_it_is),
}
