"""Follow a run on the terminal: rate, ring, every node; Ctrl-C stops, a second one aborts."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import suppress

from rich.console import Console
from rich.live import Live
from rich.table import Table

from lima2py.errors import BadCommand
from lima2py.session.report import Report
from lima2py.session.session import Progress, Session
from lima2py.units import as_size

REFRESH = 0.2
QUIET_REFRESH = 5.0
"""Seconds between two lines where the output is no terminal."""


def follow(session: Session, console: Console) -> Report:
    """Wait for the end of a run, showing where it is.

    The first Ctrl-C stops and drains, the second aborts.
    """
    rates = _Rate()
    stopping = False
    with Live(console=console, auto_refresh=False, transient=True) as live:
        said = time.monotonic()
        while True:
            try:
                report = session.wait(REFRESH)
                break
            except TimeoutError:
                progress = session.progress()
                rate = rates.over(progress.settled)
                if console.is_terminal:
                    live.update(_table(progress, rate), refresh=True)
                elif time.monotonic() - said > QUIET_REFRESH:
                    said = time.monotonic()
                    console.print(_line(progress, rate), highlight=False)
            except KeyboardInterrupt:
                with suppress(BadCommand):  # it ended by itself meanwhile
                    if stopping:
                        session.abort()
                        console.print("aborting: what is in flight is discarded")
                    else:
                        session.stop()
                        console.print("stopping: what was acquired is saved; Ctrl-C again aborts")
                stopping = True
    return report


def trigger_by_lines(session: Session, console: Console) -> None:
    """One software trigger for every line of standard input, until the run is over."""
    console.print("software trigger: press Enter for each one")

    def read() -> None:
        for _ in sys.stdin:
            try:
                session.trigger()
            except BadCommand as error:
                console.print(f"no trigger: {error}")

    threading.Thread(target=read, name="trigger", daemon=True).start()


class _Rate:
    """Turns snapshots into a rate, over the last seconds."""

    def __init__(self) -> None:
        self._history: list[tuple[float, int]] = []

    def over(self, settled: int) -> float:
        """Frames a second over the last three seconds."""
        now = time.monotonic()
        self._history = [*(item for item in self._history if now - item[0] < 3.0), (now, settled)]
        (first, before), (last, after) = self._history[0], self._history[-1]
        return (after - before) / (last - first) if last > first else 0.0


def _line(progress: Progress, rate: float) -> str:
    """One line: frames, rate, ring."""
    asked = f" of {progress.asked}" if progress.asked else ""
    return (
        f"{progress.state.value}: {progress.settled}{asked} frames, {rate:.0f}/s,"
        f" {rate * progress.frame_bytes / 1e9:.2f} GB/s, ring {progress.ring:.0%}"
    )


def _table(progress: Progress, rate: float) -> Table:
    """The line, and a row for every node."""
    table = Table(title=_line(progress, rate), title_justify="left", box=None, pad_edge=False)
    for column in ("node", "state", "frames", "memory", ""):
        table.add_column(column, justify="left" if column in ("node", "") else "right")
    for name, status in progress.nodes.items():
        ring = f"ring {status['slots_used']}/{status['slots']}" if "slots" in status else ""
        frames = status.get("frames", status.get("acquired", 0))
        table.add_row(name, status["state"], str(frames), as_size(status["memory"]), ring)
    return table
