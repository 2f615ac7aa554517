"""Keys let a system's own in, and keep everybody else out of its network ports."""

from __future__ import annotations

import socket
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

from lima2py.errors import BadParameter, NodeError
from lima2py.transport.keys import Keys, make_keys, read_keys
from lima2py.transport.sockets import Context, bind, connect, is_loopback, new_context, new_socket

NEWS = b"frame 17, which nobody else shall see"
HEARD_MS = 10_000
SILENT_MS = 300


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return make_keys(tmp_path / "id10.keys")


@pytest.fixture
def contexts() -> Iterator[Callable[[Keys | None], Context]]:
    made: list[Context] = []

    def make(keys: Keys | None) -> Context:
        made.append(new_context(keys))
        return made[-1]

    yield make
    for context in made:
        context.destroy(linger=0)


@pytest.fixture
def server(
    keys: Keys, tmp_path: Path, contexts: Callable[[Keys | None], Context]
) -> Iterator[tuple[zmq.Socket[bytes], str, str]]:
    """A socket that listens with keys, and its addresses: on the network, and local."""
    with new_socket(contexts(keys), zmq.PULL, hwm=10) as pull:
        local = bind(pull, f"ipc://{tmp_path}/first")
        yield pull, bind(pull, "tcp://127.0.0.1:*"), local


def hears(pull: zmq.Socket[bytes], context: Context, address: str, patience_ms: int) -> bool:
    """Whether something that is sent to an address arrives."""
    with new_socket(context, zmq.PUSH, hwm=10) as push:
        connect(push, address)
        push.send(NEWS)
        return bool(pull.poll(patience_ms)) and pull.recv() == NEWS


def test_keys_come_back_from_a_file_that_only_its_owner_reads(tmp_path: Path) -> None:
    made = make_keys(tmp_path / "id10.keys")
    assert stat.S_IMODE(made.file.stat().st_mode) == 0o600
    assert read_keys(made.file) == made
    assert made.secret.decode() not in f"{made} {made!r}"
    assert made.secret not in (made.public, make_keys(tmp_path / "other").secret)


def test_keys_that_are_there_are_never_written_over(keys: Keys) -> None:
    before = keys.file.read_text()
    with pytest.raises(BadParameter, match="this file is there already; choose another name"):
        make_keys(keys.file)
    assert keys.file.read_text() == before


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
def test_keys_that_others_may_read_or_change_are_refused(keys: Keys, mode: int) -> None:
    keys.file.chmod(mode)
    with pytest.raises(BadParameter, match=rf"mode {mode:o}\):  chmod 600 .*id10.keys"):
        read_keys(keys.file)


@pytest.mark.parametrize("content", ["", "x" * 39, "x" * 41, "é" * 20, "\0" * 40, "# only\n"])
def test_a_file_without_a_key_is_refused_with_how_to_make_one(keys: Keys, content: str) -> None:
    keys.file.write_text(content)
    with pytest.raises(BadParameter, match=r"one line with the 40 characters .* lima2py keys FILE"):
        read_keys(keys.file)


def test_a_file_of_keys_that_is_not_there_is_refused_with_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(BadParameter, match=r"none: No such file .* lima2py keys FILE"):
        read_keys(tmp_path / "none")


def test_who_has_the_keys_is_heard(
    server: tuple[zmq.Socket[bytes], str, str],
    keys: Keys,
    contexts: Callable[[Keys | None], Context],
) -> None:
    pull, network, _ = server
    assert hears(pull, contexts(keys), network, HEARD_MS)


def test_who_has_no_keys_or_others_is_not_heard(
    server: tuple[zmq.Socket[bytes], str, str],
    tmp_path: Path,
    contexts: Callable[[Keys | None], Context],
) -> None:
    pull, network, _ = server
    assert not hears(pull, contexts(None), network, SILENT_MS)
    assert not hears(pull, contexts(make_keys(tmp_path / "others")), network, SILENT_MS)


