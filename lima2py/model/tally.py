"""What became of frames, and when: each is counted once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np

from lima2py.frame import Fate


class Tally:
    """The fates of all frames of a run.

    Args:
        expected: how many frames it has.
        on_end: is called when all have one.

    Attributes:
        fates: frames by fate.
        settled: frames that have one.
    """

    def __init__(self, expected: int, on_end: Callable[[], object]):
        self.fates = Counter[Fate]()
        self.settled = 0
        self._saved: list[tuple[float, int, float]] = []
        self._expected = expected
        self._on_end = on_end

    def save(self, now: float, frames: int, took: float) -> None:
        """Frames are safe, so many seconds after they were complete in the ring."""
        self._saved.append((now, frames, took))
        self._settle(Fate.SAVED, frames)

    def lose(self, fate: Fate, frames: int) -> None:
        """Frames are lost."""
        if frames:
            self._settle(fate, frames)

    def _settle(self, fate: Fate, frames: int) -> None:
        self.fates[fate] += frames
        self.settled += frames
        if self.settled == self._expected:
            self._on_end()

    def rate(self, begin: float, end: float) -> float:
        """Frames that were saved, per second, between two times."""
        done = sum(frames for now, frames, _ in self._saved if begin < now <= end)
        return done / (end - begin)

    def latency(self) -> tuple[float, float, float]:
        """How long half of the saved frames took, 99 in 100, and all of them; in seconds."""
        if not self._saved:
            return 0.0, 0.0, 0.0
        _, frames, took = np.array(sorted(self._saved, key=lambda item: item[2])).T
        upto = np.cumsum(frames) / frames.sum()
        p50, p99 = (float(took[np.searchsorted(upto, share)]) for share in (0.5, 0.99))
        return p50, p99, float(took[-1])
