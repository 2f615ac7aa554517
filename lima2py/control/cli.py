"""The command line.

    lima2py run GRAPH       acquire, process, save; report
    lima2py check GRAPH     what would be done, and whether it can be
    lima2py list WHAT       detectors, tasks or graphs
    lima2py info FILE       what is in a file
    lima2py show FILE       a picture of it
    lima2py export FILE DIR its frames in another format
    lima2py verify FILE...  whether a file says the truth
    lima2py recover WHERE   finish the files that a crash left
    lima2py isolate FILE    which task cannot stand frames that were put aside
    lima2py up SYSTEM       start the nodes of a system, and leave them running
    lima2py status SYSTEM   what they do
    lima2py attach SYSTEM   follow the run that goes on there
    lima2py down SYSTEM     end them
    lima2py node KIND NAME  one node on this host, for systems of several hosts
    lima2py keys FILE       make the keys that nodes on several hosts need
    lima2py measure GRAPH FILE  what a graph costs on this host
    lima2py predict FILE    what a system would do

Exit status: 0 completed; 1 the run did not complete; 2 refused before anything started; 130
interrupted before anything started. What is refused is told in one message on standard error.

Every command imports what it needs when it is given: help and refusals come at once.
"""

from __future__ import annotations

import io
import json
import sys
from contextlib import nullcontext
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from lima2py.control import files, nodes, plan_ahead
from lima2py.control.files import INCOMPLETE, REFUSED
from lima2py.control.options import asked_of, find_system, metadata_of, policies_of, split_set
from lima2py.errors import LimaError

INTERRUPTED = 130

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class Listed(StrEnum):
    """What `list` can list."""

    DETECTORS = "detectors"
    TASKS = "tasks"
    GRAPHS = "graphs"


Graph = Annotated[str, typer.Argument(help="a graph file, or the name of one: lima2py list graphs")]
DetectorName = Annotated[
    str | None,
    typer.Option(
        "--detector", metavar="NAME|FILE", help="by name, or by its YAML file [simulator]"
    ),
]
# Numbers are text here: the models that they are meant for judge them, as they do those in YAML.
NbFrames = Annotated[
    str | None,
    typer.Option(
        metavar="N", help="how many; 0 goes on until Ctrl-C [all the detector has, or 100]"
    ),
]
ExpoTime = Annotated[
    str | None, typer.Option(metavar="T", help="exposure: seconds, or like '10 ms' [0.1]")
]
LatencyTime = Annotated[
    str | None, typer.Option(metavar="T", help="pause after each exposure, likewise [0]")
]
TriggerMode = Annotated[
    str | None,
    typer.Option(
        metavar="MODE",
        help="internal, software (a line of input each), external or gate [internal]",
    ),
]
PerTrigger = Annotated[str | None, typer.Option(metavar="N", help="frames after each trigger [1]")]
ProcessingNodes = Annotated[
    str | None, typer.Option(metavar="N", help="processes that run the graph; 0: this one [1]")
]
AcquisitionNodes = Annotated[
    str | None, typer.Option(metavar="N", help="processes that share the detector [1]")
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME.PARAM=VALUE",
        help="a parameter of a task, or of the detector: detector.PARAM=VALUE",
    ),
]
Output = Annotated[
    Path,
    typer.Option(metavar="DIR", help="where files go, made if need be [.]", show_default=False),
]
Name = Annotated[
    str, typer.Option(metavar="NAME", help="file names begin with it [run]", show_default=False)
]
MetadataOption = Annotated[
    list[str] | None,
    typer.Option(
        "--metadata",
        metavar="FILE|NAME.PATH=VALUE",
        help="what is said of the experiment: a YAML file, or sample.name=insulin; may be repeated",
    ),
]
PolicyOption = Annotated[
    list[str] | None,
    typer.Option(
        "--policy",
        metavar="NAME=VALUE",
        help="what to do when something goes wrong: overload=drop; may be repeated",
    ),
]
SystemFile = Annotated[
    str | None,
    typer.Option("--system", metavar="FILE", help="which detector, and which nodes run where"),
]


