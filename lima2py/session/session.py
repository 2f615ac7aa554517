"""The one object a user holds: it prepares, starts, stops, waits and looks, over all nodes.

    with Session.open("simulator") as lima:
        lima.prepare(nb_frames=100, graph="first_light", output="data", name="scan42")
        lima.start()
        for frame in lima.tap("live"):
            print(frame.index, frame.data.sum())
        print(lima.wait())

Runs live in the nodes. The session watches each run in a thread of its own: that asks every node
for its status several times a second, tells the others when one is lost, and starts it again.
"""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Literal, Self, SupportsFloat

from lima2py.acquisition import Acquisition
from lima2py.errors import BadCommand, BadParameter
from lima2py.frame import Frame
from lima2py.graph.definition import GraphDefinition, load_graph, parse_graph
from lima2py.metadata import Metadata
from lima2py.node.life import State
from lima2py.policies import Policies
from lima2py.session.call import Wanted
from lima2py.session.events import Event, Events
from lima2py.session.fleet import Fleet
from lima2py.session.metrics import View, exposition
from lima2py.session.progress import Progress
from lima2py.session.report import Report
from lima2py.session.run import SessionRun
from lima2py.session.standing import Standing
from lima2py.session.system import System, open_system
from lima2py.session.totals import Totals

KEPT_RUNS = 1000
"""The most runs that a session remembers, those that are over longest give way."""
Begin = Literal["at_once", "when_acquired", "when_told"]


