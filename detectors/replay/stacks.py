"""Stacks of frames in HDF5 files, NeXus or not.

Files are never locked, so whoever may still be writing them is not disturbed.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  (makes HDF5 read bitshuffle, blosc and the like)
import numpy as np
from lima2py_detectors.replay.recorded import Facts, FramesFile, Sizes, Times, UnreadableError
from lima2py_detectors.replay.saved import absences_in

from lima2py.frame import Array
from lima2py.units import LENGTH_UNITS, TIME_UNITS

CHUNK_CACHE = 64 * 2**20
"""Bytes of unpacked chunks to keep: frames that share a chunk are unpacked once."""


class Hdf5File(FramesFile):
    """A stack of frames in an HDF5 file, NeXus or not.

    Args:
        path: of the file.
        dataset: its path in the file; found when not given.
    """

    def __init__(self, path: str, dataset: str | None):
        super().__init__(path)
        self._wanted = dataset
        self._file: h5py.File | None = None
        self._stack: Any = None
        self._times: Times | None = None

    def facts(self) -> Facts:
        """See `FramesFile`."""
        try:
            return self._facts()
        finally:
            self.close()

    def _facts(self) -> Facts:
        stack = self._open()
        shape = stack.shape
        count = shape[0] if len(shape) > 2 else 1
        bands = shape[1] if len(shape) == 4 else 1
        places = list(_around(stack))
        self._times = _times(places, count)
        x, y = _number(places, "x_pixel_size"), _number(places, "y_pixel_size")
        return Facts(
            (bands, *shape[-2:]),
            stack.dtype.newbyteorder("="),
            count,
            self._times,
            _number(places, "frame_time"),
            (x, y) if x and y else None,
            absences_in(self.path, count),
        )

    def _open(self) -> Any:
        try:
            file = h5py.File(self.path, "r", locking=False, rdcc_nbytes=CHUNK_CACHE)
        except OSError as error:
            raise UnreadableError(str(error)) from None
        self._file = file
        self._stack = self._named(file) if self._wanted else _find(file)
        for source in self._stack.virtual_sources() if self._stack.is_virtual else ():
            name = source.file_name
            if name != "." and "%" not in name and not (Path(self.path).parent / name).exists():
                raise UnreadableError(f"{name}, to which it refers for its frames, is missing")
        return self._stack

    def _named(self, file: h5py.File) -> Any:
        stack = file.get(self._wanted)
        if not _is_stack(stack, 2):
            raise UnreadableError(
                f"{self._wanted} is not a stack of images; leave `dataset` out to have it found"
            )
        return stack

    def read(self, first: int, step: int, out: Array, times: Times, sizes: Sizes) -> None:
        """See `FramesFile`."""
        stack = self._stack if self._file else self._open()
        frames = np.s_[first : first + len(out) * step : step]
        if stack.ndim == 2:
            stack.read_direct(out[0, 0])
        else:
            stack.read_direct(out if stack.ndim == 4 else out[:, 0], frames)
        self._put_times(first, step, times)

    def _put_times(self, first: int, step: int, times: Times) -> None:
        if self._times is not None:
            times[:] = self._times[first : first + len(times) * step : step]

    def close(self) -> None:
        """See `FramesFile`."""
        if self._file is not None:
            self._file.close()
            self._file = self._stack = None


def _is_stack(found: object, least: int) -> bool:
    return (
        isinstance(found, h5py.Dataset)
        and found.dtype.kind in "uif"
        and least <= found.ndim <= 4
        and found.size > 0
    )


def _find(file: h5py.File) -> Any:
    """The stack a viewer would show, else the largest one."""
    group: Any = file
    for _ in range(10):
        below = _named_by(group, "default")
        if not isinstance(below, h5py.Group):
            break
        group = below
    shown = _named_by(group, "signal")
    if _is_stack(shown, 3):
        return shown
    stacks: list[Any] = []
    file.visititems(lambda _, found: stacks.append(found) if _is_stack(found, 2) else None)
    if not stacks:
        raise UnreadableError("holds no stack of images; if it does, say which by `dataset: /path`")
    return max(stacks, key=lambda stack: (stack.ndim > 2, stack.size))


def _named_by(group: Any, attribute: str) -> Any:
    """What an attribute of a group names; None if there is nothing."""
    name = group.attrs.get(attribute)
    if isinstance(name, bytes):
        name = name.decode()
    return group.get(name) if isinstance(name, str) and name else None


def _around(stack: Any) -> Iterable[Any]:
    """The groups where NeXus keeps what belongs to a stack."""
    group = stack.parent
    while True:
        yield group
        instrument = group.get("instrument")
        if isinstance(instrument, h5py.Group):
            yield from (found for found in instrument.values() if isinstance(found, h5py.Group))
        if group == group.parent:
            return
        group = group.parent


def _number(places: Iterable[Any], name: str) -> float | None:
    """The first scalar of that name, in seconds or metres; None if there is none above 0."""
    for place in places:
        found = place.get(name)
        if isinstance(found, h5py.Dataset) and found.size == 1 and found.dtype.kind in "uif":
            unit = found.attrs.get("units")
            value = float(found[()].item()) * {**TIME_UNITS, **LENGTH_UNITS}.get(unit, 1.0)
            return value if value > 0 else None
    return None


def _column(places: Iterable[Any], count: int, *names: str) -> Any:
    """The first dataset of these names that has a value for each frame; None if there is none."""
    for place in places:
        for name in names:
            found = place.get(name)
            if isinstance(found, h5py.Dataset) and found.shape == (count,):
                return found
    return None


def _times(places: Iterable[Any], count: int) -> Times | None:
    """When each frame was recorded, as seconds since 1970."""
    column = _column(places, count, "timestamp", "frames/timestamp")
    if column is None or column.dtype.kind != "f":
        return None
    times: Times = column[()].astype(np.float64)
    start = column.attrs.get("start")
    if isinstance(start, str):  # NeXus: seconds after that
        times += datetime.fromisoformat(start).timestamp()
    return times
