"""Nodes that fall silent are found, and the others told, without one waiting for another."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from lima2py.errors import NodeError
from lima2py.node.life import State
from lima2py.session.launch import Handle, Remote
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
            numbers = dict.fromkeys(
                ("memory", "asked", "acquired", "settled", "done_to", "frame_bytes", "slots"), 0
            )
            return {"state": self._status().value, "counts": {}, **numbers}
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
    watch = Watch("1", "scan", [lead], [Fake("proc0", 0, dies), Fake("proc1", 1, dead)])
    watch.start()
    assert watch.over.wait(20)
    watch.close()
    assert lead.told == [
        {
            "command": "nodes_lost",
            "run": "1",
            "reasons": {0: "its host is gone", 1: "its host is gone"},
        }
    ]
    assert watch.report().errors == ["its host is gone"]


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
