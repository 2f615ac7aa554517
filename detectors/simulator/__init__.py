"""The simulator: a detector made of numbers, with as much trouble as is asked for."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Annotated, Literal, Protocol, Self

import numpy as np
from lima2py_detectors.simulator.clock import Clock, Pulses, Triggers
from lima2py_detectors.simulator.photons import (
    Diffraction,
    Fresh,
    Gauss,
    Look,
    Photons,
    Pool,
    gap_value,
)
from lima2py_detectors.simulator.verifiable import (
    Stacked,
    verifiable_frame,
    verifiable_frames,
)
from numpy.typing import NDArray
from pydantic import Field, PrivateAttr, model_validator

from lima2py.acquisition import Acquisition, TriggerMode
from lima2py.codec import Codec, bound, codec
from lima2py.detector import Capabilities, Detector, DetectorInfo, ModulePlace, Share, Slot
from lima2py.errors import BadCommand, BadParameter, DetectorError
from lima2py.frame import Array, Fate, FrameSpec
from lima2py.geometry import Roi
from lima2py.memory import check_available
from lima2py.source import PATIENCE
from lima2py.units import Metres, Seconds, as_time

__all__ = ["Simulator", "verifiable_frame", "verifiable_frames"]

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]


class Pattern(Protocol):
    """What the frames show."""

    def write(self, index: int, out: Array) -> int:
        """Put the frames `index` and following into `out`; return how many, at least one."""


class Simulator(Detector):
    """Frames made of numbers, with gaps, losses and failures on request.

    What a frame shows depends on the parameters and its index alone, so any number of acquisition
    nodes together give the same frames as one. An expo_time of 1 us means as fast as possible. A
    slow pipeline loses nothing: the simulator waits for it, unless it has a `buffer`.
    """

    shape: tuple[Positive, Positive] = (512, 512)
    """Height and width, gaps included, in pixels."""
    dtype: Literal[
        "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64",
        "float16", "float32", "float64",
    ] = "uint16"  # fmt: skip
    """Of one pixel."""
    bands: Positive = 1
    """Images per frame, as a detector with several energy thresholds gives them."""
    pixel_size: tuple[Metres, Metres] = (75e-6, 75e-6)
    """Size of a pixel, `[x, y]`, in metres."""
    modules: tuple[Positive, Positive] = (1, 1)
    """Rows and columns of modules."""
    gap: tuple[Count, Count] = (0, 0)
    """Pixels between rows and between columns of modules."""
    encoding: Literal["none", "bslz4"] = "none"
    """`bslz4`: frames come compressed, as an EIGER sends them; `decode` gives the images back, and
    `save_raw` keeps them as they are."""
    temperature: float = 25.0
    """Of the sensor, in degrees Celsius."""

    pattern: Literal["diffraction", "gauss", "verifiable"] = "diffraction"
    """`diffraction`: Bragg peaks on a background; `gauss`: a spot that walks; `verifiable`: every
    pixel of every frame, gaps too, can be computed again (`verifiable_frame`)."""
    seed: Count = 0
    """Another number gives other peaks, photons and hot pixels."""
    prefetch: Count = 16
    """Pictures drawn at prepare and then shown in turn; with 0 every frame is drawn when it is due,
    which takes some milliseconds. The verifiable pattern is fast and never comes in turn."""
    photons: Annotated[float, Field(ge=0, le=1e9)] = 1000.0
    """In the brightest pixel of the strongest peak, or of the spot; whatever the exposure."""
    background: Annotated[float, Field(ge=0, le=1e9)] = 5.0
    """Photons per pixel in the middle of a diffraction picture."""
    peaks: Annotated[int, Field(ge=0, le=100_000)] = 300
    """About how many Bragg peaks there are."""
    hot_pixels: Annotated[int, Field(ge=0, le=1_000_000)] = 10
    """Pixels that count far too much."""

    pulse_period: Annotated[Seconds, Field(gt=0)] | None = None
    """Period of the external trigger signal, in seconds; as fast as the frames of one trigger
    allow when not given. The first pulse comes at the start."""

    buffer: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """How many frames the detector keeps until they are read; older ones are lost (`overrun`). It
    keeps all when not given."""
    drop: tuple[Count, ...] = ()
    """Frames that the detector skips."""
    drop_every: Positive | None = None
    """Skip the last one of every so many frames."""
    incomplete: tuple[Count, ...] = ()
    """Frames that miss a module."""
    corrupt: tuple[Count, ...] = ()
    """Frames that arrive damaged."""
    fail_at: Count | None = None
    """The frame at which the detector fails."""

    _acquisition: Acquisition | None = PrivateAttr(None)
    _windows: tuple[Roi, ...] = PrivateAttr(())
    _pattern: Pattern | None = PrivateAttr(None)
    _clock: Clock | None = PrivateAttr(None)
    _codec: Codec | None = PrivateAttr(None)
    _images: Array = PrivateAttr()
    _faults: dict[int, tuple[Fate, str]] = PrivateAttr(default_factory=dict)
    _faulty: list[int] = PrivateAttr(default_factory=list)
    _wall: float = PrivateAttr(0.0)
    _next: int = PrivateAttr(0)
    _woken: threading.Event = PrivateAttr(default_factory=threading.Event)

    @model_validator(mode="after")
    def _check_modules(self) -> Self:
        for what, size, count, gap in zip(
            ("high", "wide"), self.shape, self.modules, self.gap, strict=True
        ):
            left = size - (count - 1) * gap
            if left < count or left % count:
                whole = max(1, left // count)
                raise ValueError(
                    f"{count} modules with gaps of {gap} between them cannot be {size} pixels"
                    f" {what} in all: {count} modules {whole} {what} would be"
                    f" {count * whole + (count - 1) * gap}"
                )
        return self

    @property
    def _who(self) -> str:
        return self.name or "simulator"

    @property
    def info(self) -> DetectorInfo:
        """See `Detector`."""
        places = tuple(self._places())
        return DetectorInfo(
            name=self._who,
            model=f"lima2py simulator, {self.pattern}",
            shape=self.shape,
            dtype=self.dtype,
            bands=self.bands,
            pixel_size=self.pixel_size,
            modules=places if len(places) > 1 else (),
            gap_value=gap_value(np.dtype(self.dtype)),
        )

    def _places(self) -> Iterator[ModulePlace]:
        (rows, columns), (gap_y, gap_x) = self.modules, self.gap
        height = (self.shape[0] - (rows - 1) * gap_y) // rows
        width = (self.shape[1] - (columns - 1) * gap_x) // columns
        for row, column in product(range(rows), range(columns)):
            yield ModulePlace(
                name=f"module_{row}_{column}",
                at=(column * (width + gap_x), row * (height + gap_y)),
                size=(height, width),
            )

    @property
    def capabilities(self) -> Capabilities:
        """See `Detector`."""
        return Capabilities(
            triggers=frozenset({TriggerMode.INTERNAL, TriggerMode.SOFTWARE, TriggerMode.EXTERNAL}),
            roi=True,
            pauses=True,
            modules=True,
        )

    def describe(self, acquisition: Acquisition) -> FrameSpec:
        """See `Detector`."""
        image = super().describe(acquisition)
        if self.encoding == "none":
            return image
        return FrameSpec.encoded(image, self.encoding, bound(self.encoding, image.nbytes))

    def prepare(self, acquisition: Acquisition, share: Share) -> Acquisition:
        """See `Detector`."""
        super().prepare(acquisition, share)
        self._check_pulses(acquisition)
        self._clock = None
        self._acquisition = acquisition
        whole = acquisition.region or Roi(0, 0, self.shape[1], self.shape[0])
        windows = tuple(self.info.boxes(share.modules)) or (whole,)
        if self._pattern is None or windows != self._windows:
            self._pattern = self._draw(windows)
            self._windows = windows
        self._faults = self._plan_faults(share.modules)
        self._faulty = sorted(self._faults)
        image = self.describe(acquisition).decoded
        if image is not None:
            self._codec = codec(self.encoding)
            self._images = np.empty((0, *image.image.shape), image.image.dtype)
        return acquisition

    def _check_pulses(self, acquisition: Acquisition) -> None:
        if acquisition.trigger_mode is not TriggerMode.EXTERNAL or self.pulse_period is None:
            return
        burst = acquisition.nb_frames_per_trigger * acquisition.period
        if self.pulse_period < burst:
            raise BadParameter(
                f"detector {self._who}, pulse_period {as_time(self.pulse_period)}: pulses"
                f" would be missed, as the {acquisition.nb_frames_per_trigger} frames after each"
                f" take {as_time(burst)}; expose for a shorter time or set a longer pulse_period"
            )

    def _draw(self, windows: Sequence[Roi]) -> Pattern:
        if self.pattern == "verifiable":
            return Stacked(windows, self.dtype, self.bands)
        gaps = np.ones(self.shape, bool)
        for place in self._places():
            gaps[Roi(*place.at, place.size[1], place.size[0]).slices] = False
        look = Look(
            self.shape, np.dtype(self.dtype), self.bands, self.seed, self.photons,
            self.background, self.peaks, self.hot_pixels, gaps,
        )  # fmt: skip
        photons: Photons = (Diffraction if self.pattern == "diffraction" else Gauss)(look)
        if not self.prefetch:
            return Fresh(photons, windows)
        pixels = sum(window.width * window.height for window in windows)
        picture = pixels * self.bands * look.dtype.itemsize
        check_available(self.prefetch * picture, "prefetch fewer frames")
        return Pool(photons, windows, self.prefetch)

    def _plan_faults(self, ours: Sequence[str]) -> dict[int, tuple[Fate, str]]:
        """What happens to which frame; of frames that miss a module, if it is one of ours."""
        modules = [place.name for place in self._places()]
        faults = {
            index: (Fate.CORRUPT, f"checksum of frame {index} is wrong (simulated)")
            for index in self.corrupt
        }
        for index in self.incomplete:
            module = modules[index % len(modules)]
            if not ours or module in ours:
                faults[index] = (Fate.INCOMPLETE, f"{module} is missing (simulated)")
        for index in self.drop:
            faults[index] = (Fate.DETECTOR_GAP, "skipped (simulated)")
        return faults

    def start(self) -> None:
        """See `Detector`."""
        acquisition = self._acquisition
        if acquisition is None:
            raise BadCommand(f"detector {self._who} cannot start: prepare it first")
        now = time.monotonic()
        self._wall = time.time() - now
        self._next = 0
        if acquisition.trigger_mode is TriggerMode.SOFTWARE:
            self._clock = Triggers(acquisition, self._who)
        elif acquisition.trigger_mode is TriggerMode.EXTERNAL:
            burst = acquisition.nb_frames_per_trigger
            period = self.pulse_period or burst * acquisition.period
            self._clock = Pulses(now, acquisition, burst, period)
        else:
            self._clock = Pulses(now, acquisition, 1, acquisition.period)

    def fill(self, slot: Slot) -> int | None:
        """See `Detector`."""
        clock, pattern, acquisition = self._clock, self._pattern, self._acquisition
        if clock is None or pattern is None or acquisition is None:
            raise BadCommand(f"detector {self._who} has not been started")
        room = int(min(slot.room, acquisition.last - slot.index))
        if self.stopping or room <= 0:
            return None
        times = self._wait_for(clock, slot.index, room)
        if times.size and slot.index == self.fail_at:
            raise DetectorError(
                f"detector {self._who}: failed at frame {slot.index}, as asked (fail_at)"
            )
        if self.fail_at is not None and slot.index < self.fail_at:
            times = times[: self.fail_at - slot.index]
        if not times.size:
            return 0
        count = self._write(pattern, slot, times.size)
        slot.timestamps[:count] = self._wall + times[:count]
        self._spoil(slot, count)
        if self.buffer is not None:
            last = int(min(slot.index + count, acquisition.last - self.buffer))  # newer ones come
            self._lose(clock, slot, max(0, last - slot.index), self.buffer)
        self._next = slot.index + count
        return count

    def _lose(self, clock: Clock, slot: Slot, count: int, buffer: int) -> None:
        """Mark those of the first frames that were written over: so many newer ones have come."""
        newer = clock.due(slot.index, count + buffer)[buffer:]
        for offset in np.flatnonzero(newer <= time.monotonic()).tolist():
            detail = f"not read in time: the detector keeps {buffer} frames"
            slot.absent(offset, Fate.OVERRUN, self._who, detail)

    def _write(self, pattern: Pattern, slot: Slot, count: int) -> int:
        """Put frames into a slot; returns how many."""
        if self._codec is None:
            return pattern.write(slot.index, slot.data[:count])
        if len(self._images) < count:
            self._images = np.empty((count, *self._images.shape[1:]), self._images.dtype)
        count = pattern.write(slot.index, self._images[:count])
        for offset in range(count):
            slot.put(offset, self._codec.encode(self._images[offset]))
        return count

    def _wait_for(self, clock: Clock, index: int, room: int) -> NDArray[np.float64]:
        """When each of the next frames was due; empty if none is, though a while has passed."""
        self._woken.clear()  # before looking, so that a trigger from now on ends the wait
        times = clock.due(index, room)
        if np.isinf(times[0]):
            self._woken.wait(PATIENCE)
        else:
            self.wait(times[0])
        return times[: np.searchsorted(times, time.monotonic(), side="right")]

    def _spoil(self, slot: Slot, count: int) -> None:
        first = bisect_left(self._faulty, slot.index)
        last = bisect_left(self._faulty, slot.index + count)
        for index in self._faulty[first:last]:
            cause, detail = self._faults[index]
            slot.absent(index - slot.index, cause, self._who, detail)
        if self.drop_every is not None:
            every = self.drop_every
            for offset in range(-(slot.index + 1) % every, count, every):
                slot.absent(offset, Fate.DETECTOR_GAP, self._who, "skipped (simulated)")

    def stop(self) -> None:
        """See `Detector`."""
        super().stop()
        self._woken.set()

    def trigger(self) -> None:
        """See `Detector`."""
        clock = self._clock
        if not isinstance(clock, Triggers) or self.stopping:
            raise BadCommand(
                f"detector {self._who} cannot be triggered: it has not been started with"
                " trigger_mode software"
            )
        clock.trigger(time.monotonic())
        self._woken.set()

    def pause(self) -> None:
        """See `Detector`: the next frame is the first that is held, exposed or not."""
        self._internal_clock().hold(self._next)

    def resume(self) -> None:
        """See `Detector`: the timestamps jump."""
        self._internal_clock().release(time.monotonic())
        self._woken.set()

    def _internal_clock(self) -> Pulses:
        clock, acquisition = self._clock, self._acquisition
        internal = acquisition is not None and acquisition.trigger_mode is TriggerMode.INTERNAL
        if not internal or not isinstance(clock, Pulses) or self.stopping:
            raise BadCommand(
                f"detector {self._who} cannot pause: it has not been started with trigger_mode"
                " internal"
            )
        return clock

    def temperatures(self) -> dict[str, float]:
        """See `Detector`."""
        return {"sensor": self.temperature}

    def close(self) -> None:
        """See `Detector`."""
        self._acquisition = self._pattern = self._clock = self._codec = None
