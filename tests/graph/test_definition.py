"""Graphs as they are written: what is taken, what is refused and in which words."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from lima2py import plugins
from lima2py.errors import BadGraph
from lima2py.frame import Block, FrameSpec
from lima2py.graph import definition
from lima2py.graph.definition import (
    MOST_PROBLEMS,
    GraphDefinition,
    known_graphs,
    load_graph,
    parse_graph,
)
from lima2py.graph.schema import graph_schema
from lima2py.task import InputFile, Sink, Task
from lima2py.units import Seconds


class Scale(Task):
    """Multiply."""

    by: float = 1.0
    boxes: dict[str, tuple[int, int]] = Field(default_factory=dict)

    def prepare(self, spec: FrameSpec) -> FrameSpec:
        return spec

    def process(self, block: Block) -> Block:
        return block


class Tap(Scale):
    """Look."""

    every: Seconds = 1.0


class Read(Scale):
    """Read files."""

    file: InputFile
    maybe: InputFile | None = None
    several: tuple[InputFile, ...] = ()
    named: dict[str, InputFile] = Field(default_factory=dict)
    title: str = ""


class Add(Scale):
    """Add any number of inputs."""

    def prepare(self, *specs: FrameSpec) -> FrameSpec:
        return specs[0]


class Subtract(Scale):
    """Subtract the second input, if there is one, from the first."""

    def prepare(self, spec: FrameSpec, other: FrameSpec | None = None) -> FrameSpec:
        return spec


class Keep(Sink):
    """Keep nothing."""

    @property
    def files(self) -> list[str]:
        return []

    def write(self, block: Block, *others: Block) -> int:
        return 0

    def prepare(self, spec: FrameSpec) -> FrameSpec:
        return spec


TASKS: dict[str, type[Task]] = {
    "scale": Scale,
    "tap": Tap,
    "read": Read,
    "add": Add,
    "subtract": Subtract,
    "keep": Keep,
}


@pytest.fixture(autouse=True, scope="module")
def _registered() -> Iterator[None]:
    points = {
        name: EntryPoint(name, f"{__name__}:{task.__name__}", plugins.TASKS)
        for name, task in TASKS.items()
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plugins, "known", lambda group: points)
        yield


def graph(tasks: dict[str, Any], **settings: Any) -> GraphDefinition:
    return parse_graph(json.dumps({"tasks": tasks}), "x.yaml", **settings)


def problems(tasks: dict[str, Any], **settings: Any) -> list[str]:
    with pytest.raises(BadGraph) as caught:
        graph(tasks, **settings)
    return str(caught.value).splitlines()


def test_a_graph_holds_what_the_file_says() -> None:
    found = parse_graph(
        """
        graph: beam
        about: Look at it.
        tasks:
          live:
            do: tap
            from: half
            every: 200 ms
          half: {do: scale, from: detector, by: 0.5}
          raw: {do: keep, from: [detector], file: "{name}_raw"}
        """,
        "graphs/x.yaml",
    )
    assert (found.name, found.about, found.where) == ("beam", "Look at it.", "graphs/x.yaml")
    assert list(found.tasks) == ["half", "live", "raw"]
    assert found.tasks["live"].inputs == ("half",)
    assert found.tasks["raw"].inputs == ("detector",)
    live = found.tasks["live"].task
    assert isinstance(live, Tap)
    assert live.every == 0.2
    assert found.sinks == ("raw",)
    assert found.taps == ("live",)


def test_a_graph_without_a_name_has_that_of_its_file() -> None:
    text = "tasks: {a: {do: scale, from: detector}}"
    assert parse_graph(text, "graphs/beam.yaml").name == "beam"


def test_every_run_gets_new_tasks_that_are_equal() -> None:
    found = graph({"a": {"do": "read", "from": "detector", "file": "m.npy", "by": 2}}, base="/data")
    fresh = found.fresh()
    assert fresh == found
    assert fresh.tasks["a"].task is not found.tasks["a"].task


def test_a_graph_can_be_built_again_elsewhere(tmp_path: Path) -> None:
    found = graph(
        {"a": {"do": "read", "from": "detector", "file": "m.npy"}},
        base=tmp_path,
        overrides={"a.by": 3, "a.title": 'two "lines"\nand 010'},
    )
    elsewhere = json.loads(json.dumps(found.plain()))
    assert parse_graph(**elsewhere) == found


# What is refused


def test_all_problems_are_told_at_once() -> None:
    assert problems(
        {
            "a": {"do": "scael", "from": "detector"},
            "b": {"from": "detector"},
            "c": {"do": "tap", "from": "detector", "every": "3 parsec", "bye": 1},
            "d": [1],
            "e": {"do": "scale"},
            "e2": {"do": "scale", "from": []},
            "f": {"do": "scale", "from": "detectro"},
            "g": {"do": "scale", "from": 3},
            "h": {"do": 3, "from": "detector"},
            "detector": {"do": "scale", "from": "a"},
            "2nd": {"do": "scale", "from": "a", "by": "no"},
        }
    ) == [
        'x.yaml, task "a", do: there is no task "scael" (did you mean "scale"?)',
        'x.yaml, task "b", do: should be one of scale, tap, read, add, subtract, keep;'
        " nothing was given",
        'x.yaml, task "c", every: is not a time: write a plain number or one with a unit'
        ' (ns, us, µs, ms, s, min, h), for instance 200 ms; given: "3 parsec"',
        'x.yaml, task "c", bye: there is no such field (did you mean "by"?)',
        'x.yaml, task "d": should be a mapping,'
        " like `view: {do: bin, from: detector, by: [2, 2]}`; given: [1]",
        'x.yaml, task "e", from: is required: the name of a task, or detector',
        'x.yaml, task "e2", from: is required: the name of a task, or detector',
        'x.yaml, task "f", from: there is no task "detectro" (did you mean "detector"?)',
        'x.yaml, task "g", from: should be the name of a task; given: 3; in YAML it stands in'
        " quotes, if it is one",
        'x.yaml, task "h", do: should be one of scale, tap, read, add, subtract, keep; given: 3',
        'x.yaml, task "detector": this name means the frames as they arrive; choose another one',
        'x.yaml, task "2nd": a name is a letter, then at most 63 letters, digits, _ or -',
        'x.yaml, task "2nd", by: should be a number; given: "no"',
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("graph: x", "tasks: should hold at least one task"),
        ("tasks:", "tasks: should hold at least one task"),
        ("tasks: {}", "tasks: should hold at least one task"),
        ("tasks: [a]", 'given: ["a"]'),
        ("taks: {}", 'taks: there is no such field (did you mean "tasks"?)'),
        ("graph: 12", "graph: should be text, in quotes if it looks like a number; given: 12"),
        ("about: [a]", "about: should be text"),
        ("tasks: {a: {do: scale, from: detector}}\ntasks: {}", 'line 2, column 1: key "tasks"'),
        ("", "is empty"),
    ],
)
def test_a_document_that_is_no_graph_is_refused(text: str, problem: str) -> None:
    with pytest.raises(BadGraph, match=r"^x\.yaml") as caught:
        parse_graph(text, "x.yaml")
    assert problem in str(caught.value)


@pytest.mark.parametrize("value", ["no", "010", "12:30", "2001-01-01", ".nan", "1_000", "0x1F"])
def test_what_only_resembles_a_number_is_refused_as_text(value: str) -> None:
    with pytest.raises(BadGraph) as caught:
        parse_graph(f"tasks: {{a: {{do: scale, from: detector, by: {value}}}}}", "x.yaml")
    words = f'x.yaml, task "a", by: should be a number; given: "{value}"'
    assert str(caught.value) == words


@pytest.mark.parametrize("length", [1, 2, 3, 20])
def test_a_circle_is_named_along_its_way(length: int) -> None:
    names = [f"t{number}" for number in range(length)]
    tasks = {name: {"do": "scale", "from": names[number - 1]} for number, name in enumerate(names)}
    tasks["beside"] = {"do": "scale", "from": "detector"}
    tasks["behind"] = {"do": "scale", "from": "t0"}
    (problem,) = problems(tasks)
    way = problem.removeprefix("x.yaml, tasks: ").split(" is a circle")[0].split(" → ")
    assert way[0] == way[-1]
    assert sorted(way[1:]) == sorted(names)
    steps = {(tasks[name]["from"], name) for name in names}
    assert set(pairwise(way)) == steps


def test_a_circle_through_a_wrong_task_is_told_too() -> None:
    told = problems(
        {"a": {"do": "scale", "from": "b", "by": "x"}, "b": {"do": "scale", "from": "a"}}
    )
    assert len(told) == 2
    assert "circle" in told[1]


@pytest.mark.parametrize(
    ("do", "inputs", "takes"),
    [("scale", 2, "1 input"), ("subtract", 3, "1 to 2 inputs"), ("keep", 2, "1 input")],
)
def test_too_many_inputs_are_refused(do: str, inputs: int, takes: str) -> None:
    tasks: dict[str, Any] = {
        name: {"do": "scale", "from": "detector"} for name in ("a", "b", "c")[:inputs]
    }
    names = list(tasks)
    tasks["x"] = {"do": do, "from": names} | ({"file": "f"} if do == "keep" else {})
    given_names = json.dumps(names)
    assert problems(tasks) == [f'x.yaml, task "x", from: {do} takes {takes}; given: {given_names}']


def test_a_task_may_take_several_inputs() -> None:
    found = graph(
        {
            "sum": {"do": "add", "from": ["a", "detector", "b"]},
            "a": {"do": "scale", "from": "detector"},
            "b": {"do": "subtract", "from": ["detector", "a"]},
        }
    )
    assert list(found.tasks) == ["a", "b", "sum"]
    assert found.tasks["sum"].inputs == ("a", "detector", "b")


def test_no_more_problems_are_told_than_a_person_reads() -> None:
    told = problems({f"t{number}": {"do": "scale", "from": "nobody"} for number in range(3000)})
    assert len(told) == MOST_PROBLEMS + 1
    assert told[-1] == "... and there may be more"


# The order of tasks


@given(st.integers(1, 12), st.randoms(use_true_random=False))
def test_tasks_come_after_their_inputs_however_the_file_is_shuffled(
    number: int, chance: random.Random
) -> None:
    names = [f"t{index}" for index in range(number)]
    tasks = {
        name: {"do": "scale", "from": chance.choice(["detector", *names[:index]])}
        for index, name in enumerate(names)
    }
    assert list(graph(tasks).tasks) == names  # already in order: as in the file
    shuffled = dict(chance.sample(list(tasks.items()), number))
    order = ["detector", *graph(shuffled).tasks]
    assert sorted(order[1:]) == sorted(names)
    for name in names:
        assert order.index(tasks[name]["from"]) < order.index(name)


def test_a_long_graph_written_backwards_is_put_in_order() -> None:
    names = ["detector", *(f"t{index}" for index in range(1000))]
    found = graph(
        {name: {"do": "scale", "from": before} for before, name in reversed([*pairwise(names)])}
    )
    assert list(found.tasks) == names[1:]


# Overrides


def test_overrides_replace_and_add_parameters() -> None:
    found = graph(
        {"a": {"do": "scale", "from": "detector", "by": 2, "boxes": {"x": [1, 2]}}},
        overrides={"a.by": 4, "a.boxes.x": (3, 4), "a.boxes.y": [5, 6]},
    )
    task = found.tasks["a"].task
    assert isinstance(task, Scale)
    assert (task.by, task.boxes) == (4, {"x": (3, 4), "y": (5, 6)})


def test_an_override_may_be_the_first_of_its_mapping() -> None:
    found = graph({"a": {"do": "scale", "from": "detector"}}, overrides={"a.boxes.x": [1, 2]})
    assert found.tasks["a"].task.plain()["boxes"] == {"x": [1, 2]}


def test_the_text_records_the_overrides() -> None:
    found = graph({"a": {"do": "tap", "from": "detector"}}, overrides={"a.every": "2 ms"})
    assert found.text.splitlines()[0] == '# x.yaml with a.every="2 ms"'
    assert parse_graph(found.text).tasks["a"].task.plain()["every"] == 0.002


def test_without_overrides_the_text_is_that_of_the_file() -> None:
    text = "# mine\ntasks: {a: {do: scale, from: detector}}\n"
    assert parse_graph(text).text == text


@given(st.text(max_size=8), st.text(max_size=8))
def test_any_override_is_taken_or_refused(path: str, value: str) -> None:
    for key in (path, f"a.{path}", "a.title"):
        try:
            found = graph({"a": {"do": "read", "from": "detector", "file": "m"}},
                          overrides={key: value})  # fmt: skip
        except BadGraph as error:
            assert str(error).startswith("x.yaml")  # noqa: PT017
        else:
            assert parse_graph(**found.plain()) == found


def test_overrides_that_cannot_be_are_told_all_at_once() -> None:
    assert problems(
        {"view": {"do": "scale", "from": "detector", "by": 2}, "none": None},
        overrides={"veiw.by": 1, "view": 1, "view..by": 1, "view.by.x": 1, "none.by": 1},
    ) == [
        'x.yaml, override veiw.by: there is no task "veiw" (did you mean "view"?)',
        "x.yaml, override view: should be written task.parameter=value",
        "x.yaml, override view..by: should be written task.parameter=value",
        "x.yaml, override view.by.x: view.by is not a mapping, so nothing in it can be replaced;"
        " given: 2",
        "x.yaml, override none.by: none is not a mapping, so nothing in it can be replaced;"
        " nothing was given",
    ]


def test_an_override_of_an_unknown_parameter_is_refused() -> None:
    told = problems({"a": {"do": "scale", "from": "detector"}}, overrides={"a.bye": 1})
    assert told == ['x.yaml, task "a", bye: there is no such field (did you mean "by"?)']


def test_an_override_that_no_file_can_say_is_refused() -> None:
    told = problems({"a": {"do": "scale", "from": "detector"}}, overrides={"a.by": object()})
    assert "cannot be a parameter" in told[0]


# Files that tasks read


def test_paths_of_files_to_read_begin_at_the_graph(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(
        """tasks:
          a:
            do: read
            from: detector
            file: masks/m.h5::/entry/mask
            maybe: ../m.npy
            several: [a.tif, /b.tif]
            named: {dark: d.tif}
            title: t.tif
        """
    )
    task = load_graph(str(path)).tasks["a"].task.plain()
    assert task["file"] == f"{tmp_path}/masks/m.h5::/entry/mask"
    assert task["maybe"] == f"{tmp_path}/../m.npy"
    assert task["several"] == [f"{tmp_path}/a.tif", "/b.tif"]
    assert task["named"] == {"dark": f"{tmp_path}/d.tif"}
    assert task["title"] == "t.tif"


def test_paths_in_overrides_begin_at_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = graph(
        {"a": {"do": "read", "from": "detector", "file": "m"}},
        base="/graphs",
        overrides={"a.file": "x.npy", "a.named.dark": "d.tif", "a.title": "t"},
    )
    again = parse_graph(**found.plain()).tasks["a"].task.plain()
    assert again["file"] == f"{tmp_path}/x.npy"
    assert again["named"] == {"dark": f"{tmp_path}/d.tif"}
    assert again["title"] == "t"


@pytest.mark.parametrize("value", ["", "  ", 3, None, "a\0b"])
def test_what_is_no_path_is_refused(value: Any) -> None:
    (told,) = problems({"a": {"do": "read", "from": "detector", "file": value}})
    assert told.startswith('x.yaml, task "a", file: ') or "U+0000" in told


# Files


def test_an_unknown_graph_is_refused_with_the_known_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadGraph) as caught:
        load_graph("frist_light")
    assert 'there is no graph "frist_light" (did you mean "first_light"?)' in str(caught.value)


@pytest.mark.parametrize("text", ["tasks: {a: {do: scale, from: detector}}", "tasks:\n  a:\n"])
def test_a_text_is_no_name_of_a_graph(text: str) -> None:
    with pytest.raises(BadGraph, match=r"give it as parse_graph\(text\)"):
        load_graph(text)
    with pytest.raises(BadGraph) as caught:
        load_graph("nonsense")
    assert f"(known: {', '.join(known_graphs())}); or give the path" in str(caught.value)


def test_a_graph_is_found_by_its_file_and_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "about: Mine.\ntasks: {a: {do: scale, from: detector}}"
    (tmp_path / "mine.yaml").write_text(text)
    monkeypatch.setattr(definition, "files", lambda package: tmp_path)
    assert known_graphs() == {"mine": "Mine."}
    assert load_graph("mine") == load_graph(str(tmp_path / "mine.yaml"))
    assert load_graph("mine").base == tmp_path


def test_a_file_of_another_encoding_is_refused_as_a_graph(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"graph: \xff")
    with pytest.raises(BadGraph, match="not UTF-8"):
        load_graph(str(path))


def test_the_schema_knows_every_task_and_its_fields() -> None:
    schema = graph_schema()
    entry = schema["properties"]["tasks"]["additionalProperties"]
    assert entry["properties"]["do"]["enum"] == list(TASKS)
    for case, (name, task) in zip(entry["allOf"], TASKS.items(), strict=True):
        assert case["if"]["properties"]["do"] == {"const": name}
        fields = schema["$defs"][case["then"]["$ref"].rpartition("/")[2]]
        assert list(fields["properties"]) == ["do", "from", *task.model_fields]
        assert fields["additionalProperties"] is False
        required = [key for key, field in task.model_fields.items() if field.is_required()]
        assert fields["required"] == ["do", "from", *required]
    every = schema["$defs"]["Tap"]["properties"]["every"]
    assert {"type": "string"} in every["anyOf"]  # 200 ms
