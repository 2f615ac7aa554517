"""Measure on this host what the model needs to know: with real nodes, messages, tasks and files.

What is work is counted in processor time, so others on the host disturb little.
"""

from __future__ import annotations

import mmap
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import zmq

from lima2py.acquisition import Acquisition
from lima2py.detector import Detector, Share, Slot
from lima2py.errors import LimaError
from lima2py.frame import SIZES, Array, Block, FrameSpec
from lima2py.graph.definition import GraphDefinition, parse_graph
from lima2py.graph.measure import Speed
from lima2py.graph.measure import measure as measure_graph
from lima2py.graph.plan import plan_run
from lima2py.memory_settings import MemorySettings
from lima2py.model.costs import AcquisitionCosts, Costs, ProcessingCosts
from lima2py.session.session import Session
from lima2py.session.system import System
from lima2py.transport.dispatch import Dispatch, Item
from lima2py.transport.sockets import PrivateFolder, bind, connect, new_context, new_socket

Socket = zmq.Socket[bytes]
POOL = 256 * 2**20
"""Bytes that are copied, sent, or written: more than caches hold."""
PIECE = 8 * 2**20
TAKEN = 64 * 2**20
"""Bytes of the detector's frames that go through the graph."""
MOST = 64
"""Blocks of them."""
SECONDS = 2.0
"""How long each run takes that measures what blocks cost by themselves."""
PATIENCE = 30.0
NODES = 1000
"""Among which one is chosen."""
PINGS = 200
_NOTHING = "graph: nothing\ntasks: {look: {do: tap, from: detector, every: 1 s}}"


class _Overhead(NamedTuple):
    """Processor seconds of a block, memory of a processing node, and how long it took to start."""

    acquisition: float
    processing: float
    memory: int
    start: float


def measure(
    graph: GraphDefinition, detector: Detector, acquisition: Acquisition, folder: Path
) -> Costs:
    """What a graph costs on this host, and all that goes with it; takes some ten seconds.

    Args:
        graph: what is to be done.
        detector: whose frames; it takes some, up to 64 MiB.
        acquisition: what is asked of it, but for the number of frames.
        folder: on the disk where files will be.

    Raises:
        LimaError: if the detector gives no frames, a task fails on them, or a node does not start.
    """
    plan, shape = plan_run(detector, acquisition, graph, MemorySettings().ring_bytes, 1)
    blocks, copy_rate = _take(detector, acquisition, plan.spec, shape.frames)
    speed = _cost(graph, blocks, acquisition, folder)
    work = speed.cpu / sum(speed.seconds.values())  # the rest was waiting, or others' time
    tasks = {name: seconds * work for name, seconds in speed.seconds.items()}
    flush = tasks.pop("flush", 0.0) * shape.frames
    full, single = _overhead(256), _overhead(1)
    there = next(place for place in (folder, *folder.parents) if place.is_dir())
    return Costs(
        host=f"{platform.node()}, {os.cpu_count()} cores, {platform.machine()}",
        graph=graph.where,
        frame=plan.spec.nbytes,
        acquisition=AcquisitionCosts(
            block=min(full.acquisition, single.acquisition),
            frame=max(0.0, full.acquisition - single.acquisition) / 255,
            copy_rate=copy_rate,
            choice=_choice(),
        ),
        processing=ProcessingCosts(
            block=min(full.processing, single.processing),
            tasks=tasks,
            flush=flush,
            written=speed.written,
            memory=max(full.memory, single.memory),
            restart=min(full.start, single.start),
        ),
        message=_message(),
        tcp_rate=_tcp_rate(),
        disk_rate=_disk_rate(there),
    )


