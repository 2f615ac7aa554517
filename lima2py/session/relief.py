"""Relief: a processing node that was lost is started again, and takes part in the run that goes on.

It gets a new rank, and writes files of its own: what the lost one may still do counts no more.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import NamedTuple

from lima2py.errors import LimaError, in_words
from lima2py.session.fleet import Fleet
from lima2py.session.launch import Handle, Tended

MINUTE = 60.0
LAST_JOIN = 10.0
"""Seconds in which a node that was being made ready when its run ended has given it up."""
RETRY_EVERY = 1.0
"""Seconds between two looks for a node that somebody else has to start again."""


class Relieved(NamedTuple):
    """A node that takes part again; or why it does not, in `trouble`."""

    handle: Handle
    rank: int
    trouble: str


class Relief:
    """Brings lost nodes of one run back, each in a thread of its own.

    Args:
        fleet: all nodes.
        run: id of the run.
        restarts: the most times in a minute that a node is started again.
    """

    def __init__(self, fleet: Fleet, run: str, restarts: int):
        self._fleet = fleet
        self._run = run
        self._restarts = restarts
        self._times: deque[float] = deque()
        self._over = threading.Event()
        self._joining = threading.Lock()
        self._done: SimpleQueue[Relieved] = SimpleQueue()

    def send(self, lost: Handle) -> str:
        """Bring a node back, if that is allowed; else why it is not."""
        if why_not := self._why_not(lost):
            return why_not
        name = f"relief of {lost.name}"
        threading.Thread(target=self._bring_back, args=(lost,), name=name, daemon=True).start()
        return ""

    def collect(self) -> list[Relieved]:
        """Who has come back since."""
        found = []
        while True:
            try:
                found.append(self._done.get_nowait())
            except Empty:
                return found

    def end(self) -> None:
        """The run is over: nobody is brought back any more, and who came too late is sent home.

        Afterwards nobody has files of this run open on our account. May be called again.
        """
        self._over.set()
        self._fleet.forget(self._run)
        if self._joining.acquire(timeout=LAST_JOIN):
            self._joining.release()
        for handle, _, trouble in self.collect():
            if not trouble:
                self._dismiss(handle)

    def _dismiss(self, handle: Handle) -> None:
        with suppress(LimaError):  # it is lost again
            handle.call("give_up", run=self._run)

    def _why_not(self, lost: Handle) -> str:
        """Why a node is not started again; if it is, that counts."""
        now = time.monotonic()
        while self._times and now > self._times[0] + MINUTE:
            self._times.popleft()
        if isinstance(lost, Tended) and lost.left_in_order:
            return "it was told to leave"
        if len(self._times) >= self._restarts:
            return (
                f"it is not started again: that was done {len(self._times)} times in a minute"
                f" (policy restarts: {self._restarts})"
            )
        self._times.append(now)
        return ""

    def _bring_back(self, lost: Handle) -> None:
        while not self._over.is_set():
            handle = lost
            try:
                handle = self._fleet.bring_back(lost, self._run)
                self._join(handle)
                return
            except LimaError as error:
                if not isinstance(handle, Tended):  # its host may come back
                    self._over.wait(RETRY_EVERY)
                    continue
                died_again = handle is not lost and not handle.running
                if not died_again or self._why_not(handle):
                    self._done.put(Relieved(handle, -1, in_words(error)))
                    return
                lost = handle

    def _join(self, handle: Handle) -> None:
        with self._fleet.lock, self._joining:  # who only waits for its turn holds up no end
            if self._over.is_set():
                return
            rank = self._fleet.enlist(handle, self._run)
            if self._over.is_set():
                self._dismiss(handle)
            else:
                self._done.put(Relieved(handle, rank, ""))
