"""The common acquisition loop: every frame once, in order, and an end that says why."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import PrivateAttr

from lima2py.acquisition import Acquisition, TriggerMode
from lima2py.detector import Capabilities, Detector, DetectorInfo, Share, Slot
from lima2py.errors import DetectorError
from lima2py.frame import Fate, FrameSpec
from lima2py.memory import Heap, Ring, RingShape
from lima2py.node import readout as module
from lima2py.node.readout import Readout


class Scripted(Detector):
    """Gives what a script says: counts, None for the end, or an error."""

    script: tuple[int | None, ...] = ()
    asked: int = 10

    _left: list[int | None] = PrivateAttr(default_factory=list)

    @property
    def info(self) -> DetectorInfo:
        return DetectorInfo(name="scripted", model="test", shape=(2, 3), dtype="uint8")

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(columns={"tag": "u4"})

    def start(self) -> None:
        self._left = list(self.script)

    def fill(self, slot: Slot) -> int | None:
        count = self._left.pop(0) if self._left else slot.room
        if count is None:
            return None
        for offset in range(min(count, slot.room)):
            slot.data[offset] = (slot.index + offset) % 256
            slot.columns["tag"][offset] = slot.index + offset
        return count if count > 100 else min(count, slot.room)


def read(
    detector: Scripted, nb_frames: int, share: Share, group: int = 1, slots: int = 8
) -> tuple[list[int], Readout]:
    """The indices that came, every slot given back a little later."""
    acquisition = Acquisition(nb_frames=nb_frames, expo_time=1e-6)
    spec = detector.describe(acquisition)
    ring = Ring(spec, RingShape(4, slots, 4096), Heap())
    detector.prepare(acquisition, share)
    detector.start()
    source = Readout(detector, acquisition, spec, ring, share, group)
    seen: list[int] = []
    held: list[int] = []
    try:
        for block in source:
            if block is None:
                while held:
                    ring.release(held.pop())
                continue
            assert block.data is not None
            for frame in block.frames():
                assert frame.data is not None
                assert (frame.data == frame.index % 256).all()
            assert block.columns["tag"].tolist() == list(range(block.index, block.end))
            assert block.index // share.group == (block.end - 1) // share.group
            if within := block.index % group:
                assert block.count <= group - within
            seen += range(block.index, block.end)
            held.append(source.slot)
        assert ring.used == len(held)
    finally:
        ring.close()
    return seen, source


@given(
    st.integers(1, 60), st.integers(1, 3), st.integers(1, 7), st.lists(st.integers(0, 5)), st.data()
)
def test_every_frame_of_our_share_comes_once_in_order(
    nb_frames: int, size: int, group: int, counts: list[int], data: st.DataObject
) -> None:
    rank = data.draw(st.integers(0, size - 1))
    seen, source = read(Scripted(script=tuple(counts)), nb_frames, Share(rank, size, group))
    assert seen == [index for index in range(nb_frames) if index // group % size == rank]
    assert source.ended is None


@given(st.integers(1, 60), st.integers(2, 5), st.lists(st.integers(0, 9)))
def test_a_block_that_begins_within_a_group_ends_with_it(
    nb_frames: int, group: int, counts: list[int]
) -> None:
    share = Share(group=3 * group)
    seen, _ = read(Scripted(script=tuple(counts)), nb_frames, share, group)
    assert seen == list(range(nb_frames))


def test_a_detector_that_has_no_more_says_so() -> None:
    seen, source = read(Scripted(script=(2, 1, None)), 10, Share(group=4))
    assert seen == [0, 1, 2]
    assert source.ended == (Fate.NOT_ACQUIRED, "the detector had no more frames")


def test_a_plugin_that_puts_too_many_frames_is_told() -> None:
    with pytest.raises(
        DetectorError, match=r"put 1000 frames into a slot for 4.*fault of the plug"
    ):
        read(Scripted(script=(1000,)), 10, Share(group=4))


def test_a_silent_detector_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENCE", 0.0)
    _, source = read(Scripted(script=(3, *[0] * 100_000)), 10, Share(group=4))
    assert source.ended is not None
    fate, why = source.ended
    assert fate is Fate.DETECTOR_TIMEOUT
    assert "no frame for" in why


def test_a_detector_that_waits_for_triggers_may_be_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENCE", 0.0)
    detector = Scripted(script=(0,) * 1000)
    acquisition = Acquisition(nb_frames=3, expo_time=1e-6, trigger_mode=TriggerMode.EXTERNAL)
    spec = detector.describe(acquisition)
    ring = Ring(spec, RingShape(4, 3, 4096), Heap())
    detector.prepare(acquisition, Share())
    detector.start()
    found = [block for block in Readout(detector, acquisition, spec, ring, Share(group=4)) if block]
    assert [block.count for block in found] == [3]


class Compressed(Detector):
    """Gives payloads of these sizes, as many frames."""

    sizes: tuple[int, ...]
    encoding: str = "bslz4"

    @property
    def info(self) -> DetectorInfo:
        return DetectorInfo(name="eiger", model="test", shape=(2, 3), dtype="uint8")

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities()

    def describe(self, acquisition: Acquisition) -> FrameSpec:
        return FrameSpec.encoded(super().describe(acquisition), self.encoding, 8)

    def start(self) -> None:
        return

    def fill(self, slot: Slot) -> int | None:
        for offset, size in enumerate(self.sizes):
            slot.put(offset, bytes([offset + 1]) * size)
        return len(self.sizes)


@pytest.mark.parametrize(("encoding", "wrong"), [("bslz4", {1, 2}), ("none", {0, 1, 2, 4})])
def test_compressed_frames_of_an_impossible_size_are_corrupt(
    encoding: str, wrong: set[int]
) -> None:
    detector = Compressed(sizes=(1, 0, 9, 6, 8), encoding=encoding)
    acquisition = Acquisition(nb_frames=5, expo_time=1e-6)
    spec = detector.describe(acquisition)
    ring = Ring(spec, RingShape(5, 3, 4096), Heap())
    detector.prepare(acquisition, Share())
    (block,) = [
        block for block in Readout(detector, acquisition, spec, ring, Share(group=5)) if block
    ]
    assert {at: said.cause for at, said in block.absences.items()} == dict.fromkeys(
        wrong, Fate.CORRUPT
    )
    assert {said.who for said in block.absences.values()} == {"eiger"}
    assert bytes(block.payload(3)) == b"\4" * 6
    ring.close()
