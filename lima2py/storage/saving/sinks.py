"""The tasks that save in HDF5/NeXus: images, vectors, tables, sparse frames."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Annotated, ClassVar

import h5py
import numpy as np
from pydantic import Field, PrivateAttr

from lima2py.codec import Codec, Compression, codec
from lima2py.errors import BadParameter
from lima2py.frame import Array, Block, FrameSpec, Kind
from lima2py.storage.names import NODE_FILE, check_node_template, check_template, node_path
from lima2py.storage.patience import Patience
from lima2py.storage.saving.node_file import Limits, NodeFiles, Product
from lima2py.storage.saving.rows import RaggedRows, Rows, Stacked, frames_per_chunk
from lima2py.task import RunContext, Sink
from lima2py.units import Bytes, as_size


class Hdf5Sink(Sink):
    """The base of the sinks that write HDF5/NeXus files."""

    kinds: ClassVar[tuple[Kind, ...]]
    """The kinds of product it saves."""

    file: str = "{name}_{sink}"
    """Where its files begin, relative to the output folder; may contain {name}, {run}, {sink},
    {date}. Sinks that have the same share their files."""
    node_file: str = NODE_FILE
    """What the file of each node is called: {file}, the last part of `file`, then {rank} or
    {node}, and {number}, which counts the files of a node; each behind an underscore."""
    frames_per_file: Annotated[int, Field(ge=0)] = 0
    """After so many frames a node begins the next file; 0: never."""
    bytes_per_file: Annotated[Bytes, Field(ge=0)] = 0
    """After so many bytes a node begins the next file; 0: never."""
    checksum: bool = False
    """Whether to keep a checksum (CRC-32) of every frame, for `lima2py verify --pixels`."""

    _input: FrameSpec = PrivateAttr()
    _run: RunContext = PrivateAttr()
    _files: NodeFiles | None = PrivateAttr(default=None)
    _append: Callable[..., int] = PrivateAttr()

    def prepare(self, spec: FrameSpec) -> FrameSpec:
        """Refuse what it does not save."""
        check_template(self.file)
        check_node_template(self.node_file)
        if spec.kind not in self.kinds:
            fit = SINK_OF.get(spec.kind, "another sink")
            raise BadParameter(
                f"from: this sink saves {' and '.join(self.kinds)} products, and what comes is"
                f" {spec}, which is {spec.kind}; use {fit}"
            )
        if spec.dtype.hasobject or spec.dtype.kind in "UmM":
            raise BadParameter(f"from: {spec.dtype} cannot be saved, only numbers can")
        if spec.kind != "sparse" and not spec.nbytes:
            raise BadParameter(
                f"from: what comes is {spec}; frames that hold nothing cannot be saved"
            )
        self._spec = self._input = spec
        return spec

    def start(self, run: RunContext) -> None:
        """Make this node's file, or join the sink that has the same."""
        self._run = run
        prefix = run.paths[run.task]
        limits = Limits(self.frames_per_file, self.bytes_per_file)
        path_of = partial(node_path, prefix, self.node_file, run)
        files = NodeFiles.of(run, path_of, limits, Patience.of(self, run))
        files.add(Product(self.saved, run, self.rows, self.checksum))
        self._files = files
        self._append = partial(files.append, run.task)

    @abstractmethod
    def rows(self, detector: h5py.Group) -> Rows:
        """What writes the data of one file."""

    @property
    def saved(self) -> FrameSpec:
        """What the frames look like in the file."""
        return self._input

    @property
    def files(self) -> list[str]:
        """See `Sink.files`."""
        return list(self._files.files) if self._files is not None else []

    @property
    def remarks(self) -> list[str]:
        """See `Sink`."""
        files = self._files
        if files is None or files.first_sink != self._run.task:  # that one says it for all
            return []
        return files.patience.remarks

    @property
    def waiting(self) -> str:
        """See `Sink`."""
        return self._files.patience.waiting if self._files is not None else ""

    def write(self, block: Block, *others: Block) -> int:
        """See `Sink.write`."""
        return self._append(block, *others)

    def flush(self) -> None:
        """See `Task.flush`."""
        if self._files is not None:
            self._files.flush()

    def finish(self) -> None:
        """Close the file; one that never got a frame is removed."""
        if self._files is not None:
            self._files.close(self._run.task)


class CompressingSink(Hdf5Sink):
    """The base of those that compress what they write."""

    compression: Compression = "bslz4"
    """`bslz4` (bitshuffle and LZ4), `bszstd` (bitshuffle and Zstandard: smaller, three times as
    slow), `blosc2` (the same in the format of Blosc2: as small, nearly as fast as `bslz4`), `gzip`
    (slow; any reader), `none`. Readers need hdf5plugin for the first three."""

    def _stacked(self, detector: h5py.Group) -> Stacked:
        run, spec = self._run, self.saved
        nb_frames = run.nb_frames
        if self.frames_per_file:
            nb_frames = min(nb_frames or self.frames_per_file, self.frames_per_file)
        chunk = frames_per_chunk(spec, run.frames_per_block, nb_frames)
        return Stacked(detector, spec, codec(self.compression), chunk)