def _take(
    detector: Detector, acquisition: Acquisition, spec: FrameSpec, frames: int
) -> tuple[list[Block], int]:
    """Some blocks of a detector, more than caches hold; how many bytes a second it gives."""
    total = frames * max(1, min(MOST, TAKEN // (frames * spec.nbytes)))
    asked = acquisition.model_copy(update={"nb_frames": total})
    kinds = dict(detector.capabilities.columns)
    if spec.kind == "encoded":
        kinds[SIZES] = "uint64"
    columns = {name: np.zeros(total, dtype) for name, dtype in kinds.items()}
    memory = mmap.mmap(-1, total * spec.nbytes)  # shared, as rings are
    data = np.frombuffer(memory, spec.dtype).reshape(total, *spec.shape)
    columns["timestamp"] = np.full(total, np.nan)
    for _ in range(2):  # the first time the system finds the memory
        detector.prepare(asked, Share())
        detector.start()
        try:
            spent = _fill(detector, data, columns, 2 * total * acquisition.period + PATIENCE)
        finally:
            detector.stop()
    blocks = [
        Block(
            spec, n, frames, data[n : n + frames],
            columns={name: values[n : n + frames] for name, values in columns.items()},
        )
        for n in range(0, total, frames)
    ]  # fmt: skip
    return blocks, int(data.nbytes / spent)


def _fill(detector: Detector, data: Array, columns: Mapping[str, Array], patience: float) -> float:
    """Let a detector, which was started, give frames; how much processor time that took.

    Raises:
        LimaError: if it does not give enough.
    """
    total, index, until = len(data), 0, time.monotonic() + patience
    began = time.thread_time()
    while index < total:
        rest = {name: values[index:] for name, values in columns.items()}
        times = rest.pop("timestamp")
        count = detector.fill(Slot(index, data[index:], times, MappingProxyType(rest)))
        if count is None or time.monotonic() > until:
            who = detector.info.name
            raise LimaError(f"detector {who} gave {index} frames of {total} to measure with")
        index += count
    return time.thread_time() - began


def _cost(
    graph: GraphDefinition, blocks: list[Block], acquisition: Acquisition, folder: Path
) -> Speed:
    """The median of three."""
    spec, frames = blocks[0].spec, blocks[0].count
    speeds = [measure_graph(graph, spec, frames, folder, acquisition, blocks) for _ in range(3)]
    for speed in speeds:
        if speed.errors:
            raise LimaError(f"{graph.where}: {'; '.join(speed.errors)}")
    return sorted(speeds, key=lambda speed: speed.cpu)[1]


def _overhead(frames: int) -> _Overhead:
    """What blocks of so many tiny frames cost when nothing is done with them: a real session."""
    shape, ring = ([16, 16], 2**26) if frames > 1 else ([64, 64], 2**16)
    system = System.load(
        {
            "system": "measured",
            "detector": "simulator",
            "set": {"shape": shape, "prefetch": 1},
            "acquisition": [{"node": "acq0"}],
            "processing": [{"node": "proc0"}],
            "memory": {"ring": ring},
        },
        "system",
    )
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, Session.open(system) as session:
        nothing = parse_graph(_NOTHING, "nothing", Path(folder))
        session.prepare(nb_frames=0, expo_time=1e-6, graph=nothing, output=folder)
        start = time.perf_counter() - began
        session.start()
        looks = [_wait_for(session, 0)]
        while time.perf_counter() < began + start + SECONDS:
            looks.append(_wait_for(session, looks[-1]["proc0"]["frames"]))
        session.stop()
        session.wait()
    first, last = looks[0], looks[-1]

    def spent(node: str, counter: str) -> float:
        seconds = last[node]["cpu_seconds"] - first[node]["cpu_seconds"]
        return float(seconds / (last[node][counter] - first[node][counter]) * frames)

    memory = last["proc0"]["memory"]
    return _Overhead(spent("acq0", "settled"), spent("proc0", "frames"), memory, start)


def _wait_for(session: Session, frames: int) -> Mapping[str, Mapping[str, Any]]:
    """What the nodes say when the processing node has done more frames than that.

    Raises:
        LimaError: if it does no more.
    """
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        nodes = session.progress().nodes
        if len(nodes) == 2 and nodes["proc0"]["frames"] > frames:
            return nodes
        time.sleep(0.02)
    raise LimaError(f"in the run that measures messages nothing moved for {PATIENCE:g} s")


def _processor_time(do: Callable[[], Any]) -> float:
    """The median of three."""

    def once() -> float:
        began = time.process_time()
        do()
        return time.process_time() - began

    return statistics.median(once() for _ in range(3))


def _choice() -> float:
    """Seconds for each node among which the next is chosen."""
    queue = Dispatch("least_loaded", 1)
    for rank in range(NODES):
        queue.add(rank, 2)
    spec = FrameSpec.dense(1, 1, "uint8")
    for index in range(NODES):
        queue.put(Item(Block(spec, index, 1, None), index))

    def choose() -> None:
        for _ in range(NODES // 10):
            queue.next()

    return _processor_time(choose) / (NODES // 10) / NODES


def _message() -> float:
    """Seconds of a small message on this host: the median."""

    def ping(push: Socket, pull: Socket) -> float:
        began = time.perf_counter()
        push.send(b"")
        pull.recv()
        return time.perf_counter() - began

    with closing(PrivateFolder()) as folder, _pair(folder.address("ping")) as (push, pull):
        return statistics.median(ping(push, pull) for _ in range(PINGS))


def _tcp_rate() -> int:
    """Bytes a second that one end of a connection handles, of a pair that shares the work."""
    data = np.ones(PIECE, np.uint8).data

    def send() -> None:
        for _ in range(POOL // PIECE):
            push.send(data, copy=False)
            pull.recv(copy=False)

    with _pair("tcp://127.0.0.1:*") as (push, pull):
        return int(2 * POOL / _processor_time(send))


@contextmanager
def _pair(address: str) -> Iterator[tuple[Socket, Socket]]:
    with (
        new_context() as context,
        new_socket(context, zmq.PULL, hwm=0, largest=2 * PIECE) as pull,
        new_socket(context, zmq.PUSH, hwm=0) as push,
    ):
        connect(push, bind(pull, address))
        yield push, pull


def _disk_rate(folder: Path) -> int:
    """Bytes a second until the disk says that they are safe."""
    data = memoryview(np.random.default_rng(0).bytes(PIECE))
    with tempfile.TemporaryFile(dir=folder, prefix=".lima2py-") as file:
        began = time.perf_counter()
        for _ in range(POOL // PIECE):
            file.write(data)
        file.flush()
        os.fdatasync(file.fileno())
        return int(POOL / (time.perf_counter() - began))
