"""What a task gives is checked against what it said in `prepare`."""

from __future__ import annotations

from lima2py.errors import LimaError
from lima2py.frame import Block, FrameSpec, Ragged


class BrokenPromise(LimaError):
    """What a task gave is not what it said in `prepare`."""


def check_promise(made: Block, spec: FrameSpec, given: Block) -> None:
    """Refuse what is no product of the block given.

    Args:
        made: what the task gave; anything at all.
        spec: what it promised.
        given: what it was given.

    Raises:
        BrokenPromise: saying what was given instead.
    """
    if not isinstance(made, Block):
        raise BrokenPromise(f"gave {type(made).__name__}, should be a Block")
    n = spec.span // given.spec.span
    first, end = given.index // n, given.end // n
    if (made.index, made.end) != (first, end):
        raise BrokenPromise(
            f"gave frames {made.index} to {made.end - 1} instead of {first} to {end - 1}"
        )
    data = made.data
    if data is None:
        if len(made.absences) < made.count:
            raise BrokenPromise("gave no data, and not for every frame a reason")
        return
    if isinstance(data, Ragged):
        if spec.kind != "sparse" or data.dtype != spec.dtype or len(data) != made.count:
            raise BrokenPromise(f"gave sparse rows of {data.dtype}, promised {spec}")
    elif data.shape != (made.count, *spec.shape) or data.dtype != spec.dtype:
        raise BrokenPromise(
            f"gave {data.dtype} {data.shape[1:]} a frame, promised {spec.dtype} {spec.shape}"
        )
