"""Where a run is, as a session sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lima2py.node.life import State


@dataclass(frozen=True)
class Progress:
    """Where a run is.

    Attributes:
        state: of the whole system.
        asked: frames asked for, 0 if endless.
        acquired: frames the detector has delivered.
        settled: frames with a fate.
        done_to: the number of the first frame without one.
        counts: frames by fate so far.
        rate: frames that got a fate, per second, over the last seconds.
        lag: frames acquired that have no fate yet.
        lag_seconds: the age of the oldest block that is not settled.
        silent_for: seconds since the detector gave a frame, if one should have come; else 0.
        frame_bytes: bytes of one raw frame.
        ring: the fullest ring, 0 to 1.
        nodes: the status of every node, by name; with the rates at which its counters grow.
    """

    state: State
    asked: int = 0
    acquired: int = 0
    settled: int = 0
    done_to: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)
    rate: float = 0.0
    lag: int = 0
    lag_seconds: float = 0.0
    silent_for: float = 0.0
    frame_bytes: int = 0
    ring: float = 0.0
    nodes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
