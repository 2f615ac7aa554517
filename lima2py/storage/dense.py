"""`save_dense`: keep images, vectors or tables, one row a frame, in HDF5/NeXus."""

from __future__ import annotations

from pydantic import PrivateAttr

from lima2py.errors import BadParameter, StorageError
from lima2py.frame import Block, FrameSpec
from lima2py.storage.codec import Compression, codec
from lima2py.storage.reserve import check_template
from lima2py.storage.writer import NodeFile
from lima2py.task import RunContext, Sink


class SaveDense(Sink):
    """Save every frame in HDF5/NeXus files that the usual viewers open.

    Every node writes one file, `{file}_{rank}_00000.h5`; at the end of the run `{file}_master.h5`
    shows the frames of all nodes in their order. Images that have several bands are saved as
    `(frame, band, y, x)`. Where a frame is absent the file shows the largest number its integers
    can hold, or nan, and says why.
    """

    file: str = "{name}_{sink}"
    """Where its files begin; may contain {name}, {run}, {sink}. Relative to the output folder."""
    compression: Compression = "bslz4"
    """`bslz4` (bitshuffle and LZ4; readers need hdf5plugin), `gzip` (slow; any reader), `none`."""

    _output: NodeFile | None = PrivateAttr(default=None)

    def prepare(self, spec: FrameSpec) -> FrameSpec:
        """Anything that has the same shape for every frame can be saved."""
        check_template(self.file)
        if spec.kind == "sparse":
            raise BadParameter(
                "from: save_dense cannot save sparse frames, which have another number of rows"
                " each; save what they were made of, or follow them by Session.stream"
            )
        if spec.dtype.hasobject or spec.dtype.kind in "UmM":
            raise BadParameter(f"from: {spec.dtype} cannot be saved, only numbers can")
        self._spec = spec
        return spec

    def start(self, run: RunContext) -> None:
        """Make this node's file."""
        path = f"{run.paths[run.task]}_{run.rank}_00000.h5"
        self._output = NodeFile(path, self._spec, run, codec(self.compression))

    @property
    def files(self) -> list[str]:
        """See `Sink.files`."""
        return [self._output.path] if self._output else []

    def write(self, block: Block) -> int:
        """See `Sink.write`."""
        if self._output is None:
            raise StorageError("save_dense was not started, or has finished")
        return self._output.append(block)

    def flush(self) -> None:
        """See `Task.flush`."""
        if self._output is not None:
            self._output.flush()

    def finish(self) -> None:
        """Close the file; one that never got a frame is removed."""
        if self._output is not None:
            self._output.close()
            if not self._output.rows:
                self._output = None
