"""A run goes on under fire: strangers at every port lose no frame, and are counted."""

from __future__ import annotations

import pickle
import random
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
import zmq

from lima2py.errors import BadParameter, LimaError, NodeError, ProtocolError
from lima2py.session.session import Session
from lima2py.session.system import System
from lima2py.transport import wire
from lima2py.transport.keys import make_keys
from lima2py.transport.wire import MAGIC, VERSION
from tests.system.rig import LIMA2PY, Command, assert_verifiable, check_account, wait_until
from tests.transport.stranger import Stranger

SHAPE = (128, 96)
RING = 16 * 2**20
PART = bytes(2**20)


class Nodes:
    """Nodes that were started by hand on the loopback, as if each had a host of its own."""

    def __init__(self, folder: Path):
        self._folder = folder
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, kind: str, name: str, *more: str) -> str:
        process = subprocess.Popen(
            [LIMA2PY, "node", kind, name, "--listen", "tcp://127.0.0.1:*", "--isolated", *more],
            stdout=subprocess.PIPE,
            text=True,
            cwd=self._folder,
        )
        self.processes.append(process)
        assert process.stdout is not None
        return process.stdout.readline().split()[-1]

    def system(self, keys: Path | None) -> System:
        """One acquisition and two processing nodes."""
        more = ["--keys", str(keys)] if keys else []
        places = {
            kind: [{"node": name, "address": self.start(kind, name, *more)} for name in names]
            for kind, names in {"acquisition": ["acq0"], "processing": ["proc0", "proc1"]}.items()
        }
        detector = {"pattern": "verifiable", "shape": SHAPE}
        values = {"system": "s", "detector": "simulator", "set": detector, "keys": keys, **places}
        return System.load({**values, "memory": {"ring": RING}}, "test")

    def ports(self) -> list[int]:
        """All that they listen at."""
        return [
            connection.laddr.port
            for process in self.processes
            for connection in psutil.Process(process.pid).net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN
        ]

    def memory(self) -> int:
        """Private memory of the largest, in bytes."""
        return max(psutil.Process(process.pid).memory_info().rss for process in self.processes)


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    made = Nodes(tmp_path)
    yield made
    for process in made.processes:
        process.terminate()
    for process in made.processes:
        assert process.wait(15) == 0
        assert process.stdout is not None
        process.stdout.close()


class Fire:
    """Throws garbage at some ports, round after round, until told to stop.

    In the first round messages without end, too, which take long.
    """

    def __init__(self, ports: list[int]):
        self.rounds = 0
        self._ports = ports
        self._over = threading.Event()
        self._random = random.Random(7)
        self._thread = threading.Thread(target=self._go_on)

    def __enter__(self) -> Fire:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _go_on(self) -> None:
        with zmq.Context() as context:
            while not self._over.is_set():
                for port in self._ports:
                    self._raw(port)
                    for kind in ("PUSH", "DEALER"):
                        if not self.rounds:
                            self._spoken(port, kind)
                        self._sent(context, port, getattr(zmq, kind))
                self.rounds += 1

    def _raw(self, port: int) -> None:
        for content in (
            self._random.randbytes(500),
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            b"\x01\x00" + b"\x05\x00LIMA" * 50,
        ):
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as stranger:
                stranger.sendall(content)

    def _spoken(self, port: int, kind: str) -> None:
        """What ZeroMQ itself would not send: a message without end."""
        with suppress(OSError), Stranger(port, kind) as stranger:
            for _ in range(36):
                stranger.send(PART, more=True)

    def _sent(self, context: zmq.Context[zmq.Socket[bytes]], port: int, kind: int) -> None:
        other = bytearray(wire.encode(wire.End("0" * 32, 0, True)))
        with context.socket(kind) as stranger:
            stranger.linger = 20
            stranger.connect(f"tcp://127.0.0.1:{port}")
            for message in (
                [bytes(other)],
                [bytes(other[:4]) + bytes([VERSION + 1]) + bytes(other[5:])],
                [self._random.randbytes(200)],
                [bytes(other), b"more", b"and more"],
                [wire.encode(wire.Done("0" * 32, 0, "none", []))],
                [wire.seal(b"\x93\x01\xa6status\x81\xa3run\xa1x")],
            ):
                with suppress(zmq.Again):
                    stranger.send_multipart(message, zmq.NOBLOCK)


def refused(session: Session) -> list[dict[str, int]]:
    """What every socket has refused: those of commands, then those of frames and answers."""
    handles = [*session.nodes.acquisition, *session.nodes.processing]
    return [
        *(handle.look("describe")["refused"] for handle in handles),
        *(handle.look("status", run=session.run)["refused"] for handle in handles),
    ]


@pytest.mark.parametrize("with_keys", [False, True], ids=["without keys", "with keys"])
def test_strangers_at_every_port_lose_no_frame(
    tmp_path: Path, nodes: Nodes, with_keys: bool
) -> None:
    keys = make_keys(tmp_path / "system.keys").file if with_keys else None
    with Session.open(nodes.system(keys)) as session:
        session.prepare(graph="save_raw", output=tmp_path, nb_frames=0, expo_time=1e-3)
        before = nodes.memory()
        assert len(nodes.ports()) == 6, "commands, and frames or answers, of each"
        session.start()
        with Fire(nodes.ports()) as fire:
            wait_until(lambda: fire.rounds >= 3, "fire", 60)
        counted = refused(session)
        after = nodes.memory()
        session.stop()
        report = session.wait(30)
    assert report.ok, report
    assert report.saved == report.asked > 0
    check_account(report.plain())
    assert_verifiable(report.masters["raw"], SHAPE)
    assert after < before + RING + 64 * 2**20
    for counts in counted:
        if with_keys:
            assert counts == {}, "nobody came as far as that"
        else:
            assert {"foreign", "version", "malformed"} <= counts.keys()


