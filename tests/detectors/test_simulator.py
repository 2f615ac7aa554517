"""The simulator passes the conformance suite in many guises, and does what its parameters say."""

from __future__ import annotations

import itertools
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lima2py_detectors.simulator import Simulator, verifiable_frame, verifiable_frames
from lima2py_detectors.simulator.clock import Pulses, Triggers
from lima2py_detectors.simulator.verifiable import SHIFTS

from lima2py.acquisition import Acquisition, TriggerMode
from lima2py.detector import Share, Slot
from lima2py.errors import BadCommand, BadParameter, DetectorError, LimaError
from lima2py.frame import Array, Fate, Frame, FrameSpec
from lima2py.geometry import Roi
from lima2py.testing.detectors import (
    DetectorTests,
    assert_same,
    fill_once,
    prepare_and_start,
    read_all,
)

DTYPES = [f"{kind}{bits}" for kind in ("uint", "int") for bits in (8, 16, 32, 64)]
DTYPES += ["float16", "float32", "float64"]
FAST = Acquisition(nb_frames=11, expo_time=1e-6)


class SimulatorTests(DetectorTests):
    signals = frozenset({TriggerMode.EXTERNAL})
    parameters: ClassVar[dict[str, object]]

    @pytest.fixture
    def detector(self) -> Simulator:
        return Simulator.load({"shape": [30, 40], **self.parameters}, "test")


class TestDiffraction(SimulatorTests):
    parameters: ClassVar = {"prefetch": 3}


class TestDrawnWhenDue(SimulatorTests):
    parameters: ClassVar = {"prefetch": 0, "pattern": "gauss", "dtype": "float32", "bands": 2}


class TestModules(SimulatorTests):
    parameters: ClassVar = {
        "modules": [2, 3],
        "gap": [4, 2],
        "dtype": "int32",
        "name": "moby",
        "shape": [34, 40],
    }


class TestVerifiable(SimulatorTests):
    parameters: ClassVar = {"pattern": "verifiable", "bands": 3, "dtype": "uint8"}


class TestCompressed(SimulatorTests):
    parameters: ClassVar = {"pattern": "verifiable", "bands": 2, "encoding": "bslz4", "drop": [4]}


class TestWithLosses(SimulatorTests):
    parameters: ClassVar = {
        "pattern": "verifiable",
        "drop": [3, 7],
        "drop_every": 5,
        "incomplete": [0, 1],
        "corrupt": [2, 3],
        "modules": [3, 2],
    }


def pixels(frame: Frame) -> Array:
    assert frame.data is not None
    return frame.data


def take(detector: Simulator, spec: FrameSpec, index: int, room: int) -> list[Frame]:
    got = fill_once(detector, spec, index, room)
    assert got is not None
    return got


def simulator(**parameters: object) -> Simulator:
    return Simulator.load({"shape": [24, 20], **parameters}, "test")


# Parameters


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"dtype": "uint12"}, "dtype: should be 'uint8'"),
        (
            {"modules": [5, 1]},
            "5 modules .* cannot be 24 pixels high .* 5 modules 4 high would be 20",
        ),
        ({"modules": [1, 2], "gap": [0, 19]}, "cannot be 20 pixels wide .* would be 21"),
        ({"shape": [0, 10]}, "shape.0: should be greater than or equal to 1"),
        ({"pulse_period": "12 parsec"}, "pulse_period: is not a time"),
        ({"fail_at": -1}, "fail_at: should be greater"),
        ({"photons": True}, "photons: should be a number"),
    ],
)
def test_wrong_parameters_are_refused_by_name(wrong: dict[str, object], says: str) -> None:
    with pytest.raises(BadParameter, match=says):
        simulator(**wrong)


def test_pictures_that_do_not_fit_into_memory_are_refused_at_prepare() -> None:
    detector = simulator(shape=[100, 100], prefetch=10**12)
    with pytest.raises(LimaError, match="of memory asked"):
        detector.prepare(FAST, Share())


