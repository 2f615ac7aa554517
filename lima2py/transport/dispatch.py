"""Who is given which block, and when: groups, credits, the least loaded, and suspects.

No sockets and no clocks here. Blocks wait in the order of their frames. A group of frames that is
spread over several blocks is given to one node, in order; when that is lost, another one is given
the group from its beginning. Suspects, blocks that were being worked on when their node died, are
given to one node that has nothing else to do; so a second death is no coincidence. When it died
while it saved, all it had are doubted: each is tried as a whole before it is suspect.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from lima2py.frame import Absence, Block

NOBODY = -1
NO_GROUP = -1
DEATHS = 2
"""A frame that brought down so many nodes is given up."""
SENT = 4
"""A block that more nodes than this had when they were lost is suspect, whatever they were at."""


def shared_group(first: int, end: int, size: int) -> int:
    """The group, by number, of which frames `first` to before `end` are only a part.

    There is one at most: a block that begins within a group ends with it. See `Readout`.
    """
    edges = [edge for edge in (first, end) if edge % size]
    return edges[0] // size if edges else NO_GROUP


@dataclass(slots=True, eq=False)
class Item:
    """A block on its way.

    Attributes:
        block: the frames.
        slot: of the ring, in which they lie; -1 if none.
        offset: of its first frame in the slot.
        group: of which it has only a part, by number; `NO_GROUP` if of none.
        owner: the node that has it, by rank; `NOBODY` while it waits.
        epoch: of the run, when it was given to that.
        given: when that was, `time.monotonic()`.
        sent: how many times it was given to a node.
        deaths: how many nodes died of it.
        doubted: whether the last one that had it died of this, or of another block it had.
        given_up: why nobody shall work on it: it is only to be put aside by who is given it.
        over: whether it is settled.
    """

    block: Block
    slot: int
    group: int = NO_GROUP
    owner: int = NOBODY
    epoch: int = 0
    sent: int = 0
    deaths: int = 0
    doubted: bool = False
    given_up: Absence | None = None
    over: bool = False
    offset: int = 0
    given: float = 0.0

    def split(self, size: int = 1) -> list[Item]:
        """Its frames one by one, to find the one at fault.

        Args:
            size: of groups.
        """
        first = self.block.index
        return [
            Item(
                self.block.part(n, n + 1),
                self.slot,
                shared_group(first + n, first + n + 1, size),
                sent=self.sent,
                deaths=self.deaths,
                offset=n,
            )
            for n in range(self.block.count)
        ]

    def cut(self, count: int) -> tuple[Item, Item]:
        """Its first frames, and the others; their owner has both."""
        block, end = self.block, self.block.count
        return (
            replace(self, block=block.part(0, count)),
            replace(self, block=block.part(count, end), offset=self.offset + count),
        )


@dataclass(slots=True, eq=False)
class _Node:
    credits: int
    load: int = 0
    leaving: bool = False


@dataclass(slots=True, eq=False)
class _Held:
    """Of a group: the node that has it, how many blocks it has of it, and which frame is next."""

    rank: int
    blocks: int = 0
    next: int = 0


class Dispatch:
    """The queue of an acquisition node.

    Args:
        way: `least_loaded` or `round_robin`.
        stretch: consecutive frames that should lie in one file, and take turns together.
        group: consecutive frames that must go to one node.
    """

    def __init__(self, way: Literal["least_loaded", "round_robin"], stretch: int, group: int = 1):
        self._way = way
        self._stretch = stretch
        self._group = group
        self._nodes: dict[int, _Node] = {}
        self._waiting: deque[Item] = deque()
        self._suspects: deque[Item] = deque()
        self._prober = NOBODY
        self._held: dict[int, _Held] = {}  # by group
        self._newest = (-1, NOBODY)  # the stretch of frames that was given away last, and to whom

    # Nodes

    def add(self, rank: int, credits: int) -> None:
        """A node that takes at most so many blocks at a time."""
        self._nodes[rank] = _Node(credits)

    def see_off(self, rank: int) -> None:
        """A node that is given nothing new: only what belongs to groups it has."""
        self._nodes[rank].leaving = True
        if self._prober == rank:
            self._prober = NOBODY

    def remove(self, rank: int) -> None:
        """A node that is gone, and has nothing any more."""
        del self._nodes[rank]
        if self._prober == rank:
            self._prober = NOBODY

    @property
    def loads(self) -> dict[int, int]:
        """How many blocks each node has. From any thread."""
        return {rank: node.load for rank, node in self._nodes.copy().items()}

    def load(self, rank: int) -> int:
        """How many blocks a node has."""
        return self._nodes[rank].load

    # Blocks

    @property
    def waiting(self) -> int:
        """How many blocks have no owner; about, since those given up are among them for a while."""
        return len(self._waiting) + len(self._suspects)

    def put(self, item: Item) -> None:
        """A block that was just acquired."""
        self._waiting.append(item)

    def put_back(self, items: Iterable[Item]) -> None:
        """Blocks of lost nodes: they come before all others, suspects one by one.

        With a suspect goes its whole group.
        """
        back = sorted(items, key=lambda item: -item.block.index)
        suspected = {item.group for item in self._suspects}
        suspected |= {item.group for item in back if item.deaths or item.doubted}
        for item in back:
            tried = item.deaths or item.doubted or item.group in suspected - {NO_GROUP}
            (self._suspects if tried else self._waiting).appendleft(item)

    def take_back(self, item: Item) -> None:
        """The node that has a block has it no more."""
        if item.owner == NOBODY:
            return
        self._nodes[item.owner].load -= 1
        if item.group != NO_GROUP:
            held = self._held[item.group]
            held.blocks -= 1
            if not held.blocks:
                del self._held[item.group]
        item.owner = NOBODY

    def count_twice(self, item: Item) -> None:
        """A block was cut in two, which the node that has it has both."""
        self._nodes[item.owner].load += 1
        if item.group != NO_GROUP:
            self._held[item.group].blocks += 1

    def waits(self, item: Item) -> bool:
        """Whether its node has to wait for the rest of its group before it can report it done."""
        return item.group in self._held and self._is_unfinished(item.group)

    def next(self) -> Item | None:
        """The next block that can be given away, with its new owner; None if there is none."""
        while self._suspects:
            if self._suspects[0].over:
                self._suspects.popleft()
                continue
            rank = self._of_suspect(self._suspects[0])
            if rank == NOBODY:
                break
            return self._give(self._suspects.popleft(), rank)
        if self._prober != NOBODY and not self._suspects and self._is_free(self._prober):
            self._prober = NOBODY
        while self._waiting:
            if self._waiting[0].over:
                self._waiting.popleft()
                continue
            if self._follows_suspects(self._waiting[0]):
                self._suspects.append(self._waiting.popleft())
                continue
            rank = self._choose(self._waiting[0])
            if rank == NOBODY:
                return None
            return self._give(self._waiting.popleft(), rank)
        return None

    def _give(self, item: Item, rank: int) -> Item:
        item.owner = rank
        item.sent += 1
        self._nodes[rank].load += 1
        if item.group != NO_GROUP:
            held = self._held.setdefault(item.group, _Held(rank))
            held.blocks += 1
            held.next = item.block.end
        self._newest = (item.block.index // self._stretch, rank)
        return item

    def _of_suspect(self, item: Item) -> int:
        """Who is given a suspect now: one node that has nothing else to do."""
        if (holder := self._holder(item)) is not None:
            return holder
        if self._prober == NOBODY:
            ranks = [rank for rank, node in self._nodes.items() if not node.leaving]
            self._prober = min(ranks, key=self.load, default=NOBODY)
        if self._prober == NOBODY or not self._is_free(self._prober):
            return NOBODY
        return self._prober if self._has_credit(self._prober) else NOBODY

    def _is_free(self, rank: int) -> bool:
        """Whether a node has nothing, but for groups of which there is more to come.

        The rest of those may wait behind what the node shall be free for.
        """
        unfinished = sum(
            held.blocks
            for group, held in self._held.items()
            if held.rank == rank and self._is_unfinished(group)
        )
        return self.load(rank) == unfinished

    def _is_unfinished(self, group: int) -> bool:
        return self._held[group].next < (group + 1) * self._group

    def _follows_suspects(self, item: Item) -> bool:
        """Whether blocks that come before this one in its group wait to be tried."""
        return item.group != NO_GROUP and any(
            item.group == other.group for other in self._suspects if not other.over
        )

    def _holder(self, item: Item) -> int | None:
        """The node that has the rest of a group; `NOBODY` if it has no credit; None if none."""
        held = self._held.get(item.group)
        if held is None:
            return None
        return held.rank if self._has_credit(held.rank) else NOBODY

    def _has_credit(self, rank: int) -> bool:
        node = self._nodes[rank]
        return node.load < node.credits

    def _choose(self, item: Item) -> int:
        if (holder := self._holder(item)) is not None:
            return holder
        ranks = [
            rank for rank, node in self._nodes.items() if not node.leaving and rank != self._prober
        ]
        if not ranks:
            return NOBODY
        stretch = item.block.index // self._stretch
        turn = stretch % len(ranks)
        if self._way == "round_robin":
            return ranks[turn] if self._has_credit(ranks[turn]) else NOBODY
        newest, rank = self._newest
        if newest == stretch and rank in ranks and self._has_credit(rank):
            return rank
        free = [rank for rank in (*ranks[turn:], *ranks[:turn]) if self._has_credit(rank)]
        return min(free, key=self.load, default=NOBODY)
