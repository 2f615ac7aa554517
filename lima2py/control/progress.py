"""Follow a run on the terminal: rate, ring, every node; Ctrl-C stops, a second one aborts."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from lima2py.acquisition import Acquisition
from lima2py.errors import BadCommand
from lima2py.node.life import State
from lima2py.session.report import Report
from lima2py.session.session import Session
from lima2py.session.watch import Progress
from lima2py.units import as_size

REFRESH = 0.2
RATE_OVER = 3.0
"""Seconds over which a rate is taken."""
RETRY = 0.02
"""Seconds between two looks whether the detector takes a trigger now."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
QUIET_PREPARE = 20.0
"""Seconds of preparing after which that is said where the output is no terminal."""
QUIET_REFRESH = 5.0
"""Seconds between two lines where the output is no terminal."""


def open_console() -> Console:
    """Standard error, for messages and progress; text is printed as it is."""
    return Console(stderr=True, soft_wrap=True, markup=False, highlight=False, emoji=False)


@contextmanager
def preparing(console: Console) -> Iterator[None]:
    """Show that something goes on which may take seconds: a new graph has to be compiled."""
    text = "preparing; a graph that is new here is compiled first"
    if console.is_terminal:
        with console.status(text):
            yield
        return
    later = threading.Timer(QUIET_PREPARE, console.print, [text])
    later.start()
    try:
        yield
    finally:
        later.cancel()
        later.join()


class Interrupts:
    """Counts Ctrl-C and SIGTERM while in use, so that what must not be torn is not; too many raise.

    Attributes:
        count: how many came.
        hold: how many are only counted; one more raises `KeyboardInterrupt`.
    """

    def __init__(self, hold: int):
        self.count = 0
        self.hold = hold
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._interrupt) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def check(self) -> None:
        """Raise `KeyboardInterrupt` if one was held back."""
        if self.count:
            raise KeyboardInterrupt

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.count > self.hold:
            raise KeyboardInterrupt


def follow(session: Session, interrupts: Interrupts, console: Console) -> Report:
    """Wait for the end of a run, showing where it is.

    The first Ctrl-C stops and drains, the second aborts.
    """
    rates = _Rates()
    obeyed = 0
    said = time.monotonic()
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            try:
                return session.wait(REFRESH)
            except TimeoutError:
                progress = session.progress()
            rate = rates.over(progress)
            if console.is_terminal:
                live.update(Group(_line(progress, rate), _table(progress, rate)), refresh=True)
            elif time.monotonic() - said > QUIET_REFRESH:
                said = time.monotonic()
                console.print(_line(progress, rate) + _nodes(progress))
            while obeyed < min(interrupts.count, 2):
                obeyed += 1
                _obey(obeyed, session, console)


def _obey(interrupt: int, session: Session, console: Console) -> None:
    with suppress(BadCommand):  # it ended by itself meanwhile
        if interrupt == 1:
            session.stop()
            console.print("stopping: what was acquired is saved; Ctrl-C again aborts")
        else:
            session.abort()
            console.print("aborting: what is in flight is discarded")


class LineTriggers:
    """One software trigger for every line of standard input, as soon as the detector takes it.

    When the input ends before the last trigger, the run is stopped once the frames of those given
    have come: nobody could give another.
    """

    def __init__(self, session: Session, acquisition: Acquisition, console: Console):
        self._session = session
        self._console = console
        self._per_trigger = acquisition.nb_frames_per_trigger
        self._needed = -(-acquisition.nb_frames // self._per_trigger)
        self._given = 0

    def start(self) -> None:
        """Read from now on, in a thread of its own."""
        needed = f", {self._needed} in all" if self._needed else ""
        self._console.print(f"software trigger: every line (Enter) is one{needed}")
        threading.Thread(target=self._main, name="trigger", daemon=True).start()

    def _main(self) -> None:
        with suppress(BadCommand):  # the run is over
            while lines := self._read():
                for _ in range(lines.count(b"\n")):
                    self._trigger()
            if not self._needed or self._given < self._needed:
                self._stop()

    def _read(self) -> bytes:
        """What was typed; nothing at the end. No buffer: one would be locked at our exit."""
        return os.read(sys.stdin.fileno(), 4096) if sys.stdin is not None else b""

    def _trigger(self) -> None:
        patience = time.monotonic() + QUIET_REFRESH
        while True:
            try:
                self._session.trigger()
                break
            except BadCommand as error:
                if self._session.state is not State.RUNNING:
                    raise
                if time.monotonic() > patience:
                    self._console.print(f"trigger {self._given + 1} waits: {error}")
                    patience = math.inf
                time.sleep(RETRY)
        self._given += 1

    def _stop(self) -> None:
        """Stop when the frames of all triggers have come."""
        of = f" of {self._needed}" if self._needed else ""
        self._console.print(
            f"standard input has ended after {self._given}{of} triggers: stopping when their frames"
            " have come"
        )
        while self._session.progress().acquired < self._given * self._per_trigger:
            if self._session.state is not State.RUNNING:
                return
            time.sleep(RETRY)
        self._session.stop()


class _Rates:
    """Turns snapshots into rates, over the last seconds."""

    def __init__(self) -> None:
        self._history: list[tuple[float, dict[str, int]]] = []

    def over(self, progress: Progress) -> dict[str, float]:
        """Frames a second over the last seconds: by node, and `""` for the whole run."""
        now = time.monotonic()
        counts = {name: _frames(status) for name, status in progress.nodes.items()}
        self._history = [item for item in self._history if now - item[0] < RATE_OVER]
        self._history.append((now, {**counts, "": progress.settled}))
        (first, before), (last, after) = self._history[0], self._history[-1]
        return {
            name: (n - before.get(name, n)) / ((last - first) or 1) for name, n in after.items()
        }


def _frames(status: Mapping[str, Any]) -> int:
    """Frames that a node has had."""
    return int(status.get("frames", status.get("acquired", 0)))


def _line(progress: Progress, rate: Mapping[str, float]) -> str:
    """One line: frames, rate, ring, and how many frames were not saved."""
    asked = f" of {progress.asked}" if progress.asked else ""
    others = [f", {word} {n}" for word, n in progress.counts.items() if word != "saved"]
    return (
        f"{progress.state.value}: {progress.settled}{asked} frames, {rate['']:.0f}/s,"
        f" {rate[''] * progress.frame_bytes / 1e9:.3f} GB/s, ring {progress.ring:.0%}"
        f"{''.join(others)}"
    )


def _nodes(progress: Progress) -> str:
    """Frames of every node, in a few words."""
    counts = [f"{name} {_frames(status)}" for name, status in progress.nodes.items()]
    return f" ({', '.join(counts)})" if counts else ""


def _table(progress: Progress, rate: Mapping[str, float]) -> Table:
    """A row for every node."""
    table = Table(box=None, pad_edge=False)
    for column in ("node", "state", "frames", "rate", "memory", "ring"):
        table.add_column(column, justify="left" if column in ("node", "state") else "right")
    for name, status in progress.nodes.items():
        ring = f"{status['slots_used']}/{status['slots']}" if "slots" in status else ""
        table.add_row(
            name,
            status["state"],
            str(_frames(status)),
            f"{rate.get(name, 0):.0f}/s",
            as_size(status["memory"]),
            ring,
        )
    return table