def test_to_know_the_public_key_does_not_help(
    server: tuple[zmq.Socket[bytes], str, str],
    keys: Keys,
    contexts: Callable[[Keys | None], Context],
) -> None:
    pull, network, _ = server
    with new_socket(contexts(None), zmq.PUSH, hwm=10) as push:
        push.curve_publickey, push.curve_secretkey = zmq.curve_keypair()
        push.curve_serverkey = keys.public
        push.connect(network)
        push.send(NEWS)
        assert not pull.poll(SILENT_MS)


def test_a_client_with_keys_tells_nothing_to_a_server_without_them(
    keys: Keys, contexts: Callable[[Keys | None], Context]
) -> None:
    with new_socket(contexts(None), zmq.PULL, hwm=10) as pull:
        assert not hears(pull, contexts(keys), bind(pull, "tcp://127.0.0.1:*"), SILENT_MS)


def test_local_sockets_need_no_keys(
    server: tuple[zmq.Socket[bytes], str, str],
    tmp_path: Path,
    keys: Keys,
    contexts: Callable[[Keys | None], Context],
) -> None:
    pull, _, local = server
    later = bind(pull, f"ipc://{tmp_path}/later")
    for address in (local, later):
        for own in (None, keys):
            assert hears(pull, contexts(own), address, HEARD_MS)


def test_nobody_on_the_way_can_read_what_is_said(
    server: tuple[zmq.Socket[bytes], str, str],
    keys: Keys,
    contexts: Callable[[Keys | None], Context],
) -> None:
    pull, network, _ = server
    with Tapped(int(network.rpartition(":")[2])) as line:
        assert hears(pull, contexts(keys), f"tcp://127.0.0.1:{line.port}", HEARD_MS)
    assert len(line.seen) > len(NEWS)
    assert NEWS[:8] not in line.seen
    assert keys.public not in line.seen


@pytest.mark.parametrize(
    "address",
    ["tcp://0.0.0.0:*", "tcp://*:4711", "tcp://gpu1:4711", "tcp://192.0.2.1:4711", "tcp://[::]:*",
     "tcp://127.0.0.1.nip.io:4711", "tcp://127.0.0.1;10.0.0.1:4711", "tcp://eth0:*"],
)  # fmt: skip
def test_without_keys_other_hosts_are_not_spoken_to(
    address: str, contexts: Callable[[Keys | None], Context]
) -> None:
    assert not is_loopback(address)
    with new_socket(contexts(None), zmq.PULL, hwm=1) as made:
        for use in (bind, connect):
            with pytest.raises(NodeError, match=r"without keys .* lima2py keys FILE.*--keys FILE"):
                use(made, address)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "localhost", "[::1]"])
def test_the_loopback_needs_no_keys(host: str) -> None:
    assert is_loopback(f"tcp://{host}:4711")


def test_a_context_with_keys_ends_with_its_sockets(
    keys: Keys, contexts: Callable[[Keys | None], Context]
) -> None:
    before = threading.active_count()
    context = contexts(keys)
    assert threading.active_count() == before + 1
    context.destroy(linger=0)
    for thread in threading.enumerate():
        if thread.name == "gate":
            thread.join(10)
    assert threading.active_count() == before


class Tapped:
    """A line to a local port on which somebody listens."""

    def __init__(self, port: int):
        self._target = port
        self._door = socket.create_server(("127.0.0.1", 0))
        self.port = self._door.getsockname()[1]
        self.seen = bytearray()
        self._ends: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> Tapped:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._threads[0].join()
        for end in self._ends:
            end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads[1:]:
            thread.join()
        for end in (*self._ends, self._door):
            end.close()

    def _accept(self) -> None:
        near, _ = self._door.accept()
        far = socket.create_connection(("127.0.0.1", self._target))
        self._ends = [near, far]
        for one, other in ((near, far), (far, near)):
            self._threads.append(threading.Thread(target=self._hand_on, args=(one, other)))
            self._threads[-1].start()

    def _hand_on(self, one: socket.socket, other: socket.socket) -> None:
        while content := one.recv(4096):
            self.seen += content
            other.sendall(content)
