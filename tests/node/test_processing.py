"""What a processing node answers, and how much is given to it at a time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lima2py.errors import BadCommand
from lima2py.node.processing import ProcessingNode
from lima2py.node.sharing import credits_for


@given(st.integers(3, 500), st.integers(1, 20), st.integers(1, 200))
def test_there_is_room_for_groups_as_far_as_the_ring_goes(
    slots: int, nodes: int, group: int
) -> None:
    credits = credits_for(slots, nodes, group)
    assert 2 <= credits <= slots
    if group > 1:
        assert credits >= min(3 * group, slots - 1)


def test_a_node_that_does_not_know_a_run_says_so_and_not_that_it_failed() -> None:
    """A node that fails counts as lost, and is killed."""
    node = ProcessingNode("proc0")
    with pytest.raises(BadCommand, match="processing node proc0 has no run abc"):
        node.source_lost("abc", 0)
    node.close()
