"""Random frames, blocks, chains of reshaping and whole graphs for tests with hypothesis.

A `Chain` is what a person might put into a graph (crop, bin, flip, rotate, transpose), each step
with the matching operation on arrays, written as plainly as numpy allows: the reference that
tasks and geometry are compared with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import DTypeLike

from lima2py.errors import BadParameter
from lima2py.frame import Absence, Array, Block, Fate, FrameSpec
from lima2py.geometry import Affine, Roi
from lima2py.graph.kinds import task_class

PIXEL_TYPES = ("u1", "i1", "u2", "i2", "u4", "i4", "f4", "f8")

CAUSES = tuple(fate for fate in Fate if fate.is_absent and fate is not Fate.NO_RECORD)


@dataclass(frozen=True)
class Step:
    """One change of shape.

    Attributes:
        do: the name of the task.
        parameters: its parameters, as a person writes them.
        to_input: from the pixels after it to those before it.
        apply: the same, done to an array `(..., height, width)`.
    """

    do: str
    parameters: Mapping[str, Any]
    to_input: Affine
    apply: Callable[[Array], Array]

    def __repr__(self) -> str:
        return f"{self.do} {dict(self.parameters)}"


@dataclass(frozen=True)
class Chain:
    """Steps one after the other, beginning at a whole detector.

    Attributes:
        detector: its `(height, width)`.
        steps: in the order they are done.
        image: `(height, width)` after the last step.
        to_detector: from the pixels after the last step to those of the detector.
    """

    detector: tuple[int, int]
    steps: tuple[Step, ...]
    image: tuple[int, int]
    to_detector: Affine

    def apply(self, images: Array) -> Array:
        """What the steps make of detector images `(..., height, width)`."""
        for step in self.steps:
            images = step.apply(images)
        return images

    @property
    def box(self) -> Roi:
        """The whole image after the last step."""
        return Roi(0, 0, self.image[1], self.image[0])

    def spec(self, dtype: DTypeLike) -> FrameSpec:
        """What comes after the last step, if the pixels there have this type."""
        return FrameSpec(
            "dense",
            (1, *self.image),
            np.dtype(dtype),
            self.to_detector,
            detector_shape=self.detector,
        )


def pixel_types() -> st.SearchStrategy[np.dtype[Any]]:
    """The types pixels have."""
    return st.sampled_from(PIXEL_TYPES).map(np.dtype)


def boxes(outer: Roi) -> st.SearchStrategy[Roi]:
    """Rectangles of one pixel or more inside another one."""

    def spans(start: int, length: int) -> st.SearchStrategy[tuple[int, int]]:
        edges = st.lists(st.integers(0, length), min_size=2, max_size=2, unique=True)
        return edges.map(lambda pair: (start + min(pair), abs(pair[0] - pair[1])))

    return st.builds(
        lambda x, y: Roi(x[0], y[0], x[1], y[1]),
        spans(outer.x, outer.width),
        spans(outer.y, outer.height),
    )


def images(max_side: int = 24) -> st.SearchStrategy[tuple[int, int]]:
    """Shapes `(height, width)`; most of them can be binned in several ways."""
    side = st.one_of(st.sampled_from([8, 12, 24]), st.integers(1, max_side))
    return st.tuples(side, side)


@st.composite
def chains(
    draw: st.DrawFn,
    detector: tuple[int, int] | None = None,
    max_steps: int = 5,
    kinds: tuple[str, ...] = ("crop", "bin", "flip", "rotate", "transpose"),
) -> Chain:
    """Chains of changes of shape; bins always divide."""
    detector = detector or draw(images())
    image, to_detector, steps = detector, Affine(), []
    for kind in draw(st.lists(st.sampled_from(kinds), max_size=max_steps)):
        step, image = _STEPS[kind](draw, image, to_detector)
        to_detector = to_detector @ step.to_input
        steps.append(step)
    return Chain(detector, tuple(steps), image, to_detector)


def _crop(
    draw: st.DrawFn, image: tuple[int, int], to_detector: Affine
) -> tuple[Step, tuple[int, int]]:
    box = draw(boxes(Roi(0, 0, image[1], image[0])))
    step = Step(
        "crop",
        {"box": list(to_detector.covered(box))},
        Affine.crop(box),
        lambda array: array[..., box.y : box.y + box.height, box.x : box.x + box.width],
    )
    return step, (box.height, box.width)


def _bin(draw: st.DrawFn, image: tuple[int, int], _: Affine) -> tuple[Step, tuple[int, int]]:
    height, width = image
    x, y = (
        draw(st.sampled_from([n for n in (1, 2, 3, 4) if length % n == 0]))
        for length in (width, height)
    )

    def apply(array: Array) -> Array:
        bins = array.reshape(*array.shape[:-2], height // y, y, width // x, x)
        summed: Array = bins.sum(axis=(-3, -1), dtype=array.dtype)
        return summed

    return Step("bin", {"by": [x, y]}, Affine.bin(x, y), apply), (height // y, width // x)


def _flip(draw: st.DrawFn, image: tuple[int, int], _: Affine) -> tuple[Step, tuple[int, int]]:
    axis = draw(st.sampled_from(["x", "y"]))
    step = Step(
        "flip",
        {"axis": axis},
        Affine.flip(axis, image),
        lambda array: np.flip(array, -1 if axis == "x" else -2),
    )
    return step, image


def _rotate(draw: st.DrawFn, image: tuple[int, int], _: Affine) -> tuple[Step, tuple[int, int]]:
    angle = draw(st.sampled_from([90, 180, 270]))
    step = Step(
        "rotate",
        {"angle": angle},
        Affine.rotate(angle, image),
        lambda array: np.rot90(array, -angle // 90, axes=(-2, -1)),
    )
    return step, image if angle == 180 else (image[1], image[0])


def _transpose(_: st.DrawFn, image: tuple[int, int], __: Affine) -> tuple[Step, tuple[int, int]]:
    step = Step("transpose", {}, Affine.transpose(), lambda array: np.swapaxes(array, -1, -2))
    return step, (image[1], image[0])


_STEPS = {"crop": _crop, "bin": _bin, "flip": _flip, "rotate": _rotate, "transpose": _transpose}


@st.composite
def specs(draw: st.DrawFn, image: tuple[int, int] | None = None) -> FrameSpec:
    """Images of a whole detector."""
    height, width = image or draw(images(12))
    return FrameSpec.dense(height, width, draw(pixel_types()), bands=draw(st.integers(1, 3)))


def absences(count: int) -> st.SearchStrategy[dict[int, Absence]]:
    """Some of `count` frames absent, by offset."""
    absence = st.builds(
        Absence, st.sampled_from(CAUSES), st.sampled_from(["detector", "node", "ring"]), st.text()
    )
    return st.dictionaries(st.integers(0, count - 1), absence, max_size=count)


@st.composite
def blocks(draw: st.DrawFn, spec: FrameSpec, max_frames: int = 5) -> Block:
    """Blocks of these frames, some of them absent; at least one has data.

    The data of absent frames are as arbitrary as the others.
    """
    count = draw(st.integers(1, max_frames))
    missing = draw(absences(count))
    if len(missing) == count:
        del missing[draw(st.integers(0, count - 1))]
    data = draw(hnp.arrays(spec.dtype, (count, *spec.shape), elements=_pixels(spec.dtype)))
    data.flags.writeable = False
    times = draw(hnp.arrays(np.float64, count, elements=st.floats(0, 2e9)))
    return Block(spec, draw(st.integers(0, 10**6)), count, data, missing, {"timestamp": times})


def _pixels(dtype: np.dtype[Any]) -> st.SearchStrategy[Any]:
    if dtype.kind == "f":
        return st.floats(-1e6, 1e6, width=32)
    return hnp.from_dtype(dtype)


Entry = dict[str, Any]
"""A task as a person writes it: `do`, `from` and its parameters."""


@st.composite
def graphs(
    draw: st.DrawFn, spec: FrameSpec, files: Mapping[str, str], max_tasks: int = 8
) -> dict[str, Entry]:
    """Graphs of the tasks that come with lima2py: chains, branches and branches that meet again.

    Some of the products are saved, at least one of them.

    Args:
        draw: given by hypothesis.
        spec: of the frames that come in.
        files: paths of images of the detector for `mask`, `dark` and `flat`.
        max_tasks: the most tasks besides sinks.

    Returns:
        Tasks by name, in an order in which every input comes before it is used.
    """
    entries: dict[str, Entry] = {}
    products = {"detector": spec}
    for number in range(draw(st.integers(1, max_tasks))):
        entry = draw(st.sampled_from(_DRAWN))(draw, products, files)
        promised = _promised(entry, products)
        if promised is not None:
            name = f"{entry['do']}_{number}"
            entries[name], products[name] = entry, promised
    kept = st.lists(st.sampled_from(list(products)[::-1]), min_size=1, max_size=4, unique=True)
    for name in draw(kept):
        kind = products[name].kind
        if kind == "sparse" and products[name].bands != 1:
            kind = "table"  # save_sparse keeps the pixels of one band
        entries[f"save_{name}"] = {"do": f"save_{kind}", "from": name, "compression": "none"}
    return entries


def _promised(entry: Entry, products: Mapping[str, FrameSpec]) -> FrameSpec | None:
    """What a task says that it gives; None if it refuses what comes in."""
    names = entry["from"] if isinstance(entry["from"], list) else [entry["from"]]
    parameters = {name: value for name, value in entry.items() if name not in ("do", "from")}
    task = task_class(entry["do"], "graph").load(parameters, "task")
    task.know_inputs(tuple(names))
    specs = [products[name] for name in names]
    if len({item.span for item in specs}) > 1:
        return None
    try:
        promised: FrameSpec = task.prepare(*specs)
    except BadParameter:
        return None
    return promised


_Products = Mapping[str, FrameSpec]
_Files = Mapping[str, str]


def _image(draw: st.DrawFn, products: _Products) -> str:
    """A product that consists of images; rather a new one than an old one."""
    return draw(
        st.sampled_from([name for name in products if products[name].kind == "dense"][::-1])
    )


def _box(draw: st.DrawFn, spec: FrameSpec) -> list[int]:
    """A rectangle of the detector, on pixels of a product.

    If these have no place there it is anything, which every task refuses.
    """
    box = draw(boxes(spec.box))
    return list(box if spec.to_detector is None else spec.to_detector.covered(box))


def _draw_reshape(draw: st.DrawFn, products: _Products, _: _Files) -> Entry:
    name = _image(draw, products)
    spec = products[name]
    by = [
        draw(st.sampled_from([n for n in (1, 2, 3) if length % n == 0]))
        for length in (spec.width, spec.height)
    ]
    entries: list[Entry] = [
        {"do": "bin", "by": by, "how": draw(st.sampled_from(["sum", "mean", "max"]))},
        {"do": "crop", "box": _box(draw, spec)},
        {"do": "flip", "axis": draw(st.sampled_from(["x", "y"]))},
        {"do": "rotate", "angle": draw(st.sampled_from([90, 180, 270]))},
        {"do": "transpose"},
    ]
    return draw(st.sampled_from(entries)) | {"from": name}


def _draw_correction(draw: st.DrawFn, products: _Products, files: _Files) -> Entry:
    dtype = draw(st.sampled_from([None, None, "uint16", "int32"]))
    entries: list[Entry] = [
        {"do": "mask", "file": files["mask"], "value": draw(st.sampled_from([0, 7, "fill"]))},
        {"do": "dark", "image": files["dark"], "dtype": dtype},
        {"do": "flat", "image": files["flat"], "dtype": dtype},
        {"do": "linear", "slope": draw(st.sampled_from([0.5, -3])), "offset": 1, "dtype": dtype},
        {"do": "threshold", "low": 1000, "value": 3},
        {"do": "threshold", "high": 40000.5, "binary": True},
        {"do": "cosmic", "max_count": 60000, "value": "fill"},
    ]
    return draw(st.sampled_from(entries)) | {"from": _image(draw, products)}


def _draw_reducer(draw: st.DrawFn, products: _Products, files: _Files) -> Entry:
    name = _image(draw, products)
    box = _box(draw, products[name])
    entries: list[Entry] = [
        {"do": "roi_counters", "rois": {"spot": box}},
        {"do": "roi_profiles", "box": box, "axis": draw(st.sampled_from(["x", "y"]))},
        {"do": "statistics"},
        {"do": "statistics", "mask": files["mask"]},
        {"do": "fill_factor", "above": 10000},
        {"do": "centre_of_mass", "above": 500},
        {"do": "histogram", "bins": 5, "range": [0, 70000]},
        {"do": "sparsify", "above": 50000},
    ]
    return draw(st.sampled_from(entries)) | {"from": name}


def _draw_accumulation(draw: st.DrawFn, products: _Products, _: _Files) -> Entry:
    kinds = ("dense", "vector")
    return {
        "do": "accumulate",
        "from": draw(st.sampled_from([n for n in products if products[n].kind in kinds])),
        "frames": draw(st.sampled_from([1, 2, 3, 4])),
        "how": draw(st.sampled_from(["sum", "mean", "max", "min", "std"])),
        "absent": draw(st.sampled_from(["spoil", "skip"])),
    }


def _draw_several_inputs(draw: st.DrawFn, products: _Products, _: _Files) -> Entry:
    first = _image(draw, products)
    like = [name for name, spec in products.items() if _look(spec) == _look(products[first])]
    both = [first, draw(st.sampled_from(like))]
    entries: list[Entry] = [
        {"do": "stack_bands", "from": both},
        {"do": "combine", "from": both, "weights": draw(st.sampled_from([[1, -1], [0.5, 2]]))},
    ]
    return draw(st.sampled_from(entries))


def _look(spec: FrameSpec) -> tuple[str, tuple[int, ...], np.dtype[Any]]:
    return spec.kind, spec.shape, spec.dtype


def _draw_choice(draw: st.DrawFn, products: _Products, _: _Files) -> Entry:
    name = draw(st.sampled_from(list(products)))
    entries: list[Entry] = [
        {"do": "every", "from": name, "n": draw(st.integers(1, 4)), "first": draw(_LITTLE)},
        {"do": "frame_range", "from": name, "start": draw(_LITTLE), "stop": 40},
        {"do": "tap", "from": name, "every": 3},
    ]
    counters = [n for n, spec in products.items() if spec.dtype.names and "avg" in spec.dtype.names]
    if counters:
        by = draw(st.sampled_from(counters))
        condition = {"channel": "avg", "row": 0, "below": draw(st.sampled_from([100, 33000]))}
        entries.append({"do": "reject", "from": [name, by], **condition})
    if products[name].kind == "dense":
        bands = draw(st.sampled_from([[0], [1, 0]]))
        entries.append({"do": "select_bands", "from": name, "bands": bands})
    return draw(st.sampled_from(entries))


_LITTLE = st.integers(0, 10)
_DRAWN = (
    _draw_reshape, _draw_reshape, _draw_correction, _draw_correction, _draw_reducer,
    _draw_accumulation, _draw_several_inputs, _draw_choice,
)  # fmt: skip
