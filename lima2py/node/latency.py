"""How long frames take from the ring to every sink, and how old the oldest unsettled one is.

The clock is that of the acquisition node alone, so hosts whose clocks differ do not matter.
"""

from __future__ import annotations

from collections.abc import Mapping
from time import monotonic

from lima2py.frame import Block
from lima2py.graph.latency import Histogram
from lima2py.transport.wire import DoneBlock


class SinkLatency:
    """Times blocks of an acquisition node, from complete in the ring to safe in the sinks.

    Args:
        sinks: by name, in the order of their tracks, how many frames one of their rows stands for.

    Attributes:
        by_sink: what was counted: rows, by sink.
    """

    def __init__(self, sinks: Mapping[str, int]):
        self.by_sink = {name: Histogram() for name in sinks}
        self._tracks = list(zip(self.by_sink.values(), sinks.values(), strict=True))
        self._open: dict[int, float] = {}

    def begin(self, block: Block) -> None:
        """A block is complete; one without data, since nothing came, is not timed."""
        if block.data is not None:
            self._open[block.index] = monotonic()

    def end(self, done: DoneBlock) -> None:
        """A block is settled: the sinks that have rows of it hold them safely."""
        began = self._open.pop(done.index, None)
        if began is None:
            return
        took = monotonic() - began
        for (histogram, span), row in zip(self._tracks, done.rows, strict=True):
            if row >= 0:
                rows = (done.index + done.count) // span - done.index // span
                histogram.add(took, rows)

    @property
    def age(self) -> float:
        """Seconds since the oldest block that is not settled was complete; 0 if all are."""
        oldest = next(iter(self._open.copy().values()), None)  # in the order in which they began
        return 0.0 if oldest is None else monotonic() - oldest
