"""Call a Python function, or an object that remembers, for every frame.

What it gives must look the same for every frame. Whatever else it gives, and whatever it raises,
makes its frame absent with the reason, and the next frame goes on.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from threading import current_thread, main_thread
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field, JsonValue, PrivateAttr

from lima2py.errors import BadParameter, LimaError, in_words
from lima2py.frame import Array, Block, FrameSpec
from lima2py.task import InputFile, RunContext, Task
from lima2py.tasks.user_code import found, place_of

Dtype = Literal[
    "bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64",
    "float32", "float64",
]  # fmt: skip


class _Promise(NamedTuple):
    """What a function gives for one frame."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __str__(self) -> str:
        if self.dtype.names:
            return f"the columns {', '.join(self.dtype.names)}"
        return f"an array {' × '.join(map(str, self.shape))} of {self.dtype}"


class Python(Task):
    """Call a function of yours for every frame.

    The function is given the frame as an array of its own, which it may change or keep: `(height,
    width)`, `(bands, height, width)` if there are several bands, `(length,)` of a vector, a
    structured array of a table or of sparse rows. From several inputs it is given an array each.
    What it gives decides what comes out:

    * an array of one dimension: a vector; of two or three: an image. Its type is kept. Images as
      high and wide as the input keep their place on the detector, others have none;
    * a number: a table of one row with the column `value`; a dict of numbers: a table of one row
      with these columns. Numbers become float64;
    * None: the frame passes as it is, the function only looks at it.

    To know this before anything starts, it is tried in `prepare` on a frame of zeros, unless
    `shape` and `dtype`, or `columns`, are declared. A class is called with the parameters of `with`
    once for every run on every node that processes; the object it gives is called with each frame,
    in ascending order, and in the end its method `finish()`, if there is one. Every trial has an
    object of its own, which is finished too, on the acquisition node as well.

    A frame on which it raises, or gives something else than before, becomes `task_failed`, with
    what was raised and the line in your file. NaN is a number like any other.
    """

    call: Annotated[str, Field(pattern=r"^([A-Za-z_][\w.]*:)?[A-Za-z_][\w.]*$")]
    """`package.module:function`, or a class there. It is imported as Python does: it is installed,
    or in a folder of PYTHONPATH, where the nodes run. With `file`: only the name."""
    file: InputFile | None = None
    """The Python file that holds it, read anew in every `prepare`; what it imports must be
    installed. Nodes on other hosts need the file too."""
    parameters: dict[str, JsonValue] = Field(default_factory=dict, alias="with")
    """Keyword arguments of the function, or of the class."""
    each: Literal["frame", "block"] = "frame"
    """`block`: it is called with an array of several frames (how many may change) and gives an
    array, or a dict of arrays, with as many items. If it raises, it is called again with each of
    these frames alone."""
    consecutive: Annotated[int, Field(ge=1)] = Field(default=1, alias="group")
    """So many consecutive frames, counted from frame 0, go to the same node."""
    shape: tuple[Annotated[int, Field(ge=1)], ...] | None = None
    """Of the array it gives for one frame; with `dtype`, it is not tried on zeros."""
    dtype: Dtype | None = None
    """Of the array it gives."""
    columns: tuple[Annotated[str, Field(min_length=1)], ...] | None = None
    """The keys of the dict it gives, or `[value]` for a number; it is not tried on zeros."""

    _specs: tuple[FrameSpec, ...] = PrivateAttr()
    _target: Callable[..., Any] = PrivateAttr()
    """The function or class."""
    _object: Any = PrivateAttr(default=None)
    """What is called while a run lasts."""
    _promise: _Promise | None = PrivateAttr(default=None)
    """None for a function that only looks."""
    _met: dict[int, Array | LimaError | None] = PrivateAttr(default_factory=dict)
    """What was given for the frames of a block up to the one that failed. The flow then brings
    them again, one by one; but an object that remembers must meet every frame only once."""

    @property
    def group(self) -> int:
        """See `consecutive`."""
        return self.consecutive * self._specs[0].span

    def prepare(self, spec: FrameSpec, *others: FrameSpec) -> FrameSpec:
        """Find the function, and what it gives."""
        self._specs = (spec, *others)
        if self.each == "block" and any(item.kind == "sparse" for item in self._specs):
            raise BadParameter("each: sparse frames can only be given one by one; leave it out")
        self._target = found(self.call, self.file)
        self._check_arguments()
        if self.shape or self.dtype or self.columns:
            self._promise = self._declared()
        else:
            self._promise = self._tried()
        self._spec = spec if self._promise is None else _product(self._promise, spec)
        return self._spec

    def start(self, run: RunContext) -> None:
        """Make the object, if it is a class."""
        self._object = self._made()

    def process(self, block: Block, *others: Block) -> Block:
        """What the function gives, as one array."""
        blocks, promise = (block, *others), self._promise
        data = None
        if promise is not None:
            data = np.empty((block.count, *promise.shape), promise.dtype)
        if self.each == "frame":
            self._one_by_one(blocks, data)
        else:
            present = block.present
            frames = [_frames(item, present) for item in blocks]
            given = self._given(frames, len(frames[0]))
            if data is not None:
                data[present] = given
        if data is None:
            return block
        return block.carry(self._spec, data.reshape(block.count, *self._spec.shape))

    def finish(self) -> None:
        """Tell the object."""
        ended, self._object = self._object, None
        if not isinstance(ended, partial) and hasattr(ended, "finish"):
            self._call(ended.finish)

    def _one_by_one(self, blocks: Sequence[Block], data: Array | None) -> None:
        """Call it with every frame that is there."""
        first = blocks[0]
        if first.count > 1:
            self._met = {}
        met: dict[int, Array | LimaError | None] = {}
        for offset in map(int, np.flatnonzero(first.present)):
            index = first.index + offset
            if index in self._met:
                given = self._met.pop(index)
            else:
                try:
                    given = self._given([_own(block, offset) for block in blocks])
                except LimaError as error:
                    given = error
            if isinstance(given, LimaError):
                if first.count > 1:
                    self._met = {**met, index: given}
                raise given
            if data is not None:
                data[offset] = given
            met[index] = None if data is None else data[offset]

    def _given(self, frames: Sequence[Array], count: int | None = None) -> Array | None:
        """What it gives for a frame of each input, or for `count` of them, as it was promised."""
        lead = () if count is None else (count,)
        given, promise = _tidy(self._call(self._object, *frames), lead), self._promise
        if promise is None:
            if given is not None:
                raise LimaError(f"gave {_described(given, lead)}, where it gave None before")
        elif given is None or (given.shape, _native(given)) != (
            lead + promise.shape,
            promise.dtype,
        ):
            raise LimaError(f"gave {_described(given, lead)}, promised was {promise}")
        return given

    def _call(self, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        """Call something of the user's; what it raises is told with the line in their file."""
        try:
            return function(*arguments, **keywords)
        except BaseException as error:  # whatever it is: the node lives on
            if isinstance(error, KeyboardInterrupt) and current_thread() is main_thread():
                raise  # a Ctrl-C that came while it was tried
            raise LimaError(in_words(error) + place_of(error, self._target)) from error

    def _made(self) -> Any:
        """What is called with frames."""
        if isinstance(self._target, type):
            return self._call(self._target, **self.parameters)
        return partial(self._target, **self.parameters)

    def _check_arguments(self) -> None:
        """Refuse what cannot be called with so many arrays and these keyword arguments."""
        target, frames = self._target, ["frame"] * len(self._specs)
        if not isinstance(target, type):
            self._check_binds(target, frames, "with" if self.parameters else "call")
        elif not any("__call__" in kind.__dict__ for kind in target.__mro__):
            raise BadParameter(f"call: the class {self.call} has no method __call__(frame)")
        else:
            self._check_binds(target, [], "with")
            self._check_binds(target.__call__, ["self", *frames], "call")

    def _check_binds(
        self, function: Callable[..., Any], positional: Sequence[str], field_name: str
    ) -> None:
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError):
            return  # some compiled functions do not tell theirs
        keywords = {} if "self" in positional else self.parameters
        try:
            signature.bind(*positional, **keywords)
        except TypeError as error:
            arrays = f"{len(self._specs)} arrays" if len(self._specs) > 1 else "an array"
            given = [arrays] if "frame" in positional else []
            given += [json.dumps(keywords)] if keywords else []
            raise BadParameter(
                f"{field_name}: {self.call}{signature} cannot be called with"
                f" {' and '.join(given) or 'nothing'}: {error}"
            ) from None

    def _declared(self) -> _Promise:
        """What the parameters say that it gives."""
        if self.columns:
            if self.shape or self.dtype or len(set(self.columns)) < len(self.columns):
                raise BadParameter("columns: should be different names, without shape and dtype")
            return _Promise((1,), np.dtype([(name, np.float64) for name in self.columns]))
        if not self.shape or not self.dtype or len(self.shape) > 3:
            raise BadParameter(
                "shape: is declared together with dtype, and is [length], [height, width] or"
                f" [bands, height, width]; given: shape {self.shape}, dtype {self.dtype}"
            )
        return _Promise(self.shape, np.dtype(self.dtype))

    def _tried(self) -> _Promise | None:
        """What it gives for zeros; for two frames of them, if it takes several."""
        lead = () if self.each == "frame" else (2,)
        zeros = [_zeros(spec, lead) for spec in self._specs]
        try:
            tried = self._made()
            try:
                given = _tidy(self._call(tried, *zeros), lead)
            finally:
                if not isinstance(tried, partial) and hasattr(tried, "finish"):
                    self._call(tried.finish)
        except LimaError as error:
            raised = error.__cause__ is not None  # which it may not do with real frames
            way_out = (
                "; if it is right for real frames, declare what it gives by shape and dtype, or by"
                " columns"
            )
            raise BadParameter(
                f"call: {self.call} was tried on {'a frame' if not lead else 'two frames'} of"
                f" zeros, to see what it gives: {error}{way_out if raised else ''}"
            ) from error
        return None if given is None else _Promise(given.shape[len(lead) :], _native(given))


