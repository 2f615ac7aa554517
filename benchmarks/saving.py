"""What saving costs, against the compressor and the disk alone.

Where one process works, its processor time is measured, the system's part included: when the disk
behind the cache writes, and what else runs, is left out.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np

from benchmarks.processing import EIGER_1M
from lima2py.codec import Compression, codec
from lima2py.frame import Array, Block, Fate, FrameSpec
from lima2py.ring import BLOCK_BYTES, MAX_FRAMES_PER_BLOCK
from lima2py.storage.layout import entry_of
from lima2py.storage.masters.master import Ending, FrameTable, Saved, write_master
from lima2py.storage.names import master_path
from lima2py.storage.reasons import Reasons
from lima2py.storage.saving.sinks import SaveDense
from lima2py.task import RunContext

if TYPE_CHECKING:
    from multiprocessing.queues import Queue
    from multiprocessing.synchronize import Barrier

FLUSH_EVERY = 32
"""Blocks between two flushes, as a node does that is busy."""
SMALL = (64, 64)
EIGER_4M = (2162, 2068)
TIMES = 7


def photons(count: int, shape: tuple[int, int], mean: float = 0.2) -> Array:
    """Frames of a photon counting detector, `(count, 1, height, width)` uint16."""
    rng = np.random.default_rng(1)
    return rng.poisson(mean, (count, 1, *shape)).astype(np.uint16)


def block(shape: tuple[int, int]) -> Array:
    """As many frames as travel together when they come fast."""
    most = max(1, BLOCK_BYTES // (2 * math.prod(shape)))
    return photons(min(MAX_FRAMES_PER_BLOCK, most), shape)


class Saving:
    """One node that saves images.

    Args:
        folder: for its file, which is removed after each measurement.
        data: of one block; the same ones again and again.
        frames: how many in all.
        compression: of the file.
    """

    def __init__(self, folder: Path, data: Array, frames: int, compression: Compression):
        self.folder = folder
        self.data = data
        self.spec = FrameSpec.dense(*data.shape[2:], data.dtype)
        self.frames = frames // len(data) * len(data)
        self.compression = compression
        self._between = FLUSH_EVERY

    def save(self, *, flushing: bool = True) -> float:
        """Seconds of the processor to save all frames."""
        run = RunContext(
            "0" * 32, "benchmark", "raw", nb_frames=self.frames, frames_per_block=len(self.data),
            paths={"raw": str(self.folder / "raw")},
        )  # fmt: skip
        sink = SaveDense(compression=self.compression)
        sink.prepare(self.spec)
        sink.start(run)
        times = np.arange(len(self.data)) * 1e-3
        began = time.process_time()
        for number, index in enumerate(range(0, self.frames, len(self.data)), 1):
            block = Block(self.spec, index, len(self.data), self.data, {}, {"timestamp": times})
            sink.write(block)
            if flushing and number % self._between == 0:
                sink.flush()
        sink.flush()
        spent = time.process_time() - began
        sink.finish()
        for path in sink.files:
            os.unlink(path)
        return spent

    def write_only(self) -> float:
        """Seconds of the processor to write the same bytes to a file in the same place."""
        path = self.folder / "bytes"
        frames = [frame.reshape(-1).view(np.uint8).data for frame in self.data]
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            began = time.process_time()
            for number in range(self.frames):
                content = frames[number % len(frames)]
                os.pwrite(file, content, number * len(content))
            return time.process_time() - began
        finally:
            os.close(file)
            os.unlink(path)

    def compress_only(self) -> float:
        """Seconds of the processor to compress the same frames, and nothing else."""
        compressor = codec(self.compression)
        began = time.process_time()
        for _ in range(self.frames // len(self.data)):
            for frame in self.data:
                compressor.encode(frame)
        return time.process_time() - began


def quickest(measure: Callable[[], float]) -> float:
    """The least of several times: the others waited for pages of memory, which comes in bursts."""
    return min(measure() for _ in range(TIMES))


def uncompressed_against_pwrite(
    folder: Path, shape: tuple[int, int], frames: int
) -> Callable[[], float]:
    """How fast frames are saved uncompressed, against `os.pwrite` of their bytes."""
    saving = Saving(folder, block(shape), frames, "none")
    return lambda: quickest(saving.write_only) / quickest(saving.save)


def compressed_against_codec(
    folder: Path, shape: tuple[int, int], frames: int
) -> Callable[[], float]:
    """How fast frames are saved with bslz4, against compressing them only."""
    saving = Saving(folder, block(shape), frames, "bslz4")
    return lambda: quickest(saving.compress_only) / quickest(saving.save)


def cost_of_flushing(folder: Path, frames: int) -> Callable[[], float]:
    """Share of the time of saving that flushing takes, in per cent."""
    saving = Saving(folder, block(EIGER_1M), frames, "bslz4")
    without = partial(saving.save, flushing=False)
    return lambda: 100 * (quickest(saving.save) / quickest(without) - 1)


def small_frames(folder: Path, frames: int, compression: Compression) -> Callable[[], float]:
    """Frames of 64 × 64 that one node saves in a second of the processor."""
    saving = Saving(folder, block(SMALL), frames, compression)
    return lambda: saving.frames / saving.save()


def two_writers_against_one(folder: Path, frames: int) -> Callable[[], float]:
    """How many times as many frames a second two processes save with bslz4 as one does.

    They do what processing nodes do for a sink; where the frames come from costs nothing here.
    """
    spawn = get_context("spawn")

    def seconds(writers: int) -> float:
        barrier, times = spawn.Barrier(writers), spawn.Queue()
        processes = [
            spawn.Process(target=_write, args=(folder / str(n), frames, barrier, times))
            for n in range(writers)
        ]
        for process in processes:
            process.start()
        spent = max(times.get(timeout=120) for _ in processes)
        for process in processes:
            process.join()
        return spent

    return lambda: 2 * seconds(1) / seconds(2)


def _write(folder: Path, frames: int, barrier: Barrier, times: Queue[float]) -> None:
    """One writer, in a process of its own."""
    folder.mkdir(exist_ok=True)
    saving = Saving(folder, photons(1, EIGER_1M), frames, "bslz4")
    saving.save()
    barrier.wait(60)
    began = time.perf_counter()
    saving.save()
    times.put(time.perf_counter() - began)


def open_master(folder: Path, frames: int) -> Callable[[], float]:
    """Milliseconds to open a master of two nodes that took frames in turns, and see its shape."""
    spec = FrameSpec.dense(8, 8, np.uint16)
    run = RunContext("0" * 32, "benchmark", "raw", nb_frames=frames, frames_per_block=64,
                     paths={"raw": str(folder / "raw")})  # fmt: skip
    index = np.arange(frames)
    files: dict[int, list[str]] = {}
    for rank in range(2):
        sink = SaveDense(compression="none")
        sink.prepare(spec)
        sink.start(replace(run, rank=rank, shared={}))
        for frame in range(rank, frames, 2):
            sink.write(Block(spec, frame, 1, np.zeros((1, 1, 8, 8), np.uint16)))
        sink.finish()
        files[rank] = sink.files
    table = FrameTable(
        np.full(frames, Fate.SAVED, np.uint8), (index % 2).astype(np.int16), index // 2,
        Reasons(frames),
    )  # fmt: skip
    path = master_path(folder / "raw")
    problems = write_master(
        path, [Saved(entry_of(run), run, spec, table, files)], Ending("completed")
    )
    assert not problems, problems

    def measure() -> float:
        began = time.perf_counter()
        with h5py.File(path, "r") as file:
            assert len(file["entry_0000/measurement/data"]) == frames
        return 1e3 * (time.perf_counter() - began)

    return measure
