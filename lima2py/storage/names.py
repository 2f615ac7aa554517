"""Names of files: templates, and which files lie at a prefix.

All files of a sink begin with one path, its prefix, which `file` gives:

    {prefix}_{rank}_{number}.h5     what a node wrote, as `node_file` says; one after the other
    {prefix}_master.h5              the frames of all nodes, in order
    {prefix}_journal_{rank}.part    of an acquisition node: what became of the frames so far; only
                                    at the prefix of the first sink, and while the run goes on

While a file is not finished, `.part` stands behind its name.

Everything here is a function of names; only the functions that end in `_at` look at the disk.
"""

from __future__ import annotations

import os
import re
import string
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from lima2py.errors import BadParameter, did_you_mean
from lima2py.storage.failures import telling
from lima2py.task import RunContext

PLACES = ("name", "run", "sink", "date")
"""What `file` may contain in braces."""
NODE_FILE = "{file}_{rank}_{number}"
PART = ".part"
"""Stands behind the name of a file that is not finished."""
MASTER = "_master.h5"
FLAT_MASTER = "_master.json"
"""The master of flat files."""
JOURNAL = re.compile(rf"_journal_\d+{re.escape(PART)}\Z")
"""How the name of a journal ends."""

_LONGEST_NODE_FILE = 32
"""Bytes of a `node_file` besides its places."""
_PATTERNS = {
    "rank": r"(?P<rank>\d+)",
    "node": r"(?P<node>[A-Za-z][A-Za-z0-9-]*)",
    "number": r"(?P<number>\d{5,})",
}


class NodeName(NamedTuple):
    """What the name of a node's file tells.

    Attributes:
        path: of the file.
        rank: of the node, if its template has it.
        node: its name as it stands in file names, if the template has it.
        number: which of the node's files it is, from 0.
    """

    path: Path
    rank: int | None
    node: str | None
    number: int


def check_template(file: str) -> None:
    """Refuse a `file` with places that are not known.

    Raises:
        BadParameter: beginning with `file:`.
    """
    fill(file, dict.fromkeys(PLACES, "x"), "file")


def check_node_template(template: str) -> None:
    """Refuse a `node_file` by which the files of two nodes, or of two runs, could have one name.

    Every place behind an underscore, and values without any: so a name can be read backwards, and
    no file of one prefix looks like one of another.

    Raises:
        BadParameter: beginning with `node_file:`.
    """
    shown = f"node_file: {template!r}"
    text = fill(template, {"file": "", "rank": "0", "node": "x", "number": "0"}, "node_file")
    if "/" in text:
        raise BadParameter(
            f"{shown} contains a /, but the files of nodes lie beside their master; put folders"
            " into `file`"
        )
    if control_characters(text):
        raise BadParameter(f"{shown} contains control characters; use letters, digits, - and _")
    if len(os.fsencode(text)) > _LONGEST_NODE_FILE:
        raise BadParameter(f"{shown} is too long; put most of it into `file`")
    parts = _parts(template, "node_file")
    places = [place for _, place in parts if place is not None]
    if len(places) != len(set(places)):
        raise BadParameter(f"{shown} has a place twice; each can stand there once")
    if parts[:1] != [("", "file")] or "number" not in places or not {"rank", "node"} & set(places):
        raise BadParameter(
            f"{shown} should begin with {{file}} and contain {{number}} and {{rank}} or {{node}},"
            f" or two files would have one name; for instance {NODE_FILE}"
        )
    for literal, place in parts[1:]:
        if place is not None and not literal.endswith("_"):
            raise BadParameter(
                f"{shown}: put an underscore before {{{place}}}, or the files of one run could"
                " look like those of another"
            )


def node_path(prefix: str | Path, template: str, run: RunContext, number: int) -> str:
    """The path a file of a node will have once it is finished.

    Args:
        prefix: what the files of the sink begin with.
        template: a `node_file`.
        run: says which node it is.
        number: which of its files, from 0.
    """
    folder, stem = os.path.split(prefix)
    node = run.node.replace("_", "-")
    values = {"file": stem, "rank": str(run.rank), "node": node, "number": f"{number:05d}"}
    return os.path.join(folder, fill(template, values, "node_file") + ".h5")


def master_path(prefix: str | Path) -> str:
    """The path of the master once it is finished."""
    return f"{prefix}{MASTER}"


def journal_path(prefix: str | Path, rank: int) -> str:
    """The path of the journal of an acquisition node; `prefix` is that of the first sink."""
    return f"{prefix}_journal_{rank}{PART}"


