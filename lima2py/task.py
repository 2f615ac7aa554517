"""What can be done to frames: the base of every task and of every sink.

A task is one class. Its fields are its parameters, as a user writes them in YAML; attributes that
begin with an underscore are its running state. A fresh task is built for every run. The order of
calls is

    prepare   start   (process | flush)*   finish

`prepare` may be called without any of the others: it checks, says what will come out, and
touches nothing outside the task. All others come from one thread.

How many inputs a task takes is how many arguments its `prepare` takes; `process` is given as many
blocks, of the same frames.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import AfterValidator, Field, PrivateAttr

from lima2py.acquisition import Parameters
from lima2py.errors import BadParameter
from lima2py.frame import Array, Block, FrameSpec
from lima2py.geometry import Affine, NotOnPixels, Roi
from lima2py.policies import Policies
from lima2py.shelf import Shelf
from lima2py.tags import Tags
from lima2py.units import Model


def _looks_like_a_path(path: str) -> str:
    if not path.strip() or "\0" in path:
        raise ValueError("should be the path of a file")
    return path


class ReadByTask:
    """Marks text that is the path of a file a task reads (`InputFile`)."""


InputFile = Annotated[str, AfterValidator(_looks_like_a_path), ReadByTask()]
"""The path of a file a task reads; in a graph file it is relative to the graph file."""


@dataclass(frozen=True, slots=True)
class RunContext:
    """The run a task works for.

    Attributes:
        run: the acquisition's id, 32 hexadecimal digits.
        name: what the user called it.
        task: the name of this task in the graph.
        node: the name of the node it runs on.
        rank: the node's number in its stage, 0-based.
        nodes: how many nodes share the frames.
        nb_frames: how many frames were asked for in all; 0 if endless.
        detector: what is known of the detector (`Detector.describe_all`).
        parameters: the three parameter sets.
        graph: the text of the graph.
        metadata: what the user says of sample, instrument and experiment.
        host: the host of the acquisition node that keeps the books.
        started: when the run was prepared, seconds since 1970; in a master, when it was started.
        paths: for every sink, in the order of the graph, the path its files begin with.
        frames_per_block: the most frames with data that come in one block.
        rois: rectangles in detector pixels that tasks of the graph look at, by `task.roi`.
        maps: for sinks, the images that belong to what they are given (`Task.maps`).
        shared: what the tasks of one node have in common in this run (files, say), by key.
        shelf: of the node, for what is kept of frames for who looks at them.
        policies: what to do when something goes wrong.
        stop: ask for the end of the acquisition, with the reason in words. Returns at once.
        stopping: whether what is not done by now shall be given up: nobody may wait any longer.
        alive: to be called every second or so by who waits within a block: it is no hang.
        of_other: for tasks that see frames of one other detector only, by name, how the run looks
            from there.
    """

    run: str
    name: str
    task: str = ""
    node: str = "local"
    rank: int = 0
    nodes: int = 1
    nb_frames: int = 0
    detector: Mapping[str, Any] = field(default_factory=dict)
    parameters: Parameters = field(default_factory=lambda: Parameters({}, {}, {}))
    graph: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    host: str = ""
    started: float = 0.0
    paths: Mapping[str, str] = field(default_factory=dict)
    frames_per_block: int = 1
    rois: Mapping[str, tuple[int, int, int, int]] = field(default_factory=dict)
    maps: Mapping[str, Array] = field(default_factory=dict)
    shared: dict[str, Any] = field(default_factory=dict)
    shelf: Shelf = field(default_factory=Shelf, compare=False)
    policies: Policies = field(default_factory=Policies)
    stop: Callable[[str], None] = lambda _reason: None
    stopping: Callable[[], bool] = lambda: False
    alive: Callable[[], None] = lambda: None
    of_other: Mapping[str, OtherDetector] = field(default_factory=dict)

    def of_task(self, name: str, span: int, maps: Mapping[str, Array] | None = None) -> RunContext:
        """The same for one task, whose input counts `span` frames of the detector as one."""
        other = self.of_other.get(name)
        told = self if other is None else other.seen_from(self)
        return replace(
            told,
            task=name,
            nb_frames=self.nb_frames // span,
            frames_per_block=max(1, self.frames_per_block // span),
            maps=maps or {},
        )

    def plain(self) -> dict[str, Any]:
        """The facts of the run as plain values, for files."""
        kept = {name: getattr(self, name) for name in _FACTS}
        return {**kept, "parameters": self.parameters._asdict()}

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Self:
        """What `plain` gave; without what belongs to one node at work."""
        rois = {name: tuple(box) for name, box in values["rois"].items()}
        kept = {name: values[name] for name in _FACTS}
        return cls(**{**kept, "rois": rois, "parameters": Parameters(**values["parameters"])})


class OtherDetector(NamedTuple):
    """What is known of another detector than the main one.

    Attributes:
        detector: see `RunContext.detector`.
        hardware: see `Parameters.hardware`.
    """

    detector: Mapping[str, Any]
    hardware: dict[str, Any]

    def seen_from(self, run: RunContext) -> RunContext:
        """The run as it is for a task that sees this detector only: the geometry is of the main."""
        metadata = {key: value for key, value in run.metadata.items() if key != "geometry"}
        return replace(
            run,
            detector=self.detector,
            parameters=run.parameters._replace(hardware=self.hardware),
            metadata=metadata,
        )


_FACTS = (
    "run", "name", "task", "node", "rank", "nodes", "nb_frames", "detector", "graph", "metadata",
    "host", "started", "rois",
)  # fmt: skip


class Task(Model, ABC):
    """The base of every task."""

    takes_absent: ClassVar[bool] = False
    """Whether `process` is also given blocks in which every frame is absent."""
    takes_encoded: ClassVar[bool] = False
    """Whether it can be given images that are compressed still; refused at prepare if not."""
    remembers: ClassVar[bool] = False
    """Whether what comes out also depends on frames given before. When other tasks raise on a block
    they are given its frames one by one, to find the one at fault."""
    needs: Tags = Field(default_factory=dict)
    """What every node that it runs on must have, by the names of tags. A graph that needs what no
    stage of the system has is refused."""
    if_fails: Literal["mark", "pass", "stop"] | None = None
    """When it fails on a frame: `mark` that frame as absent and go on; `pass` it on as it came, if
    what comes out looks like what comes in; or mark it and `stop` the acquisition. As the run's
    policy `task_failure` says if not given."""

    _spec: FrameSpec = PrivateAttr()
    """What comes out; set by `prepare` of most tasks."""

    @property
    def group(self) -> int:
        """Consecutive frames that must meet in one node (an accumulation of n needs n)."""
        return 1

    def know_inputs(self, names: tuple[str, ...]) -> None:
        """The names of the inputs in the graph, said before `prepare`; few tasks need them."""
        return

    @property
    def maps(self) -> Mapping[str, Array]:
        """Arrays that readers of what comes out need, by name, saved with it by `save_sparse`.

        Asked for once, after `start`.
        """
        return {}

    @abstractmethod
    def prepare(self, *inputs: Any, **_: Any) -> FrameSpec:
        """Check the parameters against what comes in; say what will come out.

        Args:
            inputs: a `FrameSpec` for each input.

        Raises:
            BadParameter: beginning with the field at fault: `by: cannot ...`.
        """

    def start(self, run: RunContext) -> None:
        """Take what processing needs (files, memory); called once, after `prepare`."""
        return

    @abstractmethod
    def process(self, *inputs: Any, **_: Any) -> Block:
        """One block in, the block of the same frames out.

        The input is read-only. A task need not look at absences: what comes out for an absent
        frame is never used, and a block without any data does not come here. Frames are made
        absent by `block.refuse`.

        Args:
            inputs: a `Block` for each input, all of the same frames. The first one also has the
                absences of the others, so that `first.carry(...)` is right.
        """

    def flush(self) -> None:
        """Make everything given so far safe; only sinks have something to do."""
        return

    def finish(self) -> None:
        """The last block has passed, or the run is given up: close what `start` opened."""
        return


class Sink(Task):
    """A task that keeps frames: it hands its blocks on unchanged.

    Every frame that comes, absent ones too, gets a row. The flow calls `write`, not `process`, and
    reports a frame as saved only after `flush` has returned. When it fails, the frames are
    `not_saved` for this sink, and `if_fails` says whether the acquisition goes on. One that waits
    does so within `write`, `flush` and `finish`, until `RunContext.stopping`.
    """

    if_fails: Literal["mark", "wait", "stop"] | None = None  # type: ignore[assignment]
    """When it cannot write: `mark` the frames as `not_saved` and go on; `wait` and try again until
    the disk takes them; or mark them and `stop` the acquisition. As the run's policy `disk` says if
    not given."""
    file: str
    """Where its files begin, relative to the output folder; may contain {name}, {run}, {sink},
    {date}."""
    exists: Literal["abort", "overwrite", "append-number"] = "abort"
    """What to do if such files exist: refuse, delete them, or write `{file}_0001` and so on."""

    @property
    @abstractmethod
    def files(self) -> list[str]:
        """The paths of the files written so far by this node."""

    @property
    def remarks(self) -> list[str]:
        """What the user should know when the run is over, though nothing went wrong."""
        return []

    @property
    def waiting(self) -> str:
        """What it waits for just now, in words; empty if it does not. From any thread."""
        return ""

    @abstractmethod
    def write(self, block: Block, *others: Block) -> int:
        """Keep a block; return the row of its first frame (the others follow).

        Args:
            block: of the first input, with the absences of all.
            others: of the other inputs, if it takes any.

        Raises:
            StorageError: if it could not be written; its frames are then `not_saved`.
        """

    def process(self, block: Block, *others: Block) -> Block:
        """Keep a block and hand it on."""
        self.write(block, *others)
        return block


def place_of(spec: FrameSpec, field_name: str) -> Affine:
    """Where the pixels of a product lie on the detector.

    Args:
        spec: of the product.
        field_name: the parameter that needs to know, for the complaint.

    Raises:
        BadParameter: if they have no place there.
    """
    if spec.kind != "dense":
        raise BadParameter(
            f"{field_name}: a {spec.kind} product has no pixels on the detector, only images have"
        )
    if spec.to_detector is None:
        raise BadParameter(
            f"{field_name}: the images that come in have no place on the detector (they were"
            " computed, or put together from different parts of it); put this task before that"
        )
    return spec.to_detector


def local_box(box: Roi, spec: FrameSpec, field_name: str) -> Roi:
    """A rectangle of detector pixels as pixels of a product, exactly.

    Args:
        box: in detector pixels.
        spec: of the product.
        field_name: the parameter it came from, for the complaint.

    Raises:
        BadParameter: if the product has no place on the detector, or the rectangle does not lie
            on whole pixels of it, or reaches outside.
    """
    place = place_of(spec, field_name)
    if spec.detector_shape is not None:
        height, width = spec.detector_shape
        if not box.inside(Roi(0, 0, width, height)):
            raise BadParameter(
                f"{field_name}: {box} ([x, y, width, height]) reaches outside the detector, which"
                f" has {width} × {height} pixels (width × height)"
            )
    seen = place.covered(spec.box)
    if not box.inside(seen):
        raise BadParameter(
            f"{field_name}: {box} ([x, y, width, height] in detector pixels) reaches outside the"
            f" part of the detector seen here, {seen}; take it from before the crop, or crop less"
        )
    try:
        return place.local(box)
    except NotOnPixels as error:
        raise BadParameter(
            f"{field_name}: {box} does not fall on whole pixels of the product, each of which is"
            f" {abs(place.determinant):g} detector pixels; {error}"
        ) from None
