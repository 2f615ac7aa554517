"""Nodes that fall silent are found, and the others told, without one waiting for another."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest

from lima2py.errors import BadCommand, NodeError
from lima2py.node.life import State
from lima2py.session.events import Events, Kind
from lima2py.session.fleet import Fleet
from lima2py.session.launch import Handle, Remote
from lima2py.session.monitor import Monitor
from lima2py.session.relief import Relief
from lima2py.session.totals import Totals
from lima2py.session.watch import Watch
from lima2py.transport.sockets import PrivateFolder, new_context

TOLD = {
    "run": "", "name": "scan", "outcome": "failed", "asked": 0, "counts": {}, "absences": [],
    "sinks": {}, "masters": {}, "errors": [], "remarks": [], "seconds": 0.0, "ring_bytes": 0,
}  # fmt: skip


class Fake(Handle):
    """A node that answers as it is told to, and remembers what it was told."""

    def __init__(self, name: str, rank: int, status: Callable[[], State]):
        self.name = name
        self.rank = rank
        self._status = status
        self.told: list[dict[str, Any]] = []

    def call(self, command: str, *, timeout: float = 30.0, **parameters: Any) -> Any:
        raise NotImplementedError

    def look(self, command: str, *, timeout: float = 5.0, **parameters: Any) -> Any:
        if command == "status":
            words = {"incarnation": self.name, "errors": [], "counts": {}}
            return defaultdict(int, {"state": self._status().value, **words})
        if command == "report":
            return TOLD
        self.told.append({"command": command, **parameters})
        return None

    def close(self) -> None:
        return


def dead() -> State:
    raise NodeError("its host is gone")


def test_nodes_that_are_lost_together_are_told_of_together() -> None:
    """The second one dies after it was looked at, and before its death can be seen."""
    looks: list[State] = []

    def dies() -> State:
        if looks:
            dead()
        looks.append(State.RUNNING)
        return State.RUNNING

    def until_told() -> State:
        return State.FAULT if lead.told else State.RUNNING

    lead = Fake("acq0", 0, until_told)
    fleet = Fleet()
    nodes = [Fake("proc0", 0, dies), Fake("proc1", 1, dead)]
    monitor = Monitor("1", "scan", Events(), Totals())
    watch = Watch("1", "scan", [lead], dict(enumerate(nodes)), Relief(fleet, "1", 0), monitor, {})
    watch.start()
    assert watch.over.wait(20)
    watch.close()
    fleet.close()
    assert lead.told == [
        {
            "command": "nodes_lost",
            "run": "1",
            "reasons": {0: "its host is gone", 1: "its host is gone"},
        }
    ]
    assert watch.report().errors == [
        "its host is gone; it is not started again: that was done 0 times in a minute"
        " (policy restarts: 0)"
    ]


def test_an_acquisition_node_that_somebody_started_again_is_lost() -> None:
    def another() -> State:
        raise BadCommand("acquisition node acq1 has no run 1")

    lead = Fake("acq0", 0, lambda: State.FAULT if lead.told else State.RUNNING)
    fleet, events = Fleet(), Events()
    sources = [lead, Fake("acq1", 1, another)]
    monitor = Monitor("1", "scan", events, Totals())
    watch = Watch("1", "scan", sources, {}, Relief(fleet, "1", 0), monitor, {})
    watch.start()
    assert watch.over.wait(20)
    watch.close()
    fleet.close()
    assert lead.told == [{"command": "source_lost", "run": "1", "rank": 1}]
    (why,) = watch.report().errors
    assert why == "node acq1 was lost: it was started again, and knows nothing of the run"
    assert [event.text for event in events.after() if event.kind is Kind.NODE_LOST] == [why]


def test_how_a_process_ended_is_told_also_when_others_found_out_before() -> None:
    class Finds(Fake):
        def look(self, command: str, *, timeout: float = 5.0, **parameters: Any) -> Any:
            answer = super().look(command, timeout=timeout, **parameters)
            if command == "status":
                answer["lost"] = {0: "its connection broke"}
            return answer

    class Killed(Fake):
        def check_alive(self) -> None:
            raise NodeError("killed by signal 9")

    lead = Finds("acq0", 0, lambda: State.FAULT if lead.told else State.RUNNING)
    fleet, events = Fleet(), Events()
    nodes = [Killed("proc0", 0, lambda: State.RUNNING)]
    monitor = Monitor("1", "scan", events, Totals())
    watch = Watch("1", "scan", [lead], dict(enumerate(nodes)), Relief(fleet, "1", 0), monitor, {})
    watch.start()
    assert watch.over.wait(20)
    watch.close()
    fleet.close()
    texts = [event.text for event in events.after() if event.kind is Kind.NODE_LOST]
    assert texts == ["killed by signal 9"]


def test_whoever_follows_a_run_keeps_nobody_from_looking() -> None:
    """A reader waits for a frozen node; that this is frozen must be seen all the same."""
    looked, reading = threading.Event(), threading.Event()

    class Frozen(Remote):
        def check_alive(self) -> None:
            reading.set()
            if looked.is_set():
                raise NodeError("killed")

    folder, context = PrivateFolder(), new_context()
    node = Frozen(context, "proc0", 0, folder.address("proc0"))

    def read() -> None:
        with pytest.raises(NodeError, match="killed"):
            node.read("stream", timeout=60)

    reader = threading.Thread(target=read)
    reader.start()
    assert reading.wait(20)
    with pytest.raises(NodeError, match=r"did not answer status within 0\.01 s"):
        node.look("status", timeout=0.01)
    assert reader.is_alive()
    looked.set()
    reader.join()
    node.close()
    context.term()
    folder.close()


class Returning(Fleet):
    """A fleet whose lost nodes are there again at once, and take part when they are let to."""

    def __init__(self) -> None:
        super().__init__()
        self.making_ready, self.may_join = threading.Event(), threading.Event()
        self.over = threading.Event()

    def bring_back(self, lost: Handle, run: str) -> Handle:
        return lost

    def enlist(self, handle: Handle, run: str) -> int:
        self.making_ready.set()
        assert self.may_join.wait(20)
        return 7

    def forget(self, run: str) -> None:
        self.over.set()


def test_a_run_is_not_over_before_a_node_made_ready_too_late_has_given_it_up() -> None:
    class Late(Fake):
        def call(self, command: str, *, timeout: float = 30.0, **parameters: Any) -> Any:
            self.told.append({"command": command, **parameters})

    fleet = Returning()

    def until_one_returns() -> State:
        return State.IDLE if fleet.making_ready.is_set() else State.RUNNING

    lead, node = Fake("acq0", 0, until_one_returns), Late("proc0", 0, dead)
    monitor = Monitor("1", "scan", Events(), Totals())
    watch = Watch("1", "scan", [lead], {0: node}, Relief(fleet, "1", 9), monitor, {})
    watch.start()
    assert fleet.over.wait(20)
    assert not watch.over.is_set()
    fleet.may_join.set()
    assert watch.over.wait(20)
    watch.close()
    fleet.close()
    assert node.told == [{"command": "give_up", "run": "1"}]


def test_a_node_that_knows_nothing_of_the_run_any_more_is_not_lost() -> None:
    def forgot() -> State:
        raise BadCommand("processing node proc0 has no run 1")

    looks: list[State] = []

    def for_a_while() -> State:
        looks.append(State.RUNNING)
        return State.RUNNING if len(looks) < 4 else State.IDLE

    lead = Fake("acq0", 0, for_a_while)
    fleet = Fleet()
    monitor = Monitor("1", "scan", Events(), Totals())
    nodes = [Fake("proc0", 0, forgot)]
    watch = Watch("1", "scan", [lead], dict(enumerate(nodes)), Relief(fleet, "1", 0), monitor, {})
    watch.start()
    assert watch.over.wait(20)
    watch.close()
    fleet.close()
    assert lead.told == []
    assert watch.report().errors == []
