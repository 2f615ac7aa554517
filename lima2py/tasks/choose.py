"""Choose frames: by their index, or by what a reducer found in them (veto).

A frame that is not chosen becomes absent, its fate is `rejected`, with the name of the task. Its
data are neither copied nor changed, and the frame stays accounted for. All choices depend on the
frame alone, so they are the same on any number of nodes.
"""

from __future__ import annotations

import operator
from abc import abstractmethod
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PrivateAttr

from lima2py.errors import BadParameter, did_you_mean
from lima2py.frame import Absence, Array, Block, Fate, FrameSpec, Ragged
from lima2py.task import RunContext, Task
from lima2py.units import Model

_BOUNDS = {
    "below": operator.lt,
    "above": operator.gt,
    "at_least": operator.ge,
    "at_most": operator.le,
}


class _Choose(Task):
    """What all of them have in common: the absence that says who rejected a frame, and why."""

    takes_encoded: ClassVar[bool] = True

    _rejected: Absence = PrivateAttr()

    def start(self, run: RunContext) -> None:
        """Frames are rejected in the name this task has in the graph."""
        self._rejected = Absence(Fate.REJECTED, run.task, self._reason)

    @property
    @abstractmethod
    def _reason(self) -> str:
        """Why a frame is rejected, in words: the same for all, so that it is kept only once."""

    def _without(self, block: Block, rejected: NDArray[np.bool_]) -> Block:
        return block.refuse(dict.fromkeys(np.flatnonzero(rejected).tolist(), self._rejected))


class Every(_Choose):
    """Keep every nth frame; all others are rejected.

    Frames are counted by their index in the acquisition, absent ones too, so it makes no difference
    how many nodes there are; after an accumulation, products are counted. Anything can come in:
    images, tables, photons.
    """

    n: Annotated[int, Field(ge=1)]
    """Of so many consecutive frames one is kept."""
    first: Annotated[int, Field(ge=0)] = 0
    """The first frame that is kept; those before it are rejected."""

    def prepare(self, spec: FrameSpec) -> FrameSpec:
        """The frames look as before."""
        return spec

    def process(self, block: Block) -> Block:
        """The same block, with frames rejected."""
        since = np.arange(block.index, block.end) - self.first
        return self._without(block, (since < 0) | (since % self.n != 0))

    @property
    def _reason(self) -> str:
        return f"one of {self.n} is kept"


class FrameRange(_Choose):
    """Keep a range of frames; all others are rejected.

    Frames are counted by their index in the acquisition; after an accumulation, products are
    counted. Anything can come in: images, tables, photons.
    """

    first: Annotated[int, Field(ge=0, alias="start")] = 0
    """The first frame that is kept."""
    stop: Annotated[int | None, Field(ge=1)] = None
    """The first frame that is rejected again; without it all that follow are kept."""

    def prepare(self, spec: FrameSpec) -> FrameSpec:
        """The frames look as before."""
        if self.stop is not None and self.stop <= self.first:
            raise BadParameter(
                f"stop: {self.stop} keeps no frame at all; it is the first one that is not kept"
                f" and should be above start, {self.first}"
            )
        return spec

    def process(self, block: Block) -> Block:
        """The same block, with frames rejected."""
        frames = np.arange(block.index, block.end)
        late = self.stop is not None and frames >= self.stop
        return self._without(block, (frames < self.first) | late)

    @property
    def _reason(self) -> str:
        end = "on" if self.stop is None else f"to {self.stop - 1}"
        return f"only frames from {self.first} {end} are kept"


