"""What the options of `run` and `check` say: their texts as parameters, and the system they mean.

Numbers are read as YAML would read them, and judged by the models that they are meant for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lima2py.errors import BadParameter

if TYPE_CHECKING:
    from lima2py.session.system import System


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
            detector[parameter] = plain(value)
        else:
            graph[f"{owner}.{parameter}"] = plain(value)
    return graph, detector


def metadata_of(texts: list[str]) -> dict[str, Any]:
    """`--metadata` texts, files and values, as one tree; what comes later goes over the rest.

    Raises:
        BadParameter: if a file cannot be read, or holds what there is not.
    """
    from lima2py.metadata import merged, read_metadata

    found: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            if not Path(text).exists() and not text.endswith((".yaml", ".yml")):
                raise BadParameter(
                    f"--metadata {text}: should be a YAML file, and there is none of this name; or"
                    " NAME.PATH=VALUE, for instance sample.name=insulin"
                )
            found = merged(found, read_metadata(Path(text)))
            continue
        tree = plain(value)
        for step in reversed(key.strip().split(".")):
            tree = {step: tree}
        found = merged(found, tree)
    return found


def policies_of(texts: list[str]) -> dict[str, Any]:
    """`--policy` texts as the fields of `Policies`.

    Raises:
        BadParameter: if one is not `name=value`, or cannot be.
    """
    from lima2py.policies import Policies

    found: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise BadParameter(f"--policy {text}: should be NAME=VALUE, for instance overload=drop")
        found[key.strip()] = plain(value)
    Policies.load(found, "--policy")
    return found


def find_system(
    file: str | None,
    detector: str | None,
    acquisition_nodes: str | None,
    processing_nodes: str | None,
    detector_set: Mapping[str, Any],
) -> System:
    """The system that the options ask for.

    Raises:
        BadParameter: if it cannot be, or the options contradict each other.
    """
    from lima2py.session.system import System

    if file is None:
        return System.local(
            detector or "simulator",
            1 if acquisition_nodes is None else whole("--acquisition-nodes", acquisition_nodes),
            1 if processing_nodes is None else whole("--processing-nodes", processing_nodes),
            detector_set,
        )
    if acquisition_nodes is not None or processing_nodes is not None or detector is not None:
        raise BadParameter(
            "--system says which nodes and which detector there are: leave out --detector,"
            " --acquisition-nodes and --processing-nodes, or --system"
        )
    return System.read(Path(file), detector_set)


def asked_of(system: System, **options: str | None) -> dict[str, Any]:
    """The acquisition parameters that were given, read as YAML would read them; and how many."""
    from lima2py.control.preview import default_frames

    asked = {name: plain(text) for name, text in options.items() if text is not None}
    if "nb_frames" not in asked:
        asked["nb_frames"] = default_frames(system)
    return asked


def plain(text: str) -> Any:
    """The text of an option as YAML would read it."""
    from lima2py.documents import plain_scalar

    return plain_scalar(text)


def whole(option: str, text: str) -> int:
    """A whole number of an option.

    Raises:
        BadParameter: if it is none.
    """
    value = plain(text)
    if type(value) is not int:
        raise BadParameter(f"{option}: should be a whole number; given: {text}")
    return value


def duration(option: str, text: str) -> float:
    """A time of an option, in seconds; text may carry a unit.

    Raises:
        BadParameter: if it is none, or not more than 0.
    """
    from lima2py.units import seconds

    with suppress(ValueError):
        value = seconds(plain(text))
        if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf:
            return float(value)
    raise BadParameter(f"{option}: should be a time, like 30 or '500 ms'; given: {text}")


def stretch(option: str, text: str) -> tuple[int | None, int | None]:
    """The two ends of `A:B`, of which either may be left out.

    Raises:
        BadParameter: if it is none, or holds nothing.
    """
    ends = text.split(":")
    if len(ends) != 2 or not all(end == "" or end.isdecimal() for end in ends):
        raise BadParameter(f"{option}: should be like 10:20, 10: or :20; given: {text}")
    first, end = (int(part) if part else None for part in ends)
    if end is not None and (first or 0) >= end:
        raise BadParameter(f"{option} {text}: holds no frame; A should be less than B")
    return first, end
