"""A node that says nothing although it has work, or that is never met, counts as lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from lima2py.transport import line as module
from lima2py.transport.line import MEETING, Line, Receiver
from lima2py.transport.sockets import new_context

LONG = 1e6


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    """To a node that nobody has started."""
    context = new_context()
    receiver = Receiver(0, "proc0", "0", f"ipc://{tmp_path}/frames", 2, False)
    made = Line(context, receiver)
    yield made
    made.close()
    context.destroy(linger=0)


def test_silence_counts_only_while_there_is_work(line: Line) -> None:
    assert line.trouble(-1.0, busy=False) is None
    said = line.trouble(-1.0, busy=True)
    assert said is not None
    assert "it has said nothing for" in said
    assert line.trouble(LONG, busy=True) is None


def test_a_node_that_is_never_met_is_lost(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MEETING > 0
    monkeypatch.setattr(module, "MEETING", -1.0)
    said = line.trouble(LONG, busy=False)
    assert said is not None
    assert line.receiver.address in said


def test_a_node_that_was_met_may_be_silent_until_its_connection_breaks(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    with new_context() as context, context.socket(zmq.PULL) as node:
        node.bind(line.receiver.address)
        assert line.monitor.poll(30_000)
        monkeypatch.setattr(module, "MEETING", -1.0)
        monkeypatch.setattr(module, "LAST_WORDS", LONG)
        assert line.trouble(LONG, busy=False) is None
    assert line.monitor.poll(30_000)
    assert line.trouble(LONG, busy=False) is None  # it may have said why
    monkeypatch.setattr(module, "LAST_WORDS", -1.0)
    said = line.trouble(LONG, busy=False)
    assert said is not None
    assert said.startswith("its connection broke")
