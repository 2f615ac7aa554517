"""Read a file of ours again, a master or what one node wrote: frames, records, and the run."""

from __future__ import annotations

import operator
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hdf5plugin  # noqa: F401  (frames are compressed with its filters)
import numpy as np
from numpy.typing import NDArray

from lima2py.errors import BadParameter, StorageError
from lima2py.frame import Absence, Array, Block, Fate, Frame, Ragged
from lima2py.storage.entry import ragged_columns, read_absences
from lima2py.storage.layout import no_value, saved_column
from lima2py.storage.reading.opened import OpenedFile
from lima2py.storage.reading.views import as_csr, as_dask, as_image, as_xarray, total

if TYPE_CHECKING:
    import dask.array
    import scipy.sparse
    import xarray
    from dask.delayed import Delayed

READ_BYTES = 64 * 2**20
"""About how much is read at once where all frames are."""
_NOT_THE_DETECTORS = ("index", "fate", "node", "row", "crc32")


def open(path: str | Path, sink: str | None = None) -> RunFile:
    """Open a file that lima2py wrote: a master, or what one node wrote; also a `.part` of these.

    Args:
        path: of the file.
        sink: which of the sinks that share the file; the first if not given.

    Raises:
        BadParameter: if no such sink wrote to it.
        StorageError: if it cannot be read, or is not ours.
    """
    return RunFile(path, sink)


