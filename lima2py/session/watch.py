"""Watch a run: ask every node where it is, several times a second, until all are done.

Acquisition nodes find out by themselves which processing nodes are lost; this hears of it from
them, and finds what they cannot: that a process has ended, or does not answer, acquisition nodes
among them. The others are told, so that nobody waits for it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any

from lima2py.errors import BadCommand, BadParameter, LimaError, NodeError, did_you_mean
from lima2py.node.life import State, aggregate
from lima2py.session.events import Kind
from lima2py.session.launch import Handle, Tended
from lima2py.session.lost_books import report_of
from lima2py.session.member import SILENCE, Answers, Member
from lima2py.session.monitor import Monitor
from lima2py.session.progress import Progress
from lima2py.session.relief import Relief
from lima2py.session.report import Report

WATCH_EVERY = 0.1
"""Seconds between two looks at every node."""
LOST_TOGETHER = 0.3
"""Seconds in which nodes that died of the same cause are found."""
STRAGGLE = 2.0
"""Seconds after the end of acquisition nodes in which processing nodes should have ended, too."""


class Watch:
    """Looks at every node until a run is over, and tells the others when one is lost.

    Args:
        run: id of the run.
        name: what the user called it.
        acquisition: the acquisition nodes; the first one keeps the books.
        processing: the processing nodes, by rank.
        relief: brings lost processing nodes back.
        monitor: is told what is seen.
        paths: by sink, what its files begin with.
        commands: whether the session may tell the nodes something now, or only looks at them.
        lost: why nodes were lost before.
        staged: whether processing nodes hand on to others.

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
        processing: Mapping[int, Handle],
        relief: Relief,
        monitor: Monitor,
        paths: Mapping[str, str],
        commands: Callable[[], bool] = lambda: True,
        lost: Sequence[str] = (),
        staged: bool = False,
    ):
        self.run = run
        self._name = name
        self._relief = relief
        self._monitor = monitor
        self._paths = paths
        self._commands = commands
        self._lost_before = lost
        self._staged = staged
        self.over = threading.Event()
        self.progress = Progress(State.RUNNING)
        self._memory: dict[str, int] = {}
        self._holdings: dict[str, dict[str, dict[str, int]]] = {}
        self._report: Report | None = None
        self._began = 0.0
        self._acquired_at: float | None = None
        self._closing = threading.Event()
        self._answers: Answers = SimpleQueue()
        self._members = [
            Member(handle, rank, processes, run, self._answers)
            for processes, handles in ((False, dict(enumerate(acquisition))), (True, processing))
            for rank, handle in handles.items()
        ]
        self._thread = threading.Thread(target=self._main, name="watch", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._began = time.monotonic()
        self._thread.start()

    def close(self, abort: bool = True) -> None:
        """Look no more; before that abort what still runs, unless it shall go on."""
        if self._thread.ident is None:
            return
        if abort and not self.over.is_set():
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
        for member in self._processing if self._staged else ():
            if not member.over:
                with suppress(LimaError):  # it is lost: the next look says so
                    member.handle.look("leave", run=self.run, rank=there[name].rank)
        self._monitor.note(Kind.NODE_DRAINED, "it leaves when it has done what it has", name)

    @property
    def of_graph(self) -> dict[int, Handle]:
        """All nodes that ran, or run, the graph, by rank; each once, also if it came again."""
        members = self._processing or self._acquisition
        newest = {member.handle: member.rank for member in members}
        return {rank: handle for handle, rank in newest.items()}

    def report(self) -> Report:
        """What became of the run, once it is over."""
        assert self._report is not None  # noqa: S101 - for the type checker
        return self._report

    @property
    def ended(self) -> bool:
        """Whether nothing more is done: all that it holds may be forgotten."""
        return self.over.is_set() and not self._thread.is_alive()

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
            self._note_memory(member.name, answer)
        return lost

    def _note_memory(self, node: str, status: Mapping[str, Any]) -> None:
        """Remember the most memory that was seen."""
        self._memory[node] = max(self._memory.get(node, 0), status["memory"])
        before = self._holdings.setdefault(node, {})
        for holder, told in status.get("holdings", {}).items():
            peak = max(told["peak"], before.get(holder, told)["peak"])
            before[holder] = {**told, "peak": peak}

    def _lost_by_others(self) -> dict[Member, str]:
        """The processing nodes that an acquisition node has given up: frozen, cut off, hanging.

        If the process has ended, how it did says more than that its connection broke.
        """
        said: dict[int, str] = {}
        for member in self._members:
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
        if not self._commands():
            return  # acquisition nodes give its frames to others by themselves
        for member in lost:
            if isinstance(member.handle, Tended):
                member.handle.kill()  # whatever it still does, its frames go to others
        more: dict[Member, str] = {}
        if reasons := {member.rank: why for member, why in lost.items() if member.processes}:
            told = self._members if self._staged else self._acquisition
            more.update(self._tell(told, "nodes_lost", reasons=reasons))
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
            kind = Kind.NODE_RESTARTED if isinstance(handle, Tended) else Kind.NODE_JOINED
            self._monitor.note(kind, "it takes part again", handle.name)
            member = Member(handle, rank, True, self.run, self._answers)
            self._members.append(member)
            if self._staged:
                gone = {other.rank: other.lost for other in self._processing if other.lost}
                self._tell([member], "nodes_lost", reasons=gone)
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
        if now > self._acquired_at + STRAGGLE and self._commands():
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
        told: dict[str, Any] | None = None
        if not lead.lost or not self._commands():  # it may only have been silent for an onlooker
            try:
                told = lead.handle.look("report", timeout=SILENCE, run=self.run)
            except LimaError as error:
                lead.lost = lead.lost or str(error)
        if told is None or told["outcome"] is None:
            told = self._without_books()
        state = State.FAULT if told["outcome"] == "failed" else State.IDLE
        self.progress = self._monitor.look(self._progress(state))
        lost = [member.lost for member in self._members if member.lost]
        self._report = Report.make(
            told,
            self._memory,
            self._holdings,
            self._monitor.latency(),
            [*self._lost_before, *lost],
        )
        self._monitor.end(self._report)
        self.over.set()

    def _without_books(self) -> dict[str, Any]:
        """The report when the node that keeps the books is gone."""
        seen = self.progress
        paths, may_write = self._paths, self._commands()
        told = report_of(self.run, self._name, paths, seen.asked, seen.acquired, may_write)
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
