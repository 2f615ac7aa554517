"""Handles on nodes: in this process, started by the session, staying, started by somebody else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from lima2py.errors import LimaError, NeedsLease, NodeError
from lima2py.node.detach import START_TIMEOUT, last_words
from lima2py.node.node import Node
from lima2py.node.standing import Card
from lima2py.session.writer import Writer
from lima2py.transport.greeting import who_listens
from lima2py.transport.rpc import Client
from lima2py.transport.sockets import Context, PrivateFolder

MEETING_TIMEOUT = 2.0
"""Seconds a node that somebody else started may take to say who it is."""


class Handle(ABC):
    """What a session holds of a node.

    Attributes:
        name: of the node.
        rank: its number among the nodes of its kind, in the system file.
    """

    name: str
    rank: int

    @abstractmethod
    def call(self, command: str, *, timeout: float = 30.0, **parameters: Any) -> Any:
        """Tell the node something and wait for its answer.

        Raises:
            LimaError: what the node raised; `NodeError` if it is dead or silent.
        """

    @abstractmethod
    def look(self, command: str, *, timeout: float = 5.0, **parameters: Any) -> Any:
        """Like `call`, for questions answered at once; never waits behind a `call`."""

    def read(self, command: str, *, timeout: float = 5.0, **parameters: Any) -> Any:
        """Like `look`, for whoever follows a run; no `look` ever waits behind it."""
        return self.look(command, timeout=timeout, **parameters)

    def check_alive(self) -> None:
        """Raise `NodeError`, with its last words, if the node is known to be dead."""
        return

    @abstractmethod
    def close(self) -> None:
        """End the node if it is ours, and let go of it; may be called twice."""


class Inside(Handle):
    """A node in this process."""

    def __init__(self, node: Node):
        self.name = node.name
        self.rank = 0
        self._node = node

    def call(self, command: str, *, timeout: float = 30.0, **parameters: Any) -> Any:
        """See `Handle.call`."""
        return {**self._node.commands(), **self._quick}[command](**parameters)

    def look(self, command: str, *, timeout: float = 5.0, **parameters: Any) -> Any:
        """See `Handle.look`."""
        return self._quick[command](**parameters)

    @property
    def _quick(self) -> dict[str, Callable[..., Any]]:
        return {**self._node.quick(), **self._node.reads()}

    def close(self) -> None:
        """See `Handle.close`."""
        self._node.close()


class Remote(Handle):
    """A node behind a command socket, started by somebody else.

    Args:
        context: of ZeroMQ.
        name: of the node.
        rank: among the nodes of its kind.
        address: where it takes commands.
        writer: of a session that must have a right to command it.
    """

    def __init__(
        self, context: Context, name: str, rank: int, address: str, writer: Writer | None = None
    ):
        self.name = name
        self.rank = rank
        self._writer = writer
        self._with_keys = context.keys is not None
        self._caller = Client(context, address, name)
        self._looker = Client(context, address, name)
        self._reader = Client(context, address, name)

    def call(self, command: str, *, timeout: float = 30.0, **parameters: Any) -> Any:
        """See `Handle.call`."""
        return self._ask(self._caller, command, timeout, parameters)

    def look(self, command: str, *, timeout: float = 5.0, **parameters: Any) -> Any:
        """See `Handle.look`."""
        return self._ask(self._looker, command, timeout, parameters)

    def read(self, command: str, *, timeout: float = 5.0, **parameters: Any) -> Any:
        """See `Handle.read`."""
        return self._ask(self._reader, command, timeout, parameters)

    def _ask(self, client: Client, command: str, timeout: float, parameters: dict[str, Any]) -> Any:
        def ask(number: int) -> Any:
            return client.call(
                command, timeout=timeout, alive=self.check_alive, writer=number, **parameters
            )

        if self._writer is None:
            return ask(0)
        try:
            return ask(self._writer.number)
        except NeedsLease:
            self._writer.have()
            return ask(self._writer.number)

    def check_kind(self, kind: str) -> None:
        """Refuse a node that is not there, or of another kind.

        Raises:
            NodeError: with how to start the right one.
            ProtocolError: if it is of another version.
        """
        start = f"start it on its host:  lima2py node {kind} {self.name} --listen tcp://HOST:PORT"
        try:
            told = self.call("describe", timeout=MEETING_TIMEOUT)["kind"]
        except NodeError as error:
            who = who_listens(self._caller.address, self._with_keys)
            raise NodeError(f"{error}: {who}; {start}") from None
        if told != kind:
            raise NodeError(
                f"node {self.name} at {self._caller.address} is a {told} node, not a node for"
                f" {kind}; {start}"
            )

    def close(self) -> None:
        """See `Handle.close`."""
        self._caller.close()
        self._looker.close()
        self._reader.close()


class Tended(Remote):
    """A node that the session may end, and start again."""

    @property
    @abstractmethod
    def running(self) -> bool:
        """Whether the node's process is there."""

    @property
    @abstractmethod
    def left_in_order(self) -> bool:
        """Whether the process has ended since it was told to."""

    @abstractmethod
    def kill(self) -> None:
        """End the process at once."""


