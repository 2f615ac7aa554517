"""What a session remembers of a run that is over."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace

import msgspec

from lima2py.session.launch import Handle
from lima2py.session.progress import Progress
from lima2py.session.report import Report
from lima2py.session.watch import Watch

_OVER = threading.Event()
_OVER.set()


class Past:
    """What is left of a `Watch` that has ended: its report, but not what each node said.

    Args:
        watch: that has.

    Attributes:
        over: is set.
        progress: where the run was in the end.
        of_graph: the nodes that ran its graph, by rank.
    """

    over = _OVER

    def __init__(self, watch: Watch):
        self.progress: Progress = replace(watch.progress, nodes={})
        self.of_graph: Mapping[int, Handle] = watch.of_graph
        self._report = msgspec.msgpack.encode(watch.report())  # a tenth of what the object takes

    def report(self) -> Report:
        """What became of the run."""
        return msgspec.msgpack.decode(self._report, type=Report)

    def close(self, abort: bool = True) -> None:
        """See `Watch.close`: there is nothing to do."""
