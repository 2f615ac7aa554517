"""The commands of the command line that look ahead: what a host can do, what a system would do.

Every command imports what it needs when it is given.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from lima2py.control.options import plain, split_set
from lima2py.errors import LimaError


def measure(
    graph: Annotated[str, typer.Argument(help="a graph file, or the name of one")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="where the costs go, as YAML")],
    detector: Annotated[
        str,
        typer.Option(metavar="NAME|FILE", help="by name, or by its YAML file", show_default=False),
    ] = "simulator",
    expo_time: Annotated[
        str, typer.Option(metavar="T", help="exposure: seconds, or like '10 ms'")
    ] = "1 ms",
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME.PARAM=VALUE",
            help="a parameter of a task, or of the detector: detector.PARAM=VALUE",
        ),
    ] = None,
    output: Annotated[
        Path,
        typer.Option(metavar="DIR", help="on the disk where files will be [.]", show_default=False),
    ] = Path(),
) -> None:
    """Measure what a graph costs on this host, for predict; takes half a minute.

    The detector is only asked what its frames look like.
    """
    from lima2py.acquisition import Acquisition
    from lima2py.detector_file import open_detector
    from lima2py.graph.definition import load_graph
    from lima2py.model.measure import measure as measure_costs

    overrides, detector_set = split_set(set_ or [])
    definition = load_graph(graph, overrides)
    asked = Acquisition.load({"expo_time": plain(expo_time)}, "acquisition")
    opened = open_detector(detector, detector_set, Path())
    try:
        costs = measure_costs(definition, opened, asked, output.absolute())
    finally:
        opened.close()
    try:
        file.write_text(costs.text())
    except OSError as error:
        raise LimaError(f"measure: {file} cannot be written: {error.strerror}") from None
    typer.echo(costs.text(), nl=False)


def predict(
    setup: Annotated[Path, typer.Argument(metavar="FILE", help="the system, as YAML")],
    as_json: Annotated[
        bool, typer.Option("--json", help="print the forecast as one JSON object")
    ] = False,
) -> None:
    """Say what a system would do: rate, ring, memory, latency, and what limits it.

    Exit status 0 whether it keeps up or not.
    """
    from lima2py.model.setup import Setup

    try:
        from lima2py.model.simulate import simulate
    except ModuleNotFoundError as error:
        raise LimaError(
            f'predict needs {error.name}, which is not installed: pip install "lima2py[model]"'
        ) from None
    forecast = simulate(Setup.read(setup))
    typer.echo(json.dumps(forecast.plain()) if as_json else str(forecast))
