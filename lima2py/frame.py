"""What flows: blocks of consecutive frames, what they look like, and why some have no data.

A `Block` carries the frames `index .. index + count - 1` of an acquisition through one edge of a
graph, described by its `FrameSpec`. Each of its frames has data or an `Absence`. Nothing in this
module changes once made; arrays are treated as read-only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Self

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
    NOT_TRIGGERED = 3
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
        """Whether a frame of this fate is missing: it should be there, and nobody rejected it."""
        return self.harm == 2

    @property
    def harm(self) -> int:
        """What it means for the frame as a whole: 0 nothing, 1 that it is rejected, 2 absent."""
        return _HARM.get(self, 2)


_HARM = {Fate.SAVED: 0, Fate.NOT_TRIGGERED: 0, Fate.REJECTED: 1}

FATES: Mapping[Fate, tuple[str, str]] = MappingProxyType(
    {
        Fate.NO_RECORD: ("nobody yet", "nothing is known; never in a finished file"),
        Fate.SAVED: ("sinks", "went through the graph and every sink on its way holds it"),
        Fate.REJECTED: ("task", "a task said no (veto)"),
        Fate.NOT_TRIGGERED: ("trigger map", "this event has no frame of that detector"),
        Fate.DETECTOR_GAP: ("plugin", "the detector skipped it"),
        Fate.DETECTOR_TIMEOUT: ("plugin", "the detector did not deliver it in time"),
        Fate.INCOMPLETE: (
            "plugin, join",
            "some of its modules are missing, or the frame of another detector",
        ),
        Fate.CORRUPT: ("plugin, join, decode", "it arrived damaged"),
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


NO_FRAME = Absence(Fate.NOT_TRIGGERED, FATES[Fate.NOT_TRIGGERED][0])
"""Of an event for which another detector takes no frame."""


Kind = Literal["dense", "vector", "table", "sparse", "encoded"]

SIZES = "nbytes"
"""The per-frame column that says how many bytes of an encoded frame are used."""


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
        kind: `dense` images; `vector` one row of numbers; `table` rows of named columns; `sparse`
            rows of named columns, in each frame another number of them (photons, peaks);
            `encoded` images compressed as the detector sent them, of which the column `nbytes` says
            how many bytes are used.
        shape: of one frame: `(bands, height, width)` dense, `(length,)` vector, `(rows,)` table;
            sparse: that of the image its rows tell about; encoded: the most bytes of a frame.
        dtype: of one element; a structured dtype for tables and sparse frames: of one row.
        to_detector: from the pixels here to those of the detector; None where there is no such map.
        labels: names of the rows of a table (its ROIs, say); empty where rows have no names.
        detector_shape: `(height, width)` of the whole detector that `to_detector` leads to; None
            if it is not known.
        span: how many consecutive frames of the detector each of these stands for: 1, or n after
            an accumulation, whose product g stands for the frames g n .. (g + 1) n - 1.
        decoded: of encoded frames, how they are compressed and what they are without that.
    """

    kind: Kind
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    to_detector: Affine | None = None
    labels: tuple[str, ...] = ()
    detector_shape: tuple[int, int] | None = None
    span: int = 1
    decoded: Decoded | None = None

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

    @classmethod
    def encoded(cls, image: FrameSpec, encoding: str, capacity: int) -> FrameSpec:
        """Compressed images.

        Args:
            image: what they are once they are decompressed.
            encoding: what they are compressed with, one of `codec.Encoding`.
            capacity: the most bytes that one takes.
        """
        decoded = Decoded(encoding, image)
        return cls("encoded", (capacity,), np.dtype(np.uint8), span=image.span, decoded=decoded)

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
            "span": self.span,
            "decoded": self.decoded and [self.decoded.encoding, self.decoded.image.plain()],
        }

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> FrameSpec:
        """The description that `plain` gave."""
        matrix = values["to_detector"]
        detector_shape = values["detector_shape"]
        decoded = values["decoded"]
        return cls(
            values["kind"],
            tuple(values["shape"]),
            dtype_of(values["dtype"]),
            Affine.from_matrix(matrix) if matrix else None,
            tuple(values["labels"]),
            tuple(detector_shape) if detector_shape else None,
            values["span"],
            Decoded(decoded[0], cls.from_plain(decoded[1])) if decoded else None,
        )

    def __str__(self) -> str:
        if self.decoded is not None:
            return f"{self.decoded.image}, {self.decoded.encoding}"
        if self.kind == "sparse":
            return f"sparse rows of {', '.join(self.dtype.names or ())}"
        if self.kind != "dense":
            return f"{self.kind} of {' × '.join(map(str, self.shape))}"
        bands = f"{self.bands} × " if self.bands > 1 else ""
        return f"{bands}{self.height} × {self.width}  {self.dtype}"


