"""A system that is up: its nodes stay, whoever looks at them or commands them.

There is no process that keeps them. What is up stands in the cards of the nodes
(`lima2py.node.standing`); nodes on other hosts are started over ssh, and their cards copied here.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import msgspec

from lima2py.errors import BadCommand, BadParameter, LimaError, NodeError
from lima2py.memory import host_identity
from lima2py.node.detach import START_TIMEOUT
from lima2py.node.life import ACTIVE, State
from lima2py.node.standing import Card, Nest, Process
from lima2py.session.launch import Remote, Staying
from lima2py.session.place import NodePlace
from lima2py.session.system import System
from lima2py.session.writer import Writer
from lima2py.transport.sockets import Context, new_context

QUICK = 2.0
"""Seconds that a node may take to say where it is."""
END_TIMEOUT = 15.0
"""Seconds that nodes may take to end; then those on this host are killed. Those that do not even
answer are killed at once."""
ABORT_TIMEOUT = 10.0
"""Seconds that runs may take to close their files when they are aborted."""
UP = "up"
"""What a node says that answers."""
_GOING = {state.value for state in ACTIVE}


@dataclass(frozen=True)
class NodeStatus:
    """What `lima2py status` says of a node.

    Attributes:
        node: its name.
        kind: `acquisition` or `processing`.
        where: its host and process, or its address.
        says: `up`, or why it is not.
    """

    node: str
    kind: str
    where: str
    says: str


@dataclass(frozen=True)
class RunStatus:
    """What `lima2py status` says of a run that is not over.

    Attributes:
        run: its id.
        name: what the user calls it.
        state: where it is.
        asked: frames asked for, 0 if endless.
        acquired: frames that the detector has delivered to the first acquisition node.
        settled: of these, frames with a fate.
    """

    run: str
    name: str
    state: str
    asked: int
    acquired: int
    settled: int


@dataclass(frozen=True)
class SystemStatus:
    """What `lima2py status` says.

    Attributes:
        nodes: in the order of the system file.
        runs: that are not over, the oldest first.
        writer: who commands the system; empty if nobody does.
    """

    nodes: list[NodeStatus]
    runs: list[RunStatus] = field(default_factory=list)
    writer: str = ""


class Standing:
    """The nodes of a system that is up, or shall be.

    Args:
        system: from a system file.

    Raises:
        BadParameter: if it has no nodes that could stay.
    """

    def __init__(self, system: System):
        if system.file is None or all(place.address for _, place in system.places):
            raise BadParameter(
                f"system {system.system}: has no nodes to keep up; they should stand in a system"
                " file, under acquisition: and processing:, without an address"
            )
        self.system = system
        self.nest = Nest(system.system)

    @classmethod
    def of(cls, system: System) -> Standing | None:
        """The system as it is up; None if it is not.

        Raises:
            BadParameter: if its file says something else than what is up.
        """
        if system.file is None or all(place.address for _, place in system.places):
            return None
        standing = cls(system)
        if not standing.living():
            return None
        standing.check()
        return standing

    def living(self) -> dict[str, Card]:
        """The cards of nodes that are there, or on another host, by name."""
        return {name: card for name, card in self.nest.cards().items() if card.lives}

    def check(self) -> None:
        """Refuse a system file that has changed, where it says which nodes there are.

        Raises:
            BadParameter: saying what differs, and what to do.
        """
        wanted = {place.node: self._wanted(kind, place) for kind, place in self._ours()}
        differ = []
        for name, card in self.living().items():
            there = {"kind": card.kind, "host": card.host, "keys": card.keys, "reach": card.reach}
            if name not in wanted:
                differ.append(f"node {name} is up, and not in the file")
            for what, value in wanted.get(name, there).items():
                if there[what] != value:
                    differ.append(
                        f"node {name} is up with {what} {there[what] or 'none'}, and the file says"
                        f" {value or 'none'}"
                    )
        if differ:
            file = self.system.file
            raise BadParameter(
                f"{file}: has changed since the system {self.system.system} was started:"
                f" {'; '.join(differ)}. Change it back, or start the system again:"
                f"  lima2py down {file};  lima2py up {file}"
            )

    def up(self) -> list[str]:
        """Start the nodes that are not there; the names of those that were started.

        Raises:
            BadParameter: if the file has changed since others were started.
            NodeError: if one does not start; the others stay.
        """
        with self.nest.locked():
            living = self.living()
            if not living:
                self.nest.tidy(logs=True)
            self.check()
            missing = [(kind, place) for kind, place in self._ours() if place.node not in living]
            if not missing:
                return []
            errors: list[str] = []

            def start(place: tuple[str, NodePlace]) -> None:
                try:
                    self.start(*place)
                except LimaError as error:
                    errors.append(str(error))

            with ThreadPoolExecutor(len(missing)) as pool:
                list(pool.map(start, missing))
            if errors:
                if self.living():
                    errors.append(
                        f"the other nodes stay;  lima2py up {self.system.file}  tries again"
                    )
                raise NodeError("\n".join(errors))
            return [place.node for _, place in missing]

    def start(self, kind: str, place: NodePlace) -> Card:
        """Start a node, and leave it running; the caller holds the lock.

        Raises:
            NodeError: if it does not start.
        """
        name = self.system.system
        keys = self._keys
        if place.is_elsewhere:
            options = ["--listen", f"tcp://{place.host}:*", "--detach", name]
            options += ["--keys", keys] if keys else []
            there = shlex.join(["lima2py", "node", kind, place.node, *options])
            ssh = ["ssh", "-o", "BatchMode=yes", *self.system.ssh, str(place.host), there]
            card = _started(place, ssh, f" on {place.host}, over ssh")
            card = msgspec.structs.replace(card, host=place.host, reach=place.host)
            self.nest.put(card)
            return card
        told = [name, kind, place.node, "", self.system.host_of(place), keys, False]
        here = [sys.executable, "-m", "lima2py.node.detach", msgspec.json.encode(told).decode()]
        return _started(place, here, "")

    def handle(
        self, context: Context, kind: str, rank: int, place: NodePlace, writer: Writer
    ) -> Remote:
        """A handle on a node; one that is not there refuses everything."""
        if place.address is not None:
            return Remote(context, place.node, rank, place.address, writer)
        card = self.nest.cards().get(place.node)
        if card is None:
            nowhere = f"ipc://{self.nest.path / place.node}-nowhere"
            log = str(self.nest.path / f"{place.node}.log")
            card = Card(place.node, kind, nowhere, Process(0, 0, host_identity()), log)
        return Staying(context, rank, card, lambda: place.node not in self.nest.cards(), writer)

    def status(self) -> SystemStatus:
        """What the nodes say, within seconds."""
        with self._handles() as (handles, _):
            with ThreadPoolExecutor(len(handles)) as pool:
                nodes = list(pool.map(self._status, self.system.places, handles))
            if nodes[0].says != UP:
                return SystemStatus(nodes)
            lead = handles[0]
            runs = [
                _run_status(lead, told["run"])
                for told in lead.look("runs", timeout=QUICK)
                if told["state"] in (*_GOING, State.PREPARED.value)
            ]
            return SystemStatus(nodes, runs, lead.look("writer", timeout=QUICK).get("who", ""))

    def down(self, now: bool) -> list[str]:
        """End all nodes, in order.

        Args:
            now: abort the runs that go on, and take over from a session that commands.

        Returns:
            The names of those that had to be killed.

        Raises:
            BadCommand: if runs go on, or a session commands the system, and that is not `now`.
            NodeError: if nodes on other hosts do not answer.
        """
        with self.nest.locked(), self._handles(take_over=now) as (handles, writer):
            cards = self.living()
            nodes = [handle for handle in handles if handle.name in cards]
            with ThreadPoolExecutor(len(handles)) as pool:
                answers = list(pool.map(_answers, nodes))
            there = [handle for handle, answer in zip(nodes, answers, strict=True) if answer]
            silent = [handle.name for handle in nodes if handle not in there]
            going = _going(there)
            if going and not now:
                raise BadCommand(
                    f"system {self.system.system}: {_runs(going)} still going on; wait until the"
                    f" end (lima2py attach {self.system.file}), or abort:"
                    f"  lima2py down --now {self.system.file}"
                )
            if handles[0] in there:
                writer.have()
            else:
                writer.seize()
            killed = _kill([cards[name] for name in silent])  # so that nobody waits for them
            self._abort(there, going)
            writer.close()
            for handle in there:
                with suppress(LimaError):  # it has gone, or is killed below
                    handle.look("shutdown", timeout=QUICK)
            killed += self._wait(cards)
            lost = [f"{name} on {cards[name].host} (process {cards[name].process.pid})"
                    for name in silent if not cards[name].is_here]  # fmt: skip
            for card in cards.values():
                if not card.is_here and card.node not in silent:
                    self.nest.remove(card)
            if lost:
                raise NodeError(
                    f"no answer from {', '.join(lost)}: end it there by hand, then give  lima2py"
                    " down  again, or remove its card in"
                    f" {self.nest.path}"
                )
            self.nest.tidy()
            return killed

    def _abort(self, nodes: list[Remote], runs: list[str]) -> None:
        for handle in nodes:
            for run in runs:
                with suppress(LimaError):  # it has ended, or knows nothing of it
                    handle.look("abort", timeout=QUICK, run=run)
        until = time.monotonic() + ABORT_TIMEOUT
        while runs and time.monotonic() < until and _going(nodes):
            time.sleep(0.05)

    def _wait(self, cards: dict[str, Card]) -> list[str]:
        """Until the processes on this host have ended; those that do not in time are killed."""
        here = [card for card in cards.values() if card.is_here]
        until = time.monotonic() + END_TIMEOUT
        while any(card.lives for card in here) and time.monotonic() < until:
            time.sleep(0.02)
        return _kill(here)

    @contextmanager
    def _handles(self, take_over: bool = False) -> Iterator[tuple[list[Remote], Writer]]:
        context = new_context(self.system.load_keys())
        handles: list[Remote] = []
        writer = Writer(lambda: handles, take_over)
        try:
            for rank, (kind, place) in enumerate(self.system.places):
                handles.append(self.handle(context, kind, rank, place, writer))
            yield handles, writer
        finally:
            writer.close()
            for handle in handles:
                handle.close()
            context.destroy(linger=0)

    def _status(self, place: tuple[str, NodePlace], handle: Remote) -> NodeStatus:
        says = UP
        try:
            handle.look("ping", timeout=QUICK)
        except LimaError as error:
            says = str(error).partition("\n")[0]
        return NodeStatus(handle.name, place[0], self._where(place[1]), says)

    def _where(self, place: NodePlace) -> str:
        card = self.nest.cards().get(place.node)
        if place.address is not None or card is None:
            return place.address or ""
        return f"{card.host or 'this host'}, process {card.process.pid}"

    def _ours(self) -> list[tuple[str, NodePlace]]:
        return [(kind, place) for kind, place in self.system.places if place.address is None]

    def _wanted(self, kind: str, place: NodePlace) -> dict[str, str]:
        host = str(place.host) if place.is_elsewhere else ""
        reach = host or self.system.host_of(place) or ""
        return {"kind": kind, "host": host, "keys": self._keys, "reach": reach}

    @property
    def _keys(self) -> str:
        system = self.system
        return str(system.base / system.keys.expanduser()) if system.keys else ""


def _started(place: NodePlace, command: list[str], where: str) -> Card:
    """The card that a command prints which starts a node."""
    who = f"node {place.node}{where}"
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=2 * START_TIMEOUT
        )
    except OSError as error:
        raise NodeError(f"{who}: {command[0]} could not be run: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise NodeError(f"{who}: did not start within {2 * START_TIMEOUT:g} s") from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        hint = (
            "; lima2py should be on the PATH there that ssh commands have:"
            f"  ssh {place.host} lima2py --version"
        ) * (done.returncode == 127)
        raise NodeError(f"{who} did not start: {said or f'status {done.returncode}'}{hint}")
    try:
        return msgspec.json.decode(done.stdout.strip().rpartition(b"\n")[2], type=Card)
    except msgspec.MsgspecError:
        said = done.stdout.decode(errors="replace").strip()
        raise NodeError(f"{who}: should have said who it is, and said: {said[-500:]}") from None


def _run_status(lead: Remote, run: str) -> RunStatus:
    status = lead.look("status", timeout=QUICK, run=run)
    name = lead.look("recall", timeout=QUICK, run=run).get("name", "")
    numbers = (status[word] for word in ("asked", "acquired", "settled"))
    return RunStatus(run, name, status["state"], *numbers)


def _kill(cards: list[Card]) -> list[str]:
    """Kill those nodes on this host that live; their names."""
    living = [card for card in cards if card.is_here and card.lives]
    for card in living:
        with suppress(ProcessLookupError):  # it has just ended
            os.kill(card.process.pid, signal.SIGKILL)
    return [card.node for card in living]


def _answers(handle: Remote) -> bool:
    try:
        handle.look("ping", timeout=QUICK)
    except LimaError:
        return False
    return True


def _going(nodes: list[Remote]) -> list[str]:
    """The ids of runs that go on in any node."""
    found: dict[str, None] = {}
    for handle in nodes:
        with suppress(LimaError):  # it has gone meanwhile
            told = handle.look("runs", timeout=QUICK)
            found.update({run["run"]: None for run in told if run["state"] in _GOING})
    return list(found)


def _runs(going: list[str]) -> str:
    names = ", ".join(run[:8] for run in going)
    return f"run {names} is" if len(going) == 1 else f"runs {names} are"
