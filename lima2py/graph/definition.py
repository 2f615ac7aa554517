"""A graph as it is written: named tasks, each saying what it does and to what.

    graph: beam
    about: Bin and look.
    tasks:
      view: {do: bin, from: detector, by: [2, 2]}
      live: {do: tap, from: view}

Order is free. `from` names another task, or `detector`, the frames as they arrive, or one of the
other detectors of the system; `from: [a, b]` gives a task that takes two inputs both frames of the
same index. Every other key is a parameter, a field of the task's class. What is wrong with a graph
is told at once, a line for each problem.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from graphlib import CycleError, TopologicalSorter
from heapq import heappop, heappush
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import JsonValue

from lima2py import plugins
from lima2py.documents import parse_yaml, read_text, read_yaml, to_yaml
from lima2py.errors import BadGraph, BadParameter, did_you_mean
from lima2py.graph.kinds import nb_inputs, path_fields, task_class
from lima2py.task import Sink, Task
from lima2py.units import Model

DETECTOR = "detector"
"""What `from` says for the frames as they arrive."""

MOST_PROBLEMS = 20
"""How many problems of one graph are told."""

_NO_OVERRIDES: Mapping[str, Any] = MappingProxyType({})
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}\Z")
_TOP_KEYS = ("graph", "about", "tasks")
_EXAMPLE = "like `view: {do: bin, from: detector, by: [2, 2]}`"


@dataclass(frozen=True, slots=True)
class TaskDefinition:
    """One task of a graph.

    Attributes:
        name: of the task, and of what comes out of it.
        do: what is done: the name the task's class is registered under.
        inputs: names of the tasks it takes its frames from, or `detector`.
        task: the task itself, its parameters checked; not prepared.
    """

    name: str
    do: str
    inputs: tuple[str, ...]
    task: Task


@dataclass(frozen=True, slots=True)
class GraphDefinition:
    """A graph whose names, wiring and parameters are right; whether frames fit is for the plan.

    Attributes:
        name: of the graph.
        about: what it is for, in a sentence.
        tasks: by name, each after those it takes its frames from, else in the order of the file.
        text: the YAML it was made from, overrides applied.
        where: the file it came from, or what else to call it in complaints.
        base: the folder that relative paths of files to read begin at.
        detectors: the other detectors that `from` may name.
    """

    name: str
    about: str
    tasks: Mapping[str, TaskDefinition]
    text: str
    where: str
    base: Path
    detectors: tuple[str, ...] = ()

    def fresh(self) -> GraphDefinition:
        """The same graph with new tasks: a task works for one run."""
        tasks = {
            name: replace(entry, task=type(entry.task).load(entry.task.plain(), self.where))
            for name, entry in self.tasks.items()
        }
        return replace(self, tasks=MappingProxyType(tasks))

    @property
    def companions(self) -> tuple[str, ...]:
        """The other detectors whose frames it takes."""
        used = {name for entry in self.tasks.values() for name in entry.inputs}
        return tuple(name for name in self.detectors if name in used)

    @property
    def sinks(self) -> tuple[str, ...]:
        """Names of the tasks that keep frames."""
        return tuple(name for name, entry in self.tasks.items() if isinstance(entry.task, Sink))

    @property
    def taps(self) -> tuple[str, ...]:
        """Names of the tasks one can look through."""
        return tuple(name for name, entry in self.tasks.items() if entry.do == "tap")

    def plain(self) -> dict[str, Any]:
        """What another process needs: `parse_graph(**plain)` is the same graph."""
        return {
            "text": self.text,
            "where": self.where,
            "base": str(self.base),
            "detectors": self.detectors,
        }


def known_graphs() -> dict[str, str]:
    """The graphs that come with lima2py: name, and what each is for."""
    return {
        name: str(read_yaml(path, "graph").get("about", ""))
        for name, path in _shipped_graphs().items()
    }


def load_graph(
    name_or_path: str,
    overrides: Mapping[str, Any] = _NO_OVERRIDES,
    detectors: Sequence[str] = (),
) -> GraphDefinition:
    """Read a graph from a YAML file, or one of those that come with lima2py by its name.

    Args:
        name_or_path: `first_light`, or the path of a file.
        overrides: see `parse_graph`.
        detectors: see `parse_graph`.

    Raises:
        BadGraph: if there is no such graph, or it cannot work.
    """
    shipped = _shipped_graphs()
    path = shipped.get(name_or_path, Path(name_or_path))
    if "\n" in name_or_path or ": " in name_or_path:
        raise BadGraph(
            "graph: a text was given where the name or the path of a graph should be; give it as"
            " parse_graph(text), from lima2py.graph.definition"
        )
    if not path.suffix and not path.exists():
        raise BadGraph(
            f'there is no graph "{name_or_path}"{did_you_mean(name_or_path, shipped)}; or give the'
            " path of a .yaml file"
        )
    try:
        text = read_text(path, "graph")
    except BadParameter as error:
        raise BadGraph(str(error)) from None
    return parse_graph(text, str(path), path.parent, overrides, detectors)


def parse_graph(
    text: str,
    where: str = "graph",
    base: str | Path = ".",
    overrides: Mapping[str, Any] = _NO_OVERRIDES,
    detectors: Sequence[str] = (),
) -> GraphDefinition:
    """Read a graph from YAML text.

    Args:
        text: the YAML.
        where: what to call it in complaints.
        base: the folder that relative paths of files to read begin at.
        overrides: parameters to replace or add, by `task.parameter`, or deeper where a parameter
            is a mapping: `beam.rois.direct`. Relative paths begin at the working folder.
        detectors: the other detectors that the system has.

    Raises:
        BadGraph: one line for each problem: file, task, field, what was given, what is allowed.
    """
    if overrides:
        try:
            text = _overridden(parse_yaml(text, where), overrides, where)
        except BadParameter as error:
            raise BadGraph(str(error)) from None
    return _parsed(text, where, Path(base).absolute(), tuple(detectors))


@lru_cache(maxsize=16)
def _parsed(text: str, where: str, base: Path, detectors: tuple[str, ...]) -> GraphDefinition:
    """The definition in a text; most are prepared again and again."""
    try:
        document = parse_yaml(text, where)
    except BadParameter as error:
        raise BadGraph(str(error)) from None
    return _Reader(document, where, base, detectors).graph(text)


class _Overrides(Model):
    overrides: dict[str, JsonValue]


def _overridden(document: dict[str, Any], overrides: Mapping[str, Any], where: str) -> str:
    """The text of a graph with parameters replaced; its first line says which."""
    values = _Overrides.load({"overrides": dict(overrides)}, where).overrides
    problems = [
        f"{where}, override {path}: {problem}"
        for path, value in values.items()
        if (problem := _put(document.get("tasks"), path, value))
    ]
    if problems:
        raise BadGraph("\n".join(problems))
    settings = ", ".join(f"{path}={json.dumps(value)}" for path, value in values.items())
    note = f"{where} with {settings}"
    return f"# {note if note.isprintable() else ascii(note)}\n{to_yaml(document)}"


def _put(tasks: Any, path: str, value: JsonValue) -> str | None:
    """Put a value where its path says; the problem, if it cannot be."""
    name, *fields = path.split(".")
    if not fields or not all(fields):
        return "should be written task.parameter=value"
    if not isinstance(tasks, dict) or name not in tasks:
        return f'there is no task "{name}"{did_you_mean(name, tasks or ())}'
    target, at = tasks[name], name
    for field in fields[:-1]:
        if isinstance(target, dict):
            target, at = target.setdefault(field, {}), f"{at}.{field}"
    if not isinstance(target, dict):
        return f"{at} is not a mapping, so nothing in it can be replaced; {_given(target)}"
    do = tasks[name].get("do")
    if isinstance(do, str) and do in plugins.known(plugins.TASKS):
        if fields[0] in path_fields(task_class(do, f"task {name}, do")):
            value = _absolute(value, Path.cwd())
    target[fields[-1]] = value
    return None


class _Reader:
    """Reads one graph, and collects what is wrong with it."""

    def __init__(
        self, document: dict[str, Any], where: str, base: Path, detectors: tuple[str, ...]
    ):
        self._document = document
        self._where = where
        self._base = base
        self._detectors = detectors
        self._problems: list[str] = []

    def graph(self, text: str) -> GraphDefinition:
        """The graph of the document, which was made from a text.

        Raises:
            BadGraph: one line for each problem.
        """
        for key in self._document:
            if key not in _TOP_KEYS:
                self._refuse(key, f"there is no such field{did_you_mean(key, _TOP_KEYS)}")
        name = self._text("graph", Path(self._where).stem)
        about = self._text("about", "")
        entries = self._document.get("tasks")
        if not isinstance(entries, dict) or not entries:
            self._refuse("tasks", f"should hold at least one task, {_EXAMPLE}; {_given(entries)}")
            entries = {}
        tasks = self._tasks(entries)
        if self._problems:
            raise BadGraph("\n".join(self._problems))
        return GraphDefinition(name, about, tasks, text, self._where, self._base, self._detectors)

    def _refuse(self, at: str, problem: str) -> None:
        self._tell(f"{self._where}, {at}: {problem}")

    def _tell(self, problem: str) -> None:
        self._problems.append(problem)
        if len(self._problems) == MOST_PROBLEMS:
            raise BadGraph("\n".join([*self._problems, "... and there may be more"]))

    def _text(self, key: str, default: str) -> str:
        value = self._document.get(key, default)
        if isinstance(value, str):
            return value
        self._refuse(key, f"should be text, in quotes if it looks like a number; {_given(value)}")
        return default

    def _tasks(self, entries: Mapping[str, Any]) -> Mapping[str, TaskDefinition]:
        """The tasks that are right, in an order in which each comes after its inputs."""
        sources = {DETECTOR, *self._detectors, *entries}
        tasks: dict[str, TaskDefinition | None] = {}
        wiring: dict[str, tuple[str, ...]] = {}
        for name, entry in entries.items():
            at = f'task "{name}"'
            if name == DETECTOR:
                self._refuse(at, "this name means the frames as they arrive; choose another one")
                continue
            if name in self._detectors:
                self._refuse(at, "a detector of the system has this name; choose another one")
                continue
            if not _NAME.match(name):
                self._refuse(at, "a name is a letter, then at most 63 letters, digits, _ or -")
            if isinstance(entry, dict):
                wiring[name] = self._inputs(entry.get("from"), at, sources)
                tasks[name] = self._task(name, entry, wiring[name], at)
            else:
                self._refuse(at, f"should be a mapping, {_EXAMPLE}; {_given(entry)}")
        try:
            order = _order(wiring)
        except CycleError as error:
            circle = " → ".join(error.args[1])
            self._refuse("tasks", f"{circle} is a circle; let one of them begin from {DETECTOR}")
            return {}
        return MappingProxyType({name: task for name in order if (task := tasks.get(name))})

    def _inputs(self, given: Any, at: str, sources: set[str]) -> tuple[str, ...]:
        """What `from` names; nothing if that is wrong."""
        inputs = [given] if isinstance(given, str) else given
        if inputs in (None, []):
            self._refuse(f"{at}, from", f"is required: the name of a task, or {DETECTOR}")
        elif not (isinstance(inputs, list) and all(isinstance(item, str) for item in inputs)):
            quote = "; in YAML it stands in quotes, if it is one"
            hint = quote if isinstance(given, (bool, int, float)) else ""
            self._refuse(f"{at}, from", f"should be the name of a task; {_given(given)}{hint}")
        elif wrong := [item for item in inputs if item not in sources]:
            for item in wrong:
                hint = did_you_mean(item, sources)
                self._refuse(f"{at}, from", f'there is no task "{item}"{hint}{self._others()}')
        else:
            return tuple(inputs)
        return ()

    def _others(self) -> str:
        """Which other detectors there are, if any."""
        return f"; the system's other detectors: {', '.join(self._detectors)}" * bool(
            self._detectors
        )

    def _task(
        self, name: str, entry: dict[str, Any], inputs: tuple[str, ...], at: str
    ) -> TaskDefinition | None:
        """A task from its entry; None if that is wrong."""
        do = entry.get("do")
        if not isinstance(do, str):
            known = ", ".join(plugins.known(plugins.TASKS))
            self._refuse(f"{at}, do", f"should be one of {known}; {_given(do)}")
            return None
        at = f"{self._where}, {at}"
        try:
            kind = task_class(do, f"{at}, do")
            paths = path_fields(kind)
            parameters = {
                key: _absolute(value, self._base) if key in paths else value
                for key, value in entry.items()
                if key not in ("do", "from")
            }
            task = kind.load(parameters, at)
        except BadParameter as error:
            self._tell(str(error))
            return None
        least, most = nb_inputs(kind)
        if inputs and not least <= len(inputs) <= most:
            takes = {least: f"{least}", math.inf: f"{least} or more"}.get(
                most, f"{least} to {most}"
            )
            self._tell(
                f"{at}, from: {do} takes {takes} input{'s' * (most > 1)}; {_given(list(inputs))}"
            )
        return TaskDefinition(name, do, inputs, task)


def _order(inputs: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Names in an order in which each comes after its inputs; of the possible next, the first."""
    sorter = TopologicalSorter(inputs)
    sorter.prepare()
    place = {name: number for number, name in enumerate(inputs)}
    order: list[str] = []
    possible: list[tuple[int, str]] = []
    while sorter.is_active():
        for name in sorter.get_ready():
            heappush(possible, (place.get(name, -1), name))
        _, name = heappop(possible)
        order.append(name)
        sorter.done(name)
    return order


def _absolute(value: Any, base: Path) -> Any:
    if isinstance(value, list):
        return [_absolute(item, base) for item in value]
    if isinstance(value, dict):
        return {key: _absolute(item, base) for key, item in value.items()}
    if isinstance(value, str) and value.strip():
        return str(base / os.path.expanduser(value))
    return value


def _given(value: object) -> str:
    if value is None:
        return "nothing was given"
    text = json.dumps(value, ensure_ascii=False)
    return f"given: {text if len(text) <= 80 else text[:77] + '...'}"


def _shipped_graphs() -> dict[str, Path]:
    folder = Path(str(files("lima2py_graphs")))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
