"""What is in a file, for a person and for a program: `lima2py info`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lima2py.frame import Fate, FrameSpec
from lima2py.storage.logs import Series
from lima2py.storage.reading.run_file import RunFile
from lima2py.units import as_size, as_time

_SHOWN = 8
"""The most stretches of absent frames that are listed for one fate."""


def describe_plain(path: str | Path) -> dict[str, Any]:
    """What is in a file, as plain values.

    Raises:
        StorageError: if it cannot be read or is not ours.
    """
    with RunFile(path) as file:
        facts, parameters = file.facts, file.parameters
        tasks = parameters["pipeline"].get("tasks", {})
        return {
            "path": str(file.path),
            "kind": "master" if file.is_master else "node file",
            "node": file.node,
            "run": facts.run,
            "name": facts.name,
            "outcome": file.outcome,
            "errors": file.errors,
            "put_aside": file.put_aside,
            "started": file.started,
            "ended": file.ended,
            "host": facts.host,
            "sinks": {name: _plain_sink(path, name) for name in file.sinks},
            "detector": dict(facts.detector),
            "metadata": file.metadata,
            "logs": {name: len(series.times) for name, series in file.logs.items()},
            "graph": facts.graph,
            "tasks": {
                name: {
                    "do": task["do"],
                    "from": task["from"],
                    "shape": task["product"]["shape"],
                    "to_detector": task["product"]["to_detector"],
                }
                for name, task in tasks.items()
            },
            "rois": {name: list(box) for name, box in file.rois.items()},
            "parameters": parameters,
            "digests": facts.parameters.digests(),
        }


def _plain_sink(path: str | Path, sink: str) -> dict[str, Any]:
    """What one sink saved."""
    with RunFile(path, sink) as file:
        paths = [part.path for part in file.files]
        return {
            "asked": file.facts.nb_frames,
            "frames": len(file),
            "fates": file.counts,
            "absences": [
                [first, last, reason.cause.word, reason.who, reason.detail]
                for first, last, reason in file.absences
            ],
            "product": file.spec.plain(),
            "shape": list(file.shape),
            "columns": list(file.records),
            "files": [str(path) for path in paths],
            "missing": [str(path) for path in paths if not path.exists()],
        }


def describe(path: str | Path) -> str:
    """What is in a file, for a person.

    Raises:
        StorageError: if it cannot be read or is not ours.
    """
    with RunFile(path) as file:
        facts = file.facts
        what = f"{file.outcome}" if file.is_master else f"file of node {file.node} alone"
        lines = [f'{file.path.name}: run "{facts.name}" ({facts.run[:8]}), {what}']
        lines += _row("put aside", [file.put_aside] if file.put_aside else [])
        for sink in file.sinks:
            with RunFile(path, sink) as opened:
                lines += _saved(opened)
        lines += _about_run(file)
        lines += _row("errors", file.errors)
    return "\n".join(lines)


def _saved(file: RunFile) -> list[str]:
    """What one sink saved."""
    return [
        *_row("sink", [file.sink]),
        *_frames(file),
        *_product(file),
        *_row("per frame", [", ".join(file.records)]),
        *_row("files", [_file_line(part.path) for part in file.files]),
    ]


def _frames(file: RunFile) -> list[str]:
    nb_frames = file.facts.nb_frames
    asked = f" of {nb_frames} asked" if nb_frames else ""
    lines = _row("frames", [f"{len(file)}{asked}" if len(file) else "none"])
    width = max(map(len, file.counts), default=0)
    for word, number in file.counts.items():
        lines.append(f"    {word:<{width}}  {number}{_where(file, Fate[word.upper()])}")
    return lines


def _where(file: RunFile, fate: Fate) -> str:
    """Which frames met a fate, and the reasons: `: 3, 7-9 (ring: ...)`."""
    if fate is Fate.SAVED:
        return ""
    found: dict[tuple[str, str], list[str]] = {}
    for first, last, reason in file.absences:
        if reason.cause is fate:
            stretch = str(first) if first == last else f"{first}-{last}"
            found.setdefault((reason.who, reason.detail), []).append(stretch)
    texts = []
    for (who, detail), stretches in list(found.items())[:_SHOWN]:
        shown = ", ".join(stretches[:_SHOWN]) + (", …" if len(stretches) > _SHOWN else "")
        reason_text = ": ".join(filter(None, (who, detail)))
        texts.append(f"{shown} ({reason_text})" if reason_text else shown)
    more = f"; {len(found) - _SHOWN} more reasons" if len(found) > _SHOWN else ""
    return ": " + "; ".join(texts) + more if texts else ""


def _product(file: RunFile) -> list[str]:
    spec = file.spec
    each = f"{spec}, {as_size(spec.nbytes)}"
    if spec.kind == "sparse":
        rows = file.nb_rows
        each = f"{spec}; {rows} in all, {rows / max(1, len(file)):.3g} a frame"
    lines = _row("each", [each])
    if spec.labels:
        lines += _row("rows", [", ".join(spec.labels)])
    if spec.dtype.names:
        lines += _row("columns", [", ".join(spec.dtype.names)])
    if spec.to_detector is not None:
        lines += _row("to_detector", [str(spec.to_detector)])
    return lines


def _about_run(file: RunFile) -> list[str]:
    info = file.facts.detector.get("info", {})
    height, width = info.get("shape", (0, 0))
    lines = _row(
        "detector",
        [f"{info.get('name')} ({info.get('model')}), {height} × {width} {info.get('dtype')}"],
    )
    parameters = file.parameters
    asked = parameters["hardware"].get("acquisition", {})
    lines += _row("acquisition", [", ".join(_setting(*item) for item in asked.items())])
    lines += _tasks(parameters["pipeline"].get("tasks", {}))
    lines += _row("rois", [f"{name}  {list(box)}" for name, box in file.rois.items()])
    lines += _row("metadata", list(_leaves(file.metadata)))
    lines += _row("logs", [_log_line(name, series) for name, series in file.logs.items()])
    lines += _row("started", [file.started])
    lines += _row("ended", [file.ended] if file.ended else [])
    digests = file.facts.parameters.digests()
    lines += _row("parameters", [f"{name}  sha256 {text}" for name, text in digests.items()])
    return lines


def _leaves(tree: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """The metadata, a line for each value: `sample.name  insulin`."""
    for name, value in tree.items():
        if isinstance(value, Mapping) and value.keys() == {"value", "units"}:
            yield f"{above}{name}  {value['value']} {value['units']}"
        elif isinstance(value, Mapping):
            yield from _leaves(value, f"{above}{name}.")
        elif value is not None:
            yield f"{above}{name}  {value}"


def _log_line(name: str, series: Series) -> str:
    numbers = [value for value in series.values if isinstance(value, float) and value == value]
    extent = f", {min(numbers):.4g} to {max(numbers):.4g} {series.units}" if numbers else ""
    return f"{name}  {len(series.times)} values{extent}".rstrip()


def _setting(name: str, value: object) -> str:
    return (
        f"{name} {as_time(value) if name.endswith('_time') and isinstance(value, float) else value}"
    )


def _tasks(tasks: dict[str, Any]) -> list[str]:
    """A line for every task: what comes out of it, and where its pixels lie."""
    rows = []
    for name, task in tasks.items():
        spec = FrameSpec.from_plain(task["product"])
        place = f"to_detector {spec.to_detector}" if spec.to_detector else ""
        rows.append((name, task["do"], f"from {', '.join(task['from'])}", str(spec), place))
    widths = [max(len(row[column]) for row in rows) for column in range(4)] if rows else []
    return _row(
        "tasks",
        [
            "  ".join(
                [*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]]
            ).rstrip()
            for row in rows
        ],
    )


def _file_line(path: Path) -> str:
    if not path.exists():
        return f"{path.name} (missing)"
    return f"{path.name}, {as_size(path.stat().st_size)}"


def _row(title: str, texts: list[str]) -> list[str]:
    """A titled line, and those that belong to it below."""
    return [f"  {title if number == 0 else '':<12}  {text}" for number, text in enumerate(texts)]
