"""The files of a node after each single write to the disk, as a kill there would leave them.

Every write is recorded; then the files are put together again for every beginning of that record.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest

from lima2py.frame import Fate, FrameSpec
from lima2py.storage import steady
from lima2py.storage.entry import NodeEntry
from lima2py.storage.masters.rebuild import entries_of
from tests.storage.left_behind import IMAGES, PIXELS, TABLE, at_work, due
from tests.storage.made_up import LOST

ALONE = FrameSpec.dense(128, 128, np.uint16)


class Record:
    """What was done to files, call by call."""

    def __init__(self, patch: pytest.MonkeyPatch):
        self.calls: list[tuple[str, int, bytes | int]] = []
        """Path, where, and the bytes; or the length it was cut to, where nothing."""
        self.safe: list[tuple[int, int]] = []
        """How many calls there had been when so many frames were safe."""
        everything = {name: getattr(os, name) for name in dir(os) if not name.startswith("__")}
        mine = {"open": self._open, "pwrite": self._pwrite, "ftruncate": self._ftruncate}
        patch.setattr(steady, "os", SimpleNamespace(**{**everything, **mine}))

    def _open(self, path: str, flags: int, mode: int) -> int:
        self.calls.append((Path(path).name, -1, 0))  # always a new file
        return os.open(path, flags, mode)

    def _pwrite(self, fd: int, data: bytes, at: int) -> int:
        self.calls.append((_name(fd), at, bytes(data)))
        return os.pwrite(fd, data, at)

    def _ftruncate(self, fd: int, size: int) -> None:
        self.calls.append((_name(fd), -1, size))
        os.ftruncate(fd, size)

    def replay(self, count: int, files: dict[str, bytearray]) -> None:
        """The call of this number, done to what the files hold by then."""
        name, at, what = self.calls[count]
        content = files.setdefault(name, bytearray())
        if isinstance(what, int):
            del content[what:]
            content.extend(bytes(what - len(content)))
        else:
            content.extend(bytes(max(0, at - len(content))))
            content[at : at + len(what)] = what


def _name(fd: int) -> str:
    return Path(os.readlink(f"/proc/self/fd/{fd}")).name


@pytest.mark.parametrize(
    ("specs", "fields"),
    [
        ({"raw": IMAGES}, {}),
        ({"raw": ALONE}, {"compression": "none"}),
        ({"raw": ALONE}, {"compression": "bszstd", "frames_per_file": 7}),
        ({"hits": PIXELS}, {"checksum": True}),
        ({"hits": PIXELS, "raw": IMAGES, "sums": TABLE}, {"frames_per_file": 5}),
    ],
    ids=["small images", "images", "rotated", "sparse", "three sinks, rotated"],
)
def test_every_frame_that_is_safe_can_be_read_after_any_write(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    specs: Mapping[str, FrameSpec],
    fields: dict[str, Any],
) -> None:
    with monkeypatch.context() as patch, at_work(tmp_path / "live", specs, **fields) as nodes:
        record = Record(patch)
        for index in range(0, 18 if len(specs) == 1 else 12, 2):
            nodes.write(0, index, 2, absences={1: LOST} if index % 3 == 0 else {})
            record.safe.append((len(record.calls), index + 2))
    files: dict[str, bytearray] = {}
    held: dict[str, list[list[int]]] = {}
    for number in range(len(record.calls)):
        record.replay(number, files)
        name = record.calls[number][0]
        left = tmp_path / name
        left.write_bytes(files[name])
        held[name] = _held(left, specs)
        safe = max((frames for calls, frames in record.safe if calls <= number + 1), default=0)
        for sink in range(len(specs)):
            there = [frame for _, found in sorted(held.items()) for frame in found[sink]]
            assert there[:safe] == list(range(safe))
    assert len(record.calls) > 50


def _held(left: Path, specs: Mapping[str, FrameSpec]) -> list[list[int]]:
    """The frames of each sink that a file holds; it opens, unless it was never committed."""
    if not any(left.read_bytes()[:8]):
        return [[] for _ in specs]
    found = [entry for (entry,) in entries_of([left]).values()]  # of the sinks that have begun
    return [
        _frames(found[number], spec) if number < len(found) else []
        for number, spec in enumerate(specs.values())
    ]


def _frames(entry: NodeEntry, spec: FrameSpec) -> list[int]:
    """The frames a file holds by its records, each of which is what was written."""
    with h5py.File(entry.path, "r") as file:
        group = file[entry.group]["data"]
        data = {"data": group[()]} if entry.pointer is None else {
            name: group[name][()] for name in ("index", "intensity")
        }  # fmt: skip
    saved = np.flatnonzero(entry.fate == Fate.SAVED).tolist()
    assert {reason for _, _, reason in entry.absences if reason.detail} <= {LOST}
    for row in saved:
        if entry.pointer is None:
            frame = data["data"][row]
        else:
            begin, end = entry.pointer[row], entry.pointer[row + 1]
            frame = np.concatenate([data["index"][begin:end], data["intensity"][begin:end]])
        assert np.array_equal(frame, due(spec, int(entry.index[row])))
    absent = np.flatnonzero(entry.fate == Fate.DETECTOR_GAP).tolist()
    return sorted(entry.index[[*saved, *absent]].tolist())
