"""How fast a plan runs on this machine: measured, not guessed, with real files.

Frames may be made up. In integer frames one pixel in ten then has a photon, which is what most
X-ray detectors see and what compresses well; others hold random numbers. Files are written to a
folder that is deleted.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter, process_time
from types import MappingProxyType
from typing import cast

import numpy as np

from lima2py.acquisition import Acquisition, Parameters
from lima2py.codec import Encoding, codec
from lima2py.frame import NO_FRAME, SIZES, Array, Block, FrameSpec
from lima2py.graph.definition import GraphDefinition
from lima2py.graph.flow import Flow
from lima2py.graph.plan import Plan
from lima2py.task import RunContext
from lima2py.trigger_map import Companion

SECONDS = 0.5
"""How long is measured, about."""
BLOCKS = 64
_PHOTONS = 0.1


@dataclass(frozen=True, slots=True)
class Speed:
    """What a plan costs.

    Attributes:
        frames: how many were measured.
        seconds: for one frame, by the tasks of each pass, and `flush`, the files made safe.
        cpu: of that, seconds of processor time: all of it, unless others use the processors or
            the disk is waited for.
        written: bytes of one frame in the files.
        errors: what failed on the frames made up: of that the cost is not known.
    """

    frames: int
    seconds: Mapping[str, float]
    cpu: float
    written: float
    errors: Sequence[str] = ()

    @property
    def frames_per_second(self) -> float:
        """What one node can do that has a core for itself."""
        return 1 / max(sum(self.seconds.values()), 1e-9)


def measure(
    definition: GraphDefinition,
    spec: FrameSpec,
    frames: int,
    folder: Path,
    acquisition: Acquisition,
    blocks: Sequence[Block] = (),
    companions: Mapping[str, Companion] = MappingProxyType({}),
) -> Speed:
    """Run frames through a graph, real or made up.

    Args:
        definition: of the graph.
        spec: of its frames.
        frames: in one block.
        folder: where files will be written: that decides about the speed, too.
        acquisition: what is asked of the detector; some tasks need its exposure time.
        blocks: real ones, each of so many frames, which are taken in turns; without any, frames are
            made up.
        companions: the frames of other detectors, by name; these are made up.

    Raises:
        StorageError: if a file cannot be made.
        LimaError: if a task cannot start.
    """
    plan = Plan.make(definition, spec, companions)
    blocks = blocks or [_made_up(spec, frames)]
    beside = {name: _made_up_beside(companion, frames) for name, companion in companions.items()}
    blocks = [replace(block, companions=beside) for block in blocks]
    there = next(place for place in (folder, *folder.parents) if place.is_dir())
    with tempfile.TemporaryDirectory(prefix=".lima2py-", dir=there) as scratch:
        paths = {name: f"{scratch}/{name}" for name in plan.sinks}
        told = Parameters({}, {"acquisition": acquisition.plain()}, {})
        run = RunContext("0" * 32, "check", parameters=told, paths=paths, frames_per_block=frames)
        flow = Flow(plan, run, 1)
        try:
            spent, flushed, cpu, count = _timed(flow, blocks)
        finally:
            flow.finish()
        files = [path for names in flow.files.values() for path in names]
        written = sum(Path(path).stat().st_size for path in files)
    names = [" + ".join(plan.steps[number].name for number in shared) for shared in plan.passes]
    seconds = {name: time / count for name, time in zip(names, spent, strict=True)}
    if plan.sinks:
        seconds["flush"] = flushed / count
    return Speed(count, seconds, cpu / count, written / (count + frames), flow.errors)


def _timed(flow: Flow, given: Sequence[Block]) -> tuple[list[float], float, float, int]:
    """Seconds by pass, of flushing, of processor time for all; and for how many frames."""
    frames = given[0].count
    flow.process(given[0])  # the first is slow: memory is fetched
    flow.collect(idle=True)
    before, flushed, blocks = list(flow.spent), 0.0, 0
    end, cpu = perf_counter() + SECONDS, process_time()
    while blocks < BLOCKS and perf_counter() < end:
        blocks += 1
        flow.process(_moved(given[blocks % len(given)], blocks * frames))
        began = perf_counter()
        flow.collect(idle=True)
        flushed += perf_counter() - began
    cpu = process_time() - cpu
    spent = [now - then for now, then in zip(flow.spent, before, strict=True)]
    return spent, flushed, cpu, blocks * frames


def _moved(block: Block, index: int) -> Block:
    """The block as if it began at another frame."""
    beside = {name: _moved(other, index) for name, other in block.companions.items()}
    return replace(block, index=index, companions=beside)


def _made_up_beside(companion: Companion, frames: int) -> Block:
    """What another detector gives for so many events."""
    spec, events = companion
    parts = [_made_up(spec, count)] if (count := events.nb_frames(frames)) else []
    return events.by_event(spec, 0, frames, parts, NO_FRAME)


def _made_up(spec: FrameSpec, frames: int) -> Block:
    if spec.decoded is None:
        return Block(spec, 0, frames, _pixels(spec, frames))
    compress = codec(cast("Encoding", spec.decoded.encoding)).encode
    payloads = [bytes(compress(image)) for image in _pixels(spec.decoded.image, frames)]
    data = np.zeros((frames, *spec.shape), np.uint8)
    for room, payload in zip(data, payloads, strict=True):
        room[: len(payload)] = np.frombuffer(payload, np.uint8)[: len(room)]
    return Block(spec, 0, frames, data, columns={SIZES: np.array([*map(len, payloads)], "u8")})


def _pixels(spec: FrameSpec, frames: int) -> Array:
    rng = np.random.default_rng(0)
    one = rng.random(spec.shape, np.float32)
    image = one < _PHOTONS if spec.dtype.kind in "iub" else one
    data = np.empty((frames, *spec.shape), spec.dtype)
    for number in range(frames):
        data[number] = np.roll(image, number * 7919).astype(spec.dtype)
    return data
