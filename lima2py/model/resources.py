"""What work queues for: the cores of a host, shared in equal parts, and pipes for bytes."""

from __future__ import annotations

from collections.abc import Generator
from heapq import heappop, heappush
from itertools import count
from typing import Any

import simpy

Steps = Generator[simpy.Event, Any, None]
"""A process of the simulation."""
_ALMOST = 1e-12


class Pipe:
    """Serves one after the other.

    Args:
        rate: bytes a second; None if there is no limit.

    Attributes:
        busy: seconds of work that it was given.
    """

    def __init__(self, rate: float | None):
        self._rate = rate
        self._free = 0.0
        self.busy = 0.0

    def take(self, now: float, nbytes: float) -> float:
        """When so many bytes that come now are through."""
        if self._rate is None:
            return now
        took = nbytes / self._rate
        self.busy += took
        self._free = max(now, self._free) + took
        return self._free


class Cores:
    """The processors of a host. When there are fewer than threads with work, all go slower alike.

    Args:
        env: of the simulation.
        cores: how many; a part of one is one that others use, too.
        threads: the most that can have work at once.

    Attributes:
        busy: seconds of work that they were given.
    """

    def __init__(self, env: simpy.Environment, cores: float, threads: int):
        self.cores = cores
        self.busy = 0.0
        self._env = env
        self._plenty = threads <= cores
        self._jobs: list[tuple[float, int, simpy.Event]] = []  # by the work done when they are over
        self._numbers = count()
        self._each = 0.0  # work done by each job that was there from the beginning
        self._then = 0.0
        self._speed = 1.0
        self._version = 0

    def work(self, seconds: float) -> simpy.Event:
        """Happens when one thread has done so much."""
        self.busy += seconds
        if self._plenty:
            return self._env.timeout(seconds)
        done = self._env.event()
        self._advance()
        heappush(self._jobs, (self._each + seconds, next(self._numbers), done))
        self._schedule()
        return done

    def _advance(self) -> None:
        now = self._env.now
        self._each += (now - self._then) * self._speed
        self._then = now

    def _schedule(self) -> None:
        self._version += 1
        if not self._jobs:
            return
        self._speed = min(1.0, self.cores / len(self._jobs))
        left = max(0.0, (self._jobs[0][0] - self._each) / self._speed)
        wake = self._env.timeout(left, self._version)
        assert wake.callbacks is not None  # noqa: S101 - it has not happened yet
        wake.callbacks.append(self._wake)

    def _wake(self, event: simpy.Event) -> None:
        if event.value != self._version:
            return  # others have come or gone since
        self._advance()
        self._each = max(self._each, self._jobs[0][0])
        while self._jobs and self._jobs[0][0] <= self._each + _ALMOST:
            heappop(self._jobs)[2].succeed()
        self._schedule()
