"""The right of one session to command a system that others may command, too: asked for when needed.

See `lima2py.node.lease` for what the nodes do.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import psutil

from lima2py.errors import BadCommand, LimaError
from lima2py.node.lease import RENEW_EVERY, Holder
from lima2py.node.standing import Process

QUICK = 2.0
"""Seconds that a node may take to say what it has seen."""

if TYPE_CHECKING:
    from lima2py.session.launch import Handle


class Writer:
    """The lease of a session; safe to use from several threads.

    Args:
        nodes: gives the handles on all nodes; the first one grants the lease.
        take_over: whether to take it from a session that has it.

    Attributes:
        number: to be said with whatever nodes are asked; 0 before the first command that needs it.
    """

    def __init__(self, nodes: Callable[[], Sequence[Handle]], take_over: bool):
        self.number = 0
        self._nodes = nodes
        self._take_over = take_over
        self._lost = ""
        self._asking = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="writer lease", daemon=True)

    @property
    def commands(self) -> bool:
        """Whether this session has the lease, as far as it knows."""
        return self.number > 0 and not self._lost

    def have(self) -> None:
        """Make sure of the lease.

        Raises:
            BadCommand: if another session has it, or took it.
            NodeError: if the node that grants it is not there.
        """
        if self._lost:
            raise BadCommand(
                f"{self._lost}; this session can look only. Open it again, with take_over=True"
                " (lima2py run --take-over) if the other must not go on"
            )
        with self._asking:
            if self.number:
                return
            self.number = self._nodes()[0].look(
                "lease", holder=_holder(), above=self._highest(), take_over=self._take_over
            )
            self._highest()  # asked with our number: from now on they refuse lower ones
            self._thread.start()

    def seize(self) -> None:
        """Command the others while the node that grants the lease is not there."""
        self.number = self._highest() + 1

    def _highest(self) -> int:
        """The highest number that a node has seen; those that are lost are told theirs later."""

        def seen(node: Handle) -> int:
            with suppress(LimaError):
                return int(node.look("describe", timeout=QUICK)["writer"])
            return 0

        nodes = self._nodes()
        with ThreadPoolExecutor(len(nodes)) as pool:
            return max(pool.map(seen, nodes))

    def confirm(self) -> None:
        """Make sure of the lease now, not only as of the last renewal: see `have`."""
        self.have()
        try:
            self._nodes()[0].look("renew", number=self.number, holder=_holder())
        except BadCommand as error:
            self._lost = str(error)
            self.have()

    def close(self) -> None:
        """Let others have it; may be called twice."""
        if self._thread.ident is not None and not self._closing.is_set():
            self._closing.set()
            self._thread.join()
            with suppress(LimaError):  # then it expires
                self._nodes()[0].look("release", number=self.number)

    def _renew(self) -> None:
        while not self._closing.wait(RENEW_EVERY):
            try:
                self._nodes()[0].look("renew", number=self.number, holder=_holder())
            except BadCommand as error:
                self._lost = str(error)
                return
            except LimaError:
                continue  # it is lost, or hangs; when it is there again, we have it still


def _holder() -> dict[str, Any]:
    program = Path(sys.argv[0]).name or "python"
    user = psutil.Process().username()
    who = f"{user}@{socket.gethostname()} (process {os.getpid()}, {program})"
    plain = msgspec.to_builtins(Holder(who, Process.this()))
    assert isinstance(plain, dict)  # noqa: S101 - for the type checker
    return plain
