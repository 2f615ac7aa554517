"""Counters that only grow, over all runs of a session and all starts of its nodes."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

Labels = tuple[str, ...]
AT_A_TIME = 64
"""The most counts from 0 of one counter that go on at a time."""


class Totals:
    """Sums up what is counted from 0 again in every run, or at every start of a node.

    Safe to use from several threads.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[str, Labels], _Sum] = {}
        self._lock = threading.Lock()

    def see(self, counter: str, labels: Labels, count: object, value: Any) -> None:
        """Take note of where a counter is.

        Args:
            counter: its name.
            labels: what it is about.
            count: which count from 0 this belongs to; several may go on at a time.
            value: a number, or an array of some. One that is less than before changes nothing.
        """
        with self._lock:
            kept = self._kept.setdefault((counter, labels), _Sum())
            kept.going[count] = np.maximum(kept.going.pop(count, 0), value)
            if len(kept.going) > AT_A_TIME:
                kept.over = kept.over + kept.going.pop(next(iter(kept.going)))

    def of(self, counter: str) -> dict[Labels, Any]:
        """Where a counter is, by labels."""
        with self._lock:
            return {
                labels: sum(kept.going.values(), kept.over)
                for (name, labels), kept in self._kept.items()
                if name == counter
            }


class _Sum:
    """Counts from 0 that may still grow, the one seen last at the end; the sum of the others."""

    def __init__(self) -> None:
        self.going: dict[object, Any] = {}
        self.over: Any = 0
