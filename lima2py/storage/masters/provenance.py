"""How frames came about, written into a master: detector, parameters, graph, versions, outcome."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from lima2py.frame import Fate, FrameSpec
from lima2py.storage.layout import (
    TEXT_TYPE,
    as_json,
    iso_time,
    new_group,
    safe_text,
    version,
    write_tree,
)
from lima2py.task import RunContext


def write_provenance(
    entry: h5py.Group, detector: h5py.Group, spec: FrameSpec, run: RunContext
) -> None:
    """What was known before the first frame, as a tree for people to look through."""
    write_tree(detector, "detector_information", run.detector)
    tasks = run.parameters.pipeline.get("tasks", {})
    used = {
        "acquisition": run.parameters.hardware.get("acquisition", {}),
        "processing": {
            task: {"do": said["do"], "from": ", ".join(said["from"]), **said.get("parameters", {})}
            for task, said in tasks.items()
        },
    }
    write_tree(detector, "params", used)
    group = entry["lima2py"]
    group["nb_frames"] = run.nb_frames
    group["graph"] = safe_text(run.graph)
    group["host"] = safe_text(run.host)
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


def write_ending(
    entry: h5py.Group,
    fate: NDArray[Any],
    outcome: str,
    errors: Sequence[str],
    ended: float | None,
    *,
    recovered: bool,
) -> None:
    """How the run ended, and how many frames met which fate."""
    entry["end_time"] = iso_time(time.time() if ended is None else ended)
    group = entry["lima2py"]
    group.attrs["recovered"] = recovered
    group["outcome"] = outcome
    group.create_dataset("errors", data=[safe_text(text) for text in errors], dtype=TEXT_TYPE)
    counts = new_group(group, "frames_by_fate", "NXcollection")
    fates, numbers = np.unique(fate, return_counts=True)
    for code, number in zip(fates.tolist(), numbers.tolist(), strict=True):
        counts[Fate(code).word] = number
