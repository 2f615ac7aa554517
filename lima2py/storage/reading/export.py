"""Write saved frames in other formats: `lima2py export`.

    cbf, tif, edf   an image file for each frame with data; needs fabio
    csr             sparse pixels as LiberTEM's raw_csr: a TOML file beside three flat ones
    raw             frames one after the other in one flat file, and JSON that says what they are

Values are never changed: what a format cannot hold is refused. In `csr` and `raw` every frame has
its place, also one that is absent: it has no pixels there, or the fill value.

Sources: https://github.com/silx-kit/fabio (images), https://libertem.github.io/LiberTEM/formats.html
(raw_csr).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from lima2py.codec import raw
from lima2py.errors import BadParameter, LimaError, StorageError
from lima2py.frame import Absence, Array, Fate, plain_dtype
from lima2py.storage.failures import telling
from lima2py.storage.layout import absence_ranges, fill_value
from lima2py.storage.names import MASTER
from lima2py.storage.reading.run_file import RunFile
from lima2py.storage.reading.views import as_image

FORMATS = ("cbf", "tif", "edf", "csr", "raw")
"""What can be written."""

_IMAGES: dict[str, tuple[str, str]] = {
    "cbf": ("whole numbers", "u1 i1 u2 i2 u4 i4 u8 i8"),
    "tif": ("whole numbers and float32", "u1 i1 u2 i2 u4 i4 u8 i8 f4"),
    "edf": ("whole numbers, float32 and float64", "u1 i1 u2 i2 u4 i4 u8 i8 f4 f8"),
}
"""What the formats of images hold, in words and as numpy's codes."""


class Exported(NamedTuple):
    """What was written.

    Attributes:
        files: the paths, in order.
        frames: how many frames with data they hold.
        absent: the frames that have none: first and last, and the reason.
    """

    files: list[Path]
    frames: int
    absent: list[tuple[int, int, Absence]]


