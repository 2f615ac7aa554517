"""The conformance suite finds the faults it is there to find."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from lima2py_detectors.simulator import Simulator
from pydantic import ConfigDict

from lima2py.acquisition import Acquisition, TriggerMode
from lima2py.detector import Capabilities, DetectorInfo, ModulePlace, Share, Slot
from lima2py.errors import DetectorError
from lima2py.frame import Fate
from lima2py.testing.detectors import DetectorTests


class Suite(DetectorTests):
    __test__ = False
    signals = frozenset({TriggerMode.EXTERNAL})
    patience = 0.3


class TellsTooMany(Simulator):
    def fill(self, slot: Slot) -> int | None:
        count = super().fill(slot)
        return count and slot.room + 1


class WritesBeyond(Simulator):
    def fill(self, slot: Slot) -> int | None:
        slot.data.base[...] = 0  # type: ignore[index]
        return super().fill(slot)


class EndsEarly(Simulator):
    def fill(self, slot: Slot) -> int | None:
        if slot.index >= 5:
            return None
        return min(super().fill(slot) or 0, 5 - slot.index)  # however late it is


class NeverDelivers(Simulator):
    def fill(self, slot: Slot) -> int | None:
        self.wait(np.inf)
        return 0


class DependsOnTheRoom(Simulator):
    def fill(self, slot: Slot) -> int | None:
        count = super().fill(slot)
        slot.data[:count] += slot.room
        return count


class KnowsNoStop(Simulator):
    def stop(self) -> None:
        return


class RemembersItsStop(Simulator):
    def prepare(self, acquisition: Acquisition, share: Share) -> Acquisition:
        stopped = self.stopping
        super().prepare(acquisition, share)
        if stopped:
            self._stopping.set()
        return acquisition


class StartsAThread(Simulator):
    def start(self) -> None:
        super().start()
        threading.Thread(target=self._stopping.wait, args=(5,)).start()


class GivesACauseOfOthers(Simulator):
    def fill(self, slot: Slot) -> int | None:
        count = super().fill(slot)
        if count:
            slot.absent(0, Fate.TASK_FAILED, "me")
        return count


class HasNoRegion(Simulator):
    def fill(self, slot: Slot) -> int | None:
        count = super().fill(slot)
        slot.data[:count] = slot.data[:count, :, ::-1].copy()
        return count


class MixesModulesUp(Simulator):
    def prepare(self, acquisition: Acquisition, share: Share) -> Acquisition:
        ours = tuple(sorted(share.modules))
        return super().prepare(acquisition, share._replace(modules=ours))


class TakesAnyTrigger(Simulator):
    def trigger(self) -> None:
        return


class NeedsNoTrigger(Simulator):
    def start(self) -> None:
        super().start()
        super().trigger()


class KnowsNoPause(Simulator):
    def pause(self) -> None:
        return


class KnowsNoResume(Simulator):
    def resume(self) -> None:
        return


class BeginsAgainAfterAPause(Simulator):
    _pauses: int = 0

    def pause(self) -> None:
        super().pause()
        self._pauses += 1

    def fill(self, slot: Slot) -> int | None:
        count = super().fill(slot)
        slot.data[: count or 0] += self._pauses
        return count


class SleepsThroughAStop(Simulator):
    def pause(self) -> None:
        self._stopping = threading.Event()  # that of the base class is not set any more
        self._stopping.set = lambda: None  # type: ignore[method-assign]
        super().pause()


class Overlaps(Simulator):
    @property
    def info(self) -> DetectorInfo:
        place = ModulePlace(name="a", at=(0, 0), size=(20, 20))
        other = ModulePlace(name="b", at=(10, 10), size=(20, 20))
        return super().info.model_copy(update={"modules": (place, other)})


class AllowsEverything(Simulator):
    @property
    def capabilities(self) -> Capabilities:
        return AllowsAll(**super().capabilities._asdict())


class AllowsAll(Capabilities):
    def check(self, acquisition: Acquisition, info: DetectorInfo) -> None:
        return


class IgnoresUnknownFields(Simulator):
    model_config = ConfigDict(extra="ignore")


class ForgetsWhatWasAsked(Simulator):
    def describe(self, acquisition: Acquisition) -> Any:
        self._acquisition = acquisition
        return super().describe(acquisition)


@pytest.mark.parametrize(
    ("plugin", "test"),
    [
        (TellsTooMany, "test_every_frame_comes_once_in_order_or_has_a_cause"),
        (WritesBeyond, "test_every_frame_comes_once_in_order_or_has_a_cause"),
        (EndsEarly, "test_every_frame_comes_once_in_order_or_has_a_cause"),
        (EndsEarly, "test_two_nodes_together_deliver_what_one_does"),
        (NeverDelivers, "test_every_frame_comes_once_in_order_or_has_a_cause"),
        (GivesACauseOfOthers, "test_every_frame_comes_once_in_order_or_has_a_cause"),
        (KnowsNoStop, "test_start_returns_at_once_and_stop_ends_fill_from_another_thread"),
        (KnowsNoStop, "test_no_frame_comes_after_a_stop"),
        (RemembersItsStop, "test_after_a_stop_it_can_begin_afresh"),
        (StartsAThread, "test_it_starts_no_thread"),
        (HasNoRegion, "test_a_region_is_cut_from_the_whole"),
        (MixesModulesUp, "test_modules_are_those_of_the_whole"),
        (TakesAnyTrigger, "test_a_trigger_out_of_place_is_refused"),
        (TakesAnyTrigger, "test_a_software_trigger_releases_its_frames_and_no_more"),
        (NeedsNoTrigger, "test_a_software_trigger_releases_its_frames_and_no_more"),
        (KnowsNoPause, "test_a_pause_holds_frames_back_and_loses_none"),
        (KnowsNoResume, "test_a_pause_holds_frames_back_and_loses_none"),
        (BeginsAgainAfterAPause, "test_a_pause_holds_frames_back_and_loses_none"),
        (SleepsThroughAStop, "test_a_stop_ends_a_pause"),
        (Overlaps, "test_info_is_consistent"),
        (AllowsEverything, "test_what_it_cannot_do_is_refused"),
        (IgnoresUnknownFields, "test_unknown_parameters_are_refused"),
        (ForgetsWhatWasAsked, "test_asking_changes_nothing"),
    ],
    ids=lambda it: it if isinstance(it, str) else it.__name__,
)
def test_a_faulty_plugin_does_not_pass(plugin: type[Simulator], test: str) -> None:
    detector = plugin(shape=(30, 40), pattern="verifiable", modules=(3, 1))
    try:
        with pytest.raises((AssertionError, DetectorError, pytest.fail.Exception)):
            getattr(Suite(), test)(detector)
    finally:
        detector._stopping.set()


def test_a_plugin_whose_frames_depend_on_the_room_does_not_pass() -> None:
    detector = DependsOnTheRoom(shape=(30, 40))
    with pytest.raises(AssertionError):
        Suite().test_the_room_of_the_slots_does_not_matter(detector, (3, 1, 2))
