"""Several tasks in one pass over memory: the pixels of a strip are read once and stay in the cache.

Two kinds of tasks can share a pass: those that change every pixel by itself (`Pixelwise`), and
those that only look at the pixels, strip by strip (`Stripwise`). Each of them says what it does to
a pixel or a strip; from all that hang together one function is written and compiled. What is
between two tasks of a pass is stored only if somebody else wants it.

A strip is some whole rows of one frame. Bands lie below one another: row `y` of band `b` is row
`b × height + y`.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np
from pydantic import PrivateAttr

from lima2py.frame import Array, Block, FrameSpec
from lima2py.inputs import needs_images, needs_numbers
from lima2py.kernels.compiled import function_from, modules_of
from lima2py.task import Task

STRIP = 8192
"""About how many pixels a strip has: with what a few tasks need of it, it fits a core's cache."""
LOOKED_AT_STRIP = 4 * STRIP
"""The same, where pixels are only looked at: each strip costs a little, and memory is read quicker
in long pieces."""


RAISED = (Exception, SystemExit)
"""What may come out of a task instead of a product; no task may end a node."""
Made = Block | BaseException | None
"""The product of a task of a pass; what it raised; None for what nobody wanted."""


@dataclass(frozen=True, slots=True)
class Operation:
    """What is done to one pixel.

    Attributes:
        expression: the new pixel, as Python in which `v` is the pixel and every name of `images`
            and `values` stands for a number; numpy's number types (`float32`,
            `uint16` ...) and `math` may be used. It is computed as numba does, and cast to `dtype`.
        dtype: of the new pixel.
        images: arrays `(height, width)` or `(bands, height, width)`; in the expression their pixel
            at the same place.
        values: numpy scalars: plain Python numbers would make everything 64 bits wide.
    """

    expression: str
    dtype: np.dtype[Any]
    images: Mapping[str, Array] = field(default_factory=dict)
    values: Mapping[str, np.generic] = field(default_factory=dict)


class _OnePassTask(Task):
    """What both kinds have in common: alone, each is a pass of its own."""

    _alone: OnePass | None = PrivateAttr(default=None)
    _input: FrameSpec = PrivateAttr()

    def _check(self, spec: FrameSpec) -> None:
        needs_images(spec)
        needs_numbers(spec.dtype)
        self._input = spec

    def process(self, block: Block) -> Block:
        """One block through a pass of this task alone."""
        assert isinstance(self, (Pixelwise, Stripwise))  # noqa: S101 - there are no others
        if self._alone is None:
            self._alone = OnePass(self._input, [Member(self, -1, True)])
        (made,) = self._alone(block)
        if isinstance(made, BaseException):
            raise made
        assert made is not None  # noqa: S101 - for the type checker; it is wanted
        return made

    def finish(self) -> None:
        """Let go of the pass."""
        self._alone = None


class Pixelwise(_OnePassTask):
    """A task that makes each pixel from the one at the same place, and nothing else."""

    _operation: Operation = PrivateAttr()

    @abstractmethod
    def operation(self, spec: FrameSpec) -> Operation:
        """Check the parameters against what comes in; say what is done to a pixel.

        Raises:
            BadParameter: beginning with the field at fault.
        """

    def prepare(self, spec: FrameSpec) -> FrameSpec:
        """Only the type of the pixels may change."""
        self._check(spec)
        self._operation = self.operation(spec)
        self._spec = spec.replace(dtype=np.dtype(self._operation.dtype))
        return self._spec


