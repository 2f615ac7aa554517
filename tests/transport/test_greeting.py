"""A complaint that a node does not answer says who listens at its address instead."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

from lima2py.transport.greeting import who_listens
from lima2py.transport.keys import make_keys
from lima2py.transport.sockets import bind, new_context, new_socket


@pytest.fixture
def listens(tmp_path: Path) -> Iterator[Callable[[bool], str]]:
    """Listen as a node does, with keys or without; the address."""
    contexts, sockets = [], []

    def listen(with_keys: bool) -> str:
        keys = make_keys(tmp_path / "keys") if with_keys else None
        contexts.append(new_context(keys))
        sockets.append(new_socket(contexts[-1], zmq.ROUTER, hwm=1))
        return bind(sockets[-1], "tcp://127.0.0.1:*")

    yield listen
    for context in contexts:
        context.destroy(linger=0)


@pytest.mark.parametrize(
    ("they", "we", "told"),
    [
        (True, False, "it uses keys and this session does not: give both the same file"),
        (False, True, "this session uses keys and it does not: give both the same file"),
        (True, True, "it uses other keys than this session, or hangs"),
        (False, False, "what listens there is no node, or hangs"),
    ],
)
def test_a_node_with_keys_is_told_from_one_without(
    they: bool, we: bool, told: str, listens: Callable[[bool], str]
) -> None:
    assert who_listens(listens(they), we).startswith(told)


@pytest.mark.parametrize("said", [b"HTTP/1.1 400 Bad Request\r\n\r\n" * 5, b"SSH-2.0-x\r\n", b""])
def test_another_program_is_told_from_a_node(said: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:

        def answer() -> None:
            guest, _ = door.accept()
            with guest:
                guest.recv(64)
                guest.sendall(said)

        thread = threading.Thread(target=answer)
        thread.start()
        address = f"tcp://127.0.0.1:{door.getsockname()[1]}"
        assert who_listens(address, False) == "some other program listens there"
        thread.join()


def test_a_program_that_says_nothing_is_not_waited_for_long() -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:
        address = f"tcp://127.0.0.1:{door.getsockname()[1]}"
        assert who_listens(address, False) == "some other program listens there"


def test_nobody_is_told_from_somebody() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
        assert who_listens(address, False) == "nothing listens there (Connection refused)"
    assert who_listens("tcp://no-such-host.invalid:4711", False).startswith("no host of this name")
