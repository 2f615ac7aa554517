"""Put frames aside that brought down the nodes they were given to: `lima2py isolate` tries them.

    {name}_{first of the run's id}_poison_{first frame}.h5

It is a file like that of a node, as the frames came from the detector, compressed ones too, with
what is needed to run the graph on them again; frames of other detectors that belong to them have
entries of their own, under the names that graphs have for those detectors. It is no part of what
the run saved: no master shows it, and `recover` passes by.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import h5py

from lima2py.codec import codec
from lima2py.errors import StorageError, in_words
from lima2py.frame import Block
from lima2py.storage.failures import telling
from lima2py.storage.layout import entry_name, link, new_entry, new_file, safe_text
from lima2py.storage.masters.provenance import write_provenance
from lima2py.storage.names import PART
from lima2py.storage.saving.records import Records
from lima2py.storage.saving.rows import RaggedRows, Rows, Stacked
from lima2py.task import RunContext

SINK = "put_aside"
"""Stands in the file where those of nodes have the name of a sink."""


def beside(paths: Mapping[str, str], output: str) -> Path:
    """Where the frames of a run are put aside.

    Args:
        paths: by sink, what its files begin with.
        output: where files of the run go if it has no sinks.
    """
    first = next(iter(paths.values()), None)
    return Path(output) if first is None else Path(first).parent


def put_aside(folder: Path, block: Block, context: RunContext, why: str) -> str:
    """Write a block to a file of its own.

    Args:
        folder: where to.
        block: as the detector gave it, with the frames of others that belong to it.
        context: of the run, as the node has it.
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
    parts = {SINK: block, **block.companions}
    with telling(path, "cannot be written"), _taken(path) as descriptor:
        # In memory first: HDF5 does not survive a disk that is full.
        with h5py.File(path, "w", driver="core", backing_store=False) as file:
            new_file(file, context)
            for number, (name, part) in enumerate(parts.items()):
                _write_entry(file, entry_name(number), part, context.of_task(name, 1), why)
            file.flush()
            image = memoryview(file.id.get_file_image())
        while image:
            image = image[os.write(descriptor, image) :]


def _write_entry(file: h5py.File, name: str, block: Block, run: RunContext, why: str) -> None:
    detector = new_entry(file, name, block.spec, run)
    entry = file[name]
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