class Condition(Model):
    """A condition on one number of every frame; if it has several bounds, all of them must hold."""

    input: str | None = None
    """Which of the inputs has the number, by its name in the graph; needed if there are more than
    two. Of two it is the second one."""
    channel: str | None = None
    """What is looked at: the name of a column of a table, for instance `sum` of `roi_counters`. Of
    sparse frames (photons, peaks) it is `count`, the number of rows, and may be left out. A vector
    has no channels, only rows."""
    row: str | int | None = None
    """Which row of a table or vector, by name (the name of a ROI) or by number from 0; needed if
    there is more than one."""
    below: float | None = None
    """The number is less than this."""
    above: float | None = None
    """The number is greater than this."""
    at_least: float | None = None
    """The number is this or greater."""
    at_most: float | None = None
    """The number is this or less."""

    @property
    def bounds(self) -> dict[str, float]:
        """Those that are given, by name."""
        given = {name: getattr(self, name) for name in _BOUNDS}
        return {name: value for name, value in given.items() if value is not None}

    def __str__(self) -> str:
        row = f"row {self.row}" if isinstance(self.row, int) else self.row
        what = " of ".join(filter(None, (self.channel, row)))
        bounds = " and ".join(
            f"{name.replace('_', ' ')} {value:.15g}" for name, value in self.bounds.items()
        )
        return f"{self.input}: {what} {bounds}" if what else f"{self.input}: {bounds}"


class Reject(_Choose, Condition):
    """Reject frames by what reducers found in them: a veto.

    `from` names the frames, and after them the products that decide about them:

        blank: {do: reject, from: [detector, peaks], channel: count, below: 10}

    rejects the frames with fewer than 10 peaks. With one input the frames are judged by their own
    rows: tables, vectors or sparse frames. Conditions on several products, or several on one, are
    listed in `when`.

    NaN meets no condition: a frame whose number is not known is not thrown away. A frame that is
    absent in any of the inputs stays absent, with the cause it has.
    """

    when: tuple[Condition, ...] = ()
    """Several conditions, each with the fields `input`, `channel`, `row`, `below`, `above`,
    `at_least`, `at_most`; these are then not given outside of it."""
    match: Literal["any", "all"] = "any"
    """Whether a frame is rejected when any of `when` is met, or only when all are."""
    prescale: Annotated[int | None, Field(ge=1)] = None
    """Keep one in so many of the frames that would be rejected, as a sample of what is thrown away:
    those whose index is a multiple of it. Every frame then has a column `prescaled`: 1 if it was
    kept only for this reason, and so stands for so many, 0 if not."""

    takes_absent: ClassVar[bool] = True

    _names: tuple[str, ...] = ()
    """Of the inputs."""
    _judges: tuple[_Judge, ...] = PrivateAttr()

    def know_inputs(self, names: tuple[str, ...]) -> None:
        """Conditions name the input they look at."""
        self._names = names

    def prepare(self, frames: FrameSpec, *others: FrameSpec) -> FrameSpec:
        """Find what the conditions look at; the frames look as before."""
        names = self._names or tuple(f"input{number}" for number in range(1 + len(others)))
        inputs = dict(enumerate(zip(names, (frames, *others), strict=True)))
        alone = Condition(**{name: getattr(self, name) for name in Condition.model_fields})
        if not self.when:
            self._judges = (_Judge("", alone, inputs),)
        elif alone != Condition():
            raise BadParameter("when: takes all conditions; put the one beside it into the list")
        else:
            self._judges = tuple(
                _Judge(f"when.{place}.", condition, inputs)
                for place, condition in enumerate(self.when)
            )
        return frames

    def process(self, frames: Block, *others: Block) -> Block:
        """The frames, those that meet the conditions rejected."""
        inputs = (frames, *others)
        met = np.zeros(frames.count, np.bool_)
        if frames.count and all(block.data is not None for block in inputs):
            verdicts = [judge(inputs[judge.input]) for judge in self._judges]
            combine = np.logical_or if self.match == "any" else np.logical_and
            met = combine.reduce(verdicts) & frames.present
        if self.prescale is None:
            return self._without(frames, met)
        sample = met & (np.arange(frames.index, frames.end) % self.prescale == 0)
        judged = self._without(frames, met & ~sample)
        return replace(judged, columns={**judged.columns, "prescaled": sample.astype(np.uint8)})

    @property
    def _reason(self) -> str:
        return f" {'or' if self.match == 'any' else 'and'} ".join(
            str(judge.condition) for judge in self._judges
        )


