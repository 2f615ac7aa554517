"""Settle where a run's files go, and refuse what cannot be, before any node prepares.

The paths of a run are taken by making the masters-to-be, `{prefix}_master.h5.part`: small HDF5
files that say for which run, locked until the run has ended. Of two runs that want one path the
second is refused. All that is deleted is deleted after that.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import h5py

from lima2py.errors import BadParameter, StorageError
from lima2py.storage.failures import HDF5_ERRORS, failure, telling
from lima2py.storage.layout import CREATOR, safe_text
from lima2py.storage.names import (
    NODE_FILE,
    PART,
    control_characters,
    files_at,
    fill,
    longest_suffix,
    master_path,
    unfinished_at,
)
from lima2py.storage.saving.sinks import Hdf5Sink
from lima2py.storage.steady import is_being_written
from lima2py.task import Sink

MAX_NUMBER = 9999
MUST_AGREE = ("exists", "node_file", "frames_per_file", "bytes_per_file", "if_fails")
"""What sinks that write into one file must have in common."""
ATTEMPTS = 100
"""How often others may take a path between our look and our grasp."""


class Taken(NamedTuple):
    """A master-to-be, open and locked."""

    path: Path
    descriptor: int

    @property
    def ours(self) -> bool:
        """Whether its path still leads to it, and not to a file put in its place."""
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self.descriptor))
        except FileNotFoundError:
            return False


@dataclass(frozen=True)
class Reservation:
    """Where the files of a run go.

    Attributes:
        paths: by sink, the absolute path its files begin with.
        created: folders that were made for it, outermost first.
        taken: the masters-to-be, locked.
        node_files: by path, how the files of nodes are called.
    """

    paths: dict[str, str]
    created: list[Path] = field(default_factory=list)
    taken: list[Taken] = field(default_factory=list)
    node_files: dict[str, str] = field(default_factory=dict)

    def clear(self) -> None:
        """Delete the files of nodes that died before the run began; living ones do it themselves.

        Raises:
            StorageError: if a folder cannot be looked into.
        """
        for prefix, template in self.node_files.items():
            for path in unfinished_at(Path(prefix), template):
                with suppress(FileNotFoundError):  # a living one does it just now
                    if not is_being_written(path):
                        path.unlink()

    def release(self) -> None:
        """The run has ended, or is given up; may be called twice.

        Masters-to-be are removed where no preview or master has replaced them, and folders if
        nothing lies in them.
        """
        for taken in self.taken:
            if taken.ours:
                taken.path.unlink()
            os.close(taken.descriptor)
        self.taken.clear()
        for folder in reversed(self.created):
            with suppress(OSError):
                folder.rmdir()


def reserve(sinks: Mapping[str, Sink], output: Path, name: str, run: str) -> Reservation:
    """Settle the paths of all sinks and take them; make folders; clear the way as `exists` says.

    Args:
        sinks: by name in the graph.
        output: the folder everything goes to; made if it does not exist.
        name: what the user called the run.
        run: its id.

    Raises:
        BadParameter, StorageError: see `settle`; or if a folder cannot be written to.
    """
    for _ in range(ATTEMPTS):
        paths = settle(sinks, output, name, run)
        reservation = Reservation(
            {sink: str(path) for sink, path in paths.items()},
            node_files={str(path): _node_file(sinks[sink]) for sink, path in paths.items()},
        )
        try:
            for path in dict.fromkeys(paths.values()):
                _make_folder(path.parent, Path(os.path.abspath(output)), reservation.created)
            old = _to_overwrite(sinks, paths)
            for path in dict.fromkeys(paths.values()):
                part = Path(f"{master_path(path)}{PART}")
                if part in old:
                    _delete(part)
                reservation.taken.append(_take(part, name, run))
            for file in old - {taken.path for taken in reservation.taken}:
                _delete(file)
            return reservation
        except FileExistsError:  # somebody was faster: look again
            reservation.release()
        except BaseException:
            reservation.release()
            raise
    raise StorageError(f"{output}: others take every path before we can; choose another name")


def settle(sinks: Mapping[str, Sink], output: Path, name: str, run: str) -> dict[str, Path]:
    """The path that the files of each sink will begin with; touches nothing.

    Args:
        sinks: by name in the graph.
        output: the folder everything goes to.
        name: what the user called the run.
        run: its id.

    Raises:
        BadParameter: if a template or name cannot be used, or two sinks cannot share a file.
        StorageError: if files exist and may not be replaced.
    """
    output = Path(os.path.abspath(output))
    _check_text(f"output {_short(str(output))}", str(output))
    values = {"name": name, "run": run, "date": time.strftime("%Y%m%d")}
    first: dict[Path, str] = {}
    wanted: dict[str, Path] = {}
    for sink, task in sinks.items():
        suffix = longest_suffix(_node_file(task))
        path = wanted[sink] = _place(output, task.file, {**values, "sink": sink}, suffix)
        if path in first:
            _check_agree(sink, task, first[path], sinks[first[path]], path)
        first.setdefault(path, sink)
    settled: dict[Path, Path] = {}
    for path, sink in first.items():
        avoid = {*first, *settled.values()}
        settled[path] = _make_way(sink, sinks[sink], path, avoid)
    return {sink: settled[path] for sink, path in wanted.items()}


def _node_file(task: Sink) -> str:
    return str(getattr(task, "node_file", NODE_FILE))


def _check_agree(sink: str, task: Sink, other: str, before: Sink, path: Path) -> None:
    """Refuse that a sink writes where another does, unless both can write one file."""
    who = f'task "{sink}"'
    if not (isinstance(task, Hdf5Sink) and isinstance(before, Hdf5Sink)):
        raise BadParameter(
            f'{who}, file: {task.file!r} is where task "{other}" writes already, {path}, and they'
            " cannot share a file; put {sink} into both"
        )
    for name in MUST_AGREE:
        ours, theirs = getattr(task, name), getattr(before, name)
        if ours != theirs:
            raise BadParameter(
                f'{who}, {name}: {ours!r} is given, and {theirs!r} in task "{other}", which writes'
                f" into the same file, {path}; give both the same, or put {{sink}} into `file` of"
                " both"
            )


def _place(output: Path, template: str, values: Mapping[str, str], suffix: int) -> Path:
    """The prefix a template gives, inside the output folder."""
    where = f'task "{values["sink"]}", '
    try:
        text = fill(template, values, "file")
    except BadParameter as error:
        raise BadParameter(f"{where}{error}") from None
    shown = f"{where}file: {template!r} gives {_short(text)}, which"
    _check_text(shown, text)
    if text.startswith("~"):
        raise BadParameter(f"{shown} begins with ~, which means nothing here; write the folder out")
    stem = text.rpartition("/")[2]
    if not stem.strip() or stem in (".", ".."):
        raise BadParameter(f"{shown} names a folder; it should end in the beginning of a file name")
    path = Path(os.path.normpath(output / text))
    if not path.is_relative_to(output) or path == output:
        raise BadParameter(f"{shown} leads out of the output folder {output}; choose another one")
    longest = max(map(len, map(os.fsencode, path.parts[1:])))
    if longest > 255 - suffix or len(os.fsencode(path)) > 4095 - suffix:
        raise BadParameter(
            f"{where}file: {_short(text)} is too long, {longest} bytes; a file name may have"
            f" {255 - suffix} here"
        )
    _check_inside(path.parent, output, shown)
    return path


def _check_text(shown: str, text: str) -> None:
    """Refuse what cannot be, or should not be, in a path."""
    if control_characters(text):
        raise BadParameter(f"{shown} contains control characters; use letters, digits, - and _")
    try:
        os.fsencode(text).decode()
    except UnicodeError:
        raise BadParameter(f"{shown} is not valid text") from None


def _short(text: str) -> str:
    return repr(text) if len(text) <= 100 else f"{text[:60]!r}..."


def _check_inside(folder: Path, output: Path, shown: str) -> None:
    """Refuse a folder that links of the output folder lead out of it."""
    real = os.path.realpath(folder)
    if not Path(real).is_relative_to(os.path.realpath(output)):
        raise BadParameter(
            f"{shown} leads out of the output folder {output}, by a symbolic link, to {real};"
            " choose another one"
        )


def _make_folder(folder: Path, output: Path, created: list[Path]) -> None:
    """Make a folder with those above it, and try whether it can be written to."""
    missing = [place for place in (folder, *folder.parents) if not os.path.lexists(place)]
    for place in reversed(missing):
        if place.is_relative_to(output):
            _check_inside(place, output, f"{place}")
        with telling(place, "cannot be made"):
            place.mkdir(exist_ok=True)
        created.append(place)
    _check_inside(folder, output, f"{folder}")
    with telling(folder, "cannot be written to"):
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(4096))
            probe.flush()


def _make_way(sink: str, task: Sink, path: Path, avoid: set[Path]) -> Path:
    """The prefix to use, given what lies there."""
    node_file = _node_file(task)
    old = files_at(path, node_file)
    if not old:
        return path
    if task.exists == "append-number":
        return next(
            new for new in _numbered(path) if new not in avoid and not files_at(new, node_file)
        )
    for file in old:
        if _in_use(file):
            raise StorageError(
                f'task "{sink}": {file} is still being written by {_writer(file)}, or a program'
                " holds it open; give another --name, or wait until it has ended"
            )
    if task.exists == "overwrite":
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


def _to_overwrite(sinks: Mapping[str, Sink], paths: Mapping[str, Path]) -> set[Path]:
    """The files that the sinks were told to overwrite."""
    return {
        file
        for sink, path in paths.items()
        if sinks[sink].exists == "overwrite"
        for file in files_at(path, _node_file(sinks[sink]))
    }


def _take(part: Path, name: str, run: str) -> Taken:
    """Make a master-to-be.

    Raises:
        FileExistsError: if somebody else has just made it, or deleted ours.
    """
    facts = {"run": run, "run_name": safe_text(name), "host": socket.gethostname()}
    with h5py.File(part, "w", driver="core", backing_store=False) as file:
        file.attrs.update(creator=CREATOR, **facts)
        file.flush()
        image = file.id.get_file_image()
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        taken = Taken(part, os.open(part, flags, 0o666))
    except FileExistsError:
        raise
    except OSError as error:
        raise failure(part, "cannot be made", error) from error
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(taken.descriptor, fcntl.LOCK_SH)
        if not taken.ours:
            raise FileExistsError(part)
        with telling(part, "cannot be written"):
            os.pwrite(taken.descriptor, image, 0)
    except BaseException:
        Reservation({}, taken=[taken]).release()
        raise
    return taken


def _in_use(file: Path) -> bool:
    """Whether somebody writes a file; those that are finished nobody does."""
    if not file.name.endswith(PART) or not _is_regular(file):
        return False
    with telling(file, "cannot be looked at"), suppress(FileNotFoundError):
        return is_being_written(file)
    return False


def _delete(file: Path) -> None:
    """Delete a file, unless somebody began to write it after we had looked."""
    with telling(file, "cannot be deleted"):
        try:
            with file.open("r+b") as held:
                if file.name.endswith(PART):
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if not Taken(file, held.fileno()).ours:
                        raise BlockingIOError  # somebody put another there meanwhile
                file.unlink()
        except FileNotFoundError:
            return
        except BlockingIOError:
            raise StorageError(
                f"{file} has just been taken by {_writer(file)}; give another name, or wait until"
                " it has ended"
            ) from None


def _is_regular(file: Path) -> bool:
    """Whether it is a file, and not a link, a folder or a device."""
    try:
        return stat.S_ISREG(file.lstat().st_mode)
    except FileNotFoundError:  # it is gone meanwhile
        return True


def _writer(file: Path) -> str:
    """The run that writes a file, as it says itself."""
    try:
        with h5py.File(file, "r", locking=False) as opened:
            if "run" in opened.attrs:
                facts = {**opened.attrs, "name": opened.attrs["run_name"]}
            else:
                (entry, *_) = opened.values()
                facts = json.loads(entry["lima2py/run"][()])
        return f'run "{facts["name"]}" ({facts["run"][:8]}) on {facts["host"] or "its host"}'
    except (*HDF5_ERRORS, TypeError):
        return "a run"


def _check_ours(file: Path) -> None:
    """Refuse to overwrite a file another program wrote; a torn one counts as ours."""
    if not _is_regular(file):
        what = "a link" if file.is_symlink() else "a folder" if file.is_dir() else "a device"
        raise StorageError(
            f"{file} is {what}, not a file of lima2py, and is not overwritten; give another name"
        )
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
