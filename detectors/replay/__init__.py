"""Replay: recorded files as a detector, at the pace they were recorded or any other."""

from __future__ import annotations

import math
import time
from typing import Annotated, Literal

import numpy as np
from lima2py_detectors.replay.recorded import UnreadableError
from lima2py_detectors.replay.series import Series, expand
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, PrivateAttr

from lima2py.acquisition import Acquisition
from lima2py.detector import Capabilities, Detector, DetectorInfo, Share, Slot
from lima2py.detector_file import InputFiles
from lima2py.errors import BadCommand, BadParameter
from lima2py.frame import SIZES, Fate, FrameSpec
from lima2py.source import PATIENCE
from lima2py.units import seconds

__all__ = ["Replay"]


def _pace(value: object) -> object:
    if value is None or value in ("own", "flat_out"):
        return value
    try:
        period = seconds(value)
    except ValueError:
        period = None
    if isinstance(period, bool) or not isinstance(period, (int, float)) or not period > 0:
        raise ValueError("should be own, flat_out, or the time from frame to frame (20 ms)")
    return float(period)


class Replay(Detector):
    """Recorded frames: HDF5 and NeXus stacks, or images of any format fabio opens.

    Shape and dtype are those of the first file. A frame of another shape or dtype, or one that
    cannot be decoded, is corrupt, and one that lima2py had no data for is a gap; the others go on.
    """

    files: InputFiles
    """Paths or patterns, one or a list. The files of a pattern are sorted with 2 before 10. When
    the first image file holds one frame, all are taken to."""
    dataset: str | None = None
    """Path of the stack in HDF5 files; when not given, what a viewer shows (`default`, `signal`),
    else the largest one."""
    pace: Annotated[Literal["own", "flat_out"] | float | None, BeforeValidator(_pace)] = None
    """When frames come: `own` as they were recorded, where the files say so; `flat_out` as fast as
    they can be read; a time from frame to frame; when not given, as the acquisition asks."""
    loops: Annotated[int, Field(ge=0)] = 1
    """How many times the frames come; 0 goes on for ever."""
    first: Annotated[int, Field(ge=0)] = 0
    """Number of the first recorded frame to take, from 0."""
    step: Annotated[int, Field(ge=1)] = 1
    """Take every so manieth recorded frame."""
    last: Annotated[int, Field(ge=0)] | None = None
    """Number of the last recorded frame that may be taken."""
    encoded: bool = False
    """Hand frames of HDF5 files on compressed, as they are stored, for `save_raw` and `decode`.
    Each must be a chunk of its own, compressed with bslz4, bszstd, lz4, gzip or not at all."""

    _series: Series | None = PrivateAttr(None)
    _last: float = PrivateAttr(0)
    _share: Share = PrivateAttr(default_factory=Share)
    _expo_time: float = PrivateAttr(0.0)
    _period: float = PrivateAttr(0.0)
    _offsets: NDArray[np.float64] | None = PrivateAttr(None)
    _start: float | None = PrivateAttr(None)
    _wall: float = PrivateAttr(0.0)

    @property
    def _who(self) -> str:
        return self.name or "replay"

    def _frames(self) -> Series:
        """The files, looked into when first needed."""
        if self._series is None:
            try:
                paths = expand(self.files)
                series = Series(paths, self.dataset, self.first, self.step, self.last, self.encoded)
            except BadParameter as error:
                raise BadParameter(f"detector {self._who}, {error}") from error.__cause__
            except UnreadableError as error:
                raise BadParameter(f"detector {self._who}, files: {error}") from error
            if not series.count:
                raise BadParameter(
                    f"detector {self._who}: no frame is left between first {self.first} and last"
                    f" {'of all' if self.last is None else self.last}"
                )
            self._series = series
        return self._series

    @property
    def info(self) -> DetectorInfo:
        """See `Detector`; looks into the files when asked for the first time.

        Raises:
            BadParameter: if the files cannot be read.
        """
        facts = self._frames().facts
        return DetectorInfo(
            name=self._who,
            model="lima2py replay of recorded frames",
            shape=facts.shape[1:],
            dtype=str(facts.dtype),
            bands=facts.shape[0],
            pixel_size=facts.pixel_size,
        )

    @property
    def capabilities(self) -> Capabilities:
        """See `Detector`."""
        return Capabilities(ends=self.loops > 0)

    def describe(self, acquisition: Acquisition) -> FrameSpec:
        """See `Detector`."""
        image, series = super().describe(acquisition), self._frames()
        if series.facts.encoding is None:
            return image
        return FrameSpec.encoded(image, series.facts.encoding, series.capacity)

    def shortest_period(self, acquisition: Acquisition) -> float:
        """See `Detector`."""
        if isinstance(self.pace, float):
            return self.pace
        return 0.0 if self.pace else acquisition.period

    def prepare(self, acquisition: Acquisition, share: Share) -> Acquisition:
        """See `Detector`. nb_frames 0 means all there is."""
        super().prepare(acquisition, share)
        series = self._frames()
        self._start, self._share = None, share
        available = series.count * self.loops if self.loops else math.inf
        if acquisition.nb_frames > available:
            raise BadParameter(
                f"detector {self._who}, nb_frames {acquisition.nb_frames}: its files have"
                f" {series.count} frames and loops is {self.loops}; ask for {available} at most,"
                f" or set loops to {math.ceil(acquisition.nb_frames / series.count)} (0 goes on"
                " for ever)"
            )
        if not acquisition.nb_frames and self.loops:
            acquisition = acquisition.model_copy(update={"nb_frames": available})
        self._last = acquisition.last
        self._offsets = series.offsets if self.pace == "own" else None
        self._expo_time, self._period = acquisition.expo_time, acquisition.period
        if self.pace == "own" and series.period:
            self._expo_time = self._period = series.period
        elif self.pace == "flat_out":
            self._expo_time = self._period = 0.0
        elif isinstance(self.pace, float):
            self._expo_time = self._period = self.pace
        return acquisition

    def start(self) -> None:
        """See `Detector`."""
        if not self._last:
            raise BadCommand(f"detector {self._who} cannot start: prepare it first")
        self._start = time.monotonic()
        self._wall = time.time() - self._start

    def fill(self, slot: Slot) -> int | None:
        """See `Detector`."""
        room = int(min(slot.room, self._last - slot.index))
        if self.stopping or room <= 0:
            self._frames().close()
            return None
        due = self._due(slot.index, room)
        if not self.wait(due[0]):
            return 0
        until = time.monotonic() + PATIENCE
        count = int(np.searchsorted(due, time.monotonic(), side="right"))
        series, done = self._frames(), 0
        while done < count and not (done and (self.stopping or time.monotonic() > until)):
            done += self._read(series, slot, done, count)
        unknown = np.isnan(slot.timestamps[:done])
        slot.timestamps[:done][unknown] = self._wall + due[:done][unknown]
        if self._share.first(slot.index + done) >= self._last:
            series.close()  # so that others here can open the file as they like
        return done

    def _read(self, series: Series, slot: Slot, done: int, count: int) -> int:
        def refuse(offset: int, cause: Fate, why: str) -> None:
            slot.absent(done + offset, cause, self._who, why)

        number, part = (slot.index + done) % series.count, slice(done, count)
        sizes = slot.columns.get(SIZES, np.zeros(slot.room, np.uint64))[part]
        return series.read(number, slot.data[part], slot.timestamps[part], sizes, refuse)

    def _due(self, first: int, count: int) -> NDArray[np.float64]:
        """When frames are due, as `time.monotonic()` values."""
        if self._start is None:
            raise BadCommand(f"detector {self._who} has not been started")
        indices = np.arange(first, first + count)
        if self._offsets is None:
            after = indices * self._period + self._expo_time
        else:
            loop, number = np.divmod(indices, self._offsets.size)
            whole = self._offsets[-1] + self._offsets[-1] / max(1, self._offsets.size - 1)
            after = loop * whole + self._offsets[number]
        return np.asarray(self._start + after, np.float64)

    def close(self) -> None:
        """See `Detector`."""
        self._last = 0
        if self._series is not None:
            self._series.close()
            self._series = None
