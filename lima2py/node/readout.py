"""The common acquisition loop: a detector and a ring as a source of blocks.

Plugins have no thread: this asks the plugin to fill one slot after the other, in the run's thread.
When no slot is free the detector is not asked; what it cannot hold itself it reports as lost.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from lima2py.acquisition import Acquisition, TriggerMode
from lima2py.detector import Detector, Share, Slot
from lima2py.errors import DetectorError
from lima2py.frame import SIZES, Absence, Array, Block, Fate, FrameSpec
from lima2py.memory import Ring
from lima2py.source import Source

SILENCE = 10.0
"""Seconds beyond a frame's period after which a detector that clocks itself is given up."""


class Readout(Source):
    """Blocks from a detector, which has been prepared.

    Args:
        detector: the plugin.
        acquisition: what the hardware will do.
        spec: of its frames.
        ring: where they are put.
        share: which frames are ours.
        group: consecutive frames that are processed together. A block that begins within a group
            ends with it: so a node that takes over a group is given all blocks that have part of it
            and needs no others.

    Attributes:
        slot: of the ring, in which the block just given lies.
        index: the number of the next frame.
        ended: how the readout ended before its last frame: the fate of the rest, and why.
    """

    def __init__(
        self,
        detector: Detector,
        acquisition: Acquisition,
        spec: FrameSpec,
        ring: Ring,
        share: Share,
        group: int = 1,
    ):
        self.spec = spec
        self.slot = -1
        self.index = share.first(0)
        self.ended: tuple[Fate, str] | None = None
        self._detector = detector
        self._acquisition = acquisition
        self._ring = ring
        self._share = share
        self._group = group
        self._columns = {
            name: np.dtype(dtype) for name, dtype in detector.capabilities.columns.items()
        }
        if spec.kind == "encoded":
            self._columns[SIZES] = np.dtype(np.uint64)

    def __iter__(self) -> Iterator[Block | None]:
        """Blocks until the last frame, a stop, or the detector's end; None when nothing came."""
        last = self._acquisition.last
        patience = SILENCE + 2 * self._acquisition.period
        clocked = self._acquisition.trigger_mode is TriggerMode.INTERNAL
        heard = time.monotonic()
        while self.index < last:
            number = self._ring.take()
            if number is None:
                if self._detector.stopping:
                    self.ended = (Fate.NOT_ACQUIRED, "stopped")
                    return
                heard = time.monotonic()
                yield None
                continue
            room = int(min(self._ring.shape.frames, last - self.index, self._room()))
            slot = self._slot(number, room)
            try:
                count = self._detector.fill(slot)
            except BaseException:
                self._ring.give_back(number)
                raise
            if count:
                heard = time.monotonic()
                yield self._block(number, slot, count)
                self.index = self._share.first(self.index + count)
                continue
            self._ring.give_back(number)
            if count is None:
                self.ended = self._why_ended()
                return
            if clocked and time.monotonic() - heard > patience:
                text = f"no frame for {time.monotonic() - heard:.1f} s"
                self.ended = (Fate.DETECTOR_TIMEOUT, text)
                return
            yield None

    def _room(self) -> int:
        within = self.index % self._group
        return self._group - within if within else self._share.room(self.index)

    def _slot(self, number: int, room: int) -> Slot:
        columns = {name: np.zeros(room, dtype) for name, dtype in self._columns.items()}
        timestamps = np.full(room, np.nan)
        return Slot(self.index, self._ring.view(number)[:room], timestamps, columns)

    def _block(self, number: int, slot: Slot, count: int) -> Block:
        if not 0 < count <= slot.room:
            raise DetectorError(
                f"detector {self._detector.info.name} put {count} frames into a slot for"
                f" {slot.room}: this is a fault of the plugin"
            )
        self.slot = number
        columns: dict[str, Array] = {"timestamp": slot.timestamps[:count]}
        columns.update((name, values[:count]) for name, values in slot.columns.items())
        absences = {at: said for at, said in slot.absences.items() if at < count}
        data = slot.data[:count] if len(absences) < count else None
        origin = (self._share.rank, 0)
        block = Block(self.spec, slot.index, count, data, absences, columns, origin)
        return block.refuse(self._unfit(block)) if self.spec.kind == "encoded" else block

    def _unfit(self, block: Block) -> dict[int, Absence]:
        """The encoded frames of a size that cannot be: nobody after this should meet them."""
        encoding, image = self.spec.decoded or ("none", self.spec)
        least, most = (image.nbytes,) * 2 if encoding == "none" else (1, self.spec.nbytes)
        sizes = block.columns[SIZES]
        wrong = np.flatnonzero(block.present & ((sizes < least) | (sizes > most)))
        who = self._detector.info.name
        return {
            at: Absence(Fate.CORRUPT, who, f"{sizes[at]} bytes came, of {least} to {most}")
            for at in wrong.tolist()
        }

    def _why_ended(self) -> tuple[Fate, str]:
        if self._detector.stopping:
            return Fate.NOT_ACQUIRED, "stopped"
        return Fate.NOT_ACQUIRED, "the detector had no more frames"
