"""What a user says of the memory of a node, and of the processors it uses."""

from __future__ import annotations

import os
import resource
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from lima2py.errors import LimaError
from lima2py.units import Bytes, Model

RING = 256 * 2**20
"""Bytes of the ring of an acquisition node when nobody says."""
_POLICIES = {"normal": os.SCHED_OTHER, "batch": os.SCHED_BATCH, "fifo": os.SCHED_FIFO}


class MemorySettings(Model):
    """How a node takes its memory and which processors it uses."""

    budget: Annotated[Bytes, Field(ge=2**26)] | None = None
    """The most memory that all nodes of the system take on one host, in bytes: processes, rings,
    taps and whatever else. What it leaves is the rings'. Refused at prepare if it is too little."""
    ring: Annotated[Bytes, Field(ge=2**16)] | None = None
    """The most memory for frames in an acquisition node, in bytes; runs that are still processed
    share it with the one that acquires. If not given, what the budget leaves; 256 MiB without."""
    join: Annotated[Bytes, Field(ge=2**16)] = 128 * 2**20
    """The most memory for frames that a processing node puts together from modules, in bytes; two
    blocks have room in any case."""
    locked: bool = False
    """Keep the ring in memory (mlock); refused when the limit on locked memory is too low."""
    huge_pages: bool = False
    """Take the ring in huge pages: those that the host keeps for this (`vm.nr_hugepages`), or
    transparent ones; refused when it has neither."""
    numa_node: Annotated[int, Field(ge=0)] | None = None
    """Take the ring from this NUMA node; from wherever the system likes when not given."""
    cpus: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Run only on these processors; on all when empty."""
    scheduling: Literal["normal", "batch", "fifo"] | None = None
    """The scheduling class: `batch` leaves processors to others that wait for one, `fifo` takes
    them from all that are not real-time; as the process was started when not given."""
    priority: Annotated[Annotated[int, Field(ge=1, le=99)] | None, Field(validate_default=True)] = (
        None
    )
    """Of `fifo`, which needs it: from 1 to 99, the highest."""

    @field_validator("priority", mode="after")
    @classmethod
    def _check_priority(cls, priority: int | None, info: ValidationInfo) -> int | None:
        fifo = info.data.get("scheduling") == "fifo"
        if fifo and priority is None:
            raise ValueError("scheduling fifo needs one: should be from 1 to 99, the highest")
        if priority is not None and not fifo:
            raise ValueError("only scheduling fifo has one; leave it out")
        return priority

    @property
    def ring_bytes(self) -> int:
        """The size of the ring, where no budget decides."""
        return self.ring or RING

    def apply_to_process(self) -> None:
        """Bind all threads of this process to `cpus`, in the scheduling class.

        Raises:
            LimaError: if this host has no such processor, or does not allow the class.
        """
        if self.cpus:
            available = os.sched_getaffinity(0)
            if not set(self.cpus) <= available:
                raise LimaError(f"cpus {sorted(self.cpus)}: this host allows {sorted(available)}")
        for thread in map(int, os.listdir("/proc/self/task")):
            try:
                if self.cpus:
                    os.sched_setaffinity(thread, self.cpus)
                if self.scheduling is not None:
                    os.sched_setscheduler(
                        thread, _POLICIES[self.scheduling], os.sched_param(self.priority or 0)
                    )
            except ProcessLookupError:
                continue  # it has ended meanwhile
            except PermissionError:
                allowed = resource.getrlimit(resource.RLIMIT_RTPRIO)[0]
                raise LimaError(
                    f"scheduling {self.scheduling}, priority {self.priority}: this user may go up"
                    f" to {allowed}; raise the limit (rtprio in /etc/security/limits.conf,"
                    " LimitRTPRIO= in a systemd unit) or leave scheduling out"
                ) from None
