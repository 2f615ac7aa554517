"""Blocks reach their owner once, are kept until done, and survive the loss of a node."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lima2py.frame import Absence, Block, Fate, FrameSpec
from lima2py.memory import Heap, Ring, RingShape, Shared
from lima2py.transport import wire
from lima2py.transport.pull import Pull, Sender
from lima2py.transport.push import Books, Push, Receiver
from lima2py.transport.sockets import new_context

SPEC = FrameSpec.dense(8, 8, "uint16")
SHAPE = RingShape(frames=4, slots=16, stride=4096)
RUN = "f" * 32


class Node:
    """A processing node that remembers the sums of what it got, and answers each block."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], folder: Path, rank: int,
                 sender: Sender, share: bool) -> None:  # fmt: skip
        self.pull = Pull(
            context, RUN, rank, f"inc{rank}", SPEC, [sender], [f"ipc://{folder}/n{rank}"], 4, share
        )
        self.got: dict[int, int] = {}
        self.mute = False
        self.thread = threading.Thread(target=self.loop)

    def loop(self) -> None:
        for block in self.pull:
            if block is None or self.mute:
                continue
            for frame in block.frames():
                assert frame.index not in self.got
                self.got[frame.index] = -1 if frame.data is None else int(frame.data.sum())
            absences = [(0, part) for part in wire.pack_absences(block.absences)]
            done = wire.DoneBlock(block.index, block.count, *block.origin, [], absences)
            self.pull.acknowledge([done])
        self.pull.farewell({}, [], [])
        self.pull.close()

    @property
    def receiver(self) -> Receiver:
        return Receiver(self.pull.rank, f"proc{self.pull.rank}", self.pull.incarnation,
                        self.pull.addresses[0], 4, bool(self.pull.shared))  # fmt: skip


class Rig:
    """One Push, some nodes, a ring."""

    def __init__(self, folder: Path, nodes: int, shared: bool, group: int = 4) -> None:
        self.context = new_context()
        self.ring = Ring(SPEC, SHAPE, Shared() if shared else Heap())
        self.books = Books(self.context, [f"ipc://{folder}/books"])
        sender = Sender(0, self.books.addresses[0], SHAPE, self.ring.buffer.handle)
        self.nodes = [Node(self.context, folder, rank, sender, shared) for rank in range(nodes)]
        receivers = [node.receiver for node in self.nodes]
        self.asked: list[str] = []
        self.push = Push(self.context, self.books, RUN, 0, receivers, group, (), self.asked.append)
        self.settled: dict[int, tuple[int, list[tuple[int, wire.AbsentRange]]]] = {}
        for node in self.nodes:
            node.thread.start()

    def settle(self, found: list) -> None:  # type: ignore[type-arg]
        for slot, node, done in found:
            assert done.index not in self.settled
            self.settled[done.index] = (node, done.absences)
            if slot >= 0:
                self.ring.release(slot)

    def send(self, index: int, count: int = 4, absence: Absence | None = None) -> None:
        slot = self.ring.take()
        while slot is None:
            self.settle(self.push.collect(idle=True))
            slot = self.ring.take()
        view = self.ring.view(slot)[:count]
        view[:] = (np.arange(count) + index)[:, None, None, None]
        gone = {} if absence is None else {0: absence}
        self.push.process(Block(SPEC, index, count, view, gone), slot)
        self.settle(self.push.collect(idle=False))

    def finish(self) -> None:
        for found in self.push.drain():
            self.settle(found)

    def close(self) -> None:
        for node in self.nodes:
            node.pull.stop()
            node.thread.join()
        self.push.close()
        self.books.close()
        self.ring.close()
        self.context.term()


@pytest.fixture
def rigs(tmp_path: Path) -> Iterator[list[Rig]]:
    made: list[Rig] = []
    yield made
    for rig in made:
        rig.close()


