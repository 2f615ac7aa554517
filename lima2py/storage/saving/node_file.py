"""The files that one node writes at one prefix: one after the other, for one sink or several.

A file is called `....h5.part` until it is closed and has been looked at again. Its rows are safe
once `flush` has returned: data first, then the records that speak of them. A full disk shows at the
next `flush`, not at once: until then HDF5 believes that all is well (see `steady`), and the rows
keep their numbers. With patience, `flush` returns when there is room again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Self

import h5py

from lima2py.errors import StorageError
from lima2py.frame import Block, FrameSpec
from lima2py.storage.entry import alone
from lima2py.storage.failures import telling
from lima2py.storage.layout import entry_of, link, new_entry, new_file, safe_text
from lima2py.storage.names import PART, journals_of, master_path
from lima2py.storage.patience import Patience
from lima2py.storage.saving.records import Records
from lima2py.storage.saving.rows import Rows
from lima2py.storage.steady import SteadyFile
from lima2py.task import RunContext


class Limits(NamedTuple):
    """When a file is full; 0 where there is no limit."""

    frames: int = 0
    nbytes: int = 0


@dataclass(frozen=True)
class Product:
    """What one sink wants to have saved.

    Attributes:
        spec: of the frames as they lie in the file.
        run: as the sink is told; `task` is its name.
        rows: makes what writes the data of a file, given the detector's group.
        checksum: whether there is a checksum of every frame.
    """

    spec: FrameSpec
    run: RunContext
    rows: Callable[[h5py.Group], Rows]
    checksum: bool = False


class NodeFiles:
    """The files of one node at one prefix.

    Args:
        path_of: the path of the file of a number, with its suffix.
        limits: when the next file begins.
        patience: with a disk that refuses.

    Attributes:
        files: the paths of all that were begun and hold a frame, without `.part`.
        patience: as given.

    Raises:
        StorageError: from every method, if the disk or HDF5 refuses.
    """

    def __init__(self, path_of: Callable[[int], str], limits: Limits, patience: Patience):
        self.files: list[str] = []
        self.patience = patience
        self._path_of = path_of
        self._limits = limits
        self._products: dict[str, Product] = {}
        self._rows: dict[str, int] = {}
        self._file: NodeFile | None = None
        self._closed: set[str] = set()

    @classmethod
    def of(
        cls, run: RunContext, path_of: Callable[[int], str], limits: Limits, patience: Patience
    ) -> Self:
        """Those that the sinks of a node have in common at the prefix of this one."""
        key = f"files at {run.paths[run.task]}"
        found = run.shared.setdefault(key, cls(path_of, limits, patience))
        assert isinstance(found, cls)  # noqa: S101 - for the type checker
        return found

    def add(self, product: Product) -> None:
        """One more sink, before the first block."""
        self._products[product.run.task] = product
        self._rows[product.run.task] = 0
        if self._file is not None:  # begun again, so that it never lies there with a part of it
            self.files.remove(self._file.path)
            self._file.discard()
        self._file = self._begin()

    @property
    def first_sink(self) -> str:
        """Of those that share the files, the one that speaks for all."""
        return next(iter(self._products))

    def append(self, sink: str, block: Block, *others: Block) -> int:
        """Write the frames of a block, absent ones too; returns the row of the first."""
        first = self._rows[sink]
        self.patience.begun = True
        if self._file is not None and not any(self._limits):
            self._file.append(sink, block, *others)
            self._rows[sink] += block.count
            return first
        done = 0
        while done < block.count:
            file = self._ready(sink)
            room = self._limits.frames - file.rows(sink) if self._limits.frames else block.count
            take = min(room, block.count - done)
            whole = take == block.count
            part = [each if whole else each.part(done, done + take) for each in (block, *others)]
            file.append(sink, *part)
            self._rows[sink] += take
            done += take
        return first

    def flush(self) -> None:
        """Make all rows readable, whatever becomes of this process."""
        if self._file is not None:
            self._file.flush()

    def close(self, sink: str) -> None:
        """This sink has no more; the last one closes the file."""
        self._closed.add(sink)
        if self._file is not None and self._closed >= self._products.keys():
            file, self._file = self._file, None
            if not file.close():
                self.files.remove(file.path)

    def _ready(self, sink: str) -> NodeFile:
        """The file to write to: the next one if this one is full."""
        if self._file is not None and self._file.is_full(sink, self._limits):
            self._file.flush()  # while the disk refuses that, the file stays open
            file, self._file = self._file, None
            file.close()
        if self._file is None:
            self._file = self._begin()
        return self._file

    def _begin(self) -> NodeFile:
        path = self._path_of(len(self.files))
        file = NodeFile(path, self._products, self._rows, self.patience)
        self.files.append(path)
        return file


@dataclass
class _Entry:
    product: Product
    rows: Rows
    records: Records
    count: int = field(default=0)


class NodeFile:
    """A file being written.

    Args:
        path: of the file when it will be closed; nothing may be there.
        products: what goes into it, by sink.
        first_rows: how many frames of each lie in the files before, by sink.
        patience: with a disk that refuses.

    Raises:
        StorageError: from every method, if the disk or HDF5 refuses.
    """

    def __init__(
        self,
        path: str,
        products: Mapping[str, Product],
        first_rows: Mapping[str, int],
        patience: Patience,
    ):
        self.path = path
        self._patience = patience
        self._part = f"{path}{PART}"
        self._entries: dict[str, _Entry] = {}
        self._dirty = False
        with telling(path, "cannot be made"):
            if os.path.lexists(path):
                raise FileExistsError(17, os.strerror(17), path)
            self._disk = patience(lambda: SteadyFile(self._part, patience))
            try:
                self._file = h5py.File(self._part, "w", driver="fileobj", fileobj=self._disk)
                new_file(self._file, next(iter(products.values())).run)
                for sink, product in products.items():
                    self._lay_out(product, first_rows[sink])
                self._commit()
            except BaseException:
                self.discard()
                raise

    def rows(self, sink: str) -> int:
        """How many frames of a sink lie in it."""
        return self._entries[sink].count

    def is_full(self, sink: str, limits: Limits) -> bool:
        """Whether the next frame of this sink belongs into the next file."""
        count = self.rows(sink)
        return bool(count) and (0 < limits.frames <= count or 0 < limits.nbytes <= self._disk.size)

    def append(self, sink: str, block: Block, *others: Block) -> None:
        """Write the frames of a block, absent ones too."""
        entry = self._entries[sink]
        with telling(self.path, "cannot be written"):
            self._disk.catch_up()
            self._dirty = True
            entry.rows.put(block, *others)
        entry.records.note(block)
        entry.count += block.count

    def flush(self) -> None:
        """Make all rows readable, whatever becomes of this process."""
        if not self._dirty:
            return
        with telling(self.path, "cannot be written"):
            self._disk.catch_up()
            for entry in self._entries.values():
                entry.rows.make_safe()
                entry.records.write_words()
            self._commit()
            for entry in self._entries.values():  # after the frames they speak of
                if entry.records.waiting:
                    entry.rows.conclude()
                    entry.records.write()
            self._commit()
        self._dirty = False

    def close(self) -> bool:
        """Flush, close, look at it again, and give it its name; one without a frame is removed.

        Returns:
            Whether it is there.
        """
        if not any(entry.count for entry in self._entries.values()):
            self.discard()
            return False
        with telling(self.path, "cannot be closed"):
            try:
                self.flush()
                self._file.close()
                self._disk.commit()
                self._patience(self._look_again)
                self._patience(self._rename)
            finally:
                self._file.close()
                self._disk.close()
        return True

    def _lay_out(self, product: Product, first_row: int) -> None:
        run, spec, name = product.run, product.spec, entry_of(product.run)
        detector = new_entry(self._file, name, spec, run)
        entry = self._file[name]
        entry["lima2py"].attrs.update(
            node=safe_text(run.node),
            rank=run.rank,
            first_row=first_row,
            master=safe_text(os.path.basename(master_path(run.paths[run.task]))),
            journals=safe_text(journals_of(run.paths, os.path.dirname(self.path))),
        )
        rows = product.rows(detector)
        records = Records(detector, spec, checksum=product.checksum)
        link(entry, detector, spec, run)
        self._entries[run.task] = _Entry(product, rows, records)

    def _look_again(self) -> None:
        """Open the file as a reader would, before it is called finished."""
        with alone(self._part) as file:
            for entry in self._entries.values():
                index = file[entry_of(entry.product.run)]["measurement/index"]
                if len(index) != entry.count:
                    raise StorageError(
                        f"{self._part} has {len(index)} rows where {entry.count} were written; it"
                        " is left as it is"
                    )

    def _rename(self) -> None:
        if os.path.lexists(self.path):
            raise FileExistsError(17, os.strerror(17), self.path)
        os.rename(self._part, self.path)

    def _commit(self) -> None:
        self._file.flush()
        self._disk.commit()

    def discard(self) -> None:
        """Close and remove it."""
        if hasattr(self, "_file"):
            self._file.close()
        self._disk.close()
        Path(self._part).unlink(missing_ok=True)
