"""What becomes of the blocks of a processing node that was lost: who is to blame? No sockets here.

A block that the node was at is tried again frame by frame; a single frame that brought down two
nodes, or held up one for too long, is given up. Where nobody knows what the node was at, all that
it had are doubted.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from lima2py.frame import Absence, Fate
from lima2py.policies import Policies
from lima2py.transport.board import SAVING, At
from lima2py.transport.dispatch import DEATHS, SENT, Item


class Verdict(NamedTuple):
    """On the blocks of one lost node.

    Attributes:
        back: to be given to other nodes as they are.
        split: likewise, frame by frame.
        given_up: to be given to nobody any more, and why.
    """

    back: list[Item]
    split: list[Item]
    given_up: list[tuple[Item, Absence]]


def judge(
    items: Iterable[Item],
    at: At | None,
    hung: bool,
    left: bool,
    source: int,
    said: str,
    policies: Policies,
) -> Verdict:
    """What becomes of the blocks that a lost node had.

    Args:
        items: the blocks.
        at: what it was at, if that is known.
        hung: whether it was at that for too long.
        left: whether it has closed its files, so that none of them brought it down.
        source: rank of the node that gave it the blocks.
        said: how it was lost, in words.
        policies: of the run.
    """
    verdict = Verdict([], [], [])
    for item in items:
        tried = item.doubted or item.deaths > 0  # when the node had nothing else
        item.doubted = False
        if left or item.block.data is None:
            verdict.back.append(item)
        elif not (_was_at(at, item, source) or (tried and _may_be_at(at, item))):
            item.doubted = _may_be_at(at, item)
            verdict.back.append(item)
        else:
            item.deaths += 1
            if item.block.count > 1 and policies.node_loss != "mark":
                verdict.split.append(item)
            elif hung or item.deaths >= DEATHS:
                cause = Fate.DEADLINE if hung else Fate.POISON
                verdict.given_up.append((item, Absence(cause, "ledger", said)))
            else:
                verdict.back.append(item)
    return verdict


def _was_at(at: At | None, item: Item, source: int) -> bool:
    """Whether a node was at a block when it was lost."""
    return at is not None and (at.source, at.first) == (source, item.block.index)


def _may_be_at(at: At | None, item: Item) -> bool:
    """Whether a node may have been at a block when it was lost, or at another one it had."""
    return at is None or at.first == SAVING or item.sent > SENT