@pytest.mark.parametrize("shared", [True, False], ids=["shared memory", "bytes"])
@pytest.mark.parametrize("nodes", [1, 3])
def test_every_frame_arrives_once_at_its_owner(
    tmp_path: Path, rigs: list[Rig], nodes: int, shared: bool
) -> None:
    rig = Rig(tmp_path, nodes, shared)
    rigs.append(rig)
    for index in range(0, 400, 4):
        rig.send(index)
    rig.finish()
    got = {index: total for node in rig.nodes for index, total in node.got.items()}
    assert got == {index: (index * 64) for index in range(400)}
    assert {index: node for index, (node, _) in rig.settled.items()} == {
        index: index // 4 % nodes for index in range(0, 400, 4)
    }
    assert rig.ring.used == 0
    assert rig.push.errors == []


def test_how_a_node_is_doing_is_told_but_does_not_count_as_an_answer(
    tmp_path: Path, rigs: list[Rig]
) -> None:
    rig = Rig(tmp_path, 2, True)
    rigs.append(rig)
    told: list[wire.Statistics] = []
    rig.push.on_statistics = told.append
    heard = dict(rig.push._heard)
    stranger = Pull(
        rig.context, RUN, 1, "another start of it", SPEC,
        list(rig.nodes[0].pull._senders.values()), [f"ipc://{tmp_path}/stranger"], 4,
    )  # fmt: skip
    stranger.report(1.0, {})
    rig.nodes[0].mute = rig.nodes[1].mute = True
    rig.nodes[1].pull.report(125.5, {"masked+view": 0.25, "raw": 0.5})
    while not told or not rig.push.refused:
        rig.push.listen()
    stranger.close()
    assert told == [wire.Statistics(RUN, 1, "inc1", 125.5, {"masked+view": 0.25, "raw": 0.5})]
    assert rig.push.refused == 1
    assert rig.push._heard == heard


def test_an_absence_travels_with_its_block(tmp_path: Path, rigs: list[Rig]) -> None:
    rig = Rig(tmp_path, 1, True)
    rigs.append(rig)
    rig.send(0, absence=Absence(Fate.DETECTOR_GAP, "detector", "skipped"))
    rig.finish()
    assert rig.nodes[0].got == {0: -1, 1: 64, 2: 128, 3: 192}
    assert rig.settled[0][1] == [(0, (0, 1, Fate.DETECTOR_GAP, "detector", "skipped"))]


def test_nothing_is_sent_beyond_the_credits_and_a_lost_nodes_blocks_go_to_the_living(
    tmp_path: Path, rigs: list[Rig]
) -> None:
    rig = Rig(tmp_path, 2, True)
    rigs.append(rig)
    rig.nodes[0].mute = True
    for index in range(0, 28, 4):  # four for the mute one: its credits
        rig.send(index)
    assert rig.push.in_flight[0] == 4
    rig.push.lose({0: "killed"})
    for index in range(28, 80, 4):
        rig.send(index)
    rig.finish()
    assert set(rig.nodes[1].got) == set(range(80))
    assert {node for node, _ in rig.settled.values()} == {1}
    assert "node proc0 was lost: killed" in rig.push.errors[0]


def test_the_answer_of_a_zombie_changes_nothing(tmp_path: Path, rigs: list[Rig]) -> None:
    rig = Rig(tmp_path, 2, True)
    rigs.append(rig)
    rig.nodes[0].mute = True
    rig.send(0)
    rig.push.lose({0: "frozen"})
    rig.push.listen()
    late = wire.DoneBlock(0, 4, 0, 0, [], [])
    rig.nodes[0].pull.acknowledge([late])
    rig.finish()
    assert rig.settled[0][0] == 1
    assert rig.push.late == 1


def test_without_a_living_node_frames_are_marked_lost(tmp_path: Path, rigs: list[Rig]) -> None:
    rig = Rig(tmp_path, 1, True)
    rigs.append(rig)
    rig.nodes[0].mute = True
    rig.send(0)
    rig.push.lose({0: "killed"})
    rig.send(4)
    rig.finish()
    assert [part[2] for _, found in rig.settled.values() for _, part in found] == [
        Fate.NODE_LOST,
        Fate.NODE_LOST,
    ]


