"""What is asked of a detector: the acquisition parameters, and their three sets.

The words are Lima's: nb_frames, expo_time, latency_time, trigger_mode.
"""

from __future__ import annotations

import math
from enum import StrEnum
from operator import ge
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator, Field

from lima2py.geometry import Roi
from lima2py.units import Model, Seconds, digest


class TriggerMode(StrEnum):
    """What makes the detector expose."""

    INTERNAL = "internal"
    """The detector's own clock."""
    SOFTWARE = "software"
    """A `trigger` command, once for every `nb_frames_per_trigger` frames."""
    EXTERNAL = "external"
    """An edge of an electric signal, once for every `nb_frames_per_trigger` frames."""
    GATE = "gate"
    """An electric signal that is high for as long as the detector shall expose."""


def _whole_numbers(value: object, least: tuple[int, ...], meant: str) -> tuple[int, ...]:
    """The value as whole numbers, as many as there are least ones and none below its own."""
    if isinstance(value, (list, tuple)) and len(value) == len(least):
        given = tuple(number for number in value if type(number) is int)
        if len(given) == len(least) and all(map(ge, given, least)):
            return given
    raise ValueError(f"should be {meant}")


def _roi(value: object) -> tuple[int, ...]:
    meant = "[x, y, width, height], whole numbers with x, y ≥ 0 and width, height ≥ 1"
    return _whole_numbers(value, (0, 0, 1, 1), meant)


def _binning(value: object) -> tuple[int, ...]:
    return _whole_numbers(value, (1, 1), "[x, y], whole numbers of 1 or more")


RoiField = Annotated[tuple[int, int, int, int], BeforeValidator(_roi)]
"""A rectangle as people write it: `[x, y, width, height]` in detector pixels."""
BinningField = Annotated[tuple[int, int], BeforeValidator(_binning)]
"""A binning as people write it: `[x, y]`."""


class Acquisition(Model):
    """What a detector shall do. Never changes; a change makes another acquisition."""

    nb_frames: Annotated[int, Field(ge=0, le=10**12)] = 1
    """How many frames; 0 goes on until it is stopped."""
    expo_time: Annotated[Seconds, Field(gt=0)] = 0.1
    """Exposure of each frame, in seconds."""
    latency_time: Annotated[Seconds, Field(ge=0)] = 0.0
    """Pause between the end of an exposure and the start of the next one, in seconds."""
    trigger_mode: TriggerMode = TriggerMode.INTERNAL
    """What makes the detector expose."""
    nb_frames_per_trigger: Annotated[int, Field(ge=1, le=10**12)] = 1
    """Frames after each software or external trigger."""
    roi: RoiField | None = None
    """The part that is read out, `[x, y, width, height]`; the whole detector when not given."""
    binning: BinningField = (1, 1)
    """Binning on the detector, `[x, y]`."""

    @property
    def period(self) -> float:
        """Seconds from the start of one exposure to the start of the next one."""
        return self.expo_time + self.latency_time

    @property
    def last(self) -> float:
        """The number of frames, infinite when the acquisition is endless."""
        return self.nb_frames or math.inf

    @property
    def region(self) -> Roi | None:
        """`roi` as a rectangle."""
        return None if self.roi is None else Roi(*self.roi)


class Parameters(NamedTuple):
    """The three sets of parameters of a run, as plain values; all three are saved with the data.

    Attributes:
        requested: what the user gave.
        hardware: what the detector made of it at prepare.
        pipeline: what the plan made of it.
    """

    requested: dict[str, Any]
    hardware: dict[str, Any]
    pipeline: dict[str, Any]

    def digests(self) -> dict[str, str]:
        """SHA-256 of each set."""
        return {name: digest(values) for name, values in self._asdict().items()}