def test_a_node_of_another_version_is_refused_at_once_with_both_versions(tmp_path: Path) -> None:
    over = threading.Event()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    node = context.socket(zmq.ROUTER)
    port = node.bind_to_random_port("tcp://127.0.0.1")

    def answer() -> None:
        while not over.is_set():
            if node.poll(50):
                peer = node.recv_multipart()[0]
                node.send_multipart([peer, MAGIC + bytes([VERSION + 1]) + b"whatever"])

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        told = refusal(tmp_path, f"tcp://127.0.0.1:{port}", ProtocolError)
    finally:
        over.set()
        thread.join()
        node.close(linger=0)
        context.term()
    assert f"node proc7 at tcp://127.0.0.1:{port} sent" in told
    assert f"version {VERSION + 1}, where version {VERSION} is spoken" in told


def refusal(
    folder: Path, address: str, kind: type[LimaError] = NodeError, keys: Path | None = None
) -> str:
    """What prepare says when a node at this address should take part; it has 3 seconds."""
    system = System.load(
        {
            "system": "s",
            "detector": "simulator",
            "acquisition": [{"node": "acq0"}],
            "processing": [{"node": "proc7", "address": address}],
            "keys": keys,
        },
        "test",
    )
    with Session.open(system) as session:
        began = time.monotonic()
        with pytest.raises(kind) as caught:
            session.prepare(graph="save_raw", output=folder)
        assert time.monotonic() < began + 3
    assert address in str(caught.value)
    return str(caught.value)


def test_a_node_at_a_wrong_address_is_refused_with_what_is_there(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
        told = refusal(tmp_path, address)
    assert f"node proc7 at {address} did not answer describe within 2 s: nothing listens" in told
    assert "start it on its host:  lima2py node processing proc7 --listen tcp://HOST:PORT" in told


def test_a_node_without_keys_is_not_started_on_the_network(
    command: Callable[..., Command],
) -> None:
    node = command("node", "processing", "proc0", "--listen", "tcp://0.0.0.0:4711")
    status, _, err = node.finish()
    assert status == 2
    assert "cannot listen at tcp://0.0.0.0:4711: without keys only this host" in err
    assert "lima2py keys FILE" in err


def test_a_port_that_is_taken_is_told(command: Callable[..., Command]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        status, _, err = command("node", "processing", "proc1", "--listen", address).finish()
    assert status == 2
    assert f"cannot listen at {address}: Address already in use" in err


@pytest.mark.parametrize(
    "nodes_of",
    [
        {"processing": [{"node": "p", "address": "tcp://gpu1:4711"}]},
        {"processing": [{"node": "q", "address": "tcp://127.0.0.1:1"}, {"node": "p", "host": "g"}]},
    ],
)
def test_a_system_on_several_hosts_without_keys_is_refused(nodes_of: dict[str, Any]) -> None:
    values = {"system": "s", "detector": "simulator", "acquisition": [{"node": "a"}], **nodes_of}
    with pytest.raises(BadParameter, match=r"node p is reached over the network.* lima2py keys"):
        System.load(values, "s.yaml")


def test_a_wall_clock_that_jumps_changes_no_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true, jumps = time.time, random.Random(3)
    monkeypatch.setattr(time, "time", lambda: true() + jumps.choice((-3600, 0, 3600)))
    with Session.open("simulator") as session:
        session.prepare(graph="save_raw", output=tmp_path, nb_frames=200, expo_time=1e-3)
        session.start()
        report = session.wait(30)
    assert report.ok, report
    assert report.saved == 200
    assert report.seconds < 30


class Canary:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path):
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self._path,))


def test_nothing_that_is_sent_is_ever_unpickled(tmp_path: Path, nodes: Nodes) -> None:
    song = tmp_path / "sung"
    content = pickle.dumps(Canary(song))
    with Session.open(nodes.system(None)) as session:
        session.prepare(graph="save_raw", output=tmp_path, nb_frames=100, expo_time=1e-3)
        for port in nodes.ports():
            for kind in ("PUSH", "DEALER"):
                with suppress(OSError), Stranger(port, kind) as stranger:
                    for message in (content, wire.seal(content)):
                        stranger.send(message)
                    request = [1, "status", {"run": content}]
                    stranger.send(wire.seal(msgspec.msgpack.encode(request)))
        session.start()
        assert session.wait(30).saved == 100
    assert not song.exists()
    pickle.loads(content)
    assert song.exists(), "the canary sings when it is unpickled"


def test_keys_are_made_by_a_command_and_must_stay_secret(
    tmp_path: Path, command: Callable[..., Command]
) -> None:
    status, out, _ = command("keys", "s.keys").finish()
    assert status == 0
    assert "copy it to every host" in out
    (tmp_path / "s.keys").chmod(0o644)
    listen = ["--listen", "tcp://127.0.0.1:*", "--keys", "s.keys"]
    status, _, err = command("node", "processing", "p", *listen).finish()
    assert status == 2
    assert "chmod 600 s.keys" in err
