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
from lima2py.memory import Heap, Shared
from lima2py.policies import Policies
from lima2py.ring import Arena, Ring, RingShape
from lima2py.transport import packing, wire
from lima2py.transport.answers import Answers
from lima2py.transport.board import NOTHING, SAVING, Board
from lima2py.transport.line import Receiver
from lima2py.transport.pull import Pull, Sender
from lima2py.transport.push import Push
from lima2py.transport.sockets import new_context

SPEC = FrameSpec.dense(8, 8, "uint16")
SHAPE = RingShape(frames=4, slots=16, stride=4096)
RUN = "f" * 32


class Node:
    """A processing node that remembers the sums of what it got, and answers each block."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], folder: Path, rank: int,
                 sender: Sender, share: bool) -> None:  # fmt: skip
        self.pull = Pull(
            context, RUN, rank, f"inc{rank}", [sender], [f"ipc://{folder}/n{rank}"], 4, share
        )
        self.got: dict[int, int] = {}
        self.mute = False
        self.board = Board()
        self.thread = threading.Thread(target=self.loop)

    def loop(self) -> None:
        for block in self.pull:
            if block is None or self.mute:
                continue
            self.board.write(block.origin[0], block.index)
            for frame in block.frames():
                assert frame.index not in self.got
                self.got[frame.index] = -1 if frame.data is None else int(frame.data.sum())
            absences = [(0, part) for part in packing.pack_absences(block.absences)]
            done = wire.DoneBlock(block.index, block.count, *block.origin, [], absences)
            self.pull.acknowledge([done])
            self.board.write(0, NOTHING)
        self.board.close()
        self.pull.farewell({}, [], [], {})
        self.pull.close()

    @property
    def receiver(self) -> Receiver:
        return Receiver(self.pull.rank, f"proc{self.pull.rank}", self.pull.incarnation,
                        self.pull.addresses[0], 4, bool(self.pull.shared),
                        self.board.handle)  # fmt: skip


class Rig:
    """One Push, some nodes, a ring."""

    def __init__(self, folder: Path, nodes: int, shared: bool, group: int = 1,
                 **policies: object) -> None:  # fmt: skip
        self.context = new_context()
        self.arena = Arena(Shared() if shared else Heap(), SHAPE.nbytes)
        self.ring = Ring(SPEC, SHAPE, self.arena)
        self.books = Answers(self.context, [f"ipc://{folder}/books"])
        sender = self.sender = Sender(
            0, self.books.addresses[0], SHAPE, SPEC, self.arena.buffer.handle
        )
        self.folder, self.shared = folder, shared
        self.nodes = [Node(self.context, folder, rank, sender, shared) for rank in range(nodes)]
        receivers = [node.receiver for node in self.nodes]
        self.asked: list[str] = []
        self.put_aside: list[int] = []
        self.push = Push(self.context, self.books, RUN, 0, receivers, group, 4, (),
                         Policies.load({"dispatch": "round_robin", **policies}, "policies"),
                         self.asked.append)  # fmt: skip
        self.push.on_given_up = lambda block, _why: self.put_aside.append(block.index)
        self.settled: dict[int, tuple[int, list[tuple[int, wire.AbsentRange]]]] = {}
        self.sent: dict[int, int] = {}
        for node in self.nodes:
            node.thread.start()

    def join(self) -> None:
        late = Node(self.context, self.folder, len(self.nodes), self.sender, self.shared)
        self.nodes.append(late)
        late.thread.start()
        self.push.join(late.receiver)

    def settle(self, found: list) -> None:  # type: ignore[type-arg]
        for slot, node, sent, done in found:
            assert done.index not in self.settled
            self.settled[done.index] = (node, done.absences)
            self.sent[done.index] = sent
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
        self.arena.retire()
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


def test_how_a_node_is_doing_is_told_by_itself_only(tmp_path: Path, rigs: list[Rig]) -> None:
    rig = Rig(tmp_path, 2, True)
    rigs.append(rig)
    told: list[wire.Statistics] = []
    rig.push.on_statistics = told.append
    stranger = Pull(
        rig.context, RUN, 1, "another start of it",
        list(rig.nodes[0].pull._senders.values()), [f"ipc://{tmp_path}/stranger"], 4,
    )  # fmt: skip
    doing = (125.5, {"masked+view": 0.25, "raw": 0.5}, 0.5, 4096)
    stranger.report(*doing)
    rig.nodes[1].pull.report(*doing)
    while not told or not rig.push.status()["refused"]:
        rig.push.listen()
    stranger.close()
    assert told == [wire.Statistics(RUN, 1, "inc1", *doing)]


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
    for index in range(0, 4 * SHAPE.slots, 4):  # in turns: a node without credit holds up the rest
        rig.send(index)
        assert rig.push.in_flight[0] <= 4  # its credits
    while len(rig.settled) < 4:
        rig.settle(rig.push.collect(idle=True))
    assert rig.push.in_flight == {0: 4, 1: 0}
    rig.push.lose({0: "killed"})
    rig.finish()
    assert set(rig.nodes[1].got) == set(range(4 * SHAPE.slots))
    assert {node for node, _ in rig.settled.values()} == {1}
    assert "node proc0 was lost: killed; 4 blocks it had were given to others" in rig.push.errors
    assert sorted(rig.sent.values()) == [1] * 12 + [2] * 4


def test_the_least_loaded_does_the_work_of_a_mute_node(tmp_path: Path, rigs: list[Rig]) -> None:
    rig = Rig(tmp_path, 2, True, dispatch="least_loaded")
    rigs.append(rig)
    rig.nodes[0].mute = True
    for index in range(0, 80, 4):
        rig.send(index)
    while len(rig.settled) < 16:
        rig.settle(rig.push.collect(idle=True))
    assert 1 <= rig.push.in_flight[0] <= 4
    rig.push.abort()
    rig.finish()


def test_a_mute_node_holds_up_nobody_who_fills_the_ring(tmp_path: Path, rigs: list[Rig]) -> None:
    rig = Rig(tmp_path, 1, True)
    rigs.append(rig)
    rig.nodes[0].mute = True
    for index in range(0, 4 * SHAPE.slots, 4):
        rig.send(index)
    assert rig.push.in_flight == {0: 4}
    assert rig.push.status()["waiting"] == SHAPE.slots - 4
    assert rig.ring.take() is None
    rig.push.abort()
    rig.finish()
    assert rig.ring.used == 0


def test_the_answer_of_a_zombie_changes_nothing(tmp_path: Path, rigs: list[Rig]) -> None:
    rig = Rig(tmp_path, 2, True)
    rigs.append(rig)
    rig.nodes[0].mute = True
    rig.send(0)
    rig.push.lose({0: "frozen"})
    rig.push.listen()
    zombie = rig.context.socket(zmq.PUSH)
    zombie.connect(rig.books.addresses[0])
    late = wire.DoneBlock(0, 4, 0, 0, [], [])
    zombie.send(wire.encode(wire.Done(RUN, 0, "inc0", [late])))
    while not rig.push.late:
        rig.push.listen()
    zombie.close()
    rig.finish()
    assert rig.settled[0][0] == 1
    assert rig.push.late == 1


def test_without_a_living_node_frames_wait_and_then_are_lost(
    tmp_path: Path, rigs: list[Rig]
) -> None:
    rig = Rig(tmp_path, 1, True, node_patience=0.2)
    rigs.append(rig)
    rig.nodes[0].mute = True
    rig.send(0)
    rig.push.lose({0: "killed"})
    rig.send(4)
    assert rig.settled == {}
    while not rig.asked:
        rig.settle(rig.push.collect(idle=True))
    rig.finish()
    assert [part[2] for _, found in rig.settled.values() for _, part in found] == [
        Fate.NODE_LOST,
        Fate.NODE_LOST,
    ]
    assert rig.asked == ["no processing node was left for 0.2 s (node proc0 was lost: killed)"]
    assert not {*rig.asked} & {*rig.push.errors}  # whoever is asked to stop says why, once


def test_when_all_nodes_are_told_to_leave_the_end_says_so(tmp_path: Path, rigs: list[Rig]) -> None:
    rig = Rig(tmp_path, 1, True, node_patience=0.2)
    rigs.append(rig)
    rig.push.leave(0)
    rig.settle(rig.push.collect(idle=True))
    rig.send(0)
    while not rig.asked:
        rig.settle(rig.push.collect(idle=True))
    rig.finish()
    assert rig.asked == ["no processing node was left for 0.2 s (all were told to leave)"]


def test_a_node_that_joins_is_given_what_waits(tmp_path: Path, rigs: list[Rig]) -> None:
    rig = Rig(tmp_path, 1, True)
    rigs.append(rig)
    rig.nodes[0].mute = True
    for index in range(0, 24, 4):
        rig.send(index)
    rig.push.lose({0: "killed"})
    rig.send(24)
    rig.join()
    rig.finish()
    assert {index: node for index, (node, _) in rig.settled.items()} == dict.fromkeys(
        range(0, 28, 4), 1
    )


def test_a_node_that_leaves_does_what_it_has_and_is_no_loss(
    tmp_path: Path, rigs: list[Rig]
) -> None:
    rig = Rig(tmp_path, 2, True)
    rigs.append(rig)
    for index in range(0, 16, 4):
        rig.send(index)
    rig.push.leave(0)
    rig.push.listen()
    for index in range(16, 80, 4):
        rig.send(index)
    while 0 in rig.push.in_flight:
        rig.settle(rig.push.collect(idle=True))
    rig.finish()
    assert rig.push.errors == []
    assert rig.push.lost == {}
    assert {rig.settled[index][0] for index in range(16, 80, 4)} == {1}


def test_of_a_block_that_brought_down_a_node_the_frames_are_tried_one_by_one(
    tmp_path: Path, rigs: list[Rig]
) -> None:
    rig = Rig(tmp_path, 3, True)
    rigs.append(rig)
    rig.nodes[0].mute = rig.nodes[1].mute = True
    rig.send(0)
    rig.nodes[0].board.write(0, 0)
    rig.push.lose({0: "segmentation fault"})
    rig.settle(rig.push.collect(idle=True))
    assert sorted(rig.push.still_open) == [0, 1, 2, 3]
    rig.nodes[1].board.write(0, 0)
    rig.push.lose({1: "segmentation fault"})
    rig.finish()
    fates = {index: [part[2] for _, part in found] for index, (_, found) in rig.settled.items()}
    assert fates == {0: [Fate.POISON], 1: [], 2: [], 3: []}
    assert rig.nodes[2].got == {1: 64, 2: 128, 3: 192}
    assert rig.ring.used == 0


def test_a_frame_that_brings_down_two_nodes_is_poison(tmp_path: Path, rigs: list[Rig]) -> None:
    rig = Rig(tmp_path, 3, True)
    rigs.append(rig)
    for node in rig.nodes:
        node.mute = True
    rig.send(0, count=1)
    for rank in (0, 1, 2):
        if 0 in rig.settled:
            break
        owner = next(rank for rank, load in rig.push.in_flight.items() if load)
        rig.nodes[owner].board.write(0, 0)
        rig.push.lose({owner: "segmentation fault"})
        rig.settle(rig.push.collect(idle=True))
    assert rank == 2
    assert [part[2] for _, part in rig.settled[0][1]] == [Fate.POISON]
    assert rig.put_aside == [0]
    assert rig.ring.used == 0


def test_what_a_node_had_that_died_while_it_saved_is_tried_block_by_block(
    tmp_path: Path, rigs: list[Rig]
) -> None:
    rig = Rig(tmp_path, 2, True)
    rigs.append(rig)
    rig.nodes[0].mute = True
    for index in range(0, 24, 4):
        rig.send(index)
    had = rig.push.in_flight[0]
    assert had > 1
    rig.nodes[0].board.write(0, SAVING)
    rig.push.lose({0: "killed while it flushed"})
    rig.finish()
    assert rig.settled == dict.fromkeys(range(0, 24, 4), (1, []))


def test_a_frame_that_brings_down_nodes_while_they_save_is_found(
    tmp_path: Path, rigs: list[Rig]
) -> None:
    """First its block is tried alone, then its frames."""
    rig = Rig(tmp_path, 4, True)
    rigs.append(rig)
    for node in rig.nodes[:3]:
        node.mute = True
    rig.send(0)
    for opened in ([0], [0], [0, 1, 2, 3]):
        assert sorted(rig.push.still_open) == opened
        (owner,) = (rank for rank, load in rig.push.in_flight.items() if load)
        rig.nodes[owner].board.write(0, SAVING)
        rig.push.lose({owner: "segmentation fault"})
        rig.settle(rig.push.collect(idle=True))
    rig.finish()
    fates = {index: [part[2] for _, part in found] for index, (_, found) in rig.settled.items()}
    assert fates == {0: [Fate.POISON], 1: [], 2: [], 3: []}
    assert rig.nodes[3].got == {1: 64, 2: 128, 3: 192}


@pytest.mark.parametrize("at", [NOTHING, 4])
def test_a_block_nobody_was_at_is_no_suspect(tmp_path: Path, rigs: list[Rig], at: int) -> None:
    rig = Rig(tmp_path, 4, True)
    rigs.append(rig)
    for node in rig.nodes[:3]:
        node.mute = True
    rig.send(0, count=1)
    for _ in range(3):
        owner = next(rank for rank, load in rig.push.in_flight.items() if load)
        if owner == 3:
            break
        rig.nodes[owner].board.write(0, at)
        rig.push.lose({owner: "killed by a passer-by"})
        rig.settle(rig.push.collect(idle=True))
    rig.push.lose({rank: "not needed" for rank in rig.push.in_flight if rank != 3})
    rig.finish()
    assert rig.settled[0] == (3, [])


def test_a_block_that_takes_too_long_is_marked_and_its_node_lost(
    tmp_path: Path, rigs: list[Rig]
) -> None:
    rig = Rig(tmp_path, 2, True, block_deadline=0.2)
    rigs.append(rig)
    rig.nodes[0].mute = True
    rig.send(0, count=1)
    rig.send(4, count=4)
    rig.nodes[0].board.write(0, 0)
    rig.finish()
    assert [part[2] for _, part in rig.settled[0][1]] == [Fate.DEADLINE]
    assert rig.settled[4] == (1, [])
    assert rig.put_aside == [0]
    assert "node proc0 was lost: it has been at frames 0 and following for 0." in rig.push.errors[0]


def test_a_node_that_does_nothing_about_a_block_is_lost(tmp_path: Path, rigs: list[Rig]) -> None:
    rig = Rig(tmp_path, 2, True, block_deadline=0.2)
    rigs.append(rig)
    rig.nodes[0].mute = True  # it refused the block, say; and it beats
    beat = wire.Beat(RUN, 0, "inc0", (0, NOTHING, 0.0))
    answers = rig.context.socket(zmq.PUSH)
    answers.connect(rig.books.addresses[0])
    rig.send(0)
    while 0 not in rig.settled:
        answers.send(wire.encode(beat))
        rig.settle(rig.push.collect(idle=True))
    answers.close()
    assert rig.settled[0] == (1, [])
    assert "it does nothing about frames 0 and following" in rig.push.errors[0]
    rig.finish()


def test_a_stop_that_takes_too_long_says_what_was_left(tmp_path: Path, rigs: list[Rig]) -> None:
    rig = Rig(tmp_path, 1, True)
    rigs.append(rig)
    rig.nodes[0].mute = True
    rig.send(0)
    rig.send(4)
    rig.push.hurry(0.1)
    rig.finish()
    assert [part[2] for _, found in rig.settled.values() for _, part in found] == [
        Fate.DEADLINE,
        Fate.DEADLINE,
    ]
    assert rig.push.errors == ["the stop took too long (drain_deadline): 8 frames were left"]


def test_what_a_lost_node_had_is_marked_if_that_is_the_policy(
    tmp_path: Path, rigs: list[Rig]
) -> None:
    rig = Rig(tmp_path, 2, True, node_loss="mark")
    rigs.append(rig)
    rig.nodes[0].mute = True
    for index in range(0, 16, 4):
        rig.send(index)
    rig.push.lose({0: "killed"})
    rig.push.listen()
    rig.send(16)
    rig.finish()
    fates = {index: [part[2] for _, part in found] for index, (_, found) in rig.settled.items()}
    assert fates == {0: [Fate.NODE_LOST], 4: [], 8: [Fate.NODE_LOST], 12: [], 16: []}
    assert rig.asked == []


def test_the_loss_of_a_node_stops_the_acquisition_if_that_is_the_policy(
    tmp_path: Path, rigs: list[Rig]
) -> None:
    rig = Rig(tmp_path, 2, True, node_loss="stop")
    rigs.append(rig)
    rig.nodes[0].mute = True
    rig.send(0)
    rig.push.lose({0: "killed"})
    rig.finish()
    assert rig.settled[0] == (1, [])
    assert rig.asked == ["node proc0 was lost: killed; 1 blocks it had were given to others"]


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
    books = Answers(context, [f"ipc://{folder}/books"])
    sender = Sender(0, books.addresses[0], SHAPE, SPEC, None)
    pull = Pull(context, RUN, 0, "inc", [sender], [f"ipc://{folder}/p"], 4)
    push = context.socket(zmq.PUSH)
    push.connect(pull.addresses[0])
    try:
        for message in messages:
            push.send_multipart(message)
        push.send(wire.encode(wire.End(RUN, 0, False)))
        assert [block for block in pull if block is not None] == []
        assert sum(pull.refused.plain().values()) == len(messages)
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
