"""Watch a run: ask every node where it is, several times a second, until all are done.

This is the heartbeat, too. A node that died, or does not answer, is lost: the others are told, so
that nobody waits for it.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from lima2py.errors import BadCommand, LimaError, NodeError, in_words
from lima2py.frame import Fate
from lima2py.node.life import State, aggregate
from lima2py.session.launch import Child, Handle
from lima2py.session.report import Report

WATCH_EVERY = 0.1
"""Seconds between two looks at every node."""
SILENCE = 5.0
"""Seconds a node may take to answer a look; then it counts as lost."""
_OVER = (State.IDLE, State.FAULT)


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
        frame_bytes: bytes of one raw frame.
        ring: the fullest ring, 0 to 1.
        nodes: the status of every node, by name.
    """

    state: State
    asked: int = 0
    acquired: int = 0
    settled: int = 0
    done_to: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)
    frame_bytes: int = 0
    ring: float = 0.0
    nodes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


class Watch:
    """Looks at every node until a run is over, and tells the others when one is lost.

    Args:
        run: id of the run.
        name: what the user called it.
        acquisition: the acquisition nodes; the first one keeps the books.
        processing: the processing nodes.

    Attributes:
        over: set when every node has ended its part, or is lost.
        progress: where the run is, as seen at the last look.
    """

    def __init__(self, run: str, name: str, acquisition: list[Handle], processing: list[Handle]):
        self._run = run
        self._name = name
        self.over = threading.Event()
        self.progress = Progress(State.RUNNING)
        self._acquisition = acquisition
        self._processing = processing
        self._lost: dict[str, str] = {}
        self._memory: dict[str, int] = {}
        self._status: dict[str, dict[str, Any]] = {}
        self._told: dict[str, Any] | None = None
        self._closing = threading.Event()
        self._answers: SimpleQueue[tuple[str, dict[str, Any] | str]] = SimpleQueue()
        self._lookers: dict[str, _Looker] = {}
        self._thread = threading.Thread(target=self._main, name="watch", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._lookers = {
            handle.name: _Looker(handle, self._run, self._answers)
            for handle in [*self._acquisition, *self._processing]
        }
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

    def tell(self, command: str) -> None:
        """Give a command to every living acquisition node."""
        for handle in self._acquisition:
            if handle.name not in self._lost:
                try:
                    handle.look(command, run=self._run)
                except (BadCommand, NodeError):
                    continue  # it is over there already, or gone: the next look says which

    def report(self) -> Report:
        """What became of the run, once it is over."""
        told = self._told or self._without_books()
        return Report.make(told, dict(self._memory), list(self._lost.values()))

    def _main(self) -> None:
        try:
            self._watch()
        finally:
            for looker in self._lookers.values():
                looker.end()

    def _watch(self) -> None:
        while not self._closing.is_set():
            lost = self._look()
            if lost and not self._closing.is_set():
                lost.update(self._look(without=lost))  # what died with it: its host, say
            self._lose(lost)
            states = {
                name: State(status["state"])
                for name, status in self._status.items()
                if name not in self._lost
            }
            if all(state in _OVER for state in states.values()):
                self._end()
                return
            self.progress = self._progress(aggregate(states.values()))
            self._closing.wait(WATCH_EVERY)

    def _look(self, without: Collection[str] = ()) -> dict[str, str]:
        """Ask every node that is not lost where it is; by name, why those are lost that are."""
        asked = [
            looker
            for name, looker in self._lookers.items()
            if name not in self._lost and name not in without
        ]
        for looker in asked:
            looker.ask()
        lost: dict[str, str] = {}
        for _ in asked:
            name, answer = self._answers.get()
            if isinstance(answer, str):
                lost[name] = answer
                continue
            self._status[name] = answer
            self._memory[name] = max(self._memory.get(name, 0), answer["memory"])
        return lost

    def _lose(self, lost: Mapping[str, str]) -> None:
        """Tell the others which nodes are lost, of those lost together all at once."""
        if not lost:
            return
        self._lost.update(lost)
        gone = [handle for handle in [*self._acquisition, *self._processing] if handle.name in lost]
        for handle in gone:
            if isinstance(handle, Child):
                handle.kill()  # whatever it still does, its frames go to others
        reasons = {handle.rank: lost[handle.name] for handle in gone if handle in self._processing}
        more = {}
        if reasons:
            more.update(self._tell(self._acquisition, "nodes_lost", reasons=reasons))
        for handle in gone:
            if handle in self._acquisition:
                others = [*self._acquisition, *self._processing]
                more.update(self._tell(others, "source_lost", rank=handle.rank))
        self._lose(more)

    def _tell(self, others: Sequence[Handle], command: str, **parameters: Any) -> dict[str, str]:
        """Tell those that are not lost; by name, why those are that turn out to be."""
        lost = {}
        for other in others:
            if other.name not in self._lost:
                try:
                    other.look(command, timeout=SILENCE, run=self._run, **parameters)
                except LimaError as error:
                    lost[other.name] = str(error)
        return lost

    def _progress(self, state: State) -> Progress:
        sources = [
            self._status[handle.name] for handle in self._acquisition if handle.name in self._status
        ]
        counts: dict[str, int] = {}
        for status in sources:
            for word, number in status["counts"].items():
                counts[word] = counts.get(word, 0) + number
        return Progress(
            state=state,
            asked=max((status["asked"] for status in sources), default=0),
            acquired=max((status["acquired"] for status in sources), default=0),
            settled=sum(status["settled"] for status in sources),
            done_to=min(
                (
                    self._status[handle.name]["done_to"]
                    for handle in self._acquisition
                    if handle.name in self._status and handle.name not in self._lost
                ),
                default=0,
            ),
            counts=counts,
            frame_bytes=max((status["frame_bytes"] for status in sources), default=0),
            ring=max(
                (status["slots_used"] / status["slots"] for status in sources if status["slots"]),
                default=0.0,
            ),
            nodes=dict(self._status),
        )

    def _end(self) -> None:
        lead = self._acquisition[0]
        if lead.name not in self._lost:
            try:
                self._told = lead.look("report", timeout=SILENCE, run=self._run)
            except LimaError as error:
                self._lost[lead.name] = str(error)
        failed = self._told is None or self._told["outcome"] == "failed"
        self.progress = self._progress(State.FAULT if failed else State.IDLE)
        self.over.set()

    def _without_books(self) -> dict[str, Any]:
        """The report when the node that keeps the books is gone: no frame's fate is known."""
        asked = self.progress.asked or self.progress.acquired
        return {
            "run": self._run,
            "name": self._name,
            "outcome": "failed",
            "asked": asked,
            "counts": {Fate.NODE_LOST.word: asked} if asked else {},
            "absences": [],
            "sinks": {},
            "masters": {},
            "errors": [],
            "remarks": [],
            "seconds": 0.0,
            "ring_bytes": 0,
        }


class _Looker:
    """Asks one node where it is, in a thread of its own: one that is silent holds up nobody.

    The threads of an executor would hold up the end of a Python whose session was never closed.

    Args:
        handle: of the node.
        run: id of the run.
        answers: takes its name with its status, or with why there is none.
    """

    def __init__(
        self, handle: Handle, run: str, answers: SimpleQueue[tuple[str, dict[str, Any] | str]]
    ):
        self._handle = handle
        self._run = run
        self._answers = answers
        self._asked: SimpleQueue[bool] = SimpleQueue()
        threading.Thread(target=self._main, name=f"look at {handle.name}", daemon=True).start()

    def ask(self) -> None:
        """Look once; the answer comes within `SILENCE`, or why there is none."""
        self._asked.put(True)

    def end(self) -> None:
        """Look no more."""
        self._asked.put(False)

    def _main(self) -> None:
        while self._asked.get():
            try:
                status = self._handle.look("status", timeout=SILENCE, run=self._run)
            except Exception as error:  # whatever it is, the watch waits for an answer
                self._answers.put((self._handle.name, in_words(error)))
            else:
                self._answers.put((self._handle.name, status))
