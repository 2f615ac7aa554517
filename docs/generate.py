"""Write into the documents what the code knows best: its tables, fields, messages and options.

    python docs/generate.py            writes
    python docs/generate.py --check    says which pages are not what the code says; status 1 if any

What is written stands between `<!-- generated: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
import textwrap
from collections.abc import Callable, Container, Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
import typer
from pydantic.fields import FieldInfo

from lima2py.units import Model, electronvolts, metres, seconds, size_in_bytes

Model.model_config["use_attribute_docstrings"] = True  # before any model that is derived from it

from lima2py import plugins  # noqa: E402
from lima2py.acquisition import Acquisition, TriggerMode  # noqa: E402
from lima2py.control.cli import app  # noqa: E402
from lima2py.detector import Detector, DetectorInfo, ModulePlace  # noqa: E402
from lima2py.detector_file import known_detectors  # noqa: E402
from lima2py.frame import FATES  # noqa: E402
from lima2py.graph.definition import known_graphs  # noqa: E402
from lima2py.graph.kinds import task_class  # noqa: E402
from lima2py.memory_settings import MemorySettings  # noqa: E402
from lima2py.metadata import DetectorGeometry, Metadata, Rotation  # noqa: E402
from lima2py.model.costs import AcquisitionCosts, Costs, ProcessingCosts  # noqa: E402
from lima2py.model.setup import (  # noqa: E402
    AcquisitionHosts,
    Bursts,
    DetectorLoad,
    Disk,
    Fault,
    Network,
    ProcessingHosts,
    Setup,
)
from lima2py.node import orders  # noqa: E402
from lima2py.node.life import TRANSITIONS, Outcome, State, diagram  # noqa: E402
from lima2py.node.serve import KINDS  # noqa: E402
from lima2py.policies import Policies  # noqa: E402
from lima2py.session.events import Kind  # noqa: E402
from lima2py.session.metrics import METRICS  # noqa: E402
from lima2py.session.other_detectors import OtherDetector  # noqa: E402
from lima2py.session.place import NodePlace  # noqa: E402
from lima2py.session.system import StageSettings, System  # noqa: E402
from lima2py.storage import layout  # noqa: E402
from lima2py.task import Task  # noqa: E402
from lima2py.transport import rpc, wire  # noqa: E402

DOCS = Path(__file__).parent
PLACE = re.compile(r"(<!-- generated: (\S+)(?: (\S+))? -->\n).*?(<!-- end -->)", re.DOTALL)
WIDTH = 96
QUANTITIES = {
    seconds: "time", size_in_bytes: "size", metres: "length", electronvolts: "energy"
}  # fmt: skip
"""What text with a unit is read by, and what it then is."""


def fates() -> str:
    """Every fate, with who says it."""
    rows = ((int(fate), f"`{fate.word}`", *said) for fate, said in FATES.items())
    return table(("code", "fate", "who says it", "meaning"), rows)


def states() -> str:
    """The states, the commands between them, and the outcomes."""
    rows = (
        (f"`{command}`", ", ".join(state.value for state in sources), target.value)
        for command, sources, target in TRANSITIONS
    )
    return "\n".join(
        [
            f"States: {names(state.value for state in State)}.",
            f"Outcomes: {names(outcome.value for outcome in Outcome)}.",
            "",
            table(("command", "allowed while", "leads to"), rows),
            "```{mermaid}",
            diagram(),
            "```",
            "",
        ]
    )


def tasks() -> str:
    """Every task, with what it does and the page that tells more."""
    pages = {
        name: page
        for page in sorted((DOCS / "reference" / "tasks").glob("*.md"))
        for name in re.findall(r"<!-- generated: task (\S+) -->", page.read_text())
    }
    rows = (
        (f"[`{name}`](tasks/{pages[name].name})", plugins.about(task_class(name, "documents")))
        for name in plugins.known(plugins.TASKS)
    )
    return table(("task", "what it does"), rows)


def task(name: str) -> str:
    """One task: what it does, and its parameters."""
    kind = task_class(name, "documents")
    own = fields(kind, but=_as_in(Task, kind))
    return f"{inspect.cleandoc(kind.__doc__ or '')}\n\n{own}"


def any_task() -> str:
    """The parameters all tasks have."""
    return fields(Task)


def detectors() -> str:
    """Every detector that can be opened by name, and the parameters of every plugin."""
    rows = ((f"`{name}`", about) for name, about in known_detectors().items())
    sections = [
        section(name, plugins.load(plugins.DETECTORS, name, Detector, "documents"))
        for name in plugins.known(plugins.DETECTORS)
    ]
    return "\n".join([table(("name", "what it is"), rows), *sections])


def detector_info() -> str:
    """What is known of a detector."""
    return fields(DetectorInfo) + "\nA module:\n\n" + fields(ModulePlace)


def graphs() -> str:
    """The graphs that come with lima2py."""
    return table(("graph", "what it is for"), ((f"`{n}`", a) for n, a in known_graphs().items()))


def acquisition() -> str:
    """What is asked of a detector."""
    modes = re.findall(r'= "(\w+)"\s+"""(.+?)"""', inspect.getsource(TriggerMode))
    return "\n".join(
        [fields(Acquisition), table(("trigger_mode", ""), ((f"`{m}`", text) for m, text in modes))]
    )


def system() -> str:
    """The fields of a system file."""
    return "\n".join(
        [
            fields(System),
            "A node of `acquisition` or `processing`:\n",
            fields(NodePlace),
            "One of the `stages`, by its name ([how to use stages](../how-to/use_stages.md)):\n",
            fields(StageSettings),
            "One of the other `detectors`, by its name"
            " ([how to combine detectors](../how-to/combine_detectors.md)):\n",
            fields(OtherDetector),
            "`memory`:\n",
            fields(MemorySettings),
            "`policies`; those of a run, `prepare(policies=...)` or `--policy`, go over them:\n",
            fields(Policies),
        ]
    )


def model() -> str:
    """The fields of a setup, and of a file of costs."""
    kinds = (Setup, DetectorLoad, Bursts, AcquisitionHosts, ProcessingHosts, Network, Disk, Fault,
             Costs, AcquisitionCosts, ProcessingCosts)  # fmt: skip
    return "\n".join(section(kind.__name__, kind) for kind in kinds)


def events() -> str:
    """What can happen to a run."""
    kinds = re.findall(r'= "(\w+)"\s+"""(.+?)"""', inspect.getsource(Kind), re.DOTALL)
    rows = ((f"`{kind}`", " ".join(text.split())) for kind, text in kinds)
    return table(("kind", "what happened"), rows)


def metrics() -> str:
    """Every metric."""
    rows = ((f"`{m.name}`", m.kind, names(m.labels), m.about) for m in METRICS)
    return table(("metric", "type", "labels", "what it says"), rows)


def metadata() -> str:
    """What a user says of an experiment."""
    return "\n".join(
        [
            inspect.cleandoc(Metadata.__doc__ or "").partition("\n\n")[2] + "\n",
            fields(Metadata),
            section("geometry", DetectorGeometry),
            section("rotation", Rotation),
        ]
    )


def tree() -> str:
    """The tree of a file, as the module that writes it draws it."""
    (drawn,) = re.findall(r"(?:^    .*\n)+", layout.__doc__ or "", re.MULTILINE)
    return f"```text\n{textwrap.dedent(drawn)}```\n"


def messages() -> str:
    """Messages between nodes of one run, and what they consist of."""
    kinds = (*get_args(wire.Message), wire.DoneBlock, wire.Product)
    return "\n".join(struct(kind) for kind in kinds)


def commands() -> str:
    """Requests to nodes, answers, and what is said when a run is prepared."""
    kinds = (rpc.Request, rpc.Answer, orders.AcquisitionOrder, orders.AcquisitionReady,
             orders.ProcessingOrder, orders.ProcessingReady, orders.Feeder,
             orders.ConnectOrder, orders.Peer)  # fmt: skip
    return "\n".join(struct(kind) for kind in kinds)


def node_commands() -> str:
    """What both kinds of node can be told."""
    rows = []
    for kind, cls in KINDS.items():
        node = cls("documents")
        rows.append((kind, names(node.commands()), names(node.quick()), names(node.reads())))
        node.close()
    return table(("node", "one after the other", "at once", "at once, from anybody"), rows)


def command_line() -> str:
    """The help of every command."""
    group: Any = typer.main.get_command(app)
    context = group.make_context("lima2py", [], resilient_parsing=True)
    parts = []
    for name, command in group.commands.items():
        below = typer.Context(command, info_name=name, parent=context)
        below.terminal_width = below.max_content_width = WIDTH
        parts += [f"## {name}", "", "```text", command.get_help(below), "```", ""]
    return "\n".join(parts)


SECTIONS: dict[str, Callable[..., str]] = {
    section.__name__: section
    for section in (
        acquisition, any_task, command_line, commands, detector_info, detectors, events, fates,
        graphs, messages, metadata, metrics, model, node_commands, states, system, task, tasks,
        tree,
    )
}  # fmt: skip


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A table in Markdown."""
    head = tuple(head)
    lines = [head, tuple("---" for _ in head)]
    lines += [tuple(str(cell).replace("|", r"\|") for cell in row) for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def names(words: Iterable[str]) -> str:
    """Names, as code."""
    return ", ".join(f"`{word}`" for word in words)


def section(name: str, kind: type[Model]) -> str:
    """A class that a user sets up: what it does, and its fields."""
    about = inspect.cleandoc(kind.__doc__ or "")
    return f"## {name}\n\n{about}\n\n{fields(kind)}"


def fields(kind: type[Model], but: Container[str] = ()) -> str:
    """The fields of a model, but for some: name, type, default, meaning."""
    rows = [
        (f"`{field.alias or name}`", f"`{as_type(kind, name)}`", default(field),
         " ".join((field.description or "").split()))
        for name, field in kind.model_fields.items()
        if name not in but
    ]  # fmt: skip
    return table(("field", "type", "default", "meaning"), rows) if rows else "No parameters.\n"


def _as_in(base: type[Model], kind: type[Model]) -> set[str]:
    """The fields that a model has from its base, unchanged."""
    ours = kind.model_fields
    return {name for name, field in base.model_fields.items()
            if ours[name].description == field.description}  # fmt: skip


def as_type(kind: type[Model], name: str) -> str:
    """The type of a field as a person would say it: `time`, `list of 4`, `text`."""
    field = kind.model_fields[name]
    schema = kind.model_json_schema(by_alias=False)
    said = described(schema["properties"][name], schema.get("$defs", {}))
    for reader, quantity in QUANTITIES.items():
        if reader.__name__ in f"{field.annotation} {field.metadata}":
            said = said.replace("number", quantity).replace("integer", quantity)
    return said


def described(schema: dict[str, Any], known: dict[str, Any]) -> str:
    """A JSON schema in a word or two."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return described(known[name], known) if "enum" in known[name] else str(name)
    if "anyOf" in schema:
        kinds = [described(item, known) for item in schema["anyOf"] if item.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "enum" in schema:
        return " or ".join(map(str, schema["enum"]))
    kind = schema.get("type", "anything")
    if kind == "array":
        count = schema.get("minItems") if schema.get("minItems") == schema.get("maxItems") else None
        return f"list of {count}" if count else "list"
    names = {"string": "text", "object": "mapping", "boolean": "true or false"}
    return names.get(kind, str(kind))


def default(field: FieldInfo) -> str:
    """What a field is when nobody says."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, (Path, Model)) or value in (None, "", (), {}):
        return ""
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def struct(kind: type[msgspec.Struct]) -> str:
    """The fields of a message."""
    about = inspect.cleandoc(kind.__doc__ or "")
    rows = [(f"`{name}`", f"`{kind.__annotations__[name]}`") for name in kind.__struct_fields__]
    return f"### {kind.__name__}\n\n{about}\n\n{table(('field', 'type'), rows)}"


def _filled(found: re.Match[str]) -> str:
    arguments = [found[3]] if found[3] else []
    return f"{found[1]}\n{SECTIONS[found[2]](*arguments)}\n{found[4]}"


def renewed() -> Iterator[tuple[Path, str]]:
    """The pages that hold something generated, each as it should be."""
    for page in sorted(DOCS.rglob("*.md")):
        text = page.read_text()
        fresh = PLACE.sub(_filled, text)
        if PLACE.search(text):
            yield page, fresh


def main() -> int:
    """Write, or check; the exit status."""
    stale = [(page, text) for page, text in renewed() if page.read_text() != text]
    for page, text in stale:
        print(page.relative_to(DOCS.parent), file=sys.stderr)  # noqa: T201
        if "--check" not in sys.argv:
            page.write_text(text)
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
