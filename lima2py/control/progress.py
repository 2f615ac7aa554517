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
from lima2py.session.events import Kind
from lima2py.session.progress import Progress
from lima2py.session.report import Report
from lima2py.session.run import SessionRun
from lima2py.session.session import Session
from lima2py.units import as_size

REFRESH = 0.2
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


def follow(session: Session | SessionRun, interrupts: Interrupts, console: Console) -> Report:
    """Wait for the end of a run, or of the newest of a session, showing where it is.

    The first Ctrl-C stops and drains, the second aborts.
    """
    obeyed = 0
    said = time.monotonic()
    teller = threading.Thread(target=_tell, args=(session, interrupts, console), daemon=True)
    teller.start()
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            try:
                report = session.wait(REFRESH)
                teller.join()
                return report
            except TimeoutError:
                progress = session.progress()
            if console.is_terminal:
                live.update(Group(_line(progress), _table(progress)), refresh=True)
            elif time.monotonic() - said > QUIET_REFRESH:
                said = time.monotonic()
                console.print(_line(progress) + _nodes(progress))
            while obeyed < min(interrupts.count, 2):
                obeyed += 1
                _obey(obeyed, session, console)


def _tell(session: Session | SessionRun, interrupts: Interrupts, console: Console) -> None:
    """Say what happens to a run, as it happens, but for what the user knows."""
    for event in session.events():
        asked = event.kind is Kind.STOPPING and interrupts.count > 0
        if not asked and event.kind not in (Kind.STARTED, Kind.ENDED):
            console.print(str(event))


def _obey(interrupt: int, session: Session | SessionRun, console: Console) -> None:
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


def _frames(status: Mapping[str, Any]) -> int:
    """Frames that a node has had."""
    return int(status.get("frames", status.get("acquired", 0)))


def _line(progress: Progress) -> str:
    """One line: frames, rate, ring, what lags behind, and how many frames were not saved."""
    asked = f" of {progress.asked}" if progress.asked else ""
    others = [f", {word} {n}" for word, n in progress.counts.items() if word != "saved"]
    if progress.silent_for:
        others.append(f", the detector is silent for {progress.silent_for:.0f} s")
    return (
        f"{progress.state.value}: {progress.settled}{asked} frames, {progress.rate:.0f}/s,"
        f" {progress.rate * progress.frame_bytes / 1e9:.3f} GB/s, ring {progress.ring:.0%},"
        f" lag {progress.lag} frames {progress.lag_seconds:.1f} s{''.join(others)}"
    )


def _nodes(progress: Progress) -> str:
    """Frames of every node, in a few words."""
    counts = [f"{name} {_frames(status)}" for name, status in progress.nodes.items()]
    return f" ({', '.join(counts)})" if counts else ""


def _table(progress: Progress) -> Table:
    """A row for every node."""
    table = Table(box=None, pad_edge=False)
    for column in ("node", "state", "frames", "rate", "cpu", "memory", "ring"):
        table.add_column(column, justify="left" if column in ("node", "state") else "right")
    for name, status in progress.nodes.items():
        rates = status["rates"]
        ring = f"{status['slots_used']}/{status['slots']}" if "slots" in status else ""
        table.add_row(
            name,
            status["state"],
            str(_frames(status)),
            f"{rates.get('frames', rates.get('acquired', 0)):.0f}/s",
            f"{rates['cpu_seconds']:.0%}",
            as_size(status["memory"]),
            ring,
        )
    return table
