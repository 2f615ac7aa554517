"""The common acquisition loop: every frame once, in order, and an end that says why."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import PrivateAttr

from lima2py.acquisition import Acquisition, TriggerMode
from lima2py.detector import Capabilities, Detector, DetectorInfo, Share, Slot
from lima2py.errors import BadCommand, DetectorError
from lima2py.frame import Block, Fate, FrameSpec
from lima2py.memory import Heap
from lima2py.node import readout as module
from lima2py.node.readout import Readout
from lima2py.policies import Policies
from lima2py.ring import MAX_FRAMES_PER_BLOCK, Arena, Ring, RingShape


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
    ring = Ring(spec, RingShape(4, slots, 4096), Arena(Heap(), slots * 4096))
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
    ring = Ring(spec, RingShape(4, 3, 4096), Arena(Heap(), 3 * 4096))
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
    ring = Ring(spec, RingShape(5, 3, 4096), Arena(Heap(), 3 * 4096))
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


# A full ring


class Full:
    """A readout whose blocks are kept until the script says how many of them are given back."""

    def __init__(
        self,
        overload: Literal["wait", "drop", "stop"],
        nb_frames: int,
        releases: list[int],
        share: Share,
        *,
        group: int = 1,
        counts: tuple[int | None, ...] = (),
        detector: Scripted | None = None,
    ):
        detector = detector or Scripted(script=counts)
        acquisition = Acquisition(nb_frames=nb_frames, expo_time=1e-6)
        spec = detector.describe(acquisition)
        self.ring = Ring(spec, RingShape(4, 3, 4096), Arena(Heap(), 3 * 4096))
        self.share, self.group = share, group
        self.releases = releases
        self.held: list[tuple[int, Block]] = []
        self.blocks: list[Block] = []
        self.most = 0
        detector.prepare(acquisition, share)
        detector.start()
        self.readout = Readout(
            detector, acquisition, spec, self.ring, share, group,
            Policies(overload=overload), self.make_room,
        )  # fmt: skip

    def make_room(self) -> int:
        """Give back the oldest blocks, as many as the script says; then it stays as it is."""
        for _ in range(self.releases.pop(0) if self.releases else 0):
            if self.held:
                self.give_back()
        return sum(block.count for block in self.blocks)

    def give_back(self) -> None:
        slot, block = self.held.pop(0)
        assert block.data is not None
        for frame in block.frames():  # nobody has written over it meanwhile
            assert frame.data is None or (frame.data == frame.index % 256).all()
        self.ring.release(slot)

    def run(self) -> list[int]:
        try:
            for block in self.readout:
                if block is None:
                    while self.held:
                        self.give_back()
                    continue
                assert (self.readout.slot >= 0) == (block.data is not None)
                self.blocks.append(block)
                if block.data is not None:
                    self.held.append((self.readout.slot, block))
                    assert len({slot for slot, _ in self.held}) == len(self.held)
        finally:
            while self.held:
                self.give_back()
            assert self.ring.used == 0
            self.ring.close()
        return [index for block in self.blocks for index in range(block.index, block.end)]

    def lost(self) -> list[int]:
        return [
            block.index + at
            for block in self.blocks
            for at, said in block.absences.items()
            if said.cause is Fate.OVERRUN
        ]


@given(
    st.integers(1, 150), st.lists(st.integers(0, 3)), st.integers(1, 3), st.integers(1, 6),
    st.integers(1, 3), st.lists(st.integers(0, 5)), st.data(),
)  # fmt: skip
def test_frames_without_room_are_absent_and_all_others_are_there_in_order(
    nb_frames: int, releases: list[int], size: int, group: int, groups: int, counts: list[int],
    data: st.DataObject,
) -> None:  # fmt: skip
    share = Share(data.draw(st.integers(0, size - 1)), size, group * groups)
    full = Full("drop", nb_frames, releases, share, group=group, counts=tuple(counts))
    seen = full.run()
    ours = [index for index in range(nb_frames) if index // share.group % size == share.rank]
    assert seen == ours
    assert full.readout.ended is None
    assert full.readout.overrun.frames == len(full.lost())
    keys = defaultdict(set)
    for block in full.blocks:
        for at in range(block.index, block.end):
            assert at // share.group % size == share.rank
            keys[at // group].add(block.index // share.group)
    assert all(len(found) == 1 for found in keys.values()), "a node shall get a group whole"


def test_however_long_the_ring_is_full_few_blocks_wait() -> None:
    full = Full("drop", 5000, [*[0] * 600, 1], Share(group=4))
    assert full.run() == list(range(5000))
    assert len(full.blocks) < 5 + 5000 / MAX_FRAMES_PER_BLOCK * 2
    first_without = next(block for block in full.blocks if block.data is None)
    assert first_without.count == MAX_FRAMES_PER_BLOCK
    assert len(first_without.columns["tag"]) == first_without.count
    assert "ring (12 KiB, 3 slots of 4 frames) was full" in full.readout.overrun.complaint
    assert "frame 8 on" in full.readout.overrun.complaint  # the third slot is the one to read into


def test_a_frame_the_detector_lost_keeps_its_cause_when_there_is_no_room() -> None:
    class Gaps(Scripted):
        def fill(self, slot: Slot) -> int | None:
            slot.absent(0, Fate.DETECTOR_GAP, "me")
            return super().fill(slot)

    full = Full("drop", 40, [], Share(group=4), detector=Gaps())
    full.run()
    assert full.lost() == [index for index in range(8, 40) if index % 4]
    assert full.readout.overrun.frames == len(full.lost())


def test_frames_without_room_are_told_of_before_the_error_of_the_detector() -> None:
    class Breaks(Scripted):
        def fill(self, slot: Slot) -> int | None:
            if slot.index >= 20:
                raise DetectorError("smoke")
            return super().fill(slot)

    full = Full("drop", 40, [], Share(group=4), detector=Breaks())
    with pytest.raises(DetectorError, match="smoke"):
        full.run()
    assert full.lost() == list(range(8, 20))


@pytest.mark.parametrize("nb_frames", [40, 0])
def test_a_run_that_shall_stop_when_the_ring_is_full_says_so(nb_frames: int) -> None:
    full = Full("stop", nb_frames, [0, 1], Share(group=4))
    assert full.run() == list(range(12))
    assert full.lost() == list(range(8, 12))
    assert full.readout.ended == (Fate.NOT_ACQUIRED, "the ring was full")


def test_who_waits_for_room_loses_nothing() -> None:
    full = Full("wait", 100, [], Share(group=4))
    assert full.run() == list(range(100))
    assert full.lost() == []


# A silent detector


class Silent(Scripted):
    """Has its first frame, is silent until somebody lets it, and goes on."""

    _speak: threading.Event = PrivateAttr(default_factory=threading.Event)

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(columns={"tag": "u4"}, pauses=True)

    def pause(self) -> None:
        self._speak.clear()

    def resume(self) -> None:
        self._speak.set()

    def fill(self, slot: Slot) -> int | None:
        if slot.index and not self._speak.wait(0.001):
            return None if self.stopping else 0
        return super().fill(slot)


def silent(policies: dict[str, Any]) -> tuple[Silent, Readout]:
    detector = Silent(script=(1, 4))
    acquisition = Acquisition(nb_frames=5, expo_time=1e-6)
    spec = detector.describe(acquisition)
    ring = Ring(spec, RingShape(4, 8, 4096), Arena(Heap(), 8 * 4096))
    detector.prepare(acquisition, Share())
    detector.start()
    share = Share(group=4)
    return detector, Readout(detector, acquisition, spec, ring, share, 1, Policies(**policies))


def until_nothing_comes(readout: Readout, when: Callable[[], bool]) -> list[int]:
    """Read until a condition holds while nothing comes, and let the detector speak then."""
    seen: list[int] = []
    for block in readout:
        if block is not None:
            seen += range(block.index, block.end)
        elif when():
            readout._detector.resume()
    return seen


def test_a_silent_detector_is_waited_for_if_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENCE", 0.02)
    _, readout = silent({"detector_loss": "wait"})
    assert readout.silent_for == 0
    assert until_nothing_comes(readout, lambda: readout.silent_for > 0.03) == [0, 1, 2, 3, 4]
    assert readout.silent_for == 0
    assert readout.ended is None
    (remark,) = readout.remarks
    assert "detector scripted was silent for" in remark
    assert "before frame 1" in remark


def test_a_detector_that_is_waited_for_can_be_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENCE", 0.0)
    _, readout = silent({"detector_loss": "wait"})
    seen = 0
    for block in readout:
        seen += block is not None
        if readout.silent_for:
            readout.stop(100)
    assert seen == 1
    assert readout.ended == (Fate.NOT_ACQUIRED, "stopped")


def test_the_silence_of_a_detector_that_is_paused_means_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "SILENCE", 0.01)
    _, readout = silent({})
    readout.pause()
    looks = iter(range(100))
    seen = []
    for block in readout:
        seen += list(range(block.index, block.end)) if block else []
        assert readout.silent_for == 0 or not readout.paused
        if next(looks) == 50:  # each takes a millisecond
            readout.resume()
    assert seen == [0, 1, 2, 3, 4]
    assert readout.ended is None


@pytest.mark.parametrize(
    ("mode", "why"),
    [
        (TriggerMode.INTERNAL, "own clock cannot be held; with trigger_mode software"),
        (TriggerMode.EXTERNAL, "come with an external signal; hold that back"),
    ],
)
def test_a_detector_that_cannot_be_held_says_what_to_do(mode: TriggerMode, why: str) -> None:
    detector = Scripted()
    acquisition = Acquisition(nb_frames=5, trigger_mode=mode)
    spec = detector.describe(acquisition)
    ring = Ring(spec, RingShape(4, 8, 4096), Arena(Heap(), 8 * 4096))
    readout = Readout(detector, acquisition, spec, ring, Share())
    with pytest.raises(BadCommand, match=f"detector scripted cannot pause: .*{why}"):
        readout.pause()
    assert not readout.paused


# A plugin that does what it must not


class Deaf(Scripted):
    """Knows no stop."""

    def stop(self) -> None:
        return


class Breaks(Scripted):
    """Fails when it is stopped."""

    def stop(self) -> None:
        raise OSError("no answer from the detector")


def test_a_detector_that_goes_on_after_a_stop_is_read_no_more_in_the_end() -> None:
    full = Full("wait", 0, [], Share(group=4), detector=Deaf())
    for block in full.readout:
        if block is None:
            full.ring.release(full.readout.slot)
        if full.readout.index == 8:
            full.readout.stop(0)
    assert full.readout.index == 8
    assert full.readout.ended == (Fate.NOT_ACQUIRED, "stopped")


def test_a_detector_that_cannot_be_stopped_is_read_no_more() -> None:
    full = Full("wait", 0, [], Share(group=4), detector=Breaks())
    for block in full.readout:
        if block is not None:
            full.ring.release(full.readout.slot)
        if full.readout.index == 8:
            with pytest.raises(OSError, match="no answer"):
                full.readout.stop(100)
    assert full.readout.index == 8
    assert full.readout.finish() == [
        "detector scripted could not be stopped: OSError: no answer from the detector"
    ]


def _does(what: Callable[[Slot], Any]) -> type[Scripted]:
    class Faulty(Scripted):
        def fill(self, slot: Slot) -> int | None:
            super().fill(slot)
            said = what(slot)
            return 2 if said is None else said

    return Faulty


def _replace_data(slot: Slot) -> None:
    slot.data = np.zeros_like(slot.data)  # type: ignore[misc]


def _add_a_column(slot: Slot) -> None:
    slot.columns["more"] = np.zeros(slot.room)  # type: ignore[index]


def _replace_a_column(slot: Slot) -> None:
    slot.columns["tag"] = np.zeros(1)  # type: ignore[index]


def _wrong_shape(slot: Slot) -> None:
    slot.data[0] = np.zeros((7, 7))


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (lambda _slot: -1, "put -1 frames"),
        (lambda slot: slot.room + 1, "put 5 frames into a slot for 4"),
        (lambda _slot: 1.5, "put 1.5 frames"),
        (lambda _slot: "2", "put '2' frames"),
        (lambda slot: slot.absent(3, Fate.CORRUPT, "me"), r"put 2 frames, absent among them \[3\]"),
        (lambda slot: slot.absent(4, Fate.CORRUPT, "me"), "offset 4 in a slot for 4"),
        (lambda slot: slot.absent(-1, Fate.CORRUPT, "me"), "offset -1"),
        (lambda slot: slot.absent(0, Fate.SAVED, "me"), "it may say .* detector_gap"),
        (lambda slot: slot.absent(0, Fate.NO_RECORD, "me"), "it may say"),
        (lambda slot: slot.absent(0, 77, "me"), "it may say"),
        (_replace_data, "cannot assign to field 'data'"),
        (_add_a_column, "does not support item assignment"),
        (_replace_a_column, "does not support item assignment"),
        (_wrong_shape, "could not broadcast"),
    ],
)
def test_a_plugin_that_breaks_its_contract_is_told(what: Callable[[Slot], Any], said: str) -> None:
    with pytest.raises((DetectorError, AttributeError, TypeError, ValueError), match=said):
        Full("wait", 10, [], Share(group=4), detector=_does(what)()).run()


def test_whatever_words_a_plugin_uses_can_be_sent() -> None:
    full = Full(
        "wait", 2, [], Share(group=4),
        detector=_does(lambda slot: slot.absent(0, 10, 5, None))(),  # type: ignore[arg-type]
    )  # fmt: skip
    full.run()
    assert full.blocks[0].absences[0] == (Fate.DETECTOR_GAP, "5", "None")


def test_when_slots_are_scarce_each_is_filled_before_it_is_given() -> None:
    class OneByOne(Scripted):
        def fill(self, slot: Slot) -> int | None:
            if slot.index % 5 == 2:
                slot.absent(0, Fate.DETECTOR_GAP, "me")
            return super().fill(slot)

    full = Full("drop", 40, [], Share(group=4), detector=OneByOne(script=(1,) * 40))
    assert full.run() == list(range(40))
    # Two of three slots in use are scarce: the first block goes at once, the next one is gathered.
    assert [block.count for block in full.blocks[:2]] == [1, 3]
    gaps = {
        block.index + at
        for block in full.blocks
        for at, said in block.absences.items()
        if said.cause is Fate.DETECTOR_GAP
    }
    assert gaps == set(range(2, 40, 5))


def test_what_was_gathered_is_given_when_the_detector_fails_or_has_nothing() -> None:
    class Fails(Scripted):
        def fill(self, slot: Slot) -> int | None:
            if slot.index == 7:
                raise DetectorError("smoke")
            return super().fill(slot)

    full = Full("drop", 40, [], Share(group=4), detector=Fails(script=(4, 1, 1, 1)))
    with pytest.raises(DetectorError, match="smoke"):
        full.run()
    assert [(block.index, block.count) for block in full.blocks] == [(0, 4), (4, 3)]
    full = Full("drop", 8, [], Share(group=4), counts=(4, 1, 0, 1, None))
    full.run()
    assert [(block.index, block.count) for block in full.blocks] == [(0, 4), (4, 1), (5, 1)]