def test_modules_fill_the_detector_but_for_the_gaps() -> None:
    detector = simulator(modules=[3, 2], gap=[3, 4], name="it")
    places = detector.info.modules
    assert [place.name for place in places][:3] == ["module_0_0", "module_0_1", "module_1_0"]
    assert {place.size for place in places} == {(6, 8)}
    assert [place.at for place in places][:3] == [(0, 0), (12, 0), (0, 9)]
    assert simulator().info.modules == ()


# Pictures


@pytest.mark.parametrize("pattern", ["diffraction", "gauss"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gaps_hold_minus_one_or_zero_and_counts_end_at_the_largest_number(
    pattern: str, dtype: str
) -> None:
    detector = simulator(
        pattern=pattern, dtype=dtype, modules=[2, 2], gap=[4, 2], photons=1e9, prefetch=2
    )
    frames = read_all(detector, Acquisition(nb_frames=2, expo_time=1e-6))
    gaps = np.ones((24, 20), bool)
    for place in detector.info.modules:
        gaps[Roi(*place.at, place.size[1], place.size[0]).slices] = False
    assert gaps.sum() == 4 * 20 + 2 * 24 - 4 * 2
    largest = np.finfo(dtype).max if dtype.startswith("float") else np.iinfo(dtype).max
    for frame in frames:
        assert pixels(frame).dtype == dtype
        assert set(pixels(frame)[gaps].tolist()) == {0 if dtype.startswith("uint") else -1}
        assert pixels(frame)[~gaps].min() >= 0
        assert pixels(frame)[~gaps].max() >= min(1e9, float(largest))


def test_a_diffraction_picture_has_a_falling_background_and_peaks_that_come_and_go() -> None:
    detector = simulator(shape=[200, 200], hot_pixels=0, photons=500, background=20, prefetch=8)
    frames = read_all(detector, Acquisition(nb_frames=8, expo_time=1e-6))
    mean = np.median([pixels(frame) for frame in frames], axis=0)
    middle, edge = mean[90:110, 90:110], mean[:20]
    assert np.median(middle) > 4 * np.median(edge) > 0
    assert max(pixels(frame).max() for frame in frames) > 200
    assert np.ptp([pixels(frame).max() for frame in frames]) > 0
    calm = simulator(shape=[200, 200], hot_pixels=0, peaks=0, background=20, prefetch=1)
    noise = pixels(read_all(calm, Acquisition(expo_time=1e-6))[0])[95:105, 95:105]
    assert 18 < noise.mean() < 22  # 100 pixels of a Poisson process of 20
    assert 10 < noise.var() < 35


def test_hot_pixels_stay_where_they_are() -> None:
    detector = simulator(hot_pixels=4, photons=100, background=1, seed=3, prefetch=4)
    hot = [
        set(zip(*np.nonzero(pixels(frame) > 500), strict=True))
        for frame in read_all(detector, Acquisition(nb_frames=4, expo_time=1e-6))
    ]
    assert len(hot[0]) == 4
    assert hot == [hot[0]] * 4


@pytest.mark.parametrize("pattern", ["diffraction", "gauss"])
def test_prefetched_pictures_are_the_first_ones_drawn_and_come_in_turn(pattern: str) -> None:
    pool = read_all(simulator(pattern=pattern, prefetch=4), FAST)
    fresh = read_all(simulator(pattern=pattern, prefetch=0), FAST)
    for frame in pool:
        np.testing.assert_array_equal(pixels(frame), pixels(fresh[frame.index % 4]))
    for one, other in itertools.pairwise(fresh):
        assert (pixels(one) != pixels(other)).any()


def test_another_seed_gives_other_pictures_and_the_same_one_the_same() -> None:
    same = read_all(simulator(seed=5), FAST)
    assert_same(same, read_all(simulator(seed=5), FAST))
    assert all(
        (pixels(one) != pixels(other)).any()
        for one, other in zip(same, read_all(simulator(seed=6), FAST), strict=True)
    )


# The verifiable pattern

shapes = st.tuples(st.integers(2, 12), st.integers(2, 12))
indices = st.integers(0, 10**6)


@given(shape=shapes, dtype=st.sampled_from(DTYPES), bands=st.integers(1, 3), index=indices)
@settings(max_examples=60)
def test_neighbours_differ_in_every_pixel(
    shape: tuple[int, int], dtype: str, bands: int, index: int
) -> None:
    frame, after = verifiable_frames(index, 2, shape, dtype, bands)
    assert (frame.shape, frame.dtype) == ((bands, *shape), np.dtype(dtype))
    assert np.isfinite(frame.astype(float)).all()
    assert (frame != after).all()
    for axis in range(3):
        assert (
            np.take(frame, range(1, frame.shape[axis]), axis)
            != frame.take(range(frame.shape[axis] - 1), axis)
        ).all()


@given(
    shape=st.tuples(st.integers(8, 16), st.integers(8, 16)),
    dtype=st.sampled_from(DTYPES),
    index=indices,
    shift=st.tuples(st.integers(-7, 7), st.integers(-7, 7)).filter(any),
    swap=st.permutations(range(8)).filter(lambda order: order != list(range(8))),
    other=indices,
)
@settings(max_examples=60)
def test_shifted_swapped_mirrored_or_repeated_frames_are_seen(
    shape: tuple[int, int],
    dtype: str,
    index: int,
    shift: tuple[int, int],
    swap: list[int],
    other: int,
) -> None:
    frame = verifiable_frame(index, shape, dtype)[0]
    assert (np.roll(frame, shift, (0, 1)) != frame).any()
    for axis in (0, 1):
        assert (np.flip(frame, axis) != frame).any()
        assert (frame.take(swap, axis) != frame.take(range(8), axis)).any()
    if index != other and max(index, other) < 256 * SHIFTS:
        assert (verifiable_frame(other, shape, dtype)[0] != frame).any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_pixel_is_what_the_formula_says(dtype: str) -> None:
    """value = base(band, y + 2 (index // N), x) + index % N, wrapped at N for integers."""
    bits = np.finfo(dtype).nmant if dtype.startswith("float") else int(dtype.lstrip("uint"))
    index = 3 * 2**bits + 2**bits - 1 if bits < 24 else 12345
    shift, add = divmod(index, 2**bits)
    base = verifiable_frame(0, (16, 5), dtype, 2)
    frame = verifiable_frame(index, (16, 5), dtype, 2)
    unwrapped = [[[int(value) + add for value in row] for row in band] for band in base.tolist()]
    expected = np.array(unwrapped, object)[:, 2 * shift :]
    found = np.array(frame.tolist(), object)[:, : 16 - 2 * shift]
    if not dtype.startswith("float"):
        expected, found = expected % 2**bits, found % 2**bits
    assert (expected == found).all()


@given(first=indices, count=st.integers(1, 5), rooms=st.lists(st.integers(1, 4), min_size=1))
@settings(max_examples=25)
def test_frames_are_equal_however_they_are_asked_for(
    first: int, count: int, rooms: list[int]
) -> None:
    frames = verifiable_frames(first, count, (5, 7), "uint8", 2)
    singles = [verifiable_frame(first + at, (5, 7), "uint8", 2) for at in range(count)]
    np.testing.assert_array_equal(frames, singles)
    detector = simulator(shape=[5, 7], pattern="verifiable", dtype="uint8", bands=2)
    read = read_all(detector, Acquisition(nb_frames=count, expo_time=1e-6), rooms=rooms)
    np.testing.assert_array_equal(
        [pixels(frame) for frame in read], verifiable_frames(0, count, (5, 7), "uint8", 2)
    )


def test_compressed_frames_hold_the_same_images() -> None:
    """Of any pixels: those that no compressor makes smaller fit, too."""
    for look in ({"pattern": "verifiable", "dtype": "uint32"}, {"prefetch": 3, "background": 1e6}):
        plain, compressed = simulator(**look), simulator(**look, encoding="bslz4")
        assert_same(read_all(plain, FAST), read_all(compressed, FAST))
        spec = compressed.describe(FAST)
        assert spec.kind == "encoded"
        assert spec.decoded is not None
        assert spec.decoded.image == plain.describe(FAST)


def test_the_window_moves_over_wrapping_indices() -> None:
    """A block that goes over the end of a dtype's numbers is the same as single frames."""
    frames = verifiable_frames(250, 12, (4, 4), "uint8")
    assert (frames[5:7] != frames[6:8]).all()
    np.testing.assert_array_equal(frames[8], verifiable_frame(258, (4, 4), "uint8"))


# Faults


def test_frames_are_lost_as_asked() -> None:
    detector = simulator(
        drop=[3], drop_every=4, incomplete=[0, 5], corrupt=[1, 3], modules=[2, 2], name="it"
    )
    frames = read_all(detector, FAST)
    causes = {frame.index: frame.absence.cause for frame in frames if frame.absence}
    assert causes == {
        0: Fate.INCOMPLETE,
        1: Fate.CORRUPT,
        3: Fate.DETECTOR_GAP,
        5: Fate.INCOMPLETE,
        7: Fate.DETECTOR_GAP,
    }
    assert {frame.absence.who for frame in frames if frame.absence} == {"it"}
    assert "module_0_0 is missing" in str(frames[0].absence)
    assert "module_0_1 is missing" in str(frames[5].absence)


@given(
    every=st.integers(1, 7),
    drop=st.sets(st.integers(0, 40)),
    rooms=st.lists(st.integers(1, 9), min_size=1, max_size=4),
)
@settings(max_examples=30)
def test_the_same_frames_are_lost_whatever_the_slots(
    every: int, drop: set[int], rooms: list[int]
) -> None:
    detector = simulator(pattern="verifiable", shape=[2, 2], drop=sorted(drop), drop_every=every)
    frames = read_all(detector, Acquisition(nb_frames=40, expo_time=1e-6), rooms=rooms)
    expected = {index for index in range(40) if index in drop or (index + 1) % every == 0}
    assert {frame.index for frame in frames if frame.absence} == expected


@pytest.mark.parametrize("fail_at", [0, 1, 6])
def test_it_fails_at_the_frame_it_was_told_to_and_delivers_those_before(fail_at: int) -> None:
    detector = simulator(fail_at=fail_at, name="it")
    _, spec = prepare_and_start(detector, FAST)
    index = 0
    while index < fail_at:
        index += len(take(detector, spec, index, 4))
    assert index == fail_at
    with pytest.raises(DetectorError, match=f"detector it: failed at frame {fail_at}"):
        detector.fill(Slot(index, np.empty((4, *spec.shape), spec.dtype), np.empty(4)))


def test_a_node_that_does_not_have_the_failing_frame_goes_on() -> None:
    detector = simulator(fail_at=4)
    frames = read_all(detector, FAST, Share(1, 2, group=1))
    assert [frame.index for frame in frames] == [1, 3, 5, 7, 9]


# Time


class Watch:
    """A clock that is set by hand, in place of `time`."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now + 1.6e9


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    watch = Watch()
    monkeypatch.setattr("lima2py_detectors.simulator.time", watch)
    monkeypatch.setattr("lima2py.detector.time", watch)
    return watch


def test_frames_come_when_their_exposure_ends(watch: Watch) -> None:
    detector = simulator()
    acquisition = Acquisition(nb_frames=4, expo_time=2.0, latency_time=1.0)
    _, spec = prepare_and_start(detector, acquisition)
    assert take(detector, spec, 0, 4) == []
    watch.now = 101.99
    assert take(detector, spec, 0, 4) == []
    watch.now = 102.0
    assert [frame.timestamp for frame in take(detector, spec, 0, 4)] == [1.6e9 + 102]
    watch.now = 109.0  # 105 and 108 have passed
    assert [frame.timestamp for frame in take(detector, spec, 1, 4)] == [
        1.6e9 + 105,
        1.6e9 + 108,
    ]
    watch.now = 1000.0  # a slow pipeline loses nothing
    assert [frame.index for frame in take(detector, spec, 3, 4)] == [3]
    assert fill_once(detector, spec, 4, 4) is None


def test_what_is_not_read_in_time_is_lost_when_the_buffer_is_full(watch: Watch) -> None:
    detector = simulator(buffer=3, name="it")
    _, spec = prepare_and_start(detector, Acquisition(nb_frames=12, expo_time=1.0))
    watch.now = 103.5  # frames 0, 1 and 2 have come, and fit
    assert [frame.absence for frame in take(detector, spec, 0, 1)] == [None]
    watch.now = 108.5  # 3 to 7 have come: 5, 6 and 7 are kept
    frames = take(detector, spec, 1, 6) + take(detector, spec, 7, 6)
    assert [frame.index for frame in frames if frame.absence] == [1, 2, 3, 4]
    assert frames[0].absence == (
        Fate.OVERRUN, "it", "not read in time: the detector keeps 3 frames"
    )  # fmt: skip
    watch.now = 1000.0
    frames = take(detector, spec, 8, 9)
    assert [frame.absence is None for frame in frames] == [False, True, True, True]


def test_a_pause_moves_the_frames_after_it_and_no_others(watch: Watch) -> None:
    detector = simulator()
    _, spec = prepare_and_start(detector, Acquisition(nb_frames=8, expo_time=1.0))
    watch.now = 103.5
    assert len(take(detector, spec, 0, 2)) == 2
    detector.pause()
    watch.now = 150.0
    assert take(detector, spec, 2, 4) == []
    detector.resume()
    assert take(detector, spec, 2, 4) == []
    watch.now = 151.0
    assert [frame.timestamp - 1.6e9 for frame in take(detector, spec, 2, 4)] == [151]
    detector.pause()
    detector.resume()  # at once: the exposure begins afresh
    watch.now = 153.5
    assert [frame.timestamp - 1.6e9 for frame in take(detector, spec, 3, 4)] == [152, 153]
    detector.stop()
    with pytest.raises(BadCommand, match="simulator cannot pause: it has not been started"):
        detector.pause()


@given(st.lists(st.tuples(st.integers(0, 5), st.floats(0, 10)), max_size=6))
def test_however_often_it_is_held_frames_stay_in_order_and_a_period_apart(
    holds: list[tuple[int, float]],
) -> None:
    acquisition = Acquisition(expo_time=1.0)
    clock, first, now = Pulses(0.0, acquisition, 1, 1.0), 0, 0.0
    for frames, pause in holds:
        first += frames
        now = max(now, *clock.due(0, first)) if first else now  # those before have come
        clock.hold(first)
        assert np.isinf(clock.due(first, 3)).all()
        now += pause
        clock.release(now)
    due = clock.due(0, first + 10)
    assert (np.diff(due) > 1 - 1e-6).all()
    assert np.isfinite(due).all()


def test_external_pulses_come_at_their_own_period(watch: Watch) -> None:
    detector = simulator(pulse_period=10.0)
    acquisition = Acquisition(
        nb_frames=5,
        expo_time=2.0,
        latency_time=1.0,
        trigger_mode="external",
        nb_frames_per_trigger=2,
    )
    _, spec = prepare_and_start(detector, acquisition)
    watch.now = 1000.0
    times = [frame.timestamp - 1.6e9 for frame in take(detector, spec, 0, 9)]
    assert times == [102, 105, 112, 115, 122]


def test_pulses_that_come_too_fast_are_refused() -> None:
    detector = simulator(pulse_period=0.1, name="it")
    acquisition = Acquisition(expo_time=0.06, trigger_mode="external", nb_frames_per_trigger=2)
    with pytest.raises(BadParameter, match=r"it, pulse_period 100 ms.*take 120 ms"):
        detector.prepare(acquisition, Share())


def test_a_trigger_during_an_exposure_is_refused_and_one_in_the_latency_waits(watch: Watch) -> None:
    detector = simulator(name="it")
    acquisition = Acquisition(
        nb_frames=6,
        expo_time=2.0,
        latency_time=1.0,
        trigger_mode="software",
        nb_frames_per_trigger=2,
    )
    _, spec = prepare_and_start(detector, acquisition)
    detector.trigger()
    watch.now = 104.0
    with pytest.raises(BadCommand, match="exposes frames 0 to 1 for another 1 s"):
        detector.trigger()
    watch.now = 105.5
    detector.trigger()
    watch.now = 200.0
    times = [frame.timestamp - 1.6e9 for frame in take(detector, spec, 0, 9)]
    assert times == [102, 105, 108, 111]
    detector.trigger()
    watch.now = 300.0
    assert len(take(detector, spec, 4, 9)) == 2
    with pytest.raises(BadCommand, match="all 6 frames have been"):
        detector.trigger()


times_of = st.floats(1e-6, 10)


@given(
    expo=times_of, latency=st.floats(0, 10), per_pulse=st.integers(1, 5), first=indices,
    slack=st.floats(0, 10),
)  # fmt: skip
def test_due_times_of_pulses_are_in_order_and_an_exposure_apart(
    expo: float, latency: float, per_pulse: int, first: int, slack: float
) -> None:
    acquisition = Acquisition(expo_time=expo, latency_time=latency)
    pulse_period = per_pulse * acquisition.period + slack
    due = Pulses(50.0, acquisition, per_pulse, pulse_period).due(first, 20)
    assert (np.diff(due) >= expo * 0.9).all()
    pulse, place = divmod(first, per_pulse)
    assert due[0] == pytest.approx(50 + pulse * pulse_period + place * (expo + latency) + expo)


@given(st.lists(st.integers(1, 3), max_size=12), st.integers(1, 3))
def test_triggers_are_remembered_until_their_frames_were_taken(
    takes: list[int], per_trigger: int
) -> None:
    """However frames are taken between triggers, each is due after its own trigger."""
    acquisition = Acquisition(nb_frames=0, expo_time=0.5, nb_frames_per_trigger=per_trigger)
    clock, index, times = Triggers(acquisition, "it"), 0, []
    for turn, take in enumerate(takes):
        clock.trigger(10.0 * turn)
        due = clock.due(index, 2 * per_trigger + take)
        known = due[np.isfinite(due)][:take]
        times += known.tolist()
        index += known.size
        assert np.isinf(clock.due((turn + 1) * per_trigger, 2)).all()
        index = (turn + 1) * per_trigger
        times += [np.nan] * (index - len(times))
    for number, time in enumerate(times):
        turn, place = divmod(number, per_trigger)
        assert np.isnan(time) or time == 10 * turn + (place + 1) * 0.5


def test_an_endless_acquisition_goes_on_until_it_is_stopped() -> None:
    detector = simulator(pattern="verifiable")
    _, spec = prepare_and_start(detector, Acquisition(nb_frames=0, expo_time=1e-6))
    index = 0
    while index < 5000:
        index += len(take(detector, spec, index, 500))
    detector.stop()
    assert fill_once(detector, spec, index, 500) is None


def test_pictures_of_a_region_are_drawn_again_for_another_one() -> None:
    detector = simulator()
    whole = read_all(detector, FAST)
    box = Roi(3, 4, 5, 6)
    part = read_all(detector, FAST.model_copy(update={"roi": tuple(box)}))
    assert_same(whole, read_all(detector, FAST))
    for one, other in zip(part, whole, strict=True):
        np.testing.assert_array_equal(pixels(one), pixels(other)[box.slices])
