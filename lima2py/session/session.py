"""The one object a user holds: it prepares, starts, stops, waits and looks, over all nodes.

    with Session.open("simulator") as lima:
        lima.prepare(nb_frames=100, graph="first_light", output="data", name="scan42")
        lima.start()
        for frame in lima.tap("live"):
            print(frame.index, frame.data.sum())
        print(lima.wait())

Runs live in the nodes. The session only watches them: a thread of its own asks every node for its
status several times a second, which is the heartbeat too, and tells the others when one is lost.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, SupportsFloat

from lima2py.acquisition import Acquisition
from lima2py.errors import BadCommand, BadParameter, LimaError, did_you_mean
from lima2py.frame import Frame
from lima2py.graph.definition import GraphDefinition, load_graph, parse_graph
from lima2py.metadata import Metadata
from lima2py.node.life import State
from lima2py.policies import Policies
from lima2py.session.fleet import Fleet
from lima2py.session.follow import Ranges, frames_of, streamed, tapped
from lima2py.session.report import Report
from lima2py.session.system import System, open_system
from lima2py.session.watch import Progress, Watch

STREAM_PATIENCE = 60.0
"""Seconds a stream that has come to its end waits for the report of the run."""


class Session:
    """A handle on a system of nodes: see `Session.open`."""

    def __init__(self, system: System):
        self.system = system
        self.plan = ""
        """The plan of the prepared run, as a table for a person."""
        self.warnings: list[str] = []
        """What may go wrong with the prepared run, in words: a disk that has too little room."""
        self.run = ""
        """Id of the prepared, running or last run."""
        self._name = ""
        self.nodes = Fleet()
        self._prepared = False
        self._watch: Watch | None = None
        self._graph: GraphDefinition | None = None
        self._taps: list[str] = []
        self._closed = False

    @classmethod
    def open(
        cls,
        system: str | Path | System = "simulator",
        *,
        acquisition_nodes: int = 1,
        processing_nodes: int = 0,
        detector: Mapping[str, Any] | None = None,
    ) -> Self:
        """A session on a system of nodes.

        Args:
            system: a system file; or a detector, by name or by its file, for a system on this host.
            acquisition_nodes: how many, for a system on this host.
            processing_nodes: how many; with 0 everything runs in this process.
            detector: parameters of the detector to set.

        Raises:
            BadParameter: if there is no such system, or there cannot be that many nodes. Whether
                there is such a detector, `prepare` says.
        """
        if not isinstance(system, System):
            system = open_system(
                str(system), acquisition_nodes, processing_nodes, dict(detector or {})
            )
        return cls(system)

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
        **acquisition: Any,
    ) -> Acquisition:
        """Make everything ready for one run; starts the nodes the first time.

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
            acquisition: the fields of `Acquisition`: nb_frames, expo_time, ...

        Returns:
            What the detector will really do.

        Raises:
            BadParameter: what cannot be; nothing is left behind.
            BadCommand: while another run goes on.
            LimaError: what a node could not do.
        """
        self._refuse_if_running("prepare")
        self._graph = definition = self._definition(graph, overrides or {})
        requested = Acquisition.load(acquisition, "acquisition")
        told = Metadata.of_run(self.system.metadata, metadata or {})
        chosen = Policies.load({**self.system.policies.plain(), **(policies or {})}, "policies")
        check_name(name)
        if self._prepared:
            self._give_up()
        self.nodes.start(self.system)
        self._watch = None
        self.run = uuid.uuid4().hex
        self._name = name
        try:
            lead = self.nodes.prepare(
                self.run,
                name,
                definition,
                os.path.abspath(os.path.expanduser(output)),
                requested,
                told,
                chosen,
            )
            hardware = Acquisition.load(lead.parameters.hardware["acquisition"], "acquisition")
        except BaseException:
            self._give_up()
            raise
        self.plan = lead.plan
        self.warnings = lead.warnings
        self._taps = lead.taps
        self._prepared = True
        return hardware

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
        over = self._watch is None or self._watch.over.is_set()
        if task in self._taps and (self._prepared or not over):
            changed = self._graph.tasks[task].task.plain()
            for handle in self.nodes.of_graph:
                handle.look("change_tap", run=self.run, task=task, parameters=changed)

    def start(self) -> None:
        """Let the prepared run go; returns at once.

        Raises:
            BadCommand: if none is prepared.
        """
        self._refuse_if_running("start")
        if not self._prepared:
            raise BadCommand(f"the session cannot start while {self.state.value}; it can: prepare")
        self._prepared = False
        try:
            for handle in [*self.nodes.processing, *reversed(self.nodes.acquisition)]:
                handle.call("start", run=self.run)
        except LimaError:
            self._give_up()
            raise
        self._watch = Watch(self.run, self._name, self.nodes.acquisition, self.nodes.processing)
        self._watch.start()

    def trigger(self) -> None:
        """One software trigger.

        Raises:
            BadCommand: if the run is not going, or the detector takes none now.
        """
        self._running("trigger")
        for handle in self.nodes.acquisition:
            handle.look("trigger")

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
        if not self._prepared:
            self._running("log")
        plain = getattr(value, "item", lambda: value)()  # a numpy scalar
        if not isinstance(plain, (int, float, str)):
            raise BadParameter(f"log {name}: should be a number or text; given: {plain!r}")
        lead = self.nodes.acquisition[0]
        lead.look("log", run=self.run, name=str(name), value=plain, units=units, time=time)

    def stop(self) -> None:
        """Acquire no more; what was acquired is processed and saved. Returns at once.

        Raises:
            BadCommand: if no run is going.
        """
        watch = self._running("stop")
        watch.tell("stop")

    def abort(self) -> None:
        """Acquire no more and discard what is in flight; files are closed. Returns at once.

        Raises:
            BadCommand: if no run is going.
        """
        watch = self._running("abort")
        watch.tell("abort")

    def wait(self, timeout: float | None = None) -> Report:
        """Wait until the run is over and its files are closed.

        Raises:
            BadCommand: if no run was started.
            TimeoutError: if it goes on after `timeout` seconds.
        """
        if self._watch is None:
            raise BadCommand(
                f"the session cannot wait while {self.state.value}: no run was started"
            )
        if not self._watch.over.wait(timeout):
            done = self.progress()
            raise TimeoutError(
                f"the run goes on after {timeout:g} s: {done.settled} of"
                f" {done.asked or 'endless'} frames are done"
            )
        return self._watch.report()

    # Looking

    @property
    def state(self) -> State:
        """Where the system is."""
        return self.progress().state

    def progress(self) -> Progress:
        """Where the run is, as seen at the last look (a tenth of a second ago)."""
        if self._prepared:
            return Progress(State.PREPARED)
        return self._watch.progress if self._watch is not None else Progress(State.IDLE)

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
        if name not in self._taps:
            raise BadParameter(f'tap "{name}": the graph has no such tap'
                               f"{did_you_mean(name, self._taps)}")  # fmt: skip
        return tapped(tuple(self.nodes.of_graph), self.run, name, timeout)

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
        watch = self._watch
        if watch is None:
            raise BadCommand("the session has nothing to stream yet; it can: prepare, start")

        def account() -> tuple[Ranges, int]:
            if not watch.over.wait(STREAM_PATIENCE):
                return (), 0
            return watch.report().absences, watch.progress.acquired

        def done_to() -> int:
            return watch.progress.done_to

        nodes = tuple(self.nodes.of_graph)  # the next run may start some of them again
        blocks = streamed(nodes, self.run, name, timeout, done_to, account)
        return frames_of(blocks, name, channel)

    def close(self) -> None:
        """Abort what runs, end our nodes, leave nothing behind; may be called twice."""
        if self._closed:
            return
        self._closed = True
        if self._watch is not None:
            self._watch.close()
        if self._prepared:
            self._give_up()
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

    def _give_up(self) -> None:
        self._prepared = False
        self.nodes.give_up(self.run)

    def _definition(
        self, graph: str | Path | GraphDefinition | None, overrides: Mapping[str, Any]
    ) -> GraphDefinition:
        graph = graph if graph is not None else self._graph
        if graph is None:
            raise BadParameter("graph: is required for the first run of a session")
        if not isinstance(graph, GraphDefinition):
            return load_graph(str(graph), overrides)
        if not overrides:
            return graph
        return parse_graph(graph.text, graph.where, graph.base, overrides)

    def _refuse_if_closed(self, command: str) -> None:
        if self._closed:
            raise BadCommand(f"the session cannot {command}: it is closed")

    def _refuse_if_running(self, command: str) -> None:
        self._refuse_if_closed(command)
        if self._watch is not None and not self._watch.over.is_set():
            raise BadCommand(
                f"the session cannot {command} while {self.state.value};"
                " it can: stop, abort, trigger, wait"
            )

    def _running(self, command: str) -> Watch:
        if self._watch is None or self._watch.over.is_set():
            can = "prepare, start" if self._prepared else "prepare"
            raise BadCommand(
                f"the session cannot {command} while {self.state.value}; it can: {can}"
            )
        return self._watch


def check_name(name: str) -> None:
    """Refuse what cannot be the name of a run.

    Raises:
        BadParameter: saying what can.
    """
    allowed = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.+@ ")
    if not name.strip() or set(name) - allowed or name.startswith(".") or len(name) > 100:
        raise BadParameter(
            f"name {name!r}: should be 1 to 100 letters, digits, or any of _ - . + @ and blanks,"
            " and not begin with a dot: file names begin with it"
        )
