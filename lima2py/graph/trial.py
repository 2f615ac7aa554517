"""A graph tried on recorded frames that may bring this process down: it says beforehand what comes.

    python -m lima2py.graph.trial TRIAL DESCRIPTOR

TRIAL is a `Trial` as JSON; to DESCRIPTOR it writes lines of JSON, each a `Begins`, `Failed`,
`Refused` or `Passed`. What tasks and the interpreter print in dying goes to standard error.
"""

from __future__ import annotations

import faulthandler
import os
import resource
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec

from lima2py.errors import BadParameter, LimaError, did_you_mean, in_words
from lima2py.frame import Absence, Block
from lima2py.graph.definition import GraphDefinition, parse_graph
from lima2py.graph.flow import Flow
from lima2py.graph.passed import keep_worst
from lima2py.graph.plan import Plan, Step
from lima2py.graph.promise import check_promise
from lima2py.onepass import RAISED
from lima2py.storage.reading.run_file import RunFile
from lima2py.task import RunContext, Sink
from lima2py.trigger_map import Companion, TriggerMap

T = TypeVar("T")
GRAPH = "the whole graph"
"""Stands for all tasks together."""


class Trial(msgspec.Struct, frozen=True):
    """What to try.

    Attributes:
        path: of the file with the frames.
        sink: whose frames they are.
        first: the first of its rows.
        end: the row after the last.
        folder: an empty one, for what sinks write.
        alone: whether each task works alone, and on each frame alone unless `together`; else the
            whole graph, as a node would run it.
        together: whether a task is given all frames at once.
        task: the only one to try, with those it depends on; all if empty.
    """

    path: str
    sink: str
    first: int
    end: int
    folder: str
    alone: bool = False
    together: bool = False
    task: str = ""


class Begins(msgspec.Struct, tag=True, frozen=True):
    """What comes next: a task, and what it does; `row` is that of the frame, -1 if of none."""

    task: str
    at: str
    row: int = -1


class Failed(msgspec.Struct, tag=True, frozen=True):
    """What has just begun was answered by an exception."""

    task: str
    at: str
    text: str
    trace: str = ""


class Refused(msgspec.Struct, tag=True, frozen=True):
    """The graph, or the file, cannot be used at all."""

    text: str


class Passed(msgspec.Struct, tag=True, frozen=True):
    """All was tried, and this process is still there."""


Said = Begins | Failed | Refused | Passed


class _Tried:
    """The one trial of this process.

    Args:
        trial: what to try.
        descriptor: where to say what comes.
    """

    def __init__(self, trial: Trial, descriptor: int):
        self._trial = trial
        self._descriptor = descriptor

    def run(self) -> None:
        """Try it."""
        trial = self._trial
        self._say(Begins(GRAPH, "is prepared"))
        try:
            with RunFile(trial.path, trial.sink) as file:
                block, run, kept = file.block(trial.first, trial.end), file.facts, file.sinks
            definition = _graph_of(run, trial.task)
            others: dict[str, Block] = {}
            for name in definition.companions:
                if name in kept:  # if not, the plan says so
                    with RunFile(trial.path, name) as file:
                        others[name] = file.block(trial.first, trial.end)
            block = replace(block, companions=others)
            beside = {name: Companion(one.spec, TriggerMap([0])) for name, one in others.items()}
            run = replace(
                run,
                node="isolate",
                frames_per_block=block.count,
                paths={name: str(Path(trial.folder) / name) for name in definition.sinks},
            )
            plan = Plan.make(definition, block.spec, beside, keep_all=trial.alone)
        except LimaError as error:
            self._say(Refused(str(error)))
            return
        if trial.alone:
            self._by_task(plan, run, block)
        else:
            self._as_a_whole(plan, run, block)
        self._say(Passed())

    def _as_a_whole(self, plan: Plan, run: RunContext, block: Block) -> None:
        self._say(Begins(GRAPH, "starts"))
        flow = Flow(plan, run, 1)
        self._say(Begins(GRAPH, _named(block)))
        flow.process(block)
        flow.collect(idle=True)
        flow.finish()
        for text in flow.errors:
            self._say(Failed(GRAPH, _named(block), text))

    def _by_task(self, plan: Plan, run: RunContext, block: Block) -> None:
        steps = _needed(plan, self._trial.task)
        for step in steps.values():
            context = run.of_task(step.name, step.spec.span)
            self._attempt(step, "starts", -1, partial(step.task.start, context))
        size = block.count if self._trial.together else 1
        for first in range(0, block.count, size):
            values = {0: block.part(first, first + size)}
            for number, step in steps.items():
                if all(source in values for source in step.sources):
                    given = [values[source] for source in step.sources]
                    made = self._one(step, given, self._trial.first + first)
                    if made is not None:
                        values[number] = made
        for step in steps.values():
            self._attempt(step, "finishes", -1, step.task.finish)

    def _one(self, step: Step, given: Sequence[Block], row: int) -> Block | None:
        """What a task makes of some frames; None if nothing."""
        first, *others = given
        absences: dict[int, Absence] = {}
        for other in others:
            keep_worst(absences, other.absences)
        first = first.refuse(absences) if absences else first
        if not first.count or (first.data is None and not step.task.takes_absent):
            return None
        return self._attempt(step, _named(first), row, partial(_made, step, first, others))

    def _attempt(self, step: Step, at: str, row: int, what: Callable[[], T]) -> T | None:
        self._say(Begins(step.name, at, row))
        try:
            return what()
        except RAISED as error:
            first: BaseException = error
            while first.__cause__ is not None:
                first = first.__cause__
            trace = "".join(traceback.format_exception(first, chain=False)).rstrip()
            self._say(Failed(step.name, at, in_words(error), trace))
            return None

    def _say(self, said: Said) -> None:
        os.write(self._descriptor, msgspec.json.encode(said) + b"\n")


def _made(step: Step, first: Block, others: Sequence[Block]) -> Block:
    """What a task makes of blocks; a sink hands on what it is given."""
    task = step.task
    if isinstance(task, Sink):
        task.write(first, *others)
        task.flush()
        return first
    made: Block = task.process(first, *others)
    check_promise(made, step.spec, first)
    return made


def _graph_of(run: RunContext, task: str) -> GraphDefinition:
    """The graph that a run was asked to run.

    Raises:
        BadParameter: if it cannot be, or has no such task.
    """
    graph = run.parameters.requested["graph"]
    definition = parse_graph(
        graph["text"], graph["file"], graph["folder"], detectors=graph["detectors"]
    )
    if task and task not in definition.tasks:
        raise BadParameter(
            f'the graph of this run has no task "{task}"{did_you_mean(task, definition.tasks)}'
        )
    return definition


def _needed(plan: Plan, task: str) -> dict[int, Step]:
    """The steps, by what comes out of them: all, or a task and those it depends on."""
    steps = dict(enumerate(plan.steps, 1))
    wanted = {number for number, step in steps.items() if task in ("", step.name)}
    for number, step in reversed(steps.items()):
        if number in wanted:
            wanted.update(step.sources)
    return {number: step for number, step in steps.items() if number in wanted}


def _named(block: Block) -> str:
    """The frames of a block; those of the detector that they stand for."""
    span = block.spec.span
    first, last = block.index * span, block.end * span - 1
    return f"frame {first}" if first == last else f"frames {first} to {last}"


def main() -> None:
    """Entry point."""
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the pixels are in the file already
    trial, descriptor = sys.argv[1:]
    _Tried(msgspec.json.decode(trial, type=Trial), int(descriptor)).run()


if __name__ == "__main__":
    main()
