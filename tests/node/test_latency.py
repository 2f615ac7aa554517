"""Blocks are timed from the ring to every sink that has rows of them."""

from __future__ import annotations

import numpy as np
import pytest

from lima2py.frame import Absence, Block, Fate, FrameSpec
from lima2py.node import latency
from lima2py.node.latency import SinkLatency
from lima2py.transport.wire import DoneBlock

SPEC = FrameSpec.dense(2, 2, "u1")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(latency, "monotonic", lambda: now[0])
    return now


def block(index: int, count: int) -> Block:
    return Block(SPEC, index, count, np.zeros((count, 1, 2, 2), "u1"))


def done(index: int, count: int, *rows: int) -> DoneBlock:
    return DoneBlock(index, count, 0, 0, list(rows), [])


def test_every_sink_counts_the_rows_it_has_of_a_block(clock: list[float]) -> None:
    timed = SinkLatency({"raw": 1, "sums": 4, "photons": 1})
    timed.begin(block(0, 6))
    clock[0] += 0.5
    timed.begin(block(6, 2))
    clock[0] += 0.5
    timed.end(done(0, 6, 0, 0, -1))
    timed.end(done(6, 2, 6, 1, 0))
    frames = {name: histogram.frames for name, histogram in timed.by_sink.items()}
    assert frames == {"raw": 8, "sums": 2, "photons": 2}
    assert timed.by_sink["raw"].longest == 1.0
    assert timed.by_sink["raw"].total == 6 * 1.0 + 2 * 0.5


def test_the_age_is_that_of_the_oldest_block_that_is_not_settled(clock: list[float]) -> None:
    timed = SinkLatency({"raw": 1})
    assert timed.age == 0.0
    timed.begin(block(0, 1))
    clock[0] += 2.0
    timed.begin(block(1, 1))
    clock[0] += 1.0
    assert timed.age == 3.0
    timed.end(done(0, 1, 0))
    assert timed.age == 1.0
    timed.end(done(1, 1, 1))
    assert timed.age == 0.0


def test_frames_that_never_came_are_not_timed(clock: list[float]) -> None:
    timed = SinkLatency({"raw": 1})
    timed.begin(Block.absent(SPEC, 0, 4, Absence(Fate.OVERRUN, "ring")))
    clock[0] += 2.0
    assert timed.age == 0.0
    timed.end(done(0, 4, 0))
    assert timed.by_sink["raw"].frames == 0
