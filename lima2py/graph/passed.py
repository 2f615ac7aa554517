"""What is known of a block that has passed the graph: why frames of it have no data.

A product of several frames tells about all of them, and they may have come in several blocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lima2py.frame import Absence, Block, FrameSpec
from lima2py.transport.packing import pack_absences, unpack_absences
from lima2py.transport.wire import DoneBlock


class Passed(NamedTuple):
    """A block that has passed and is not reported yet.

    Attributes:
        done: what will be reported of it, as far as the tracks of the sinks go.
        found: why frames have no data, by offset, with the span of the product and the number of
            the task that this was found at.
    """

    done: DoneBlock
    found: list[tuple[int, int, Mapping[int, Absence]]]

    def told(self) -> DoneBlock:
        """With the track of the frames as a whole, where the worst of all that happened stands.

        In which blocks frames came makes no difference: of equally bad things that of the frame
        itself is told, then that of the product of the fewest frames, then that of the first task.
        """
        if self.found:
            whole: dict[int, Absence] = {}
            for *_, absences in sorted(self.found, key=lambda item: item[:2]):
                keep_worst(whole, absences)
            whole = {offset: said for offset, said in whole.items() if said.cause.harm}
            self.done.absences[:0] = [(0, part) for part in pack_absences(whole)]
        return self.done


def by_frame(found: Mapping[int, Absence], made: Block, done: DoneBlock) -> dict[int, Absence]:
    """The absences of products by those frames of a block that they stand for."""
    span = made.spec.span
    absences: dict[int, Absence] = {}
    for offset, said in found.items():
        first = max((made.index + offset) * span - done.index, 0)
        end = min((made.index + offset + 1) * span - done.index, done.count)
        absences.update(dict.fromkeys(range(first, end), said))
    return absences


def keep_worst(whole: dict[int, Absence], found: Mapping[int, Absence]) -> None:
    """What does more harm stands: absent beats rejected; of equals, what was said first."""
    for offset, said in found.items():
        before = whole.get(offset)
        if before is None or said.cause.harm > before.cause.harm:
            whole[offset] = said


def unsaved(block: DoneBlock, number: int, span: int, said: Absence) -> DoneBlock:
    """The same block, when a sink could not make its rows safe.

    Args:
        block: with all its tracks.
        number: of the sink, from 0.
        span: how many frames each of its rows stands for.
        said: what is to be said of the frames.
    """
    rows = list(block.rows)
    rows[number] = -1
    products = (block.index + block.count) // span - block.index // span
    whole, mine = (
        unpack_absences([part for where, part in block.absences if where == track], lines)
        for track, lines in ((0, block.count), (number + 1, products))
    )
    keep_worst(whole, dict.fromkeys(range(block.count), said))
    mine = {**dict.fromkeys(range(products), said), **mine}
    absences = [(0, part) for part in pack_absences(whole)]
    absences += [(number + 1, part) for part in pack_absences(mine)]
    absences += [item for item in block.absences if item[0] not in (0, number + 1)]
    return DoneBlock(block.index, block.count, block.source, block.epoch, rows, absences)


def of_detector(products: Sequence[int], span: int) -> Sequence[int]:
    """The frames of the detector that products stand for."""
    if span == 1:
        return products
    return [frame for number in products for frame in range(number * span, (number + 1) * span)]


def nothing(spec: FrameSpec, given: Block) -> Block:
    """What comes out of a task for a block whose frames are all absent."""
    n = spec.span // given.spec.span
    if n == 1:
        return given.carry(spec, None)
    first, end = given.index // n, given.end // n
    said = {
        product - first: given.absences[max(product * n - given.index, 0)]
        for product in range(first, end)
    }
    return Block(spec, first, end - first, None, said, origin=given.origin)


def overlap(block: DoneBlock, group: int, size: int) -> int:
    """How many frames of a group are in a block."""
    first, end = group * size, (group + 1) * size
    return min(end, block.index + block.count) - max(first, block.index)
