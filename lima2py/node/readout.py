"""The common acquisition loop: a detector and a ring as a source of blocks.

Plugins have no thread: this asks the plugin to fill one slot after the other, in the run's thread.
When no slot is free the policy `overload` says what happens: the detector is not asked, and what it
cannot hold itself it reports as lost; or one slot is always kept to read into, and frames that find
no other one free are absent.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from operator import index as whole_number
from types import MappingProxyType

import numpy as np

from lima2py.acquisition import Acquisition, TriggerMode
from lima2py.detector import Detector, Share, Slot
from lima2py.errors import BadCommand, DetectorError, in_words
from lima2py.frame import SIZES, Absence, Array, Block, Fate, FrameSpec
from lima2py.node.overrun import Overrun
from lima2py.policies import Policies
from lima2py.ring import Ring
from lima2py.source import Source
from lima2py.units import as_time

SILENCE = 10.0
"""Seconds beyond a frame's period after which a detector that clocks itself is silent."""


START_PATIENCE = 5.0
"""Seconds in which a detector has been started; one that takes longer goes on with it."""


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
        policies: what to do when the ring is full, or the detector silent.
        make_room: makes the slots free of which nobody has need any more; gives how many frames are
            settled. Called in the run's thread.

    Attributes:
        slot: of the ring, in which the block just given lies; -1 if it has no data and none.
        index: the number of the first frame that was not given yet.
        ended: how the readout ended before its last frame: the fate of the rest, and why.
        started: set when the detector has been started, or could not be.
        paused: whether the detector is held, and its silence means nothing.
        finished: whether the detector is needed no more.
        overrun: the frames that had no room.
        remarks: what the user should know when all is done.
    """

    def __init__(
        self,
        detector: Detector,
        acquisition: Acquisition,
        spec: FrameSpec,
        ring: Ring,
        share: Share,
        group: int = 1,
        policies: Policies | None = None,
        make_room: Callable[[], int] = lambda: 0,
    ):
        self.spec = spec
        self.slot = -1
        self.index = self._next = share.first(0)
        self.ended: tuple[Fate, str] | None = None
        self.started = threading.Event()
        self.paused = False
        self.finished = False
        self.overrun = Overrun(ring.shape, share, group)
        self.remarks: list[str] = []
        self._detector = detector
        self._acquisition = acquisition
        self._ring = ring
        self._share = share
        self._group = group
        self._policies = policies or Policies()
        self._waits = self._policies.overload == "wait"
        self._make_room = make_room
        self._hand: int | None = None  # the slot to read into; kept until there is another one
        self._stopped = False
        self._ending = threading.Lock()
        self._until = math.inf
        self._heard = math.inf
        self._began = 0.0
        self._came = 0
        self._slot: Slot  # that in hand, with this many frames in it
        self._count = 0
        self._absences: dict[int, Absence] = {}
        self._clocked = acquisition.trigger_mode is TriggerMode.INTERNAL
        self._patience = SILENCE + 2 * acquisition.period
        self._columns = {
            name: np.dtype(dtype) for name, dtype in detector.capabilities.columns.items()
        }
        if spec.kind == "encoded":
            self._columns[SIZES] = np.dtype(np.uint64)

    def start(self) -> None:
        """Let the detector begin."""
        try:
            self._detector.start()
        finally:
            self.started.set()

    def stop(self, within: float) -> None:
        """Let the detector stop, and read what it still has. From any thread.

        Args:
            within: seconds after which nothing more is read, whatever the detector says.
        """
        self._stopped = True
        self._until = min(self._until, time.monotonic() + within)
        with self._ending:
            if self.finished:
                return  # the detector may work for another run by now
            try:
                self._detector.stop()
            except BaseException:
                self._until = 0.0  # it may go on for ever
                raise

    def pause(self) -> None:
        """Let no more frames be exposed until `resume`. From any thread.

        Raises:
            BadCommand: if the last frame is there, or what triggers the detector cannot be held.
        """
        self._refuse_if_finished("pause")
        who = f"detector {self._detector.info.name} cannot pause"
        match self._acquisition.trigger_mode:
            case TriggerMode.SOFTWARE:
                pass  # who triggers is refused
            case TriggerMode.INTERNAL:
                if not self._detector.capabilities.pauses:
                    raise BadCommand(
                        f"{who}: its own clock cannot be held; with trigger_mode software a run can"
                        " be paused; this one can: stop, abort"
                    )
                self._detector.pause()
            case mode:
                raise BadCommand(
                    f"{who}: its frames come with an {mode} signal; hold that back, and the run"
                    " waits as long as you like"
                )
        self.paused = True

    def resume(self) -> None:
        """Let the detector go on. From any thread."""
        if self._clocked and not self.finished:
            self._detector.resume()
        self.paused = False

    def trigger(self) -> None:
        """One software trigger. From any thread.

        Raises:
            BadCommand: if the last frame is there, or the detector takes none now.
        """
        self._refuse_if_finished("trigger")
        self._detector.trigger()

    def _refuse_if_finished(self, command: str) -> None:
        if self.finished:  # the detector may work for another run by now
            raise BadCommand(
                f"detector {self._detector.info.name} cannot {command} for this run: its last frame"
                " is in the ring"
            )

    def finish(self) -> list[str]:
        """Let the detector stop, after all; what went wrong in the readout, in words."""
        problems = [self.overrun.complaint] if self.overrun.frames else []
        with self._ending:
            try:
                self._detector.stop()
            except Exception as error:
                who = self._detector.info.name
                problems.append(f"detector {who} could not be stopped: {in_words(error)}")
            self.finished = True
        return problems

    @property
    def period(self) -> float:
        """Seconds from frame to frame, at the least."""
        return self._acquisition.period

    @property
    def silent_for(self) -> float:
        """Seconds since a frame came that should have come by now; 0 if it is not due."""
        silent = time.monotonic() - self._heard
        return silent if self._clocked and not self.paused and silent > self._patience else 0.0

    def __iter__(self) -> Iterator[Block | None]:
        """Blocks until the last frame, a stop, or the detector's end; None when nothing came."""
        self._heard = time.monotonic()
        try:
            yield from self._read()
        except Exception:
            yield from self._rest()
            raise
        finally:
            self._heard = math.inf
            if self._hand is not None:
                self._ring.give_back(self._hand)
        yield from self._rest()

    def _read(self) -> Iterator[Block | None]:
        while self._next < self._acquisition.last and self.ended is None:
            if self._hand is None:
                self._hand = self._ring.take()
            if self._hand is None:  # only where we wait for room
                self._heard = time.monotonic()
                if self._stopped:
                    self.ended = (Fate.NOT_ACQUIRED, "stopped")
                yield None
            elif self._ask(self._hand) and self._gathers:
                self._make_room()
            elif self._count:
                yield from self._give(self._hand)
            else:
                yield None

    def _give(self, number: int) -> Iterator[Block]:
        """What is in the slot in hand; without room for more, it has had no room either."""
        block = self._block()
        self._hand = None if self._waits else self._room_for(block)
        if self._hand is None and not self._waits:
            self._hand = number
            return
        if self.overrun.frames:
            yield from self._without_room()
        self.slot, self.index = number, self._next
        yield block

    def _without_room(self) -> Iterator[Block]:
        """The frames that had no room, without their data."""
        for block in self.overrun.take():
            self.slot, self.index = -1, self._share.first(block.end)
            yield block

    def _rest(self) -> Iterator[Block]:
        """What was read and not given yet."""
        yield from self._without_room()
        if self._count and self._hand is not None:
            block = self._block()
            self.slot, self.index, self._hand = self._hand, self._next, None
            yield block

    @property
    def _gathers(self) -> bool:
        """Whether more goes into this slot: nodes have enough to do, and slots are scarce."""
        return self._count < self._slot.room and 2 * self._ring.used > self._ring.slots

    def _ask(self, number: int) -> int:
        """Let the detector put frames into a slot, after those that are there; how many came."""
        slot = self._rest_of_slot(number)
        count = self._fill(slot)
        now = time.monotonic()
        if count is None:
            self.ended = self._why_ended()
        elif now > self._until:
            self.ended = (Fate.NOT_ACQUIRED, "stopped")
        elif count:
            if now - self._heard > self._patience and self.silent_for:
                self.remarks.append(
                    f"detector {self._detector.info.name} was silent for"
                    f" {as_time(self.silent_for)} before frame {slot.index}"
                )
            if not self._came:
                self._began = now
            self._heard = now
            self._came += count
            self._absences.update((self._count + at, said) for at, said in slot.absences.items())
            self._count += count
            self._next = self._share.first(slot.index + count)
            return count
        elif self.paused:
            self._heard = now
        elif self.silent_for and self._policies.detector_loss == "stop":
            self.ended = (Fate.DETECTOR_TIMEOUT, f"no frame for {self.silent_for:.1f} s")
        return 0

    def _room_for(self, block: Block) -> int | None:
        """Another slot to read into; if there is none, the frames have had no room."""
        free = self._ring.take()
        if free is None:
            settled = self._make_room()
            free = self._ring.take()
        if free is None:
            self.overrun.add(block, self._heard - self._began, self._came, settled)
            if self._policies.overload == "stop":
                self.ended = (Fate.NOT_ACQUIRED, "the ring was full")
        return free

    def _fill(self, slot: Slot) -> int | None:
        """Let the plugin fill a slot.

        Raises:
            DetectorError: if what it says of it cannot be.
        """
        count = self._detector.fill(slot)
        if count is None:
            return None
        try:
            count = whole_number(count)
        except TypeError:
            said = repr(count)
        else:
            if 0 <= count <= slot.room and all(at < count for at in slot.absences):
                return count
            said = str(count)
        absent = f", absent among them {sorted(slot.absences)}" if slot.absences else ""
        raise DetectorError(
            f"detector {self._detector.info.name} says it put {said} frames{absent} into a slot for"
            f" {slot.room}, from frame {slot.index} on: this is a fault of the plugin"
        )

    def _rest_of_slot(self, number: int) -> Slot:
        """The room that is left in a slot of the ring."""
        if not self._count:
            left = self._acquisition.last - self._next
            room = int(min(self._ring.shape.frames, left, self._room()))
            columns = {name: np.zeros(room, dtype) for name, dtype in self._columns.items()}
            data, times = self._ring.view(number)[:room], np.full(room, np.nan)
            self._slot = Slot(self._next, data, times, MappingProxyType(columns))
            self._absences = {}
            return self._slot
        whole, done = self._slot, self._count
        columns = {name: values[done:] for name, values in whole.columns.items()}
        rest = MappingProxyType(columns)
        return Slot(whole.index + done, whole.data[done:], whole.timestamps[done:], rest)

    def _room(self) -> int:
        within = self._next % self._group
        return self._group - within if within else self._share.room(self._next)

    def _block(self) -> Block:
        """The frames that are in the slot; the next ones begin another."""
        slot, count, self._count = self._slot, self._count, 0
        columns: dict[str, Array] = {"timestamp": slot.timestamps[:count]}
        columns.update((name, values[:count]) for name, values in slot.columns.items())
        data = slot.data[:count] if len(self._absences) < count else None
        origin, now = (self._share.rank, 0), time.time()
        block = Block(self.spec, slot.index, count, data, self._absences, columns, origin, now)
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
        if self._stopped:
            return Fate.NOT_ACQUIRED, "stopped"
        return Fate.NOT_ACQUIRED, "the detector had no more frames"
