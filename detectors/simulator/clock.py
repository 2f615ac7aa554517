"""When the simulated frames are due: by an own clock, by pulses of a signal, or by triggers.

All times are `time.monotonic()` values, in seconds. A frame is due when its exposure ends.
"""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from collections import deque
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from lima2py.acquisition import Acquisition
from lima2py.errors import BadCommand
from lima2py.units import as_time

Times = NDArray[np.float64]


class Clock(ABC):
    """Says when frames are due."""

    @abstractmethod
    def due(self, first: int, count: int) -> Times:
        """When the frames `first .. first + count - 1` are due; infinite if nobody knows yet.

        `first` never decreases from call to call.
        """


class Pulses(Clock):
    """A burst of frames at every pulse; the first pulse comes at the start. Can be held.

    Args:
        start: of the acquisition.
        acquisition: exposure and latency.
        frames_per_pulse: frames of a burst.
        pulse_period: seconds from pulse to pulse.
    """

    def __init__(
        self, start: float, acquisition: Acquisition, frames_per_pulse: int, pulse_period: float
    ):
        self._acquisition = acquisition
        self._frames_per_pulse = frames_per_pulse
        self._pulse_period = pulse_period
        # From this pulse on, pulse 0 counts as given at this time. Never changed, only replaced:
        # another thread may be reading.
        self._since = np.array([0]), np.array([start])

    def hold(self, first: int) -> None:
        """Let the first pulse that gives no frame before `first` not come until `release`."""
        pulses, starts = self._since
        pulse = -(-first // self._frames_per_pulse)
        self._since = np.append(pulses, pulse), np.append(starts, math.inf)

    def release(self, now: float) -> None:
        """Let the pulse that is held come now, and the others after it."""
        pulses, starts = self._since
        self._since = pulses, np.append(starts[:-1], now - pulses[-1] * self._pulse_period)

    def due(self, first: int, count: int) -> Times:
        """See `Clock`."""
        pulse, place = np.divmod(np.arange(first, first + count), self._frames_per_pulse)
        pulses, starts = self._since
        start = starts[pulses.searchsorted(pulse, side="right") - 1]
        begin = start + pulse * self._pulse_period
        return begin + place * self._acquisition.period + self._acquisition.expo_time


class Triggers(Clock):
    """A burst of frames after every software trigger.

    A trigger that comes while frames are exposed is refused. One that comes in the latency time
    after the last of them is obeyed when that has passed.

    Args:
        acquisition: exposure, latency, frames per trigger and in all.
        who: the detector's name, for complaints.
    """

    def __init__(self, acquisition: Acquisition, who: str):
        self._acquisition = acquisition
        self._who = who
        self._lock = threading.Lock()
        self._begins: deque[float] = deque()  # of the bursts that `due` may still ask for
        self._forgotten = 0  # bursts before those

    def trigger(self, now: float) -> None:
        """One trigger.

        Raises:
            BadCommand: if all frames have been triggered, or frames are being exposed.
        """
        acquisition = self._acquisition
        per_trigger = acquisition.nb_frames_per_trigger
        with self._lock:
            first = (self._forgotten + len(self._begins)) * per_trigger
            if first >= acquisition.last:
                raise BadCommand(
                    f"detector {self._who} cannot be triggered: all {acquisition.nb_frames} frames"
                    " have been; prepare and start another acquisition"
                )
            if self._begins:
                free = self._begins[-1] + per_trigger * acquisition.period
                left = free - acquisition.latency_time - now
                if left > 0:
                    raise BadCommand(
                        f"detector {self._who} cannot be triggered: it exposes frames"
                        f" {first - per_trigger} to {first - 1} for another {as_time(left)}"
                    )
                now = max(now, free)
            self._begins.append(now)

    def due(self, first: int, count: int) -> Times:
        """See `Clock`."""
        bursts, place = np.divmod(
            np.arange(first, first + count), self._acquisition.nb_frames_per_trigger
        )
        with self._lock:
            # The last burst stays, to know when the next one may begin.
            while len(self._begins) > 1 and self._forgotten < bursts[0]:
                self._begins.popleft()
                self._forgotten += 1
            wanted = int(bursts[-1]) + 1 - self._forgotten
            begins = np.array([*islice(self._begins, wanted)])
        begins = np.append(begins, np.full(max(0, wanted - begins.size), math.inf))
        begin = begins[bursts - self._forgotten]
        times: Times = begin + place * self._acquisition.period + self._acquisition.expo_time
        return times
