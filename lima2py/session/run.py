"""One run of a session: commands to it, what can be seen of it, and what became of it.

The detector is free for the next run as soon as the last frame of this one is in the ring; then
several runs go on at a time, each with its own ring, nodes' threads, files and report.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsFloat

from lima2py.errors import BadCommand, BadParameter, LimaError, NodeError, did_you_mean
from lima2py.frame import Frame
from lima2py.node.life import State, allowed
from lima2py.session.call import Wanted
from lima2py.session.events import Event, Events
from lima2py.session.fleet import Fleet
from lima2py.session.follow import Ranges, frames_of, streamed, tapped
from lima2py.session.launch import Handle
from lima2py.session.monitor import Monitor
from lima2py.session.past import Past
from lima2py.session.progress import Progress
from lima2py.session.recall import Recalled
from lima2py.session.relief import Relief
from lima2py.session.report import Report
from lima2py.session.totals import Totals
from lima2py.session.watch import Watch
from lima2py.storage.care.recover import recover_run

if TYPE_CHECKING:
    from lima2py.node.orders import AcquisitionReady

STREAM_PATIENCE = 60.0
"""Seconds a stream that has come to its end waits for the report of the run."""
LOOK_EVERY = 0.01
"""Seconds between two looks at whether the detector is free."""


class SessionRun:
    """A run that was prepared; see `Session.prepare`.

    Args:
        wanted: what was asked for.
        ready: what the acquisition node that keeps the books answered.
        nodes: of the session.
        events: of the session.
        totals: of the session.

    Attributes:
        id: 32 hexadecimal digits.
        name: what the user calls it.
        plan: of the graph, as a table for a person.
        warnings: what may go wrong, in words: a disk that has too little room.
    """

    def __init__(
        self,
        wanted: Wanted,
        ready: AcquisitionReady,
        nodes: Fleet,
        events: Events,
        totals: Totals,
    ):
        self.id = wanted.run
        self.name = wanted.name
        self.plan = ready.plan
        self.warnings = ready.warnings
        self._restarts = wanted.policies.restarts
        self._taps = ready.taps
        self._paths = ready.paths
        self._nodes = nodes
        self._events = events
        self._totals = totals
        self._where = ready.where
        self._acquisition = nodes.acquirers(wanted.graph.companions)
        self._processing = nodes.members(wanted.run)
        self._of_graph: Mapping[int, Handle] = self._processing or dict(
            enumerate(self._acquisition)
        )
        self._lost: list[str] = []
        self._watch: Watch | Past | None = None
        self._given_up = False

    def __repr__(self) -> str:
        return f"<run {self.name!r} {self.id[:8]}: {self.state.value}>"

    # Commands

    def start(self) -> None:
        """Let it go; returns at once.

        Raises:
            BadCommand: if it was started, or given up.
            NodeError: if a node is lost; the run is given up then.
        """
        if not self.prepared:
            raise self.refusal("start")
        try:
            for handle in [*self._processing.values(), *reversed(self._acquisition)]:
                handle.call("start", run=self.id)
        except LimaError as error:
            self.give_up()
            self._clear_away()
            if isinstance(error, NodeError):
                raise NodeError(f"{error}; the run is given up: prepare it again") from None
            raise
        self.follow()

    @classmethod
    def recalled(cls, found: Recalled, nodes: Fleet, events: Events, totals: Totals) -> SessionRun:
        """One that another session has prepared, and maybe started."""
        run = cls(found.wanted, found.ready, nodes, events, totals)
        run._processing = found.members
        run._lost = found.lost
        if nodes.processing:
            run._of_graph = found.members
        if found.state is not State.PREPARED:
            run.follow()
        return run

    def follow(self) -> None:
        """Look at it: it was started, by us or by another session."""
        self._watch = watch = Watch(
            self.id,
            self.name,
            self._acquisition,
            self._processing,
            Relief(self._nodes, self.id, self._restarts),
            Monitor(self.id, self.name, self._events, self._totals),
            self._paths,
            lambda: self._nodes.commands,
            self._lost,
            bool(self._where),
        )
        watch.start()

    def trigger(self) -> None:
        """One software trigger, of the main detector.

        Raises:
            BadCommand: if it is not going, or the detector takes none now.
        """
        self._going("trigger")
        for handle in self._nodes.acquirers(()):
            handle.look("trigger", run=self.id)

    def log(
        self,
        name: str,
        value: SupportsFloat | str,
        units: str | None = None,
        time: float | None = None,
    ) -> None:
        """Note a value in the logbook of the run: at any time from `prepare` until it is over.

        See `Session.log`.
        """
        if not self.prepared:
            self._going("log")
        plain = getattr(value, "item", lambda: value)()  # a numpy scalar
        if not isinstance(plain, (int, float, str)):
            raise BadParameter(f"log {name}: should be a number or text; given: {plain!r}")
        lead = self._acquisition[0]
        lead.look("log", run=self.id, name=str(name), value=plain, units=units, time=time)

    def pause(self) -> None:
        """Acquire nothing until `resume`: see `Session.pause`."""
        self._all_or_none("pause", "resume")

    def resume(self) -> None:
        """Go on with the next frame after a `pause`: see `Session.resume`."""
        self._all_or_none("resume", "pause")

    def process(self) -> None:
        """Process what waits in the ring, of a run whose processing was put off until told.

        Raises:
            BadCommand: if it is not going.
        """
        self._tell("process")

    def stop(self) -> None:
        """Acquire no more; what was acquired is processed and saved. Returns at once.

        Raises:
            BadCommand: if it is not going.
        """
        self._tell("stop")

    def abort(self) -> None:
        """Acquire no more and discard what is in flight; files are closed. Returns at once.

        Raises:
            BadCommand: if it is not going.
        """
        self._tell("abort")

    def cancel(self) -> None:
        """End it wherever it is: one that is prepared is given up, one that goes on is aborted.

        One that is over stays as it is.
        """
        if self.prepared:
            self.give_up()
        elif self.going:
            self.abort()

    def drain(self, node: str) -> None:
        """Let a processing node leave the run when it has done what it has. Returns at once.

        Raises:
            BadCommand: if it is not going.
            BadParameter: if no such node takes part.
        """
        watch = self._going("drain")
        self._nodes.confirm()
        watch.leave(node)

    def change_tap(self, task: str, parameters: Mapping[str, Any]) -> None:
        """Give a tap other parameters, if it has this tap and is not over."""
        if task in self._taps and (self.prepared or self.going):
            for handle in self._of_task(task).values():
                handle.look("change_tap", run=self.id, task=task, parameters=parameters)

    def give_up(self) -> None:
        """Undo what was prepared."""
        self._given_up = True
        self._nodes.give_up(self.id)

    def let_go(self) -> None:
        """Hold no more of a run that is over than what became of it."""
        if isinstance(self._watch, Watch) and self._watch.ended:
            self._watch = Past(self._watch)

    def close(self) -> None:
        """Look no more; before that end it, unless its nodes stay when the session leaves."""
        if self._watch is not None:
            self._watch.close(abort=not self._nodes.stays)
        elif not (self._given_up or self._nodes.stays):
            self.give_up()

    # Waiting

    def wait(self, timeout: float | None = None) -> Report:
        """Wait until it is over and its files are closed.

        Raises:
            BadCommand: if it was not started.
            TimeoutError: if it goes on after `timeout` seconds.
        """
        watch = self._started("wait")
        if not watch.over.wait(timeout):
            done = watch.progress
            raise TimeoutError(
                f"the run goes on after {timeout:g} s: {done.settled} of"
                f" {done.asked or 'endless'} frames are done"
            )
        return watch.report()

    def wait_acquired(self, timeout: float | None = None) -> None:
        """Wait until its last frame is in the ring: the detector is free for the next run.

        Raises:
            BadCommand: if it was not started.
            TimeoutError: if the detector is still busy after `timeout` seconds.
        """
        watch = self._started("wait")
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.acquiring:
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(
                    f"the detector is still busy after {timeout:g} s:"
                    f" {watch.progress.acquired} frames were acquired"
                )
            watch.over.wait(LOOK_EVERY)

    # Looking

    @property
    def prepared(self) -> bool:
        """Whether it can be started."""
        return self._watch is None and not self._given_up

    @property
    def going(self) -> bool:
        """Whether it was started and is not over."""
        return self._watch is not None and not self._watch.over.is_set()

    @property
    def acquiring(self) -> bool:
        """Whether it needs the detector still, asked of the nodes now."""
        if not self.going:
            return False
        for handle in self._acquisition:
            with suppress(NodeError):  # it is lost: the watch sees to that
                if handle.look("acquiring", run=self.id):
                    return True
        return False

    @property
    def state(self) -> State:
        """Where it is."""
        return self.progress().state

    @property
    def report(self) -> Report | None:
        """What became of it; None before it is over."""
        return None if self._watch is None or self.going else self._watch.report()

    def progress(self) -> Progress:
        """Where it is, as seen at the last look (a tenth of a second ago)."""
        if self._watch is not None:
            return self._watch.progress
        return Progress(State.IDLE if self._given_up else State.PREPARED)

    def events(self, timeout: float | None = None) -> Iterator[Event]:
        """What happens to it, from its start on and as it comes: see `Session.events`."""
        self._started("tell its events")
        return self._events.of_run(self.id, timeout)

    def of_graph(self) -> Mapping[int, Handle]:
        """The nodes that run its graph, by rank."""
        return self._of_graph if self._watch is None else self._watch.of_graph

    def tap(self, name: str, timeout: float | None = None) -> Iterator[Frame]:
        """The frames that pass a tap from now on: see `Session.tap`."""
        if name not in self._taps:
            raise BadParameter(f'tap "{name}": the graph has no such tap'
                               f"{did_you_mean(name, self._taps)}")  # fmt: skip
        return tapped(lambda: self._of_task(name), self.id, name, timeout, self._is_over)

    def stream(
        self, name: str, channel: str | None = None, timeout: float | None = None
    ) -> Iterator[Frame]:
        """What a task that reduces frames made of each of them: see `Session.stream`."""
        watch = self._started("stream")

        def account() -> tuple[Ranges, int]:
            if not watch.over.wait(STREAM_PATIENCE):
                return (), 0
            return watch.report().absences, watch.progress.acquired

        def done_to() -> int:
            return watch.progress.done_to

        def nodes() -> Mapping[int, Handle]:
            return self._of_task(name)

        blocks = streamed(nodes, self.id, name, timeout, self._is_over, done_to, account)
        return frames_of(blocks, name, channel)

    # How it is done

    def _of_task(self, task: str) -> Mapping[int, Handle]:
        """The nodes that run a task, by rank."""
        names = self._where.get(task)
        return {rank: handle for rank, handle in self.of_graph().items()
                if names is None or handle.name in names}  # fmt: skip

    def _clear_away(self) -> None:
        """Remove the files, without a frame, of a node that was lost before the run began."""
        with suppress(LimaError):  # then they stay, and whoever wants their names is told
            recover_run([Path(path) for path in dict.fromkeys(self._paths.values())], self.id)

    def _is_over(self) -> bool:
        return not (self.prepared or self.going)

    def _tell(self, command: str) -> None:
        """Give a command to all acquisition nodes that can still obey it."""
        watch = self._going(command)
        self._nodes.confirm()
        watch.tell(command)

    def _all_or_none(self, command: str, opposite: str) -> None:
        """Give a command to all acquisition nodes; where one refuses, take it back."""
        self._going(command)
        obeyed: list[Handle] = []
        try:
            for handle in self._acquisition:
                handle.look(command, run=self.id)
                obeyed.append(handle)
        except LimaError:
            for handle in obeyed:
                with suppress(LimaError):  # it has ended, or is lost: the watch sees it
                    handle.look(opposite, run=self.id)
            raise

    def _started(self, command: str) -> Watch | Past:
        if self._watch is None:
            raise self.refusal(command)
        return self._watch

    def _going(self, command: str) -> Watch:
        watch = self._started(command)
        if isinstance(watch, Past) or watch.over.is_set():
            raise self.refusal(command)
        return watch

    def refusal(self, command: str) -> BadCommand:
        """Why a command is not possible now, and what is."""
        state = self.state
        can = ["prepare"]
        if self.prepared:
            can = ["prepare", "start"]
        elif self.going:
            triggers = ["trigger"] * (state is State.RUNNING)
            can = [*allowed(state), "abort", *triggers, "wait"]
        return BadCommand(
            f"the session cannot {command} while {state.value}; it can: {', '.join(can)}"
        )
