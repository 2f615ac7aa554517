"""What arrives at an inbox and is none of its messages is refused, counted, and disturbs nobody."""

from __future__ import annotations

import gc
import logging
import os
import socket
import time
import weakref
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from lima2py.errors import ProtocolError
from lima2py.transport import wire
from lima2py.transport.inbox import Inbox, Received
from lima2py.transport.refusals import Refusals
from lima2py.transport.sockets import connect, new_context, new_socket
from tests.transport.stranger import Stranger

RUN = "f" * 32
MOST = 2**20
GOOD = wire.encode(wire.Start(RUN, 0))


class Rig:
    """An inbox on the loopback, and a peer of it."""

    def __init__(self, folder: Path) -> None:
        self.context = new_context()
        addresses = ["tcp://127.0.0.1:*", f"ipc://{folder}/inbox"]
        self.inbox = Inbox(
            self.context, addresses, what="a message", hwm=100, largest=MOST, most=MOST
        )
        self.peers: list[zmq.Socket[bytes]] = []
        self.port = int(self.inbox.addresses[0].rpartition(":")[2])
        self.peer = self.join()

    def join(self) -> zmq.Socket[bytes]:
        peer = new_socket(self.context, zmq.PUSH, hwm=0, largest=2**31)
        connect(peer, self.inbox.addresses[0])
        self.peers.append(peer)
        return peer

    def next(self) -> Received:
        """The next message that is none to refuse."""
        while self.inbox.socket.poll(10_000):
            if (received := self.inbox.receive()) is not None:
                return received
        raise AssertionError("nothing came")

    def close(self) -> None:
        self.inbox.close()
        self.context.destroy(linger=0)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.close()


def test_what_is_refused_is_counted_by_its_reason(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    other = bytearray(GOOD)
    other[4] += 1
    damaged = bytearray(GOOD)
    damaged[-1] ^= 1
    sent = {
        "foreign": [b"", b"GET / HTTP/1.1", b"LIMB" + GOOD[4:], GOOD[:4]],
        "version": [bytes(other)] * 3,
        "damaged": [bytes(damaged), GOOD[:9], GOOD[:-1], GOOD[:5]],
        "malformed": [wire.seal(b"\xc1"), wire.seal(b"\x91" * 10_000), wire.seal(bytes(2**20 - 9))],
    }
    for messages in sent.values():
        for message in messages:
            rig.peer.send(message)
    rig.peer.send(GOOD)
    assert rig.next().message == wire.Start(RUN, 0)
    assert rig.inbox.refused.plain() == {reason: len(many) for reason, many in sent.items()}
    assert len(caplog.records) == len(sent), "one line of the log for each reason"


@settings(max_examples=30)
@given(st.lists(st.binary(max_size=300), min_size=1, max_size=20))
def test_random_messages_are_counted_exactly(
    tmp_path_factory: pytest.TempPathFactory, parts: list[bytes]
) -> None:
    rig = Rig(tmp_path_factory.mktemp("i"))
    try:
        for part in parts:
            rig.peer.send(part)
        rig.peer.send(GOOD)
        rig.next()
        assert sum(rig.inbox.refused.plain().values()) == len(parts)
    finally:
        rig.close()


@pytest.mark.parametrize(
    "content",
    [
        b"GET / HTTP/1.1\r\nHost: gpu1:4711\r\n\r\n",
        b"\x01\x00" + b"\x05\x00LIMA" * 50,  # ZMTP 1.0: no greeting, just short messages
        b"\xff" + b"\xff" * 8 + b"\x7f\x03" + b"\xff" * 200,
        b"\xff" + bytes(8) + b"\x7f\x01\x08" + b"\xff\xff\xff\xff\xff\xff\xff\xff\xff" * 9,
        os.urandom(5000),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),  # a TLS client
        b"",
    ],
    ids=["http", "zmtp 1", "bad greeting", "huge length", "random", "tls", "nothing"],
)
def test_bytes_that_are_no_messages_disturb_nobody(rig: Rig, content: bytes) -> None:
    for _ in range(10):
        with socket.create_connection(("127.0.0.1", rig.port)) as stranger:
            with suppress(OSError):  # it may hang up while we speak
                stranger.sendall(content)
            rig.peer.send(GOOD)
            assert rig.next().message == wire.Start(RUN, 0)


def test_half_open_connections_keep_nobody_out(rig: Rig) -> None:
    strangers = [socket.create_connection(("127.0.0.1", rig.port)) for _ in range(50)]
    for stranger in strangers[::2]:
        stranger.sendall(b"\xff")
    late = rig.join()
    late.send(GOOD)
    assert rig.next().message == wire.Start(RUN, 0)
    for stranger in strangers:
        stranger.close()


def test_a_connection_that_sends_without_end_is_cut(rig: Rig) -> None:
    with Stranger(rig.port) as endless:
        endless.send(GOOD)
        with suppress(ConnectionError):
            for _ in range(1000):
                endless.send(bytes(MOST // 16), more=True)
                time.sleep(0.001)
    assert rig.next().message == wire.Start(RUN, 0)
    rig.peer.send(GOOD)
    assert rig.next().message == wire.Start(RUN, 0)
    assert rig.inbox.refused.plain() == {"endless": 1}


def test_a_part_that_is_too_large_ends_its_connection_alone(rig: Rig) -> None:
    large = rig.join()
    large.send(bytes(MOST + 1))
    rig.peer.send(GOOD)
    assert rig.next().message == wire.Start(RUN, 0)
    assert rig.inbox.refused.plain() == {}


def test_a_connection_that_brings_much_in_whole_messages_is_not_cut(rig: Rig) -> None:
    for _ in range(100):
        rig.peer.send(GOOD, zmq.SNDMORE)
        rig.peer.send(bytes(MOST // 2))
        assert len(rig.next().rest[0]) == MOST // 2
    assert rig.inbox.refused.plain() == {}


def test_a_log_that_is_kept_keeps_nothing_of_what_was_refused(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An error holds the frames it came through, and with them shared memory."""

    class Memory:
        pass

    def refuse() -> weakref.ref[Memory]:
        memory = Memory()
        try:
            raise ProtocolError("a message of another run", "run")
        except ProtocolError as error:
            Refusals("a message").note(error)
        return weakref.ref(memory)

    with caplog.at_level(logging.WARNING):
        found = refuse()
    gc.collect()
    assert caplog.records
    assert found() is None
