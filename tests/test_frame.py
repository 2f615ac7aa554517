"""What flows: specs that travel, fates that files rely on, blocks that never change."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lima2py.frame import FATES, Absence, Array, Block, Fate, Frame, FrameSpec, Ragged
from lima2py.geometry import Affine, Roi
from lima2py.testing.strategies import Chain, absences, blocks, chains, pixel_types, specs

COUNTERS = np.dtype([("min", "<f8"), ("n", "<u4")])

any_spec = st.one_of(
    specs(),
    st.builds(
        lambda chain, dtype: chain.spec(dtype),
        chains(),
        pixel_types(),
    ),
    st.just(FrameSpec("table", (3,), COUNTERS, labels=("a", "b", "c"))),
    st.just(FrameSpec("vector", (100,), np.dtype("f4"))),
    specs().map(lambda image: FrameSpec.encoded(image, "bslz4", 1000)),
)
spec_and_block = specs().flatmap(lambda spec: st.tuples(st.just(spec), blocks(spec)))


@given(any_spec)
def test_a_spec_survives_the_way_through_a_message(spec: FrameSpec) -> None:
    arrived = FrameSpec.from_plain(json.loads(json.dumps(spec.plain())))
    assert arrived == spec
    assert hash(arrived) == hash(spec)


def test_images_are_the_whole_detector_unless_told_otherwise() -> None:
    whole = FrameSpec.dense(20, 30, "u2")
    assert (whole.to_detector, whole.detector_shape) == (Affine(), (20, 30))
    part = FrameSpec.dense(20, 30, "u2", to_detector=Affine.translation(5, 5))
    assert part.detector_shape is None
    assert part.replace(detector_shape=(40, 40)).detector_shape == (40, 40)
    assert whole.replace(dtype=np.dtype("f4")).detector_shape == (20, 30)


@given(specs())
def test_a_spec_knows_its_size(spec: FrameSpec) -> None:
    frame = np.zeros(spec.shape, spec.dtype)
    assert spec.nbytes == frame.nbytes
    assert spec.image == frame.shape[1:] == (spec.height, spec.width)
    assert spec.box == Roi(0, 0, frame.shape[2], frame.shape[1])
    assert frame.reshape(spec.saved_shape).ndim == (2 if spec.bands == 1 else 3)


def test_a_spec_of_a_large_detector_does_not_overflow() -> None:
    assert FrameSpec.dense(2**16, 2**16, "f8", bands=4).nbytes == 2**37


def test_a_spec_reads_as_a_person_writes_it() -> None:
    assert str(FrameSpec.dense(512, 1030, "u2")) == "512 × 1030  uint16"
    assert str(FrameSpec.dense(512, 1030, "u2", bands=2)) == "2 × 512 × 1030  uint16"
    assert str(FrameSpec("table", (3,), COUNTERS)) == "table of 3"


def test_the_codes_in_files_never_change() -> None:
    assert {fate.word: fate.value for fate in Fate} == {
        "no_record": 0, "saved": 1, "rejected": 2, "not_triggered": 3,
        "detector_gap": 10, "detector_timeout": 11, "incomplete": 12, "corrupt": 13,
        "overrun": 20, "node_lost": 21, "poison": 22, "deadline": 23,
        "task_failed": 30, "not_saved": 31, "not_acquired": 40, "aborted": 41,
    }  # fmt: skip


def test_every_fate_is_explained() -> None:
    assert set(FATES) == set(Fate)
    assert all(who and meaning for who, meaning in FATES.values())


def test_nothing_is_missing_where_frames_are_saved_rejected_or_not_triggered() -> None:
    harm = {fate: fate.harm for fate in Fate if not fate.is_absent}
    assert harm == {Fate.SAVED: 0, Fate.REJECTED: 1, Fate.NOT_TRIGGERED: 0}


def test_an_absence_reads_as_cause_who_and_detail() -> None:
    assert str(Absence(Fate.DETECTOR_GAP, "eiger")) == "detector_gap (eiger)"
    assert str(Absence(Fate.NOT_SAVED, "raw", "disk full")) == "not_saved (raw: disk full)"


@given(spec_and_block)
def test_a_block_gives_its_frames_in_order_with_data_or_a_cause(
    given_block: tuple[FrameSpec, Block],
) -> None:
    spec, block = given_block
    frames = list(block.frames())
    assert [frame.index for frame in frames] == list(range(block.index, block.end))
    assert len(block.present) == block.count
    for offset, frame in enumerate(frames):
        assert (frame.data is None) == (offset in block.absences) != block.present[offset]
        assert frame.absence == block.absences.get(offset)
        assert frame.timestamp == block.columns["timestamp"][offset]
        if frame.data is not None:
            assert frame.data.shape == spec.saved_shape
            assert np.shares_memory(frame.data, block.pixels)
            np.testing.assert_array_equal(
                frame.data, block.pixels[offset].reshape(spec.saved_shape)
            )


@given(spec_and_block, st.data())
def test_a_frame_that_was_absent_keeps_its_first_cause(
    given_block: tuple[FrameSpec, Block], data: st.DataObject
) -> None:
    _, block = given_block
    later = data.draw(absences(block.count))
    refused = block.refuse(later)
    assert set(refused.absences) == set(block.absences) | set(later)
    for offset, absence in refused.absences.items():
        assert absence == block.absences.get(offset, later.get(offset))
    assert (refused.data is None) == (len(refused.absences) == block.count)
    assert (refused.index, refused.count) == (block.index, block.count)
    assert refused.columns is block.columns


@given(specs(), st.integers(1, 5))
def test_a_block_of_absent_frames_has_no_data(spec: FrameSpec, count: int) -> None:
    absence = Absence(Fate.OVERRUN, "ring")
    block = Block.absent(spec, 7, count, absence)
    assert not block.present.any()
    assert [(f.index, f.data, f.absence) for f in block.frames()] == [
        (7 + n, None, absence) for n in range(count)
    ]
    assert np.isnan(block.frame(0).timestamp)
    with pytest.raises(ValueError, match=f"frames 7 to {6 + count} have no array of data"):
        _ = block.pixels


@given(spec_and_block)
def test_what_a_task_makes_of_a_block_is_the_same_frames(
    given_block: tuple[FrameSpec, Block],
) -> None:
    spec, block = given_block
    other = spec.replace(dtype=np.dtype("f8"))
    data = block.pixels.astype("f8")
    carried = block.carry(other, data)
    assert (carried.spec, carried.data) == (other, data)
    assert (carried.index, carried.count) == (block.index, block.count)
    assert (carried.absences, carried.columns) == (block.absences, block.columns)
    assert carried.origin == block.origin


@pytest.mark.parametrize(
    "thing",
    [
        FrameSpec.dense(1, 1, "u2"),
        Frame(0, None),
        Block.absent(FrameSpec.dense(1, 1, "u2"), 0, 1, Absence(Fate.OVERRUN, "ring")),
        Affine(),
    ],
)
def test_what_flows_never_changes(thing: Any) -> None:
    for field in dataclasses.fields(thing):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(thing, field.name, None)


@given(chains())
def test_a_chain_of_the_strategies_is_one_that_a_person_could_write(chain: Chain) -> None:
    assert json.loads(json.dumps([dict(step.parameters) for step in chain.steps])) == [
        dict(step.parameters) for step in chain.steps
    ]
    assert chain.apply(np.zeros(chain.detector)).shape == chain.image


def ragged(counts: list[int]) -> Ragged:
    total = sum(counts)
    columns = {"index": np.arange(total, dtype="u4"), "value": np.arange(total, dtype="f4") / 2}
    return Ragged.of(np.array(counts, np.int64), columns)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=8), st.data())
def test_some_of_sparse_frames_are_those_frames(counts: list[int], data: st.DataObject) -> None:
    whole = ragged(counts)
    first = data.draw(st.integers(0, len(counts)))
    end = data.draw(st.integers(first, len(counts)))
    part = whole[first:end]
    assert part.counts.tolist() == counts[first:end]
    for number in range(first, end):
        np.testing.assert_array_equal(part.rows(number - first), whole.rows(number))
    with pytest.raises(ValueError, match="only consecutive"):
        whole[::2]


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.sets(st.integers(0, 12)), st.data())
def test_a_block_that_is_cut_and_joined_is_the_same(
    sizes: list[int], gone: set[int], data: st.DataObject
) -> None:
    count = sum(sizes)
    missing = {n: Absence(Fate.OVERRUN, "ring", str(n)) for n in gone if n < count}
    columns = {"timestamp": np.arange(count) / 10}
    content: Array | Ragged | None
    if data.draw(st.booleans()):
        spec = FrameSpec("sparse", (1, 8, 8), ragged([1]).dtype)
        content = ragged([n % 3 for n in range(count)])
    else:
        spec = FrameSpec.dense(2, 3, "u2")
        content = np.arange(count * 6, dtype="u2").reshape(count, 1, 2, 3)
    whole = Block(spec, 5, count, None if len(missing) == count else content, missing, columns)
    ends = np.cumsum(sizes).tolist()
    parts = [whole.part(end - size, end) for size, end in zip(sizes, ends, strict=True)]
    starts = [0, *ends[:-1]]
    assert [part.index for part in parts] == [5 + start for start in starts]
    again = Block.join(parts)
    assert (again.index, again.count, again.absences) == (5, count, missing)
    for one, other in zip(whole.frames(), again.frames(), strict=True):
        assert (one.index, one.timestamp, one.absence) == (
            other.index,
            other.timestamp,
            other.absence,
        )
        np.testing.assert_array_equal(one.data, other.data)