class Staying(Tended):
    """A node of a system that is up: it stays when the session leaves.

    Args:
        context: of ZeroMQ.
        rank: among the nodes of its kind.
        card: says who it is.
        has_left: whether its card is no longer there.
        writer: of the session.

    Attributes:
        card: see above.
    """

    def __init__(
        self,
        context: Context,
        rank: int,
        card: Card,
        has_left: Callable[[], bool],
        writer: Writer,
    ):
        super().__init__(context, card.node, rank, card.address, writer)
        self.card = card
        self._has_left = has_left

    @property
    def running(self) -> bool:
        """See `Tended.running`."""
        return self.card.lives

    @property
    def left_in_order(self) -> bool:
        """See `Tended.left_in_order`."""
        return not self.running and self._has_left()

    def check_alive(self) -> None:
        """See `Handle.check_alive`."""
        if self.running:
            return
        how = "left in order" if self._has_left() else "was killed, or crashed"
        words = last_words(Path(self.card.log))
        raise NodeError(f"node {self.name} (process {self.card.process.pid}) {how}{words}")

    def kill(self) -> None:
        """See `Tended.kill`; one on another host is left to itself."""
        if self.card.is_here and self.card.lives:
            with suppress(ProcessLookupError):
                os.kill(self.card.process.pid, signal.SIGKILL)


class Child(Tended):
    """A node in a process of its own on this host, which ends with this one.

    Args:
        context: of ZeroMQ.
        kind: `acquisition` or `processing`.
        name: of the node.
        rank: among the nodes of its kind.
        folder: for the sockets and the node's log.
        host: name by which other hosts reach it, if the system spans several.
        isolated: see `Node`.
    """

    def __init__(
        self,
        context: Context,
        kind: str,
        name: str,
        rank: int,
        folder: PrivateFolder,
        host: str | None = None,
        isolated: bool = False,
    ):
        address = folder.address(f"{name}-{time.monotonic_ns():x}")
        self._log = folder.path / f"{name}.log"
        command = [sys.executable, "-m", "lima2py.node.serve", kind, name, address]
        command += ["--folder", str(folder.path)]
        if host is not None:
            command += ["--host", host]
        if isolated:
            command.append("--isolated")
        if context.keys is not None:
            command += ["--keys", str(context.keys.file)]
        theirs, self._lifeline = os.pipe()
        try:
            with self._log.open("ab") as output:
                self._process = subprocess.Popen(
                    [*command, "--lifeline", str(theirs)],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=[theirs],
                    start_new_session=True,  # a Ctrl-C is for us to turn into a stop
                    cwd="/",
                    # What one thread has let go of serves the others: memory stays flat.
                    env={"MALLOC_ARENA_MAX": "1", **os.environ},
                )
        except OSError as error:
            os.close(self._lifeline)
            raise NodeError(f"node {name} could not be started: {error}") from None
        finally:
            os.close(theirs)
        super().__init__(context, name, rank, address)

    @property
    def pid(self) -> int:
        """Of the node's process."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """See `Tended.running`."""
        return self._process.poll() is None

    @property
    def left_in_order(self) -> bool:
        """See `Tended.left_in_order`; SIGTERM tells it."""
        return self._process.poll() == 0

    def check_alive(self) -> None:
        """See `Handle.check_alive`."""
        code = self._process.poll()
        if code is None:
            return
        how = f"was killed by signal {-code}" if code < 0 else f"exited with status {code}"
        raise NodeError(f"node {self.name} (process {self.pid}) {how}{last_words(self._log)}")

    def wait_ready(self) -> None:
        """Wait until the node answers.

        Raises:
            NodeError: if it died, or does not answer in time.
        """
        self.call("ping", timeout=START_TIMEOUT)

    def kill(self) -> None:
        """See `Tended.kill`."""
        self._process.kill()

    def close(self) -> None:
        """See `Handle.close`."""
        if self._lifeline < 0:
            return
        try:
            if self.running:
                self.look("shutdown", timeout=2.0)
        except LimaError:
            pass  # it is dead or stuck: the lifeline or the kill below ends it
        os.close(self._lifeline)
        self._lifeline = -1
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        super().close()
