"""A track: what became of every frame, as a whole or on its way to one sink."""

from __future__ import annotations

import numpy as np

from lima2py.detector import Share
from lima2py.frame import Absence, Fate
from lima2py.storage.masters.master import FrameTable
from lima2py.storage.reasons import Lines, Reasons, longer
from lima2py.storage.saving.journal import AbsentRange

BYTES_PER_LINE = 14
"""Memory that a track takes."""


class Track:
    """The fate of every frame, or of every `span` of them, and who had it, and where it lies.

    Growable numpy columns.

    Args:
        length: how many frames there are.
        span: how many frames one line stands for.
    """

    def __init__(self, length: int, span: int = 1):
        lines = length // span
        self.span = span
        self.fate = np.zeros(lines, np.uint8)
        self.node = np.full(lines, -1, np.int16)
        self.row = np.full(lines, -1, np.int64)
        self.attempts = np.zeros(lines, np.uint8)
        self.reasons = Reasons(lines)

    def grow(self, length: int) -> None:
        """Be of so many frames."""
        lines = length // self.span
        self.fate, self.node = longer(self.fate, lines, 0), longer(self.node, lines, -1)
        self.row, self.attempts = longer(self.row, lines, -1), longer(self.attempts, lines, 0)
        self.reasons.grow(lines)

    def lines(self, first: int, count: int) -> slice:
        """The lines that end within these frames."""
        return slice(first // self.span, (first + count) // self.span)

    def lay(self, first: int, count: int, node: int, attempts: int, row: int) -> None:
        """Frames are saved, but for what `refuse` says of them after this.

        Args:
            first: frame.
            count: of frames.
            node: that had them.
            attempts: how many times they were given to a node.
            row: of the first line in the file of the node; -1 if there is none.
        """
        lines = self.lines(first, count)
        self.fate[lines] = Fate.SAVED
        self.node[lines] = node
        self.attempts[lines] = min(attempts, 255)
        if row >= 0:
            self.row[lines] = np.arange(row, row + lines.stop - lines.start)

    def refuse(self, first: int, absent: AbsentRange) -> None:
        """Lines are absent.

        Args:
            first: frame from whose line on the range counts.
            absent: the range, within what was laid.
        """
        offset, count, cause, who, detail = absent
        at = first // self.span + offset
        self._note(slice(at, at + count), Absence(Fate(cause), who, detail))

    def close(self, said: Absence, asked: int, share: Share | None = None) -> None:
        """Give every line that has no fate yet this one.

        Args:
            said: the fate.
            asked: how many frames the run is about.
            share: only the frames of this share, if given.
        """
        still_open = self.fate == Fate.NO_RECORD
        still_open[asked // self.span :] = False
        if share is not None and share.size > 1:
            lines = np.flatnonzero(still_open)
            whose = lines * self.span // share.group % share.size
            still_open[lines[whose != share.rank]] = False
        self._note(still_open, said)

    def adopt(self, theirs: FrameTable) -> None:
        """Take over what others know; lines with a fate here keep it."""
        length = min(len(theirs.fate), len(self.fate))
        new = np.flatnonzero((self.fate[:length] == 0) & (theirs.fate[:length] != 0))
        self.fate[new], self.node[new] = theirs.fate[new], theirs.node[new]
        self.row[new] = theirs.row[new]
        if theirs.attempts is not None:
            self.attempts[new] = theirs.attempts[new]
        self.reasons.take(new, theirs.reasons)

    def show(self, theirs: FrameTable) -> None:
        """Take over fates and reasons, whatever they were here."""
        shown = slice(min(len(theirs.fate), len(self.fate)))
        self.fate[shown] = theirs.fate[shown]
        self.reasons.take(shown, theirs.reasons)

    def table(self, asked: int) -> FrameTable:
        """All of it, of the lines of so many frames."""
        lines = slice(asked // self.span)
        return FrameTable(
            self.fate[lines], self.node[lines], self.row[lines], self.reasons, self.attempts[lines]
        )

    def _note(self, lines: Lines, said: Absence) -> None:
        self.fate[lines] = said.cause
        self.reasons.note(lines, said)
