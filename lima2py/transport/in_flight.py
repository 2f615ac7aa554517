"""What is in flight: the blocks that were acquired and are not settled. No sockets here.

A block that was split into its frames is several of them, which lie in one slot.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from lima2py.frame import Absence
from lima2py.transport import packing, wire
from lima2py.transport.dispatch import Dispatch, Item


class Settled(NamedTuple):
    """A block nobody needs any more.

    Attributes:
        slot: of the ring; -1 if it had none, or others lie there still.
        node: the rank of the node that did it, -1 if none did.
        sent: how many times it was given to a node.
        done: what became of its frames.
    """

    slot: int
    node: int
    sent: int
    done: wire.DoneBlock


class InFlight:
    """The blocks of an acquisition node that are not settled, in the order in which they came.

    Args:
        queue: in which they wait, and which knows who has them.
    """

    def __init__(self, queue: Dispatch):
        self._queue = queue
        self._items: dict[int, Item] = {}
        self._parts: dict[int, int] = {}  # by slot, how many parts of its block are not settled

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Item]:
        """All of them; some may be settled meanwhile."""
        return iter(list(self._items.values()))

    @property
    def firsts(self) -> list[int]:
        """Their first frames. From any thread."""
        return list(self._items)

    def find(self, index: int) -> Item | None:
        """That which begins with a frame, if there is one."""
        return self._items.get(index)

    def of(self, ranks: Collection[int]) -> list[Item]:
        """Those that some nodes have."""
        return [item for item in self._items.values() if item.owner in ranks]

    def add(self, item: Item) -> None:
        """A block that was just acquired waits for a node."""
        self._items[item.block.index] = item
        self._queue.put(item)

    def settle(self, item: Item) -> int:
        """Nobody needs a block any more; the slot that is free now, -1 if none is."""
        self._forget(item)
        left = self._parts.pop(item.slot, 1) - 1
        if left:
            self._parts[item.slot] = left
            return -1
        return item.slot

    def split(self, item: Item, group: int = 1) -> list[Item]:
        """The frames of a block in its place, one by one: see `Item.split`."""
        self._forget(item)
        parts = item.split(group)
        self._parts[item.slot] = len(parts)
        self._items.update((part.block.index, part) for part in parts)
        return parts

    def cut(self, item: Item, count: int) -> Item:
        """Cut off the first frames of a block, settled apart; its owner has both parts."""
        first, rest = item.cut(count)
        self._items[item.block.index] = first
        self._items[rest.block.index] = rest
        self._parts[item.slot] = self._parts.get(item.slot, 1) + 1
        self._queue.count_twice(item)
        return first

    def _forget(self, item: Item) -> None:
        del self._items[item.block.index]
        self._queue.take_back(item)
        item.over = True


def nobody_did(item: Item, why: Absence, spans: Sequence[int], source: int) -> wire.DoneBlock:
    """What became of the frames of a block that nobody will do any more.

    Args:
        item: the block; frames that were absent before keep their cause.
        why: the others are absent.
        spans: for every sink, how many frames one of its rows stands for.
        source: rank of the acquisition node.
    """
    first, count = item.block.index, item.block.count
    ranges = packing.pack_absences({**dict.fromkeys(range(count), why), **item.block.absences})
    lost = [(0, part) for part in ranges]
    for track, span in enumerate(spans, 1):
        if span == 1:
            lost += [(track, part) for part in ranges]
        elif rows := (first + count) // span - first // span:
            lost.append((track, (0, rows, int(why.cause), why.who, why.detail)))
    return wire.DoneBlock(first, count, source, item.epoch, [-1] * len(spans), lost)
