"""Wait for a disk that refuses: what it did not take is tried again until it does.

Only what the system itself refused is tried again, and only what may change while a run goes on: a
disk that is full or gone, and not a name that is too long.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from typing import TypeVar

from lima2py.storage.failures import errno_of
from lima2py.task import RunContext, Sink

T = TypeVar("T")
AGAIN = 0.1
"""Seconds between two attempts."""
_FOR_GOOD = frozenset(
    {0, errno.EEXIST, errno.EFBIG, errno.EINVAL, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG}
)
"""Refusals that no waiting mends; 0 is an error that did not come from the system."""


class Patience:
    """Tries what a disk may refuse; again and again if it is told to wait.

    Args:
        waits: whether to try again.
        stopping: whether to give up.
        alive: is called at each attempt while it waits.

    Attributes:
        begun: whether frames have come; before that nothing waits, and the run is refused.
        waiting: what it waits for just now, in words; empty if it does not.
    """

    def __init__(
        self,
        waits: bool = False,
        stopping: Callable[[], bool] = lambda: False,
        alive: Callable[[], None] = lambda: None,
    ):
        self.begun = False
        self.waiting = ""
        self._waits = waits
        self._stopping = stopping
        self._alive = alive
        self._waited: dict[str, float] = {}

    @classmethod
    def of(cls, sink: Sink, run: RunContext) -> Patience:
        """As a sink, or the policy of its run, says."""
        waits = (sink.if_fails or run.policies.disk) == "wait"
        return cls(waits, run.stopping, run.alive)

    def __call__(self, attempt: Callable[[], T]) -> T:
        """What an attempt gives, once it is not refused.

        Raises:
            OSError: if it is, and there is nothing to wait for.
        """
        try:
            return attempt()
        except OSError as error:
            if not self._may_wait(error):
                raise
            refused = error
        began = time.monotonic()
        try:
            while self._may_wait(refused):
                seconds = time.monotonic() - began
                self.waiting = f"has been waiting {seconds:.0f} s for the disk: {_why(refused)}"
                self._alive()
                time.sleep(AGAIN)
                try:
                    return attempt()
                except OSError as error:
                    refused = error
            raise refused
        finally:
            self.waiting = ""
            seconds = time.monotonic() - began
            self._waited[_why(refused)] = self._waited.get(_why(refused), 0.0) + seconds

    @property
    def remarks(self) -> list[str]:
        """How long it has waited, and why; for the user when the run is over."""
        return [f"waited {seconds:.1f} s for the disk: {why}"
                for why, seconds in self._waited.items()]  # fmt: skip

    def _may_wait(self, error: OSError) -> bool:
        possible = self._waits and self.begun and errno_of(error) not in _FOR_GOOD
        return possible and not self._stopping()


def _why(error: OSError) -> str:
    return os.strerror(errno_of(error))