@app.callback(invoke_without_command=True)
def top(
    context: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", help="print it and exit")] = False,
) -> None:
    """Acquire detector frames, process them while they fly, save them."""
    if show_version:
        typer.echo(f"lima2py {version('lima2py')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def run(
    graph: Graph,
    detector: DetectorName = None,
    nb_frames: NbFrames = None,
    expo_time: ExpoTime = None,
    latency_time: LatencyTime = None,
    trigger_mode: TriggerMode = None,
    nb_frames_per_trigger: PerTrigger = None,
    processing_nodes: ProcessingNodes = None,
    acquisition_nodes: AcquisitionNodes = None,
    set_: Set = None,
    metadata: MetadataOption = None,
    policy: PolicyOption = None,
    output: Output = Path(),
    name: Name = "run",
    system: SystemFile = None,
    take_over: Annotated[
        bool,
        typer.Option(
            "--take-over", help="command a system that is up though another session does, too"
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="print the report as one JSON object")
    ] = False,
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="[ADDRESS:]PORT",
            help="serve metrics to Prometheus there; on this host only if no address is given",
        ),
    ] = None,
) -> None:
    """Acquire, process and save; then say what became of every frame.

    The first Ctrl-C stops and saves what was acquired, the second aborts.
    """
    from lima2py.control.metrics import serving
    from lima2py.control.preview import Preview
    from lima2py.control.progress import Interrupts, LineTriggers, follow, open_console, preparing
    from lima2py.graph.definition import load_graph
    from lima2py.session.session import Session

    overrides, detector_set = split_set(set_ or [])
    described = find_system(system, detector, acquisition_nodes, processing_nodes, detector_set)
    times = {"expo_time": expo_time, "latency_time": latency_time}
    triggers = {"trigger_mode": trigger_mode, "nb_frames_per_trigger": nb_frames_per_trigger}
    asked = asked_of(described, nb_frames=nb_frames, **times, **triggers)
    told = metadata_of(metadata or [])
    policies = policies_of(policy or [])
    definition = load_graph(graph, overrides, tuple(described.detectors))
    if all(place.address is None for place in (*described.acquisition, *described.processing)):
        # What cannot be is refused before a node is started.
        for warning in Preview.make(described, definition, asked, output, name, told).warnings:
            complain(warning)
    console = open_console()
    alone = not described.processing  # then preparing is done here, and must not be torn
    with (
        Interrupts(hold=1 if alone else 0) as interrupts,
        Session.open(described, take_over=take_over) as session,
        serving(session, metrics) if metrics else nullcontext() as where,
    ):
        if where:
            console.print(f"metrics: {where}")
        with preparing(console):
            hardware = session.prepare(
                graph=definition,
                output=output,
                name=name,
                metadata=told,
                policies=policies,
                **asked,
            )
        for warning in session.warnings:
            complain(warning)
        if interrupts.count:
            session.cancel(session.run)
        interrupts.check()
        interrupts.hold = 2  # from now on they stop and abort
        try:
            session.start()
            if hardware.trigger_mode == "software":
                LineTriggers(session, hardware, console).start()
            report = follow(session, interrupts, console)
        except LimaError as error:
            complain(error)
            raise typer.Exit(INCOMPLETE) from None
    typer.echo(json.dumps(report.plain()) if as_json else str(report))
    if not report.ok:
        raise typer.Exit(INCOMPLETE)


@app.command()
def check(
    graph: Graph,
    detector: DetectorName = None,
    nb_frames: NbFrames = None,
    expo_time: ExpoTime = None,
    latency_time: LatencyTime = None,
    trigger_mode: TriggerMode = None,
    nb_frames_per_trigger: PerTrigger = None,
    processing_nodes: ProcessingNodes = None,
    acquisition_nodes: AcquisitionNodes = None,
    set_: Set = None,
    metadata: MetadataOption = None,
    output: Output = Path(),
    name: Name = "run",
    system: SystemFile = None,
) -> None:
    """Print what run would do: products, memory, files, speed; starts nothing."""
    from lima2py.control.preview import Preview
    from lima2py.graph.definition import load_graph

    overrides, detector_set = split_set(set_ or [])
    described = find_system(system, detector, acquisition_nodes, processing_nodes, detector_set)
    times = {"expo_time": expo_time, "latency_time": latency_time}
    triggers = {"trigger_mode": trigger_mode, "nb_frames_per_trigger": nb_frames_per_trigger}
    asked = asked_of(described, nb_frames=nb_frames, **times, **triggers)
    told = metadata_of(metadata or [])
    definition = load_graph(graph, overrides, tuple(described.detectors))
    preview = Preview.make(described, definition, asked, output, name, told, measured=True)
    typer.echo(str(preview))


@app.command("list")
def list_(what: Annotated[Listed, typer.Argument(help="detectors, tasks or graphs")]) -> None:
    """List what is installed."""
    if what is Listed.DETECTORS:
        from lima2py.detector_file import known_detectors

        found = known_detectors()
    elif what is Listed.GRAPHS:
        from lima2py.graph.definition import known_graphs

        found = known_graphs()
    else:
        from lima2py.plugins import TASKS, known

        found = {name: _about_task(name) for name in known(TASKS)}
    width = max(map(len, found), default=0)
    for name, about in found.items():
        typer.echo(f"{name.ljust(width)}  {about}".rstrip())


for about_files in (
    files.info,
    files.show,
    files.export_,
    files.verify,
    files.recover,
    files.isolate,
):
    app.command(about_files.__name__.strip("_"))(about_files)
for about_nodes in (
    nodes.up,
    nodes.status,
    nodes.attach,
    nodes.down,
    nodes.node,
    nodes.keys,
):
    app.command()(about_nodes)
for ahead in (plan_ahead.measure, plan_ahead.predict):
    app.command()(ahead)


def main() -> None:
    """Entry point."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a character shows a ?
            stream.reconfigure(errors="replace")
    try:
        status = app(prog_name="lima2py", standalone_mode=False)
    except typer.TyperException as error:
        said = error.format_message().replace("Value error, ", "").rstrip(".")
        complain(f"{said}{_where_to_look(error)}")
        status = REFUSED
    except LimaError as error:
        complain(error)
        status = REFUSED
    if status == INTERRUPTED:
        complain("interrupted")
    sys.exit(status)


def complain(what: object) -> None:
    """The one message of a command that was refused, or failed."""
    typer.echo(f"lima2py: {what}", err=True)


def _where_to_look(error: typer.TyperException) -> str:
    context = getattr(error, "ctx", None)
    return f"; see {context.command_path} --help" if context else ""


def _about_task(name: str) -> str:
    """The first line of its documentation; or why it cannot be loaded."""
    from lima2py.plugins import TASKS, about, load
    from lima2py.task import Task

    try:
        cls = load(TASKS, name, Task, "task")
    except LimaError as error:
        return str(error)
    return about(cls)
