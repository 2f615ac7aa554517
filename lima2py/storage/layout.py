"""The tree of an HDF5/NeXus file of ours: names, attributes and links that every viewer follows.

    entry_0000                       NXentry, default → plot
      instrument/<detector>          NXdetector
        data                         (frame, y, x), (frame, band, y, x), (frame, n), (frame, row)
        frames/                      one value per frame: index, fate, timestamp, ...
        absences/                    why frames have no data: first, last, fate, who, detail
        plot/                        NXdata: what is shown with no click
        detector_information/        what is known of the detector
        to_detector                  3×3, from the pixels of `data` to those of the detector
      measurement/data               the same dataset again, where Lima's readers look
      lima2py/                       the run: parameters with their hashes, graph, ROIs, versions

Each choice has a reader behind it: fabio wants a creator that begins with `LIMA`, a default of
several steps and `measurement/data`; silx and nexusformat follow `default` to an NXdata; LiberTEM
takes the dataset with the most elements.
"""

from __future__ import annotations

import json
import math
import platform
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from functools import cache
from importlib.metadata import version as read_version
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from lima2py.frame import Absence, Array, Fate, FrameSpec
from lima2py.task import RunContext

ENTRY = "entry_0000"
CREATOR = "LIMA2PY"
RECORD_CHUNK = 1024
"""Frames per chunk of the per-frame records."""
MAX_CURVES = 32
"""The most rows of a table that are plotted."""

FATE_TYPE = h5py.enum_dtype({fate.word: int(fate) for fate in Fate}, basetype="u1")
TEXT_TYPE = h5py.string_dtype()


def detector_path(run: RunContext) -> str:
    """The path of the detector's group."""
    info = run.detector.get("info", {})
    return f"/{ENTRY}/instrument/{safe_name(str(info.get('name') or 'detector'))}"


def safe_name(name: str) -> str:
    """A name that NeXus allows: letters, digits and underscores, not beginning with a digit."""
    name = re.sub(r"[^A-Za-z0-9_]+", "_", name)[:63]
    return name if re.match(r"[A-Za-z_]", name) else f"_{name}"


