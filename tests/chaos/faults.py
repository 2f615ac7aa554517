"""What happens to a run, at its time, and how soon the run has got over it."""

from __future__ import annotations

import errno
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lima2py.errors import BadCommand, LimaError
from lima2py.session.launch import Child
from lima2py.session.report import Report
from lima2py.session.session import Session
from tests.system.test_disk_failures import fill_up

LOSSES = ("kill", "freeze", "leave")
"""After which a processing node is lost, or may be."""
LIMIT = 90.0
"""Seconds within which a run is over, whatever was done to it."""


@dataclass(frozen=True)
class Fault:
    """What happens to a run.

    Attributes:
        kind: `kill` and `leave` (SIGTERM) a processing node; `freeze` it (SIGSTOP, then SIGCONT),
            and `slow` (the same again and again); `disk`: it is full for a while; or an ending.
        at: when: the part of the run's time that has passed.
        node: the number of the node it happens to, of all stages or of acquisition; before it is
            divided by how many there are.
        seconds: how long it lasts, if it does.
    """

    kind: str
    at: float
    node: int = 0
    seconds: float = 0.0


class Events:
    """What happens to a run, at its time, and how soon the run has got over it.

    Args:
        session: with the run prepared.
        faults: what shall happen.
        length: of the run, in seconds.
        folder: of the files; of a disk of its own, if that shall be full.

    Attributes:
        happened: the kinds of what happened so far.
        recovered: by kind, the seconds until all that had been in flight was safe.
        done_to: up to where frames were done, at the last look.
    """

    def __init__(self, session: Session, faults: Sequence[Fault], length: float, folder: Path):
        self.happened: list[str] = []
        self.recovered: list[tuple[str, float]] = []
        self.done_to = 0
        self._session = session
        self._faults = faults
        self._length = length
        self._folder = folder
        self._later: list[tuple[float, Callable[[], object]]] = []
        self._open: list[tuple[str, float, list[int]]] = []  # kind, when, what to wait for

    def through(self) -> Report:
        """Start the run, and see it through."""
        session, length = self._session, self._length
        session.start()
        began = time.monotonic()
        for fault in self._faults:
            self._at(began + fault.at * length, partial(self._happen, fault))
        with self._everything_goes_on():
            while True:
                self._do_what_is_due()
                self._look()
                with suppress(TimeoutError):
                    return session.wait(0.004)
                if time.monotonic() > began + length + LIMIT:
                    raise TimeoutError(f"the run hangs: {session.progress()}")

    def _at(self, when: float, act: Callable[[], object]) -> None:
        self._later.append((when, act))

    def _do_what_is_due(self) -> None:
        now = time.monotonic()
        due = [item for item in self._later if item[0] <= now]
        self._later = [item for item in self._later if item[0] > now]
        for _, act in sorted(due, key=lambda item: item[0]):
            act()

    @contextmanager
    def _everything_goes_on(self) -> Iterator[None]:
        """In the end nothing stays frozen, and the disk has room."""
        try:
            yield
        finally:
            for child in self._children():
                child._process.send_signal(signal.SIGCONT)
            (self._folder / "filler").unlink(missing_ok=True)

    def _children(self) -> list[Child]:
        nodes = self._session.nodes
        return [node for node in [*nodes.acquisition, *nodes.processing] if isinstance(node, Child)]

    def _happen(self, fault: Fault) -> None:
        status = self._status()
        self.happened.append(fault.kind)
        getattr(self, "_" + fault.kind.replace(" ", "_"))(fault)
        if fault.kind in LOSSES and status:
            due = [_end_of_what_is_in_flight(one) for one in status]
            self._open.append((fault.kind, time.monotonic(), due))

    def _node(self, fault: Fault) -> Child:
        nodes = self._session.nodes.processing
        node = nodes[fault.node % len(nodes)]
        assert isinstance(node, Child)
        return node

    def _kill(self, fault: Fault) -> None:
        self._node(fault).kill()

    def _leave(self, fault: Fault) -> None:
        self._node(fault)._process.terminate()

    def _freeze(self, fault: Fault) -> None:
        process = self._node(fault)._process
        process.send_signal(signal.SIGSTOP)
        self._at(time.monotonic() + fault.seconds, lambda: process.send_signal(signal.SIGCONT))

    def _slow(self, fault: Fault) -> None:
        """Stopped three quarters of the time, and never long enough to be taken for lost."""
        process = self._node(fault)._process
        now = time.monotonic()
        for number in range(int(fault.seconds / 0.08)):
            start = now + 0.08 * number
            self._at(start, lambda: process.send_signal(signal.SIGSTOP))
            self._at(start + 0.06, lambda: process.send_signal(signal.SIGCONT))

    def _disk(self, fault: Fault) -> None:
        try:
            filler = fill_up(self._folder)
        except OSError as error:  # not even the name of the file that should fill it
            if error.errno != errno.ENOSPC:
                raise
            return
        self._at(time.monotonic() + fault.seconds, lambda: filler.unlink(missing_ok=True))

    def _stop(self, fault: Fault) -> None:
        with suppress(BadCommand):  # it is just over
            self._session.stop()

    def _abort(self, fault: Fault) -> None:
        with suppress(BadCommand):
            self._session.abort()

    def _kill_acquisition(self, fault: Fault) -> None:
        nodes = self._session.nodes.acquisition
        node = nodes[fault.node % len(nodes)]
        assert isinstance(node, Child)
        node.kill()

    def _kill_everything(self, fault: Fault) -> None:
        for child in self._children():
            child.kill()

    def _status(self) -> list[dict[str, Any]]:
        """Of all acquisition nodes; of none when one cannot be had."""
        try:
            return [
                node.look("status", timeout=1.0, run=self._session.run)
                for node in self._session.nodes.acquisition
            ]
        except LimaError:
            return []

    def _look(self) -> None:
        """How far it is: has it got over what happened?"""
        if not (status := self._status()):
            return
        self.done_to = max(self.done_to, min(one["done_to"] for one in status))
        now = time.monotonic()
        for kind, when, due in [*self._open]:
            if all(one["done_to"] >= end for one, end in zip(status, due, strict=True)):
                self.recovered.append((kind, now - when))
                self._open.remove((kind, when, due))


def _end_of_what_is_in_flight(status: dict[str, Any]) -> int:
    """Up to where frames are with processing nodes, about: the others wait in the ring."""
    in_flight = sum(status["in_flight"].values())
    share = in_flight / max(1, in_flight + status["waiting"])
    still_open = status["acquired"] - status["settled"]
    return int(min(status["acquired"], status["done_to"] + share * still_open))
