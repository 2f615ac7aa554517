"""The pulse of a processing node: what it is at, told to acquisition nodes several times a second.

From a thread of its own, so it goes on while a task works, and stops when Python does not run.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

import zmq

from lima2py.transport import wire
from lima2py.transport.board import Board
from lima2py.transport.sockets import connect, new_socket

BEAT_EVERY = 0.25
"""Seconds between two beats."""


class Pulse:
    """Beats until it is closed.

    Args:
        context: of ZeroMQ.
        addresses: where acquisition nodes take answers.
        run: id of the acquisition.
        rank: of this node.
        incarnation: id of its process.
        board: what it is at.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        addresses: Iterable[str],
        run: str,
        rank: int,
        incarnation: str,
        board: Board,
    ):
        self._told = (run, rank, incarnation)
        self._board = board
        self._over = threading.Event()
        self._sockets: list[zmq.Socket[bytes]] = []
        self._thread = threading.Thread(target=self._beat, name=f"pulse {run[:8]}", daemon=True)
        self._context = context
        for address in addresses:
            self.add(address)

    def add(self, address: str) -> None:
        """Beat for one more, from the next beat on. From any thread, before it is closed."""
        socket = new_socket(self._context, zmq.PUSH, hwm=16)
        connect(socket, address)
        self._sockets.append(socket)

    def start(self) -> None:
        """Begin to beat."""
        self._thread.start()

    def close(self) -> None:
        """Beat no more; may be called twice."""
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join()
        for socket in self._sockets:
            socket.close(linger=0)

    def _beat(self) -> None:
        while not self._over.wait(BEAT_EVERY):
            beat = wire.encode(wire.Beat(*self._told, self._board.at()))
            for socket in self._sockets:
                try:
                    socket.send(beat, zmq.DONTWAIT)
                except zmq.Again:
                    continue  # nobody listens there: it is cut off, or over
