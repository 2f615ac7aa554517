"""Frames that go through a graph in stages end as if they had gone through it in one."""

from __future__ import annotations

import numpy as np
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from lima2py.errors import ProtocolError
from lima2py.frame import Absence, Block, Fate, FrameSpec
from lima2py.graph.definition import TaskDefinition, parse_graph
from lima2py.graph.flow import Flow
from lima2py.graph.plan import Plan
from lima2py.graph.stages import crossing, part_of, specs_of
from lima2py.node.ledger import Ledger
from lima2py.node.merge import Merge
from lima2py.task import RunContext, Task
from lima2py.tasks.accumulate import Accumulate
from lima2py.tasks.rois import RoiCounters
from lima2py.tasks.sparsify import Sparsify
from lima2py.transport import packing, wire
from lima2py.transport.bundle import Bundle, pack
from lima2py.transport.in_flight import Settled
from tests.graph.test_flow import Double, Keep

SPEC = FrameSpec.dense(6, 8, "uint16")
RUN = "f" * 32
MOST = 8


def plan_now() -> Plan:
    tasks: dict[str, tuple[str, Task]] = {
        "raw": ("detector", Keep()),
        "double": ("detector", Double(reject_odd=True)),
        "doubles": ("double", Keep()),
        "spot": ("double", RoiCounters.load({"rois": {"a": [1, 1, 3, 3]}}, "spot")),
        "numbers": ("spot", Keep()),
        "bright": ("detector", Sparsify.load({"above": 20000}, "bright")),
        "events": ("bright", Keep()),
        "few": ("detector", Accumulate.load({"frames": 3}, "few")),
        "sums": ("few", Keep()),
    }
    base = parse_graph("tasks: {t: {do: tap, from: detector}}")
    entries = {name: TaskDefinition(name, "test", (source,), task)
               for name, (source, task) in tasks.items()}  # fmt: skip
    return Plan.make(type(base)("g", "", entries, "", "g.yaml", base.base), SPEC)


class Line:
    """Stages in a row, each with a flow of its own, and messages between them."""

    def __init__(self, plan: Plan, stage_of: dict[str, int], shared: bool, nb_frames: int):
        last = max(stage_of.values())
        spans = plan.sink_spans
        parts = [part_of(plan, stage_of, stage) for stage in range(last + 1)]
        self._flows = [
            Flow(part, RunContext(RUN, "g", rank=rank, nb_frames=nb_frames), 1000)
            for rank, part in enumerate(parts)
        ]
        self._names = [crossing(plan, stage_of, stage) for stage in range(last)]
        self._bundles = [Bundle(specs_of(plan, names), MOST) for names in self._names]
        self._slots = [np.zeros(bundle.spec.nbytes, np.uint8) for bundle in self._bundles]
        self._shared = shared
        self._merges = [
            Merge(
                rank,
                {name: spans[name] for name in part.sinks},
                {name: span for name, span in spans.items() if stage_of[name] > rank},
                list(spans),
            )
            for rank, part in enumerate(parts[:-1])
        ]

    def process(self, block: Block, cuts: bool, stage: int = 0) -> None:
        """A block through all stages; behind the first it may come frame by frame."""
        flow = self._flows[stage]
        flow.process(block)
        if stage == len(self._bundles):
            return
        self._merges[stage].begin(block.index, block.count)
        bundle, slot = self._bundles[stage], self._slots[stage]
        made = bundle.block(block, flow.products(self._names[stage]))
        if made.data is not None:
            made = bundle.write(made, slot)
        step = 1 if cuts else made.count
        for first in range(0, made.count, step):
            given = made.part(first, first + step)
            self.process(self._sent(stage, given, first), cuts, stage + 1)

    def _sent(self, stage: int, block: Block, offset: int) -> Block:
        said, parts = pack(block, self._shared)
        here = self._shared and block.data is not None
        sent = wire.encode(
            wire.BlockMessage(
                RUN, stage, 7, block.index, block.count, 0 if here else -1,
                packing.pack_absences(block.absences), {}, block.acquired_at, offset, said,
            )
        )  # fmt: skip
        message = wire.decode(sent)
        assert isinstance(message, wire.BlockMessage)
        rest = [zmq.Frame(bytes(part)) for part in parts]
        slot = self._slots[stage].copy() if here else None
        return self._bundles[stage].read(message, slot, rest)

    def finish(self) -> list[wire.DoneBlock]:
        """What the first stage reports."""
        *earlier, last = [flow.finish() for flow in self._flows]
        for stage, (merge, done) in reversed(
            list(enumerate(zip(self._merges, earlier, strict=True)))
        ):
            settled = [Settled(-1, stage + 1, 1, one) for one in last]
            last = merge.add_ours(done) + merge.add_theirs(settled)
            assert not len(merge)
        return last


@st.composite
def stagings(draw: st.DrawFn) -> dict[str, int]:
    found: dict[str, int] = {}
    for step in plan_now().steps:
        least = max(found.get(name, 0) for name in step.inputs)
        most = least if step.name == "sums" else 2
        found[step.name] = draw(st.integers(least, most))
    used = sorted({0, *found.values()})
    return {name: used.index(stage) for name, stage in found.items()}


