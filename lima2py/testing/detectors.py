"""What every detector plugin must pass, to be subclassed by whoever writes one.

    from lima2py.testing.detectors import DetectorTests

    class TestMyDetector(DetectorTests):
        @pytest.fixture
        def detector(self):
            return MyDetector(address="...")

The attributes of `DetectorTests` adapt the tests to the detector. What a detector does not claim to
do is skipped, with the reason. Nothing here measures time: a detector that hangs is noticed when
nothing came for `patience` seconds.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations, cycle
from typing import cast

import numpy as np
import pytest

from lima2py.acquisition import Acquisition, TriggerMode
from lima2py.codec import Encoding, decode
from lima2py.detector import CAUSES, Detector, Share, Slot
from lima2py.errors import BadCommand, BadParameter
from lima2py.frame import SIZES, Absence, Array, Frame, FrameSpec
from lima2py.geometry import Roi
from lima2py.source import PATIENCE

ALONE = Share()
"""The share of the only acquisition node: all frames."""


def read_all(
    detector: Detector,
    acquisition: Acquisition,
    share: Share = ALONE,
    rooms: Sequence[int] = (16,),
    patience: float = 60.0,
) -> list[Frame]:
    """Run a detector to its last frame, as an acquisition node does, and give its frames.

    Software triggers are given when they are due.

    Args:
        detector: the plugin.
        acquisition: what to ask of it; with `nb_frames` 0 it must end by itself.
        share: which frames to ask for.
        rooms: room of the slots, in turn.
        patience: seconds without a frame after which this fails.

    Returns:
        The frames in the order they came, each with data of its own.
    """
    prepared, spec = prepare_and_start(detector, acquisition, share)
    per_trigger = acquisition.nb_frames_per_trigger
    frames: list[Frame] = []
    index, triggered, heard = share.first(0), 0, time.monotonic()
    for room in cycle(rooms):
        if index >= prepared.last:
            break
        if acquisition.trigger_mode is TriggerMode.SOFTWARE and index >= triggered:
            detector.trigger()
            triggered += per_trigger
        ours = room if share.size == 1 else min(room, share.room(index))
        got = fill_once(detector, spec, index, int(min(ours, prepared.last - index)))
        if got is None:
            break
        if got:
            frames += got
            index, heard = share.first(index + len(got)), time.monotonic()
        assert time.monotonic() - heard < patience, f"nothing came for {patience:g} s"
    return frames


def prepare_and_start(
    detector: Detector, acquisition: Acquisition, share: Share = ALONE
) -> tuple[Acquisition, FrameSpec]:
    """Check, prepare and start; give what the hardware will do, and what its frames look like."""
    detector.capabilities.check(acquisition, detector.info)
    prepared = detector.prepare(acquisition, share)
    if share.modules:
        spec = detector.describe_modules(prepared, share.modules)
    else:
        spec = detector.describe(prepared)
    detector.start()
    return prepared, spec


def fill_once(detector: Detector, spec: FrameSpec, index: int, room: int) -> list[Frame] | None:
    """Ask for the next frames once, and check that the slot was treated well.

    Returns:
        The frames that came, maybe none; None when no more will come.
    """
    guard = b"\xa5" * spec.nbytes
    data = np.empty((room + 1, *spec.shape), spec.dtype)
    data[room] = np.frombuffer(guard, spec.dtype).reshape(spec.shape)
    columns = {name: np.zeros(room, dtype) for name, dtype in detector.capabilities.columns.items()}
    columns |= {SIZES: np.zeros(room, np.uint64)} if spec.decoded else {}
    slot = Slot(index, data[:room], np.full(room, np.nan), columns)
    count = detector.fill(slot)
    assert data[room].tobytes() == guard, "the plugin wrote beyond its slot"
    if count is None:
        return None
    assert 0 <= count <= room, f"{count} frames were put into a slot for {room}"
    assert all(0 <= offset < count for offset in slot.absences), (
        f"absent are {sorted(slot.absences)} of {count} frames"
    )
    assert {name: len(values) for name, values in slot.columns.items()} == dict.fromkeys(
        columns, room
    ), "columns have other names or lengths than they had"
    frames = []
    for at in range(count):
        absence = slot.absences.get(at)
        picture = None if absence else _picture(spec, data[at], columns, at)
        frames.append(Frame(index + at, picture, absence, float(slot.timestamps[at])))
    return frames


def images_of(spec: FrameSpec) -> FrameSpec:
    """What the images look like, also if frames come compressed."""
    return spec if spec.decoded is None else spec.decoded.image


def _picture(spec: FrameSpec, data: Array, columns: Mapping[str, Array], at: int) -> Array:
    """A copy of the image in one place of a slot, without the dimension of a single band."""
    image = images_of(spec)
    picture = np.empty(image.shape, image.dtype)
    if spec.decoded is None:
        picture[:] = data
    else:
        decode(cast("Encoding", spec.decoded.encoding), data[: int(columns[SIZES][at])], picture)
    return picture.reshape(image.saved_shape)


def assert_same(frames: Iterable[Frame], others: Iterable[Frame]) -> None:
    """Fail unless two lists have the same frames: indices, pixels and absences."""
    for frame, other in zip(frames, others, strict=True):
        assert (frame.index, frame.absence) == (other.index, other.absence)
        np.testing.assert_array_equal(frame.data, other.data, f"frame {frame.index}", strict=True)


class DetectorTests:
    """The conformance suite of detector plugins.

    Attributes:
        nb_frames: how many frames to take in most tests; at least 8.
        expo_time: exposure in most tests, in seconds; brought into the detector's range.
        repeatable: whether two acquisitions give the same pixels, as simulators and files do.
        signals: trigger modes for which a signal arrives at the detector during the tests.
        patience: seconds without a frame after which a test fails.
    """

    nb_frames: int = 11
    expo_time: float = 1e-3
    repeatable: bool = True
    signals: frozenset[TriggerMode] = frozenset()
    patience: float = 60.0

    @pytest.fixture
    def detector(self) -> Detector:
        """The detector to be tested: a fresh one for every test."""
        raise NotImplementedError("give a fixture `detector`")

    @pytest.fixture(autouse=True)
    def _nothing_is_left(self, detector: Detector) -> Iterator[None]:
        before = set(threading.enumerate())
        yield
        detector.stop()
        detector.close()
        assert set(threading.enumerate()) <= before, "the plugin left a thread behind"

    def acquisition(self, detector: Detector, **changes: object) -> Acquisition:
        """What most tests ask for, with some changes."""
        capabilities = detector.capabilities
        low, high = capabilities.expo_range
        values: dict[str, object] = {
            "nb_frames": self.nb_frames,
            "expo_time": min(max(low, self.expo_time), high),
            "latency_time": capabilities.latency_range[0],
            "trigger_mode": self._mode(detector),
        }
        return Acquisition.model_validate(values | changes)

    def read(
        self,
        detector: Detector,
        acquisition: Acquisition,
        share: Share = ALONE,
        rooms: Sequence[int] = (16,),
    ) -> list[Frame]:
        """`read_all` with the patience of this suite."""
        return read_all(detector, acquisition, share, rooms, self.patience)

    def _mode(self, detector: Detector) -> TriggerMode:
        usable = {TriggerMode.INTERNAL, TriggerMode.SOFTWARE} | self.signals
        for mode in TriggerMode:
            if mode in detector.capabilities.triggers & usable:
                return mode
        pytest.skip("it needs a trigger signal, and `signals` names none")

    # What it says of itself

    def test_info_is_consistent(self, detector: Detector) -> None:
        """Sizes are positive, the dtype is a native number, modules lie inside and apart."""
        info = detector.info
        height, width = info.shape
        dtype = np.dtype(info.dtype)
        assert info.name
        assert info.model
        assert height > 0
        assert width > 0
        assert dtype.kind in "uif"
        assert dtype.isnative
        assert info.pixel_size is None or min(info.pixel_size) > 0
        boxes = [Roi(*place.at, place.size[1], place.size[0]) for place in info.modules]
        assert all(box.inside(Roi(0, 0, width, height)) for box in boxes)
        assert len({place.name for place in info.modules}) == len(boxes)
        for one, other in combinations(boxes, 2):
            apart_x = one.x + one.width <= other.x or other.x + other.width <= one.x
            apart_y = one.y + one.height <= other.y or other.y + other.height <= one.y
            assert apart_x or apart_y, f"{one} and {other} overlap"

    def test_capabilities_are_consistent(self, detector: Detector) -> None:
        """It can do something, unbinned, and its ranges are ranges."""
        capabilities = detector.capabilities
        assert capabilities.triggers
        assert (1, 1) in capabilities.binnings
        assert 0 < capabilities.expo_range[0] <= capabilities.expo_range[1]
        assert 0 <= capabilities.latency_range[0] <= capabilities.latency_range[1]
        assert capabilities.max_frames is None or capabilities.max_frames > 0
        for name, dtype in capabilities.columns.items():
            assert name != "timestamp"
            assert np.dtype(dtype).kind in "uifb"
        capabilities.check(self.acquisition(detector), detector.info)

    def test_everything_about_it_can_be_saved_as_json(self, detector: Detector) -> None:
        """`describe_all` holds plain values only."""
        assert json.loads(json.dumps(detector.describe_all()))["info"]["name"] == detector.info.name

    def test_temperatures_are_numbers(self, detector: Detector) -> None:
        """Degrees Celsius by name."""
        for name, value in detector.temperatures().items():
            assert name
            assert isinstance(value, float)

    def test_unknown_parameters_are_refused(self, detector: Detector) -> None:
        """A misspelt parameter is never ignored, and the complaint names it."""
        values = {**detector.plain(), "no_such_parameter": 1}
        with pytest.raises(BadParameter, match="no_such_parameter"):
            type(detector).load(values, "test")

    def test_its_parameters_can_be_written_down_and_read_again(self, detector: Detector) -> None:
        """The parameters saved with the data make the same detector."""
        again = type(detector).load(detector.plain(), "test")
        try:
            assert again.plain() == detector.plain()
        finally:
            again.close()

    # What it makes of an acquisition

    def test_frames_are_described_before_they_are_taken(self, detector: Detector) -> None:
        """`describe` follows from what `info` says, for every binning and for a region."""
        info = detector.info
        height, width = info.shape
        whole = images_of(detector.describe(self.acquisition(detector)))
        assert (whole.shape, whole.dtype) == ((info.bands, height, width), np.dtype(info.dtype))
        for x, y in detector.capabilities.binnings:
            if width % x == 0 and height % y == 0:
                spec = images_of(detector.describe(self.acquisition(detector, binning=(x, y))))
                assert spec.image == (height // y, width // x)
        if detector.capabilities.roi and height > 1 and width > 1:
            region = self.acquisition(detector, roi=(1, 1, width - 1, 1))
            spec = images_of(detector.describe(region))
            assert spec.image == (1, width - 1)
            assert spec.to_detector is not None
            assert spec.to_detector(0, 0) == (1, 1)

    def test_what_it_cannot_do_is_refused(self, detector: Detector) -> None:
        """`Capabilities.check` says no to everything outside, and names it."""
        info, capabilities = detector.info, detector.capabilities
        height, width = info.shape
        low, high = capabilities.expo_range
        bad: list[tuple[str, object]] = [
            ("expo_time", low / 2),
            ("expo_time", high * 2 + 1),
            ("latency_time", capabilities.latency_range[1] * 2 + 1),
            ("binning", (10_007, 10_007)),
            ("roi", (0, 0, width + 1, height) if capabilities.roi else (0, 0, width, height)),
        ]
        bad += [("trigger_mode", mode) for mode in set(TriggerMode) - capabilities.triggers]
        if capabilities.max_frames is not None:
            bad.append(("nb_frames", capabilities.max_frames + 1))
        for name, value in bad:
            with pytest.raises(BadParameter, match=name):
                capabilities.check(self.acquisition(detector, **{name: value}), info)

    def test_prepare_says_what_it_will_do(self, detector: Detector) -> None:
        """It gives an acquisition that is within its own ranges."""
        asked = self.acquisition(detector)
        prepared = detector.prepare(asked, ALONE)
        assert isinstance(prepared, Acquisition)
        assert prepared.nb_frames == asked.nb_frames
        detector.capabilities.check(prepared, detector.info)

    def test_asking_changes_nothing(self, detector: Detector) -> None:
        """Questions, before and during an acquisition, have no effect on it."""
        acquisition = self.acquisition(detector)
        other = self.acquisition(
            detector, nb_frames=1, expo_time=detector.capabilities.expo_range[1]
        )
        known = detector.info, detector.capabilities, detector.describe(acquisition)
        prepared, spec = prepare_and_start(detector, acquisition)
        detector.describe_all()
        detector.temperatures()
        assert (detector.info, detector.capabilities, detector.describe(prepared)) == known
        detector.describe(other)
        if acquisition.trigger_mode is not TriggerMode.SOFTWARE:
            assert len(self._rest(detector, spec, 0, self.nb_frames)) == self.nb_frames

    # Frames

    def test_every_frame_comes_once_in_order_or_has_a_cause(self, detector: Detector) -> None:
        """As many frames as asked for, of the shape described; what is absent says why."""
        acquisition = self.acquisition(detector)
        spec = images_of(detector.describe(acquisition))
        frames = self.read(detector, acquisition)
        assert [frame.index for frame in frames] == list(range(self.nb_frames))
        for frame in frames:
            assert np.isnan(frame.timestamp) or frame.timestamp > 0
            if frame.absence is None:
                assert frame.data is not None
                assert (frame.data.shape, frame.data.dtype) == (spec.saved_shape, spec.dtype)
            else:
                assert isinstance(frame.absence, Absence)
                assert frame.absence.cause in CAUSES
                assert frame.absence.who

    @pytest.mark.parametrize("rooms", [(1,), (1024,), (3, 1, 2)], ids=str)
    def test_the_room_of_the_slots_does_not_matter(
        self, detector: Detector, rooms: tuple[int, ...]
    ) -> None:
        """One frame at a time or as many as there are: the frames are the same."""
        frames = self.read(detector, self.acquisition(detector), rooms=rooms)
        assert len(frames) == self.nb_frames
        if not self.repeatable:
            pytest.skip("its frames differ from run to run")
        assert_same(frames, self.read(detector, self.acquisition(detector)))

    def test_two_nodes_together_deliver_what_one_does(self, detector: Detector) -> None:
        """Each share has its own frames only, and nothing is missing between them."""
        shares = [Share(rank, 2, group=3) for rank in range(2)]
        halves = [self.read(detector, self.acquisition(detector), share) for share in shares]
        frames = sorted((frame for half in halves for frame in half), key=lambda it: it.index)
        assert [frame.index for frame in frames] == list(range(self.nb_frames))
        if not self.repeatable:
            pytest.skip("its frames differ from run to run")
        assert_same(frames, self.read(detector, self.acquisition(detector)))

    def test_modules_are_those_of_the_whole(self, detector: Detector) -> None:
        """Asked for some modules, it gives what whole frames show there, one under the other."""
        if not detector.capabilities.modules or not detector.info.modules:
            pytest.skip("it gives whole frames only, or is one piece")
        if detector.describe(self.acquisition(detector)).decoded is not None:
            pytest.skip("its frames come compressed")
        first = detector.info.modules[0].size
        alike = [module.name for module in detector.info.modules if module.size == first]
        names = tuple(reversed(alike[: max(1, len(alike) - 1)]))
        parts = self.read(detector, self.acquisition(detector), Share(modules=names))
        wholes = self.read(detector, self.acquisition(detector))
        assert [part.index for part in parts] == list(range(self.nb_frames))
        boxes = detector.info.boxes(names)
        for part, whole in zip(parts, wholes, strict=True):
            if part.data is not None and whole.data is not None and self.repeatable:
                seen = np.concatenate([whole.data[..., *box.slices] for box in boxes], axis=-2)
                np.testing.assert_array_equal(part.data, seen, f"frame {part.index}", strict=True)

    def test_a_region_is_cut_from_the_whole(self, detector: Detector) -> None:
        """With a roi the same pixels come as without."""
        height, width = detector.info.shape
        if not detector.capabilities.roi:
            pytest.skip("it always reads all of itself")
        if height < 4 or width < 4:
            pytest.skip("it is too small to have a part")
        box = Roi(1, 2, width - 3, height - 3)
        parts = self.read(detector, self.acquisition(detector, roi=tuple(box)))
        wholes = self.read(detector, self.acquisition(detector))
        assert len(parts) == len(wholes) == self.nb_frames
        for part, whole in zip(parts, wholes, strict=True):
            if part.data is not None and whole.data is not None and self.repeatable:
                np.testing.assert_array_equal(part.data, whole.data[..., *box.slices])

    # Life

    def test_start_returns_at_once_and_stop_ends_fill_from_another_thread(
        self, detector: Detector
    ) -> None:
        """Also in the middle of the longest exposure there is."""
        capabilities = detector.capabilities
        acquisition = self.acquisition(
            detector,
            nb_frames=capabilities.max_frames or 0,
            expo_time=capabilities.expo_range[1],
        )
        prepared, spec = prepare_and_start(detector, acquisition)
        asking, ended, problems = threading.Event(), threading.Event(), list[BaseException]()

        def ask() -> None:
            index = 0
            try:
                while index < prepared.last:
                    got = fill_once(detector, spec, index, int(min(2, prepared.last - index)))
                    asking.set()
                    if got is None:
                        break
                    index += len(got)
                ended.set()
            except BaseException as error:
                problems.append(error)
            finally:
                asking.set()

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        assert asking.wait(self.patience)
        detector.stop()
        thread.join(self.patience)
        assert not problems, problems
        assert ended.is_set(), "fill went on after stop"

    def test_no_frame_comes_after_a_stop(self, detector: Detector) -> None:
        """Frames that were ready may still come, but not for ever; stopping twice is harmless."""
        prepared, spec = prepare_and_start(detector, self.acquisition(detector))
        detector.stop()
        detector.stop()
        assert detector.stopping
        self._rest(detector, spec, 0, prepared.nb_frames)

    def test_after_a_stop_it_can_begin_afresh(self, detector: Detector) -> None:
        """Nothing of a stopped acquisition is found in the next one."""
        prepare_and_start(detector, self.acquisition(detector))
        detector.stop()
        frames = self.read(detector, self.acquisition(detector))
        assert [frame.index for frame in frames] == list(range(self.nb_frames))
        again = self.read(detector, self.acquisition(detector, nb_frames=self.nb_frames - 3))
        assert [frame.index for frame in again] == list(range(self.nb_frames - 3))
        if self.repeatable:
            assert_same(again, frames[: len(again)])

    def test_it_can_be_prepared_again_without_a_start(self, detector: Detector) -> None:
        """The last prepare counts."""
        detector.prepare(self.acquisition(detector, nb_frames=2), ALONE)
        assert len(self.read(detector, self.acquisition(detector))) == self.nb_frames

    def test_it_starts_no_thread(self, detector: Detector) -> None:
        """The only thread that runs a plugin is the one that asks it."""
        before = set(threading.enumerate())
        _, spec = prepare_and_start(detector, self.acquisition(detector))
        fill_once(detector, spec, 0, 1)
        assert set(threading.enumerate()) == before

    def test_it_can_be_closed_at_any_time_and_twice(self, detector: Detector) -> None:
        """Closed when fresh, when prepared, and again."""
        detector.close()
        detector.prepare(self.acquisition(detector), ALONE)
        detector.close()
        detector.close()

    # Pause

    def test_a_pause_holds_frames_back_and_loses_none(self, detector: Detector) -> None:
        """Soon no frame comes any more; after the pause they go on where they were."""
        spec, seen = self._pause(detector)
        detector.resume()
        seen += self._rest(detector, spec, len(seen), len(seen) + 5)
        detector.stop()
        assert [frame.index for frame in seen] == list(range(len(seen)))
        if self.repeatable:
            asked = self._internal(detector, len(seen))
            assert_same(seen, self.read(detector, asked))

    def test_a_stop_ends_a_pause(self, detector: Detector) -> None:
        """A detector that is held can be stopped, and begin afresh."""
        spec, seen = self._pause(detector)
        detector.stop()
        self._rest(detector, spec, len(seen), len(seen) + 1000)
        assert len(self.read(detector, self.acquisition(detector))) == self.nb_frames

    def _internal(self, detector: Detector, nb_frames: int) -> Acquisition:
        mode = TriggerMode.INTERNAL
        return self.acquisition(detector, trigger_mode=mode, nb_frames=nb_frames)

    def _pause(self, detector: Detector) -> tuple[FrameSpec, list[Frame]]:
        """Start, and pause; what came until nothing came any more."""
        capabilities = detector.capabilities
        if not capabilities.pauses or TriggerMode.INTERNAL not in capabilities.triggers:
            pytest.skip("its own clock cannot be held")
        acquisition = self._internal(detector, capabilities.max_frames or 0)
        _, spec = prepare_and_start(detector, acquisition)
        seen = self._rest(detector, spec, 0, 1)
        detector.pause()
        until, quiet = time.monotonic() + self.patience, 0
        while quiet < 3:
            got = fill_once(detector, spec, len(seen), 4) or []
            seen += got
            quiet = 0 if got else quiet + 1
            assert time.monotonic() < until, "frames go on to come after pause"
        return spec, seen

    # Triggers

    @pytest.mark.parametrize("mode", list(TriggerMode))
    @pytest.mark.parametrize("frames_per_trigger", [1, 3])
    def test_each_trigger_mode_delivers(
        self, detector: Detector, mode: TriggerMode, frames_per_trigger: int
    ) -> None:
        """Every mode it claims to know gives all frames."""
        self._need(detector, mode)
        acquisition = self.acquisition(
            detector, trigger_mode=mode, nb_frames_per_trigger=frames_per_trigger, nb_frames=6
        )
        frames = self.read(detector, acquisition)
        assert [frame.index for frame in frames] == list(range(6))

    def test_a_software_trigger_releases_its_frames_and_no_more(self, detector: Detector) -> None:
        """Nothing comes before a trigger; after it, the frames of one trigger."""
        self._need(detector, TriggerMode.SOFTWARE)
        acquisition = self.acquisition(
            detector, trigger_mode=TriggerMode.SOFTWARE, nb_frames_per_trigger=2, nb_frames=6
        )
        _, spec = prepare_and_start(detector, acquisition)
        for index in (0, 2, 4):
            assert fill_once(detector, spec, index, 6 - index) == []
            detector.trigger()
            got = self._rest(detector, spec, index, index + 2, room=6 - index)
            assert [frame.index for frame in got] == [index, index + 1]

    def test_a_trigger_out_of_place_is_refused(self, detector: Detector) -> None:
        """Before a start, after a stop, or in another mode: never silently ignored."""
        with pytest.raises(BadCommand):
            detector.trigger()
        others = detector.capabilities.triggers - {TriggerMode.SOFTWARE}
        if others:
            acquisition = self.acquisition(detector, trigger_mode=sorted(others)[0])
            prepare_and_start(detector, acquisition)
            with pytest.raises(BadCommand):
                detector.trigger()
            detector.stop()
        if TriggerMode.SOFTWARE in detector.capabilities.triggers:
            acquisition = self.acquisition(detector, trigger_mode=TriggerMode.SOFTWARE)
            detector.prepare(acquisition, ALONE)
            with pytest.raises(BadCommand):
                detector.trigger()
            detector.start()
            detector.stop()
            with pytest.raises(BadCommand):
                detector.trigger()

    def _need(self, detector: Detector, mode: TriggerMode) -> None:
        if mode not in detector.capabilities.triggers:
            pytest.skip(f"it knows no {mode} trigger")
        if mode in (TriggerMode.EXTERNAL, TriggerMode.GATE) and mode not in self.signals:
            pytest.skip(f"no {mode} signal arrives during the tests (`signals`)")

    def _rest(
        self, detector: Detector, spec: FrameSpec, index: int, last: int, room: int = 4
    ) -> list[Frame]:
        """Frames from `index` to `last`, or to where the detector ends."""
        frames: list[Frame] = []
        heard = time.monotonic()
        while index + len(frames) < last:
            got = fill_once(detector, spec, index + len(frames), room)
            if got is None:
                break
            if got:
                frames += got
                heard = time.monotonic()
            assert time.monotonic() - heard < self.patience + PATIENCE, "fill waits for ever"
        return frames
