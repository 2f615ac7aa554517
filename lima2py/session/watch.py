"""Watch a run: ask every node where it is, several times a second, until all are done.

Acquisition nodes find out by themselves which processing nodes are lost; this hears of it from
them, and finds what they cannot: that a process has ended, or does not answer, acquisition nodes
among them. The others are told, so that nobody waits for it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

from lima2py.errors import BadCommand, BadParameter, LimaError, NodeError, did_you_mean
from lima2py.node.life import State, aggregate
from lima2py.session.events import Kind
from lima2py.session.launch import Child, Handle
from lima2py.session.lost_books import report_of
from lima2py.session.member import SILENCE, Answers, Member
from lima2py.session.monitor import Monitor
from lima2py.session.relief import Relief
from lima2py.session.report import Report

WATCH_EVERY = 0.1
"""Seconds between two looks at every node."""
LOST_TOGETHER = 0.3
"""Seconds in which nodes that died of the same cause are found."""
STRAGGLE = 2.0
"""Seconds after the end of acquisition nodes in which processing nodes should have ended, too."""


@dataclass(frozen=True)
class Progress:
    """Where a run is.

    Attributes:
        state: of the whole system.
        asked: frames asked for, 0 if endless.
        acquired: frames the detector has delivered.
        settled: frames with a fate.
        done_to: the number of the first frame without one.
        counts: frames by fate so far.
        rate: frames that got a fate, per second, over the last seconds.
        lag: frames acquired that have no fate yet.
        lag_seconds: the age of the oldest block that is not settled.
        silent_for: seconds since the detector gave a frame, if one should have come; else 0.
        frame_bytes: bytes of one raw frame.
        ring: the fullest ring, 0 to 1.
        nodes: the status of every node, by name; with the rates at which its counters grow.
    """

    state: State
    asked: int = 0
    acquired: int = 0
    settled: int = 0
    done_to: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)
    rate: float = 0.0
    lag: int = 0
    lag_seconds: float = 0.0
    silent_for: float = 0.0
    frame_bytes: int = 0
    ring: float = 0.0
    nodes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


class Watch:
    """Looks at every node until a run is over, and tells the others when one is lost.

    Args:
        run: id of the run.
        name: what the user called it.
        acquisition: the acquisition nodes; the first one keeps the books.
        processing: the processing nodes, in the order of their ranks.
        relief: brings lost processing nodes back.
        monitor: is told what is seen.
        paths: by sink, what its files begin with.

    Attributes:
        run: see above.
        over: set when every node has ended its part, or is lost.
        progress: where the run is, as seen at the last look.
    """

    def __init__(
        self,
        run: str,
        name: str,
        acquisition: Sequence[Handle],
        processing: Sequence[Handle],
        relief: Relief,
        monitor: Monitor,
        paths: Mapping[str, str],
    ):
        self.run = run
        self._name = name
        self._relief = relief
        self._monitor = monitor
        self._paths = paths
        self._latency: dict[str, dict[str, float]] = {}
        self.over = threading.Event()
        self.progress = Progress(State.RUNNING)
        self._memory: dict[str, int] = {}
        self._told: dict[str, Any] | None = None
        self._began = 0.0
        self._acquired_at: float | None = None
        self._closing = threading.Event()
        self._answers: Answers = SimpleQueue()
        self._members = [
            Member(handle, rank, processes, run, self._answers)
            for processes, handles in ((False, acquisition), (True, processing))
            for rank, handle in enumerate(handles)
        ]
        self._thread = threading.Thread(target=self._main, name="watch", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._began = time.monotonic()
        self._thread.start()

    def close(self) -> None:
        """Abort what still runs, and look no more."""
        if self._thread.ident is None:
            return
        if not self.over.is_set():
            self.tell("abort")
            self.over.wait(SILENCE)
        self._closing.set()
        self._thread.join()

    def tell(self, command: str, **parameters: Any) -> None:
        """Give a command to every living acquisition node."""
        for member in self._acquisition:
            if not member.lost:
                try:
                    member.handle.look(command, run=self.run, **parameters)
                except (BadCommand, NodeError):
                    continue  # it is over there already, or gone: the next look says which

    def leave(self, name: str) -> None:
        """Let a processing node leave in order.

        Raises:
            BadParameter: if no such node takes part.
        """
        there = {member.name: member for member in self._processing if not member.over}
        if name not in there:
            raise BadParameter(f"node {name}: takes no part in processing now"
                               f"{did_you_mean(name, there)}")  # fmt: skip
        self.tell("leave", rank=there[name].rank)
        self._monitor.note(Kind.NODE_DRAINED, "it leaves when it has done what it has", name)

    @property
    def of_graph(self) -> dict[int, Handle]:
        """All nodes that ran, or run, the graph, by rank; each once, also if it came again."""
        members = self._processing or self._acquisition
        newest = {member.handle: member.rank for member in members}
        return {rank: handle for handle, rank in newest.items()}

    def report(self) -> Report:
        """What became of the run, once it is over."""
        assert self._told is not None  # noqa: S101 - for the type checker
        lost = [member.lost for member in self._members if member.lost]
        return Report.make(self._told, dict(self._memory), self._latency, lost)

    @property
    def _acquisition(self) -> list[Member]:
        return [member for member in self._members if not member.processes]

    @property
    def _processing(self) -> list[Member]:
        return [member for member in self._members if member.processes]

    @property
    def _living(self) -> list[Member]:
        return [member for member in self._members if not member.lost]

    def _main(self) -> None:
        try:
            self._watch()
        finally:
            self._relief.end()
            for member in self._members:
                member.end()

    def _watch(self) -> None:
        while not self._closing.is_set():
            going = [member for member in self._living if not member.over]
            lost = self._look(going, WATCH_EVERY)
            if lost:  # what died with it, its host, say?
                others = [member for member in going if member not in lost]
                lost.update(self._look(others, LOST_TOGETHER))
            self._lose({**self._lost_by_others(), **lost})
            self._welcome()
            if all(member.over for member in self._acquisition):
                self._relief.end()
                self._give_up_stragglers()
            if all(member.over for member in self._members):
                self._end()
                return
            states = [member.state for member in self._living if member.state is not None]
            self.progress = self._monitor.look(self._progress(aggregate(states)))
            self._closing.wait(WATCH_EVERY)

    def _look(self, members: Sequence[Member], patience: float) -> dict[Member, str]:
        """Ask nodes where they are; why those are lost that are found to be by now.

        Args:
            members: whom to ask; one that has not answered the last time is not asked again.
            patience: seconds to wait for answers; who is late is taken note of at the next look.
        """
        for member in members:
            member.ask()
        lost: dict[Member, str] = {}
        until = time.monotonic() + patience
        while any(member.asked for member in members):
            try:
                member, answer = self._answers.get(timeout=max(0.0, until - time.monotonic()))
            except Empty:
                break
            member.asked = False
            if isinstance(answer, LimaError):
                if member.processes and not isinstance(answer, NodeError):
                    member.gone = True
                elif not member.lost:
                    lost[member] = _why_lost(member, answer)
                continue
            member.status = answer
            self._memory[member.name] = max(self._memory.get(member.name, 0), answer["memory"])
        return lost

    def _lost_by_others(self) -> dict[Member, str]:
        """The processing nodes that an acquisition node has given up: frozen, cut off, hanging.

        If the process has ended, how it did says more than that its connection broke.
        """
        said: dict[int, str] = {}
        for member in self._acquisition:
            said.update(member.status.get("lost", {}))
        return {
            member: _how_it_ended(member) or said[member.rank]
            for member in self._processing
            if member.rank in said and not member.lost
        }

    def _lose(self, lost: Mapping[Member, str]) -> None:
        """Tell the others which nodes are lost, of those lost together all at once."""
        if not lost:
            return
        for member, why in lost.items():
            member.lost = why
            self._monitor.note(Kind.NODE_LOST, why, member.name)
            if isinstance(member.handle, Child):
                member.handle.kill()  # whatever it still does, its frames go to others
        more: dict[Member, str] = {}
        if reasons := {member.rank: why for member, why in lost.items() if member.processes}:
            more.update(self._tell(self._acquisition, "nodes_lost", reasons=reasons))
        for member in lost:
            if not member.processes:
                more.update(self._tell(self._members, "source_lost", rank=member.rank))
        for member in lost:
            if member.processes and not all(other.over for other in self._acquisition):
                self._relieve(member)
        self._lose(more)

    def _relieve(self, member: Member) -> None:
        if why_not := self._relief.send(member.handle):
            member.lost = f"{member.lost}; {why_not}"

    def _welcome(self) -> None:
        """Nodes that have come back are members, too."""
        for handle, rank, trouble in self._relief.collect():
            if trouble:
                self._monitor.note(Kind.NODE_LOST, f"it did not come back: {trouble}", handle.name)
                continue
            kind = Kind.NODE_RESTARTED if isinstance(handle, Child) else Kind.NODE_JOINED
            self._monitor.note(kind, "it takes part again", handle.name)
            member = Member(handle, rank, True, self.run, self._answers)
            self._members.append(member)
            for source in self._acquisition:
                if source.lost:
                    self._tell([member], "source_lost", rank=source.rank)
            self._look([member], LOST_TOGETHER)

    def _tell(self, others: Sequence[Member], command: str, **parameters: Any) -> dict[Member, str]:
        """Tell those that are not lost; why those are that turn out to be."""
        lost = {}
        for other in others:
            if not other.lost:
                try:
                    other.handle.look(command, timeout=SILENCE, run=self.run, **parameters)
                except NodeError as error:
                    lost[other] = str(error)
                except LimaError:
                    other.gone = other.processes  # of the others the next look tells
        return lost

    def _give_up_stragglers(self) -> None:
        """Processing nodes that were not told the end: those who came, or came back, too late."""
        now = time.monotonic()
        self._acquired_at = self._acquired_at or now
        if now > self._acquired_at + STRAGGLE:
            for member in self._living:
                if not member.over:
                    with suppress(LimaError):  # if it is lost, the next look says so
                        member.handle.call("give_up", timeout=SILENCE, run=self.run)

    def _progress(self, state: State) -> Progress:
        sources = [member.status for member in self._acquisition if member.status]
        counts: dict[str, int] = {}
        whole = [status for status in sources if status["whole"]]
        for status in whole or sources:
            for word, number in status["counts"].items():
                counts[word] = counts.get(word, 0) + number
        acquired = max((status["acquired"] for status in sources), default=0)
        settled = sum(status["settled"] for status in sources)
        return Progress(
            state=state,
            asked=max((status["asked"] for status in sources), default=0),
            acquired=acquired,
            settled=settled,
            done_to=min(
                (
                    member.status["done_to"]
                    for member in self._acquisition
                    if member.status and not member.lost
                ),
                default=0,
            ),
            counts=counts,
            lag=max(0, acquired - settled),
            lag_seconds=max((status["lag_seconds"] for status in sources), default=0.0),
            silent_for=max((status["silent_for"] for status in sources), default=0.0),
            frame_bytes=max((status["frame_bytes"] for status in sources), default=0),
            ring=max(
                (status["slots_used"] / status["slots"] for status in sources if status["slots"]),
                default=0.0,
            ),
            nodes={member.name: member.status for member in self._members if member.status},
        )

    def _end(self) -> None:
        lead = self._acquisition[0]
        if not lead.lost:
            try:
                self._told = lead.handle.look("report", timeout=SILENCE, run=self.run)
            except LimaError as error:
                lead.lost = str(error)
        if self._told is None:
            self._told = self._without_books()
        failed = self._told["outcome"] == "failed"
        self.progress = self._monitor.look(self._progress(State.FAULT if failed else State.IDLE))
        self._latency = self._monitor.latency()
        self._monitor.end(self.report())
        self.over.set()

    def _without_books(self) -> dict[str, Any]:
        """The report when the node that keeps the books is gone."""
        seen = self.progress
        told = report_of(self.run, self._name, self._paths, seen.asked, seen.acquired)
        for member in self._processing:  # what they would have told it
            told["errors"] += member.status.get("errors", ())
        told["seconds"] = time.monotonic() - self._began
        return told


def _why_lost(member: Member, answer: LimaError) -> str:
    """In words, from what a node answered."""
    if isinstance(answer, BadCommand):
        return f"node {member.name} was lost: it was started again, and knows nothing of the run"
    return str(answer)


def _how_it_ended(member: Member) -> str:
    """In words; empty if nobody here knows, or it lives."""
    try:
        member.handle.check_alive()
    except NodeError as error:
        return str(error)
    return ""
