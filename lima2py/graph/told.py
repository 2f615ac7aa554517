"""What went wrong in a run, each thing once: a task that fails on every frame says so once."""

from __future__ import annotations

from collections.abc import Iterable

KEPT = 8
MOST = 10_000
"""Each frame may have its own text."""


class Told:
    """Errors, with the frames they happened to."""

    def __init__(self) -> None:
        self._said: dict[tuple[str, str], Frames] = {}

    def add(self, who: str, what: str, frames: Iterable[int] = ()) -> None:
        """Note an error.

        Args:
            who: the task or the sink.
            what: went wrong.
            frames: of the detector.
        """
        if (who, what) in self._said or len(self._said) < MOST:
            self._said.setdefault((who, what), Frames()).add(frames)

    def lines(self) -> list[str]:
        """For a person: the first errors, and how many others there were."""
        said = list(self._said.items())
        lines = [f"{who} {what}{frames}" for (who, what), frames in said[:KEPT]]
        if len(said) > KEPT:
            lines.append(f"and {len(said) - KEPT} other errors of tasks and sinks")
        return lines


class Frames:
    """How many frames, and the first of them."""

    def __init__(self, frames: Iterable[int] = ()):
        self.count = 0
        self.first = 0
        self.add(frames)

    def add(self, frames: Iterable[int]) -> None:
        """Note some more."""
        for frame in frames:
            self.first = min(self.first, frame) if self.count else frame
            self.count += 1

    def __str__(self) -> str:
        if self.count < 2:
            return f", on frame {self.first}" if self.count else ""
        return f", on {self.count} frames, the first of them {self.first}"
