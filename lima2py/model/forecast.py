"""What the model says of a run: rate, ring, memory, latency, losses, and what limits it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lima2py.frame import Fate
from lima2py.model.setup import Fault, Setup
from lima2py.ring import RingShape
from lima2py.units import as_size, as_time

_BEFORE = 1.0
"""Seconds before a fault in which the backlog was as usual."""
_MORE = 0.1
"""By how much the backlog may be larger than before without anything being wrong."""
_LATE = 0.01
"""Of the run: a detector that was held back for longer was not kept up with."""


@dataclass(frozen=True)
class Samples:
    """A run at regular times.

    Attributes:
        times: in seconds.
        fill: of the fullest ring, 0 to 1.
        backlog: frames that the detector had and that had no fate.
    """

    times: NDArray[np.float64]
    fill: NDArray[np.float64]
    backlog: NDArray[np.int64]


@dataclass
class Incident:
    """A fault, and what came of it.

    Attributes:
        fault: what happened.
        backlog: the most frames that waited after it.
        recovered: seconds after it when about as many frames waited as in the second before; None
            if that was not before the next fault, or the detector's last frame.
    """

    fault: Fault
    backlog: int = 0
    recovered: float | None = None

    def judge(self, samples: Samples, until: float, block: int) -> None:
        """See how long it was felt.

        Args:
            samples: of the run.
            until: when the next thing happened, or the last frame was there.
            block: frames that may wait more without anything being wrong.
        """
        at, times = self.fault.at, samples.times
        before = samples.backlog[(times >= at - _BEFORE) & (times <= at)]
        usual = before.max(initial=0) * (1 + _MORE) + block
        after = (times > at) & (times <= until)
        times, backlog = times[after], samples.backlog[after]
        self.backlog = int(backlog.max(initial=0))
        if self.backlog <= usual:
            self.recovered = 0.0
            return
        peak = int(backlog.argmax())
        calm = np.flatnonzero(backlog[peak:] <= usual)
        if calm.size:
            self.recovered = float(times[peak + calm[0]] - at)

    def __str__(self) -> str:
        fault = self.fault
        how = f"{fault.what} node {fault.node} at {as_time(fault.at)}"
        if self.recovered is None:
            return f"{how}: the backlog, of at most {self.backlog} frames, stays"
        return (
            f"{how}: at most {self.backlog} frames wait; as before after {as_time(self.recovered)}"
        )


@dataclass(frozen=True)
class Forecast:
    """What a run would be.

    Attributes:
        setup: what was simulated.
        shape: of each ring.
        seconds: until every frame had its fate.
        fates: frames by fate; all together they are those of the run.
        rate: frames a second that were done, from a quarter of the acquisition to its end.
        held: seconds by which the last frame was read later than the detector had it.
        behind: the most by which any frame was.
        ring_peak: how full the fullest ring was, 0 to 1.
        ring_mean: how full it was on the average.
        memory: bytes of an acquisition node, of a processing node, and of all together.
        latency: seconds from the ring until the frame is safe: of half of the frames, of 99 in 100,
            of all.
        busy: by resource, how much of it was needed, 0 to 1: of the busiest of its kind. Threads
            that have time take small blocks, which cost more; what they need is counted as if all
            blocks were full.
        incidents: what came of each fault.
        samples: how ring and backlog went.
    """

    setup: Setup
    shape: RingShape
    seconds: float
    fates: Mapping[Fate, int]
    rate: float
    held: float
    behind: float
    ring_peak: float
    ring_mean: float
    memory: tuple[int, int, int]
    latency: tuple[float, float, float]
    busy: Mapping[str, float]
    incidents: Sequence[Incident]
    samples: Samples

    @property
    def lost(self) -> int:
        """Frames that are not saved."""
        return sum(count for fate, count in self.fates.items() if fate is not Fate.SAVED)

    @property
    def keeps_up(self) -> bool:
        """Whether no frame was lost, and the detector was not held back."""
        return not self.lost and self.held <= _LATE * self.seconds

    @property
    def bottleneck(self) -> str:
        """What is busiest."""
        return max(self.busy, key=lambda name: self.busy[name])

    def plain(self) -> dict[str, Any]:
        """What JSON can say of it."""
        names = ("acquisition_node", "processing_node", "all")
        return {
            "setup": self.setup.setup,
            "keeps_up": self.keeps_up,
            "frames_per_second": self.rate,
            "bytes_per_second": self.rate * self.setup.detector.frame,
            "seconds": self.seconds,
            "held_seconds": self.held,
            "fates": {fate.word: count for fate, count in self.fates.items()},
            "ring": {"peak": self.ring_peak, "mean": self.ring_mean},
            "memory": dict(zip(names, self.memory, strict=True)),
            "latency": dict(zip(("p50", "p99", "max"), self.latency, strict=True)),
            "busy": dict(self.busy),
            "bottleneck": self.bottleneck,
            "incidents": [
                {**incident.fault.plain(), "backlog": incident.backlog,
                 "recovered": incident.recovered}
                for incident in self.incidents
            ],
        }  # fmt: skip

    def __str__(self) -> str:
        detector, shape = self.setup.detector, self.shape
        fates = ", ".join(f"{fate.word} {count}" for fate, count in sorted(self.fates.items()))
        p50, p99, longest = map(as_time, self.latency)
        acquisition, processing, total = map(as_size, self.memory)
        busiest = sorted(self.busy.items(), key=lambda item: -item[1])
        lines = [
            f"{self.setup.setup}: {self._verdict()}",
            f"rate     {_rate(self.rate, detector.frame)}"
            f"; the detector: {_rate(detector.rate, detector.frame)}",
            f"frames   {detector.frames}: {fates}",
            f"ring     {shape.slots} blocks of {shape.frames} frame{'s' * (shape.frames > 1)} in"
            f" {as_size(shape.nbytes)}; at most {self.ring_peak:.1%} full,"
            f" {self.ring_mean:.1%} on the average",
            f"latency  {p50} for half of the frames, {p99} for 99 in 100, {longest} at most",
            f"memory   {acquisition} each acquisition node, {processing} each processing node,"
            f" {total} in all",
            *(f"busy     {share:6.1%} {name}" for name, share in busiest),
            *(f"fault    {incident}" for incident in self.incidents),
        ]
        return "\n".join(lines)

    def _verdict(self) -> str:
        if self.keeps_up:
            return "keeps up"
        said = [f"loses {self.lost} frames"] * (self.lost > 0)
        if self.held > _LATE * self.seconds:
            said.append(f"holds the detector back, by {as_time(self.held)} at the end")
        return f"{' and '.join(said)}; busiest: {self.bottleneck}"


def _rate(frames: float, nbytes: int) -> str:
    return f"{frames:,.4g} frames/s, {frames * nbytes / 1e9:.3g} GB/s"