def test_a_block_that_brings_down_two_nodes_is_poison(tmp_path: Path, rigs: list[Rig]) -> None:
    rig = Rig(tmp_path, 3, True)
    rigs.append(rig)
    for node in rig.nodes:
        node.mute = True
    rig.send(0)
    for rank in (0, 1, 2):
        if 0 in rig.settled:
            break
        rig.push.lose({rank: "segmentation fault"})
        rig.settle(rig.push.collect(idle=True))
    assert [part[2] for _, part in rig.settled[0][1]] == [Fate.POISON]


def test_nodes_that_died_together_are_no_proof_of_poison(tmp_path: Path, rigs: list[Rig]) -> None:
    rig = Rig(tmp_path, 3, True)
    rigs.append(rig)
    rig.nodes[0].mute = rig.nodes[1].mute = True
    for index in range(0, 24, 4):
        rig.send(index)
    rig.push.lose({0: "its host is gone", 1: "its host is gone"})
    rig.finish()
    assert {index: node for index, (node, _) in rig.settled.items()} == dict.fromkeys(
        range(0, 24, 4), 2
    )
    assert set(rig.nodes[2].got) == set(range(24))
    assert [text.partition(":")[0] for text in rig.push.errors] == [
        "node proc0 was lost", "node proc1 was lost",
    ]  # fmt: skip


def test_abort_settles_what_is_in_flight_as_aborted(tmp_path: Path, rigs: list[Rig]) -> None:
    rig = Rig(tmp_path, 1, True)
    rigs.append(rig)
    rig.nodes[0].mute = True
    rig.send(0)
    rig.push.abort()
    rig.finish()
    assert [part[2] for _, part in rig.settled[0][1]] == [Fate.ABORTED]


junk = st.one_of(
    st.lists(st.binary(max_size=40), min_size=1, max_size=4),
    st.builds(
        lambda slot, index, count, run: [
            wire.encode(wire.BlockMessage(run, 0, 0, index, count, slot, [], {}))
        ],
        st.integers(-3, 99),
        st.integers(-5, 5),
        st.integers(-1, 9),
        st.sampled_from([RUN, "other"]),
    ),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=5)
@given(st.lists(junk, min_size=1, max_size=10))
def test_what_does_not_belong_to_the_run_is_counted_and_dropped(
    tmp_path_factory: pytest.TempPathFactory, messages: list[list[bytes]]
) -> None:
    folder = tmp_path_factory.mktemp("z")
    context = new_context()
    books = Books(context, [f"ipc://{folder}/books"])
    sender = Sender(0, books.addresses[0], SHAPE, None)
    pull = Pull(context, RUN, 0, "inc", SPEC, [sender], [f"ipc://{folder}/p"], 4)
    push = context.socket(zmq.PUSH)
    push.connect(pull.addresses[0])
    try:
        for message in messages:
            push.send_multipart(message)
        push.send(wire.encode(wire.End(RUN, 0, False)))
        assert [block for block in pull if block is not None] == []
        assert pull.refused == len(messages)
    finally:
        push.close(linger=0)
        pull.close()
        books.close()
        context.term()


def test_a_node_lost_after_the_last_frame_was_sent_leaves_its_blocks_to_the_others(
    tmp_path: Path, rigs: list[Rig]
) -> None:
    rig = Rig(tmp_path, 2, True)
    rigs.append(rig)
    rig.nodes[0].mute = True
    for index in range(0, 24, 4):
        rig.send(index)
    drained = iter(rig.push.drain())
    while len(rig.settled) < 3:  # all that the other one has
        rig.settle(next(drained))
    rig.push.lose({0: "it was killed"})
    for found in drained:
        rig.settle(found)
    assert {index: node for index, (node, _) in rig.settled.items()} == dict.fromkeys(
        range(0, 24, 4), 1
    )
    assert rig.ring.used == 0
