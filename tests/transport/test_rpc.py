"""Commands reach a node, answers come back, and strangers are ignored."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from lima2py.errors import BadCommand, BadParameter, LimaError, NodeError
from lima2py.transport.rpc import Client, Server
from lima2py.transport.sockets import new_context
from lima2py.transport.wire import MAGIC, VERSION

OURS = MAGIC + bytes([VERSION])
OTHER_VERSION = MAGIC + bytes([VERSION + 1])
go_on = threading.Event()


def _refuse(what: str) -> None:
    raise BadParameter(f"what: {what} cannot be")


def _break() -> None:
    raise ZeroDivisionError("a fault")


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    made = new_context()
    yield made
    made.term()


@pytest.fixture
def address(tmp_path: Path, context: zmq.Context[zmq.Socket[bytes]]) -> Iterator[str]:
    server = Server(
        context,
        f"ipc://{tmp_path}/s",
        {"add": lambda a, b: a + b, "refuse": _refuse, "break": _break, "wait": go_on.wait},
        {"look": lambda: {"state": "idle"}},
    )
    thread = threading.Thread(target=server.serve)
    thread.start()
    yield server.address
    go_on.set()
    server.stop()
    thread.join()
    go_on.clear()


@pytest.fixture
def client(address: str, context: zmq.Context[zmq.Socket[bytes]]) -> Iterator[Client]:
    made = Client(context, address, "node0")
    yield made
    made.close()


def test_a_command_is_answered(client: Client) -> None:
    assert client.call("add", a=[1], b=[2, b"raw"]) == [1, 2, b"raw"]
    assert client.call("look") == {"state": "idle"}


def test_an_error_comes_back_as_the_same_class_and_text(client: Client) -> None:
    with pytest.raises(BadParameter, match="what: this cannot be"):
        client.call("refuse", what="this")


def test_a_fault_of_the_node_comes_back_with_its_name(client: Client) -> None:
    with pytest.raises(NodeError, match="ZeroDivisionError: a fault"):
        client.call("break")


def test_an_unknown_command_is_refused_with_those_there_are(client: Client) -> None:
    with pytest.raises(NodeError, match="known: add, break, look, ping"):
        client.call("nonsense")


def test_wrong_parameters_are_told(client: Client) -> None:
    with pytest.raises(LimaError, match="unexpected keyword"):
        client.call("look", colour=1)


def test_looks_and_pings_are_answered_while_a_command_waits(
    client: Client, address: str, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    waiting: list[Any] = []
    caller = threading.Thread(target=lambda: waiting.append(client.call("wait")))
    caller.start()
    other = Client(context, address, "node0")
    try:
        assert other.call("ping") is None
        assert other.call("look") == {"state": "idle"}
        assert not waiting
    finally:
        go_on.set()
        caller.join()
        other.close()
    assert waiting == [True]


def test_a_silent_node_is_an_error_with_its_name_and_address(
    tmp_path: Path, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    client = Client(context, f"ipc://{tmp_path}/nobody", "proc7")
    with pytest.raises(NodeError, match=r"node proc7 at ipc://.*nobody did not answer ping"):
        client.call("ping", timeout=0.05)
    client.close()


def test_a_dead_node_ends_the_wait_at_once(
    tmp_path: Path, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    def dead() -> None:
        raise BadCommand("it is dead")

    client = Client(context, f"ipc://{tmp_path}/nobody", "proc7")
    with pytest.raises(BadCommand, match="it is dead"):
        client.call("ping", timeout=60, alive=dead)
    client.close()


@pytest.mark.parametrize(
    "parts",
    [
        [b""],
        [b"GET / HTTP/1.1"],
        [OURS + b"\xc1"],
        [OTHER_VERSION + b"\x93\x01\xa4ping\x80"],
        [OURS + b"\x93\x01\xa4ping\x80", b"more"],
        [b"\x80\x04\x95pickle"],
    ],
)
def test_what_is_no_request_is_dropped_and_others_are_served(
    parts: list[bytes], client: Client, address: str, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    stranger = context.socket(zmq.DEALER)
    stranger.linger = 500
    stranger.connect(address)
    try:
        stranger.send_multipart(parts)
        assert client.call("add", a=1, b=1) == 2
        assert not stranger.poll(50)
    finally:
        stranger.close()
