"""`save_flat`: frames one after the other in a plain binary file, with JSON beside it.

    {prefix}_{rank}_{number}.raw      the frames, no header, as numpy.memmap reads them
    {prefix}_{rank}_{number}.jsonl    what they are, then a line for each block of frames
    {prefix}_master.json              where every frame of the run lies, and what became of it

The first two have `.part` behind their names until they are closed.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, PrivateAttr

from lima2py.codec import raw
from lima2py.errors import BadParameter
from lima2py.frame import Absence, Block, Fate, FrameSpec
from lima2py.storage.entry import NodeEntry
from lima2py.storage.failures import telling
from lima2py.storage.layout import fill_value
from lima2py.storage.masters.master import Ending, Saved, existing, put_in_place
from lima2py.storage.names import (
    FLAT_MASTER,
    NODE_FILE,
    PART,
    check_node_template,
    check_template,
    journals_of,
    node_path,
)
from lima2py.storage.patience import Patience
from lima2py.storage.steady import LockedFile
from lima2py.task import RunContext, Sink

FORMAT = "lima2py flat 1"


class SaveFlat(Sink):
    """Save frames as plain binary files with JSON beside them, for programs without HDF5.

    Every frame takes the same room, absent ones too, which hold the fill value: frame `row` begins
    at byte `row * bytes_per_frame`. `{file}_master.json` says for every frame of the run in which
    file and where it lies, and what became of it.
    """

    file: str = "{name}_{sink}"
    """Where its files begin, relative to the output folder; may contain {name}, {run}, {sink},
    {date}."""
    node_file: str = NODE_FILE
    """What the files of each node are called; may contain {file}, {rank} or {node}, and {number},
    which counts the files of a node."""
    frames_per_file: Annotated[int, Field(ge=0)] = 0
    """After so many frames a node begins the next file; 0: never."""

    _run: RunContext = PrivateAttr()
    _patience: Patience = PrivateAttr(default_factory=Patience)
    _file: _FlatFile | None = PrivateAttr(default=None)
    _paths: list[str] = PrivateAttr(default_factory=list)
    _rows: int = PrivateAttr(default=0)

    def prepare(self, spec: FrameSpec) -> FrameSpec:
        """Refuse what has no fixed size."""
        check_template(self.file)
        check_node_template(self.node_file)
        if spec.kind in ("sparse", "encoded") or spec.dtype.hasobject:
            raise BadParameter(
                f"from: frames of one size are needed, and what comes is {spec}; use save_sparse,"
                " save_table or save_raw"
            )
        self._spec = spec
        return spec

    def start(self, run: RunContext) -> None:
        """Make the first file."""
        self._run = run
        self._patience = Patience.of(self, run)
        self._begin()

    @property
    def saved(self) -> FrameSpec:
        """What the frames look like in the file."""
        return self._spec

    @property
    def files(self) -> list[str]:
        """See `Sink.files`."""
        return list(self._paths)

    @property
    def remarks(self) -> list[str]:
        """See `Sink`."""
        return self._patience.remarks

    @property
    def waiting(self) -> str:
        """See `Sink`."""
        return self._patience.waiting

    def write(self, block: Block, *others: Block) -> int:
        """See `Sink.write`."""
        first, done = self._rows, 0
        self._patience.begun = True
        while done < block.count:
            file = self._file
            if file is None or 0 < self.frames_per_file <= file.rows:
                file = self._begin()
            room = self.frames_per_file - file.rows if self.frames_per_file else block.count
            take = min(room, block.count - done)
            file.append(block.part(done, done + take))
            self._rows += take
            done += take
        return first

    def flush(self) -> None:
        """See `Task.flush`."""
        if self._file is not None:
            self._file.flush()

    def finish(self) -> None:
        """Close the file; one that never got a frame is removed."""
        file, self._file = self._file, None
        if file is not None and not file.close():
            self._paths.remove(file.path)

    def _begin(self) -> _FlatFile:
        if self._file is not None:
            self._file.flush()  # while the disk refuses that, the file stays open
            file, self._file = self._file, None
            file.close()
        prefix = self._run.paths[self._run.task]
        named = node_path(prefix, self.node_file, self._run, len(self._paths))
        path = f"{named.removesuffix('.h5')}.raw"
        self._file = _FlatFile(path, self._spec, self._run, self._rows, self._patience)
        self._paths.append(path)
        return self._file


class _FlatFile:
    """One binary file and its JSON, being written."""

    def __init__(
        self, path: str, spec: FrameSpec, run: RunContext, first_row: int, patience: Patience
    ):
        self.path = path
        self._patience = patience
        self.rows = 0
        self._spec = spec
        self._fill = fill_value(spec.dtype)
        self._lines: list[str] = []
        self._names = [f"{path}{PART}", f"{records_of(path)}{PART}"]
        head = {
            **_about(spec),
            "first_row": first_row,
            "master": f"{os.path.basename(run.paths[run.task])}{FLAT_MASTER}",
            "journals": journals_of(run.paths, os.path.dirname(path)),
            "spec": spec.plain(),
            "run": run.plain(),
        }
        with telling(path, "cannot be made"):
            for name in (path, records_of(path)):
                if os.path.lexists(name):
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
            self._data = patience(lambda: LockedFile(self._names[0]))
            try:
                self._records = patience(lambda: LockedFile(self._names[1]))
            except BaseException:
                self._data.close()
                os.unlink(self._names[0])
                raise
            said = json.dumps(head).encode() + b"\n"
            try:
                self._put(self._records, 0, said)
            except BaseException:
                self.close()
                raise
        self._said = len(said)

    def append(self, block: Block) -> None:
        whole = block.data is not None and not block.absences
        if whole:
            data = np.ascontiguousarray(block.pixels)
        else:
            data = np.broadcast_to(self._fill, (block.count, *self._spec.shape)).copy()
            if block.data is not None:
                data[block.present] = block.pixels[block.present]
        with telling(self.path, "cannot be written"):
            self._put(self._data, self.rows * self._spec.nbytes, raw(data))
        said: dict[str, Any] = {"row": self.rows, "index": block.index, "count": block.count}
        for name, values in block.columns.items():
            said[name] = [None if value != value else value for value in values.tolist()]
        if block.absences:
            said["absent"] = [[offset, reason.cause.word, reason.who, reason.detail]
                              for offset, reason in sorted(block.absences.items())]  # fmt: skip
        self._lines.append(json.dumps(said))
        self.rows += block.count

    def flush(self) -> None:
        if not self._lines:
            return
        text = "".join(f"{line}\n" for line in self._lines).encode()
        with telling(records_of(self.path), "cannot be written"):
            self._put(self._records, self._said, text)
        self._said += len(text)
        self._lines.clear()

    def close(self) -> bool:
        """Give the files their names; whether they hold a frame."""
        with telling(self.path, "cannot be closed"):
            try:
                if self.rows:
                    self.flush()
            finally:
                self._data.close()
                self._records.close()
            for name in reversed(self._names):  # the JSON first: `recover` goes by the other
                if self.rows:
                    self._patience(partial(os.rename, name, name.removesuffix(PART)))
                else:
                    os.unlink(name)
        return bool(self.rows)

    def _put(self, file: LockedFile, at: int, content: bytes | memoryview) -> None:
        self._patience(partial(file.put, at, content))


def write_flat_master(path: str, products: Sequence[Saved], ending: Ending) -> list[str]:
    """Write where every frame of a run lies; returns what is wrong with the files.

    Raises:
        StorageError: if it cannot be written.
    """
    (product,) = products  # flat files are never shared
    table, problems = product.table, []
    files: list[dict[str, Any]] = []
    for rank, paths in product.node_files.items():
        for raw_path in paths:
            try:
                first_row = head_of(raw_path)["first_row"]
            except (OSError, ValueError, KeyError) as error:
                problems.append(f"{raw_path} cannot be read: {error}")
                continue
            name = os.path.relpath(existing(raw_path), os.path.dirname(path))
            files.append({"node": rank, "first_row": first_row, "name": name})
    content = {
        "format": FORMAT,
        **_about(product.spec),
        "run": product.run.plain(),
        "outcome": ending.outcome,
        "errors": [*ending.errors, *problems],
        "files": files,
        "fates": {fate.word: int(fate) for fate in Fate},
        "frames": {
            "fate": table.fate.tolist(),
            "node": table.node.tolist(),
            "row": table.row.tolist(),
        },
    }
    with telling(path, "cannot be written"):
        put_in_place(path, json.dumps(content).encode())
    return problems


def _about(spec: FrameSpec) -> Mapping[str, Any]:
    """What a program needs to read the frames."""
    columns = [list(column) for column in spec.dtype.descr] if spec.dtype.names else None
    return {
        "format": FORMAT,
        "shape": list(spec.saved_shape),
        "dtype": columns or spec.dtype.str,
        "bytes_per_frame": spec.nbytes,
        "to_detector": spec.plain()["to_detector"],
    }


def records_of(path: str) -> str:
    """The JSON beside a binary file."""
    return f"{path.removesuffix('.raw')}.jsonl"


def head_of(path: str) -> dict[str, Any]:
    """The first line of the JSON beside a binary file."""
    with open(existing(records_of(path)), encoding="utf-8") as file:
        head: dict[str, Any] = json.loads(file.readline())
    return head


def read_flat(path: str) -> tuple[NodeEntry, str]:
    """The records of a binary file, which may still be written, and the path of its master.

    Args:
        path: of the file, without `.part`.

    Raises:
        OSError, ValueError, KeyError: if they cannot be read.
    """
    head = head_of(path)
    spec = FrameSpec.from_plain(head["spec"])
    length = os.path.getsize(existing(path)) // max(1, spec.nbytes)
    index: list[int] = []
    fate: list[int] = []
    absences: list[tuple[int, int, Absence]] = []
    with open(existing(records_of(path)), encoding="utf-8") as file:
        for line in list(file)[1:]:
            if not line.endswith("\n"):
                break  # its writer died here
            said = json.loads(line)
            fates = [int(Fate.SAVED)] * said["count"]
            for offset, word, who, detail in said.get("absent", ()):
                fates[offset] = int(Fate[word.upper()])
                frame = said["index"] + offset
                absences.append((frame, frame, Absence(Fate(fates[offset]), who, detail)))
            index += range(said["index"], said["index"] + said["count"])
            fate += fates
    entry = NodeEntry(
        Path(existing(path)), "", "", spec, RunContext.from_plain(head["run"]), head["first_row"],
        np.array(index[:length], np.uint64), np.array(fate[:length], np.uint8), {}, length, None,
        absences,
    )  # fmt: skip
    return entry, os.path.join(os.path.dirname(path), head["master"])
