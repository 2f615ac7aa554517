"""How much a run will write, and whether the disks have room for it."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping
from math import ceil
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from lima2py.frame import FrameSpec
from lima2py.storage.names import master_path
from lima2py.storage.saving.sinks import Hdf5Sink
from lima2py.task import Sink
from lima2py.units import as_size


class Need(NamedTuple):
    """What one sink will write.

    Attributes:
        sink: its name.
        path: what its files begin with.
        result: what to open when the run is over.
        nbytes: of data, before compression; None if nobody knows.
        compressed: whether it will be less on the disk.
    """

    sink: str
    path: Path
    result: str
    nbytes: int | None
    compressed: bool

    def __str__(self) -> str:
        line = f"{self.sink} writes {self.result}"
        return line if self.nbytes is None else f"{line}, {self.amount}"

    @property
    def amount(self) -> str:
        """For a person: `2 GiB before compression`."""
        assert self.nbytes is not None  # noqa: S101 - for the type checker
        return f"{as_size(self.nbytes)}{' before compression' * self.compressed}"


def needs(
    sinks: Mapping[str, Sink],
    specs: Mapping[str, FrameSpec],
    paths: Mapping[str, Path],
    nb_frames: int,
    shares: Mapping[str, float] = MappingProxyType({}),
) -> list[Need]:
    """What the sinks of a run will write, all nodes together; records, a few bytes each, apart.

    Args:
        sinks: by name in the graph.
        specs: of the frames they save, by name.
        paths: what the files of each begin with.
        nb_frames: that the detector will give; 0 if nobody knows.
        shares: which part of these the sinks save, by name, if not all.
    """
    found = []
    for name, sink in sinks.items():
        spec = specs[name]
        known = nb_frames > 0 and spec.kind != "sparse"
        rows = ceil(nb_frames // spec.span * (shares.get(name, 1.0) if spec.span == 1 else 1.0))
        nbytes = rows * spec.nbytes if known else None
        compressed = spec.kind == "encoded" or getattr(sink, "compression", "none") != "none"
        path = paths[name]
        result = master_path(path) if isinstance(sink, Hdf5Sink) else f"{path}_*"
        found.append(Need(name, path, result, nbytes, compressed))
    return found


def shortages(wanted: list[Need]) -> list[str]:
    """A warning for every disk that has less room than is needed, as it is now.

    A quota, and what others will write meanwhile, nobody knows.

    Args:
        wanted: of all sinks.
    """
    of_disk: dict[int, list[Need]] = defaultdict(list)
    for need in wanted:
        if need.nbytes:
            of_disk[_existing(need.path).stat().st_dev].append(need)
    return [said for group in of_disk.values() if (said := _shortage(group))]


def _shortage(group: list[Need]) -> str:
    """The warning for one disk; empty if there is room."""
    folder = _existing(group[0].path)
    disk = os.statvfs(folder)
    free = disk.f_bavail * disk.f_frsize
    total = sum(need.nbytes or 0 for need in group)
    if total <= free:
        return ""
    each = ", ".join(f"{need.sink} {need.amount} ({need.path})" for need in group)
    return (
        f"warning: {as_size(free)} are free on the disk of {folder}, and more may be written to it:"
        f" {each}; make room, choose another output folder, or save less"
    )


def _existing(path: Path) -> Path:
    """The nearest folder above a path that is there."""
    return next(folder for folder in path.parents if os.path.isdir(folder))