def _tidy(given: Any, lead: tuple[int, ...]) -> Array | None:
    """What a function gave, as an array that begins with `lead`; numbers as a table of one row."""
    if given is None:
        return None
    if isinstance(given, Mapping):
        columns = {name: np.asarray(value) for name, value in given.items()}
        if not columns or not all(isinstance(name, str) and name for name in columns):
            raise LimaError("gave a dict whose keys are not names")
        for name, values in columns.items():
            if values.shape != lead or values.dtype.kind not in "biuf":
                raise LimaError(
                    f'gave {_described(values, ())} as "{name}"; in a dict should be'
                    + (" arrays with a number for each frame" if lead else " numbers")
                )
        table = np.empty((*lead, 1), [(name, np.float64) for name in columns])
        for name, values in columns.items():
            table[name][..., 0] = values
        return table
    if not isinstance(given, (np.ndarray, np.generic, bool, int, float)):
        raise LimaError(
            f"gave a {type(given).__name__}; it should give an array, a number, a dict of numbers,"
            " or None"
        )
    array = np.asarray(given)
    item = array.shape[len(lead) :]
    if array.dtype.kind not in "biuf" or len(item) > 3 or 0 in item:
        raise LimaError(
            f"gave {_described(array, ())}; an array should hold numbers, in 1 to 3 dimensions"
        )
    if array.shape[: len(lead)] != lead:
        raise LimaError(
            f"gave {_described(array, ())} for {lead[0]} frames; should be {lead[0]} items"
        )
    return _tidy({"value": array}, lead) if array.ndim == len(lead) else array


