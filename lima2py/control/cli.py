"""The command line.

    lima2py run GRAPH       acquire, process, save; report
    lima2py check GRAPH     what would be done, and whether it can be
    lima2py list WHAT       detectors, tasks or graphs
    lima2py info FILE       what is in a file
    lima2py show FILE       a picture of it
    lima2py node KIND NAME  one node on this host, for systems of several hosts

Exit status: 0 completed; 1 the run did not complete; 2 refused before anything started.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from lima2py.acquisition import Acquisition, TriggerMode
from lima2py.control.progress import follow, trigger_by_lines
from lima2py.detector_file import known_detectors, open_detector
from lima2py.documents import plain_scalar
from lima2py.errors import BadParameter, LimaError
from lima2py.graph.definition import known_graphs, load_graph
from lima2py.graph.plan import Plan
from lima2py.memory import MemorySettings, RingShape
from lima2py.node.serve import KINDS, serve
from lima2py.plugins import TASKS, known, load
from lima2py.session.session import Session
from lima2py.session.system import System, open_system
from lima2py.storage.describe import describe, describe_plain
from lima2py.storage.picture import draw
from lima2py.task import Task
from lima2py.units import as_size

INCOMPLETE = 1
REFUSED = 2
DEFAULT_FRAMES = 100

app = typer.Typer(
    help="Acquire detector frames, process them while they fly, save them.",
    no_args_is_help=True,
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
File = Annotated[Path, typer.Argument(metavar="FILE", help="a master, or the file of one node")]
DetectorName = Annotated[
    str | None,
    typer.Option(
        "--detector", metavar="NAME|FILE", help="by name, or by its YAML file [simulator]"
    ),
]
NbFrames = Annotated[
    int | None,
    typer.Option(help=f"0 goes on until Ctrl-C [all the detector has, or {DEFAULT_FRAMES}]"),
]
Time = Annotated[str | None, typer.Option(metavar="T", help="seconds, or with a unit: '10 ms'")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME.PARAM=VALUE", help="a parameter of a task, or of the detector"
    ),
]
SystemFile = Annotated[
    str | None, typer.Option("--system", metavar="FILE", help="which nodes run where")
]


@app.command()
def run(
    graph: Graph,
    detector: DetectorName = None,
    nb_frames: NbFrames = None,
    expo_time: Time = None,
    latency_time: Time = None,
    trigger_mode: Annotated[TriggerMode | None, typer.Option()] = None,
    nb_frames_per_trigger: Annotated[int | None, typer.Option()] = None,
    processing_nodes: Annotated[
        int | None, typer.Option(help="0 runs everything in this process [1]")
    ] = None,
    acquisition_nodes: Annotated[int | None, typer.Option(help="share the frames [1]")] = None,
    set_: Set = None,
    output: Annotated[Path, typer.Option(metavar="DIR", help="where files go")] = Path(),
    name: Annotated[str, typer.Option(help="file names begin with it")] = "run",
    system: SystemFile = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="print the report as one JSON object")
    ] = False,
) -> None:
    """Acquire, process and save; then say what became of every frame.

    The first Ctrl-C stops and saves what was acquired, the second aborts.
    """
    console = Console(stderr=True)
    overrides, detector_set = split_set(set_ or [])
    described = find_system(system, detector, acquisition_nodes, processing_nodes, detector_set)
    asked = asked_of(
        expo_time=expo_time,
        latency_time=latency_time,
        trigger_mode=trigger_mode and trigger_mode.value,
        nb_frames_per_trigger=nb_frames_per_trigger,
        nb_frames=default_frames(described) if nb_frames is None else nb_frames,
    )
    definition = load_graph(graph, overrides)
    with Session.open(described) as session:
        session.prepare(graph=definition, output=output, name=name, **asked)
        session.start()
        if asked.get("trigger_mode") == TriggerMode.SOFTWARE:
            trigger_by_lines(session, console)
        report = follow(session, console)
    typer.echo(json.dumps(report.plain()) if as_json else str(report))
    if not report.ok:
        raise typer.Exit(INCOMPLETE)


@app.command()
def check(
    graph: Graph,
    detector: DetectorName = None,
    expo_time: Time = None,
    set_: Set = None,
    system: SystemFile = None,
) -> None:
    """Print the plan: what every task gives, where its pixels lie, the memory; starts nothing."""
    overrides, detector_set = split_set(set_ or [])
    described = find_system(system, detector, None, None, detector_set)
    definition = load_graph(graph, overrides)
    plugin = open_detector(described.detector, described.set, described.base)
    try:
        acquisition = Acquisition.load(asked_of(expo_time=expo_time), "acquisition")
        spec = plugin.describe(acquisition)
    finally:
        plugin.close()
    plan = Plan.make(definition, spec)
    settings = MemorySettings.load(described.memory_of(0), "memory")
    ring = RingShape.plan(spec, settings.ring, plan.group)
    typer.echo(f"{definition.name}: {definition.about}")
    typer.echo(plan.table())
    typer.echo(
        f"ring: {ring.slots} blocks of {ring.frames} frames, {as_size(ring.nbytes)}"
        f" on each acquisition node"
    )


@app.command("list")
def list_(what: Annotated[Listed, typer.Argument(help="detectors, tasks or graphs")]) -> None:
    """List what is installed."""
    if what is Listed.DETECTORS:
        found = known_detectors()
    elif what is Listed.GRAPHS:
        found = known_graphs()
    else:
        found = {name: _first_line(load(TASKS, name, Task, "list")) for name in known(TASKS)}
    width = max(map(len, found), default=0)
    for name, about in found.items():
        typer.echo(f"{name.ljust(width)}  {about}".rstrip())


@app.command()
def info(
    file: File,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Say what is in a file: frames by fate, shapes, matrices, parameters."""
    typer.echo(json.dumps(describe_plain(file)) if as_json else describe(file))


