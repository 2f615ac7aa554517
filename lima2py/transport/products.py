"""Small products of tasks as plain values, for whoever follows a run, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lima2py.frame import Block, FrameSpec, Ragged
from lima2py.transport.packing import pack_absences, pack_columns, unpack_absences, unpack_columns


def pack_product(block: Block) -> dict[str, Any]:
    """A block as plain values that msgpack can say."""
    data = block.data
    packed: Any = None
    if isinstance(data, Ragged):
        packed = [data.counts.tobytes(), pack_columns(data.columns)]
    elif data is not None:
        packed = data.tobytes()
    return {
        "index": block.index,
        "count": block.count,
        "absences": pack_absences(block.absences),
        "columns": pack_columns(block.columns),
        "data": packed,
    }


def product_of(spec: FrameSpec, packed: Mapping[str, Any]) -> Block:
    """The block that `pack_product` was given; its data are read-only.

    Raises:
        ProtocolError: if the columns do not fit.
        ValueError: if the data do not.
    """
    count = packed["count"]
    data: Any = packed["data"]
    if data is not None and spec.kind == "sparse":
        counts = np.frombuffer(data[0], np.int64)
        data = Ragged.of(counts, unpack_columns(data[1], int(counts.sum())))
    elif data is not None:
        data = np.frombuffer(data, spec.dtype).reshape(count, *spec.shape)
    absences = unpack_absences(packed["absences"], count)
    columns = unpack_columns(packed["columns"], count)
    return Block(spec, packed["index"], count, data, absences, columns)
