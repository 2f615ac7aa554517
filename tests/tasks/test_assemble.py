"""Modules put together: every pixel of every module where its place says, and back again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lima2py
from lima2py.errors import BadParameter
from lima2py.frame import Array, Block, FrameSpec
from lima2py.geometry import Affine, Roi
from lima2py.task import RunContext, Task, local_box
from lima2py.tasks.assemble import Assemble, ModulePixel
from lima2py.testing.strategies import boxes, chains
from lima2py.testing.tasks import TaskTests

PLACES: list[dict[str, Any]] = [
    {"x": 1, "y": 0},
    {"x": 20, "y": 2, "angle": 90},
    {"x": 0, "y": 14, "angle": 180, "flip": "x"},
]


class TestAssembleOfBands(TaskTests):
    @pytest.fixture
    def task(self) -> Task:
        return Assemble.load({"places": PLACES, "shape": [40, 30], "value": 7}, "assemble")

    @pytest.fixture
    def spec(self) -> FrameSpec:
        """Modules that are not on the detector yet."""
        spec = FrameSpec.dense(12, 16, np.uint16, bands=3)
        return spec.replace(to_detector=None, detector_shape=None)


class TestAssembleOfInputs(TaskTests):
    @pytest.fixture
    def task(self) -> Task:
        return Assemble.load({"places": PLACES, "value": "fill"}, "assemble")

    @pytest.fixture
    def specs(self) -> Sequence[FrameSpec]:
        shapes = [(12, 16), (5, 9), (3, 4)]
        specs = [FrameSpec.dense(*shape, np.float32, bands=2) for shape in shapes]
        return [spec.replace(to_detector=None, detector_shape=None) for spec in specs]


@dataclass(frozen=True)
class Layout:
    """Modules and places that do not overlap: each has a cell of a grid to itself."""

    images: tuple[tuple[int, int], ...]
    places: tuple[dict[str, Any], ...]


@st.composite
def layouts(draw: st.DrawFn, cell: int = 9, alike: bool = False) -> Layout:
    columns, rows = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    sides = st.tuples(st.integers(1, cell), st.integers(1, cell))
    same = draw(sides)
    images, places = [], []
    for number in draw(st.permutations(range(columns * rows))):
        height, width = same if alike else draw(sides)
        angle = draw(st.sampled_from([0, 90, 180, 270]))
        turned = (width, height) if angle in (90, 270) else (height, width)
        place: dict[str, Any] = {
            "x": number % columns * cell + draw(st.integers(0, cell - turned[1])),
            "y": number // columns * cell + draw(st.integers(0, cell - turned[0])),
            "angle": angle,
        }
        if flip := draw(st.sampled_from([None, "x", "y"])):
            place["flip"] = flip
        images.append((height, width))
        places.append(place)
    return Layout(tuple(images), tuple(places))


def laid_out(task: Assemble, images: Sequence[Array], shape: tuple[int, int]) -> Array:
    """The assembled image, made one pixel after the other by what a place means."""
    whole: Array = np.full(shape, task.value, images[0].dtype)
    for module, place in zip(images, task.places or (), strict=True):
        mirrored = {None: module, "x": module[:, ::-1], "y": module[::-1]}[place.flip]
        height, width = mirrored.shape
        for (row, column), value in np.ndenumerate(mirrored):
            y, x = {
                0: (row, column),
                90: (column, height - 1 - row),
                180: (height - 1 - row, width - 1 - column),
                270: (width - 1 - column, row),
            }[place.angle]
            whole[place.y + y, place.x + x] = value
    return whole


@settings(max_examples=40)
@given(layouts(), st.integers(0, 2**32), st.sampled_from(["u2", "f4", "i8"]))
def test_every_pixel_of_every_module_lies_where_its_place_says(
    layout: Layout, seed: int, dtype: str
) -> None:
    random = np.random.default_rng(seed)
    images = [random.integers(1, 1000, (2, 1, *shape)).astype(dtype) for shape in layout.images]
    task = Assemble.load({"places": layout.places, "value": 5000}, "assemble")
    spec = task.prepare(*(FrameSpec.dense(*shape, dtype) for shape in layout.images))
    inputs = [FrameSpec.dense(*shape, dtype) for shape in layout.images]
    made = task.process(*(Block(s, 3, 2, data) for s, data in zip(inputs, images, strict=True)))
    assert (made.spec, made.pixels.dtype) == (spec, np.dtype(dtype))
    for frame in range(2):
        expected = laid_out(task, [image[frame, 0] for image in images], spec.image)
        np.testing.assert_array_equal(made.pixels[frame, 0], expected)


@settings(max_examples=40)
@given(layouts(alike=True), st.data())
def test_a_roi_on_a_product_finds_its_detector_pixels_and_these_their_module(
    layout: Layout, data: st.DataObject
) -> None:
    """Assemble, then any chain of reshaping: what a ROI there sees, told from the modules alone."""
    shape = (1, len(layout.images), *layout.images[0])
    modules: Array = np.arange(1.0, np.prod(shape) + 1).reshape(shape)
    spec = FrameSpec.dense(*layout.images[0], "f8", bands=len(layout.images))
    task = Assemble.load({"places": layout.places}, "assemble")
    assembled = task.prepare(spec)
    image = task.process(Block(spec, 0, 1, modules)).pixels
    assert (assembled.to_detector, assembled.detector_shape) == (Affine(), assembled.image)
    chain = data.draw(chains(detector=assembled.image, max_steps=3))
    product = assembled.replace(shape=(1, *chain.image), to_detector=chain.to_detector)
    roi = data.draw(boxes(product.box))
    seen = chain.to_detector.covered(roi)
    assert local_box(seen, product, "roi") == roi
    total = 0.0
    for y, x in np.ndindex(seen.height, seen.width):
        found = task.module_pixel(seen.x + x, seen.y + y)
        if found is not None:
            total += float(modules[0, found.module, found.y, found.x])
    assert chain.apply(image)[..., *roi.slices].sum() == total


def test_a_large_module_is_turned_by_a_quarter_in_pieces_that_fit() -> None:
    random = np.random.default_rng(1)
    modules = random.integers(0, 2**16, (2, 2, 300, 517)).astype("u2")
    spec = FrameSpec.dense(300, 517, "u2", bands=2)
    task = Assemble.load(
        {"places": [{"x": 0, "y": 0, "angle": 90}, {"x": 301, "y": 0, "angle": 270}]}, "assemble"
    )
    task.prepare(spec)
    made = task.process(Block(spec, 0, 2, modules)).pixels[:, 0]
    np.testing.assert_array_equal(made[:, :, :300], np.rot90(modules[:, 0], -1, axes=(1, 2)))
    np.testing.assert_array_equal(made[:, :, 301:], np.rot90(modules[:, 1], 1, axes=(1, 2)))
    assert not made[:, :, 300].any()


@pytest.mark.parametrize("turn", [{"angle": 90, "flip": "x"}, {"angle": 180}, {"flip": "x"}])
def test_modules_lie_in_memory_as_they_may_and_need_no_compiler_after_start(
    turn: dict[str, Any],
) -> None:
    from lima2py.kernels.turn import exchange, mirror

    task = Assemble.load({"places": [{"x": 1, "y": 2, **turn}]}, "assemble")
    spec = FrameSpec.dense(6, 8, "f4")
    task.prepare(spec)
    task.start(RunContext(run="0" * 32, name="test"))
    compiled = len(exchange.signatures), len(mirror.signatures)
    data = np.arange(3 * 48, dtype="f4").reshape(3, 1, 6, 8)
    frozen = data.copy()
    frozen.flags.writeable = False
    spread = np.zeros((3, 1, 12, 8), "f4")
    spread[:, :, ::-2] = data
    made = [task.process(Block(spec, 0, 3, a)).pixels for a in (data, frozen, spread[:, :, ::-2])]
    np.testing.assert_array_equal(made[0], made[1])
    np.testing.assert_array_equal(made[0], made[2])
    assert (len(exchange.signatures), len(mirror.signatures)) == compiled


def test_which_pixel_of_which_module_it_was() -> None:
    task = Assemble.load({"places": PLACES}, "assemble")
    task.prepare(FrameSpec.dense(12, 16, "u2", bands=3))
    assert task.module_pixel(1, 0) == ModulePixel(0, 0, 0)
    assert task.module_pixel(16, 11) == ModulePixel(0, 15, 11)
    assert task.module_pixel(31, 2) == ModulePixel(1, 0, 0)  # turned: its corner is at the right
    assert task.module_pixel(0, 25) == ModulePixel(2, 0, 0)  # mirrored and turned: upside down
    assert task.module_pixel(0, 0) is None
    for outside in [(-1, 0), (0, 26), (32, 0)]:
        with pytest.raises(ValueError, match=r"outside the detector, which has 32 × 26 pixels"):
            task.module_pixel(*outside)


def test_places_can_stand_in_a_file_beside_the_graph(tmp_path: Path) -> None:
    (tmp_path / "places.yaml").write_text("places:\n  - {x: 0, y: 0}\n  - {x: 5, y: 0, flip: x}\n")
    modules = np.arange(24).reshape(1, 2, 3, 4)
    graph = "tasks: {whole: {do: assemble, from: detector, file: places.yaml, value: -1}}"
    made = lima2py.apply(graph, modules, base=tmp_path)["whole"].pixels[0, 0]
    assert made.tolist()[0] == [0, 1, 2, 3, -1, 15, 14, 13, 12]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (None, "there is no such file of places"),
        ("places: [{x: 0}]", "places.0.y: is required"),
        ("places: [{x: 0, y: -1}]", "places.0.y: should be greater than or equal to 0"),
        ("places: [{x: 0, y: 0, angle: 45}]", "places.0.angle: should be 0, 90, 180 or 270"),
        ("- {x: 0, y: 0}", "should hold `key: value` lines"),
    ],
)
def test_a_file_that_holds_no_places_is_refused(
    tmp_path: Path, text: str | None, complaint: str
) -> None:
    path = tmp_path / "places.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(BadParameter, match=f"^file: {path}.*{complaint}"):
        Assemble(file=str(path)).prepare(FrameSpec.dense(4, 4, "u2"))


@pytest.mark.parametrize(
    ("parameters", "complaint"),
    [
        ({}, "places: give either `places`, .* or `file`, .* neither is given"),
        ({"places": [], "file": "x"}, "places: give either .* both are given"),
        ({"places": PLACES[:2]}, "places: 2 are given and 3 modules come in"),
        (
            {"places": [{"x": 0, "y": 0}, {"x": 50, "y": 0}, {"x": 15, "y": 11}]},
            r"places: module 0, on \[0, 0, 16, 12\] .*, and module 2, on \[15, 11, 16, 12\],"
            " overlap; every pixel belongs to one module",
        ),
        (
            {"places": PLACES, "shape": [32, 25]},
            r"shape: module 2 covers \[0, 14, 16, 12\] .* outside of 32 × 25 pixels .*"
            r" need \[32, 26\]",
        ),
        ({"places": PLACES, "value": -1}, "value: -1 does not fit pixels of uint16"),
        ({"places": PLACES, "value": 0.5}, "value: 0.5 does not fit pixels of uint16"),
    ],
)
def test_what_cannot_be_assembled_is_refused(parameters: dict[str, Any], complaint: str) -> None:
    with pytest.raises(BadParameter, match=f"^{complaint}"):
        Assemble.load(parameters, "assemble").prepare(FrameSpec.dense(12, 16, "u2", bands=3))


@pytest.mark.parametrize(
    ("other", "complaint"),
    [
        (FrameSpec.dense(4, 4, "u4"), "input 1 has 1 bands of uint32 and input 0 1 of uint16"),
        (FrameSpec.dense(4, 4, "u2", bands=2), "input 1 has 2 bands of uint16"),
        (FrameSpec("table", (3,), np.dtype("f8")), "a table product comes in as input 1"),
    ],
)
def test_modules_that_do_not_belong_together_are_refused(other: FrameSpec, complaint: str) -> None:
    task = Assemble.load({"places": PLACES[:2]}, "assemble")
    with pytest.raises(BadParameter, match=f"^from: .*{complaint}"):
        task.prepare(FrameSpec.dense(4, 4, "u2"), other)


def test_halves_of_a_tall_image_are_cut_out_turned_and_put_together() -> None:
    """Receivers that deliver two modules below one another."""
    frames = np.arange(2 * 8 * 6).reshape(2, 8, 6)
    graph = """
    tasks:
      upper: {do: crop, from: detector, box: [0, 0, 6, 4]}
      lower: {do: crop, from: detector, box: [0, 4, 6, 4]}
      whole:
        do: assemble
        from: [upper, lower]
        places: [{x: 0, y: 0}, {x: 8, y: 0, angle: 180}]
      corner: {do: crop, from: whole, box: [13, 3, 1, 1]}
    """
    made = lima2py.apply(graph, frames)
    np.testing.assert_array_equal(made["whole"].pixels[:, 0, :, :6], frames[:, :4])
    np.testing.assert_array_equal(made["whole"].pixels[:, 0, :, 8:], frames[:, 4:][:, ::-1, ::-1])
    assert made["corner"].pixels.ravel().tolist() == frames[:, 4, 0].tolist()


def test_a_roi_in_a_gap_counts_the_fill() -> None:
    task = Assemble.load({"places": [{"x": 2, "y": 0}], "value": 9}, "assemble")
    spec = FrameSpec.dense(2, 2, "u2")
    task.prepare(spec)
    made = task.process(Block(spec, 0, 1, np.ones((1, 1, 2, 2), "u2"))).pixels
    assert made[..., *Roi(0, 0, 2, 2).slices].tolist() == [[[[9, 9], [9, 9]]]]
