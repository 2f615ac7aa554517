"""The commands about nodes: keep those of a system up, look at them, end them; start one."""

from __future__ import annotations

import dataclasses
import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lima2py.control.files import INCOMPLETE
from lima2py.errors import BadCommand, BadParameter

if TYPE_CHECKING:
    from lima2py.session.standing import Standing

SystemArgument = Annotated[
    Path, typer.Argument(metavar="SYSTEM", help="a system file", show_default=False)
]


class Kind(StrEnum):
    """The kinds of node."""

    ACQUISITION = "acquisition"
    PROCESSING = "processing"


def up(system: SystemArgument) -> None:
    """Start the nodes of a system, here and over ssh, and leave them running.

    Those that run already are left alone.
    """
    standing = _standing(system)
    started = standing.up()
    for name, card in standing.living().items():
        where = card.host or "this host"
        what = "started" if name in started else "was up already"
        typer.echo(f"{card.kind} node {name} on {where}, process {card.process.pid}: {what}")


def status(
    system: SystemArgument,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Say which nodes of a system are up, what they do, and who commands them.

    Exit status 1 if one of them is not.
    """
    from lima2py.session.standing import UP

    standing = _standing(system)
    if not standing.living():
        typer.echo("{}" if as_json else _not_up(standing))
        raise typer.Exit(INCOMPLETE)
    told = standing.status()
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(told)))
    else:
        width = max(len(node.node) for node in told.nodes)
        for node in told.nodes:
            typer.echo(f"{node.node.ljust(width)}  {node.kind}, {node.where}: {node.says}")
        for run in told.runs:
            asked = f" of {run.asked}" if run.asked else ""
            typer.echo(
                f"run {run.name} ({run.run[:8]}): {run.state}, {run.acquired}{asked} frames"
                f" acquired, {run.settled} done"
            )
        typer.echo(f"commanded by {told.writer}" if told.writer else "nobody commands it")
    if any(node.says != UP for node in told.nodes):
        raise typer.Exit(INCOMPLETE)


def attach(
    system: SystemArgument,
    stop: Annotated[
        bool, typer.Option("--stop", help="stop it first; what was acquired is saved")
    ] = False,
    take_over: Annotated[
        bool, typer.Option("--take-over", help="stop it though another session commands it")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="print the report as one JSON object")
    ] = False,
) -> None:
    """Follow the newest run of a system that is up, and print what became of every frame.

    The run goes on after Ctrl-C.
    """
    from lima2py.control.progress import Interrupts, follow, open_console
    from lima2py.session.session import Session

    standing = _standing(system)
    if not standing.living():
        raise BadParameter(_not_up(standing))
    with Interrupts(hold=0) as interrupts:
        with Session.open(standing.system, take_over=take_over) as session:
            runs = [run for run in session.runs.values() if not run.prepared]
            if not runs:
                raise BadCommand(f"{system}: no run was started since the system is up")
            if stop and runs[-1].going:
                runs[-1].stop()
            report = follow(runs[-1], interrupts, open_console())
    typer.echo(json.dumps(report.plain()) if as_json else str(report))
    if not report.ok:
        raise typer.Exit(INCOMPLETE)


def down(
    system: SystemArgument,
    now: Annotated[
        bool, typer.Option("--now", help="abort runs that go on, whoever commands them")
    ] = False,
) -> None:
    """End the nodes of a system, in order."""
    standing = _standing(system)
    names = list(standing.living())
    if not names:
        typer.echo(_not_up(standing))
        return
    killed = standing.down(now)
    ended = [name for name in names if name not in killed]
    if ended:
        typer.echo(f"ended: {', '.join(ended)}")
    if killed:
        typer.echo(f"killed, since they hung: {', '.join(killed)}; files that they left unfinished:"
                   "  lima2py recover FOLDER")  # fmt: skip


def node(
    kind: Annotated[Kind, typer.Argument(help="acquisition or processing")],
    name: Annotated[str, typer.Argument(help="as in the system file")],
    listen: Annotated[
        str, typer.Option(metavar="tcp://HOST:PORT", help="where the session reaches this node")
    ],
    keys: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="the system's keys; required unless HOST is 127.0.0.1",
            show_default=False,
        ),
    ] = None,
    isolated: Annotated[
        bool, typer.Option("--isolated", help="share no memory, as if alone on its host")
    ] = False,
    detach: Annotated[
        str | None,
        typer.Option(
            metavar="SYSTEM",
            help="print who it is, and leave it running, as part of the system of this name",
        ),
    ] = None,
) -> None:
    """Run one node on this host, for a system file with its address; until Ctrl-C."""
    from lima2py.session.place import NodePlace

    NodePlace.load({"node": name}, "name")
    scheme, _, rest = listen.partition("://")
    host, _, port = rest.rpartition(":")
    if scheme != "tcp" or not host or not (port.isdigit() or port == "*"):
        raise BadParameter(
            f"node, --listen {listen}: should be tcp://HOST:PORT, with the name or address of this"
            " host by which the others reach it"
        )
    if detach is not None:
        import msgspec

        from lima2py.node.detach import detach as start

        file = str(keys.absolute()) if keys else ""
        card = start(detach, kind, name, listen, host, file, isolated)
        typer.echo(msgspec.json.encode(card).decode())
        return
    import logging

    from lima2py.node.serve import KINDS, serve
    from lima2py.transport.keys import read_keys

    logging.basicConfig(format=f"%(asctime)s {name} %(levelname)s %(message)s")
    loaded = read_keys(keys) if keys else None
    served = KINDS[kind](name, host=host, isolated=isolated, keys=loaded)
    serve(served, listen, announce=lambda address: typer.echo(f"{kind} node {name} at {address}"))


def keys(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="where they go; a new file")],
) -> None:
    """Make the keys that let the nodes of a system on several hosts know each other.

    Copy the file to each host, for the user who runs the nodes alone: whoever has it can command
    them.
    """
    from lima2py.transport.keys import make_keys

    make_keys(file)
    typer.echo(
        f"{file}: copy it to every host of the system (scp -p), start nodes with  --keys {file}"
        f"  and write  keys: {file}  into the system file"
    )


def _standing(file: Path) -> Standing:
    from lima2py.session.standing import Standing
    from lima2py.session.system import System

    return Standing(System.read(file))


def _not_up(standing: Standing) -> str:
    found = standing.nest.cards()
    dead = f"; {', '.join(found)} were killed, or this host was started again" if found else ""
    return (
        f"system {standing.system.system} is not up{dead}; start it:"
        f"  lima2py up {standing.system.file}"
    )