def _described(given: Array | None, lead: tuple[int, ...]) -> str:
    if given is None:
        return "None"
    shape = given.shape[len(lead) :]
    return str(_Promise(shape, given.dtype)) if shape else f"a single {given.dtype}"


def _native(array: Array) -> np.dtype[Any]:
    return array.dtype.newbyteorder("=")


def _product(promise: _Promise, spec: FrameSpec) -> FrameSpec:
    """What comes out, when a function gives this for one frame of the first input."""
    shape, dtype = promise
    if dtype.names:
        return FrameSpec("table", shape, dtype, span=spec.span)
    if len(shape) == 1:
        return FrameSpec("vector", shape, dtype, span=spec.span)
    if len(shape) == 2:
        shape = (1, *shape)
    if spec.kind == "dense" and shape[1:] == spec.image:
        return spec.replace(shape=shape, dtype=dtype)
    return FrameSpec("dense", shape, dtype, span=spec.span)


def _zeros(spec: FrameSpec, lead: tuple[int, ...]) -> Array:
    """A frame of zeros; one without rows, if it is sparse."""
    return np.zeros((*lead, *(spec.saved_shape if spec.kind != "sparse" else (0,))), spec.dtype)


def _own(block: Block, offset: int) -> Array:
    """One frame as an array that belongs to nobody else."""
    data = block.frame(offset).data
    assert data is not None  # noqa: S101 - for the type checker; it is present
    return data.copy()


def _frames(block: Block, present: Array) -> Array:
    """The frames that are present, as an array that belongs to nobody else."""
    return block.pixels[present].reshape(-1, *block.spec.saved_shape)
