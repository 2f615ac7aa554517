"""Values over time, of their own clock and not of the frames: the tree of NXlog below `logs`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import h5py
import numpy as np

from lima2py.storage.entry import run_of
from lima2py.storage.layout import TEXT_TYPE, iso_time, new_group, safe_name, safe_text


class Series(NamedTuple):
    """A value over time.

    Attributes:
        times: seconds since 1970, ascending.
        values: as many, all numbers or all text.
        units: of the values, as NeXus writes them: `K`, `mm`, `1/s`; empty if they have none.
    """

    times: Sequence[float]
    values: Sequence[float | str]
    units: str = ""


def write_logs(entry: h5py.Group, series: Mapping[str, Series], start: float) -> None:
    """Write `entry/logs/...`, an NXlog for each series.

    Args:
        entry: the NXentry; it has no logs yet.
        series: by name; the steps of a name, parted by `/`, become groups (NXcollection).
        start: what the times in the file begin at, seconds since 1970.
    """
    logs = new_group(entry, "logs", "NXcollection")
    for name, (times, values, units) in sorted(series.items()):
        *above, last = (safe_name(step) for step in name.split("/"))
        group = logs
        for step in above:
            group = new_group(group, step, "NXcollection")
        log = new_group(group, _free(group, last), "NXlog")
        log["time"] = np.array(times, np.float64) - start
        log["time"].attrs.update(units="s", start=iso_time(start))
        if values and isinstance(values[0], str):
            texts = [safe_text(str(value)) for value in values]
            log.create_dataset("value", data=texts, dtype=TEXT_TYPE)
        else:
            log["value"] = np.array(values, np.float64)
        if units:
            log["value"].attrs["units"] = safe_text(units)


def read_logs(entry: h5py.Group) -> dict[str, Series]:
    """What `write_logs` wrote; names as they stand in the file."""
    start = run_of(entry).started
    found: dict[str, Series] = {}

    def visit(name: str, log: h5py.Group | h5py.Dataset) -> None:
        if log.attrs.get("NX_class") != "NXlog":
            return
        value = log["value"]
        text = h5py.check_string_dtype(value.dtype)
        values = (value.asstr()[:] if text else value[:]).tolist()
        units = str(value.attrs.get("units", ""))
        found[name] = Series((log["time"][:] + start).tolist(), values, units)

    entry["logs"].visititems(visit)
    return found


def _free(group: h5py.Group, name: str) -> str:
    """The name, or one like it, if two names were made safe alike."""
    while name in group:
        name += "_"
    return name
