"""An acquisition node: hosts a detector, and one living run at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from lima2py.detector import Detector
from lima2py.detector_file import open_detector
from lima2py.errors import BadCommand
from lima2py.memory import Spare
from lima2py.node.acquisition_run import AcquisitionRun
from lima2py.node.life import State
from lima2py.node.node import PATIENCE, Node, forget_ended
from lima2py.node.orders import AcquisitionOrder, ConnectOrder, DetectorOrder


class AcquisitionNode(Node):
    """Hosts a detector, and one living run."""

    kind = "acquisition"

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._detector: tuple[DetectorOrder, Detector] | None = None
        self._runs: dict[str, AcquisitionRun] = {}
        self._spare = Spare()

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
            "stop": lambda run: self._run(run).stop(),
            "abort": lambda run: self._run(run).abort(),
            "trigger": lambda: self.detector.trigger(),
            "log": lambda run, **said: self._run(run).observer.logbook.note(**said),
            "report": lambda run: self._run(run).report(),
            "nodes_lost": lambda run, reasons: self._run(run).lose_nodes(reasons),
            "source_lost": lambda run, rank: self._run(run).lose_source(rank),
        }

    @property
    def detector(self) -> Detector:
        """The detector in use.

        Raises:
            BadCommand: if there is none yet.
        """
        if self._detector is None:
            raise BadCommand(f"{self.who} has no detector yet; it can: prepare")
        return self._detector[1]

    def prepare(self, order: dict[str, Any]) -> dict[str, Any]:
        """Make ready for a run: `AcquisitionOrder` in, `AcquisitionReady` out.

        Raises:
            BadCommand: if another run is alive.
            BadParameter, DetectorError, StorageError: what cannot be.
        """
        told = msgspec.convert(order, AcquisitionOrder)
        for run in self._runs.values():
            if run.life.state in (State.RUNNING, State.STOPPING):
                run.life.check("prepare")
            elif run.life.state is State.PREPARED:
                run.abandon(PATIENCE)
        forget_ended(self._runs)
        run = AcquisitionRun(told, self, self._open(told.detector), self._spare)
        self._runs[told.run] = run
        plain = msgspec.to_builtins(run.ready)
        assert isinstance(plain, dict)  # noqa: S101 - for the type checker
        return plain

    def connect(self, run: str, order: dict[str, Any]) -> None:
        """Meet the processing nodes of a run: takes a `ConnectOrder`."""
        self._run(run).connect(msgspec.convert(order, ConnectOrder))

    def close(self) -> None:
        """See `Node.close`."""
        super().close()
        self._spare.close()
        if self._detector is not None:
            self._detector[1].close()
            self._detector = None

    def _run(self, run: str) -> AcquisitionRun:
        found = self.run(run)
        assert isinstance(found, AcquisitionRun)  # noqa: S101 - for the type checker
        return found

    def _open(self, order: DetectorOrder) -> Detector:
        if self._detector is not None:
            if self._detector[0] == order:
                return self._detector[1]
            self._detector[1].close()
            self._detector = None
        detector = open_detector(order.name, order.overrides, Path(order.base))
        self._detector = (order, detector)
        return detector
