"""Settle where a run's files go, and refuse what cannot be, before any node prepares.

A sink's files all begin with one path, its prefix:

    {prefix}_{rank}_{number}.h5     what a node wrote
    {prefix}_master.h5              the frames of all nodes, in order
"""

from __future__ import annotations

import os
import re
import string
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import h5py

from lima2py.errors import BadParameter, StorageError, did_you_mean
from lima2py.storage.failures import telling
from lima2py.storage.layout import CREATOR
from lima2py.task import Sink

PLACES = ("name", "run", "sink")
"""What a template may contain in braces."""
MAX_NUMBER = 9999
_NODE_FILE = re.compile(r"_\d+_\d{5}\.h5")
_SUFFIX_ROOM = 32
"""Bytes left in a file name for what is put behind its prefix."""


@dataclass(frozen=True)
class Reservation:
    """Where the files of a run go.

    Attributes:
        paths: by sink, the absolute path its files begin with.
        created: folders that were made for it, outermost first.
    """

    paths: dict[str, str]
    created: list[Path] = field(default_factory=list)

    def release(self) -> None:
        """The run is given up: remove the folders made for it, if nothing lies in them."""
        for folder in reversed(self.created):
            with suppress(OSError):
                folder.rmdir()


def reserve(sinks: Mapping[str, Sink], output: Path, name: str, run: str) -> Reservation:
    """Settle the paths of all sinks; make their folders; clear the way as `exists` says.

    Args:
        sinks: by name in the graph.
        output: the folder everything goes to; made if it does not exist.
        name: what the user called the run.
        run: its id.

    Raises:
        BadParameter, StorageError: see `settle`; or if a folder cannot be written to.
    """
    paths = settle(sinks, output, name, run)
    reservation = Reservation({sink: str(path) for sink, path in paths.items()})
    try:
        for path in paths.values():
            _make_folder(path.parent, reservation.created)
    except BaseException:
        reservation.release()
        raise
    for path in paths.values():
        for old in files_of(path):
            with telling(old, "cannot be deleted"):
                old.unlink()
    return reservation


def settle(sinks: Mapping[str, Sink], output: Path, name: str, run: str) -> dict[str, Path]:
    """The path that the files of each sink will begin with; touches nothing.

    Args:
        sinks: by name in the graph.
        output: the folder everything goes to.
        name: what the user called the run.
        run: its id.

    Raises:
        BadParameter: if a template or name cannot be used, or two sinks write one file.
        StorageError: if files exist and may not be replaced.
    """
    output = Path(os.path.abspath(output))
    paths: dict[str, Path] = {}
    for sink, task in sinks.items():
        path = _place(output, task.file, {"name": name, "run": run, "sink": sink})
        for other, taken in paths.items():
            if taken == path:
                raise BadParameter(
                    f'task "{sink}", file: {task.file!r} is where task "{other}" writes already,'
                    f" {path}; put {{sink}} into both"
                )
        paths[sink] = path
    for sink, path in paths.items():
        policy = sinks[sink].exists
        paths[sink] = _make_way(sink, path, policy, set(paths.values()))
    return paths


def check_template(template: str) -> None:
    """Refuse a template with places that are not known.

    Raises:
        BadParameter: beginning with `file:`.
    """
    _fill(template, dict.fromkeys(PLACES, "x"))


def files_of(prefix: Path) -> list[Path]:
    """The files that lie at a prefix now: those of nodes, and the master."""
    if not prefix.parent.is_dir():
        return []
    with telling(prefix.parent, "cannot be looked into"):
        names = os.listdir(prefix.parent)
    begin = prefix.name
    return [
        prefix.parent / name
        for name in sorted(names)
        if name.startswith(begin)
        and (name == f"{begin}_master.h5" or _NODE_FILE.fullmatch(name, len(begin)))
    ]


def _fill(template: str, values: Mapping[str, str]) -> str:
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise BadParameter(f"file: {template!r}: {error}; write {{{{ for a brace") from None
    text = ""
    for literal, place, form, conversion in parts:
        text += literal
        if place is None:
            continue
        if place not in values:
            raise BadParameter(
                f"file: {template!r}: {{{place}}} means nothing here{did_you_mean(place, values)}"
            )
        if form or conversion:
            raise BadParameter(f"file: {template!r}: write {{{place}}}, with nothing behind it")
        text += values[place]
    return text


def _place(output: Path, template: str, values: Mapping[str, str]) -> Path:
    """The prefix a template gives, inside the output folder."""
    where = f'task "{values["sink"]}", '
    try:
        text = _fill(template, values)
    except BadParameter as error:
        raise BadParameter(f"{where}{error}") from None
    shown = f"{where}file: {template!r} gives {text!r}, which"
    if any(ord(char) < 32 or ord(char) == 127 for char in text):
        raise BadParameter(f"{shown} contains control characters; use letters, digits, - and _")
    try:
        os.fsencode(text).decode()
    except UnicodeError:
        raise BadParameter(f"{shown} is not valid text") from None
    stem = text.rpartition("/")[2]
    if not stem.strip() or stem in (".", ".."):
        raise BadParameter(f"{shown} names a folder; it should end in the beginning of a file name")
    path = Path(os.path.normpath(output / text))
    if not path.is_relative_to(output) or path == output:
        raise BadParameter(f"{shown} leads out of the output folder {output}; choose another one")
    longest = max(map(len, map(os.fsencode, path.parts[1:])))
    if longest > 255 - _SUFFIX_ROOM or len(os.fsencode(path)) > 4095 - _SUFFIX_ROOM:
        raise BadParameter(
            f"{where}file: {text[:40]!r}... is too long, {longest} bytes; a file name may have"
            f" {255 - _SUFFIX_ROOM} here"
        )
    return path


def _make_folder(folder: Path, created: list[Path]) -> None:
    """Make a folder with those above it, and try whether it can be written to."""
    missing = [place for place in (folder, *folder.parents) if not os.path.exists(place)]
    for place in reversed(missing):
        with telling(place, "cannot be made"):
            place.mkdir(exist_ok=True)
        created.append(place)
    with telling(folder, "cannot be written to"):
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(4096))
            probe.flush()


def _make_way(sink: str, path: Path, policy: str, taken: set[Path]) -> Path:
    """The prefix to use, given what lies there."""
    old = files_of(path)
    if not old:
        return path
    if policy == "append-number":
        free = (new for new in _numbered(path) if new not in taken and not files_of(new))
        return next(free)
    if policy == "overwrite":
        for file in old:
            _check_ours(file)
        return path
    more = f" and {len(old) - 1} more of it" if len(old) > 1 else ""
    raise StorageError(
        f'task "{sink}": {old[0]}{more} exists already; give another --name or --output, or say'
        f" what to do by `exists` of that task: abort (now), overwrite, append-number"
        f" (for instance --set {sink}.exists=append-number)"
    )


def _numbered(path: Path) -> Iterator[Path]:
    for number in range(1, MAX_NUMBER + 1):
        yield path.with_name(f"{path.name}_{number:04d}")
    raise StorageError(f"{path}_0001 to _{MAX_NUMBER} all exist; give another name")


def _check_ours(file: Path) -> None:
    """Refuse to overwrite a file another program wrote; a torn one counts as ours."""
    try:
        with h5py.File(file, "r", locking=False) as opened:
            creator = str(opened.attrs.get("creator", ""))
    except OSError:
        return
    if not creator.startswith(CREATOR):
        raise StorageError(
            f"{file} was written by {creator or 'another program'}, not by lima2py, and is not"
            " overwritten; give another name or output folder"
        )
