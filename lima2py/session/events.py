"""What happens to a run, as a bounded list of events that applications wait on."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

KEPT = 1000
"""The most events a session keeps; older ones give way."""


class Kind(StrEnum):
    """What kind of thing happened."""

    STARTED = "started"
    """A run was started."""
    RING_HIGH = "ring_high"
    """A ring is three quarters full: processing or saving does not keep up. The value is how full
    it is, 0 to 1."""
    RING_FULL = "ring_full"
    """A ring is full: the policy `overload` decides what becomes of frames."""
    RING_NORMAL = "ring_normal"
    """A ring that was high or full is less than half full again."""
    OVERRUN = "overrun"
    """The first frames were dropped because a ring was full. The value is how many."""
    DISK_WAITING = "disk_waiting"
    """A sink cannot write, and waits for its disk."""
    NODE_LOST = "node_lost"
    """A node died, was cut off, or hangs; the text says how that is known."""
    NODE_RESTARTED = "node_restarted"
    """A node that was lost was started again, and takes part."""
    NODE_JOINED = "node_joined"
    """A node that was lost, and that somebody else starts, is back and takes part."""
    NODE_DRAINED = "node_drained"
    """A node was told to leave, and does so when it has done what it has."""
    PAUSED = "paused"
    """The run holds, until somebody resumes it."""
    RESUMED = "resumed"
    """The run goes on."""
    STOPPING = "stopping"
    """Nothing more is acquired; the text says why, if nobody asked for it."""
    ENDED = "ended"
    """The run is over and its files are closed; the text is its outcome. The last event."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a run.

    Attributes:
        serial: its number in the session, from 0; numbers that are missing had given way.
        time: when it was noticed, in seconds since 1970.
        run: id of the run.
        kind: what kind of thing.
        node: whom it happened to; empty if to the run as a whole.
        text: what happened, for a person.
        value: a number that says more, where the kind has one.
    """

    serial: int
    time: float
    run: str
    kind: Kind
    node: str
    text: str
    value: float

    def __str__(self) -> str:
        return self.text if self.node in self.text else f"{self.node}: {self.text}"


class Events:
    """Takes events from any thread, and gives them to any number of readers.

    Args:
        most: how many are kept.
    """

    def __init__(self, most: int = KEPT):
        self._kept: deque[Event] = deque(maxlen=most)
        self._next = 0
        self._closed = False
        self._changed = threading.Condition()

    def note(self, run: str, kind: Kind, text: str, node: str = "", value: float = 0.0) -> int:
        """Note that something happened, now.

        Args:
            run: id of the run it happened to.
            kind: what kind of thing.
            text: what happened, for a person.
            node: whom it happened to, if not the run as a whole.
            value: a number that says more.

        Returns:
            Its serial.
        """
        with self._changed:
            serial, self._next = self._next, self._next + 1
            self._kept.append(Event(serial, time.time(), run, kind, node, text, value))
            self._changed.notify_all()
        return serial

    def after(self, serial: int = -1) -> list[Event]:
        """The kept events with a greater serial, oldest first."""
        with self._changed:
            return self._after(serial)

    def of_run(self, run: str, timeout: float | None = None) -> Iterator[Event]:
        """The events of a run, those kept first, then others as they come, until it has ended.

        Args:
            run: its id.
            timeout: seconds to wait for the next one.

        Raises:
            TimeoutError: if none came in time.
        """
        serial = -1
        while found := self._wait(serial, timeout):
            for event in found:
                serial = event.serial
                if event.run == run:
                    yield event
                    if event.kind is Kind.ENDED:
                        return

    def close(self) -> None:
        """Nothing more will come; whoever waits is let go."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _wait(self, serial: int, timeout: float | None) -> list[Event]:
        """What comes after a serial, once there is something; nothing when closed."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._after(serial) or self._closed, timeout):
                raise TimeoutError(f"no event within {timeout:g} s")
            return self._after(serial)

    def _after(self, serial: int) -> list[Event]:
        return [event for event in self._kept if event.serial > serial]
