"""Join: whole frames out of the modules that several acquisition nodes deliver. No sockets here.

The node of rank 0 leads: each block it gives a processing node is a unit, and the pieces that the
others give of these frames are laid into it, whatever blocks they come in. Units leave in the order
in which they came, each when all of it is there, or has been waited for long enough.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from lima2py.frame import Absence, Array, Block, Fate, FrameSpec
from lima2py.geometry import Roi
from lima2py.policies import Policies
from lima2py.source import Source

LEAD = 0
MODULE_MISSING = "module_missing"
"""The per-frame column with a bit for every module that is missing, in the order of the modules."""
MOST_MODULES = 64
_EARLY = 4096
"""The most pieces of an acquisition node that wait for the lead."""


class Piece(NamedTuple):
    """What one acquisition node delivers of every frame.

    Attributes:
        name: of the node.
        modules: their names.
        boxes: where they lie in the whole frame, which they come one under the other.
        bits: of them in the column `module_missing`.
    """

    name: str
    modules: tuple[str, ...]
    boxes: tuple[Roi, ...]
    bits: int


class _Unit:
    """The frames of one block of the lead, while they are put together.

    Attributes:
        block: as the lead gave it.
        pixels: the whole frames, `(frames, *spec.shape)`; None if none will have any.
        to_come: by acquisition node, how many of its frames have not come.
        came: which have.
        absences: by acquisition node, why frames of it are absent.
        until: when it is waited for no longer, `time.monotonic()`.
    """

    def __init__(self, block: Block, pixels: Array | None, to_come: dict[int, int], until: float):
        self.block = block
        self.pixels = pixels
        self.to_come = to_come
        self.absences: dict[int, dict[int, Absence]] = {LEAD: dict(block.absences)}
        self.came = {source: np.zeros(block.count, bool) for source in to_come}
        self.until = until


class Join:
    """Puts frames together.

    Args:
        spec: of the whole frames.
        frames: the most that have data, of a block.
        pieces: by rank, what each acquisition node delivers.
        gap_value: of pixels that no module covers.
        policies: how long to wait, and what to do then.
        ends: of acquisition nodes that acquire no more, the number that follows their last frame.
        stop: is called with the reason when the acquisition should end.

    Attributes:
        spec: of the whole frames.
        incomplete: how many frames missed modules so far, by the name of their acquisition node.
        late: how many pieces came when nobody waited for them any more.
    """

    def __init__(
        self,
        spec: FrameSpec,
        frames: int,
        pieces: Mapping[int, Piece],
        gap_value: float,
        policies: Policies,
        ends: Mapping[int, int],
        stop: Callable[[str], None] = lambda _reason: None,
    ):
        self.spec = spec
        self._frames = frames
        self._pieces = pieces
        self._gap_value = gap_value
        self._policies = policies
        self._ends = ends
        self._stop = stop
        self._fill = np.nan if spec.dtype.kind == "f" else np.iinfo(spec.dtype).max
        self._units: deque[_Unit] = deque()
        self._early: dict[int, deque[tuple[Block, int]]] = {  # and how many frames no unit had yet
            rank: deque(maxlen=_EARLY) for rank in pieces if rank != LEAD
        }
        self._behind: set[int] = set()
        self._owed: dict[int, deque[tuple[int, int, int]]] = {
            rank: deque(maxlen=_EARLY) for rank in self._early
        }
        self._newest = 0  # follows the last frame of the unit that came last
        self._used: dict[tuple[int, int], Array] = {}  # by first frame and epoch
        self._free: list[Array] = []
        self.incomplete: dict[str, int] = {}
        self.late = 0

    @property
    def sources(self) -> Collection[int]:
        """The ranks of those that deliver modules."""
        return self._pieces.keys()

    def take(self, block: Block) -> Iterator[Block]:
        """Take a piece; gives the whole frames that are complete now."""
        source = block.origin[0]
        if source == LEAD:
            self._open(block)
        else:
            self._lay(source, block)
        return self.ready()

    def ready(self) -> Iterator[Block]:
        """Whole frames that are complete, or have been waited for long enough."""
        while self._units and self._is_ready(self._units[0]):
            yield self._close(self._units.popleft())

    def done(self, blocks: Iterable[tuple[int, int]]) -> None:
        """Whole frames, by their first and epoch, that nobody needs any more."""
        for which in blocks:
            pixels = self._used.pop(which, None)
            if pixels is not None:
                self._free.append(pixels)

    @property
    def remarks(self) -> list[str]:
        """What the user should know of frames that were not complete."""
        return [
            f"{count} frames missed modules of acquisition node {name}"
            for name, count in self.incomplete.items()
        ]

    def _open(self, block: Block) -> None:
        waiting = {rank: block.count for rank in self._pieces if rank != LEAD}
        until = time.monotonic() + self._policies.join_timeout
        unit = _Unit(block, self._room(block), waiting, until)
        self._units.append(unit)
        self._newest = block.end
        if block.data is not None:
            self._copy(LEAD, block.pixels, unit, 0)
        for rank, early in self._early.items():
            for _ in range(len(early)):
                piece, left = early.popleft()
                left -= self._lay_into(rank, piece, unit)
                if left:  # for another unit
                    early.append((piece, left))

    def _lay(self, source: int, piece: Block) -> None:
        covered = 0
        for unit in self._units:
            covered += self._lay_into(source, piece, unit)
        if covered == piece.count:
            return
        for first, end, epoch in self._owed[source]:
            if epoch == piece.origin[1] and first < piece.end and piece.index < end:
                self.late += 1
                if piece.end >= self._newest:  # it has caught up
                    self._behind.discard(source)
                return
        self._early[source].append((piece, piece.count - covered))

    def _lay_into(self, source: int, piece: Block, unit: _Unit) -> int:
        """Lay what a piece has of the frames of a unit into it; how many these are."""
        block = unit.block
        first, end = max(piece.index, block.index), min(piece.end, block.end)
        if first >= end or piece.origin[1] != block.origin[1]:
            return 0
        part = piece.part(first - piece.index, end - piece.index)
        at = first - block.index
        came = unit.came[source]
        unit.to_come[source] -= int(np.count_nonzero(~came[at : at + part.count]))
        came[at : at + part.count] = True
        if part.data is not None:
            self._copy(source, part.pixels, unit, at)
        if part.absences:
            found = unit.absences.setdefault(source, {})
            found.update((at + offset, said) for offset, said in part.absences.items())
        return end - first

    def _copy(self, source: int, pixels: Array, unit: _Unit, at: int) -> None:
        if unit.pixels is None:
            return
        top = 0
        there = unit.pixels[at : at + len(pixels)]
        for box in self._pieces[source].boxes:
            there[:, :, *box.slices] = pixels[:, :, top : top + box.height]
            top += box.height

    def _is_ready(self, unit: _Unit) -> bool:
        """Whether nothing more is to come; from now on nobody waits for those who are late."""
        waited_for = {
            rank
            for rank, count in unit.to_come.items()
            if count and self._ends.get(rank, unit.block.end) >= unit.block.end
        }
        if not waited_for <= self._behind and time.monotonic() < unit.until:
            return False
        self._behind |= waited_for
        return True

    def _close(self, unit: _Unit) -> Block:
        """The whole frames of a unit, and why those that are incomplete are."""
        for rank, count in unit.to_come.items():
            if count:
                found = unit.absences.setdefault(rank, {})
                said = self._missing(rank)
                for offset in np.flatnonzero(~unit.came[rank]).tolist():
                    found[offset] = said
                self._owed[rank].append((unit.block.index, unit.block.end, unit.block.origin[1]))
        block, keep = unit.block, self._policies.missing_modules == "keep"
        given_up = {at: said for at, said in block.absences.items() if said.who == "ledger"}
        missing: dict[int, list[int]] = {}
        for rank in sorted(unit.absences):
            for offset in unit.absences[rank].keys() - given_up.keys():
                missing.setdefault(offset, []).append(rank)
        absences = {
            offset: self._absence(unit, offset, ranks)
            for offset, ranks in missing.items()
            if not keep or unit.pixels is None or len(ranks) == len(self._pieces)
        }
        columns = dict(block.columns)
        if keep:
            columns[MODULE_MISSING] = self._fill_missing(unit, missing)
        elif self._policies.missing_modules == "stop" and absences:
            offset = min(absences)
            self._stop(f"frame {block.index + offset}: {absences[offset]}")
        absences |= given_up
        pixels = None
        if unit.pixels is not None:
            self._used[block.index, block.origin[1]] = unit.pixels
            pixels = unit.pixels[: block.count] if len(absences) < block.count else None
        return Block(
            self.spec, block.index, block.count, pixels, absences, columns, block.origin,
            block.acquired_at,
        )  # fmt: skip

    def _missing(self, rank: int) -> Absence:
        piece = self._pieces[rank]
        lost = self._ends.get(rank) == 0
        why = "is lost" if lost else f"gave nothing in {self._policies.join_timeout:g} s"
        if not lost and rank in self._ends:
            why = "had no more frames"
        return Absence(Fate.INCOMPLETE, "join", f"acquisition node {piece.name} {why}")

    def _absence(self, unit: _Unit, offset: int, ranks: list[int]) -> Absence:
        """Why a frame of which some modules are missing is absent."""
        said = [unit.absences[rank][offset] for rank in ranks]
        if len(ranks) == len(self._pieces) and len({one.cause for one in said}) == 1:
            return said[0]  # all of the detector says the same
        for rank in ranks:
            name = self._pieces[rank].name
            self.incomplete[name] = self.incomplete.get(name, 0) + 1
        details = "; ".join(
            f"{', '.join(self._pieces[rank].modules)}: {one.detail or one.cause.word}"
            for rank, one in zip(ranks, said, strict=True)
        )
        return Absence(Fate.INCOMPLETE, "join", details)

    def _fill_missing(self, unit: _Unit, missing: Mapping[int, list[int]]) -> Array:
        """Say in the pixels, and by bits, which modules are missing."""
        bits = np.zeros(unit.block.count, np.uint64)
        for offset, ranks in missing.items():
            for rank in ranks:
                piece = self._pieces[rank]
                bits[offset] |= np.uint64(piece.bits)
                if unit.pixels is None:
                    continue
                for box in piece.boxes:
                    unit.pixels[offset, :, *box.slices] = self._fill
                if len(ranks) < len(self._pieces):
                    self.incomplete[piece.name] = self.incomplete.get(piece.name, 0) + 1
        return bits

    def _room(self, block: Block) -> Array | None:
        """Memory for whole frames: pixels between modules have their value."""
        keeps = self._policies.missing_modules == "keep" and block.count <= self._frames
        if block.data is None and not keeps:
            return None
        if self._free:
            return self._free.pop()
        return np.full((self._frames, *self.spec.shape), self._gap_value, self.spec.dtype)


class Joined(Source):
    """Whole frames out of the pieces that come from a source.

    Args:
        pieces: where they come from.
        join: puts them together.
    """

    def __init__(self, pieces: Source, join: Join):
        self.spec = join.spec
        self._pieces = pieces
        self._join = join

    def __iter__(self) -> Iterator[Block | None]:
        """Blocks of whole frames until no more pieces come."""
        for piece in self._pieces:
            if piece is not None and piece.origin[0] not in self._join.sources:
                yield piece  # of another detector
            elif piece is not None:
                yield from self._join.take(piece)
            else:
                yield from self._join.ready()
                yield None
