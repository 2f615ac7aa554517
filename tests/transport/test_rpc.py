"""Commands reach a node, answers come back, and strangers are ignored."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from lima2py.errors import (
    BadCommand,
    BadParameter,
    LimaError,
    NeedsLease,
    NodeError,
    ProtocolError,
)
from lima2py.transport.rpc import Client, Server
from lima2py.transport.sockets import new_context
from lima2py.transport.wire import MAGIC, VERSION, seal, unseal

Stranger = zmq.Socket[bytes]
PING = seal(b"\x93\x01\xa4ping\x80")
OTHER_VERSION = MAGIC + bytes([VERSION + 1])
go_on = threading.Event()
made = threading.Semaphore(0)
"""Counts large answers."""


def _refuse(what: str) -> None:
    raise BadParameter(f"what: {what} cannot be")


def _break() -> None:
    raise ZeroDivisionError("a fault")


def _large() -> bytes:
    made.release()
    return bytes(2**22)


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    made = new_context()
    yield made
    made.term()


@pytest.fixture
def server(tmp_path: Path, context: zmq.Context[zmq.Socket[bytes]]) -> Iterator[Server]:
    server = Server(
        context,
        f"ipc://{tmp_path}/s",
        {
            "add": lambda a, b: a + b,
            "refuse": _refuse,
            "break": _break,
            "wait": lambda: go_on.wait(),
            "undecodable": lambda: _refuse(os.fsdecode(b"\xff")),
        },
        {"touch": lambda: "touched"},
        {
            "look": lambda: {"state": "idle"},
            "unsayable": object,
            "large": _large,
        },
    )
    thread = threading.Thread(target=server.serve)
    thread.start()
    yield server
    go_on.set()
    server.stop()
    thread.join()
    go_on.clear()


@pytest.fixture
def address(server: Server) -> str:
    return server.address


@pytest.fixture
def stranger(server: Server, context: zmq.Context[zmq.Socket[bytes]]) -> Iterator[Stranger]:
    made = context.socket(zmq.DEALER)
    made.linger = 0
    made.rcvtimeo = 10_000
    made.connect(server.address)
    yield made
    made.close()


@pytest.fixture
def client(address: str, context: zmq.Context[zmq.Socket[bytes]]) -> Iterator[Client]:
    made = Client(context, address, "node0")
    yield made
    made.close()


def test_a_command_is_answered(client: Client) -> None:
    assert client.call("add", a=[1], b=[2, b"raw"]) == [1, 2, b"raw"]
    assert client.call("look") == {"state": "idle"}


def test_who_has_no_lease_or_an_old_one_can_only_look(client: Client) -> None:
    assert client.call("touch", writer=3) == "touched"
    assert client.call("look") == {"state": "idle"}
    with pytest.raises(NeedsLease, match="touch: only a session that commands"):
        client.call("touch")
    with pytest.raises(BadCommand, match="add: another session has taken over"):
        client.call("add", writer=2, a=1, b=2)


def test_an_error_comes_back_as_the_same_class_and_text(client: Client) -> None:
    with pytest.raises(BadParameter, match="what: this cannot be"):
        client.call("refuse", what="this")


def test_a_fault_of_the_node_comes_back_with_its_name(client: Client) -> None:
    with pytest.raises(NodeError, match="ZeroDivisionError: a fault"):
        client.call("break")


def test_an_unknown_command_is_refused_with_those_there_are(client: Client) -> None:
    with pytest.raises(NodeError, match="known: add, break, large, look, ping"):
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
    ("reason", "parts"),
    [
        ("foreign", [b""]),
        ("foreign", [b"GET / HTTP/1.1"]),
        ("foreign", [b"\x80\x04\x95pickle"]),
        ("damaged", [PING[:-1]]),
        ("damaged", [PING[:5]]),
        ("malformed", [seal(b"\xc1")]),
        ("malformed", [seal(b"\x93\x01\xa4ping\x90")]),
        ("malformed", [seal(b"\x93\x01\xa4ping\x81\xa1a" + b"\x91" * 100_000)]),
        ("malformed", [seal(b"\x93\x01\xa4ping\x81\xa1a\xdd\xff\xff\xff\xff")]),
        ("malformed", [seal(b"\x93\x01\xa4\xff\xfe\xfd\xfc\x80")]),
        ("parts", [PING, b"more"]),
        ("parts", [b""] * 500),
    ],
)
def test_what_is_no_request_is_counted_and_others_are_served(
    reason: str, parts: list[bytes], server: Server, client: Client, stranger: Stranger
) -> None:
    for _ in range(3):
        stranger.send_multipart(parts)
    wait_until(lambda: server.refused.plain() == {reason: 3})
    assert client.call("add", a=1, b=1) == 2
    assert not stranger.poll(50)


def test_a_request_of_another_version_is_told_both_versions(
    server: Server, stranger: Stranger
) -> None:
    stranger.send(OTHER_VERSION + PING[5:])
    assert stranger.poll(5000)
    sent = stranger.recv()
    assert sent[:5] == MAGIC + bytes([VERSION]), "where any version finds it"
    assert f"version {VERSION + 1}, where version {VERSION} is spoken".encode() in sent
    assert server.refused.plain() == {"version": 1}


def test_a_node_of_another_version_is_an_error_with_both_versions(
    context: zmq.Context[zmq.Socket[bytes]], tmp_path: Path
) -> None:
    address = f"ipc://{tmp_path}/other"
    node = context.socket(zmq.ROUTER)
    node.bind(address)

    def answer() -> None:
        peer, _ = node.recv_multipart()
        node.send_multipart([peer, OTHER_VERSION + b"whatever they say"])

    thread = threading.Thread(target=answer)
    thread.start()
    client = Client(context, address, "proc7")
    told = f"node proc7 at {address} sent .*version {VERSION + 1}, where version {VERSION} is"
    with pytest.raises(ProtocolError, match=told):
        client.call("describe")
    thread.join()
    client.close()
    node.close(linger=0)


@pytest.mark.parametrize("command", ["add", "look", "ping", "break"])
@pytest.mark.parametrize(
    "parameters", [{"fn": 1}, {"self": 1}, {"command": 1}, {"a": 1}, {"": None}, {"\0": b""}]
)
def test_wrong_arguments_are_refused_by_name_without_a_trace(
    command: str,
    parameters: dict[str, Any],
    server: Server,
    stranger: Stranger,
    client: Client,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stranger.send(seal(msgspec.msgpack.encode([2**64 - 1, command, parameters])))
    assert stranger.poll(5000)
    answer = msgspec.msgpack.decode(unseal(stranger.recv()))
    assert answer[0] == 2**64 - 1
    assert answer[2][0] == "BadParameter"
    assert answer[2][1].startswith(f"{command}: ")
    assert client.call("ping") is None
    assert not caplog.records


def test_an_answer_that_cannot_be_said_is_an_error_of_the_command(client: Client) -> None:
    with pytest.raises(NodeError, match="TypeError: Encoding objects of type object"):
        client.call("unsayable")
    with pytest.raises(BadParameter, match=r"what: \\udcff cannot be"):
        client.call("undecodable")
    assert client.call("ping") is None


def test_commands_that_wait_have_a_limit(server: Server, stranger: Stranger) -> None:
    for number in range(1100):
        stranger.send(seal(msgspec.msgpack.encode([number, "wait", {}])))
    first = msgspec.msgpack.decode(unseal(stranger.recv()))
    assert first[2] == ["NodeError", "1000 commands wait to be worked on: no more are taken"]


def test_a_client_whose_node_takes_nothing_does_not_wait(
    tmp_path: Path, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    client = Client(context, f"ipc://{tmp_path}/nobody", "proc7")
    told = set()
    for _ in range(2000):
        with pytest.raises(NodeError) as caught:
            client.call("ping", timeout=0)
        told.add(str(caught.value).partition("nobody ")[2])
    client.close()
    assert told == {"did not answer ping within 0 s", "takes nothing"}


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_answers_to_who_does_not_read_them_are_not_piled_up(
    context: zmq.Context[zmq.Socket[bytes]], address: str
) -> None:
    request = seal(msgspec.msgpack.encode([7, "large", {}]))
    client = Client(context, address, "proc0")
    with context.socket(zmq.DEALER) as greedy:
        greedy.linger = 0
        greedy.rcvhwm = 1
        greedy.connect(address)
        for _ in range(50):
            greedy.send(request)
        assert all(made.acquire(timeout=10) for _ in range(50))
        assert client.call("look") == {"state": "idle"}
        answers = 0
        while greedy.poll(500):
            assert len(greedy.recv()) > 2**22
            answers += 1
        assert 1 <= answers < 10
        greedy.send(request)
        assert greedy.poll(10_000)  # who has read them is answered again
    assert len(client.call("large")) == 2**22
    client.close()
