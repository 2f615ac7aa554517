"""Compressed frames become the images they were, and damage costs one frame."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from lima2py.codec import Encoding, codec
from lima2py.errors import BadGraph, BadParameter
from lima2py.frame import SIZES, Absence, Array, Block, Fate, FrameSpec
from lima2py.graph.definition import GraphDefinition, parse_graph
from lima2py.graph.flow import Flow
from lima2py.graph.plan import Plan
from lima2py.task import RunContext, Task
from lima2py.tasks.decode import Decode
from lima2py.testing.tasks import TaskTests

ENCODINGS: tuple[Encoding, ...] = get_args(Encoding)
IMAGE = FrameSpec.dense(12, 16, np.uint16, bands=2)


def compressed(images: Array, spec: FrameSpec, encoding: Encoding, first: int = 0) -> Block:
    """Images as a detector would send them."""
    compress = codec(encoding).encode
    payloads = [np.frombuffer(bytes(compress(image)), np.uint8) for image in images]
    sizes = np.array([len(payload) for payload in payloads], np.uint64)
    data = np.full((len(images), int(sizes.max()) + 5), 0xEE, np.uint8)
    for room, payload in zip(data, payloads, strict=True):
        room[: len(payload)] = payload
    encoded = FrameSpec.encoded(spec, encoding, data.shape[1])
    columns = {"timestamp": 1e9 + np.arange(len(images)), SIZES: sizes}
    return Block(encoded, first, len(images), data, columns=columns)


def noise(count: int) -> Array:
    """Images that no compressor makes smaller, so that all payloads are of one size."""
    random = np.random.default_rng(8)
    return random.integers(0, 2**16, (count, *IMAGE.shape)).astype(np.uint16)


class TestDecode(TaskTests):
    @pytest.fixture
    def task(self) -> Task:
        return Decode()

    @pytest.fixture
    def frames(self) -> Array:
        block = compressed(noise(12), IMAGE, "bslz4")
        (size,) = set(block.columns[SIZES].tolist())
        return block.pixels[:, :size]

    @pytest.fixture
    def spec(self, frames: Array) -> FrameSpec:
        return FrameSpec.encoded(IMAGE, "bslz4", frames.shape[1])


def decoded(block: Block) -> Block:
    task = Decode()
    assert task.prepare(block.spec) == block.spec.decoded.image  # type: ignore[union-attr]
    task.start(RunContext(run="0" * 32, name="test", task="images"))
    return task.process(block)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.int32, np.float32])
def test_every_encoding_gives_the_images_back(encoding: Encoding, dtype: type) -> None:
    spec = FrameSpec.dense(37, 41, dtype)
    images: Array = np.random.default_rng(1).poisson(1, (5, *spec.shape)).astype(dtype)
    given = compressed(images, spec, encoding)
    made = decoded(given)
    np.testing.assert_array_equal(made.pixels, images, strict=True)
    assert made.spec == spec
    assert not made.absences
    np.testing.assert_array_equal(made.columns[SIZES], given.columns[SIZES])


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_damaged_frame_is_corrupt_and_the_others_go_on(encoding: Encoding) -> None:
    images = np.random.default_rng(2).poisson(1, (4, *IMAGE.shape)).astype(np.uint16)
    given = compressed(images, IMAGE, encoding)
    given.columns[SIZES][1] -= 1
    given.columns[SIZES][3] = 10**9
    made = decoded(given)
    assert sorted(made.absences) == [1, 3]
    for absence in made.absences.values():
        assert (absence.cause, absence.who) == (Fate.CORRUPT, "images")
        assert "bytes" in absence.detail
    np.testing.assert_array_equal(made.pixels[[0, 2]], images[[0, 2]])


def test_frames_that_are_absent_are_not_looked_at() -> None:
    given = compressed(noise(3), IMAGE, "bslz4")
    given.pixels[1] = 0
    gone = Absence(Fate.DETECTOR_GAP, "detector", "skipped")
    made = decoded(given.refuse({1: gone}))
    assert made.absences == {1: gone}
    np.testing.assert_array_equal(made.pixels[[0, 2]], noise(3)[[0, 2]])


def test_what_is_not_compressed_is_refused() -> None:
    with pytest.raises(BadParameter, match=r"^from: there is nothing to decode.*leave this task"):
        Decode().prepare(IMAGE)


def graph(text: str) -> GraphDefinition:
    return parse_graph(f"graph: g\ntasks:\n{text}", "g.yaml")


@pytest.mark.parametrize("do", ["mask, file: m.npy", "bin, by: [2, 2]", "statistics", "tap"])
def test_tasks_that_need_pixels_say_to_decode_before(do: str) -> None:
    spec = FrameSpec.encoded(IMAGE, "bslz4", 900)
    with pytest.raises(BadGraph, match=r"from: the frames of detector come compressed.*decode"):
        Plan.make(graph(f"  a: {{do: {do}, from: detector}}"), spec)


def test_frames_can_be_chosen_by_what_was_found_in_their_images() -> None:
    """The compressed frames of those that are chosen, untouched."""
    definition = graph(
        "  images: {do: decode, from: detector}\n"
        "  found: {do: statistics, from: images}\n"
        "  dark: {do: reject, from: [detector, found], channel: max, row: 0, above: 0}\n"
        "  some: {do: every, from: dark, n: 2}\n"
    )
    images = np.zeros((6, *IMAGE.shape), np.uint16)
    images[[2, 5]] = 7
    given = compressed(images, IMAGE, "bslz4")
    plan = Plan.make(definition, given.spec)
    flow = Flow(plan, RunContext("0" * 32, "test", frames_per_block=6), 1)
    flow.process(given)
    some = flow.product("some")
    flow.finish()
    assert some is not None
    assert sorted(some.absences) == [1, 2, 3, 5]
    assert some.data is given.data


def test_a_plan_shows_what_comes_compressed() -> None:
    spec = FrameSpec.encoded(IMAGE, "bslz4", 900)
    assert str(spec) == "2 × 12 × 16  uint16, bslz4"
    table = Plan.make(graph("  images: {do: decode, from: detector}"), spec).table()
    assert "uint16, bslz4" in table
