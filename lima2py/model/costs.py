"""What the steps of a frame's way cost on a host, as `lima2py measure` finds and writes them."""

from __future__ import annotations

from typing import Annotated, Any

import yaml
from pydantic import Field, NonNegativeFloat

from lima2py.units import Bytes, Model, Seconds

Cost = Annotated[Seconds, Field(ge=0)]
Size = Annotated[Bytes, Field(ge=0)]
Rate = Annotated[Bytes, Field(ge=1)]


class AcquisitionCosts(Model):
    """Of an acquisition node, in its one thread."""

    block: Cost = 150e-6
    """Of a block: to ask for it, send it, take the answer, and write it down."""
    frame: Cost = 1e-6
    """Of a frame, besides copying it."""
    copy_rate: Rate = 5 * 10**9
    """Bytes a second that the plugin puts into the ring."""
    choice: Cost = 0.1e-6
    """Of a block, for each processing node among which one is chosen."""


class ProcessingCosts(Model):
    """Of a processing node, in its one thread."""

    block: Cost = 150e-6
    """Of a block: to receive it, hand it from task to task, and answer."""
    tasks: dict[str, Cost] = Field(default_factory=dict)
    """Of a frame, by task, or tasks that share a pass."""
    flush: Cost = 0.0
    """To make the files safe, now and then."""
    written: NonNegativeFloat = 0.0
    """Bytes of a frame that go to the disk."""
    memory: Size = 150 * 10**6
    """That the process takes for itself, in bytes."""
    restart: Cost = 1.5
    """To start a lost node anew, until it takes part again; this is work, too."""

    @property
    def frame(self) -> float:
        """Seconds of all tasks for one frame."""
        return sum(self.tasks.values())


class Costs(Model):
    """What was measured on a host, in processor time where it is work."""

    host: str = ""
    """Where it was measured."""
    graph: str = ""
    """What was measured."""
    frame: Size = 0
    """Of which frames, in bytes; 0 if nobody says."""
    acquisition: AcquisitionCosts = Field(default_factory=AcquisitionCosts)
    """Of an acquisition node."""
    processing: ProcessingCosts = Field(default_factory=ProcessingCosts)
    """Of a processing node."""
    message: Cost = 100e-6
    """From one process to another on the same host."""
    tcp_rate: Rate = 2 * 10**9
    """Bytes a second that the one network thread of a node sends, or receives."""
    disk_rate: Rate | None = None
    """Bytes a second that the disk takes for good; what a system has is said in its own file."""

    def text(self) -> str:
        """As a YAML file has them; nothing is measured to more than four digits."""
        return yaml.safe_dump(_rounded(self.plain()), sort_keys=False)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(inner) for name, inner in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value
