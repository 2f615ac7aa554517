"""A run's life follows the table, and every refusal says what is possible."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lima2py.errors import BadCommand
from lima2py.node.life import ACTIVE, TRANSITIONS, Life, State, aggregate, allowed, diagram

COMMANDS = sorted({command for command, _, _ in TRANSITIONS})
TABLE = {
    (source, command): target for command, sources, target in TRANSITIONS for source in sources
}


@given(st.lists(st.sampled_from(COMMANDS), max_size=20))
def test_every_command_leads_where_the_table_says_or_is_refused(commands: list[str]) -> None:
    life = Life("acquisition node acq0")
    state = State.IDLE
    for command in commands:
        target = TABLE.get((state, command))
        if target is None:
            with pytest.raises(BadCommand):
                life.check(command)
            with pytest.raises(BadCommand, match=f"cannot {command} while {state.value}"):
                life.do(command)
        else:
            life.do(command)
            state = target
        assert life.state is state


@pytest.mark.parametrize("state", list(State))
def test_every_state_can_come_home(state: State) -> None:
    reached, seen = {state}, {state}
    while reached:
        reached = {TABLE[key] for key in TABLE if key[0] in reached} - seen
        seen |= reached
    assert State.IDLE in seen


def test_a_refusal_names_the_state_and_what_is_possible() -> None:
    life = Life("acquisition node acq0")
    with pytest.raises(BadCommand, match=r"acquisition node acq0 cannot start while idle; it can: "
                                         r"prepare, reset"):  # fmt: skip
        life.do("start")


@given(st.lists(st.sampled_from(list(State)), min_size=1))
def test_a_system_is_as_bad_as_its_worst_node(states: list[State]) -> None:
    whole = aggregate(states)
    if State.FAULT in states:
        assert whole is State.FAULT
    elif whole is State.PREPARED:
        assert set(states) == {State.PREPARED}
    elif whole is State.IDLE:
        assert not {*ACTIVE} & set(states)
    elif whole is State.RUNNING:
        assert State.PAUSED not in states


def test_the_diagram_has_every_line_of_the_table() -> None:
    text = diagram()
    for command, sources, target in TRANSITIONS:
        for source in sources:
            assert f"{source.value} --> {target.value}: {command}" in text
    assert allowed(State.RUNNING) == ["pause", "stop"]
    assert allowed(State.PAUSED) == ["resume", "stop"]
