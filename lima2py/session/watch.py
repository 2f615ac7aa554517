"""Watch a run: ask every node where it is, several times a second, until all are done.

This is the heartbeat, too. A node that died, or does not answer, is lost: the others are told, so
that nobody waits for it.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lima2py.errors import BadCommand, LimaError, NodeError
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
        counts: frames by fate so far.
        frame_bytes: bytes of one raw frame.
        ring: the fullest ring, 0 to 1.
        nodes: the status of every node, by name.
    """

    state: State
    asked: int = 0
    acquired: int = 0
    settled: int = 0
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
        self._thread = threading.Thread(target=self._main, name="watch", daemon=True)

    def start(self) -> None:
        """Begin to look."""
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
        while not self._closing.is_set():
            for handle in [*self._acquisition, *self._processing]:
                if handle.name not in self._lost:
                    self._look_at(handle)
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

    def _look_at(self, handle: Handle) -> None:
        try:
            status = handle.look("status", timeout=SILENCE, run=self._run)
        except LimaError as error:
            self._lose(handle, str(error))
            return
        self._status[handle.name] = status
        peak = max(self._memory.get(handle.name, 0), status["memory"])
        self._memory[handle.name] = peak

    def _lose(self, handle: Handle, reason: str) -> None:
        self._lost[handle.name] = reason
        if isinstance(handle, Child):
            handle.kill()  # whatever it still does, its frames go to others
        if handle in self._processing:
            others, command = self._acquisition, "node_lost"
        else:
            others, command = [*self._acquisition, *self._processing], "source_lost"
        for other in others:
            if other.name in self._lost:
                continue
            parameters: dict[str, Any] = {"reason": reason} if command == "node_lost" else {}
            try:
                other.look(command, timeout=SILENCE, run=self._run, rank=handle.rank, **parameters)
            except LimaError as error:
                self._lose(other, str(error))

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
            "seconds": 0.0,
            "ring_bytes": 0,
        }
