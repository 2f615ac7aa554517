"""When the frames of a detector are there."""

from __future__ import annotations

import math

from lima2py.detector import Share
from lima2py.model.setup import DetectorLoad

_ALMOST = 1e-6
"""Of a frame: what is so nearly due is."""


class Clock:
    """Of a detector that begins at 0; frame 0 is there one period later.

    Attributes:
        frames: how many it gives.
    """

    def __init__(self, load: DetectorLoad):
        bursts = load.bursts
        self._rate = load.rate
        self.frames = load.frames
        self._burst = bursts.frames if bursts else load.frames
        self._pause = bursts.pause if bursts else 0.0
        self._cycle = self._burst / load.rate + self._pause

    def due(self, index: int) -> float:
        """When a frame is there, in seconds."""
        return (index + 1) / self._rate + index // self._burst * self._pause

    def count(self, now: float) -> int:
        """How many frames were there by then."""
        cycles = math.floor(now / self._cycle + _ALMOST / self._burst)
        within = math.floor((now - cycles * self._cycle) * self._rate + _ALMOST)
        return min(self.frames, cycles * self._burst + max(0, min(self._burst, within)))


def frames_before(share: Share, index: int) -> int:
    """How many frames of a share come before one."""
    whole, rest = divmod(index, share.group * share.size)
    return whole * share.group + min(share.group, max(0, rest - share.rank * share.group))
