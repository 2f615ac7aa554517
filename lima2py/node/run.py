"""A run: one acquisition passing through one node, with a life and a thread of its own."""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lima2py.errors import LimaError, in_words
from lima2py.graph.plan import Plan
from lima2py.graph.recent import Recent
from lima2py.node.life import ACTIVE, Life, Outcome, State

log = logging.getLogger(__name__)


class Run(ABC):
    """The base of both kinds of run.

    Args:
        run: id of the acquisition.
        who: the node, for messages: `acquisition node acq0`.
        plan: the graph's; the node that only pushes has it to know what comes out.

    Attributes:
        outcome: how it ended; None before.
        errors: what went wrong, in words.
        end_was_seen: whether the session has what it needs of it, now that it is over.
        footprint: about how many bytes it will take in its process once it goes.
    """

    def __init__(self, run: str, who: str, plan: Plan):
        self.run = run
        self.who = who
        self.plan = plan
        self.life = Life(who)
        self.outcome: Outcome | None = None
        self.errors: list[str] = []
        self.seconds = 0.0
        self.end_was_seen = False
        self.footprint = 0
        self._thread = threading.Thread(target=self._main, name=f"run {run[:8]}", daemon=True)

    def start(self) -> None:
        """Let the thread go.

        Raises:
            BadCommand: if it is not prepared.
        """
        self.life.do("start")
        self._thread.start()

    @abstractmethod
    def close(self) -> None:
        """Let go of everything; may be called twice. Not while the thread runs."""

    @abstractmethod
    def discard(self) -> None:
        """End as soon as can be, and discard what is in flight. From any thread."""

    @abstractmethod
    def loop(self) -> Outcome:
        """All of the work, in the run's thread."""

    @abstractmethod
    def status(self) -> dict[str, Any]:
        """Where it is, as plain values; quick, from any thread."""

    @property
    @abstractmethod
    def recent(self) -> Mapping[str, Recent]:
        """The latest small products made here, by task."""

    def linger(self, patience: float) -> None:
        """Give it time to end by itself."""
        if self._thread.ident is not None:
            self._thread.join(patience)

    def abandon(self, patience: float) -> bool:
        """End it, whatever it does; after `patience` seconds its thread is left to itself.

        Returns:
            Whether it has ended, and let go of everything.
        """
        if self._thread.ident is not None:
            self.discard()
            self._thread.join(patience)
        elif self.life.state is State.PREPARED:
            self.life.do("reset")
        if self._thread.is_alive():
            return False
        self.close()
        return True

    def _main(self) -> None:
        began = time.monotonic()
        try:
            self.outcome = self.loop()
        except BaseException as error:  # nothing may end a run without a word
            self.outcome = Outcome.FAILED
            self.errors.append(f"{self.who}: {in_words(error)}")
            if not isinstance(error, LimaError):
                log.exception("%s failed", self.who)
        self.seconds = time.monotonic() - began
        try:
            self.close()
        finally:
            self.life.do("fail" if self.outcome is Outcome.FAILED else "finish")

    def _common_status(self) -> dict[str, Any]:
        return {
            "run": self.run,
            "state": self.life.state.value,
            "outcome": self.outcome.value if self.outcome else None,
            "errors": list(self.errors),
            "seconds": self.seconds,
            "memory": private_memory(),
            "cpu_seconds": time.process_time(),
        }

    @property
    def living(self) -> bool:
        """Whether it is neither over nor in fault."""
        return self.life.state is State.PREPARED or self.life.state in ACTIVE


def private_memory() -> int:
    """Bytes of memory this process has for itself: no shared memory, no mapped files."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024
