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

Without any nodes everything runs in the process that opens the session. The first acquisition node
keeps the books. Relative paths begin at the folder of the system file.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, JsonValue, ValidationInfo, field_validator

from lima2py.documents import read_yaml
from lima2py.errors import BadParameter
from lima2py.memory import MemorySettings
from lima2py.metadata import Metadata, anchored
from lima2py.policies import Policies
from lima2py.transport.keys import Keys, read_keys
from lima2py.transport.sockets import is_loopback
from lima2py.units import Model

_ADDRESS = re.compile(r"tcp://(?:\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9._-]+):([1-9][0-9]{0,4})\Z")
_LOOPBACK = "127.0.0.1"
_NOTHING: Mapping[str, Any] = MappingProxyType({})
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}\Z")


def _check_name(name: str) -> str:
    if not _NAME.match(name):
        raise ValueError("should be a letter, then at most 63 letters, digits, _ or -")
    return name


def _check_address(address: str) -> str:
    found = _ADDRESS.match(address)
    if not found or int(found[1]) > 65535:
        raise ValueError("should be what the node printed when it was started: tcp://host:port")
    return address


class NodePlace(Model):
    """A node, and where it runs."""

    node: Annotated[str, AfterValidator(_check_name)]
    """Its name; names files, and stands in reports and errors."""
    address: Annotated[str, AfterValidator(_check_address)] | None = None
    """`tcp://host:port` where it takes commands, if somebody else started it; without an address
    the session starts it on this host."""
    host: str | None = None
    """The name or address of this host by which nodes with an address shall reach this node; the
    name of this host when not given, and 127.0.0.1 without keys."""
    memory: MemorySettings | None = None
    """What differs from the system's `memory`."""


class System(Model):
    """Which detector, which nodes, and where they run."""

    system: Annotated[str, Field(min_length=1)]
    """What this beamline calls it."""
    detector: Annotated[str, Field(min_length=1)]
    """A detector, by name or by its file."""
    set: dict[str, JsonValue] = Field(default_factory=dict)
    """Parameters of the detector to set."""
    acquisition: tuple[NodePlace, ...] = ()
    """The acquisition nodes; the first one keeps the books."""
    processing: Annotated[tuple[NodePlace, ...], Field(validate_default=True)] = ()
    """The processing nodes."""
    keys: Annotated[Path | None, Field(validate_default=True)] = None
    """The file of the keys that its nodes use, from `lima2py keys`; required when some are on other
    hosts."""
    memory: MemorySettings = Field(default_factory=MemorySettings)
    """Memory and processors of all nodes that do not say otherwise."""
    policies: Policies = Field(default_factory=Policies)
    """What to do when something goes wrong, unless a run says otherwise."""
    metadata: Metadata = Field(default_factory=Metadata)
    """What is always so at this beamline; what is said for a run goes over it, key by key."""

    base: Path = Field(default_factory=Path.cwd)
    """The folder that relative paths begin at; in a system file, that of the file if not given."""

    @field_validator("processing", mode="after")
    @classmethod
    def _check_nodes(
        cls, processing: tuple[NodePlace, ...], info: ValidationInfo
    ) -> tuple[NodePlace, ...]:
        acquisition: tuple[NodePlace, ...] | None = info.data.get("acquisition")
        if acquisition is None:
            return processing  # refused already
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
        elsewhere = [
            f"{path}, node {place.node}, host: {place.host} is not this host; start the node there"
            " (lima2py node) and write its address here"
            for place in (*system.acquisition, *system.processing)
            if place.host is not None and place.address is None and not _is_here(place.host)
        ]
        if elsewhere:
            raise BadParameter("\n".join(elsewhere))
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
        if all(other.address is None for other in (*self.acquisition, *self.processing)):
            return None
        return place.host or (socket.gethostname() if self.keys else _LOOPBACK)

    def load_keys(self) -> Keys | None:
        """The keys that its nodes use on the network.

        Raises:
            BadParameter: if there is no such file, or it holds no keys, or is not kept secret.
        """
        return read_keys(self.base / self.keys.expanduser()) if self.keys else None


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


def _is_here(host: str) -> bool:
    """Whether a name or address is one of this host's: whether one can listen there."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as probe:
            probe.bind(address)
    except OSError:
        return False
    return True
