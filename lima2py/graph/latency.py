"""How long frames take: a histogram of times, of fixed size however many are counted."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

PER_DECADE = 8
"""Buckets in a factor of ten: each ends a third above the one before it."""
EDGES = [10.0 ** (n / PER_DECADE) for n in range(-6 * PER_DECADE, 3 * PER_DECADE + 1)]
"""Where buckets end, the end being part of it: 1 µs ... 1000 s. Beyond there is one more."""


class Histogram:
    """Counts frames by how long they took.

    One thread adds; others may look meanwhile.

    Attributes:
        counts: frames by bucket, one more than there are `EDGES`.
        total: the sum of all times, in seconds.
        longest: the longest of them, in seconds.
    """

    __slots__ = ("counts", "longest", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(EDGES) + 1)
        self.total = 0.0
        self.longest = 0.0

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Self:
        """The histogram that `plain` gave."""
        made = cls()
        made.counts[: len(plain["counts"])] = plain["counts"]
        made.total, made.longest = plain["total"], plain["longest"]
        return made

    def plain(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {"counts": self.counts.copy(), "total": self.total, "longest": self.longest}

    def add(self, seconds: float, frames: int = 1) -> None:
        """Count some frames that took as long; nothing if that is not known (nan), or cannot be."""
        if not frames or not math.isfinite(seconds):
            return
        seconds = max(seconds, 0.0)  # two clocks may differ
        self.counts[bisect_left(EDGES, seconds)] += frames
        self.total += seconds * frames
        if seconds > self.longest:
            self.longest = seconds

    def merge(self, other: Histogram) -> None:
        """Count what another one has counted, too."""
        self.counts = [mine + its for mine, its in zip(self.counts, other.counts, strict=True)]
        self.total += other.total
        self.longest = max(self.longest, other.longest)

    @property
    def frames(self) -> int:
        """How many were counted."""
        return sum(self.counts)

    def within(self, share: float, since: Sequence[int] | None = None) -> float:
        """The seconds in which a share of the frames were done, at most a third too long.

        Args:
            share: 0.5 for the median, 0.99 for all but one in a hundred.
            since: only of the frames counted since `counts` were as given.

        Returns:
            0 when nothing was counted.
        """
        counts = np.array(self.counts)
        if since is not None:
            counts -= np.array(since)
        summed = np.cumsum(counts)
        if not summed[-1]:
            return 0.0
        bucket = int(np.searchsorted(summed, math.ceil(share * summed[-1])))
        return min(EDGES[bucket], self.longest) if bucket < len(EDGES) else self.longest

    def summary(self) -> dict[str, float]:
        """What a person wants to know of it, in seconds: `p50`, `p99` and `max`."""
        return {"p50": self.within(0.5), "p99": self.within(0.99), "max": self.longest}


def plain_latencies(histograms: Mapping[str, Histogram]) -> dict[str, dict[str, Any]]:
    """Histograms by task as plain values, for the status of a node."""
    return {task: histogram.plain() for task, histogram in histograms.items()}
