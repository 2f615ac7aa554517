"""A processing node refuses by reason what is no block of its run, and takes what is one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import zmq

from lima2py.errors import ProtocolError
from lima2py.frame import SIZES, Fate, FrameSpec
from lima2py.ring import RingShape
from lima2py.transport import packing, wire
from lima2py.transport.pull import Pull, Sender
from lima2py.transport.sockets import connect, new_context, new_socket
from tests.fuzz import Fuzz

SPEC = FrameSpec.dense(3, 4, "uint16")
RUN = "f" * 32
PIXELS = bytes(2 * SPEC.nbytes)
GOOD = wire.BlockMessage(RUN, 1, 0, 6, 2, -1, [], {"timestamp": ("<f8", bytes(16))})


class Rig:
    """A processing node's source on the loopback, and an acquisition node's socket."""

    def __init__(self, folder: Path) -> None:
        self.context = new_context()
        ring = RingShape(frames=4, slots=8, stride=4096)
        self.pull = Pull(
            self.context, RUN, 0, "inc", [Sender(1, f"ipc://{folder}/books", ring, SPEC, None)],
            ["tcp://127.0.0.1:*"], 4,
        )  # fmt: skip
        self.peer = new_socket(self.context, zmq.PUSH, hwm=0)
        connect(self.peer, self.pull.addresses[0])

    def send(self, message: wire.Message, *parts: bytes) -> None:
        self.peer.send_multipart([wire.encode(message), *parts])

    def blocks(self) -> list[int]:
        """The first frames of the blocks that come until the end is said."""
        self.send(wire.End(RUN, 1, False))
        return [block.index for block in self.pull if block is not None]

    def close(self) -> None:
        self.pull.close()
        self.context.destroy(linger=0)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.close()


def but(**changes: Any) -> wire.BlockMessage:
    """A good message but for some fields."""
    return msgspec.structs.replace(GOOD, **changes)


@pytest.mark.parametrize(
    ("reason", "message", "parts"),
    [
        ("run", but(run="0" * 32), [PIXELS]),
        ("run", wire.End("0" * 32, 1, True), []),
        ("sender", but(source=0), [PIXELS]),
        ("sender", wire.End(RUN, 2, True), []),
        ("kind", wire.StopRequest(RUN, 1, "inc", "please"), []),
        ("kind", wire.Done(RUN, 1, "inc", []), []),
        ("parts", GOOD, [PIXELS, b"more"]),
        ("parts", but(slot=0), [PIXELS]),
        ("block", GOOD, []),
        ("block", GOOD, [PIXELS[1:]]),
        ("block", but(slot=0), []),
        ("block", but(slot=2**40), []),
        ("block", but(count=0), [b""]),
        ("block", but(count=-1), [b""]),
        ("block", but(count=5), [bytes(5 * SPEC.nbytes)]),
        ("block", but(count=2**62, absences=[(0, 2**62, 10, "", "")]), []),
        ("block", but(index=-1), [PIXELS]),
        ("block", but(index=2**64 - 1), [PIXELS]),
        ("block", but(absences=[(0, 0, 10, "", "")] * 3), [PIXELS]),
        ("block", but(absences=[(0, 2, 10, "", "")] * 2), [PIXELS]),
        ("block", but(absences=[(1, 2, 10, "", "")]), [PIXELS]),
        ("block", but(absences=[(0, 2, 99, "", "")]), [PIXELS]),
        ("block", but(columns={"a": ("|O8", bytes(16))}), [PIXELS]),
        ("block", but(columns={"a": ("(2,2)<f8", bytes(64))}), [PIXELS]),
        ("block", but(columns={"a": ("f8,f8", bytes(32))}), [PIXELS]),
        ("block", but(columns={"a": ("<M8[s]", bytes(16))}), [PIXELS]),
        ("block", but(columns={"a": ("<f1", bytes(2))}), [PIXELS]),
        ("block", but(columns={"a": ("<f8", bytes(17))}), [PIXELS]),
        ("block", but(columns={str(n): ("|u1", bytes(2)) for n in range(300)}), [PIXELS]),
    ],
)
def test_what_is_no_block_of_the_run_is_refused_by_reason(
    rig: Rig, reason: str, message: wire.Message, parts: list[bytes]
) -> None:
    rig.send(GOOD, PIXELS)
    rig.send(message, *parts)
    rig.send(but(index=8), PIXELS)
    assert rig.blocks() == [6, 8]
    assert rig.pull.refused.plain() == {reason: 1}
    assert not rig.pull.discarded


def test_numbers_that_are_none_are_numbers(rig: Rig) -> None:
    nan = np.array([np.nan, -np.inf])
    message = but(columns={"timestamp": ("<f8", nan.tobytes())}, acquired_at=float("nan"))
    rig.send(message, PIXELS)
    assert rig.blocks() == [6]
    assert rig.pull.refused.plain() == {}


def test_strangers_who_never_pause_do_not_keep_the_node_from_flushing(rig: Rig) -> None:
    over = threading.Event()

    def flood() -> None:
        with new_socket(rig.context, zmq.PUSH, hwm=100) as socket:
            connect(socket, rig.pull.addresses[0])
            while not over.is_set():
                if socket.poll(10, zmq.POLLOUT):
                    socket.send(b"GET / HTTP/1.1")

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        quiet = 0
        for block in rig.pull:
            quiet += block is None and bool(rig.pull.refused.plain())
            if quiet == 5:
                rig.send(GOOD, PIXELS)
                rig.send(wire.End(RUN, 1, False))
    finally:
        over.set()
        thread.join()
    assert quiet >= 5
    assert rig.pull.refused.plain()["foreign"] > 0


def test_a_report_that_cannot_be_about_a_block_is_refused() -> None:
    good = wire.DoneBlock(6, 4, 0, 1, [0, 7], [(1, (0, 4, int(Fate.NOT_SAVED), "raw", ""))])
    packing.check_done(good, 6, 4, [1, 4])
    lost = int(Fate.TASK_FAILED)
    for wrong in (
        {"count": 5},
        {"rows": [0]},
        {"rows": [0, -2]},
        {"rows": [0, 2**63]},
        {"absences": [(3, (0, 1, lost, "", ""))]},
        {"absences": [(-1, (0, 1, lost, "", ""))]},
        {"absences": [(2, (1, 1, lost, "", ""))]},  # one row stands for four frames
        {"absences": [(0, (0, 5, lost, "", ""))]},
        {"absences": [(0, (0, 3, lost, "", ""))] * 2},
        {"absences": [(0, (0, 1, 98, "", ""))]},
    ):
        with pytest.raises(ProtocolError) as caught:
            packing.check_done(msgspec.structs.replace(good, **wrong), 6, 4, [1, 4])
        assert caught.value.reason == "block"


def test_thousands_of_bad_messages_are_refused_or_taken_for_sound_ones() -> None:
    fuzz = Fuzz(seed=5)
    fuzz.go(20_000)
    assert not fuzz.findings, fuzz.findings[0]
    assert fuzz.outcomes.total() == 20_000
    assert min(fuzz.outcomes[kind] for kind in ("block", "done", "request")) > 500


@pytest.mark.parametrize(
    ("name", "lax"), [("_END", 2**65), ("_sizes", lambda columns: columns[SIZES])]
)
def test_a_check_that_is_missing_is_found(
    name: str, lax: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, name, lax)
    fuzz = Fuzz(seed=5)
    for _ in range(200):
        fuzz.go(1000)
        if fuzz.findings:
            return
    pytest.fail("nothing was found")
