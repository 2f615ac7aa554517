"""Put frames aside that brought down the nodes they were given to: `lima2py isolate` tries them.

    {name}_{first of the run's id}_poison_{first frame}.h5

It is a file like that of a node, as the frames came from the detector, compressed ones too, with
what is needed to run the graph on them again; but no part of what the run saved: no master shows
it, and `recover` passes by.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from lima2py.codec import codec
from lima2py.errors import StorageError, in_words
from lima2py.frame import Block
from lima2py.storage.failures import telling
from lima2py.storage.layout import link, new_entry, new_file, safe_text
from lima2py.storage.masters.provenance import write_provenance
from lima2py.storage.names import PART
from lima2py.storage.saving.records import Records
from lima2py.storage.saving.rows import RaggedRows, Rows, Stacked
from lima2py.task import RunContext

SINK = "put_aside"
"""Stands in the file where those of nodes have the name of a sink."""


def put_aside(folder: Path, block: Block, context: RunContext, why: str) -> str:
    """Write a block to a file of its own.

    Args:
        folder: where to.
        block: as the detector gave it.
        context: of the run, as the acquisition node has it.
        why: its nodes were lost.

    Returns:
        For the report: where it lies, or why that could not be; nothing is raised.
    """
    which = f"frame {block.index} was" if block.count == 1 else (
        f"frames {block.index} to {block.end - 1} were"
    )  # fmt: skip
    path = folder / f"{context.name}_{context.run[:8]}_poison_{block.index}.h5"
    try:
        _write(path, block, context, why)
    except (StorageError, MemoryError) as error:
        return f"{which} not put aside: {in_words(error)}"
    command = f"lima2py isolate {shlex.quote(str(path))}"
    return f"{which} put aside; to see which task cannot stand it: {command}"


def _write(path: Path, block: Block, context: RunContext, why: str) -> None:
    run = context.of_task(SINK, 1)
    with telling(path, "cannot be written"), _taken(path) as descriptor:
        # In memory first: HDF5 does not survive a disk that is full.
        with h5py.File(path, "w", driver="core", backing_store=False) as file:
            new_file(file, run)
            detector = new_entry(file, "entry_0000", block.spec, run)
            entry = file["entry_0000"]
            entry["lima2py"].attrs.update(node=safe_text(run.node), rank=run.rank, first_row=0)
            entry["lima2py/why"] = safe_text(why)
            write_provenance(entry, detector, block.spec, run)
            rows, records = _rows(detector, block), Records(detector, block.spec, checksum=False)
            rows.put(block)
            records.note(block)
            rows.make_safe()
            rows.conclude()
            records.write_words()
            records.write()
            link(entry, detector, block.spec, run)
            file.flush()
            image = memoryview(file.id.get_file_image())
        while image:
            image = image[os.write(descriptor, image) :]


def _rows(detector: h5py.Group, block: Block) -> Rows:
    plain = codec("none")
    if block.spec.kind == "sparse":
        return RaggedRows(detector, block.spec, plain, {}, None)
    return Stacked(detector, block.spec, plain, 1)


@contextmanager
def _taken(path: Path) -> Iterator[int]:
    """A new file, which gets its name when it is complete; removed if it is not."""
    part = f"{path}{PART}"
    if os.path.lexists(path):
        raise FileExistsError(17, os.strerror(17), str(path))
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        yield descriptor
        os.rename(part, path)
    except BaseException:
        os.unlink(part)
        raise
    finally:
        os.close(descriptor)
