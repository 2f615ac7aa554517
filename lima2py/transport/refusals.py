"""What is refused at a socket: counted by reason, and the first of each reason told in the log."""

from __future__ import annotations

import logging
import threading
from collections import Counter

from lima2py.errors import ProtocolError

log = logging.getLogger(__name__)


class Refusals:
    """Counts what is refused; from any thread.

    Args:
        what: was refused, for the log: `a message among the frames of run 1234`.
    """

    def __init__(self, what: str):
        self._what = what
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def note(self, error: ProtocolError) -> None:
        """Count one; a flood of them costs one line of the log."""
        with self._lock:
            self._counts[error.reason] += 1
            first = self._counts[error.reason] == 1
        if first:
            log.warning(
                "refused %s: %s (counted as %s; more of this reason are only counted)",
                self._what, str(error), error.reason,  # as text: an error holds all it came through
            )  # fmt: skip

    def plain(self) -> dict[str, int]:
        """How many, by reason."""
        with self._lock:
            return dict(self._counts)