class Decoded(NamedTuple):
    """How encoded frames are compressed, and what they are without that."""

    encoding: str
    image: FrameSpec


@dataclass(frozen=True, slots=True)
class Ragged:
    """The data of sparse frames: the rows of all of them, one after the other.

    Attributes:
        offsets: int64 array, one longer than there are frames: frame i has the rows
            `offsets[i] .. offsets[i + 1] - 1`.
        columns: by name, arrays of length `offsets[-1]`.
    """

    offsets: NDArray[np.int64]
    columns: Mapping[str, Array]

    @classmethod
    def of(cls, counts: Array, columns: Mapping[str, Array]) -> Self:
        """From the number of rows of every frame."""
        offsets = np.zeros(len(counts) + 1, np.int64)
        np.cumsum(counts, out=offsets[1:])
        return cls(offsets, columns)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, frames: slice) -> Ragged:
        """Some consecutive frames; views of the columns."""
        first, end, step = frames.indices(len(self))
        if step != 1:
            raise ValueError("only consecutive sparse frames can be taken out")
        offsets = self.offsets[first : max(first, end) + 1]
        rows = slice(offsets[0], offsets[-1])
        columns = {name: values[rows] for name, values in self.columns.items()}
        return Ragged(offsets - offsets[0], columns)

    @property
    def counts(self) -> NDArray[np.int64]:
        """How many rows every frame has."""
        counts: NDArray[np.int64] = np.diff(self.offsets)
        return counts

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of one row."""
        return np.dtype([(name, values.dtype) for name, values in self.columns.items()])

    def rows(self, frame: int) -> Array:
        """The rows of one frame: a structured array, a copy."""
        first, end = self.offsets[frame], self.offsets[frame + 1]
        rows = np.empty(end - first, self.dtype)
        for name, values in self.columns.items():
            rows[name] = values[first:end]
        return rows


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame of a block, for whoever looks at frames one by one.

    Attributes:
        index: 0-based number in the acquisition.
        data: `(height, width)` or `(bands, height, width)`, a vector, a table, the rows of a sparse
            frame, the bytes of an encoded one; None if absent.
        absence: why there is no data, else None.
        timestamp: seconds since 1970, as the detector or its host gave it; nan if unknown.
    """

    index: int
    data: Array | None
    absence: Absence | None = None
    timestamp: float = float("nan")


