"""The contract between lima2py and a detector.

A plugin is one class with parameters as fields. It owns no thread and no queue: the common
acquisition thread asks it, by `fill`, to put the next frames into a slot of the ring, and nothing
else runs in between. The order of calls is

    describe*  prepare  start  (fill | trigger | pause | resume | stop)*  ...  prepare  ...  close

`describe`, `capabilities` and `info` may be called at any time. `stop`, `trigger`, `pause` and
`resume` come from another thread than `fill`. `lima2py.testing.DetectorTests` checks all of it.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PrivateAttr

from lima2py.acquisition import Acquisition, TriggerMode
from lima2py.errors import BadCommand, BadParameter, DetectorError
from lima2py.frame import SIZES, Absence, Array, Fate, FrameSpec
from lima2py.geometry import Affine, Roi
from lima2py.source import PATIENCE
from lima2py.units import Model, as_time

CAUSES = frozenset(
    {
        Fate.DETECTOR_GAP,
        Fate.DETECTOR_TIMEOUT,
        Fate.INCOMPLETE,
        Fate.CORRUPT,
        Fate.OVERRUN,
    }
)
"""The causes a plugin may give for a frame without data."""


class ModulePlace(Model):
    """Where a module of a detector lies."""

    name: str
    at: tuple[int, int]
    """`x, y` of its corner in detector pixels."""
    size: tuple[int, int]
    """`height, width` in pixels."""


class DetectorInfo(Model):
    """What a detector is: saved with the data.

    Attributes of the whole detector, before any roi or binning.
    """

    name: str
    """What this beamline calls it; the name of its group in the files."""
    model: str
    """Maker and type."""
    shape: tuple[int, int]
    """`height, width` in pixels."""
    dtype: str
    """Of one pixel, as numpy writes it: `uint16`."""
    bands: Annotated[int, Field(ge=1)] = 1
    """Images per frame: energy thresholds, colours."""
    pixel_size: tuple[float, float] | None = None
    """`x, y` in metres; None if unknown."""
    modules: tuple[ModulePlace, ...] = ()
    """The modules it is made of; empty when it is one piece."""
    gap_value: int | float = 0
    """What pixels between modules are set to, where modules that come apart are joined."""
    serial: str = ""
    """Serial number."""

    def boxes(self, names: Sequence[str]) -> list[Roi]:
        """Where some modules lie, in detector pixels, in the order of their names.

        Raises:
            BadParameter: if it has no such module, or they are not of one size.
        """
        known = {module.name: module for module in self.modules}
        if unknown := [name for name in names if name not in known]:
            has = f"it has {', '.join(known)}" if known else "it is one piece"
            raise BadParameter(f"modules {', '.join(unknown)}: detector {self.name} has none of"
                               f" this name; {has}")  # fmt: skip
        sizes = {known[name].size for name in names}
        if len(sizes) > 1:
            raise BadParameter(
                f"modules {', '.join(names)}: are not all of one size; those of one node must be"
            )
        return [Roi(*known[name].at, *reversed(known[name].size)) for name in names]


class Capabilities(NamedTuple):
    """What a detector can do; anything else is refused at prepare.

    Attributes:
        triggers: the trigger modes it knows.
        expo_range: shortest and longest exposure, in seconds.
        latency_range: shortest and longest latency, in seconds.
        roi: whether it can read out a part of itself.
        binnings: the `(x, y)` binnings it can do.
        max_frames: the most frames of one acquisition; None if there is no limit.
        ends: whether it has an end of its own (recorded frames): nb_frames 0 is all it has.
        columns: per-frame values it adds besides the timestamp: name and dtype.
        pauses: whether its internal clock can be held (`Detector.pause`).
        modules: whether it can give the frames of some of its modules only (`Share.modules`).
    """

    triggers: frozenset[TriggerMode] = frozenset({TriggerMode.INTERNAL})
    expo_range: tuple[float, float] = (1e-6, 3600.0)
    latency_range: tuple[float, float] = (0.0, 3600.0)
    roi: bool = False
    binnings: tuple[tuple[int, int], ...] = ((1, 1),)
    max_frames: int | None = None
    ends: bool = False
    columns: Mapping[str, str] = {}
    pauses: bool = False
    modules: bool = False

    def check(self, acquisition: Acquisition, info: DetectorInfo) -> None:
        """Refuse what the detector cannot do.

        Raises:
            BadParameter: naming every parameter that is out of range, and the range.
        """
        problems = []
        if acquisition.trigger_mode not in self.triggers:
            allowed = ", ".join(sorted(self.triggers))
            problems.append(f"trigger_mode {acquisition.trigger_mode}: it knows {allowed}")
        for name, (low, high) in (
            ("expo_time", self.expo_range),
            ("latency_time", self.latency_range),
        ):
            value = getattr(acquisition, name)
            if not low <= value <= high:
                problems.append(
                    f"{name} {as_time(value)}: it allows {as_time(low)} to {as_time(high)}"
                )
        if self.max_frames is not None and not 1 <= acquisition.nb_frames <= self.max_frames:
            problems.append(f"nb_frames {acquisition.nb_frames}: it has 1 to {self.max_frames}")
        if acquisition.binning not in self.binnings:
            allowed = ", ".join(f"[{x}, {y}]" for x, y in self.binnings)
            problems.append(f"binning {list(acquisition.binning)}: it allows {allowed}")
        problems += self._check_region(acquisition, info)
        if problems:
            raise BadParameter("\n".join(f"detector {info.name}, {text}" for text in problems))

    def _check_region(self, acquisition: Acquisition, info: DetectorInfo) -> list[str]:
        region = acquisition.region
        if region is None:
            return []
        if not self.roi:
            return [f"roi {region}: it always reads all of itself; crop in the graph instead"]
        height, width = info.shape
        if not region.inside(Roi(0, 0, width, height)):
            return [f"roi {region}: lies outside its {width} × {height} pixels (width × height)"]
        return []


class Share(NamedTuple):
    """Which frames of the acquisition one acquisition node delivers.

    Frames are shared out by groups: node `rank` of `size` has those with
    `index // group % size == rank`. Or every node has all frames, and of each of them some
    `modules`, one under the other (`Detector.describe_modules`); without any, the whole frame.
    """

    rank: int = 0
    size: int = 1
    group: int = 1
    modules: tuple[str, ...] = ()

    def first(self, index: int) -> int:
        """The first frame of ours at `index` or after it."""
        group = index // self.group
        wait = (self.rank - group) % self.size
        return index if wait == 0 else (group + wait) * self.group

    def room(self, index: int) -> int:
        """How many frames from `index` on lie in its group, and so are ours too."""
        return self.group - index % self.group


@dataclass(frozen=True, slots=True)
class Slot:
    """Room for the next frames, to be filled by the plugin: written into, never replaced.

    Attributes:
        index: the number of the first frame.
        data: writable array `(room, bands, height, width)`; `(room, bytes)` if encoded, see
            `put`.
        timestamps: writable array `(room,)`, seconds since 1970; preset to nan.
        columns: the plugin's other per-frame values, arrays of length room; of encoded frames also
            `nbytes`, how many bytes of each are used.
        absences: what `absent` collected, by offset.
    """

    index: int
    data: Array
    timestamps: NDArray[np.float64]
    columns: Mapping[str, Array] = field(default_factory=dict)
    absences: dict[int, Absence] = field(default_factory=dict)

    @property
    def room(self) -> int:
        """The most frames that fit."""
        return len(self.data)

    def put(self, offset: int, payload: bytes | memoryview) -> None:
        """Take an encoded frame as the detector sent it; one that is too large becomes corrupt."""
        room = self.data[offset]
        if len(payload) <= len(room):
            room[: len(payload)] = np.frombuffer(payload, np.uint8)
        self.columns[SIZES][offset] = len(payload)

    def absent(self, offset: int, cause: Fate, who: str, detail: str = "") -> None:
        """Say that a frame has no data, and why (one of `CAUSES`); it counts as filled.

        Raises:
            DetectorError: if there is no such frame here, or a detector cannot say that.
        """
        if not 0 <= offset < self.room or cause not in CAUSES:
            allowed = ", ".join(fate.word for fate in sorted(CAUSES))
            raise DetectorError(
                f"{who} said {cause!r} of offset {offset} in a slot for {self.room} frames; it may"
                f" say of its frames: {allowed}; this is a fault of the plugin"
            )
        self.absences[offset] = Absence(Fate(cause), str(who), str(detail))


def spec_of_modules(whole: FrameSpec, boxes: Sequence[Roi]) -> FrameSpec:
    """What modules of a frame look like, one under the other.

    Args:
        whole: what the frame looks like.
        boxes: where the modules lie in it, all of one size.
    """
    height = sum(box.height for box in boxes)
    return whole.replace(
        shape=(whole.bands, height, boxes[0].width), to_detector=None, detector_shape=None
    )


class Detector(Model, ABC):
    """The base of every detector plugin: its fields are the parameters a user can set.

    A plugin may rely on this: `fill` is called again and again from one thread between `start` and
    the last frame; `slot.index` never decreases; it is never asked for more frames than were
    asked for in all.
    """

    name: str = ""
    """What this beamline calls the detector; the plugin's name when not given."""

    _stopping: threading.Event = PrivateAttr(default_factory=threading.Event)

    @property
    @abstractmethod
    def info(self) -> DetectorInfo:
        """What the detector is."""

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities:
        """What it can do."""

    def prepare(self, acquisition: Acquisition, share: Share) -> Acquisition:
        """Make the hardware ready; return what it will really do.

        `capabilities` has been checked by then. The returned parameters may differ where the
        hardware rounds (exposure in ticks of its clock). A plugin that has something to do here
        begins with `super().prepare(acquisition, share)`, which forgets an earlier `stop`.

        Raises:
            DetectorError: if it cannot; nothing is left half prepared.
        """
        self._stopping.clear()
        return acquisition

    @abstractmethod
    def start(self) -> None:
        """Begin; returns at once."""

    @abstractmethod
    def fill(self, slot: Slot) -> int | None:
        """Put the next frames, `slot.index` and following, into the slot.

        Waits at most about `PATIENCE` seconds, by `self.wait`. A frame that could not be had is
        marked by `slot.absent` and counts.

        Returns:
            How many frames were put, 0 to `slot.room`; None when no more will come.

        Raises:
            DetectorError: if the detector failed; the run ends.
        """

    def stop(self) -> None:
        """End the acquisition early: `fill` returns None soon after. Called from any thread.

        Plugins with hardware override this, and call it too.
        """
        self._stopping.set()

    def trigger(self) -> None:
        """One software trigger. Called from any thread.

        Raises:
            BadCommand: if the detector has no software trigger.
        """
        raise BadCommand(f"detector {self.info.name} has no software trigger")

    def pause(self) -> None:
        """Hold the internal clock: expose nothing more until `resume`. Called from any thread.

        Frames that were exposed already still come; no number is passed over. Only called when
        `Capabilities.pauses`, with the trigger mode internal, between `start` and `stop`.
        """
        raise BadCommand(f"detector {self.info.name} cannot pause")

    def resume(self) -> None:
        """Let the internal clock go on with the next frame. Called from any thread."""
        raise BadCommand(f"detector {self.info.name} cannot pause")

    def temperatures(self) -> dict[str, float]:
        """Temperatures in degrees Celsius, by name; may be asked at any time."""
        return {}

    def close(self) -> None:
        """Let go of the hardware; may be called twice."""
        return

    def describe(self, acquisition: Acquisition) -> FrameSpec:
        """What the frames of an acquisition will look like; changes nothing."""
        info = self.info
        height, width = info.shape
        box = acquisition.region or Roi(0, 0, width, height)
        x, y = acquisition.binning
        if box.width % x or box.height % y:
            raise BadParameter(
                f"detector {info.name}, binning [{x}, {y}]: does not divide its region of"
                f" {box.width} × {box.height} pixels (width × height)"
            )
        return FrameSpec.dense(
            box.height // y,
            box.width // x,
            info.dtype,
            bands=info.bands,
            to_detector=Affine.crop(box) @ Affine.bin(x, y),
            detector_shape=info.shape,
        )

    def describe_modules(self, acquisition: Acquisition, names: Sequence[str]) -> FrameSpec:
        """What the frames of some modules will look like: one module under the other.

        Raises:
            BadParameter: if it cannot give them, or not of what is asked for.
        """
        info, whole = self.info, self.describe(acquisition)
        if not self.capabilities.modules:
            raise BadParameter(
                f"modules {', '.join(names)}: detector {info.name} gives whole frames only; leave"
                " `modules` out, and acquisition nodes share out the frames"
            )
        boxes = info.boxes(names)
        if whole.kind != "dense" or whole.to_detector != Affine() or whole.image != info.shape:
            raise BadParameter(
                f"modules {', '.join(names)}: detector {info.name} gives single modules only"
                " uncompressed, and without roi or binning; crop and bin in the graph instead"
            )
        return spec_of_modules(whole, boxes)

    def shortest_period(self, acquisition: Acquisition) -> float:
        """The shortest time from frame to frame to be expected, in seconds; 0 if unknown."""
        return acquisition.period

    def wait(self, until: float) -> bool:
        """Sleep until a `time.monotonic()` value, but no longer than `PATIENCE`, nor after a stop.

        Returns:
            Whether the time has come.
        """
        left = until - time.monotonic()
        if left > 0:
            self._stopping.wait(min(left, PATIENCE))
            left = until - time.monotonic()
        return left <= 0

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called since the last `prepare`."""
        return self._stopping.is_set()

    def describe_all(self) -> dict[str, Any]:
        """Everything known about the detector, as plain values: for files and screens."""
        capabilities = self.capabilities
        return {
            "info": self.info.plain(),
            "parameters": self.plain(),
            "capabilities": {
                **capabilities._asdict(),
                "triggers": sorted(capabilities.triggers),
                "columns": dict(capabilities.columns),
            },
            "temperatures": self.temperatures(),
        }