class Session:
    """A handle on a system of nodes: see `Session.open`.

    Its commands mean the run that was prepared last; `runs` has all of them.

    Attributes:
        system: which nodes there are.
        nodes: handles on them.
    """

    def __init__(self, system: System, take_over: bool = False):
        standing = Standing.of(system)
        if standing is None:
            _refuse_elsewhere(system)
        self.system = system
        self.nodes = Fleet(system.load_keys(), standing, take_over)
        self._events = Events()
        self._totals = Totals()
        self._runs: dict[str, SessionRun] = {}
        self._graph: GraphDefinition | None = None
        self._closed = False
        self._recalling = threading.Lock()
        try:
            self._recall()
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(
        cls,
        system: str | Path | System = "simulator",
        *,
        acquisition_nodes: int = 1,
        processing_nodes: int = 0,
        detector: Mapping[str, Any] | None = None,
        take_over: bool = False,
    ) -> Self:
        """A session on a system of nodes.

        Of a system that is up (`lima2py up`), it has the runs that the nodes know, and may look at
        them. Its first command that changes something makes it the one that commands the system,
        until it is closed; the nodes and what they do go on after it.

        Args:
            system: a system file; or a detector, by name or by its file, for a system on this host.
            acquisition_nodes: how many, for a system on this host.
            processing_nodes: how many; with 0 everything runs in this process.
            detector: parameters of the detector to set.
            take_over: whether to take the command of a system that is up from a session that has
                it, which can then only look.

        Raises:
            BadParameter: if there is no such system, or there cannot be that many nodes, or it is
                up and its file says other nodes now. Whether there is such a detector, `prepare`
                says.
            NodeError: if the nodes of a system that is up do not answer.
        """
        if not isinstance(system, System):
            system = open_system(
                str(system), acquisition_nodes, processing_nodes, dict(detector or {})
            )
        return cls(system, take_over)

    # Commands

    def prepare(
        self,
        *,
        graph: str | Path | GraphDefinition | None = None,
        output: str | Path = ".",
        name: str = "run",
        overrides: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        policies: Mapping[str, Any] | None = None,
        processing: Begin = "at_once",
        **acquisition: Any,
    ) -> Acquisition:
        """Make everything ready for one run; starts the nodes the first time.

        The one before must have its last frame in the ring (`wait_acquired`); it may still be
        processed and saved.

        Args:
            graph: a graph file, or the name of one that comes with lima2py; the one of the last
                run, with what `update` changed since, if it is not given.
            output: the folder for the files.
            name: what to call the run; file names begin with it.
            overrides: parameters of the graph to replace: `{"view.by": [4, 4]}`.
            metadata: the fields of `Metadata`: title, sample, instrument, user, notes, geometry;
                they go over those of the system file, key by key.
            policies: the fields of `Policies`, what to do when something goes wrong; they go over
                those of the system file.
            processing: when the frames are processed: `at_once`; `when_acquired`, all of them, for
                which the ring must hold them; `when_told` by `SessionRun.process`, likewise.
            acquisition: the fields of `Acquisition`: nb_frames, expo_time, ...

        Returns:
            What the detector will really do.

        Raises:
            BadParameter: what cannot be; nothing is left behind.
            BadCommand: while the detector is busy with another run.
            LimaError: what a node could not do.
        """
        self._refuse_if_closed("prepare")
        self._refuse_if_acquiring("prepare")
        self._graph = definition = self._definition(graph, overrides or {})
        wanted = Wanted(
            uuid.uuid4().hex,
            check_name(name),
            definition,
            os.path.abspath(os.path.expanduser(output)),
            Acquisition.load(acquisition, "acquisition"),
            Metadata.of_run(self.system.metadata, metadata or {}),
            Policies.load({**self.system.policies.plain(), **(policies or {})}, "policies"),
            processing,
        )
        if (before := self._last) is not None and before.prepared:
            before.give_up()
        self.nodes.start(self.system)
        try:
            ready = self.nodes.prepare(wanted)
        except BaseException:
            self.nodes.give_up(wanted.run)
            raise
        self._keep(SessionRun(wanted, ready, self.nodes, self._events, self._totals))
        return Acquisition.load(ready.parameters.hardware["acquisition"], "acquisition")

    def update(self, task: str, **parameters: Any) -> None:
        """Change parameters of a task for the next run: `prepare` without a graph then has them.

        The parameters of a run that is prepared or running stay as they are. Only taps follow at
        once, since nothing that is saved depends on them.

        Raises:
            BadCommand: if no graph was ever prepared.
            BadParameter: if there is no such task or parameter, or a value cannot be.
        """
        self._refuse_if_closed("update")
        if self._graph is None:
            raise BadCommand("the session has no graph yet to update; it can: prepare")
        changes = {f"{task}.{name}": value for name, value in parameters.items()}
        self._graph = self._definition(self._graph, changes)
        changed = self._graph.tasks[task].task.plain()
        for run in self._runs.values():
            run.change_tap(task, changed)

    def start(self) -> SessionRun:
        """Let the prepared run go; returns at once, with the run.

        Raises:
            BadCommand: if none is prepared.
        """
        self._refuse_if_closed("start")
        run = self._run("start")
        if not run.prepared:
            raise run.refusal("start")
        run.start()
        return run

    def trigger(self) -> None:
        """One software trigger.

        Raises:
            BadCommand: if the run is not going, or the detector takes none now.
        """
        self._run("trigger").trigger()

    def log(
        self,
        name: str,
        value: SupportsFloat | str,
        units: str | None = None,
        time: float | None = None,
    ) -> None:
        """Note a value in the logbook of the run: at any time from `prepare` until it is over.

        It stands in the masters as NXlog, with what the run notes there itself: the temperatures of
        the detector, how full the ring is, how fast every node works.

        Args:
            name: of the series: words parted by `/`, `sample/temperature`.
            value: a number or a short text; a series holds the one or the other.
            units: as NeXus writes them: `K`, `mm`; those of the series if not given.
            time: when it was so, in seconds since 1970; now if not given.

        Raises:
            BadCommand: if no run is prepared or going.
            BadParameter: if there can be no such series, or it is of another kind.
        """
        self._run("log").log(name, value, units, time)

    def pause(self) -> None:
        """Acquire nothing until `resume`; what was acquired is processed and saved.

        With software triggers it is these that are refused; a detector that clocks itself must be
        able to hold its clock. Of several acquisition nodes all pause, or none.

        Raises:
            BadCommand: if no run is going, or what triggers the detector cannot be held.
        """
        self._run("pause").pause()

    def resume(self) -> None:
        """Go on with the next frame after a `pause`.

        Raises:
            BadCommand: if the run is not paused.
        """
        self._run("resume").resume()

    def stop(self) -> None:
        """Acquire no more; what was acquired is processed and saved. Returns at once.

        Raises:
            BadCommand: if no run is going.
        """
        self._run("stop").stop()

    def abort(self) -> None:
        """Acquire no more and discard what is in flight; files are closed. Returns at once.

        Raises:
            BadCommand: if no run is going.
        """
        self._run("abort").abort()

    def drain(self, node: str) -> None:
        """Let a processing node leave the run when it has done what it has. Returns at once.

        Raises:
            BadCommand: if no run is going.
            BadParameter: if no such node takes part.
        """
        self._run("drain").drain(node)

    def cancel(self, run: str) -> None:
        """End a run wherever it is: prepared, acquiring, or still processed. Returns at once.

        Args:
            run: its id; one that is over stays as it is.

        Raises:
            BadParameter: if there is no such run.
        """
        if run not in self._runs:
            raise BadParameter(f"run {run}: this session has none of this id")
        self._runs[run].cancel()

    def wait(self, timeout: float | None = None) -> Report:
        """Wait until the run is over and its files are closed.

        Raises:
            BadCommand: if no run was started.
            TimeoutError: if it goes on after `timeout` seconds.
        """
        return self._run("wait").wait(timeout)

    def wait_acquired(self, timeout: float | None = None) -> None:
        """Wait until the last frame is in the ring: the detector is free for the next run.

        Raises:
            BadCommand: if no run was started.
            TimeoutError: if the detector is still busy after `timeout` seconds.
        """
        self._run("wait").wait_acquired(timeout)

    # Looking

    @property
    def runs(self) -> Mapping[str, SessionRun]:
        """All runs by id, the newest last; those that are over, too.

        Of a system that is up also those that other sessions have prepared by now.
        """
        self._recall()
        return MappingProxyType(self._runs)

    @property
    def run(self) -> str:
        """Id of the run that was prepared last; empty before the first one."""
        return "" if self._last is None else self._last.id

    @property
    def plan(self) -> str:
        """The plan of that run, as a table for a person."""
        return "" if self._last is None else self._last.plan

    @property
    def warnings(self) -> list[str]:
        """What may go wrong with that run, in words: a disk that has too little room."""
        return [] if self._last is None else self._last.warnings

    @property
    def state(self) -> State:
        """Where that run is."""
        return self.progress().state

    def progress(self) -> Progress:
        """Where that run is, as seen at the last look (a tenth of a second ago)."""
        return Progress(State.IDLE) if self._last is None else self._last.progress()

    def events(self, timeout: float | None = None) -> Iterator[Event]:
        """What happens to the run, from its start on and as it comes; ends with the run.

        Can be called at any time after `start`, also when the session is closed, by several
        readers; the latest 1000 are kept.

        Args:
            timeout: seconds to wait for the next event.

        Raises:
            BadCommand: if no run was started.
            TimeoutError: if none came in time.
        """
        return self._run("tell its events").events(timeout)

    def view(self) -> View:
        """What its metrics are drawn from; from any thread."""
        last = self._last
        name = "" if last is None else last.name
        return View(self.run, name, self.progress(), self._totals)

    def metrics(self) -> str:
        """The present state in the text format of Prometheus.

        Raises:
            LimaError: if the Prometheus client is not installed.
        """
        return exposition(self.view())

    def tap(self, name: str, timeout: float | None = None) -> Iterator[Frame]:
        """The frames that pass a tap from now on, as they come; ends with the run.

        Frames that were passed over because the reader is slow are simply missing. With several
        nodes the order is nearly, but not strictly, that of the index.

        Args:
            name: of the tap in the graph.
            timeout: seconds to wait for the next frame.

        Raises:
            BadParameter: if the graph has no such tap.
            TimeoutError: if no frame came in time.
        """
        self._refuse_if_closed("look")
        return self._run("look").tap(name, timeout)

    def stream(
        self, name: str, channel: str | None = None, timeout: float | None = None
    ) -> Iterator[Frame]:
        """What a task that reduces frames made of each of them, in their order; ends with the run.

        Can be called at any time after `start`, also when the run is over; the nodes keep the
        latest 64 MiB of every task. No frame is passed over: one that has none is absent.

        Args:
            name: of a task whose product is a table, a vector, or sparse.
            channel: only this column of it; of sparse frames also `count`, how many rows they have.
            timeout: seconds to wait for the next frame.

        Raises:
            BadParameter: if the graph has no such task, or the product no such channel.
            BadCommand: if no run was started.
            NodeError: if all nodes that had the products are lost.
            TimeoutError: if no frame came in time.
        """
        self._refuse_if_closed("look")
        return self._run("stream").stream(name, channel, timeout)

    def close(self) -> None:
        """Abort what runs, end our nodes, leave nothing behind; may be called twice.

        Of a system that is up the nodes stay, and their runs go on.
        """
        if self._closed:
            return
        self._closed = True
        for run in self._runs.values():
            run.close()
        self._events.close()
        self.nodes.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # How it is done

    @property
    def _last(self) -> SessionRun | None:
        self._recall()
        return next(reversed(self._runs.values()), None)

    def _recall(self) -> None:
        """Take up the runs that other sessions have prepared, or started, since."""
        if self._closed or not self.nodes.stays or self.nodes.commands:
            return
        with self._recalling:
            known = [run.id for run in self._runs.values() if not run.prepared]
            for found in self.nodes.recall(known):
                kept = self._runs.get(found.wanted.run)
                if kept is None:
                    self._keep(SessionRun.recalled(found, self.nodes, self._events, self._totals))
                    self._graph = found.wanted.graph
                elif found.state is not State.PREPARED:
                    kept.follow()

    def _keep(self, run: SessionRun) -> None:
        runs = {**self._runs, run.id: run}  # another one: who goes through the last is not torn
        over = [kept for kept in runs.values() if not (kept.prepared or kept.going)]
        for kept in over[: max(0, len(runs) - KEPT_RUNS)]:
            del runs[kept.id]
        self._runs = runs
        for kept in over:
            kept.let_go()

    def _definition(
        self, graph: str | Path | GraphDefinition | None, overrides: Mapping[str, Any]
    ) -> GraphDefinition:
        graph = graph if graph is not None else self._graph
        if graph is None:
            raise BadParameter("graph: is required for the first run of a session")
        if not isinstance(graph, GraphDefinition):
            return load_graph(str(graph), overrides, tuple(self.system.detectors))
        if not overrides:
            return graph
        return parse_graph(graph.text, graph.where, graph.base, overrides, graph.detectors)

    def _refuse_if_closed(self, command: str) -> None:
        if self._closed:
            raise BadCommand(f"the session cannot {command}: it is closed")

    def _refuse_if_acquiring(self, command: str) -> None:
        last = self._last
        if last is not None and last.acquiring:
            self.nodes.confirm()  # if it is another's, this says whose
            raise last.refusal(command)

    def _run(self, command: str) -> SessionRun:
        """The run that was prepared last."""
        if self._last is None:
            raise BadCommand(f"the session cannot {command} while idle; it can: prepare")
        return self._last


def _refuse_elsewhere(system: System) -> None:
    """Refuse a system of which a session could not start all nodes.

    Raises:
        BadParameter: saying who can.
    """
    for _, place in system.places:
        if place.is_elsewhere:
            raise BadParameter(
                f"{system.file or system.system}, node {place.node}, host: {place.host} is not this"
                f" host;  lima2py up {system.file or 'SYSTEM'}  starts it there, over ssh; or start"
                " it there (lima2py node) and write its address here"
            )


def check_name(name: str) -> str:
    """The name, if a run can have it.

    Raises:
        BadParameter: saying what can.
    """
    allowed = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.+@ ")
    if not name.strip() or set(name) - allowed or name.startswith(".") or len(name) > 100:
        raise BadParameter(
            f"name {name!r}: should be 1 to 100 letters, digits, or any of _ - . + @ and blanks,"
            " and not begin with a dot: file names begin with it"
        )
    return name
