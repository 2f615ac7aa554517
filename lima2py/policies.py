"""What a run does when something goes wrong: one choice for each kind of trouble.

Whatever is chosen, every frame ends with exactly one fate, and files close in order.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from lima2py.units import Model, Seconds

Patience = Annotated[Seconds, Field(gt=0)]


class Policies(Model):
    """The choices of a run; those of the system file hold where a run does not say otherwise."""

    node_loss: Literal["redispatch", "mark", "stop"] = "redispatch"
    """A processing node is lost. `redispatch` gives what it had not done to others; `mark` makes it
    absent (`node_lost`) and goes on; `stop` redispatches, and acquires no more."""
    overload: Literal["wait", "drop", "stop"] = "wait"
    """The ring is full. `wait` does not ask the detector until there is room: it holds frames back,
    or says itself which it lost; `drop` reads on and makes those frames absent (`overrun`); `stop`
    acquires no more."""
    task_failure: Literal["mark", "pass", "stop"] = "mark"
    """A task fails on a frame, and does not say itself what to do (`if_fails`). `mark` makes the
    frame absent (`task_failed`); `pass` hands it on as it came, where what comes out looks like
    what came in, and is `mark` elsewhere; `stop` marks it, and acquires no more."""
    disk: Literal["mark", "wait", "stop"] = "mark"
    """A sink cannot write, and does not say itself what to do (`if_fails`). `mark` makes the frames
    absent in its file (`not_saved`); `wait` tries again until the disk takes them, while the ring
    fills; `stop` marks them, and acquires no more."""
    missing_modules: Literal["mark", "keep", "stop"] = "mark"
    """Some modules of a frame, which other acquisition nodes deliver, are missing. `mark` makes the
    frame absent (`incomplete`); `keep` saves what is there: the pixels of missing modules are the
    largest number of integers, NaN of floats, and the column `module_missing` has a bit for each of
    them; `stop` marks it, and acquires no more."""
    join_timeout: Patience = 2.0
    """How long a frame waits for modules that other acquisition nodes deliver, in seconds. A node
    that was late once is waited for again when it has caught up."""
    detector_loss: Literal["stop", "wait"] = "stop"
    """A detector that clocks itself is silent, or the node that delivers some of its modules is
    lost. `stop` ends the run (`detector_timeout`); `wait` goes on: until the detector comes back,
    or without these modules; or until somebody stops the run."""
    dispatch: Literal["least_loaded", "round_robin"] = "least_loaded"
    """Which node is given the next frames: the one with the least to do, or each in its turn."""
    block_deadline: Patience = 30.0
    """The longest that tasks may take over one block, in seconds. A node that takes longer is lost:
    what it was at is absent (`deadline`), and the node is started again."""
    node_patience: Patience = 10.0
    """How long frames wait in the ring while no processing node is left, in seconds; then they are
    absent (`node_lost`), and the run fails."""
    drain_deadline: Patience = 300.0
    """How long a stop goes on processing what was acquired, in seconds; what is left then is absent
    (`deadline`)."""
    restarts: Annotated[int, Field(ge=0, le=1000)] = 5
    """How many times in a minute a node that was lost is started again; after that it stays away
    until the next run."""
