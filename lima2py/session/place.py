"""A node of a system: what it is called, where it runs, what it has."""

from __future__ import annotations

import re
import socket
from typing import Annotated

from pydantic import AfterValidator, Field

from lima2py.memory_settings import MemorySettings
from lima2py.tags import Tags
from lima2py.units import Model

_ADDRESS = re.compile(r"tcp://(?:\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9._-]+):([1-9][0-9]{0,4})\Z")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}\Z")
STAGE = "processing"
"""The stage of processing nodes that do not say."""


def _check_name(name: str) -> str:
    if not _NAME.match(name):
        raise ValueError("should be a letter, then at most 63 letters, digits, _ or -")
    return name


NodeName = Annotated[str, AfterValidator(_check_name)]


def _check_address(address: str) -> str:
    found = _ADDRESS.match(address)
    if not found or int(found[1]) > 65535:
        raise ValueError("should be what the node printed when it was started: tcp://host:port")
    return address


class NodePlace(Model):
    """A node, and where it runs."""

    node: NodeName
    """Its name; names files, and stands in reports and errors."""
    address: Annotated[str, AfterValidator(_check_address)] | None = None
    """`tcp://host:port` where it takes commands, if somebody else started it; without an address
    the session starts it on this host."""
    host: str | None = None
    """The name or address of the host it runs on, by which nodes on other hosts reach it: the name
    of this host when not given, and 127.0.0.1 without keys. On another host `lima2py up` starts it,
    over ssh."""
    memory: MemorySettings | None = None
    """What differs from the system's `memory`."""
    stage: NodeName = STAGE
    """The stage that this processing node belongs to. Frames go through the stages in the order in
    which they are first named here."""
    tags: Tags = Field(default_factory=dict)
    """What this processing node has, for tasks that need it: `{gpu: 1, memory: 64, host: fast}`."""
    modules: tuple[str, ...] = ()
    """The modules of the detector that this acquisition node delivers, of all frames; processing
    nodes put the frames together. Without modules the frames are shared out, whole."""
    detector: str = ""
    """The name of another detector, among `detectors`, whose frames this acquisition node delivers;
    the main one when not given."""

    @property
    def is_elsewhere(self) -> bool:
        """Whether it runs on another host, and nobody has started it yet."""
        return self.address is None and self.host is not None and not _is_here(self.host)


def _is_here(host: str) -> bool:
    """Whether a name or address is one of this host's: whether one can listen there."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as probe:
            probe.bind(address)
    except OSError:
        return False
    return True
