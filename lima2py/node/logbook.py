"""The logbook of a run: values over time that are of no frame, as temperatures and rates.

Each series is bounded. When one is full, every other sample is dropped, and from then on samples
that come faster than the rest lie apart replace the last one: so what is kept is spread evenly over
the whole run, however long, and the latest value is always there.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from time import time as now

from lima2py.errors import BadCommand, BadParameter
from lima2py.storage.logs import Series

MOST_SAMPLES = 4096
"""Of one series."""
MOST_SERIES = 1000
"""That others than the run itself may begin."""
OURS = ("acquisition", "processing", "detector")
"""First words of the names that the run itself uses."""
LONGEST_TEXT = 1000
"""Characters of a value."""


@dataclass
class _Line:
    units: str
    times: list[float] = field(default_factory=list)
    values: list[float | str] = field(default_factory=list)
    apart: float = 0.0
    """Seconds that samples should lie apart since some were dropped."""

    def add(self, time: float, value: float | str, most: int) -> None:
        if len(self.times) > 1 and self.times[-1] <= time < self.times[-2] + self.apart:
            self.times[-1], self.values[-1] = time, value
            return
        at = bisect_right(self.times, time)
        self.times.insert(at, time)
        self.values.insert(at, value)
        if len(self.times) > most:
            keep = slice((len(self.times) - 1) % 2, None, 2)  # the latest is among them
            self.times, self.values = self.times[keep], self.values[keep]
            self.apart = (self.times[-1] - self.times[0]) / len(self.times)


class Logbook:
    """Takes values from any thread, until it is closed.

    Args:
        who: whose it is, for the complaints.
        most: samples of one series.
    """

    def __init__(self, who: str, most: int = MOST_SAMPLES):
        self._who = who
        self._most = most
        self._lines: dict[str, _Line] = {}
        self._groups: set[str] = set()
        self._closed = False
        self._lock = threading.Lock()

    def note(self, name: str, value: object, units: str | None, time: float | None) -> None:
        """Take a value from a user: `add` under a name that is not one of the run itself.

        Raises:
            BadParameter, BadCommand: see `add`.
        """
        first = str(name).partition("/")[0]
        if first in OURS:
            raise BadParameter(
                f"log {name}: names that begin with {first} are those of the run itself; begin with"
                " another word"
            )
        if len(self._lines) >= MOST_SERIES and name not in self._lines:
            raise BadParameter(
                f"log {name}: there are {len(self._lines)} series already, which is too many to"
                " begin another; log into one of them"
            )
        self.add(name, value, units, time)

    def add(
        self, name: str, value: object, units: str | None = None, when: float | None = None
    ) -> None:
        """Note a value.

        Args:
            name: of the series: words parted by `/`, `sample/temperature`.
            value: a number or a short text; a series holds the one or the other.
            units: of a number, as NeXus writes them: `K`, `mm`; those of the series if not given.
            when: it was so, in seconds since 1970; now if not given.

        Raises:
            BadParameter: if there can be no such series, or it is of another kind.
            BadCommand: if the logbook is closed.
        """
        at = now() if when is None else when
        if not isinstance(at, Real) or not math.isfinite(at):
            raise BadParameter(f"log {name}: time: should be seconds since 1970; given: {when!r}")
        kept = _value(name, value)
        with self._lock:
            if self._closed:
                raise BadCommand(
                    f"{self._who} cannot log {name}: the run is over and its files are being closed"
                )
            line = self._line(name, units)
            if line.values and isinstance(kept, str) != isinstance(line.values[0], str):
                kind = "text" if isinstance(line.values[0], str) else "numbers"
                raise BadParameter(
                    f"log {name}: holds {kind} since its first value; given: {value!r}; use"
                    " another name"
                )
            line.add(float(at), kept, self._most)

    def merge(
        self, series: Mapping[str, tuple[Sequence[float], Sequence[float | str], str]]
    ) -> None:
        """Take over what another node noted, by name the fields of a `Series`."""
        for name, (times, values, units) in series.items():
            for at, value in zip(times, values, strict=True):
                self.add(name, value, units, at)

    def series(self) -> dict[str, Series]:
        """All of it so far."""
        with self._lock:
            return {
                name: Series(list(line.times), list(line.values), line.units)
                for name, line in self._lines.items()
            }

    def close(self) -> dict[str, Series]:
        """Take no more; all of it."""
        with self._lock:
            self._closed = True
        return self.series()

    def _line(self, name: str, units: str | None) -> _Line:
        """The series of a name, a new one if there is none."""
        line = self._lines.get(name)
        if line is None:
            self._check_name(name)
            line = self._lines[name] = _Line(units or "")
            steps = name.split("/")
            self._groups.update("/".join(steps[:end]) for end in range(1, len(steps)))
        if units is not None and units != line.units:
            raise BadParameter(
                f'log {name}: has been in "{line.units}" since its first value; given: "{units}"'
            )
        return line

    def _check_name(self, name: str) -> None:
        steps = name.split("/")
        if len(name) > 200 or not all(step and step.isprintable() for step in steps):
            raise BadParameter(
                f"log {name!r}: should be words parted by /, at most 200 characters, for instance"
                " sample/temperature"
            )
        above = ("/".join(steps[:end]) for end in range(1, len(steps)))
        taken = next((group for group in above if group in self._lines), None)
        if taken is not None or name in self._groups:
            other = taken or next(known for known in self._lines if known.startswith(f"{name}/"))
            raise BadParameter(
                f"log {name}: there is a series {other} already, and one name cannot lead to a"
                " value and to further names"
            )


def _value(name: str, value: object) -> float | str:
    if isinstance(value, str) and len(value) <= LONGEST_TEXT:
        return value
    if isinstance(value, Real):
        return float(value)
    raise BadParameter(
        f"log {name}: should be a number, or a text of at most {LONGEST_TEXT} characters;"
        f" given: {str(value)[:50]!r} ({type(value).__name__})"
    )
