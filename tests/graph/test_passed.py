"""What is told of frames is the same, in whatever blocks they and their products came."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lima2py.frame import Absence, Block, Fate, FrameSpec
from lima2py.graph.definition import parse_graph
from lima2py.graph.flow import Flow
from lima2py.graph.passed import keep_worst
from lima2py.graph.plan import Plan
from lima2py.task import RunContext
from lima2py.transport.packing import unpack_absences

SPEC = FrameSpec.dense(2, 3, "uint16")
GROUP, NB_FRAMES = 12, 24
"""A block never has frames of two groups."""
CAUSES = (Fate.DETECTOR_GAP, Fate.CORRUPT, Fate.INCOMPLETE)
GRAPH = """
tasks:
  pair: {do: accumulate, from: detector, frames: 2, absent: skip}
  some: {do: every, from: pair, n: 3}
  four: {do: accumulate, from: some, frames: 2}
  three: {do: accumulate, from: detector, frames: 3}
"""


def told(sizes: Sequence[int], missing: Mapping[int, Absence]) -> dict[int, Absence]:
    """What becomes of the frames as a whole, given in blocks of these sizes."""
    plan = Plan.make(parse_graph(GRAPH), SPEC)
    assert plan.group == GROUP
    flow = Flow(plan, RunContext("0" * 32, "scan", nb_frames=NB_FRAMES), 100)
    found: dict[int, Absence] = {}
    whole = Block(SPEC, 0, NB_FRAMES, np.ones((NB_FRAMES, *SPEC.shape), SPEC.dtype))
    whole = whole.refuse(missing)
    first, done = 0, []
    for size in sizes:
        flow.process(whole.part(first, first + size))
        done += flow.collect(idle=True)
        first += size
    assert first == NB_FRAMES
    assert not flow.finish(), "all groups are complete"
    for block in done:
        ranges = [part for track, part in block.absences if track == 0]
        for offset, said in unpack_absences(ranges, block.count).items():
            found[block.index + offset] = said
    return found


@given(
    st.lists(st.integers(1, NB_FRAMES - 1)),
    st.dictionaries(
        st.integers(0, NB_FRAMES - 1),
        st.builds(Absence, st.sampled_from(CAUSES), st.just("detector")),
        max_size=6,
    ),
)
def test_it_makes_no_difference_where_blocks_were_cut(
    cuts: list[int], missing: dict[int, Absence]
) -> None:
    ends = sorted({0, *cuts, GROUP, NB_FRAMES})
    found = told(np.diff(ends).tolist(), missing)
    assert found == told([GROUP, GROUP], missing)
    assert {frame: said for frame, said in found.items() if frame in missing} == missing
    three = {frame // 3 for frame in missing}
    assert {frame for frame in range(NB_FRAMES) if frame // 3 in three} <= set(found)


def test_absent_beats_rejected_and_what_was_said_first_stands() -> None:
    gap, corrupt = (Absence(cause, "detector") for cause in CAUSES[:2])
    veto = Absence(Fate.REJECTED, "task")
    whole = {0: gap, 1: veto}
    keep_worst(whole, {0: corrupt, 1: corrupt, 2: veto})
    keep_worst(whole, {1: gap, 2: veto})
    assert whole == {0: gap, 1: corrupt, 2: veto}
