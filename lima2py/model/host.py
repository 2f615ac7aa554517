"""A host of the model: its cores, and its way into the network."""

from __future__ import annotations

from dataclasses import dataclass

from lima2py.model.resources import Cores, Pipe


@dataclass(frozen=True, eq=False)
class Host:
    """What the nodes of a host share.

    Attributes:
        cores: its processors.
        sends: what goes out.
        receives: what comes in.
    """

    cores: Cores
    sends: Pipe
    receives: Pipe