@app.command()
def show(
    file: File,
    png: Annotated[Path, typer.Option(help="the picture to write")],
    frame: Annotated[int | None, typer.Option(help="its index [the first with data]")] = None,
    sum_: Annotated[bool, typer.Option("--sum", help="all frames added up")] = False,
) -> None:
    """Draw a frame, or the sum of all, with the ROIs of the run."""
    if frame is not None and sum_:
        raise BadParameter("show: give --frame or --sum, not both")
    draw(file, png, frame=frame, total=sum_)
    typer.echo(str(png))


@app.command()
def node(
    kind: Annotated[str, typer.Argument(help=" or ".join(sorted(KINDS)))],
    name: Annotated[str, typer.Argument(help="as in the system file")],
    listen: Annotated[
        str, typer.Option(metavar="tcp://HOST:PORT", help="where the session reaches this node")
    ],
    isolated: Annotated[
        bool, typer.Option(help="share no memory, as if alone on its host (containers)")
    ] = False,
) -> None:
    """Run one node on this host until Ctrl-C, for a system file that names its address."""
    if kind not in KINDS:
        raise BadParameter(f'node: there is no kind "{kind}"; it is {" or ".join(sorted(KINDS))}')
    scheme, _, rest = listen.partition("://")
    host, _, port = rest.rpartition(":")
    if scheme != "tcp" or not host or not (port.isdigit() or port == "*"):
        raise BadParameter(
            f"node, --listen {listen}: should be tcp://HOST:PORT, with the name or address of this"
            " host by which the others reach it"
        )
    logging.basicConfig(format=f"%(asctime)s {name} %(levelname)s %(message)s")
    served = KINDS[kind](name, host=host, isolated=isolated)
    serve(served, listen, announce=lambda address: typer.echo(f"{kind} node {name} at {address}"))


def main() -> None:
    """Entry point."""
    try:
        app()
    except LimaError as error:
        typer.echo(f"lima2py: {error}", err=True)
        sys.exit(REFUSED)


def split_set(texts: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """`--set` texts as parameters of the graph and of the detector.

    Raises:
        BadParameter: if one is not `name.parameter=value`.
    """
    graph: dict[str, Any] = {}
    detector: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        owner, dot, parameter = key.strip().partition(".")
        if not (equals and dot and owner and parameter):
            raise BadParameter(
                f"--set {text!r}: should be TASK.PARAM=VALUE or detector.PARAM=VALUE, for instance"
                " --set view.by=[4,4]"
            )
        if owner == "detector":
            detector[parameter] = plain_scalar(value)
        else:
            graph[f"{owner}.{parameter}"] = plain_scalar(value)
    return graph, detector


def find_system(
    file: str | None,
    detector: str | None,
    acquisition_nodes: int | None,
    processing_nodes: int | None,
    detector_set: Mapping[str, Any],
) -> System:
    """The system that the options ask for.

    Raises:
        BadParameter: if it cannot be, or the options contradict each other.
    """
    if file is None:
        nodes = 1 if processing_nodes is None else processing_nodes
        return open_system(
            detector or "simulator",
            1 if acquisition_nodes is None else acquisition_nodes,
            nodes,
            dict(detector_set),
        )
    if acquisition_nodes is not None or processing_nodes is not None or detector is not None:
        raise BadParameter(
            "--system says which nodes and which detector there are: leave out --detector,"
            " --acquisition-nodes and --processing-nodes, or --system"
        )
    return open_system(file, 1, 1, dict(detector_set))


def default_frames(system: System) -> int:
    """How many frames to take when nobody says: all there are, if the detector has an end."""
    plugin = open_detector(system.detector, system.set, system.base)
    try:
        return 0 if plugin.capabilities.ends else DEFAULT_FRAMES
    finally:
        plugin.close()


def asked_of(**options: Any) -> dict[str, Any]:
    """The acquisition parameters that were given; text is read as YAML would read it."""
    return {
        name: plain_scalar(value) if isinstance(value, str) else value
        for name, value in options.items()
        if value is not None
    }


def _first_line(cls: type) -> str:
    return (cls.__doc__ or "").strip().partition("\n")[0]
