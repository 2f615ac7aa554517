"""The tree of an HDF5/NeXus file of ours: names, attributes and links that every viewer follows.

    entry_0000                       NXentry, default → plot; a second sink: entry_0001
      instrument/<detector>          NXdetector
        data                         (frame, y, x), (frame, band, y, x), (frame, n), (frame, row)
        data/                        sparse: frame_ptr, index, intensity or other columns, nnz
        frames/                      one value per frame: index, fate, timestamp, ...
        absences/                    why frames have no data: first, last, fate, who, detail
        plot/                        NXdata: what is shown with no click
        params/                      of the acquisition and of every task, as a tree (master)
        detector_information/        what is known of the detector (master)
        to_detector                  3×3, from the pixels of `data` to those of the detector
      measurement/data               the same dataset again, where Lima's readers look
      lima2py/                       run: all about it as JSON; in the master also as a tree
      sparsify/configuration/data    sparse pixels: how they were found, as JSON
      logs/                          values taken down while the run went on (master)

Each choice has a reader behind it: fabio wants a creator that begins with `LIMA`, a default of
several steps and `measurement/data`; silx and nexusformat follow `default` to an NXdata; LiberTEM
takes the dataset with the most elements.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container, Iterable, Iterator, Mapping
from datetime import datetime
from functools import cache
from importlib.metadata import version as read_version
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from lima2py.frame import Absence, Array, Fate, FrameSpec
from lima2py.storage.names import PART
from lima2py.task import RunContext

CREATOR = "LIMA2PY"
MAX_CURVES = 32
"""The most rows of a table that are plotted."""

FATE_TYPE = h5py.enum_dtype({fate.word: int(fate) for fate in Fate}, basetype="u1")
TEXT_TYPE = h5py.string_dtype()
ABSENCE_COLUMNS: Mapping[str, np.dtype[Any]] = {
    "first": np.dtype("u8"),
    "last": np.dtype("u8"),
    "fate": FATE_TYPE,
    "who": TEXT_TYPE,
    "detail": TEXT_TYPE,
}
"""Of the table of absences."""


def entry_name(number: int) -> str:
    """Of the entry of the sink of this number, of those that share a file."""
    return f"entry_{number:04d}"


def entry_of(run: RunContext) -> str:
    """The entry of the sink a run context is made for: sinks of one path share files."""
    path = run.paths.get(run.task)
    sharing = [sink for sink, taken in run.paths.items() if taken == path]
    return entry_name(sharing.index(run.task) if run.task in sharing else 0)


def detector_name(run: RunContext) -> str:
    """The name of the detector's group."""
    return safe_name(str(run.detector.get("info", {}).get("name") or "detector"))


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
    """What stands where there are no data: the largest value of integers, nan of floats, False.

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


def new_file(file: h5py.File, run: RunContext) -> None:
    """Write what every file of a run begins with."""
    file.attrs.update(
        NX_class="NXroot",
        default=entry_name(0),
        creator=f"{CREATOR} {version()}",
        creator_version=version(),
        file_name=safe_text(Path(file.filename).name.removesuffix(PART)),
        file_time=iso_time(run.started),
        HDF5_Version=h5py.version.hdf5_version,
        h5py_version=h5py.version.version,
    )


def new_entry(file: h5py.File, name: str, spec: FrameSpec, run: RunContext) -> h5py.Group:
    """Write of a product what every file says of it.

    Args:
        file: to write to.
        name: of the entry.
        spec: of the frames.
        run: as the sink is told.

    Returns:
        The detector's group, still without data and records.
    """
    shown = "data" if spec.kind == "sparse" else "plot"
    entry = new_group(file, name, "NXentry")
    entry["title"] = safe_text(run.name)
    entry["entry_identifier"] = run.run
    entry["start_time"] = iso_time(run.started)
    entry["program_name"] = "lima2py"
    entry["program_name"].attrs["version"] = version()
    instrument = new_group(entry, "instrument", "NXinstrument")
    detector = new_group(instrument, detector_name(run), "NXdetector")
    detector.attrs["default"] = shown
    new_group(detector, "frames", "NXcollection")
    instrument.attrs["default"] = f"{detector_name(run)}/{shown}"
    entry.attrs["default"] = f"instrument/{detector_name(run)}/{shown}"
    if spec.to_detector is not None:
        place = detector.create_dataset("to_detector", data=np.array(spec.to_detector.matrix))
        place.attrs["meaning"] = (
            "detector (x, y, 1) = to_detector · (x, y, 1) of data; corners of pixels are whole"
            " numbers"
        )
    ours = new_group(entry, "lima2py", "NXcollection")
    ours["sink"] = safe_text(run.task)
    ours["spec"] = as_json(spec.plain())
    ours["run"] = as_json(run.plain())
    return detector


def describe_data(data: h5py.Dataset, spec: FrameSpec) -> None:
    """Say what the dataset is, for viewers."""
    if spec.kind == "dense":
        data.attrs["interpretation"] = "image"
        data.attrs["units"] = "counts"
    elif spec.kind == "vector":
        data.attrs["interpretation"] = "spectrum"


def saved_column(name: str, spec: FrameSpec) -> str:
    """What a column of sparse frames is called in a file: pixels have an `intensity` there."""
    return "intensity" if name == "value" and "index" in (spec.dtype.names or ()) else name


def describe_sparse(group: h5py.Group, spec: FrameSpec) -> None:
    """Say what sparse pixels are, for fabio and pyFAI; other sparse rows need no more.

    Args:
        group: that holds them; images that belong to them (`Task.maps`) are there already.
        spec: of the frames.
    """
    if not {"index", "value"} <= set(spec.dtype.names or ()):
        return
    group.attrs["dataformat"] = "sparsify-Bragg"  # what fabio looks for
    if "dummy" not in group:
        group["dummy"] = fill_value(spec.dtype["value"])
    if "mask" not in group:  # all pixels are valid: zeros that are never written
        group.create_dataset("mask", spec.image, np.float32)


def describe_record(record: h5py.Dataset, path: str) -> None:
    """Say what a per-frame value is."""
    if path == "frames/timestamp":
        record.attrs["units"] = "s"
        record.attrs["meaning"] = "seconds since 1970-01-01 UTC"


def no_value(dtype: np.dtype[Any]) -> Array:
    """The record of a frame of which nothing is known: nan, or 0."""
    return np.array(np.nan if dtype.kind == "f" else 0, dtype)


@cache
def column_path(name: str) -> str:
    """Where a per-frame value of the detector is kept; our own names stay ours."""
    name = safe_name(name)
    return f"frames/detector_{name}" if name in _OUR_COLUMNS else f"frames/{name}"


_OUR_COLUMNS = ("index", "fate", "node", "row", "attempts")


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


def link(entry: h5py.Group, detector: h5py.Group, spec: FrameSpec, run: RunContext) -> None:
    """Add the default plot and the measurement, once data and records exist."""
    if spec.kind == "sparse":
        plot = detector["data"]
        if "dataformat" in plot.attrs:
            found = new_group(entry, "sparsify", "NXcollection")
            config = new_group(found, "configuration", "NXcollection")
            config["data"] = as_json({"sparsify": {"cutoff_pick": _cutoff(run)}})
        plot.attrs["signal"] = "nnz"
        plot.attrs["axes"] = ["frame"]
    else:
        plot = new_group(detector, "plot", "NXdata")
        _link_plot(plot, detector, spec)
    plot["frame"] = detector["frames/index"]
    plot.attrs["frame_indices"] = 0
    measurement = new_group(entry, "measurement", "NXcollection")
    measurement["data"] = detector["data"]
    for name, record in detector["frames"].items():
        if name not in measurement:
            measurement[name] = record


def _cutoff(run: RunContext) -> float | None:
    """How many standard deviations above the background the pixels are that were kept, if known."""
    tasks: Mapping[str, Any] = run.parameters.pipeline.get("tasks", {})
    source = (tasks.get(run.task, {}).get("from") or [""])[0]
    cutoff: float | None = tasks.get(source, {}).get("parameters", {}).get("cutoff")
    return cutoff


def _link_plot(plot: h5py.Group, detector: h5py.Group, spec: FrameSpec) -> None:
    shown = [path.removeprefix("plot/") for path in curves(spec)]
    if shown:
        plot.attrs["signal"] = shown[0]
        plot.attrs["auxiliary_signals"] = np.array(shown[1:], dtype=TEXT_TYPE)
        plot.attrs["axes"] = ["frame"]
    else:
        plot["data"] = detector["data"]
        plot.attrs["signal"] = "data"
        plot.attrs["axes"] = ["frame", *["."] * (detector["data"].ndim - 1)]
    if spec.kind == "dense":
        plot.attrs["SILX_style"] = '{"signal_scale_type": "log"}'


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
    for name, dtype in ABSENCE_COLUMNS.items():
        group.create_dataset(name, (0,), dtype, maxshape=(None,), chunks=(256,))


def add_absences(
    group: h5py.Group,
    ranges: Iterable[tuple[int, int, Absence]],
    at: int,
    columns: Container[str] = ABSENCE_COLUMNS,
) -> int:
    """Write absences into their table from row `at` on; returns the row after them.

    Args:
        group: the table.
        ranges: first, last, reason.
        at: the row of the first of them.
        columns: which of its columns to write.
    """
    rows = [
        (first, last, int(reason.cause), safe_text(reason.who), safe_text(reason.detail))
        for first, last, reason in ranges
    ]
    if not rows:
        return at
    for name, values in zip(ABSENCE_COLUMNS, zip(*rows, strict=True), strict=True):
        if name in columns:
            group[name].resize((at + len(rows),))
            group[name][at:] = values
    return at + len(rows)


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
            group[key] = leaf(value)


def leaf(value: object) -> str | Array:
    """A plain value as HDF5 can hold it: what has no place there as JSON text."""
    if isinstance(value, str):
        return safe_text(value)
    try:
        array = np.array(value)
    except ValueError:  # lists of unequal length
        return as_json(value)
    return array if array.size and array.dtype.kind in "biuf" else as_json(value)
