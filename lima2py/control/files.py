"""The commands of the command line that are about files: look at them, check and mend them.

Every command imports what it needs when it is given.
"""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lima2py.control.options import duration, stretch, whole
from lima2py.errors import BadParameter

INCOMPLETE = 1
REFUSED = 2


class Format(StrEnum):
    """What `export` can write."""

    CBF = "cbf"
    TIF = "tif"
    EDF = "edf"
    CSR = "csr"
    RAW = "raw"


File = Annotated[Path, typer.Argument(metavar="FILE", help="a master, or the file of one node")]
SinkName = Annotated[
    str | None,
    typer.Option("--sink", metavar="NAME", help="of several that share the file [the first]"),
]


def info(
    file: File,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Say what is in a file: frames by fate, shapes, parameters."""
    from lima2py.storage.reading.describe import describe, describe_plain

    typer.echo(json.dumps(describe_plain(file)) if as_json else describe(file))


def show(
    file: File,
    png: Annotated[Path, typer.Option(metavar="OUT", help="the picture to write")],
    frame: Annotated[
        str | None, typer.Option(metavar="N", help="its index [the first with data]")
    ] = None,
    sum_: Annotated[bool, typer.Option("--sum", help="all frames added up")] = False,
    sink: SinkName = None,
) -> None:
    """Draw a frame, or the sum of all, with the ROIs of the run."""
    from lima2py.storage.reading.picture import draw

    if frame is not None and sum_:
        raise BadParameter("show: give --frame or --sum, not both")
    number = None if frame is None else whole("--frame", frame)
    draw(file, png, sink=sink, frame=number, total=sum_)
    typer.echo(str(png))


def export_(
    file: File,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="where to, made if need be")],
    to: Annotated[Format, typer.Option("--to", help="an image file a frame, or all in flat files")],
    frames: Annotated[
        str | None, typer.Option(metavar="A:B", help="from number A to before B [all]")
    ] = None,
    sink: SinkName = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="replace files that exist")
    ] = False,
) -> None:
    """Write frames in another format, with unchanged values; say which had no data."""
    from lima2py.storage.reading.export import export

    wanted = (None, None) if frames is None else stretch("--frames", frames)
    made = export(file, to.value, folder, frames=wanted, sink=sink, overwrite=overwrite)
    for first, last, reason in made.absent:
        which = f"frame {first} is" if first == last else f"frames {first} to {last} are"
        typer.echo(f"{which} absent: {reason}")
    said = f"{made.files[0]} to {made.files[-1].name}" if len(made.files) > 1 else ""
    typer.echo(f"{made.frames} frames: {said or ' '.join(map(str, made.files)) or 'no file'}")


def verify(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="masters, or files of nodes")
    ],
    pixels: Annotated[
        bool, typer.Option("--pixels", help="read every frame, and compare it with its checksum")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="print one JSON object for each file, one a line")
    ] = False,
) -> None:
    """Check that every frame has one record, and lies where the record says.

    Exit status: 0 all is well, 1 something is wrong, 2 a file cannot be read at all.
    """
    from lima2py.storage.care.verify import verify as verify_file

    verdicts = []
    for file in files:
        verdicts.append(verify_file(file, pixels=pixels))
        typer.echo(json.dumps(verdicts[-1].plain()) if as_json else str(verdicts[-1]))
    if any(verdict.problems for verdict in verdicts):
        raise typer.Exit(INCOMPLETE)


def recover(
    where: Annotated[
        Path, typer.Argument(help="a folder; or what the files of one sink begin with")
    ],
    force: Annotated[
        bool, typer.Option("--force", help="also what changed in the last 10 s")
    ] = False,
) -> None:
    """Finish the files that dead nodes left, and write the masters that are missing.

    No data are changed or deleted, and runs that go on are left alone; it may be interrupted and
    given again. Exit status: 0 all frames on record are there, 1 something is missing, 2 nothing
    could be done.
    """
    from lima2py.storage.care.recover import recover as recover_files

    found, finished = recover_files(where, force=force)
    for one in found:
        typer.echo(str(one))
    if not found:
        typer.echo(f"{where}: nothing to recover; runs and sinks that are complete: {finished}")
    if found and all(one.refused for one in found):
        raise typer.Exit(REFUSED)
    if any(one.problems or one.refused for one in found):
        raise typer.Exit(INCOMPLETE)


def isolate(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="frames that were put aside, or a master")
    ],
    task: Annotated[
        str, typer.Option(metavar="NAME", help="only this task, with those before it [all]")
    ] = "",
    frame: Annotated[
        str | None, typer.Option(metavar="N", help="only this frame [all that were put aside]")
    ] = None,
    deadline: Annotated[str, typer.Option(metavar="T", help="after so long a task hangs")] = "30 s",
) -> None:
    """Try frames that brought nodes down, task by task: which task, which frame, how.

    Everything runs in processes of its own, and sinks write into a temporary folder. Exit status: 0
    it happened again, and was told; 1 nothing happened; 2 it could not be tried.
    """
    from lima2py.control.isolate import Frames, Isolation

    limit = duration("--deadline", deadline)
    number = None if frame is None else whole("--frame", frame)
    if not Isolation(Frames.find(file, number), task, limit, typer.echo).run():
        raise typer.Exit(INCOMPLETE)
