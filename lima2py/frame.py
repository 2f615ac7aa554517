"""What flows: blocks of consecutive frames, what they look like, and why some have no data.

A `Block` carries the frames `index .. index + count - 1` of an acquisition through one edge of a
graph, described by its `FrameSpec`. Each of its frames has data or an `Absence`. Nothing in this
module changes once made; arrays are treated as read-only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lima2py.geometry import Affine, Roi

Array = NDArray[Any]


class Fate(IntEnum):
    """What became of a frame. The one table from which files, reports and documents are made.

    0 is the fill value of files: a row that was never written can never look saved.
    """

    NO_RECORD = 0
    SAVED = 1
    REJECTED = 2
    DETECTOR_GAP = 10
    DETECTOR_TIMEOUT = 11
    INCOMPLETE = 12
    CORRUPT = 13
    OVERRUN = 20
    NODE_LOST = 21
    POISON = 22
    DEADLINE = 23
    TASK_FAILED = 30
    NOT_SAVED = 31
    NOT_ACQUIRED = 40
    ABORTED = 41

    @property
    def word(self) -> str:
        """The name as it stands in files and reports: `detector_gap`."""
        return self.name.lower()

    @property
    def is_absent(self) -> bool:
        """Whether a frame of this fate is missing: neither saved nor rejected."""
        return self not in (Fate.SAVED, Fate.REJECTED)


FATES: Mapping[Fate, tuple[str, str]] = MappingProxyType(
    {
        Fate.NO_RECORD: ("nobody yet", "nothing is known; never in a finished file"),
        Fate.SAVED: ("sinks", "went through the graph and every sink on its way holds it"),
        Fate.REJECTED: ("task", "a task said no (veto)"),
        Fate.DETECTOR_GAP: ("plugin", "the detector skipped it"),
        Fate.DETECTOR_TIMEOUT: ("plugin", "the detector did not deliver it in time"),
        Fate.INCOMPLETE: ("plugin, join", "some of its modules are missing"),
        Fate.CORRUPT: ("plugin, join", "it arrived damaged"),
        Fate.OVERRUN: ("ring", "no room was left for it"),
        Fate.NODE_LOST: ("ledger", "the node that had it was lost"),
        Fate.POISON: ("ledger", "it brought down the nodes that took it"),
        Fate.DEADLINE: ("ledger", "its node did not finish it in time"),
        Fate.TASK_FAILED: ("flow", "a task failed on it"),
        Fate.NOT_SAVED: ("sink", "it could not be written"),
        Fate.NOT_ACQUIRED: ("run", "the run was stopped before it"),
        Fate.ABORTED: ("run", "the run was aborted"),
    }
)
"""Who says a fate, and what it means."""


class Absence(NamedTuple):
    """Why a frame has no data: the cause, who says so, and the detail in words."""

    cause: Fate
    who: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.cause.word} ({self.who}{': ' + self.detail if self.detail else ''})"


Kind = Literal["dense", "vector", "table", "sparse"]


def plain_dtype(dtype: np.dtype[Any]) -> Any:
    """A dtype as plain values: its code, or the name and code of each column."""
    return [list(column) for column in dtype.descr] if dtype.names else dtype.str


def dtype_of(plain: Any) -> np.dtype[Any]:
    """The dtype that `plain_dtype` gave."""
    return np.dtype([tuple(column) for column in plain] if isinstance(plain, list) else plain)


@dataclass(frozen=True, slots=True)
class FrameSpec:
    """What the frames of one edge look like.

    Attributes:
        kind: `dense` images; `vector` one row of numbers; `table` rows of named columns.
        shape: of one frame: `(bands, height, width)` dense, `(length,)` vector, `(rows,)` table.
        dtype: of one element; a structured dtype for tables.
        to_detector: from the pixels here to those of the detector; None where there is no such map.
        labels: names of the rows of a table (its ROIs, say); empty where rows have no names.
        detector_shape: `(height, width)` of the whole detector that `to_detector` leads to; None
            if it is not known.
    """

    kind: Kind
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    to_detector: Affine | None = None
    labels: tuple[str, ...] = ()
    detector_shape: tuple[int, int] | None = None

    @classmethod
    def dense(
        cls,
        height: int,
        width: int,
        dtype: DTypeLike,
        *,
        bands: int = 1,
        to_detector: Affine | None = None,
        detector_shape: tuple[int, int] | None = None,
    ) -> FrameSpec:
        """Images of `bands × height × width`; being the whole detector unless told otherwise."""
        if to_detector is None:
            to_detector = Affine()
            detector_shape = detector_shape or (height, width)
        shape = (bands, height, width)
        return cls("dense", shape, np.dtype(dtype), to_detector, detector_shape=detector_shape)

    @property
    def bands(self) -> int:
        """Number of bands (energy thresholds, colours) of a dense frame."""
        return self.shape[0]

    @property
    def height(self) -> int:
        """Rows of a dense frame."""
        return self.shape[1]

    @property
    def width(self) -> int:
        """Columns of a dense frame."""
        return self.shape[2]

    @property
    def image(self) -> tuple[int, int]:
        """`(height, width)` of a dense frame."""
        return self.shape[1], self.shape[2]

    @property
    def box(self) -> Roi:
        """The whole image as a rectangle, in pixels here."""
        return Roi(0, 0, self.width, self.height)

    @property
    def nbytes(self) -> int:
        """Bytes of one frame."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def saved_shape(self) -> tuple[int, ...]:
        """The shape of one frame in a file: a single band is dropped."""
        return self.shape[1:] if self.kind == "dense" and self.bands == 1 else self.shape

    def replace(self, **changes: Any) -> FrameSpec:
        """A copy with some attributes changed."""
        return replace(self, **changes)

    def plain(self) -> dict[str, Any]:
        """The description as plain values (JSON, messages, files)."""
        return {
            "kind": self.kind,
            "shape": list(self.shape),
            "dtype": plain_dtype(self.dtype),
            "to_detector": self.to_detector and [list(row) for row in self.to_detector.matrix],
            "labels": list(self.labels),
            "detector_shape": self.detector_shape and list(self.detector_shape),
        }

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> FrameSpec:
        """The description that `plain` gave."""
        matrix = values["to_detector"]
        detector_shape = values["detector_shape"]
        return cls(
            values["kind"],
            tuple(values["shape"]),
            dtype_of(values["dtype"]),
            Affine.from_matrix(matrix) if matrix else None,
            tuple(values["labels"]),
            tuple(detector_shape) if detector_shape else None,
        )

    def __str__(self) -> str:
        if self.kind != "dense":
            return f"{self.kind} of {' × '.join(map(str, self.shape))}"
        bands = f"{self.bands} × " if self.bands > 1 else ""
        return f"{bands}{self.height} × {self.width}  {self.dtype}"


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame of a block, for whoever looks at frames one by one.

    Attributes:
        index: 0-based number in the acquisition.
        data: `(height, width)` or `(bands, height, width)`, a vector, a table; None if absent.
        absence: why there is no data, else None.
        timestamp: seconds since 1970, as the detector or its host gave it; nan if unknown.
    """

    index: int
    data: Array | None
    absence: Absence | None = None
    timestamp: float = float("nan")


_NO_ABSENCES: Mapping[int, Absence] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive frames that travel together.

    Attributes:
        spec: what each frame looks like.
        index: the first frame's number in the acquisition.
        count: how many frames.
        data: array `(count, *spec.shape)`; None when every frame is absent. The data of an absent
            frame are undefined.
        absences: by offset in the block, for the frames that have no data.
        columns: per-frame values by name, arrays of length `count`: `timestamp` and what the
            detector adds.
        origin: which acquisition node sent it, and in which epoch of the run.
    """

    spec: FrameSpec
    index: int
    count: int
    data: Array | None
    absences: Mapping[int, Absence] = field(default_factory=lambda: _NO_ABSENCES)
    columns: Mapping[str, Array] = field(default_factory=dict)
    origin: tuple[int, int] = (0, 0)

    @classmethod
    def absent(
        cls,
        spec: FrameSpec,
        index: int,
        count: int,
        absence: Absence,
        columns: Mapping[str, Array] | None = None,
    ) -> Block:
        """Frames that are all absent, for one reason."""
        return cls(spec, index, count, None, dict.fromkeys(range(count), absence), columns or {})

    @property
    def end(self) -> int:
        """The number of the frame after the last one."""
        return self.index + self.count

    @property
    def pixels(self) -> Array:
        """The data of a block that has some; only such blocks come to most tasks."""
        if self.data is None:
            raise ValueError(f"none of the frames {self.index} to {self.end - 1} has data")
        return self.data

    @property
    def present(self) -> NDArray[np.bool_]:
        """Which frames have data: booleans of length `count`."""
        mask = np.ones(self.count, dtype=bool)
        if self.absences:
            mask[list(self.absences)] = False
        return mask

    def carry(self, spec: FrameSpec, data: Array | None) -> Block:
        """The same frames with other data: what a task gives for this block."""
        return Block(spec, self.index, self.count, data, self.absences, self.columns, self.origin)

    def refuse(self, absences: Mapping[int, Absence]) -> Block:
        """The same frames, some of them now absent; a frame absent before keeps its first cause."""
        merged = {**absences, **self.absences}
        data = self.data if len(merged) < self.count else None
        return Block(self.spec, self.index, self.count, data, merged, self.columns, self.origin)

    def frame(self, offset: int) -> Frame:
        """One of the frames, a view of the block's data."""
        times = self.columns.get("timestamp")
        time = float("nan") if times is None else float(times[offset])
        absence = self.absences.get(offset)
        if absence is not None or self.data is None:
            return Frame(self.index + offset, None, absence, time)
        data = self.data[offset].reshape(self.spec.saved_shape)
        return Frame(self.index + offset, data, None, time)

    def frames(self) -> Iterator[Frame]:
        """The frames one by one."""
        return map(self.frame, range(self.count))
