"""Stacks of compressed frames in HDF5 files, handed on as they are stored."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lima2py_detectors.replay.recorded import Facts, Sizes, Times, UnreadableError
from lima2py_detectors.replay.stacks import Hdf5File

from lima2py.codec import Encoding
from lima2py.frame import Array


class EncodedFile(Hdf5File):
    """A stack in which every frame is a chunk of its own, compressed by one filter we know."""

    def _facts(self) -> Facts:
        facts = super()._facts()
        encoding = _encoding(self._stack)
        sizes: list[int] = []
        self._stack.id.chunk_iter(lambda chunk: sizes.append(chunk.size))
        self._absent = facts.absent
        return replace(facts, encoding=encoding, capacity=max(sizes, default=1))

    def read(self, first: int, step: int, out: Array, times: Times, sizes: Sizes) -> None:
        """See `FramesFile`."""
        stack = self._stack if self._file else self._open()
        for at, room in enumerate(out):
            frame = first + at * step
            if frame in self._absent:
                continue
            origin = (0, 0) if stack.ndim == 2 else (frame, *[0] * (stack.ndim - 1))
            skipped, payload = stack.id.read_direct_chunk(origin, out=room)
            if skipped:
                raise UnreadableError("is stored uncompressed, unlike the others")
            sizes[at] = len(payload)
        self._put_times(first, step, times)


def _encoding(stack: Any) -> Encoding:
    """What the frames of a stack are compressed with.

    Raises:
        UnreadableError: if they cannot be handed on as they are stored.
    """
    if stack.is_virtual:
        names = sorted({source.file_name for source in stack.virtual_sources()} - {"."})
        raise UnreadableError(
            "shows frames that lie in other files, and only there they can be had compressed"
            f" (encoded: true); name those files: {', '.join(names[:4])}"
            f"{' ...' if len(names) > 4 else ''}"
        )
    one = stack.shape if stack.ndim == 2 else (1, *stack.shape[1:])
    if stack.chunks != one:
        lie = f"in chunks of {stack.chunks}" if stack.chunks else "without chunks"
        raise UnreadableError(
            f"its frames lie {lie}, and to be handed on compressed (encoded: true) each must be a"
            f" chunk of its own, {one}; set encoded: false"
        )
    if not stack.dtype.isnative:
        raise UnreadableError(
            f"its pixels are {stack.dtype}, of foreign byte order, and cannot stay compressed"
            " (encoded: true); set encoded: false"
        )
    plist = stack.id.get_create_plist()
    filters = [plist.get_filter(number) for number in range(plist.get_nfilters())]
    if not filters:
        return "none"
    number, _, values, _ = filters[0]
    known: dict[tuple[int, int], Encoding] = {
        (1, 0): "gzip",
        (32004, 0): "lz4",
        (32008, 2): "bslz4",
        (32008, 3): "bszstd",
    }
    inside = values[4] if number == 32008 and len(values) > 4 else 0
    if len(filters) > 1 or (number, inside) not in known:
        said = " and ".join(item[3].decode(errors="replace") for item in filters)
        raise UnreadableError(
            f"its frames are compressed by {said}; handed on as they are (encoded: true) can be"
            f" {', '.join(known.values())}; set encoded: false"
        )
    return known[number, inside]
