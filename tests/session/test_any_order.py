"""Whatever is told to a session in whatever order: an answer, a legal state, a whole account."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from lima2py.errors import BadCommand
from lima2py.node.life import ACTIVE, State
from lima2py.session.session import Session
from tests.system.rig import check_account

GRAPH = """
graph: any
tasks:
  live: {do: tap, from: detector}
  raw: {do: save_dense, from: detector}
"""
ACQUISITIONS: list[dict[str, Any]] = [
    {"nb_frames": 5, "expo_time": 1e-6},
    {"nb_frames": 300, "expo_time": 1e-3},
    {"nb_frames": 0, "expo_time": 1e-4},
    {"nb_frames": 6, "expo_time": 1e-3, "trigger_mode": "software", "nb_frames_per_trigger": 3},
    {"nb_frames": 0, "expo_time": 1e-3, "trigger_mode": "external"},
]
OVER = (State.IDLE, State.FAULT)
_numbers = count()


def another() -> str:
    """The name of another run."""
    return f"run{next(_numbers)}"


class AnyOrder(RuleBasedStateMachine):
    """Commands at random; what is known for certain of the state is checked, and no more."""

    session: ClassVar[Session]
    graph: ClassVar[Path]

    def __init__(self) -> None:
        super().__init__()
        self.prepared = True
        self.started = False
        self.ended = False
        """Whether the run was told to end."""

    def tell(self, command: str, *given: Any, **named: Any) -> bool:
        """Give a command; whether it was obeyed. What is refused says the state and a way out."""
        try:
            getattr(self.session, command)(*given, **named)
        except BadCommand as error:
            said = str(error)
        else:
            return True
        assert f"cannot {command}" in said or "cannot be triggered" in said
        return False

    @rule(asked=st.sampled_from(ACQUISITIONS))
    def prepare(self, asked: dict[str, Any]) -> None:
        before = self.session.runs[self.session.run]
        obeyed = self.tell(
            "prepare", graph=self.graph, output=self.graph.parent, name=another(), **asked
        )
        assert obeyed or self.started
        assert not (obeyed and before.acquiring)
        if obeyed:
            self.prepared, self.started, self.ended = True, False, False

    @rule()
    def start(self) -> None:
        if obeyed := self.tell("start"):
            self.started, self.ended = True, False
        assert obeyed == self.prepared
        self.prepared = False

    @rule()
    def pause(self) -> None:
        if self.tell("pause"):
            assert self.started
            assert not self.ended
            assert not self.tell("pause")

    @rule()
    def resume(self) -> None:
        if self.tell("resume"):
            assert self.started
            assert not self.ended
            assert not self.tell("resume")

    @rule()
    def trigger(self) -> None:
        if self.tell("trigger"):
            assert self.started

    @rule(command=st.sampled_from(["stop", "abort"]))
    def end(self, command: str) -> None:
        if self.tell(command):
            assert self.started
            self.ended = True

    @rule(timeout=st.sampled_from([0.0, 0.02, 0.3]))
    def wait(self, timeout: float) -> None:
        if not self.started:
            with pytest.raises(BadCommand, match="cannot wait while"):
                self.session.wait(timeout)
            return
        try:
            report = self.session.wait(timeout)
        except TimeoutError:
            return
        check_account(report.plain())
        assert report.outcome in ("completed", "stopped", "aborted")
        assert self.over()

    @rule()
    def wait_for_the_end(self) -> None:
        if self.ended:
            report = self.session.wait(60)
            check_account(report.plain())

    @invariant()
    def the_state_is_what_was_made_of_it(self) -> None:
        state = self.session.state
        if self.prepared:
            assert state is State.PREPARED
        elif not self.started:
            assert state in OVER
        else:
            assert state in (*ACTIVE, *OVER)
            assert state is not State.FAULT

    def over(self) -> bool:
        return self.session.state in OVER or self.prepared

    def teardown(self) -> None:
        for run in self.session.runs.values():  # earlier ones may be processed still
            run.cancel()
            if run.going or run.report:
                check_account(run.wait(60).plain())
        self.session.prepare(graph=self.graph, output=self.graph.parent, name=another())


@pytest.mark.parametrize("processing_nodes", [0, 1])
def test_commands_may_come_in_any_order(processing_nodes: int, tmp_path: Path) -> None:
    (tmp_path / "any.yaml").write_text(GRAPH)
    detector = {"shape": [8, 8], "pattern": "verifiable"}
    with Session.open("simulator", processing_nodes=processing_nodes, detector=detector) as session:
        session.prepare(graph=tmp_path / "any.yaml", output=tmp_path, name=another())

        class OfSession(AnyOrder):
            pass

        OfSession.session, OfSession.graph = session, tmp_path / "any.yaml"
        run_state_machine_as_test(
            OfSession,
            settings=settings(
                max_examples=8, stateful_step_count=14, suppress_health_check=list(HealthCheck)
            ),
        )
