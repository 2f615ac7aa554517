"""What is in a file, for a person and for a program: `lima2py info`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lima2py.frame import Fate, FrameSpec
from lima2py.storage.read import RunFile
from lima2py.units import as_size, as_time

_SHOWN = 8
"""The most stretches of absent frames that are listed for one fate."""


def describe_plain(path: str | Path) -> dict[str, Any]:
    """What is in a file, as plain values.

    Raises:
        StorageError: if it cannot be read or is not ours.
    """
    with RunFile(path) as file:
        parameters = file.parameters
        tasks = parameters["pipeline"].get("tasks", {})
        return {
            "path": str(file.path),
            "kind": "master" if file.is_master else "node file",
            "node": file.node,
            "run": file.run,
            "name": file.name,
            "sink": file.sink,
            "outcome": file.outcome,
            "errors": file.errors,
            "started": file.started,
            "ended": file.ended,
            "asked": file.nb_frames,
            "frames": len(file),
            "fates": file.counts,
            "absences": [
                [first, last, reason.cause.word, reason.who, reason.detail]
                for first, last, reason in file.absences
            ],
            "product": file.spec.plain(),
            "shape": [len(file), *file.spec.saved_shape],
            "columns": file.columns,
            "detector": file.detector,
            "graph": file.graph,
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
            "digests": file.digests,
            "files": [str(at) for at in file.files.values()],
            "missing": [str(at) for at in file.files.values() if not at.exists()],
        }


def describe(path: str | Path) -> str:
    """What is in a file, for a person.

    Raises:
        StorageError: if it cannot be read or is not ours.
    """
    with RunFile(path) as file:
        what = f"{file.outcome}" if file.is_master else f"file of node {file.node} alone"
        lines = [f'{file.path.name}: run "{file.name}" ({file.run[:8]}), {what}']
        lines += _frames(file)
        lines += _product(file)
        lines += _about_run(file)
        lines += _row("files", [_file_line(at) for at in file.files.values()])
        lines += _row("errors", file.errors)
    return "\n".join(lines)


def _frames(file: RunFile) -> list[str]:
    asked = f" of {file.nb_frames} asked" if file.nb_frames else ""
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
    lines = _row("each", [f"{spec}, {as_size(spec.nbytes)}"])
    if spec.labels:
        lines += _row("rows", [", ".join(spec.labels)])
    if spec.dtype.names:
        lines += _row("columns", [", ".join(spec.dtype.names)])
    if spec.to_detector is not None:
        lines += _row("to_detector", [str(spec.to_detector)])
    return lines


def _about_run(file: RunFile) -> list[str]:
    info = file.detector.get("info", {})
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
    lines += _row("per frame", [", ".join(file.columns)])
    lines += _row("started", [file.started])
    lines += _row("ended", [file.ended] if file.ended else [])
    lines += _row("parameters", [f"{name}  sha256 {text}" for name, text in file.digests.items()])
    return lines


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