class SaveDense(CompressingSink):
    """Save images in HDF5/NeXus files that the usual viewers open.

    Every node writes files of its own; at the end of the run `{file}_master.h5` shows the frames of
    all nodes in their order. Images that have several bands are saved as `(frame, band, y, x)`.
    Where a frame is absent the file shows the largest number its integers can hold, or nan, and
    says why.
    """

    kinds = ("dense",)

    def rows(self, detector: h5py.Group) -> Rows:
        """See `Hdf5Sink`."""
        return self._stacked(detector)


class SaveVector(CompressingSink):
    """Save vectors (profiles, azimuthal integrals, histograms), one row a frame."""

    kinds = ("vector",)

    def rows(self, detector: h5py.Group) -> Rows:
        """See `Hdf5Sink`."""
        return self._stacked(detector)


class SaveTable(CompressingSink):
    """Save tables: counters of ROIs, statistics, peaks.

    Tables of a fixed number of rows are one dataset of named columns, `(frame, row)`. Where every
    frame has another number of rows (peaks), each column is an array of the rows of all frames, one
    after the other, and `frame_ptr` says where each frame begins.
    """

    kinds = ("table", "sparse")

    def rows(self, detector: h5py.Group) -> Rows:
        """See `Hdf5Sink`."""
        if self._input.kind == "table":
            return self._stacked(detector)
        return RaggedRows(detector, self.saved, codec(self.compression), {}, None)


class SaveSparse(CompressingSink):
    """Save the pixels that `sparsify` or `sparsify_radial` kept, as fabio and pyFAI read them.

    The group `data` has `frame_ptr`, `index` and `intensity`: frame i has the pixels from
    `frame_ptr[i]` to before `frame_ptr[i + 1]`. fabio gives the images back, frame by frame.

    With the background as a second input, `from: [peaks, background]`, it is saved too
    (`background_avg`, `background_std` against `radius`), and fabio and its program `densify_Bragg`
    put it under the peaks.

    At the end it says so if the images would have taken less room than their pixels.
    """

    kinds = ("sparse",)

    _bins: int | None = PrivateAttr(default=None)
    _room: SparseRoom = PrivateAttr()

    def prepare(self, spec: FrameSpec, background: FrameSpec | None = None) -> FrameSpec:
        """Refuse what are no pixels."""
        made = super().prepare(spec)
        names = set(spec.dtype.names or ())
        if not {"index", "value"} <= names:
            raise BadParameter(
                f"from: sparse pixels should come in (index, value), and it is {spec};"
                " use save_table"
            )
        if spec.bands != 1:
            raise BadParameter(
                f"from: {spec.bands} bands cannot be saved as sparse pixels; put select_bands"
                " before sparsify"
            )
        if background is not None:
            if not {"avg", "std"} <= set(background.dtype.names or ()):
                raise BadParameter(
                    "from: the second input should be what radial_sigma_clip gives, and it is"
                    f" {background}; write from: [peaks, background]"
                )
            self._bins = background.shape[0]
        return made

    def start(self, run: RunContext) -> None:
        """See `Hdf5Sink`."""
        self._room = SparseRoom(self._input, codec(self.compression))
        super().start(run)

    def rows(self, detector: h5py.Group) -> Rows:
        """See `Hdf5Sink`."""
        made = codec(self.compression)
        return RaggedRows(detector, self.saved, made, self._run.maps, self._bins)

    def write(self, block: Block, *others: Block) -> int:
        """See `Sink.write`."""
        self._room.look(block)
        return super().write(block, *others)

    @property
    def remarks(self) -> list[str]:
        """See `Sink`."""
        return [*super().remarks, *self._room.remarks]


class SparseRoom:
    """Whether frames take less room as pixels than as images would, compressed alike.

    The first frame with data of a block is tried, and then that of one twice as far into the run.

    Args:
        spec: of the sparse frames.
        codec: compresses them.
    """

    def __init__(self, spec: FrameSpec, codec: Codec):
        self._spec = spec
        self._codec = codec
        self._blocks = 0
        self._next = 0
        self._tried = 0
        self._sparse = 0
        self._dense = 0

    def look(self, block: Block) -> None:
        """Try a frame of this block, if it is time."""
        self._blocks += 1
        if self._blocks <= self._next or block.data is None:
            return
        self._next = 2 * self._blocks
        offset = int(np.argmax(block.present))
        columns = block.rows[offset : offset + 1].columns
        image = np.zeros(self._spec.shape, self._spec.dtype["value"])
        image.reshape(-1)[columns["index"]] = columns["value"]
        self._dense += self._length(image)
        self._sparse += sum(self._length(columns[name]) for name in ("index", "value"))
        self._tried += 1

    @property
    def remarks(self) -> list[str]:
        """That images would be smaller, if they would."""
        if self._sparse <= self._dense:
            return []
        sparse, dense = as_size(self._sparse / self._tried), as_size(self._dense / self._tried)
        return [
            f"a sparse frame takes about {sparse}, and as an image it would take {dense}:"
            " use save_dense, or keep fewer pixels"
        ]

    def _length(self, values: Array) -> int:
        values = np.ascontiguousarray(values)
        return memoryview(self._codec.encode(values)).nbytes if values.size else 0


SINK_OF: dict[str, str] = {
    "dense": "save_dense",
    "vector": "save_vector",
    "table": "save_table",
    "sparse": "save_sparse, or save_table for anything but pixels",
    "encoded": "save_raw, or put decode before",
}
"""The sink for each kind of product."""