class Stripwise(_OnePassTask):
    """A task that looks at every pixel once and gives something small.

    For every strip of a frame, in their order, its compiled function is called as
    `function(strip, row, frame, *constants, *buffers)`: `strip` is `(rows, width)` pixels, `row`
    the number of its first row, `frame` the offset in the block. Strips of several frames
    may alternate.
    """

    function: ClassVar[str]
    """The compiled function, written as its module, a colon and its name. It is decorated
    `@njit(nogil=True, cache=True, ...)` and calls no function of another module of ours that
    decides what comes out: numba would not notice when that one changes."""

    def prepare(self, spec: FrameSpec) -> FrameSpec:
        """Check the parameters against what comes in; say what will come out."""
        self._check(spec)
        self._spec = self.product(spec)
        return self._spec

    @abstractmethod
    def product(self, spec: FrameSpec) -> FrameSpec:
        """What will come out, for images of this spec; called once, in `prepare`.

        Raises:
            BadParameter: beginning with the field at fault.
        """

    @property
    def constants(self) -> tuple[Any, ...]:
        """What the function is given besides the pixels: arrays, numpy scalars."""
        return ()

    @abstractmethod
    def buffers(self, count: int) -> tuple[Array, ...]:
        """What the function writes to for a block of `count` frames: arrays, ready to use."""

    @abstractmethod
    def conclude(self, block: Block, buffers: tuple[Array, ...]) -> Block:
        """The product, when all strips of a block were seen.

        Args:
            block: what came in; its pixels may be None, if they were never stored.
            buffers: as `buffers` gave them, filled. Those of absent frames are untouched.
        """


class Member(NamedTuple):
    """One task of a pass.

    Attributes:
        task: prepared.
        source: the position of the member whose product it takes; -1 for what comes in.
        wanted: whether its product is needed outside of the pass. Of what only looks, always.
    """

    task: Pixelwise | Stripwise
    source: int
    wanted: bool


class OnePass:
    """Some tasks, compiled into one function.

    Args:
        spec: of what comes in.
        members: each after the one whose product it takes.
    """

    def __init__(self, spec: FrameSpec, members: Sequence[Member]):
        self.members = tuple(members)
        self.source, constants = _written(spec, self.members)
        self._constants: tuple[Any, ...] = constants
        self._rows = spec.bands * spec.height
        self._width = spec.width
        looks = [item.task for item in members if isinstance(item.task, Stripwise)]
        self._function = function_from(self.source, modules_of(look.function for look in looks))
        self(Block(spec, 0, 0, np.empty((0, *spec.shape), spec.dtype)))  # compiles

    def __call__(self, block: Block) -> list[Made]:
        """A block through all tasks.

        Returns:
            For each member its product; what it raised; None for what nobody wanted.
        """
        pixels = np.ascontiguousarray(block.pixels).reshape(block.count, self._rows, self._width)
        pixels.flags.writeable = False  # one function is compiled, wherever pixels come from
        made: list[Made] = []
        written: list[Array] = []
        opened: dict[int, tuple[Array, ...]] = {}
        given: Made
        for number, (task, _, wanted) in enumerate(self.members):
            if isinstance(task, Stripwise):
                opened[number] = task.buffers(block.count)
                written += opened[number]
            elif wanted:
                spec = task._spec  # noqa: SLF001 - a task of this module
                data = np.empty((block.count, *spec.shape), spec.dtype)
                written.append(data.reshape(pixels.shape))
                made.append(block.carry(spec, data))
                continue
            made.append(None)
        self._function(pixels, block.present, *self._constants, *written)
        for number, (task, source, _) in enumerate(self.members):
            if isinstance(task, Stripwise):
                given = block if source < 0 else made[source]
                if given is None:
                    given = block.carry(self.members[source].task._spec, None)  # noqa: SLF001
                try:
                    assert isinstance(given, Block)  # noqa: S101 - for the type checker
                    made[number] = task.conclude(given, opened[number])
                except RAISED as error:  # without the frames it came through: they hold pixels
                    made[number] = error.with_traceback(None)
        return made


_HEAD = """import math

from numba import njit
from numpy import bool_, empty, float32, float64, int8, int16, int32, int64
from numpy import uint8, uint16, uint32, uint64
{imports}

@njit(**OPTIONS)
def run(pixels, present, {arguments}):
    frames, rows, width = pixels.shape
    strip = {strip}
{scratch}{loops}            s0 = pixels[frame, first:end]
"""
_FRAMES_ALTERNATE = """    for first in range(0, rows, strip):
        end = min(first + strip, rows)
{images}        for frame in range(frames):
            if not present[frame]:
                continue
"""
_FRAME_BY_FRAME = """    for frame in range(frames):
        if not present[frame]:
            continue
        for first in range(0, rows, strip):
            end = min(first + strip, rows)
"""


