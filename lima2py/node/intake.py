"""Intake: where a processing node gets the blocks that its graph takes.

Acquisition nodes give pieces of them, which are put together here: the modules of a frame (`Join`),
then the frames of other detectors with those of the main one (`Gather`). What the nodes of a stage
before give is whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from lima2py.detector import spec_of_modules
from lima2py.frame import Block, FrameSpec
from lima2py.graph.plan import Plan
from lima2py.memory_settings import MemorySettings
from lima2py.node.node import Node
from lima2py.node.onward import bundle_of
from lima2py.node.orders import Feeder, ProcessingOrder, pick_address
from lima2py.node.sharing import credits_for, pieces_of, room_for_blocks
from lima2py.policies import Policies
from lima2py.source import Source
from lima2py.transport.bundle import Bundle
from lima2py.transport.gather import Gather, Gathered, Giver
from lima2py.transport.join import Join, Joined, Piece
from lima2py.transport.pull import Pull, Sender
from lima2py.transport.wire import DoneBlock


class Intake(Source):
    """Whole blocks, of all detectors.

    Args:
        order: for the run.
        node: whose it is.
        plan: of the whole graph.
        part: of that, what this node runs.
        settings: of memory.

    Attributes:
        credits: the most blocks that one sender has in flight here.
        senders: who gives, at first.
        pull: takes what they give, and answers them.
    """

    def __init__(
        self,
        order: ProcessingOrder,
        node: Node,
        plan: Plan,
        part: Plan,
        settings: MemorySettings,
    ):
        main = [ready for ready in order.senders if not ready.other]
        others = [ready for ready in order.senders if ready.other]
        lead = main[0]
        self.spec = FrameSpec.from_plain(lead.spec)
        pieces = {} if order.feeders else pieces_of(main)
        self._order = order
        self._identity = node.identity
        self._bundle = bundle_of(order, plan, order.stage - 1) if order.feeders else None
        self._room_to_join = settings.join if pieces else 0
        self._join: Join | None = None
        self._gather: Gather | None = None
        self.credits = _credits(order, part, settings)
        self.senders = _senders(order, self._bundle, pieces, node.identity)
        policies = Policies.load(lead.policies, "policies")
        self.pull = pull = Pull(
            node.context,
            order.run,
            order.rank,
            node.incarnation,
            self.senders,
            node.addresses("frames"),
            self.most,
            share_memory=not node.isolated,
            bundle=self._bundle,
            patience=policies.node_patience if order.feeders else 0.0,
        )
        self._source: Source = pull
        try:
            if pieces:
                gap_value = lead.detector["info"]["gap_value"]
                self._join = Join(
                    self.spec, lead.ring.frames, pieces, gap_value, policies, pull.ends,
                    pull.ask_stop,
                )  # fmt: skip
                self._source = Joined(self._source, self._join)
            if others and not order.feeders:
                givers = {
                    ready.rank: Giver(ready.name, ready.other, ready.companion) for ready in others
                }
                self._gather = Gather(givers, pull.ends, policies, pull.ask_stop)
                self._source = Gathered(self._source, self._gather)
        except BaseException:
            self.close()
            raise

    @property
    def most(self) -> int:
        """The most blocks that are here at a time."""
        return self.credits * len(self.senders)

    @property
    def footprint(self) -> int:
        """Bytes that it takes: frames that come over the network, and room to join modules."""
        rings = {giver.rank: giver.ring for giver in self._order.feeders or self._order.senders}
        shared = self.pull.shared
        coming = sum(ring.stride for rank, ring in rings.items() if rank not in shared)
        return self.credits * coming + self._room_to_join

    @property
    def remarks(self) -> list[str]:
        """What the user should know of pieces that did not come."""
        return [
            text
            for assembly in (self._gather, self._join)
            if assembly is not None
            for text in assembly.remarks
        ]

    def __iter__(self) -> Iterator[Block | None]:
        """See `Source`: until all senders have said their end."""
        return iter(self._source)

    def acknowledge(self, done: list[DoneBlock]) -> None:
        """Nobody here needs these blocks any more: tell those who gave them."""
        self.pull.acknowledge(done)
        if self._join is not None:
            self._join.done((one.index, one.epoch) for one in done)

    def meet(self, feeder: Feeder) -> Sender:
        """Take one more node of the stage before. From any thread, of a run at work."""
        assert self._bundle is not None  # noqa: S101 - it is of a later stage
        sender = feeder.sender(self._bundle, self._identity)
        self.pull.take(sender)
        return sender

    def lose_nodes(self, ranks: Iterable[int]) -> None:
        """Processing nodes are dead: wait for none of the stage before. From any thread."""
        if self._order.feeders:
            for rank in ranks:
                self.pull.lose(rank)

    def lose_source(self, rank: int) -> None:
        """An acquisition node is dead: do not wait for its end. From any thread."""
        if not self._order.feeders:
            self.pull.lose(rank)

    def close(self) -> None:
        """See `Source`."""
        self.pull.close()


def _senders(
    order: ProcessingOrder, bundle: Bundle | None, pieces: Mapping[int, Piece], host: str
) -> list[Sender]:
    """Who gives blocks to a node on a host."""
    if bundle is not None:
        return [feeder.sender(bundle, host) for feeder in order.feeders]
    senders = []
    for ready in order.senders:
        spec = FrameSpec.from_plain(ready.spec)
        if ready.rank in pieces:
            spec = spec_of_modules(spec, pieces[ready.rank].boxes)
        address = pick_address(ready.addresses, ready.host == host)
        senders.append(Sender(ready.rank, address, ready.ring, spec, ready.handle))
    return senders


def _credits(order: ProcessingOrder, plan: Plan, settings: MemorySettings) -> int:
    """The most blocks that one sender may have in flight here."""
    if order.feeders:
        slots = min(feeder.ring.slots for feeder in order.feeders)
        return credits_for(slots, order.nodes, plan.group)
    lead = order.senders[0]
    if lead.modules:
        room = settings.join // (lead.ring.frames * plan.spec.nbytes)
        return credits_for(lead.ring.slots, order.nodes, plan.group, room)
    slots = min(room_for_blocks(ready, lead) for ready in order.senders)
    return credits_for(slots, order.nodes, plan.group)