def export(
    path: str | Path,
    to: str,
    folder: str | Path,
    *,
    frames: tuple[int | None, int | None] = (None, None),
    sink: str | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write frames in another format.

    Args:
        path: of a master or node file.
        to: the format, one of `FORMATS`.
        folder: where the new files go, made if need be; they are called like the file.
        frames: the number of the first frame, and the one to end before; None: all.
        sink: which of the sinks that share the file; the first if not given.
        overwrite: whether files of these names may be replaced.

    Raises:
        BadParameter: if the format cannot hold such frames, or there are none.
        LimaError: if fabio is missing.
        StorageError: if the file cannot be read, or the new ones exist or cannot be written.
    """
    with RunFile(path, sink) as file:
        _check(file, to)
        rows = _rows(file, *frames)
        make = {"csr": _as_csr, "raw": _as_raw}.get(to, partial(_as_images, to=to))
        place = Path(folder) / _stem(file)
        if os.path.lexists(folder) and not os.path.isdir(folder):
            raise BadParameter(f"folder: {folder} is a file; say where the new files shall go")
        with telling(folder, "cannot be made"):
            Path(folder).mkdir(parents=True, exist_ok=True)
        made = make(file, rows, place, overwrite)
        absent = [
            (int(file.index[row]), reason)
            for row in rows[file.fate[rows] != Fate.SAVED].tolist()
            if (reason := file.absence(row)) is not None
        ]
        return Exported(made, len(rows) - len(absent), list(absence_ranges(absent)))


def _rows(file: RunFile, first: int | None, end: int | None) -> Array:
    """The rows of the frames from one number to before another, in the order of these."""
    index = file.index.astype(np.int64)
    wanted = index >= (first or 0)
    if end is not None:
        wanted &= index < end
    backwards = np.flatnonzero(wanted)[::-1]
    if not len(backwards):
        until = "on" if end is None else f"to before {end}"
        raise BadParameter(f"frames: none from {first or 0} {until}: {file.extent()}")
    _, last = np.unique(index[backwards], return_index=True)  # of a frame that came twice, the last
    rows: Array = backwards[last]
    return rows


def _stem(file: RunFile) -> str:
    """What new files are called, before what tells them apart."""
    name = file.path.name.removesuffix(".part").removesuffix(MASTER).removesuffix(".h5")
    return name if len(file.sinks) == 1 else f"{name}_{file.sink}"


def _check(file: RunFile, to: str) -> None:
    """Refuse what a format cannot hold."""
    spec, pixels = file.spec, file.has_pixels
    what = f"and these are {spec}"
    if to not in FORMATS:
        raise BadParameter(f"to: {to}: should be one of {', '.join(FORMATS)}")
    if to == "csr":
        if not pixels:
            way = "read them by lima2py.open" if spec.kind == "sparse" else "choose raw"
            raise BadParameter(f"to: csr holds sparse pixels, {what}; {way}")
        return
    if spec.kind == "sparse" and (to == "raw" or not pixels):
        holds = "frames of one size" if to == "raw" else "images"
        way = "choose csr" if pixels else "read them by lima2py.open"
        raise BadParameter(f"to: {to} holds {holds}, {what}; {way}")
    if to == "raw":
        return
    if spec.kind in ("vector", "table"):
        raise BadParameter(f"to: {to} holds images, {what}; choose raw")
    dtype = spec.dtype["value"] if pixels else spec.dtype
    words, codes = _IMAGES[to]
    if dtype.str[1:] not in codes.split():
        fit = [name for name, (_, fits) in _IMAGES.items() if dtype.str[1:] in fits.split()]
        raise BadParameter(
            f"to: {to} holds {words}, and these are {dtype}: they would not stay as they are;"
            f" choose {' or '.join([*fit, 'csr' if pixels else 'raw'])}"
        )
    try:
        import fabio  # noqa: F401
    except ImportError:
        raise LimaError(
            f'to: {to} is written by fabio, which is missing: pip install "lima2py[replay]"'
        ) from None


def _as_images(file: RunFile, rows: Array, place: Path, overwrite: bool, to: str) -> list[Path]:
    """One file for each frame with data, and for each band."""
    import fabio

    saved = rows[file.fate[rows] == Fate.SAVED]
    bands = file.spec.bands if file.spec.kind == "dense" else 1
    paths = [
        [
            Path(f"{place}_{number:06d}{f'_band{band}' if bands > 1 else ''}.{to}")
            for band in range(bands)
        ]
        for number in file.index[saved].tolist()
    ]
    _check_free([path for some in paths for path in some], overwrite)
    kind = getattr(getattr(fabio, f"{to}image"), f"{to.capitalize()}Image")
    for row, names in zip(saved.tolist(), paths, strict=True):
        images = as_image(file.spec, file[row]).reshape(bands, *file.spec.image)
        for name, image in zip(names, images, strict=True):
            with _new(name) as (new, opened):
                opened.close()
                kind(data=image, header=_header(file, row, to)).write(str(new))
    return [path for some in paths for path in some]


def _header(file: RunFile, row: int, to: str) -> dict[str, str]:
    """What an image file says of its frame, in the words of the format's users."""
    index, stamp = int(file.index[row]), float(file.records["timestamp"][row])
    asked = file.parameters["hardware"].get("acquisition", {})
    exposure, latency = asked.get("expo_time"), asked.get("latency_time", 0.0)
    size = file.facts.detector.get("info", {}).get("pixel_size")
    known = not np.isnan(stamp)
    if to == "cbf":  # as PILATUS and EIGER write it
        lines = [f"Detector: {file.facts.detector.get('info', {}).get('name', 'unknown')}"]
        if known:
            lines.append(datetime.fromtimestamp(stamp).isoformat(timespec="microseconds"))
        if size is not None:
            lines.append(f"Pixel_size {size[0]:g} m x {size[1]:g} m")
        if exposure is not None:
            lines.append(f"Exposure_time {exposure * file.spec.span:g} s")
            lines.append(f"Exposure_period {(exposure + latency) * file.spec.span:g} s")
        lines += [f"Frame_index {index}", f"Run {file.facts.run}"]
        text = "\r\n".join(f"# {line.encode('ascii', 'replace').decode()}" for line in lines)
        return {
            "_array_data.header_convention": "PILATUS_1.2",
            "_array_data.header_contents": text,
        }
    header = {"acq_frame_nb": str(index), "run": file.facts.run}  # as Lima writes it
    if known:
        header["time_of_day"] = f"{stamp:.6f}"
    if exposure is not None:
        header["acq_expo_time"] = f"{exposure * file.spec.span:g}"
    return header


def _as_csr(file: RunFile, rows: Array, place: Path, overwrite: bool) -> list[Path]:
    """Three flat files, and the TOML file that LiberTEM loads."""
    spec = file.spec
    parts = {"indptr": np.dtype("u8"), "indices": spec.dtype["index"], "data": spec.dtype["value"]}
    names = {part: Path(f"{place}_{part}.raw") for part in parts}
    toml = Path(f"{place}.toml")
    _check_free([toml, *names.values()], overwrite)
    lines = [
        "[params]",
        'filetype = "raw_csr"',
        f"nav_shape = [{len(rows)}]",
        f"sig_shape = [{spec.image[0]}, {spec.image[1]}]",
        "",
        "[raw_csr]",
    ]
    for part, dtype in parts.items():
        lines += [f"{part}_file = {json.dumps(names[part].name)}", f'{part}_dtype = "{dtype.str}"']
    with (
        _new(names["indptr"]) as (_, pointer),
        _new(names["indices"]) as (_, indices),
        _new(names["data"]) as (_, data),
    ):
        pointer.write(np.zeros(1, "u8").tobytes())
        end = 0
        for first, last in _stretches(rows, max(1, _AT_ONCE // max(1, spec.nbytes))):
            part = file[first:last]
            pointer.write((end + part.offsets[1:]).astype("u8").tobytes())
            indices.write(raw(np.ascontiguousarray(part.columns["index"])))
            data.write(raw(np.ascontiguousarray(part.columns["value"])))
            end += int(part.offsets[-1])
    with _new(toml) as (_, text):  # last: who finds it finds the others
        text.write("\n".join([*lines, ""]).encode())
    return [toml, *names.values()]


def _as_raw(file: RunFile, rows: Array, place: Path, overwrite: bool) -> list[Path]:
    """One flat file, and JSON."""
    spec = file.spec
    data_path, json_path = Path(f"{place}.raw"), Path(f"{place}.json")
    _check_free([data_path, json_path], overwrite)
    with _new(data_path) as (_, data):
        for first, last in _stretches(rows, max(1, _AT_ONCE // max(1, spec.nbytes))):
            data.write(raw(np.ascontiguousarray(file[first:last])))
    stamps = file.records["timestamp"][rows]
    about = {
        "file": data_path.name,
        "frames": len(rows),
        "shape": list(spec.saved_shape),
        "dtype": plain_dtype(spec.dtype),
        "bytes_per_frame": spec.nbytes,
        "fill_value": _plain(fill_value(spec.dtype)),
        "to_detector": spec.plain()["to_detector"],
        "labels": list(spec.labels),
        "index": file.index[rows].tolist(),
        "fate": [Fate(fate).word for fate in file.fate[rows].tolist()],
        "timestamp": [None if np.isnan(stamp) else stamp for stamp in stamps.tolist()],
        "run": file.facts.plain(),
    }
    with _new(json_path) as (_, text):
        text.write(json.dumps(about).encode())
    return [data_path, json_path]


_AT_ONCE = 64 * 2**20
"""About how many bytes of frames are held in memory."""


def _plain(value: Array) -> Any:
    """A number, or those of the columns of a row, as JSON has them: nan is null."""
    if value.dtype.names:
        return {name: _plain(value[name]) for name in value.dtype.names}
    return value.tolist() if bool(np.all(value == value)) else None


def _stretches(rows: Array, most: int) -> Iterator[tuple[int, int]]:
    """Rows that follow each other: the first, and the one after the last."""
    cuts = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
    for begin, end in pairwise(cuts):
        for at in range(begin, end, most):
            yield int(rows[at]), int(rows[min(at + most, end) - 1]) + 1


def _check_free(paths: Sequence[Path], overwrite: bool) -> None:
    """Refuse to replace anything, unless that is wanted; before anything is written."""
    there = [path for path in paths if os.path.lexists(path)]
    if there and not overwrite:
        others = f" and {len(there) - 1} more exist" if len(there) > 1 else " exists"
        raise StorageError(f"{there[0]}{others} already; give another folder, or --overwrite")


@contextmanager
def _new(path: Path) -> Iterator[tuple[Path, IO[bytes]]]:
    """A file that gets its name once it is whole: how it is called until then, and itself."""
    with telling(path, "cannot be written"):
        temporary = path.with_name(f".{path.name}.part")
        try:
            with open(temporary, "wb") as file:
                yield temporary, file
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
