"""An acquisition node: a detector, a ring, and the runs whose frames lie in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from lima2py.detector import Detector
from lima2py.detector_file import open_detector
from lima2py.memory import Heap, MemorySettings, Placed, Shared
from lima2py.node.acquisition_run import AcquisitionRun
from lima2py.node.life import State
from lima2py.node.node import PATIENCE, Node, forget_ended
from lima2py.node.orders import AcquisitionOrder, ConnectOrder, DetectorOrder, ProcessingReady
from lima2py.ring import Arena


class AcquisitionNode(Node):
    """Hosts a detector, which one run at a time has, and runs that are still processed."""

    kind = "acquisition"

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._detector: tuple[DetectorOrder, Detector] | None = None
        self._runs: dict[str, AcquisitionRun] = {}
        self._arena: tuple[tuple[object, ...], Arena] | None = None

    @property
    def runs(self) -> Mapping[str, AcquisitionRun]:
        """See `Node.runs`."""
        return self._runs

    def commands(self) -> dict[str, Callable[..., Any]]:
        """See `Node.commands`."""
        return {**super().commands(), "prepare": self.prepare, "connect": self.connect}

    def quick(self) -> dict[str, Callable[..., Any]]:
        """See `Node.quick`."""
        return {
            **super().quick(),
            "process": lambda run: self._run(run).process(),
            "stop": lambda run: self._run(run).stop(),
            "abort": lambda run: self._run(run).abort(),
            "pause": lambda run: self._run(run).pause(),
            "resume": lambda run: self._run(run).resume(),
            "trigger": lambda run: self._run(run).trigger(),
            "log": lambda run, **said: self._run(run).observer.logbook.note(**said),
            "acquiring": lambda run: self._run(run).acquiring,
            "report": lambda run: self._run(run).report(),
            "join": lambda run, ready: self._run(run).join(msgspec.convert(ready, ProcessingReady)),
            "leave": lambda run, rank: self._run(run).leave(rank),
            "nodes_lost": lambda run, reasons: self._run(run).lose_nodes(reasons),
            "source_lost": lambda run, rank: self._run(run).lose_source(rank),
        }

    def prepare(self, order: dict[str, Any]) -> dict[str, Any]:
        """Make ready for a run: `AcquisitionOrder` in, `AcquisitionReady` out.

        Raises:
            BadCommand: if another run has the detector.
            BadParameter, DetectorError, StorageError: what cannot be.
        """
        told = msgspec.convert(order, AcquisitionOrder)
        for run in self._runs.values():
            if run.acquiring:
                run.life.check("prepare")
            elif run.life.state is State.PREPARED:
                run.abandon(PATIENCE)
        forget_ended(self._runs)
        run = AcquisitionRun(told, self, self._open(told.detector), self._arena_for(told))
        self._runs[told.run] = run
        plain = msgspec.to_builtins(run.ready)
        assert isinstance(plain, dict)  # noqa: S101 - for the type checker
        return plain

    def connect(self, run: str, order: dict[str, Any]) -> None:
        """Meet the processing nodes of a run: takes a `ConnectOrder`."""
        self._run(run).connect(msgspec.convert(order, ConnectOrder))

    def close(self) -> None:
        """See `Node.close`."""
        for run in self._runs.values():
            run.wait_for_nobody()
        super().close()
        if self._arena is not None:
            self._arena[1].retire()
        if self._detector is not None:
            self._detector[1].close()
            self._detector = None

    def _run(self, run: str) -> AcquisitionRun:
        found = self.run(run)
        assert isinstance(found, AcquisitionRun)  # noqa: S101 - for the type checker
        return found

    def _arena_for(self, order: AcquisitionOrder) -> Arena:
        """The memory for frames: taken once, as long as the same is asked for."""
        settings = MemorySettings.load(order.memory, f"{self.who}, memory")
        settings.apply_affinity()
        kind = Shared if order.nodes else Heap
        key = (kind, settings)
        if self._arena is None or self._arena[0] != key:
            if self._arena is not None:
                self._arena[1].retire()
            self._arena = key, Arena(Placed(kind(), settings), settings.ring)
        return self._arena[1]

    def _open(self, order: DetectorOrder) -> Detector:
        if self._detector is not None:
            if self._detector[0] == order:
                return self._detector[1]
            self._detector[1].close()
            self._detector = None
        detector = open_detector(order.name, order.overrides, Path(order.base))
        self._detector = (order, detector)
        return detector
