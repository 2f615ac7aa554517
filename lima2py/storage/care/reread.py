"""What a master says, as it was told when the master was written: so it can be written again."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

import h5py
import numpy as np

from lima2py.storage.entry import (
    detector_group,
    entry_names,
    read_absences,
    run_of,
    spec_of,
    text_of,
)
from lima2py.storage.failures import HDF5_ERRORS, unreadable
from lima2py.storage.logs import read_logs
from lima2py.storage.masters.master import Ending, FrameTable, Saved
from lima2py.storage.names import PART
from lima2py.storage.reasons import Reasons


def reread(path: Path) -> tuple[list[Saved], Ending]:
    """What each sink saved, and how the run ended.

    Raises:
        StorageError: if it cannot be read.
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            names = entry_names(file)
            if not names:
                raise KeyError("it holds the frames of no sink")
            products = [_saved(path, file[name]) for name in names]
            entry = file[names[0]]
            about = entry["lima2py"]
            ending = Ending(
                text_of(about["outcome"]),
                about["errors"].asstr()[:].tolist(),
                read_logs(entry),
                datetime.fromisoformat(text_of(entry["end_time"])).timestamp(),
                bool(about.attrs["recovered"]),
            )
    except HDF5_ERRORS as error:
        raise unreadable(path, error) from error
    return products, ending


def _saved(path: Path, entry: h5py.Group) -> Saved:
    group = detector_group(entry)
    frames = group["frames"]
    fate = frames["fate"][:].astype(np.uint8)
    table = FrameTable(
        fate, frames["node"][:], frames["row"][:],
        Reasons.of_ranges(len(fate), read_absences(group)),
        frames["attempts"][:] if "attempts" in frames else None,
    )  # fmt: skip
    files: dict[int, list[str]] = {}
    for rank, name in files_of(entry):
        files.setdefault(rank, []).append(os.path.normpath(path.parent / name.removesuffix(PART)))
    name = entry.name.strip("/")
    return Saved(name, run_of(entry), spec_of(entry), table, files)


def files_of(entry: h5py.Group) -> list[tuple[int, str]]:
    """The files an entry of a master shows: rank of the node, and name relative to the master."""
    files = entry["lima2py/files"]
    return list(zip(files["node"][:].tolist(), files["name"].asstr()[:].tolist(), strict=True))
