"""The writer lease: of all sessions that see a system that is up, one may command it.

The acquisition node that keeps the books grants it, as a number that only grows. Who has it renews
it every second, and says its number with every command; it expires when it is not renewed. Every
node refuses commands with a lower number than the highest it has seen (`lima2py.transport.rpc`), so
a session that was frozen for longer than the lease lasts cannot fight with the one that followed
it. Looking needs no lease.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import msgspec

from lima2py.errors import BadCommand
from lima2py.node.standing import Process

EXPIRES = 5.0
"""Seconds after the last renewal until others may have it."""
RENEW_EVERY = 1.0
"""Seconds between two renewals."""


class Holder(msgspec.Struct, frozen=True):
    """A session that asks for the lease: in words, and its process."""

    who: str
    process: Process


class Lease:
    """Who may command a system; safe to use from several threads."""

    def __init__(self) -> None:
        self._number = 0
        self._holder: Holder | None = None
        self._since = 0.0
        self._expires = float("-inf")
        self._lock = threading.Lock()

    def ask(self, holder: dict[str, Any], above: int, take_over: bool) -> int:
        """Grant the lease.

        Args:
            holder: who asks: a `Holder`, as plain values.
            above: the highest number that any node has seen; this one may have been started again.
            take_over: whether to take it from who has it now.

        Returns:
            The number to say with every command.

        Raises:
            BadCommand: if another has it.
        """
        with self._lock:
            if (has := self._has) and not take_over:
                raise BadCommand(
                    f"{has.who} commands this system, since {_local(self._since)}: this session"
                    " can look (progress, taps, reports), and command when that one has closed; or"
                    " take over now: Session.open(..., take_over=True), lima2py run --take-over"
                )
            self._number = max(self._number, above) + 1
            self._holder, self._since = msgspec.convert(holder, Holder), time.time()
            self._expires = time.monotonic() + EXPIRES
            return self._number

    def renew(self, number: int, holder: dict[str, Any]) -> None:
        """Keep the lease for another while; also where this node was started again meanwhile.

        Raises:
            BadCommand: if another has been granted it since.
        """
        with self._lock:
            if number < self._number and self._holder is not None:
                raise BadCommand(f"{self._holder.who} has taken over, at {_local(self._since)}")
            if number > self._number:
                self._number, self._since = number, time.time()
                self._holder = msgspec.convert(holder, Holder)
            self._expires = time.monotonic() + EXPIRES

    def release(self, number: int) -> None:
        """Let others have it at once; nothing happens if they do already."""
        with self._lock:
            if number == self._number:
                self._expires = float("-inf")

    def plain(self) -> dict[str, Any]:
        """Who has it, in words, and since when, in seconds since 1970; empty if nobody."""
        with self._lock:
            has = self._has
            return {"who": has.who, "since": self._since} if has else {}

    @property
    def _has(self) -> Holder | None:
        """Who has it; a process that was killed has not."""
        holder = self._holder
        if holder is None or holder.process.lives is False or time.monotonic() >= self._expires:
            return None
        return holder


def _local(when: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when))
