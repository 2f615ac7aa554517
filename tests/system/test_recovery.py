"""With room in the ring, a node that dies, freezes or comes back costs no frame."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from lima2py.session.launch import Child
from lima2py.session.session import Session
from tests.chaos.audit import TASKS, Taken, audit
from tests.system.rig import wait_until

SHAPE = (128, 128)
DETECTOR = {"pattern": "verifiable", "shape": SHAPE}
SINKS = ("raw", "spot", "numbers", "bright", "events")
EVERYBODY = frozenset(range(1000))


def kill(nodes: list[Child]) -> Callable[[], None]:
    for node in nodes:
        node.kill()
    return lambda: None


def freeze(nodes: list[Child]) -> Callable[[], None]:
    """Until what is given is called: if they still are there then, they are zombies."""
    processes = [node._process for node in nodes]
    for process in processes:
        process.send_signal(signal.SIGSTOP)

    def go_on() -> None:
        for process in processes:
            process.send_signal(signal.SIGCONT)

    return go_on


@pytest.mark.parametrize("loss", [kill, freeze])
@pytest.mark.parametrize("lost", [1, 2], ids=["one of two", "both"])
def test_at_full_speed_no_frame_is_lost_with_a_node_and_the_run_completes(
    tmp_path: Path, loss: Callable[[list[Child]], Callable[[], None]], lost: int
) -> None:
    """The ring has room for all that comes until others have taken over."""
    graph = tmp_path / "graph.yaml"
    graph.write_text(json.dumps({"tasks": {name: TASKS[name] for name in SINKS}}))
    with Session.open(processing_nodes=2, detector=DETECTOR) as session:
        session.prepare(
            graph=graph, output=tmp_path / "out", nb_frames=4000, expo_time=1e-6,
            policies={"node_patience": 60},
        )  # fmt: skip
        session.start()
        wait_until(lambda: session.progress().settled > 500, "frames")
        nodes = [node for node in session.nodes.processing if isinstance(node, Child)]
        go_on = loss(nodes[:lost])
        done = session.progress().settled
        wait_until(lambda: session.progress().settled > done + 1000, "what others do")
        go_on()
        report = session.wait(60)
    assert report.saved == 4000, report
    assert report.outcome == "completed", report
    assert audit(report, Taken(SHAPE), tmp_path / "out", frozenset(), EVERYBODY) == []