def safe_text(text: str) -> str:
    """Text as HDF5 can hold it: no null characters, valid UTF-8."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def as_json(values: object) -> str:
    """Plain values as JSON text."""
    return safe_text(json.dumps(values, ensure_ascii=False, default=str))


def iso_time(seconds: float) -> str:
    """A time as NeXus wants it: ISO 8601 with the zone."""
    return datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="milliseconds")


def fill_value(dtype: np.dtype[Any]) -> NDArray[Any]:
    """What stands where there are no data: the largest value of integers, nan of floats.

    Returns:
        Array of no dimension; of a structured dtype, with each column filled.
    """
    fill = np.zeros((), dtype)
    if dtype.names:
        for name in dtype.names:
            fill[name] = fill_value(dtype[name].base)
    elif dtype.kind in "iu":
        fill[()] = np.iinfo(dtype).max
    elif dtype.kind in "fc":
        fill[()] = np.nan
    return fill


@cache
def version() -> str:
    """Of lima2py."""
    return read_version("lima2py")


def lay_out(file: h5py.File, spec: FrameSpec, run: RunContext) -> h5py.Group:
    """Write all that is known before the first frame.

    Returns:
        The detector's group, still without `data` and `frames`.
    """
    detector_at = detector_path(run)
    name = Path(file.filename).name
    file.attrs.update(
        NX_class="NXroot",
        default=ENTRY,
        creator=f"{CREATOR} {version()}",
        creator_version=version(),
        file_name=safe_text(name),
        file_time=iso_time(run.started),
        HDF5_Version=h5py.version.hdf5_version,
        h5py_version=h5py.version.version,
    )
    entry = new_group(file, ENTRY, "NXentry")
    default = "/".join([*detector_at.split("/")[2:], "plot"])
    entry.attrs["default"] = default
    entry["title"] = safe_text(run.name)
    entry["entry_identifier"] = run.run
    entry["start_time"] = iso_time(run.started)
    entry["program_name"] = "lima2py"
    entry["program_name"].attrs["version"] = version()
    instrument = new_group(entry, "instrument", "NXinstrument")
    instrument.attrs["default"] = "/".join(default.split("/")[1:])
    detector = new_group(file, detector_at, "NXdetector")
    detector.attrs["default"] = "plot"
    _describe_detector(detector, spec, run)
    _describe_run(new_group(entry, "lima2py", "NXcollection"), spec, run)
    return detector


def _describe_detector(detector: h5py.Group, spec: FrameSpec, run: RunContext) -> None:
    write_tree(detector, "detector_information", run.detector)
    info = run.detector.get("info", {})
    for name, key in (("description", "model"), ("serial_number", "serial")):
        if info.get(key):
            detector[name] = safe_text(str(info[key]))
    expo_time = run.parameters.hardware.get("acquisition", {}).get("expo_time")
    if expo_time is not None:
        detector["count_time"] = float(expo_time)
        detector["count_time"].attrs["units"] = "s"
    if spec.to_detector is None:
        return
    place = detector.create_dataset("to_detector", data=np.array(spec.to_detector.matrix))
    place.attrs["meaning"] = (
        "detector (x, y, 1) = to_detector · (x, y, 1) of data; corners of pixels are whole numbers"
    )
    if info.get("pixel_size"):
        width, height = info["pixel_size"]
        m = spec.to_detector
        for name, x, y in (("x_pixel_size", m.a, m.d), ("y_pixel_size", m.b, m.e)):
            detector[name] = math.hypot(x * width, y * height)
            detector[name].attrs["units"] = "m"


def _describe_run(group: h5py.Group, spec: FrameSpec, run: RunContext) -> None:
    group["sink"] = safe_text(run.task)
    group["nb_frames"] = run.nb_frames
    group["spec"] = as_json(spec.plain())
    group["graph"] = safe_text(run.graph)
    group["detector"] = as_json(run.detector)
    parameters = new_group(group, "parameters", "NXcollection")
    hashes = run.parameters.digests()
    for name, values in run.parameters._asdict().items():
        parameters[name] = as_json(values)
        parameters[name].attrs["sha256"] = hashes[name]
    rois = new_group(group, "rois", "NXcollection")
    rois.create_dataset("name", data=[safe_text(name) for name in run.rois], dtype=TEXT_TYPE)
    boxes = np.array(list(run.rois.values()), np.int64).reshape(-1, 4)
    rois.create_dataset("box", data=boxes).attrs["meaning"] = "x, y, width, height on the detector"
    versions = {
        "lima2py": version(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "h5py": h5py.version.version,
        "HDF5": h5py.version.hdf5_version,
    }
    write_tree(group, "versions", versions)


def describe_data(data: h5py.Dataset, spec: FrameSpec) -> None:
    """Say what the dataset is, for viewers."""
    if spec.kind == "dense":
        data.attrs["interpretation"] = "image"
        data.attrs["units"] = "counts"
    elif spec.kind == "vector":
        data.attrs["interpretation"] = "spectrum"


def new_record(detector: h5py.Group, path: str, dtype: np.dtype[Any]) -> h5py.Dataset:
    """A dataset that one value for each frame can be appended to."""
    record = detector.create_dataset(
        path,
        (0,),
        dtype,
        maxshape=(None,),
        chunks=(RECORD_CHUNK,),
        fillvalue=np.nan if dtype.kind == "f" else None,
    )
    describe_record(record, path)
    return record


def describe_record(record: h5py.Dataset, path: str) -> None:
    """Say what a per-frame value is."""
    if path == "frames/timestamp":
        record.attrs["units"] = "s"
        record.attrs["meaning"] = "seconds since 1970-01-01 UTC"


def unknown(count: int, dtype: np.dtype[Any]) -> Array:
    """Records of frames of which nothing is known: nan, or 0."""
    return np.full(count, np.nan if dtype.kind == "f" else 0, dtype)


def column_path(name: str) -> str:
    """Where a per-frame value of the detector is kept; our own names stay ours."""
    name = safe_name(name)
    return f"frames/detector_{name}" if name in _OUR_COLUMNS else f"frames/{name}"


_OUR_COLUMNS = ("index", "fate", "node", "row")


def curves(spec: FrameSpec) -> dict[str, tuple[str, int]]:
    """What is plotted of a table: by path, the column and the row; none of other products."""
    if spec.kind != "table" or not spec.dtype.names:
        return {}
    column = "sum" if "sum" in spec.dtype.names else spec.dtype.names[0]
    if spec.dtype[column].kind not in "biuf" or spec.dtype[column].shape:
        return {}
    found: dict[str, tuple[str, int]] = {}
    for row in range(min(spec.shape[0], MAX_CURVES)):
        label = safe_name(spec.labels[row]) if row < len(spec.labels) else f"row_{row}"
        path = f"plot/{label}_{column}"
        found[f"{path}_{row}" if path in found else path] = (column, row)
    return found


def link(detector: h5py.Group, spec: FrameSpec) -> None:
    """Add the default plot and the measurement, once data and records exist."""
    plot = new_group(detector, "plot", "NXdata")
    plot["frame"] = detector["frames/index"]
    shown = [path.removeprefix("plot/") for path in curves(spec)]
    if shown:
        plot.attrs["signal"] = shown[0]
        plot.attrs["auxiliary_signals"] = np.array(shown[1:], dtype=TEXT_TYPE)
        plot.attrs["axes"] = ["frame"]
    else:
        plot["data"] = detector["data"]
        plot.attrs["signal"] = "data"
        plot.attrs["axes"] = ["frame", *["."] * (detector["data"].ndim - 1)]
    plot.attrs["frame_indices"] = 0
    if spec.kind == "dense":
        plot.attrs["SILX_style"] = '{"signal_scale_type": "log"}'
    measurement = new_group(detector.file[ENTRY], "measurement", "NXcollection")
    measurement["data"] = detector["data"]
    for name, record in detector["frames"].items():
        if name not in measurement:
            measurement[name] = record


def absence_ranges(absences: Iterable[tuple[int, Absence]]) -> Iterator[tuple[int, int, Absence]]:
    """Frames that follow each other and are absent for the same reason: first, last, reason."""
    first = last = -1
    reason: Absence | None = None
    for index, absence in absences:
        if reason == absence and index == last + 1:
            last = index
            continue
        if reason is not None:
            yield first, last, reason
        first, last, reason = index, index, absence
    if reason is not None:
        yield first, last, reason


def new_absences(detector: h5py.Group) -> None:
    """The table of absences, empty."""
    group = new_group(detector, "absences", "NXcollection")
    for name, dtype in _ABSENCE_COLUMNS.items():
        group.create_dataset(name, (0,), dtype, maxshape=(None,), chunks=(256,))


def add_absences(group: h5py.Group, ranges: Iterable[tuple[int, int, Absence]], at: int) -> int:
    """Write absences into their table from row `at` on; returns the row after them."""
    rows = [
        (first, last, int(reason.cause), safe_text(reason.who), safe_text(reason.detail))
        for first, last, reason in ranges
    ]
    if not rows:
        return at
    for name, values in zip(_ABSENCE_COLUMNS, zip(*rows, strict=True), strict=True):
        group[name].resize((at + len(rows),))
        group[name][at:] = values
    return at + len(rows)


_ABSENCE_COLUMNS = {
    "first": np.dtype("u8"),
    "last": np.dtype("u8"),
    "fate": FATE_TYPE,
    "who": TEXT_TYPE,
    "detail": TEXT_TYPE,
}


def new_group(parent: h5py.Group, name: str, nx_class: str) -> h5py.Group:
    """A group of a NeXus class; one that exists is used."""
    group = parent.require_group(name)
    group.attrs["NX_class"] = nx_class
    return group


def write_tree(parent: h5py.Group, name: str, values: Mapping[str, Any]) -> None:
    """Plain values as a tree of groups; what has no place in HDF5 is written as JSON text."""
    group = new_group(parent, name, "NXcollection")
    for key, value in values.items():
        key = safe_text(str(key)).replace("/", "_") or "_"
        if isinstance(value, Mapping):
            write_tree(group, key, value)
        elif value is not None:
            group[key] = _leaf(value)


def _leaf(value: object) -> str | Array:
    if isinstance(value, str):
        return safe_text(value)
    try:
        array = np.array(value)
    except ValueError:  # lists of unequal length
        return as_json(value)
    return array if array.size and array.dtype.kind in "biuf" else as_json(value)