@settings(max_examples=40)
@given(
    stagings(),
    st.lists(st.integers(1, MOST), min_size=1, max_size=5),
    st.sets(st.integers(0, 30), max_size=4),
    st.booleans(),
    st.booleans(),
)
def test_stages_say_of_every_frame_what_one_would(
    stage_of: dict[str, int], sizes: list[int], gaps: set[int], shared: bool, cuts: bool
) -> None:
    total, blocks = sum(sizes), []
    gap = Absence(Fate.DETECTOR_GAP, "detector")
    pixels = np.random.default_rng(1).integers(0, 30000, (total, *SPEC.shape), np.uint16)
    first = 0
    for size in sizes:
        absent = {at: gap for at in range(size) if first + at in gaps}
        data = pixels[first : first + size] if len(absent) < size else None
        blocks.append(Block(SPEC, first, size, data, absent, {}, (0, 3)))
        first += size
    tables, kept = [], []
    for staged in (False, True):
        plan = plan_now()
        line = Line(plan, stage_of if staged else dict.fromkeys(stage_of, 0), shared, total)
        for block in blocks:
            line.process(block, cuts and staged)
        ledger = Ledger(plan.sink_spans, total)
        for done in line.finish():
            packing.check_done(done, done.index, done.count, list(plan.sink_spans.values()))
            ledger.settle(done, 0)
        tables.append((ledger.counts(), {name: ledger.table(name) for name in plan.sinks}))
        kept.append({name: Block.join(sink._kept) for name, sink in plan.sinks.items()
                     if isinstance(sink, Keep) and sink._kept})  # fmt: skip
    (counts, one), (staged_counts, several) = tables
    assert staged_counts == counts
    for sink, table in one.items():
        assert several[sink].fate.tolist() == table.fate.tolist(), sink
        assert several[sink].row.tolist() == table.row.tolist(), sink
        reasons = [list(found.reasons.ranges(found.fate)) for found in (table, several[sink])]
        assert reasons[0] == reasons[1]
        rows = several[sink].row >= 0
        assert set(several[sink].node[rows].tolist()) <= {stage_of[sink]}
        whole, parts = kept[0].get(sink), kept[1].get(sink)
        assert (whole is None) == (parts is None)
        if whole is not None and parts is not None:
            assert [str(frame.data) for frame in whole.frames()] == [
                str(frame.data) for frame in parts.frames()
            ]


@given(
    st.lists(
        st.tuples(
            st.dictionaries(
                st.sampled_from(["a", "timestamp"]), st.just(("<f8", b"x" * 8)), max_size=1
            ),
            st.integers(-1, 3),
        ),
        max_size=3,
    ),
    st.integers(-2, 300),
    st.integers(-1, 9),
    st.booleans(),
    st.lists(st.binary(max_size=64), max_size=3),
)
def test_what_is_no_block_of_a_bundle_is_refused(
    products: list[tuple[wire.Columns, int]], count: int, offset: int, slot: bool, rest: list[bytes]
) -> None:
    plan = plan_now()
    bundle = Bundle(specs_of(plan, ("double", "bright")), MOST)
    said = [wire.Product([], columns, place) for columns, place in products]
    message = wire.BlockMessage(RUN, 0, 1, 0, count, -1, [], {}, 0.0, offset, said)
    there = np.zeros(bundle.spec.nbytes, np.uint8) if slot else None
    try:
        block = bundle.read(message, there, [zmq.Frame(part) for part in rest])
    except ProtocolError:
        return
    assert block.count == count
    assert [product.count for product in block.companions.values()] == [count, count]


def test_the_parts_of_a_block_are_reported_when_all_of_it_is_known() -> None:
    merge = Merge(4, {"raw": 1, "sums": 2}, {"late": 1}, ["raw", "late", "sums"])
    merge.begin(10, 4)
    merge.begin(20, 2)
    lost = (int(Fate.POISON), "ledger", "x")
    ours = wire.DoneBlock(10, 4, 1, 9, [100, 50], [(1, (1, 2, int(Fate.NOT_SAVED), "raw", "y"))])
    assert merge.add_ours([ours]) == []
    parts = [(13, [7]), (10, [3]), (12, [5])]
    for index, row in parts:
        done = wire.DoneBlock(index, 1, 4, 2, row, [])
        assert merge.add_theirs([Settled(-1, 6, 1, done)]) == []
    dead = wire.DoneBlock(11, 1, 4, 2, [-1], [(0, (0, 1, *lost)), (1, (0, 1, *lost))])
    told = merge.add_theirs([Settled(3, -1, 2, dead)])
    assert [(one.index, one.count, one.source, one.epoch) for one in told] == [
        (10, 1, 1, 9), (11, 1, 1, 9), (12, 1, 1, 9), (13, 1, 1, 9),
    ]  # fmt: skip
    assert [one.rows for one in told] == [[100, 3, 50], [101, -1, 50], [102, 5, 51], [103, 7, 51]]
    assert [one.nodes for one in told] == [[4, 6, 4], [4, -1, 4], [4, 6, 4], [4, 6, 4]]
    unsaved = (int(Fate.NOT_SAVED), "raw", "y")
    assert [one.absences for one in told] == [
        [],
        [(0, (0, 1, *lost)), (1, (0, 1, *unsaved)), (2, (0, 1, *lost))],
        [(1, (0, 1, *unsaved))],
        [],
    ]
    assert len(merge) == 1


def test_frames_that_nobody_will_do_cross_without_their_data() -> None:
    """The rest of their group is told why they are missing."""
    plan = plan_now()
    bundle = Bundle(specs_of(plan, ("double",)), MOST)
    pixels = np.ones((2, *SPEC.shape), np.uint16)
    given = Block(SPEC, 4, 2, pixels)
    why = Absence(Fate.POISON, "ledger", "x")
    block = bundle.block(given, [given]).refuse(dict.fromkeys(range(2), why))
    said, parts = pack(block, shared=True)
    assert parts == []
    absences = packing.pack_absences(block.absences)
    message = wire.BlockMessage(RUN, 0, 1, 4, 2, -1, absences, {}, 0.0, 0, said)
    made = bundle.read(message, None, [])
    assert made.data is None
    assert made.companions["double"].data is None
    assert dict(made.absences) == dict(made.companions["double"].absences) == {0: why, 1: why}
