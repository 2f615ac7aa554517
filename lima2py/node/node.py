"""A node: the part that acquisition and processing nodes share. Names, sockets, taps.

A node can live in a process of its own (`serve`) or inside the user's (a session without nodes).
"""

from __future__ import annotations

import threading
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from lima2py.errors import BadCommand, BadParameter, did_you_mean
from lima2py.memory import host_identity
from lima2py.node.holdings import Granted, Holdings, Needs
from lima2py.node.look import read_stream, read_tap
from lima2py.node.run import Run
from lima2py.shelf import Shelf
from lima2py.tasks.tap import Tap
from lima2py.transport.keys import Keys
from lima2py.transport.sockets import PrivateFolder, new_context

KEPT_RUNS = 2
"""Runs, the present one with them, that can be asked for their taps, streams, state and report:
each keeps up to 64 MiB of every small product, and the images that its tasks were given."""
KEPT_UNSEEN = 100
"""The most runs that are kept since nobody has seen that they are over."""
PATIENCE = 3.0
"""Seconds a run is given to close its files when its node is closed."""


class Node(ABC):
    """The base of both kinds of node.

    Args:
        name: what it is called.
        folder: where its local sockets lie.
        host: the name or address other hosts reach this one by; None keeps everything local.
        isolated: behave as if alone on a host: share no memory, use no local socket.
        keys: that it uses on the network; without any it speaks to this host only.

    Attributes:
        identity: what two nodes must have in common to share memory.
        incarnation: id of this start of the node.
        isolated: see above.
        holdings: what it takes of the memory of its host.
    """

    kind: str

    def __init__(
        self,
        name: str,
        folder: PrivateFolder | None = None,
        host: str | None = None,
        isolated: bool = False,
        keys: Keys | None = None,
    ):
        self.name = name
        self.incarnation = uuid.uuid4().hex
        self.identity = f"isolated:{self.incarnation}" if isolated else host_identity()
        self.context = new_context(keys)
        self._folder = folder
        self._own_folder = folder is None
        self._host = host
        self.isolated = isolated
        self.holdings = Holdings()
        self._closing = threading.Lock()

    @property
    def who(self) -> str:
        """For messages: `processing node proc0`."""
        return f"{self.kind} node {self.name}"

    def addresses(self, purpose: str) -> list[str]:
        """Fresh addresses to listen at: local, and on the network if the system spans hosts."""
        found = []
        if not self.isolated or self._host is None:
            if self._folder is None:
                self._folder = PrivateFolder()
            found.append(self._folder.address(f"{self.name}-{purpose}-{uuid.uuid4().hex[:8]}"))
        if self._host is not None:
            found.append(f"tcp://{self._host}:*")
        return found

    @property
    @abstractmethod
    def runs(self) -> Mapping[str, Run]:
        """The runs it knows, by id."""

    def run(self, run: str) -> Run:
        """One of its runs.

        Raises:
            BadCommand: if it does not know it.
        """
        if run not in self.runs:
            raise BadCommand(f"{self.who} has no run {run[:8]}")
        return self.runs[run]

    def commands(self) -> dict[str, Callable[..., Any]]:
        """What it can be told, one after the other."""
        return {
            "start": self.start,
            "give_up": self.give_up,
            "needs": lambda: msgspec.to_builtins(self.needs()),
            "grant": lambda told: self.grant(msgspec.convert(told, Granted)),
        }

    def quick(self) -> dict[str, Callable[..., Any]]:
        """What it does at once, whatever else it does."""
        return {"change_tap": self.change_tap}

    def reads(self) -> dict[str, Callable[..., Any]]:
        """What it answers at once, to anybody: nothing that changes what it does."""
        return {
            "status": self.status,
            "tap": self.tap,
            "stream": self.stream,
            "describe": self.describe,
            "runs": self.list_runs,
        }

    def list_runs(self) -> list[dict[str, Any]]:
        """The runs it knows, the newest last: their ids, states and outcomes."""
        return [
            {
                "run": run.run,
                "state": run.life.state.value,
                "outcome": run.outcome.value if run.outcome else None,
            }
            for run in list(self.runs.values())
        ]

    def start(self, run: str) -> None:
        """Let a prepared run go."""
        self.run(run).start()

    def give_up(self, run: str) -> None:
        """End a run, whatever state it is in; one that is not known is over already."""
        if run in self.runs:
            self.runs[run].abandon(PATIENCE)

    def status(self, run: str) -> dict[str, Any]:
        """Where a run is."""
        return {
            **self.run(run).status(),
            "incarnation": self.incarnation,
            "holdings": self.holdings.look(),
        }

    def needs(self) -> Needs:
        """What it needs of the memory of its host, now that a run is prepared."""
        return self.holdings.needs(self.identity, list(self.runs.values()))

    def grant(self, granted: Granted) -> None:
        """Take no more of the memory of the host than this from now on.

        Raises:
            LimaError: if that is too little for the run that was prepared last.
        """
        self.holdings.grant(granted)

    def describe(self) -> dict[str, Any]:
        """Who this is."""
        return {
            "name": self.name,
            "kind": self.kind,
            "identity": self.identity,
            "incarnation": self.incarnation,
        }

    def tap(self, run: str, task: str, after: int) -> dict[str, Any]:
        """The frames a tap has kept since: see `Tap.recent`.

        Raises:
            BadParameter: if the graph has no such tap.
        """
        return read_tap(self._tap(run, task), after)

    def change_tap(self, run: str, task: str, parameters: dict[str, Any]) -> None:
        """Give a tap other parameters while the run goes on.

        Raises:
            BadParameter: if the graph has no such tap, or a value cannot be.
        """
        self._tap(run, task).change(Tap.load(parameters, f'task "{task}"'))

    def stream(self, run: str, task: str, after: int) -> dict[str, Any]:
        """The latest small products of a task: see `Recent.after`.

        Raises:
            BadParameter: if the graph has none of this name.
        """
        recent = self.run(run).recent
        if task not in recent:
            raise BadParameter(
                f'task "{task}": has no product that can be followed{did_you_mean(task, recent)}'
            )
        return read_stream(recent[task], after)

    def _tap(self, run: str, task: str) -> Tap:
        taps = self.run(run).plan.taps
        if task not in taps:
            raise BadParameter(f'tap "{task}": the graph has no such tap{did_you_mean(task, taps)}')
        return taps[task]

    def close(self) -> None:
        """End every run and close everything; may be called twice."""
        with self._closing:
            ended = [run.abandon(PATIENCE) for run in self.runs.values()]
            if all(ended):  # else a thread that hangs has sockets open, for which ZeroMQ would wait
                self.context.term()
            if self._own_folder and self._folder is not None:
                self._folder.close()


def forget_ended(runs: dict[str, Any], shelf: Shelf) -> None:
    """Forget runs that are over, but for the last few, to make room for another.

    One whose end nobody has seen yet is kept longer, if there are not too many of them.
    """
    ended = [name for name, run in runs.items() if not run.living]
    for place, name in enumerate(ended[: max(0, len(ended) - KEPT_RUNS + 1)]):
        if runs[name].end_was_seen or place < len(ended) - KEPT_UNSEEN:
            del runs[name]
            shelf.forget(name)