class _Judge:
    """A condition, with the place of what it looks at.

    Args:
        at: where the condition stands, put in front of the field at fault.
        condition: as it was written.
        inputs: name and spec of each, by position.
    """

    def __init__(self, at: str, condition: Condition, inputs: dict[int, tuple[str, FrameSpec]]):
        self.input = _input_of(at, condition, inputs)
        name, spec = inputs[self.input]
        self.channel, self.row = _place_in(at, condition, name, spec)
        self.bounds = [(_BOUNDS[bound], value) for bound, value in condition.bounds.items()]
        if not self.bounds:
            raise BadParameter(f"{at}below: give at least one of {', '.join(_BOUNDS)}")
        seen = {"input": name, "channel": "count" if spec.kind == "sparse" else self.channel}
        if spec.labels:
            seen["row"] = spec.labels[self.row]
        self.condition = condition.model_copy(update=seen)

    def __call__(self, block: Block) -> NDArray[np.bool_]:
        """Which frames meet it; anything for those that are absent."""
        values = self._values(block)
        met = np.ones(block.count, np.bool_)
        with np.errstate(invalid="ignore"):  # NaN meets nothing
            for holds, bound in self.bounds:
                met &= holds(values, bound)
        return met

    def _values(self, block: Block) -> Array:
        if isinstance(block.data, Ragged):
            return block.data.counts
        values = block.pixels[:, self.row]
        return values[self.channel] if self.channel else values


def _input_of(at: str, condition: Condition, inputs: dict[int, tuple[str, FrameSpec]]) -> int:
    """The position of the input a condition looks at."""
    names = [name for name, _ in inputs.values()]
    if condition.input is None:
        if len(names) > 2:
            raise BadParameter(f"{at}input: which of {', '.join(names[1:])} is meant?")
        return len(names) - 1
    if condition.input not in names:
        raise BadParameter(
            f'{at}input: "{condition.input}" is no input of this task'
            f"{did_you_mean(condition.input, names)}; name it in from"
        )
    return names.index(condition.input)


def _place_in(at: str, condition: Condition, name: str, spec: FrameSpec) -> tuple[str | None, int]:
    """Column and row of what a condition looks at, in the frames of an input."""
    if spec.kind in ("dense", "encoded"):
        raise BadParameter(
            f"{at}input: {name} are images, which have no channels; name what decides after them,"
            " for instance from: [frames, counters], where counters is a roi_counters"
        )
    if spec.kind == "sparse":
        if condition.channel not in (None, "count"):
            raise BadParameter(
                f"{at}channel: sparse frames ({name}) have one channel, count; given:"
                f' "{condition.channel}"'
            )
        if condition.row is not None:
            raise BadParameter(f"{at}row: sparse frames ({name}) are judged by their count only")
        return None, 0
    row = _row_of(at, condition.row, name, spec)
    if spec.kind == "vector":
        if condition.channel is not None:
            raise BadParameter(f"{at}channel: {name} is a vector and has none; say which row")
        return None, row
    columns = spec.dtype.names or ()
    if condition.channel is None:
        raise BadParameter(f"{at}channel: is required, one of {', '.join(columns)}")
    if condition.channel not in columns:
        raise BadParameter(
            f'{at}channel: {name} has no column "{condition.channel}"'
            f"{did_you_mean(condition.channel, columns)}"
        )
    return condition.channel, row


def _row_of(at: str, row: str | int | None, name: str, spec: FrameSpec) -> int:
    (count,) = spec.shape
    which = f"one of {', '.join(spec.labels)}" if spec.labels else f"a number from 0 to {count - 1}"
    if row is None:
        if count == 1:
            return 0
        raise BadParameter(f"{at}row: {name} has {count} rows; say which: {which}")
    if isinstance(row, str) and row in spec.labels:
        return spec.labels.index(row)
    if isinstance(row, int) and 0 <= row < count:
        return row
    hint = did_you_mean(row, spec.labels) if isinstance(row, str) else ""
    raise BadParameter(f"{at}row: {name} has no row {row}; it is {which}{hint}")
