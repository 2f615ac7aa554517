"""What moving frames from one process to another costs, against copying them in one.

The receiver is a real process with a real `Pull`; the sender copies frames from a cold pool into
the slots of its ring, as a detector's plugin would, and pushes handles.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from lima2py.frame import Block, FrameSpec
from lima2py.memory import Handle, Shared
from lima2py.policies import Policies
from lima2py.ring import Arena, Ring, RingShape
from lima2py.transport import wire
from lima2py.transport.line import Receiver
from lima2py.transport.pull import Pull, Sender
from lima2py.transport.push import Answers, Push
from lima2py.transport.sockets import new_context

EIGER_1M = FrameSpec.dense(1065, 1030, "uint16")
SMALL = FrameSpec.dense(64, 64, "uint16")
POOL = 256 * 2**20
RING = 128 * 2**20
RUN = "0" * 32


def handles_against_copy(frames: int, read: bool = False) -> float:
    """Rate of frames copied into a ring and received by handle, over the rate of copying alone."""
    pool = cold_pool(EIGER_1M)
    copying = _copy(pool, frames)
    sending = _send(pool, EIGER_1M, frames, read)
    again = _copy(pool, frames)
    return (copying + again) / 2 / sending


def small_frames(frames: int) -> float:
    """Frames a second, in blocks, copied into a ring and received and read by another process."""
    return frames / _send(cold_pool(SMALL), SMALL, frames, read=True)


def cold_pool(spec: FrameSpec) -> NDArray[Any]:
    """More frames than any cache holds."""
    count = POOL // spec.nbytes
    flat = np.arange(count * spec.nbytes // spec.dtype.itemsize, dtype=np.uint32)
    return flat.astype(spec.dtype).reshape(count, *spec.shape)


def _copy(pool: NDArray[Any], frames: int) -> float:
    """Seconds to copy frames one by one from the pool into a ring's worth of slots."""
    slots = np.ones((RING // pool[0].nbytes, *pool.shape[1:]), pool.dtype)  # ones: pages in place
    began = time.perf_counter()
    for index in range(frames):
        np.copyto(slots[index % len(slots)], pool[index % len(pool)])
    return time.perf_counter() - began


def _send(pool: NDArray[Any], spec: FrameSpec, frames: int, read: bool) -> float:
    """Seconds to do the same through Push and Pull, until the last frame is answered."""
    context = new_context()
    start = multiprocessing.get_context("spawn")
    shape = RingShape.plan(spec, RING)
    with tempfile.TemporaryDirectory() as folder:
        arena = Arena(Shared(), shape.nbytes)
        ring = Ring(spec, shape, arena)
        books = Answers(context, [f"ipc://{folder}/books"])
        here, there = start.Pipe()
        sender = (books.addresses[0], shape, msgspec.to_builtins(arena.buffer.handle))
        child = start.Process(target=_receive, args=(there, folder, spec.plain(), sender, read))
        child.start()
        address = here.recv()
        receiver = Receiver(0, "receiver", "0", address, max(2, shape.slots), True)
        push = Push(
            context, books, RUN, 0, [receiver], 1, shape.frames, (), Policies(), lambda _: None
        )
        began = time.perf_counter()
        index = 0
        while index < frames:
            slot = ring.take()
            if slot is not None:
                count = min(shape.frames, frames - index)
                view = ring.view(slot)[:count]
                at = index % (len(pool) - count + 1)
                np.copyto(view, pool[at : at + count])
                push.process(Block(spec, index, count, view), slot)
                index += count
            for settled in push.collect(idle=slot is None):
                ring.release(settled.slot)
        for found in push.drain():
            for settled in found:
                ring.release(settled.slot)
        spent = time.perf_counter() - began
        assert ring.used == 0
        child.join()
        push.close()
        books.close()
        ring.close()
    context.term()
    return spent


def _receive(
    pipe: Connection, folder: str, spec: dict[str, Any], sender: tuple[Any, ...], read: bool
) -> None:
    context = new_context()
    address, shape, handle = sender
    source = Sender(0, address, RingShape(*shape), msgspec.convert(handle, Handle))
    pull = Pull(
        context, RUN, 0, "0", FrameSpec.from_plain(spec), [source],
        [f"ipc://{Path(folder) / 'frames'}"], shape.slots,
    )  # fmt: skip
    pipe.send(pull.addresses[0])
    done: list[wire.DoneBlock] = []
    for block in pull:
        if block is not None:
            if read and block.data is not None:
                block.pixels.max()
            done.append(wire.DoneBlock(block.index, block.count, *block.origin, [], []))
        if done and (block is None or len(done) >= 16):
            pull.acknowledge(done)
            done = []
    pull.acknowledge(done)
    pull.farewell({}, [])
    pull.close()
    context.term()