def _written(spec: FrameSpec, members: Sequence[Member]) -> tuple[str, tuple[Any, ...]]:
    """The source of the function of a pass, and the constants it is given first."""
    looks = {number: item.task for number, item in enumerate(members)
             if isinstance(item.task, Stripwise)}  # fmt: skip
    looked_at = {members[number].source for number in looks}
    names: list[str] = []
    constants: list[Any] = []
    written: list[str] = []
    scratch: list[str] = []
    images: list[str] = []
    strips: list[str] = []
    pixel: dict[int, str] = {}
    calls: list[str] = []
    rows_of: list[str] = ["a = s0[y]"]
    for number, (task, source, wanted) in enumerate(members):
        given = "s0" if source < 0 else f"s{source + 1}"
        if isinstance(task, Stripwise):
            own = [f"c{number}_{place}" for place in range(len(task.constants))]
            names += own
            constants += task.constants
            buffers = [f"b{number}_{place}" for place in range(len(task.buffers(0)))]
            written += buffers
            calls.append(f"look{number}({', '.join([given, 'first', 'frame', *own, *buffers])})")
            continue
        operation = task._operation  # noqa: SLF001 - a task of this module
        dtype = _type_name(task._spec.dtype)  # noqa: SLF001
        stands = {"v": "a[x]" if source < 0 else f"v{source}"}
        loads: list[str] = []
        for name, image in operation.images.items():
            given = f"i{number}_{name}"
            names.append(given)
            constants.append(_as_rows(image, spec))
            images.append(f"{given}_ = {given}[first:end]")
            rows_of.append(f"r_{given} = {given}_[y]")
            stands[name] = f"p_{given}"
            loads.append(f"p_{given} = r_{given}[x]")
        for name, value in operation.values.items():
            names.append(f"n{number}_{name}")
            constants.append(value)
            stands[name] = f"n{number}_{name}"
        # Read first, for conditions to choose among them: a processor that reads under a condition
        # is many times slower.
        step = [*loads, f"v{number} = {dtype}({_renamed(operation.expression, stands)})"]
        pixel[number] = "\n                    ".join(step)
        if wanted:
            written.append(f"out{number}")
            strips.append(f"s{number + 1} = out{number}[frame, first:end]")
        elif number in looked_at:
            scratch.append(f"t{number} = empty((strip, width), dtype={dtype})")
            strips.append(f"s{number + 1} = t{number}[:end - first]")
        if wanted or number in looked_at:
            rows_of.append(f"o{number} = s{number + 1}[y]")
            pixel[number] += f"\n                    o{number}[x] = v{number}"
    # What all frames share and no cache keeps is read once for the frames of a block.
    shared = any(np.size(constant) >= spec.height * spec.width for constant in constants)
    imports = [
        "from {} import {} as look{}".format(*look.function.split(":"), number)
        for number, look in looks.items()
    ]
    text = _HEAD.format(
        imports="".join(f"{line}\n" for line in imports),
        arguments=", ".join([*names, *written]),
        strip=max(1, (STRIP if pixel or shared else LOOKED_AT_STRIP) // spec.width),
        scratch="".join(f"    {line}\n" for line in scratch),
        loops=_FRAMES_ALTERNATE.format(images="".join(f"        {line}\n" for line in images))
        if shared
        else _FRAME_BY_FRAME,
    )
    body = [*strips]
    if pixel:
        body += ["for y in range(end - first):", *(f"    {line}" for line in rows_of)]
        body += ["    for x in range(width):", *(f"        {line}" for line in pixel.values())]
    body += calls
    return text + "".join(f"            {line}\n" for line in body), tuple(constants)


def _type_name(dtype: np.dtype[Any]) -> str:
    return "bool_" if dtype == np.bool_ else str(dtype)


def _renamed(expression: str, stands: Mapping[str, str]) -> str:
    """An expression with its names replaced by what they stand for."""
    return re.sub(r"(?<![\w.])[^\W\d]\w*", lambda found: stands.get(found[0], found[0]), expression)


def _as_rows(image: Array, spec: FrameSpec) -> Array:
    """An image for all bands: array `(bands × height, width)`."""
    whole = np.broadcast_to(image, spec.shape)
    return np.ascontiguousarray(whole).reshape(spec.bands * spec.height, spec.width)
