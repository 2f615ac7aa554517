"""Why the lines of a table are absent: a number for each line, and what the numbers stand for.

Two bytes a line, however many are absent and in whatever pattern; what a disk or a person is told
are ranges of lines.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from lima2py.frame import Absence, Fate

Lines = slice | NDArray[np.int64] | NDArray[np.bool_]
"""Some lines of a table: from one to another, by their numbers, or a mask of all."""
MOST_WORDS = 2**16 - 1
"""The most different reasons that are kept; of lines with others only the fate is known."""


class Reasons:
    """Why lines are absent, as far as anybody said so.

    Args:
        length: of the table, in lines.

    Attributes:
        number: by line, which of the reasons it has, counted from 1; 0 if none is known.
        words: the reasons, each once.
    """

    def __init__(self, length: int):
        self.number: NDArray[np.uint16] = np.zeros(length, np.uint16)
        self.words: list[Absence] = []
        self._numbers: dict[Absence, int] = {}

    @classmethod
    def of(cls, number: NDArray[np.uint16], words: Iterable[Absence]) -> Self:
        """From the number of every line, and what the numbers stand for."""
        made = cls(0)
        made.number, made.words = number, list(words)
        made._numbers = {said: at for at, said in enumerate(made.words, 1)}
        return made

    @classmethod
    def of_ranges(cls, length: int, ranges: Iterable[tuple[int, int, Absence]]) -> Self:
        """From first line, last line and reason; what is said last of a line counts."""
        made = cls(length)
        for first, last, said in ranges:
            made.note(slice(first, last + 1), said)
        return made

    def copy(self) -> Reasons:
        """The same, to be changed."""
        return Reasons.of(self.number.copy(), self.words)

    def grow(self, length: int) -> None:
        """Be of so many lines; those that are new have no reason."""
        self.number = longer(self.number, length, 0)

    def note(self, lines: Lines, said: Absence) -> None:
        """Some lines are absent for a reason."""
        self.number[lines] = self._number_of(said)

    def add(self, ranges: Iterable[tuple[int, int, Absence]]) -> None:
        """Note first line, last line and reason; what was known before stays."""
        for first, last, said in ranges:
            part = self.number[first : last + 1]
            part[part == 0] = self._number_of(said)

    def take(self, lines: Lines, theirs: Reasons, their_lines: Lines | None = None) -> None:
        """Take over the reasons of somebody else.

        Args:
            lines: ours.
            theirs: their reasons.
            their_lines: the lines of theirs that are ours, if they are others.
        """
        ours = np.array([0, *map(self._number_of, theirs.words)], np.uint16)
        self.number[lines] = ours[theirs.number[lines if their_lines is None else their_lines]]

    def ranges(self, fates: NDArray[np.uint8]) -> Iterator[tuple[int, int, Absence]]:
        """The lines that are not saved, as first, last and reason; neighbours are one range.

        Args:
            fates: of all lines; a reason of another cause does not count.
        """
        number = self.number[: len(fates)]
        new = np.flatnonzero((fates[1:] != fates[:-1]) | (number[1:] != number[:-1])) + 1
        first, said = 0, None
        for line in chain([0] if len(fates) else [], map(int, new)):
            now = self._said(int(fates[line]), int(number[line]))
            if now != said:
                if said is not None:
                    yield first, line - 1, said
                first, said = line, now
        if said is not None:
            yield first, len(fates) - 1, said

    def _said(self, fate: int, number: int) -> Absence | None:
        if fate == Fate.SAVED:
            return None
        said = self.words[number - 1] if number else None
        return said if said is not None and said.cause == fate else Absence(Fate(fate), "")

    def _number_of(self, said: Absence) -> int:
        number = self._numbers.get(said, 0)
        if not number and len(self.words) < MOST_WORDS:
            self.words.append(said)
            number = self._numbers[said] = len(self.words)
        return number


def longer(values: NDArray[Any], length: int, fill: int) -> NDArray[Any]:
    """The same values, and `fill` behind them."""
    grown = np.full(length, fill, values.dtype)
    grown[: len(values)] = values
    return grown
