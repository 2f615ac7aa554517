"""What two stages of nodes say of the same frames, put together as one report.

A block is done when the sinks of this stage hold it and the next stage has said so, too. There it
may have been cut into its frames, to find one at fault: then it is reported in the same parts,
since each has a node and a row of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from lima2py.frame import Absence
from lima2py.graph.passed import keep_worst
from lima2py.transport.in_flight import Settled
from lima2py.transport.packing import pack_absences, unpack_absences
from lima2py.transport.wire import AbsentRange, DoneBlock


class _Open:
    """A block of which not everything is known."""

    def __init__(self, count: int) -> None:
        self.ours: DoneBlock | None = None
        self.theirs: list[Settled] = []
        self.missing = count


class Merge:
    """Puts reports together.

    Args:
        rank: of this node.
        ours: the sinks of this stage, by name, with how many frames a row stands for.
        theirs: those of the stages behind.
        order: the names of all of them, in the order of the graph.
    """

    def __init__(
        self, rank: int, ours: Mapping[str, int], theirs: Mapping[str, int], order: Sequence[str]
    ):
        self._rank = rank
        names = [name for name in order if name in ours or name in theirs]
        place = {name: number for number, name in enumerate(names)}
        self._ours = [place[name] for name in order if name in ours]
        self._theirs = [place[name] for name in order if name in theirs]
        self._spans = [{**ours, **theirs}[name] for name in names]
        self._open: dict[int, _Open] = {}

    def __len__(self) -> int:
        """How many blocks are not done."""
        return len(self._open)

    def begin(self, index: int, count: int) -> None:
        """A block is on its way."""
        self._open[index] = _Open(count)

    def add_ours(self, done: Iterable[DoneBlock]) -> list[DoneBlock]:
        """Blocks that are safe here; those of all that are safe everywhere now."""
        found: list[DoneBlock] = []
        for one in done:
            block = self._open[one.index]
            block.ours = one
            found += self._close(one.index, block)
        return found

    def add_theirs(self, settled: Iterable[Settled]) -> list[DoneBlock]:
        """Blocks, or parts of some, that are safe behind; those that are safe everywhere now."""
        found: list[DoneBlock] = []
        for one in settled:
            index = one.done.index
            if index not in self._open:  # a part
                index = max(first for first in self._open if first < index)
            block = self._open[index]
            block.theirs.append(one)
            block.missing -= one.done.count
            found += self._close(index, block)
        return found

    def _close(self, index: int, block: _Open) -> Iterable[DoneBlock]:
        if block.ours is None or block.missing:
            return ()
        del self._open[index]
        parts = sorted(block.theirs, key=lambda one: one.done.index)
        return [self._merged(block.ours, part) for part in parts]

    def _merged(self, ours: DoneBlock, theirs: Settled) -> DoneBlock:
        """What is known of the frames of a part, from both."""
        done = theirs.done
        first, end = done.index, done.index + done.count
        rows, nodes = [-1] * len(self._spans), [-1] * len(self._spans)
        for place, row in zip(self._ours, ours.rows, strict=True):
            span = self._spans[place]
            rows[place] = row + first // span - ours.index // span if row >= 0 else -1
            nodes[place] = self._rank
        behind = done.nodes or [theirs.node] * len(done.rows)
        for place, row, node in zip(self._theirs, done.rows, behind, strict=True):
            rows[place], nodes[place] = row, node
        whole: dict[int, Absence] = {}
        absences: list[tuple[int, AbsentRange]] = []
        for track, part in ours.absences:
            span = self._spans[self._ours[track - 1]] if track else 1
            cut = _within(part, first // span - ours.index // span, end // span - first // span)
            if track and cut:
                absences.append((self._ours[track - 1] + 1, cut))
            elif cut:
                keep_worst(whole, unpack_absences([cut], done.count))
        for track, part in done.absences:
            if track:
                absences.append((self._theirs[track - 1] + 1, part))
            else:
                keep_worst(whole, unpack_absences([part], done.count))
        absences[:0] = [(0, part) for part in pack_absences(whole)]
        return DoneBlock(first, done.count, ours.source, ours.epoch, rows, absences, nodes)


def _within(part: AbsentRange, first: int, count: int) -> AbsentRange | None:
    """What of a range lies among lines from `first` on, counted from there; None if nothing."""
    begin, many, cause, who, detail = part
    since, until = max(begin, first), min(begin + many, first + count)
    return (since - first, until - since, cause, who, detail) if since < until else None
