"""A node's part in a run, as the session sees it: its rank, its last answer, whether it is lost."""

from __future__ import annotations

import threading
from queue import SimpleQueue
from typing import Any

from lima2py.errors import LimaError, NodeError, in_words
from lima2py.node.life import State
from lima2py.session.launch import Handle

SILENCE = 5.0
"""Seconds a node may take to answer a look; then it counts as lost."""

Answers = SimpleQueue["tuple[Member, dict[str, Any] | LimaError]"]


class Member:
    """A node in a run; one that comes again is another member.

    It is asked where it is in a thread of its own: one that is silent holds up nobody. (The threads
    of an executor would hold up the end of a Python whose session was never closed.)

    Args:
        handle: of the node.
        rank: its number in this run, among the nodes of its kind.
        processes: whether it processes; else it acquires.
        run: id of the run.
        answers: takes the answers to `ask`: its status, or why there is none.

    Attributes:
        status: its last answer.
        asked: whether an answer is due.
        lost: why it is lost; empty while it is not.
        gone: whether it lives, and knows nothing of the run any more.
    """

    def __init__(self, handle: Handle, rank: int, processes: bool, run: str, answers: Answers):
        self.handle = handle
        self.rank = rank
        self.processes = processes
        self.status: dict[str, Any] = {}
        self.asked = False
        self.lost = ""
        self.gone = False
        self._run = run
        self._answers = answers
        self._looks: SimpleQueue[bool] = SimpleQueue()
        threading.Thread(target=self._main, name=f"look at {self.name}", daemon=True).start()

    @property
    def name(self) -> str:
        """Of the node."""
        return self.handle.name

    @property
    def state(self) -> State | None:
        """Where its part of the run is; None if nobody knows."""
        return State(self.status["state"]) if self.status else None

    @property
    def over(self) -> bool:
        """Whether it has ended its part, or is lost."""
        return bool(self.lost) or self.gone or self.state in (State.IDLE, State.FAULT)

    def ask(self) -> None:
        """Look once, unless that is being done; the answer, or why there is none, comes in time."""
        if not self.asked:
            self.asked = True
            self._looks.put(True)

    def end(self) -> None:
        """Look no more."""
        self._looks.put(False)

    def _main(self) -> None:
        while self._looks.get():
            try:
                status = self.handle.look("status", timeout=SILENCE, run=self._run)
            except LimaError as error:
                self._answers.put((self, error))
            except Exception as error:  # whatever it is, the watch waits for an answer
                self._answers.put((self, NodeError(f"node {self.name}: {in_words(error)}")))
            else:
                self._answers.put((self, status))
