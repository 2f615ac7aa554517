"""An acquisition node: a detector, a ring, and the runs whose frames lie in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from lima2py.detector import Detector
from lima2py.detector_file import open_detector
from lima2py.memory import Heap, Placed, Shared
from lima2py.memory_settings import MemorySettings
from lima2py.node.acquisition_run import AcquisitionRun
from lima2py.node.holdings import Granted, Needs
from lima2py.node.lease import Lease
from lima2py.node.life import State
from lima2py.node.node import PATIENCE, Node, forget_ended
from lima2py.node.orders import AcquisitionOrder, ConnectOrder, DetectorOrder, ProcessingReady
from lima2py.ring import Arena

KEPT_REPORTS = 20
"""Runs of a system that is up whose report is kept after the rest of them was forgotten."""


class Remains(NamedTuple):
    """What is kept of a run that is over: its last status, its report, and the session's notes."""

    status: dict[str, Any]
    report: dict[str, Any]
    notes: dict[str, Any]


class AcquisitionNode(Node):
    """Hosts a detector, which one run at a time has, and runs that are still processed."""

    kind = "acquisition"

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._detector: tuple[DetectorOrder, Detector] | None = None
        self._runs: dict[str, AcquisitionRun] = {}
        self._arena: tuple[tuple[object, ...], Arena] | None = None
        self._lease = Lease()
        self._notes: dict[str, dict[str, Any]] = {}
        self._remains: dict[str, Remains] = {}

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
            "remember": self.remember,
            "join": lambda run, ready: self._run(run).join(msgspec.convert(ready, ProcessingReady)),
            "know": lambda run, ready: self._run(run).know(msgspec.convert(ready, ProcessingReady)),
            "leave": lambda run, rank: self._run(run).leave(rank),
            "nodes_lost": lambda run, reasons: self._run(run).lose_nodes(reasons),
            "source_lost": lambda run, rank: self._run(run).lose_source(rank),
        }

    def reads(self) -> dict[str, Callable[..., Any]]:
        """See `Node.reads`; with what is about the lease."""
        return {
            **super().reads(),
            "acquiring": lambda run: run not in self._remains and self._run(run).acquiring,
            "report": self.report,
            "recall": self.recall,
            "lease": self._lease.ask,
            "renew": self._lease.renew,
            "release": self._lease.release,
            "writer": self._lease.plain,
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
        self._forget_ended()
        run = AcquisitionRun(told, self, self._open(told.detector), self._arena_for(told))
        self._runs[told.run] = run
        plain = msgspec.to_builtins(run.ready)
        assert isinstance(plain, dict)  # noqa: S101 - for the type checker
        return plain

    def connect(self, run: str, order: dict[str, Any]) -> None:
        """Meet the processing nodes of a run: takes a `ConnectOrder`."""
        self._run(run).connect(msgspec.convert(order, ConnectOrder))

    def remember(self, run: str, notes: dict[str, Any]) -> None:
        """Keep what a session needs to know of a run that another one has prepared."""
        self.run(run)
        self._notes[run] = notes

    def recall(self, run: str) -> dict[str, Any]:
        """What a session has asked to `remember`; nothing if none has.

        Raises:
            BadCommand: if the run is not known.
        """
        if run in self._remains:
            return self._remains[run].notes
        self.run(run)
        return self._notes.get(run, {})

    def list_runs(self) -> list[dict[str, Any]]:
        """See `Node.list_runs`; of those that are over, also some that are known by report only."""
        over = [
            {"run": run, "state": kept.status["state"], "outcome": kept.status["outcome"]}
            for run, kept in list(self._remains.items())
        ]
        return [*over, *super().list_runs()]

    def status(self, run: str) -> dict[str, Any]:
        """See `Node.status`."""
        kept = self._remains.get(run)
        return kept.status if kept else super().status(run)

    def report(self, run: str) -> dict[str, Any]:
        """What became of a run, as plain values."""
        kept = self._remains.get(run)
        return kept.report if kept else self._run(run).report()

    def _forget_ended(self) -> None:
        """Make room for another run; of those that a session may ask for, the reports stay."""
        before = dict(self._runs)
        forget_ended(self._runs, self.holdings.shelf)
        for run in [run for run in before if run not in self._runs]:
            notes = self._notes.pop(run, None)
            if notes is not None and before[run].outcome is not None:
                status = {**before[run].status(), "incarnation": self.incarnation}
                self._remains[run] = Remains(status, before[run].report(), notes)
        for run in list(self._remains)[:-KEPT_REPORTS]:
            del self._remains[run]

    def close(self) -> None:
        """See `Node.close`."""
        for run in self._runs.values():
            run.hurry()
        super().close()
        if self._arena is not None:
            self._arena[1].retire()
        if self._detector is not None:
            self._detector[1].close()
            self._detector = None

    def needs(self) -> Needs:
        """See `Node.needs`."""
        runs = list(self._runs.values())
        newest = runs[-1] if runs and runs[-1].life.state is State.PREPARED else None
        if newest is None:
            return self.holdings.needs(self.identity, runs)
        whole = newest.order.processing != "at_once"  # all its frames were promised room
        return self.holdings.needs(self.identity, runs, newest.ring, whole)

    def grant(self, granted: Granted) -> None:
        """See `Node.grant`."""
        super().grant(granted)
        newest = next(reversed(self._runs.values()), None)
        if newest is not None and newest.life.state is State.PREPARED:
            newest.ring.fit()

    def _run(self, run: str) -> AcquisitionRun:
        found = self.run(run)
        assert isinstance(found, AcquisitionRun)  # noqa: S101 - for the type checker
        return found

    def _arena_for(self, order: AcquisitionOrder) -> Arena:
        """The memory for frames: taken once, as long as the same is asked for."""
        settings = MemorySettings.load(order.memory, f"{self.who}, memory")
        settings.apply_to_process()
        kind = Shared if order.nodes else Heap
        key = (kind, settings)
        if self._arena is None or self._arena[0] != key:
            if self._arena is not None:
                self._arena[1].retire()
            size = settings.ring or settings.budget or settings.ring_bytes
            self._arena = key, Arena(Placed(kind(settings.huge_pages), settings), size)
        self.holdings.arena = arena = self._arena[1]
        arena.resize(order.ring or arena.nbytes)
        return arena

    def _open(self, order: DetectorOrder) -> Detector:
        if self._detector is not None:
            if self._detector[0] == order:
                return self._detector[1]
            self._detector[1].close()
            self._detector = None
        detector = open_detector(order.name, order.overrides, Path(order.base))
        self._detector = (order, detector)
        return detector
