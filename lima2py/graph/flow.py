"""The flow: blocks through a plan, and what became of every frame of them.

One plain loop over the passes of the plan. A task that raises, or breaks its promise about shape
and type, makes the frames at fault absent (`task_failed`), or passes them on as they came if it may
(`unprocessed`), and the next block goes on; a sink that cannot write makes them `not_saved` for
that sink. A frame is reported done only after every sink has flushed it, and, where frames are
accumulated, after all frames of its group have passed: a node that takes over from a lost one then
gets the group from its beginning.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from time import perf_counter
from types import MappingProxyType

from lima2py.errors import LimaError, in_words
from lima2py.frame import Absence, Array, Block, Fate
from lima2py.graph.groups import Groups
from lima2py.graph.latency import Histogram
from lima2py.graph.passed import (
    Passed,
    by_frame,
    keep_worst,
    nothing,
    of_detector,
    unsaved,
)
from lima2py.graph.plan import Plan, Step
from lima2py.graph.promise import BrokenPromise, check_promise
from lima2py.graph.recent import Recent
from lima2py.graph.told import Frames, Told
from lima2py.graph.unprocessed import Unprocessed
from lima2py.onepass import RAISED, Made, Member, OnePass, Pixelwise, Stripwise
from lima2py.task import RunContext, Sink
from lima2py.tasks.arrival import Arrival
from lima2py.tasks.tap import Tap
from lima2py.transport.packing import pack_absences
from lima2py.transport.wire import DoneBlock

FLUSH_EVERY = 0.05
"""Seconds after which frames are flushed even when more are waiting."""


class Flow:
    """Runs blocks through a plan.

    Args:
        plan: made for the frames that will come.
        run: what the tasks are told about the run.
        credits: the most blocks of an acquisition node that will be unreported here. Sinks are
            flushed, and frames reported done, after half as many; all but one may wait for the rest
            of their group.
        ends: see `Groups`.

    Attributes:
        frames: how many have passed.
        failures: how many times a task or a sink failed on a block.
        recent: by task, the latest of every product that is small.
        latency: by tap, how long the frames it shows took since they were complete in the ring;
            by the clocks of two hosts, if the acquisition node is on another one.
        spent: seconds, by pass.
    """

    def __init__(
        self,
        plan: Plan,
        run: RunContext,
        credits: int,
        ends: Mapping[int, Collection[int]] = MappingProxyType({}),
    ):
        self.plan = plan
        self.failures = 0
        self.frames = 0
        self.recent = {
            step.name: Recent(step.spec, run)
            for step in plan.steps
            if step.spec.kind not in ("dense", "encoded")
            and not isinstance(step.task, (Arrival, Sink))
        }
        self.latency = {name: Histogram() for name in plan.taps}
        self.spent = [0.0] * len(plan.passes)
        self._run = run
        self._batch = max(1, credits // 2)
        self._groups = Groups(plan.group, run.nb_frames, max(1, credits - 1), ends)
        self._values: list[Block | None] = [None] * (len(plan.steps) + 1)
        self._sinks = list(plan.sinks.items())
        self._spans = list(plan.sink_spans.values())
        self._track = {name: track for track, (name, _) in enumerate(self._sinks, 1)}
        self._told = Told()
        self._unprocessed = Unprocessed(plan, run.policies.task_failure)
        self._pending: list[Passed] = []
        self._stopped_by: set[str] = set()
        self._since = 0.0
        self._running = False
        started: list[Step] = []
        try:
            for step in plan.steps:
                started.append(step)
                maps = self._maps_before(step) if isinstance(step.task, Sink) else None
                try:
                    step.task.start(run.of_task(step.name, step.spec.span, maps))
                except Exception as error:
                    raise _of_task(step.name, error) from error
            self._fused = [self._fuse(shared) for shared in plan.passes]
        except BaseException:
            for step in started:
                step.task.finish()
            run.shelf.forget(run.run)
            raise
        self._running = True

    def process(self, block: Block) -> None:
        """One block through every task."""
        values = self._values
        values[0] = block
        rows = [-1] * len(self._sinks)
        failed: dict[str, Absence] = {}
        began = perf_counter()
        for place, (shared, fused) in enumerate(zip(self.plan.passes, self._fused, strict=True)):
            step = self.plan.steps[shared[0]]
            if fused is not None:
                self._pass(fused, shared)
            elif isinstance(step.task, Sink):
                values[shared[0] + 1] = given = self._unprocessed.noted(
                    self._given(step), step.name
                )
                if given.count:
                    others = self._others(step)
                    try:
                        rows[self._track[step.name] - 1] = step.task.write(given, *others)
                    except RAISED as error:
                        failed[step.name] = self._not_saved(step.name, error, given)
            else:
                tap = step.task if isinstance(step.task, Tap) else None
                before = tap.shown if tap else 0
                made = self._one(step)
                if isinstance(step.task, Arrival):
                    made = self._unprocessed.learn(made)
                values[shared[0] + 1] = made
                if step.name in self.recent:
                    self.recent[step.name].keep(made)
                if tap:
                    took = time.time() - block.acquired_at
                    self.latency[step.name].add(took, tap.shown - before)
            now = perf_counter()
            self.spent[place] += now - began
            began = now
        if not self._pending:
            self._since = time.monotonic()
        done = DoneBlock(block.index, block.count, *block.origin, rows, [])
        self._pending.append(Passed(done, []))
        if failed or any(made is not None and made.absences for made in values):
            self._note_absences(block, failed)
        self._groups.note(done)
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
            ready, self._pending = self._groups.divide(self._pending)
            return self._flush([passed.told() for passed in ready])
        return []

    def finish(self) -> list[DoneBlock]:
        """Flush, close every task, and give the last blocks. May be called twice."""
        if not self._running:
            return []
        self._running = False
        pending, self._pending = self._pending, []
        done = self._flush([passed.told() for passed in pending])
        self._values, self._fused = [], []  # they hold the last block, and all constant images
        for recent in self.recent.values():
            recent.end()
        for step in self.plan.steps:
            try:
                step.task.finish()
            except Exception as error:
                self.failures += 1
                self._told.add(f'task "{step.name}"', f"could not finish: {in_words(error)}")
        return done

    @property
    def errors(self) -> list[str]:
        """What went wrong, each thing once, with the frames it happened to."""
        return self._told.lines()

    @property
    def remarks(self) -> list[str]:
        """What the sinks want the user to know, though nothing went wrong."""
        return [f'sink "{name}": {text}' for name, sink in self._sinks for text in sink.remarks]

    @property
    def waiting(self) -> list[str]:
        """The sinks that wait for something just now, and for what. From any thread."""
        return [f'sink "{name}" {sink.waiting}' for name, sink in self._sinks if sink.waiting]

    @property
    def files(self) -> dict[str, list[str]]:
        """The files written so far, by sink."""
        return {name: sink.files for name, sink in self._sinks}

    def product(self, name: str) -> Block | None:
        """What a task made of the last block; None if that was not wanted."""
        for number, step in enumerate(self.plan.steps, 1):
            if step.name == name:
                return self._values[number]
        raise KeyError(name)

    def products(self, names: Iterable[str]) -> list[Block]:
        """What tasks made of the last block, and the frames as they came, for another stage."""
        values = {step.name: value for step, value in
                  zip(self.plan.steps, self._values[1:], strict=True)}  # fmt: skip
        found = [values[name] if name in values else self._values[0] for name in names]
        return [
            self._unprocessed.noted(block, name)
            for name, block in zip(names, found, strict=True)
            if block is not None
        ]

    def _fuse(self, shared: Sequence[int]) -> OnePass | None:
        steps = self.plan.steps
        first = steps[shared[0]]
        if not isinstance(first.task, (Pixelwise, Stripwise)):
            return None
        place = {number + 1: member for member, number in enumerate(shared)}
        members = []
        for number in shared:
            task = steps[number].task
            assert isinstance(task, (Pixelwise, Stripwise))  # noqa: S101 - for the type checker
            source = place.get(steps[number].sources[0], -1)
            members.append(Member(task, source, steps[number].wanted))
        root = first.sources[0]
        return OnePass(steps[root - 1].spec if root else self.plan.spec, members)

    def _given(self, step: Step) -> Block:
        """What comes in; if that is several blocks, the first with the absences of all."""
        found = self._values[step.sources[0]]
        assert found is not None  # noqa: S101 - the plan wants what is used
        if len(step.sources) > 1:
            others: dict[int, Absence] = {}
            for source in step.sources[1:]:
                other = self._values[source]
                assert other is not None  # noqa: S101 - for the type checker
                keep_worst(others, other.absences)
            if others:
                found = found.refuse(others)
        return found

    def _others(self, step: Step) -> list[Block]:
        """What comes in besides the first."""
        others = [self._values[source] for source in step.sources[1:]]
        return [other for other in others if other is not None]

    def _maps_before(self, step: Step) -> Mapping[str, Array]:
        """The arrays that belong to what a sink is given."""
        found: dict[str, Array] = {}
        for source in step.sources:
            found.update(self.plan.steps[source - 1].task.maps if source else {})
        return found

    def _one(self, step: Step) -> Block:
        """A block through one task."""
        return self._try(step, [self._given(step), *self._others(step)])

    def _try(self, step: Step, given: Sequence[Block]) -> Block:
        if given[0].data is None and not step.task.takes_absent:
            return nothing(step.spec, given[0])
        try:
            made: Block = step.task.process(*given)
            check_promise(made, step.spec, given[0])
            return made
        except RAISED as error:
            (first, *_), count = given, given[0].count
            if count > 1 and not step.task.remembers and not isinstance(error, BrokenPromise):
                parts = [[block.part(n, n + 1) for block in given] for n in range(count)]
                return Block.join([self._try(step, part) for part in parts])
            return self._failed(step, first, error)

    def _pass(self, fused: OnePass, shared: Sequence[int]) -> None:
        """A block through the tasks of one pass."""
        steps = self.plan.steps
        given = self._values[steps[shared[0]].sources[0]]
        assert given is not None  # noqa: S101 - the plan wants what is used
        if given.data is None:
            made: Iterable[Made] = [given.carry(steps[number].spec, None) for number in shared]
        else:
            try:
                made = fused(given)
            except RAISED as error:  # without the frames it came through: they hold pixels
                made = [error.with_traceback(None)] * len(shared)
        for place, (number, product) in enumerate(zip(shared, made, strict=True)):
            step = steps[number]
            if isinstance(product, BaseException):
                product = self._once_more(fused, place, step, given, product)
            elif product is not None and given.data is not None:
                try:
                    check_promise(product, step.spec, given)
                except BrokenPromise as error:
                    product = self._failed(step, given, error)
            self._values[number + 1] = product
            if product is not None and step.name in self.recent:
                self.recent[step.name].keep(product)

    def _once_more(
        self, fused: OnePass, place: int, step: Step, given: Block, error: BaseException
    ) -> Block:
        """What a task of a pass makes of the frames one by one, after it failed on all of them."""
        if given.count == 1 or step.task.remembers:
            return self._failed(step, given, error)
        found = []
        for n in range(given.count):
            part = given.part(n, n + 1)
            try:
                made = fused(part)[place]
            except RAISED as again:
                made = again.with_traceback(None)
            found.append(
                made if isinstance(made, Block) else self._failed(step, part, made or error)
            )
        return Block.join(found)

    def _failed(self, step: Step, given: Block, error: BaseException) -> Block:
        said = Absence(Fate.TASK_FAILED, step.name, in_words(error))
        present = [given.index + n for n in range(given.count) if n not in given.absences]
        frames = of_detector(present, given.spec.span)
        who = f'task "{step.name}"'
        if self._unprocessed.may_pass(step.name):
            self._told.add(
                who, f"passed frames on as they came, having failed: {said.detail}", frames
            )
            self._unprocessed.add(step.name, frames)
            return given
        self.failures += 1
        self._told.add(who, f"failed: {said.detail}", frames)
        choice = step.task.if_fails or self._run.policies.task_failure
        if choice == "stop" and step.name not in self._stopped_by:
            self._stopped_by.add(step.name)
            self._run.stop(f"{who} failed{Frames(frames)}: {said.detail}")
        lost = Block.absent(given.spec, given.index, given.count, said, given.columns)
        if step.spec.span == given.spec.span:
            lost = given.refuse(lost.absences)
        return nothing(step.spec, lost)

    def _not_saved(self, name: str, error: BaseException, given: Block | None = None) -> Absence:
        self.failures += 1
        said = Absence(Fate.NOT_SAVED, name, in_words(error))
        frames: Sequence[int] = ()
        if given is not None:
            frames = of_detector(range(given.index, given.end), given.spec.span)
        self._told.add(f'sink "{name}":', said.detail, frames)
        choice = self.plan.sinks[name].if_fails or self._run.policies.disk
        if choice == "stop" and name not in self._stopped_by:
            self._stopped_by.add(name)
            self._run.stop(f'sink "{name}": {said.detail}')
        return said

    def _note_absences(self, block: Block, failed: Mapping[str, Absence]) -> None:
        """Note what happened to the frames of a block, on every track.

        What happened to a product of several frames happened to all of them, also to those of
        blocks that have passed before.
        """
        passed = self._pending[-1]
        passed.found.append((block.spec.span, 0, block.absences))
        for number, step in enumerate(self.plan.steps, 1):
            made = self._values[number]
            if made is None:
                continue  # nobody but its pass has seen it
            mine = dict(made.absences)
            if isinstance(step.task, Sink):
                if step.name in failed:
                    mine = {**dict.fromkeys(range(made.count), failed[step.name]), **mine}
                track = self._track[step.name]
                passed.done.absences.extend((track, part) for part in pack_absences(mine))
            span = made.spec.span
            if span == block.spec.span:
                passed.found.append((span, number, mine))
            elif mine:
                for earlier in self._pending:
                    earlier.found.append((span, number, by_frame(mine, made, earlier.done)))

    def _flush(self, done: list[DoneBlock]) -> list[DoneBlock]:
        if not done:
            return []
        for number, (name, sink) in enumerate(self._sinks):
            try:
                sink.flush()
            except Exception as error:
                said = self._not_saved(name, error)
                done = [unsaved(block, number, self._spans[number], said) for block in done]
        return done


def _of_task(name: str, error: Exception) -> Exception:
    """The same error, saying which task it came from."""
    kind = type(error) if isinstance(error, LimaError) else LimaError
    return kind(f'task "{name}": {in_words(error)}')