_NO_ABSENCES: Mapping[int, Absence] = MappingProxyType({})
_ALONE: Mapping[str, Block] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive frames that travel together.

    Attributes:
        spec: what each frame looks like.
        index: the first frame's number in the acquisition; where `spec.span` is n, frames are
            counted in units of n.
        count: how many frames; 0 where an accumulation has none to give yet.
        data: array `(count, *spec.shape)`, or `Ragged` if they are sparse; None when every frame
            is absent. The data of an absent frame are undefined.
        absences: by offset in the block, for the frames that have no data.
        columns: per-frame values by name, arrays of length `count`: `timestamp` and what the
            detector adds.
        origin: which acquisition node sent it, and in which epoch of the run.
        acquired_at: when it was complete in the ring, seconds since 1970 by the clock of its
            acquisition node; nan if that is not known, as of what tasks make.
        companions: by the name of another detector, its frames of the same events, as many as
            here; only of blocks that have just come in.
    """

    spec: FrameSpec
    index: int
    count: int
    data: Array | Ragged | None
    absences: Mapping[int, Absence] = field(default_factory=lambda: _NO_ABSENCES)
    columns: Mapping[str, Array] = field(default_factory=dict)
    origin: tuple[int, int] = (0, 0)
    acquired_at: float = math.nan
    companions: Mapping[str, Block] = field(default_factory=lambda: _ALONE)

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
        if not isinstance(self.data, np.ndarray):
            raise ValueError(f"frames {self.index} to {self.end - 1} have no array of data")
        return self.data

    @property
    def rows(self) -> Ragged:
        """The data of a block of sparse frames that has some."""
        if not isinstance(self.data, Ragged):
            raise ValueError(f"frames {self.index} to {self.end - 1} have no sparse data")
        return self.data

    def payload(self, offset: int) -> NDArray[np.uint8]:
        """The bytes of an encoded frame, as the detector sent them."""
        return self.pixels[offset, : int(self.columns[SIZES][offset])]

    @property
    def present(self) -> NDArray[np.bool_]:
        """Which frames have data: booleans of length `count`."""
        mask = np.ones(self.count, dtype=bool)
        if self.absences:
            mask[list(self.absences)] = False
        return mask

    def carry(self, spec: FrameSpec, data: Array | Ragged | None) -> Block:
        """The same frames with other data: what a task gives for this block."""
        return Block(spec, self.index, self.count, data, self.absences, self.columns, self.origin)

    def refuse(self, absences: Mapping[int, Absence]) -> Block:
        """The same frames, some of them now absent; a frame absent before keeps its first cause."""
        merged = {**absences, **self.absences}
        data = self.data if len(merged) < self.count else None
        return Block(
            self.spec, self.index, self.count, data, merged, self.columns, self.origin,
            self.acquired_at, self.companions,
        )  # fmt: skip

    def frame(self, offset: int) -> Frame:
        """One of the frames, a view of the block's data."""
        times = self.columns.get("timestamp")
        time = float("nan") if times is None else float(times[offset])
        absence = self.absences.get(offset)
        if absence is not None or self.data is None:
            return Frame(self.index + offset, None, absence, time)
        if isinstance(self.data, Ragged):
            return Frame(self.index + offset, self.data.rows(offset), None, time)
        if self.spec.kind == "encoded":
            return Frame(self.index + offset, self.payload(offset), None, time)
        data = self.data[offset].reshape(self.spec.saved_shape)
        return Frame(self.index + offset, data, None, time)

    def frames(self) -> Iterator[Frame]:
        """The frames one by one."""
        return map(self.frame, range(self.count))

    def part(self, first: int, end: int) -> Block:
        """The frames from offset `first` to before `end`, views of the block's data."""
        absences = {
            offset - first: said for offset, said in self.absences.items() if first <= offset < end
        }
        count = end - first
        data = None if self.data is None or len(absences) == count else self.data[first:end]
        columns = {name: values[first:end] for name, values in self.columns.items()}
        companions = {name: block.part(first, end) for name, block in self.companions.items()}
        return Block(
            self.spec, self.index + first, count, data, absences, columns, self.origin,
            self.acquired_at, companions,
        )  # fmt: skip

    @classmethod
    def join(cls, parts: Sequence[Block]) -> Block:
        """Consecutive blocks of one spec as one, a copy; with the columns that all of them have."""
        first = parts[0]
        count = sum(part.count for part in parts)
        absences: dict[int, Absence] = {}
        at = 0
        for part in parts:
            absences.update({at + offset: said for offset, said in part.absences.items()})
            at += part.count
        columns = {
            name: np.concatenate([part.columns[name] for part in parts])
            for name in first.columns
            if all(name in part.columns for part in parts)
        }
        data = None if len(absences) == count else _joined(parts)
        return cls(first.spec, first.index, count, data, absences, columns, first.origin)


def _joined(parts: Sequence[Block]) -> Array | Ragged:
    """The data of consecutive blocks; those of absent frames are left as they happen to be."""
    spec = parts[0].spec
    if spec.kind == "sparse":
        counts = [
            part.data.counts if isinstance(part.data, Ragged) else np.zeros(part.count, np.int64)
            for part in parts
        ]
        some = [part.data for part in parts if isinstance(part.data, Ragged)]
        names = some[0].columns
        columns = {name: np.concatenate([item.columns[name] for item in some]) for name in names}
        return Ragged.of(np.concatenate(counts), columns)
    data = np.zeros((sum(part.count for part in parts), *spec.shape), spec.dtype)
    at = 0
    for part in parts:
        if part.data is not None:
            data[at : at + part.count] = part.data
        at += part.count
    return data