class RunFile(OpenedFile):
    """What one sink saved, as a sequence of frames: `len(file)`, `file[3]`, `file[10:20]`.

    In a master every frame that was asked for has its row, so rows are numbers of frames; the file
    of a node has the frames of that node in the order they came. `file[i]` is an array of
    `file.spec.saved_shape`, `file[a:b]` one of as many frames, and `file[a:b, 10:20, 30:40]` a part
    of each. Where a frame is absent it holds the largest value of integers, nan of floats. Of
    sparse frames `file[i]` gives the rows, and `file[a:b]` a `Ragged`.

    Nothing but a few facts is read before it is asked for. A file that is being written, a `.part`,
    is seen as it was when it was opened: open it again to see more. What is known of the run is
    said by `OpenedFile`.

    Raises:
        StorageError: from whatever reads, also if a file with the frames asked for is missing.
    """

    def __repr__(self) -> str:
        return f"<{self.path.name}, {self.sink}: {len(self)} frames, each {self.spec}>"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of all frames together: `(frame, y, x)`; of sparse frames that of the images."""
        return (len(self), *self.spec.saved_shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of one element; of sparse frames, of one row."""
        return self.spec.dtype

    def __getitem__(self, key: Any) -> Any:
        """Frames by row; see the class."""
        frames, *within = key if isinstance(key, tuple) else (key,)
        axes = 0 if self.spec.kind == "sparse" else len(self.spec.saved_shape)
        if sum(one is not Ellipsis for one in within) > axes:
            raise IndexError(f"{key}: frames of {self.path} have {axes} axes")
        if isinstance(frames, slice):
            first, end, step = frames.indices(len(self))
            if step < 1 or (step > 1 and self.spec.kind == "sparse"):
                raise BadParameter(f"frames {first}:{end}:{step}: they are read forwards only")
            return self._take(slice(first, max(first, end), step), within)
        row = operator.index(frames)
        if not -len(self) <= row < len(self):
            raise IndexError(f"frame {row}: {self.path} has {len(self)} frames")
        row %= len(self)
        taken = self._take(slice(row, row + 1), within)
        return taken.rows(0) if isinstance(taken, Ragged) else taken[0]

    @property
    def nb_rows(self) -> int:
        """Of sparse frames, how many rows all of them have together."""
        return int(self.stored("data/frame_ptr", slice(len(self), None))[0])

    def frame(self, index: int) -> Frame:
        """One frame by its number in the acquisition.

        Raises:
            BadParameter: if the file has no record of it.
        """
        rows = np.flatnonzero(self.index == index)
        if not len(rows):
            raise BadParameter(f"frame {index}: {self.extent()}")
        row = int(rows[-1])
        return self.block(row, row + 1).frame(0)

    def first(self) -> int:
        """The number of the first frame with data.

        Raises:
            BadParameter: if there is none.
        """
        saved = self.index[self.fate == Fate.SAVED]
        if not len(saved):
            raise BadParameter(f"{self.extent()}, none of them with data")
        return int(saved.min())

    def block(self, first: int, end: int) -> Block:
        """The rows from `first` to before `end`, whose frames must follow each other, as a block.

        With the absences and the values of the detector as they were recorded.
        """
        absent = first + np.flatnonzero(self.fate[first:end] != Fate.SAVED)
        absences = {row - first: self._reason(row) for row in absent.tolist()}
        columns = {
            name: values[first:end]
            for name, values in self.records.items()
            if name not in _NOT_THE_DETECTORS
        }
        data = None if len(absences) == end - first else self[first:end]
        if isinstance(data, np.ndarray):
            data = data.reshape(-1, *self.spec.shape)
        index = int(self.index[first])
        return Block(self.spec, index, end - first, data, absences, columns)

    def blocks(self, first: int = 0, end: int | None = None, size: int = 0) -> Iterator[Block]:
        """All frames, or the rows from `first` to before `end`, as blocks of `size` frames at most.

        Args:
            first: row to begin with.
            end: the row to end before; the last if not given.
            size: as many as are read well at once if not given.
        """
        first, end, _ = slice(first, end).indices(len(self))
        size = size or max(1, READ_BYTES // max(1, self.spec.nbytes))
        goes_on = np.diff(self.index.astype(np.int64)) == 1
        while first < end:
            stop = min(end, first + size)
            gaps = np.flatnonzero(~goes_on[first : stop - 1])
            stop = first + int(gaps[0]) + 1 if len(gaps) else stop
            yield self.block(first, stop)
            first = stop

    def __iter__(self) -> Iterator[Any]:
        """The frames one by one, as `file[i]` gives them."""
        return map(self.__getitem__, range(len(self)))

    def dense(self, row: int) -> Array:
        """One frame as an image, also of sparse pixels: these are put upon zeros.

        Raises:
            BadParameter: if the frames are neither.
        """
        self.check_images()
        return as_image(self.spec, self[row])

    def total(self) -> np.ma.MaskedArray[Any, np.dtype[Any]]:
        """The sum of all frames with data; see `views.total`."""
        return total(self)

    def dask(self) -> dask.array.Array | list[Delayed]:
        """All frames, to be read by the workers of dask; see `views.as_dask`."""
        return as_dask(self)

    def xarray(self) -> xarray.DataArray | xarray.Dataset:
        """All frames with their coordinates, on dask; see `views.as_xarray`."""
        return as_xarray(self)

    def csr(self, frames: slice = slice(None)) -> scipy.sparse.csr_array:
        """Sparse pixels as a matrix `(frame, pixel)`; see `views.as_csr`."""
        return as_csr(self, frames)

    @cached_property
    def records(self) -> Mapping[str, Array]:
        """The per-frame values by name, read when asked for.

        `index`, `fate`, `timestamp` (seconds since 1970, nan where it is not known), what the
        detector adds, `node` (the rank of the node that had it, -1 if none) and `row` (where it
        lies among all that node wrote, -1 if nowhere).
        """
        return _Columns(self)

    @property
    def index(self) -> NDArray[np.uint64]:
        """By row, the number of the frame in the acquisition."""
        return self.records["index"]

    @property
    def fate(self) -> NDArray[np.uint8]:
        """By row, a `Fate`."""
        return self.records["fate"]

    @property
    def counts(self) -> dict[str, int]:
        """Frames by fate."""
        fates, numbers = np.unique(self.fate, return_counts=True)
        return {
            Fate(fate).word: number
            for fate, number in zip(fates.tolist(), numbers.tolist(), strict=True)
        }

    def absence(self, row: int) -> Absence | None:
        """Why a frame has no data, by row; None if it has."""
        return None if self.fate[row] == Fate.SAVED else self._reason(row)

    @cached_property
    def absences(self) -> list[tuple[int, int, Absence]]:
        """Why frames have no data: first and last index, and the reason; by first index."""
        found = self.read(lambda: read_absences(self.detector_group))
        return sorted(found, key=operator.itemgetter(0))

    @cached_property
    def lies_in(self) -> NDArray[np.int64]:
        """By row, the place in `files` of the file with the frame's row; -1 if there is none."""
        node, row = self.records["node"], self.records["row"]
        found = np.full(len(self), -1)
        for rank in {file.rank for file in self.files}:
            order = [number for number, file in enumerate(self.files) if file.rank == rank]
            order.sort(key=lambda number: self.files[number].first_row)
            firsts = np.array([self.files[number].first_row for number in order])
            ends = firsts + [self.files[number].rows for number in order]
            mine = np.flatnonzero((node == rank) & (row >= firsts[0]))
            number = np.searchsorted(firsts, row[mine], side="right") - 1
            inside = row[mine] < ends[number]
            found[mine[inside]] = np.array(order)[number[inside]]
        return found

    def read_into(self, rows: slice, out: Array) -> None:
        """Read images, vectors or tables of some rows to where they shall go.

        Args:
            rows: by steps forwards.
            out: C-contiguous, as many as there are rows.
        """
        rows = slice(*rows.indices(len(self)))
        target = out.reshape(-1, *self.spec.saved_shape)

        def read() -> None:
            self.check_there(rows)
            self.dataset("data").read_direct(target, rows)

        self.read(read)

    def _take(self, rows: slice, within: list[Any]) -> Array | Ragged:
        def take() -> Array | Ragged:
            self.check_there(rows)
            if self.spec.kind == "sparse":
                taken: Array | Ragged = self._ragged(rows)
            else:
                taken = self.dataset("data")[(rows, *within)]
            if self.is_part:  # a file may have got another name meanwhile
                self.check_there(rows)
            return taken

        return self.read(take)

    def _ragged(self, rows: slice) -> Ragged:
        pointer = self.dataset("data/frame_ptr")
        offsets = pointer[rows.start : rows.stop + 1].astype(np.int64)
        taken = slice(int(offsets[0]), int(offsets[-1]))
        columns = {
            name: self.dataset(f"data/{saved_column(name, self.spec)}")[taken]
            for name in self.spec.dtype.names or ()
        }
        if any(len(values) != taken.stop - taken.start for values in columns.values()):
            raise OSError(f"its columns have less than {taken.stop} rows")
        return Ragged(offsets - offsets[0], columns)

    def check_there(self, rows: slice) -> None:
        """Refuse to take the fill value for data because the file of a node is not there."""
        if not self._is_virtual:
            return
        saved = np.flatnonzero(self.fate[rows] == Fate.SAVED)
        places = self.lies_in[rows][saved]
        nowhere = saved[places < 0]
        if len(nowhere):
            row = rows.start + int(nowhere[0]) * rows.step
            raise StorageError(
                f"{self.path}: frame {row} was saved by node {self.records['node'][row]}, in a file"
                f" that could not be read when this one was written: lima2py info {self.path.name}"
            )
        missing = [
            str(self.files[number].path)
            for number in np.unique(places).tolist()
            if not self.files[number].path.exists()
        ]
        if missing:
            raise StorageError(
                f"{self.path}: its frames lie in files that are not there: {', '.join(missing)};"
                " keep all files of a run in one folder"
            )

    @cached_property
    def _is_virtual(self) -> bool:
        """Whether data lie in other files; the columns of sparse frames may have been copied."""
        columns = [f"data/{name}" for name in ragged_columns(self.spec)]
        name = columns[0] if self.spec.kind == "sparse" else "data"
        return bool(self.dataset(name).is_virtual)

    @cached_property
    def _firsts(self) -> list[int]:
        return [first for first, *_ in self.absences]

    def _reason(self, row: int) -> Absence:
        index, fate = int(self.index[row]), Fate(self.fate[row])
        number = bisect_right(self._firsts, index) - 1
        if number >= 0:
            _, last, reason = self.absences[number]
            if index <= last and reason.cause == fate:
                return reason
        return Absence(fate, "")

    def extent(self) -> str:
        """Which frames it has, for a person."""
        if not len(self):
            return f"{self.path} has no frames"
        return f"{self.path} has {len(self)} frames from {self.index.min()} to {self.index.max()}"


class _Columns(Mapping[str, Array]):
    """The per-frame values of a file, each read when it is first asked for."""

    def __init__(self, file: RunFile):
        self._file = file
        self._known: dict[str, Array] = {}
        names = file.read(lambda: list(file.detector_group["frames"]))
        self._names = names if file.is_master else [*names, "node", "row"]

    def __getitem__(self, name: str) -> Array:
        if name not in self._names:
            raise KeyError(name)
        if name not in self._known:
            self._known[name] = self._load(name)
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def _load(self, name: str) -> Array:
        count = len(self._file)
        if not self._file.is_master and name in ("node", "row"):
            part = self._file.files[0]
            rows: Array = part.first_row + np.arange(count)
            return np.full(count, part.rank) if name == "node" else rows
        values = self._file.stored(f"frames/{name}", slice(count))
        missing = count - len(values)  # in a file that is just being written
        return np.append(values, np.repeat(no_value(values.dtype), missing)) if missing else values
