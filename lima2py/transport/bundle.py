"""Bundles: products of the same frames, handed on together from one stage of nodes to the next.

A block of a bundle has no pixels of its own; its companions are the products. In a slot of the
ring they lie one after the other, each as an array of its own; the rows of sparse frames, of which
nobody knows how many there will be, go with the message.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import zmq

from lima2py.errors import LimaError, ProtocolError
from lima2py.frame import Absence, Array, Block, FrameSpec, Ragged
from lima2py.memory import pages
from lima2py.ring import MAX_FRAMES_PER_BLOCK, MIN_SLOTS, RingShape
from lima2py.transport import packing, wire
from lima2py.units import as_size

NOWHERE, IN_SLOT, FOLLOWS = range(3)
"""Where the data of a product are: `wire.Product.place`."""
_ALIGNED = 64
_PRESENT = np.empty((MAX_FRAMES_PER_BLOCK, 0), np.uint8)
"""Stands for the pixels of a block some products of which have data."""


class Bundle:
    """Which products go on together, and how they lie in a slot.

    Args:
        products: what they look like, by name. All stand for as many frames of the detector.
        frames: the most frames of a block with data.

    Attributes:
        spec: of a slot, taken as one frame of bytes.
        most: bytes that all data of a block may have.
    """

    def __init__(self, products: Mapping[str, FrameSpec], frames: int):
        self._products = dict(products)
        self._frames = frames
        self._first: dict[str, int] = {}
        end = 0
        for name, spec in products.items():
            if spec.kind != "sparse":
                self._first[name] = end
                end += -(-frames * spec.nbytes // _ALIGNED) * _ALIGNED
        self.spec = FrameSpec("vector", (max(end, _ALIGNED),), np.dtype(np.uint8))
        self.most = sum((spec.nbytes + 8) * frames for spec in products.values())

    def shape(self, nbytes: int, slots: int) -> RingShape:
        """How to cut a ring for blocks of it.

        Args:
            nbytes: the memory to use.
            slots: how many there may be of use.

        Raises:
            LimaError: if not even a few slots fit.
        """
        stride = pages(self.spec.nbytes)
        slots = min(max(slots, MIN_SLOTS), nbytes // stride)
        if slots < MIN_SLOTS:
            raise LimaError(
                f"{as_size(nbytes)} are too little to hand on {', '.join(self._products)} to the"
                f" next stage: {as_size(MIN_SLOTS * stride)} or more are needed (memory: {{ring:"
                " ...}} of the node in the system file)"
            )
        return RingShape(1, slots, stride)

    def block(self, given: Block, products: Sequence[Block]) -> Block:
        """The products of a block as one of a bundle; they stay where they are.

        Args:
            given: the frames they are of.
            products: in the order of the bundle.
        """
        absences = dict(products[0].absences)
        for other in products[1:]:
            absences = {at: said for at, said in absences.items() if at in other.absences}
        some = any(product.data is not None for product in products)
        data = _PRESENT[: given.count] if some else None
        named = dict(zip(self._products, products, strict=True))
        return Block(
            self.spec, given.index, given.count, data, absences, {}, given.origin,
            given.acquired_at, named,
        )  # fmt: skip

    def write(self, block: Block, slot: Array) -> Block:
        """Copy the products of a block into a slot; the same block, lying there.

        Args:
            block: of this bundle.
            slot: uint8 array of as many bytes as `spec` has.
        """
        placed: dict[str, Block] = {}
        for name, product in block.companions.items():
            if isinstance(product.data, np.ndarray):
                there = self._view(slot, name)[: product.count]
                np.copyto(there, product.data)
                product = Block(
                    product.spec, product.index, product.count, there, product.absences,
                    product.columns, product.origin,
                )  # fmt: skip
            placed[name] = product
        return Block(
            self.spec, block.index, block.count, block.data, block.absences, block.columns,
            block.origin, block.acquired_at, placed,
        )  # fmt: skip

    def read(
        self, message: wire.BlockMessage, slot: Array | None, rest: Sequence[zmq.Frame]
    ) -> Block:
        """The block that a message announces.

        Args:
            message: its header.
            slot: the bytes of the slot that it names; None if it names none.
            rest: the parts that follow it.

        Raises:
            ProtocolError: if it is no block of this bundle.
        """
        if len(message.products) != len(self._products):
            text = f"a block of {len(message.products)} products, not {len(self._products)}"
            raise ProtocolError(text, "block")
        parts = iter(rest)
        products = [
            self._product(name, spec, message, said, slot, parts)
            for (name, spec), said in zip(self._products.items(), message.products, strict=True)
        ]
        if next(parts, None) is not None:
            raise ProtocolError(f"a block of {len(rest) + 1} parts", "parts")
        absences = packing.unpack_absences(message.absences, message.count)
        origin = (message.source, message.epoch)
        given = Block(
            self.spec, message.index, message.count, None, {}, {}, origin, message.acquired_at
        )
        block = self.block(given, products)
        return block.refuse(absences) if absences else block

    def _product(
        self,
        name: str,
        spec: FrameSpec,
        message: wire.BlockMessage,
        said: wire.Product,
        slot: Array | None,
        parts: Iterator[zmq.Frame],
    ) -> Block:
        header = wire.BlockMessage(
            message.run, message.source, message.epoch, message.index, message.count, -1,
            said.absences, said.columns, message.acquired_at,
        )  # fmt: skip
        if said.place == NOWHERE:
            return packing.block_of(header, spec, MAX_FRAMES_PER_BLOCK, None)
        if said.place == FOLLOWS:
            part = next(parts, None)
            if part is None:
                raise ProtocolError(f"a block without the data of {name}", "parts")
            if spec.kind == "sparse":
                return _sparse(header, spec, part.buffer)
            return packing.block_of(header, spec, self._frames, part.buffer)
        if slot is None or name not in self._first or not 0 <= message.offset < self._frames:
            raise ProtocolError(f"a block whose {name} cannot lie where it says", "block")
        there = self._view(slot, name)[message.offset :]
        return packing.block_of(header, spec, self._frames, there)

    def _view(self, slot: Array, name: str) -> Array:
        """The frames of a product in a slot: array `(frames, *spec.shape)`."""
        spec, first = self._products[name], self._first[name]
        part = slot[first : first + self._frames * spec.nbytes]
        return part.view(spec.dtype).reshape(self._frames, *spec.shape)


def pack(block: Block, shared: bool) -> tuple[list[wire.Product], list[memoryview]]:
    """What is said of the products of a block, and the parts that follow the message.

    Args:
        block: of a bundle.
        shared: whether who is told sees the slot.
    """
    said: list[wire.Product] = []
    parts: list[memoryview] = []
    for product in block.companions.values():
        if block.data is None:  # nobody will do these frames, or there is nothing of them
            product = product.refuse(block.absences)
        place = NOWHERE
        if isinstance(product.data, Ragged):
            place = FOLLOWS
            parts.append(_content(product.data, product.spec))
        elif product.data is not None:
            place = IN_SLOT if shared else FOLLOWS
            if not shared:
                parts.append(packing.content_of(product))
        absences = packing.pack_absences(product.absences) if product.absences else []
        said.append(wire.Product(absences, packing.pack_columns(product.columns), place))
    return said, parts


def _content(rows: Ragged, spec: FrameSpec) -> memoryview:
    """Sparse frames as bytes: how many rows each has, then column by column."""
    columns = [rows.columns[name].tobytes() for name in spec.dtype.names or ()]
    return memoryview(b"".join([rows.counts.astype("<i8").tobytes(), *columns]))


def _sparse(header: wire.BlockMessage, spec: FrameSpec, content: memoryview) -> Block:
    """The sparse frames in what `_content` gave.

    Raises:
        ProtocolError: if they are not that.
    """
    count = header.count
    absences: dict[int, Absence] = packing.unpack_absences(header.absences, count)
    columns = packing.unpack_columns(header.columns, count)
    if not (1 <= count <= MAX_FRAMES_PER_BLOCK) or len(content) < 8 * count:
        raise ProtocolError(f"{len(content)} bytes of {count} sparse frames", "block")
    counts = np.frombuffer(content[: 8 * count], "<i8")
    most = len(content)
    total = int(counts.sum()) if ((counts >= 0) & (counts <= most)).all() else -1
    if total * spec.dtype.itemsize != len(content) - 8 * count:
        raise ProtocolError(f"{len(content)} bytes of {count} sparse frames", "block")
    at, rows = 8 * count, dict[str, Array]()
    for name in spec.dtype.names or ():
        dtype: np.dtype[Any] = spec.dtype[name]
        end = at + total * dtype.itemsize
        rows[name] = np.frombuffer(content[at:end], dtype).copy()  # aligned
        at = end
    data = Ragged.of(counts, rows)
    origin = (header.source, header.epoch)
    return Block(spec, header.index, count, data, absences, columns, origin, header.acquired_at)