def journals_of(paths: Mapping[str, str], folder: str) -> str:
    """What the journals of a run begin with, relative to a folder.

    Args:
        paths: by sink, in the order of the graph, what its files begin with.
        folder: of a file of the run.
    """
    return os.path.relpath(next(iter(paths.values())), folder)


def journals_at(prefix: Path) -> list[Path]:
    """The journals that lie at a prefix.

    Raises:
        StorageError: if the folder cannot be looked into.
    """
    return sorted(
        prefix.parent / name
        for name in _listed(prefix.parent)
        if name.startswith(prefix.name) and JOURNAL.fullmatch(name, len(prefix.name))
    )


def node_files_at(prefix: Path, template: str = NODE_FILE) -> list[NodeName]:
    """The files of nodes that lie at a prefix, finished or not, by rank or node, and number.

    Args:
        prefix: what the files of a sink begin with.
        template: its `node_file`.

    Raises:
        StorageError: if the folder cannot be looked into.
    """
    begin = re.escape(prefix.name)
    pattern = "".join(
        re.escape(literal) + (begin if place == "file" else _PATTERNS[place] if place else "")
        for literal, place in _parts(template, "node_file")
    )
    told = re.compile(rf"{pattern}\.(?!part\Z)[A-Za-z0-9]+({re.escape(PART)})?")
    found = []
    for name in _listed(prefix.parent):
        if seen := told.fullmatch(name):
            told_of = seen.groupdict()
            rank = None if told_of.get("rank") is None else int(told_of["rank"])
            path = prefix.parent / name
            found.append(NodeName(path, rank, told_of.get("node"), int(told_of["number"])))
    return sorted(found, key=lambda one: (one.rank or 0, one.node or "", one.number, one.path))


def unfinished_at(prefix: Path, template: str = NODE_FILE) -> list[Path]:
    """The files of nodes that lie at a prefix and are not finished: see `node_files_at`."""
    paths = (found.path for found in node_files_at(prefix, template))
    return [path for path in paths if path.name.endswith(PART)]


def files_at(prefix: Path, template: str = NODE_FILE) -> list[Path]:
    """All files that lie at a prefix, finished or not: of nodes, the master, journals.

    Args:
        prefix: what the files of a sink begin with.
        template: its `node_file`.

    Raises:
        StorageError: if the folder cannot be looked into.
    """
    masters = [
        path
        for suffix in (MASTER, f"{MASTER}{PART}", FLAT_MASTER)
        if os.path.lexists(path := Path(f"{prefix}{suffix}"))
    ]
    nodes = (found.path for found in node_files_at(prefix, template))
    return [*nodes, *masters, *journals_at(prefix)]


def longest_suffix(template: str = NODE_FILE) -> int:
    """How many bytes are put behind a prefix at most.

    Args:
        template: a `node_file`.
    """
    values = {"file": "", "rank": "0" * 5, "node": "x" * 64, "number": "0" * 6}
    own = fill(template, values, "node_file")
    return len(f"_0000{own}.jsonl{PART}".encode())


def fill(template: str, values: Mapping[str, str], field: str) -> str:
    """Put values into the places of a template.

    Args:
        template: text with places in braces.
        values: by place.
        field: the parameter the template came from, for the complaint.

    Raises:
        BadParameter: if it has a place that is not known, or cannot be read.
    """
    text = ""
    for literal, place in _parts(template, field):
        text += literal
        if place is None:
            continue
        if place not in values:
            raise BadParameter(
                f"{field}: {template!r}: {{{place}}} means nothing here"
                f"{did_you_mean(place, values)}"
            )
        text += values[place]
    return text


def control_characters(text: str) -> bool:
    """Whether there are any in a text."""
    return any(ord(char) < 32 or 127 <= ord(char) < 160 for char in text)


def _parts(template: str, field: str) -> list[tuple[str, str | None]]:
    """The literals of a template, each with the place behind it."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise BadParameter(f"{field}: {template!r}: {error}; write {{{{ for a brace") from None
    for _, place, form, conversion in parts:
        if form or conversion:
            raise BadParameter(f"{field}: {template!r}: write {{{place}}}, with nothing behind it")
    return [(literal, place) for literal, place, _, _ in parts]


def _listed(folder: Path) -> list[str]:
    if not os.path.isdir(folder):
        return []
    with telling(folder, "cannot be looked into"):
        return os.listdir(folder)
