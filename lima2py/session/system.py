"""The system: which detector, which nodes, and where they run.

    system: id10-eiger
    detector: eiger2.yaml                    # a detector, by name or by its file
    set: {temperature: 22}                   # parameters of the detector to set
    acquisition:
      - {node: acq0}                         # started on this host, ends with the session
    processing:
      - {node: proc0}
      - {node: proc1, address: "tcp://gpu1:4711"}   # somebody started it: lima2py node processing
    keys: id10.keys                          # for nodes on other hosts: lima2py keys id10.keys
    memory: {ring: 2 GiB}                    # of all nodes; a node may say its own
    policies: {overload: drop}               # what to do when something goes wrong
    metadata: {instrument: {name: ID10}}     # what is always so; a run adds its own

Other detectors may take frames of the same events:

    detectors:
      basler: {detector: simulator, every: 4}
    acquisition:
      - {node: acq0}
      - {node: acq1, detector: basler}

Without any nodes everything runs in the process that opens the session. The first acquisition node
keeps the books. Relative paths begin at the folder of the system file.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Self

from pydantic import Field, JsonValue, PrivateAttr, ValidationInfo, field_validator

from lima2py.documents import read_yaml
from lima2py.errors import BadParameter, did_you_mean
from lima2py.graph.definition import DETECTOR
from lima2py.graph.stages import Stage
from lima2py.memory_settings import MemorySettings
from lima2py.metadata import Metadata, anchored
from lima2py.policies import Policies
from lima2py.session.other_detectors import OtherDetector
from lima2py.session.place import STAGE, NodeName, NodePlace
from lima2py.tags import Tag, Tags
from lima2py.transport.keys import Keys, read_keys
from lima2py.transport.sockets import is_loopback
from lima2py.units import Model

_LOOPBACK = "127.0.0.1"
_NOTHING: Mapping[str, Any] = MappingProxyType({})


class StageSettings(Model):
    """A stage of processing nodes."""

    reserved: bool = False
    """Only tasks run in it that need something (`needs`), and find it there."""


class System(Model):
    """Which detector, which nodes, and where they run."""

    system: Annotated[str, Field(min_length=1)]
    """What this beamline calls it."""
    detector: Annotated[str, Field(min_length=1)]
    """A detector, by name or by its file."""
    set: dict[str, JsonValue] = Field(default_factory=dict)
    """Parameters of the detector to set."""
    detectors: dict[NodeName, OtherDetector] = Field(default_factory=dict)
    """Other detectors, by the names that graphs have for them."""
    acquisition: tuple[NodePlace, ...] = ()
    """The acquisition nodes; the first one keeps the books."""
    processing: Annotated[tuple[NodePlace, ...], Field(validate_default=True)] = ()
    """The processing nodes."""
    stages: Annotated[dict[str, StageSettings], Field(validate_default=True)] = Field(
        default_factory=dict
    )
    """What is special about stages, by their names."""
    tags: Tags = Field(default_factory=dict)
    """What the one process has, for tasks that need it, where there are no nodes."""
    keys: Annotated[Path | None, Field(validate_default=True)] = None
    """The file of the keys that its nodes use, from `lima2py keys`; required when some are on other
    hosts."""
    ssh: tuple[str, ...] = ()
    """Options of the `ssh` that starts nodes on other hosts: `["-l", "opid10"]`."""
    memory: MemorySettings = Field(default_factory=MemorySettings)
    """Memory and processors of all nodes that do not say otherwise."""
    policies: Policies = Field(default_factory=Policies)
    """What to do when something goes wrong, unless a run says otherwise."""
    metadata: Metadata = Field(default_factory=Metadata)
    """What is always so at this beamline; what is said for a run goes over it, key by key."""

    base: Path = Field(default_factory=Path.cwd)
    """The folder that relative paths begin at; in a system file, that of the file if not given."""

    _file: Path | None = PrivateAttr(None)

    @property
    def file(self) -> Path | None:
        """The system file it was read from; None if it was not: such a one cannot be up."""
        return self._file

    @property
    def places(self) -> tuple[tuple[str, NodePlace], ...]:
        """All nodes, with their kinds."""
        return (
            *(("acquisition", place) for place in self.acquisition),
            *(("processing", place) for place in self.processing),
        )

    @property
    def main(self) -> tuple[NodePlace, ...]:
        """The acquisition nodes of the main detector."""
        return tuple(place for place in self.acquisition if not place.detector)

    @field_validator("processing", mode="after")
    @classmethod
    def _check_nodes(
        cls, processing: tuple[NodePlace, ...], info: ValidationInfo
    ) -> tuple[NodePlace, ...]:
        acquisition: tuple[NodePlace, ...] | None = info.data.get("acquisition")
        if acquisition is None:
            return processing  # refused already
        others = [place for place in acquisition if place.detector]
        main = [place for place in acquisition if not place.detector]
        _check_modules(main, [*others, *processing])
        if wrong := [place.node for place in acquisition if place.stage != STAGE or place.tags]:
            raise ValueError(
                f"acquisition node {', '.join(wrong)}: stage and tags are of processing nodes"
            )
        if acquisition and acquisition[0].detector:
            raise ValueError(
                f"acquisition node {acquisition[0].node} is the first and keeps the books: it must"
                " have the main detector; put the others behind it"
            )
        if "detectors" in info.data:  # if not, they are refused already
            _check_detectors(main, others, processing, info.data["detectors"])
        if bool(processing) != bool(acquisition):
            raise ValueError(
                f"there are {len(acquisition)} acquisition nodes and {len(processing)} processing"
                " nodes; should be at least one of each, or none at all (everything in one process)"
            )
        for what in ("node", "address"):
            known = [getattr(place, what) for place in (*acquisition, *processing)]
            twice = sorted({value for value in known if value and known.count(value) > 1})
            if twice:
                raise ValueError(f"two nodes have the same {what}, {', '.join(twice)}")
        return processing

    @field_validator("stages", mode="after")
    @classmethod
    def _check_stages(
        cls, stages: dict[str, StageSettings], info: ValidationInfo
    ) -> dict[str, StageSettings]:
        known = dict.fromkeys(place.stage for place in info.data.get("processing", ()))
        for name in stages if "processing" in info.data else ():
            if name not in known:
                raise ValueError(
                    f"no processing node is of stage {name}{did_you_mean(name, known)}"
                )
        return stages

    @field_validator("tags", mode="after")
    @classmethod
    def _check_tags(cls, tags: dict[str, Tag], info: ValidationInfo) -> dict[str, Tag]:
        if tags and info.data.get("processing"):
            raise ValueError("are of the one process; here every processing node has its own")
        return tags

    @property
    def chain(self) -> tuple[Stage, ...]:
        """The stages, in the order in which frames go through them; one at least."""
        if not self.processing:
            return (Stage(STAGE, {"this process": self.tags}),)
        nodes: dict[str, dict[str, dict[str, Tag]]] = {}
        for place in self.processing:
            nodes.setdefault(place.stage, {})[place.node] = place.tags
        settings = StageSettings()
        return tuple(
            Stage(name, tags, self.stages.get(name, settings).reserved)
            for name, tags in nodes.items()
        )

    @field_validator("keys", mode="after")
    @classmethod
    def _check_keys(cls, keys: Path | None, info: ValidationInfo) -> Path | None:
        places = (*info.data.get("acquisition", ()), *info.data.get("processing", ()))
        if keys is not None or all(place.address is None for place in places):
            return keys
        for place in places:
            if not is_loopback(place.address or f"tcp://{place.host or _LOOPBACK}:*"):
                raise ValueError(
                    f"node {place.node} is reached over the network, and without keys anybody there"
                    " could command it; make them with  lima2py keys FILE,  copy the file to every"
                    " host, start the nodes with  --keys FILE  and write  keys: FILE  here"
                )
        return keys

    @classmethod
    def read(cls, path: Path, detector: Mapping[str, Any] = _NOTHING) -> Self:
        """Read a system file.

        Args:
            path: the file.
            detector: parameters of the detector to set, besides or instead of those in the file.

        Raises:
            BadParameter: naming every field that is wrong, what was given and what is allowed.
        """
        values = read_yaml(path, "system file")
        if detector and isinstance(values.get("set", {}), dict):
            values["set"] = {**values.get("set", {}), **detector}
        if isinstance(base := values.get("base", ""), str):
            values["base"] = path.parent.absolute() / base
            if isinstance(metadata := values.get("metadata"), dict):
                values["metadata"] = anchored(metadata, values["base"])
        system = cls.load(values, str(path))
        system._file = path.absolute()  # noqa: SLF001 - our own
        return system

    @classmethod
    def local(
        cls,
        detector: str,
        acquisition_nodes: int = 1,
        processing_nodes: int = 0,
        parameters: Mapping[str, Any] = _NOTHING,
    ) -> Self:
        """A system on this host: nodes acq0, acq1 and so on, proc0, proc1 and so on.

        Args:
            detector: by name or by its file.
            acquisition_nodes: how many.
            processing_nodes: how many; with 0 everything runs in one process.
            parameters: parameters of the detector to set.

        Raises:
            BadParameter: if there cannot be that many.
        """
        if acquisition_nodes < 1 or processing_nodes < 0:
            raise BadParameter(
                f"{acquisition_nodes} acquisition nodes and {processing_nodes} processing nodes:"
                " there should be at least 1 acquisition node, and 0 or more processing nodes"
            )
        if processing_nodes == 0 and acquisition_nodes > 1:
            raise BadParameter(
                f"{acquisition_nodes} acquisition nodes without a processing node: with 0"
                " processing nodes everything runs in one process; ask for 1 or more"
            )
        if processing_nodes == 0:
            acquisition_nodes = 0
        values = {
            "system": "local",
            "detector": detector,
            "set": dict(parameters),
            "acquisition": [{"node": f"acq{rank}"} for rank in range(acquisition_nodes)],
            "processing": [{"node": f"proc{rank}"} for rank in range(processing_nodes)],
        }
        return cls.load(values, "system")

    def memory_of(self, place: NodePlace | None) -> dict[str, Any]:
        """The `MemorySettings` of a node (None: of the one process), as plain values."""
        own = place.memory if place else None
        return self.memory.plain() | (
            own.model_dump(mode="json", exclude_unset=True) if own else {}
        )

    def host_of(self, place: NodePlace) -> str | None:
        """By which name nodes that others started reach one of ours; None if there are none."""
        if not any(other.address or other.is_elsewhere for _, other in self.places):
            return None
        return place.host or (socket.gethostname() if self.keys else _LOOPBACK)

    def load_keys(self) -> Keys | None:
        """The keys that its nodes use on the network.

        Raises:
            BadParameter: if there is no such file, or it holds no keys, or is not kept secret.
        """
        return read_keys(self.base / self.keys.expanduser()) if self.keys else None


def _check_modules(acquisition: Sequence[NodePlace], processing: Sequence[NodePlace]) -> None:
    """Refuse modules that only some acquisition nodes have, or that two have.

    Raises:
        ValueError: naming the nodes.
    """
    if wrong := [place.node for place in processing if place.modules]:
        raise ValueError(
            f"node {', '.join(wrong)}: delivers no modules: it processes, or has another detector"
        )
    without = [place.node for place in acquisition if not place.modules]
    if 0 < len(without) < len(acquisition):
        raise ValueError(
            f"acquisition nodes {', '.join(without)}: have no modules, and others have; either all"
            " deliver modules, or none"
        )
    many = Counter(name for place in acquisition for name in place.modules)
    if twice := sorted(name for name, count in many.items() if count > 1):
        raise ValueError(f"modules {', '.join(twice)}: belong to two acquisition nodes")


def _check_detectors(
    main: Sequence[NodePlace],
    others: Sequence[NodePlace],
    processing: Sequence[NodePlace],
    detectors: Mapping[str, OtherDetector],
) -> None:
    """Refuse other detectors without a node of their own, or with several.

    Raises:
        ValueError: naming the detectors and the nodes.
    """
    if wrong := [place.node for place in processing if place.detector]:
        raise ValueError(f"node {', '.join(wrong)}: processes, and has no detector")
    for place in others:
        if place.detector not in detectors:
            known = ", ".join(detectors) or "none"
            raise ValueError(
                f"node {place.node}: there is no other detector {place.detector}; there are {known}"
            )
    if DETECTOR in detectors:
        raise ValueError(f'"{DETECTOR}" means the main detector; choose another name')
    many = Counter(place.detector for place in others)
    if wrong := [name for name in detectors if many[name] != 1]:
        raise ValueError(
            f"detectors {', '.join(wrong)}: each needs one acquisition node,"
            " {node: ..., detector: NAME}"
        )
    if others and len(main) != 1 and not any(place.modules for place in main):
        raise ValueError(
            f"the main detector has {len(main)} acquisition nodes; beside other detectors it needs"
            " one, or several with modules: one node must say which event is processed where"
        )


def open_system(
    name: str, acquisition_nodes: int, processing_nodes: int, detector: Mapping[str, Any]
) -> System:
    """The system a user means.

    Args:
        name: a system file; or a detector, by name or by its file, for a system on this host.
        acquisition_nodes: how many, for a system on this host.
        processing_nodes: how many, for a system on this host.
        detector: parameters of the detector to set.

    Raises:
        BadParameter: if there is no such file, or something in it is wrong.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml") and "system" in read_yaml(path, "system or detector file"):
        return System.read(path, detector)
    return System.local(name, acquisition_nodes, processing_nodes, detector)
