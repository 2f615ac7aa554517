"""The flow: blocks through a plan, and what became of every frame of them.

One plain loop. A task that raises, or breaks its promise about shape and type, makes its frames
absent (`task_failed`) and the next block goes on; a sink that cannot write makes them `not_saved`
for that sink. A frame is reported done only after every sink has flushed it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

from lima2py.errors import LimaError, in_words
from lima2py.frame import Absence, Block, Fate
from lima2py.graph.plan import Plan, Step
from lima2py.task import RunContext, Sink
from lima2py.transport.wire import AbsentRange, DoneBlock, pack_absences

FLUSH_EVERY = 0.05
"""Seconds after which frames are flushed even when more are waiting."""
KEPT_ERRORS = 8


class Flow:
    """Runs blocks through a plan.

    Args:
        plan: made for the frames that will come.
        run: what the tasks are told about the run.
        batch: blocks after which sinks are flushed and frames reported done.
    """

    def __init__(self, plan: Plan, run: RunContext, batch: int):
        self.plan = plan
        self.errors: list[str] = []
        self.failures = 0
        self.frames = 0
        self._batch = batch
        self._values: list[Block | None] = [None] * (len(plan.steps) + 1)
        self._sinks = list(plan.sinks.values())
        self._names = list(plan.sinks)
        self._track = {id(sink): track + 1 for track, sink in enumerate(self._sinks)}
        self._pending: list[DoneBlock] = []
        self._since = 0.0
        self._running = False
        started: list[Step] = []
        try:
            for step in plan.steps:
                started.append(step)
                step.task.start(replace(run, task=step.name))
        except BaseException:
            for step in started:
                step.task.finish()
            raise
        self._running = True

    def process(self, block: Block) -> None:
        """One block through every task."""
        values = self._values
        values[0] = block
        clean = not block.absences
        rows = [-1] * len(self._sinks)
        failed: list[tuple[int, Absence]] = []
        for position, step in enumerate(self.plan.steps, 1):
            given = values[step.source]
            assert given is not None  # noqa: S101 - for the type checker; steps are in order
            if isinstance(step.task, Sink):
                values[position] = given
                track = self._track[id(step.task)]
                try:
                    rows[track - 1] = step.task.write(given)
                except Exception as error:
                    failed.append((track, self._not_saved(step.name, error)))
            elif given.data is None and not step.task.takes_absent:
                values[position] = given.carry(step.spec, None)
            else:
                made = self._run(step, given)
                clean = clean and not made.absences
                values[position] = made
        absences = [] if clean and not failed else self._absences(block, failed)
        if not self._pending:
            self._since = time.monotonic()
        self._pending.append(DoneBlock(block.index, block.count, *block.origin, rows, absences))
        self.frames += block.count

    def collect(self, idle: bool) -> list[DoneBlock]:
        """The blocks that are safe by now; flushes when it is time, or nothing else is to do."""
        if not self._pending:
            return []
        if (
            idle
            or len(self._pending) >= self._batch
            or time.monotonic() - self._since > FLUSH_EVERY
        ):
            return self._flush()
        return []

    def finish(self) -> list[DoneBlock]:
        """Flush, close every task, and give the last blocks. May be called twice."""
        if not self._running:
            return []
        self._running = False
        done = self._flush() if self._pending else []
        self._values = []  # they hold the last block, and with it the ring
        for step in self.plan.steps:
            try:
                step.task.finish()
            except Exception as error:
                self._remember(f'task "{step.name}" could not finish: {in_words(error)}')
        return done

    @property
    def files(self) -> dict[str, list[str]]:
        """The files written so far, by sink."""
        return {name: sink.files for name, sink in zip(self._names, self._sinks, strict=True)}

    def _run(self, step: Step, given: Block) -> Block:
        try:
            made = step.task.process(given)
            data = made.data
            if data is not None and (
                data.shape != (given.count, *step.spec.shape) or data.dtype != step.spec.dtype
            ):
                raise LimaError(
                    f"gave {data.dtype} {data.shape},"
                    f" promised {step.spec.dtype} {(given.count, *step.spec.shape)}"
                )
            return made
        except Exception as error:
            self.failures += 1
            said = Absence(Fate.TASK_FAILED, step.name, in_words(error))
            self._remember(
                f'task "{step.name}" failed on frames {given.index} to {given.end - 1}:'
                f" {said.detail}"
            )
            return given.carry(step.spec, given.data).refuse(
                dict.fromkeys(range(given.count), said)
            )

    def _not_saved(self, name: str, error: Exception) -> Absence:
        self.failures += 1
        self._remember(f'sink "{name}": {in_words(error)}')
        return Absence(Fate.NOT_SAVED, name, in_words(error))

    def _absences(
        self, block: Block, failed: list[tuple[int, Absence]]
    ) -> list[tuple[int, AbsentRange]]:
        """By track: a sink's own, and for the frame as a whole the worst that happened to it."""
        unsaved = dict(failed)
        whole: dict[int, Absence] = {}
        tracks: list[dict[int, Absence]] = [whole]
        for position, step in enumerate(self.plan.steps, 1):
            made = self._values[position]
            assert made is not None  # noqa: S101 - for the type checker; all steps have run
            _keep_worst(whole, made.absences)
            if isinstance(step.task, Sink):
                said = unsaved.get(self._track[id(step.task)])
                mine = dict(made.absences)
                if said is not None:
                    mine = {**dict.fromkeys(range(block.count), said), **mine}
                    _keep_worst(whole, mine)
                tracks.append(mine)
        _keep_worst(whole, block.absences)
        return [
            (track, part) for track, found in enumerate(tracks) for part in pack_absences(found)
        ]

    def _flush(self) -> list[DoneBlock]:
        done, self._pending = self._pending, []
        for number, sink in enumerate(self._sinks):
            try:
                sink.flush()
            except Exception as error:
                said = self._not_saved(self._names[number], error)
                done = [_unsaved(block, number, said) for block in done]
        return done

    def _remember(self, text: str) -> None:
        if len(self.errors) < KEPT_ERRORS:
            self.errors.append(text)


def _keep_worst(whole: dict[int, Absence], found: Mapping[int, Absence]) -> None:
    """Absent beats rejected; what was said first stands."""
    for offset, said in found.items():
        before = whole.get(offset)
        if before is None or (before.cause is Fate.REJECTED and said.cause.is_absent):
            whole[offset] = said


def _unsaved(block: DoneBlock, number: int, said: Absence) -> DoneBlock:
    rows = list(block.rows)
    rows[number] = -1
    everything = (0, block.count, int(said.cause), said.who, said.detail)
    absences = [(0, everything), (number + 1, everything), *block.absences]
    return DoneBlock(block.index, block.count, block.source, block.epoch, rows, absences)
