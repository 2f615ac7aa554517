"""Follow a run: frames of taps as they come, small products in the order of the frames."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from heapq import heappop, heappush
from itertools import count
from typing import Any

import numpy as np

from lima2py.errors import BadParameter, NodeError, did_you_mean
from lima2py.frame import Absence, Block, Fate, Frame, FrameSpec, dtype_of
from lima2py.session.launch import Handle
from lima2py.transport.products import product_of

PAUSE = 0.005
"""Seconds between two looks when nothing new was found."""

Ranges = Sequence[tuple[int, int, str, str, str]]
Nodes = Callable[[], Mapping[int, Handle]]
"""Gives the nodes that run the graph, by rank; others come while a run goes on."""


class _Readers:
    """How far the products of a task have been read, node by node.

    Attributes:
        after: by rank, the running number that was read last; of nodes that have not ended.
    """

    def __init__(self, nodes: Nodes, run: str, task: str):
        self.after: dict[int, int] = {}
        self._nodes = nodes
        self._run = run
        self._task = task
        self._ended: set[int] = set()
        self.meet()

    def meet(self) -> None:
        """See who is there."""
        there = self._nodes()
        self.after = {rank: self.after.get(rank, -1) for rank in there if rank not in self._ended}

    def ask(self, what: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """What each node that has not ended has to say; a lost one is asked no more."""
        there = {rank: handle for rank, handle in self._nodes().items() if rank not in self._ended}
        self.after = {rank: self.after.get(rank, -1) for rank in there}
        for rank, handle in there.items():
            try:
                told = handle.read(what, run=self._run, task=self._task, after=self.after[rank])
            except NodeError:
                self.end(rank)
                continue
            yield rank, told

    def end(self, rank: int) -> None:
        """A node has nothing more to say."""
        del self.after[rank]
        self._ended.add(rank)


def tapped(
    nodes: Nodes, run: str, task: str, timeout: float | None, over: Callable[[], bool]
) -> Iterator[Frame]:
    """The frames that pass a tap from now on; nearly in the order of their index.

    Args:
        nodes: gives those that run the graph.
        run: id of the run.
        task: name of the tap.
        timeout: seconds to wait for the next frame.
        over: whether the run is over; until then a node may come for one that is lost.

    Raises:
        TimeoutError: if none came for `timeout` seconds.
    """
    readers = _Readers(nodes, run, task)
    heard = time.monotonic()
    ended = False
    while not ended:
        was_over = over()  # before the look: nobody comes after that
        found: list[Frame] = []
        for rank, told in readers.ask("tap"):
            for kept in told["frames"]:
                readers.after[rank] = kept["serial"]
                found.append(_frame(kept))
            if told["ended"]:
                readers.end(rank)
        yield from sorted(found, key=lambda frame: frame.index)
        ended = was_over and not readers.after
        if found:
            heard = time.monotonic()
        elif timeout is not None and time.monotonic() - heard > timeout:
            raise TimeoutError(f'no frame passed the tap "{task}" for {timeout:g} s')
        elif not ended:
            time.sleep(PAUSE)


def streamed(
    nodes: Nodes,
    run: str,
    task: str,
    timeout: float | None,
    over: Callable[[], bool],
    done_to: Callable[[], int],
    account: Callable[[], tuple[Ranges, int]],
) -> Iterator[Block]:
    """The small products of a task, in order and without gaps, as blocks.

    A frame whose product was given away before it was read, or was never made, is absent.

    Args:
        nodes: gives those that run the graph.
        run: id of the run.
        task: its name.
        timeout: seconds to wait for the next product.
        over: whether the run is over; until then a node may come for one that is lost.
        done_to: gives the number of the first frame that is not done: what was made of those before
            it lies at the nodes, or never will.
        account: gives what is known of absent frames, and how many were acquired, once the run is
            over.

    Raises:
        TimeoutError: if none came in time.
        NodeError: if no node is left that could say anything.
    """
    readers = _Readers(nodes, run, task)
    waiting: list[tuple[int, int, Block]] = []
    order = count()
    expected: int | None = None
    done = known = 0  # all there is of the frames before `known` has been seen,
    newest: dict[int, int] = {}  # and of those before `done` once these have been, by node
    spec: FrameSpec | None = None
    heard = time.monotonic()
    while True:
        news, looked = False, dict[int, int]()
        was_over = over()  # before the look: nobody comes after that
        if not newest:
            done = done_to()  # before the look: what was made of these frames is there by now
        for rank, told in readers.ask("stream"):
            spec = FrameSpec.from_plain(told["spec"])
            for serial, packed in told["blocks"]:
                if expected is None:
                    expected = 0 if serial == 0 else packed["index"]
                readers.after[rank] = serial
                heappush(waiting, (packed["index"], next(order), product_of(spec, packed)))
                news = True
            looked[rank] = told["newest"]
            if told["ended"]:
                readers.end(rank)
        newest = newest or looked
        after = readers.after
        ended = was_over and not after
        if all(after[rank] >= serial for rank, serial in newest.items() if rank in after):
            known, newest = done, {}
        while waiting and expected is not None:
            index, _, block = waiting[0]
            if block.end <= expected:  # a lost node's, made again by another one
                heappop(waiting)
            elif index <= expected:
                heappop(waiting)
                yield block.part(expected - index, block.count)
                expected = block.end
            elif ended:
                yield _missing(account()[0], expected, index, block.spec)
                expected = index
            elif expected < known // block.spec.span:
                end = min(index, known // block.spec.span)
                yield _missing((), expected, end, block.spec)
                expected = end
            else:
                break
        if ended:
            if spec is None:
                raise NodeError(
                    f'task "{task}": all nodes that had its products are lost, and these with them;'
                    " what sinks have saved lies in files"
                )
            ranges, end = account()
            if (expected or 0) < end // spec.span:  # a lost node had the last
                yield _missing(ranges, expected or 0, end // spec.span, spec)
            return
        if news:
            heard = time.monotonic()  # whoever reads may have taken long
        elif timeout is not None and time.monotonic() - heard > timeout:
            raise TimeoutError(f'task "{task}" gave nothing for {timeout:g} s')
        else:
            time.sleep(PAUSE)


def frames_of(blocks: Iterator[Block], task: str, channel: str | None) -> Iterator[Frame]:
    """The frames of blocks one by one; of a channel only this column.

    Raises:
        BadParameter: if there is no such channel.
    """
    for block in blocks:
        names = {*(block.spec.dtype.names or ())}
        if block.spec.kind == "sparse":
            names.add("count")
        if channel is not None and channel not in names:
            raise BadParameter(
                f'task "{task}": has no channel "{channel}"{did_you_mean(channel, names)}'
            )
        for frame in block.frames():
            if channel == "count" and block.spec.kind == "sparse" and frame.data is not None:
                frame = replace(frame, data=np.array(len(frame.data)))
            elif channel is not None and frame.data is not None:
                frame = replace(frame, data=frame.data[channel])
            yield frame


def _missing(ranges: Ranges, first: int, end: int, spec: FrameSpec) -> Block:
    """Products that nobody has, and why."""
    unknown = Absence(Fate.NO_RECORD, "session", "gave way before it was read, or a node was lost")
    found = dict.fromkeys(range(end - first), unknown)
    for begin, many, cause, who, detail in ranges:
        said = Absence(Fate[cause.upper()], who, detail)
        lines = range(begin // spec.span, (begin + many - 1) // spec.span + 1)
        found.update({number - first: said for number in lines if first <= number < end})
    return Block(spec, first, end - first, None, found)


def _frame(kept: Mapping[str, Any]) -> Frame:
    absence = kept["absence"]
    if absence is not None:
        cause, who, detail = absence
        absence = Absence(Fate(cause), who, detail)
    data = None
    if kept["data"] is not None:
        data = np.frombuffer(kept["data"], dtype_of(kept["dtype"])).reshape(kept["shape"])
    return Frame(kept["index"], data, absence, kept["timestamp"])
