"""A product that came from the stage before: no task of a graph file.

The plan of a stage has one for each product that is handed on to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import PrivateAttr

from lima2py.frame import Array, Block, FrameSpec
from lima2py.task import RunContext, Task


class Arrival(Task):
    """Hands on a product that came with the block."""

    product: str
    """Its name in the graph."""

    takes_absent: ClassVar[bool] = True

    _before: frozenset[str] = PrivateAttr()
    _maker: Task | None = PrivateAttr()
    _maps: Mapping[str, Array] = PrivateAttr(default_factory=dict)

    @classmethod
    def of(
        cls, product: str, spec: FrameSpec, before: frozenset[str], maker: Task | None
    ) -> Arrival:
        """One for such a product.

        Args:
            product: its name.
            spec: of its frames.
            before: the tasks of earlier stages that it has passed.
            maker: what makes it there, prepared; None for the frames as they came.
        """
        task = cls(product=product)
        task._spec, task._before, task._maker = spec, before, maker
        return task

    @property
    def before(self) -> frozenset[str]:
        """The tasks of earlier stages that it has passed."""
        return self._before

    @property
    def maps(self) -> Mapping[str, Array]:
        """Those of its maker."""
        return self._maps

    def start(self, run: RunContext) -> None:
        """Have the maker's maps made here, too."""
        maker, self._maker = self._maker, None
        if maker is not None and type(maker).maps is not Task.maps:
            try:
                maker.start(run)
                self._maps = maker.maps
            finally:
                maker.finish()

    def prepare(self, spec: FrameSpec) -> FrameSpec:
        """What the frames look like."""
        return self._spec

    def process(self, block: Block) -> Block:
        """The product of these frames; those that nobody needs any more are absent."""
        made = block.companions[self.product]
        return made.refuse(block.absences) if block.absences else made
