"""Files of ours as h5py alone shows them, by the tree that is documented in `storage.layout`."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401 - registers the filters
import numpy as np

from lima2py.frame import Absence, Array, Fate


@dataclass
class Plain:
    """One entry of a file.

    Attributes:
        data: by column; of images, vectors and tables under the name `data`.
        frames: the per-frame records, by name.
        absences: why frames have no data, by number.
    """

    data: dict[str, Array]
    frames: dict[str, Array]
    absences: dict[int, Absence]

    def rows(self, columns: dict[str, str]) -> list[dict[str, Array]]:
        """Of sparse frames, one by one, the columns; given as the name here and in the file."""
        ends = self.data["frame_ptr"].astype(int)
        return [
            {name: self.data[there][first:last] for name, there in columns.items()}
            for first, last in pairwise(ends.tolist())
        ]


def detector_group(file: h5py.File, entry: str = "entry_0000") -> h5py.Group:
    """The detector's group of an entry."""
    (found,) = (
        group
        for group in file[entry]["instrument"].values()
        if group.attrs.get("NX_class") == "NXdetector"
    )
    return found


def read(path: str | Path, entry: str = "entry_0000") -> Plain:
    """Read an entry of a file, or of one that is still written."""
    with h5py.File(path, "r", locking=False) as file:
        group = detector_group(file, entry)
        # Records first: whatever they speak of is in the data, also while more is written.
        frames = {name: values[()] for name, values in group["frames"].items()}
        data = group["data"]
        columns = {"data": data[()]} if isinstance(data, h5py.Dataset) else {
            name: values[()] for name, values in data.items()
        }  # fmt: skip
        table = group["absences"]
        absences = {}
        # The words of a row may be there before it.
        for first, last, fate, who, detail in zip(
            table["first"][()].tolist(), table["last"][()].tolist(), table["fate"][()].tolist(),
            table["who"].asstr()[()], table["detail"].asstr()[()], strict=False,
        ):  # fmt: skip
            for frame in range(first, last + 1):
                assert frame not in absences, f"frame {frame} is absent twice"
                absences[frame] = Absence(Fate(fate), who, detail)
        return Plain(columns, frames, absences)


def same_bits(one: Array, other: Array) -> bool:
    """Whether two arrays have the same type, shape and bytes."""
    one, other = np.asarray(one), np.asarray(other)
    alike = one.dtype == other.dtype and one.shape == other.shape
    return alike and one.tobytes() == other.tobytes()
