"""Commands to a node and its answers, over ROUTER and DEALER.

A request is `LIMA`, a version byte and msgpack `[id, command, parameters]`; an answer carries the
same id and either a result or the name and text of an error, which is raised where it was asked.
`ping` is answered by the loop itself, so it is a heartbeat: it says that the node's Python runs,
whatever command is being worked on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import msgspec
import zmq

from lima2py.errors import (
    BadParameter,
    LimaError,
    NodeError,
    ProtocolError,
    from_wire,
    to_wire,
)
from lima2py.transport.sockets import bind, connect, new_socket
from lima2py.transport.wire import MAGIC, VERSION, check_prefix

_PREFIX = MAGIC + bytes([VERSION])
_LARGEST = 2**30  # answers may carry frames of a tap
_TICK_MS = 100

log = logging.getLogger(__name__)


class Request(msgspec.Struct, array_like=True, frozen=True):
    """What is asked."""

    id: int
    command: str
    parameters: dict[str, Any]


class Answer(msgspec.Struct, array_like=True, frozen=True):
    """What is answered; `error` is the class and the text of what was raised."""

    id: int
    result: Any = None
    error: tuple[str, str] | None = None


_requests = msgspec.msgpack.Decoder(Request)
_answers = msgspec.msgpack.Decoder(Answer)
_encoder = msgspec.msgpack.Encoder()


class Server:
    """Answers commands in one loop.

    Args:
        context: of ZeroMQ.
        address: where to listen.
        commands: by name, functions of keyword arguments whose results msgpack can say. They run
            one after the other in a thread of their own.
        quick: like `commands`, but answered at once by the loop: nothing that waits.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        address: str,
        commands: Mapping[str, Callable[..., Any]],
        quick: Mapping[str, Callable[..., Any]],
    ):
        self._socket = new_socket(context, zmq.ROUTER, hwm=1000)
        self.address = bind(self._socket, address)
        self._commands = commands
        self._quick = {"ping": lambda: None, **quick}
        self._wake = new_socket(context, zmq.PULL, hwm=1000)
        self._waker = new_socket(context, zmq.PUSH, hwm=1000)
        name = f"inproc://wake-{id(self)}"
        self._wake.bind(name)
        self._waker.connect(name)
        self._waking = threading.Lock()
        self._stopping = threading.Event()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="commands")
        self.refused = 0

    def serve(self) -> None:
        """Answer until `stop`; then close."""
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._wake, zmq.POLLIN)
        pending: list[tuple[bytes, int, Future[Any]]] = []
        try:
            while not self._stopping.is_set() or pending:
                ready = dict(poller.poll(_TICK_MS))
                if self._wake in ready:
                    self._wake.recv()
                if self._socket in ready:
                    self._receive(pending)
                waiting = [item for item in pending if not item[2].done()]
                for peer, number, future in pending:
                    if future.done():
                        self._answer(peer, number, future.result)
                pending = waiting
        finally:
            self._worker.shutdown(wait=True, cancel_futures=True)
            for socket in (self._socket, self._waker, self._wake):
                socket.close(linger=500)

    def stop(self) -> None:
        """End `serve` once what is being worked on is answered. From any thread."""
        self._stopping.set()

    def _receive(self, pending: list[tuple[bytes, int, Future[Any]]]) -> None:
        parts = self._socket.recv_multipart()
        try:
            if len(parts) != 2:
                raise ProtocolError(f"a request of {len(parts)} parts")
            request = _requests.decode(check_prefix(parts[1]))
        except (ProtocolError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            self.refused += 1
            if self.refused == 1:
                log.warning("refused a request that is none of ours: %s", error)
            return
        if (quick := self._quick.get(request.command)) is not None:
            self._answer(parts[0], request.id, lambda: quick(**request.parameters))
        elif (command := self._commands.get(request.command)) is not None:
            future = self._worker.submit(command, **request.parameters)
            pending.append((parts[0], request.id, future))
            future.add_done_callback(self._wake_up)
        else:
            known = ", ".join(sorted({*self._commands, *self._quick}))
            unknown = NodeError(f'there is no command "{request.command}" (known: {known})')
            self._send(parts[0], Answer(request.id, None, to_wire(unknown)))

    def _wake_up(self, _: Future[Any]) -> None:
        with self._waking:  # from the worker, or from the loop when it was quicker
            self._waker.send(b"")

    def _answer(self, peer: bytes, number: int, result: Callable[[], Any]) -> None:
        try:
            answer = Answer(number, result())
        except Exception as error:  # whatever it is, it belongs to the one who asked
            if not isinstance(error, LimaError):
                log.exception("a command failed")
            answer = Answer(number, None, to_wire(error))
        self._send(peer, answer)

    def _send(self, peer: bytes, answer: Answer) -> None:
        self._socket.send_multipart([peer, _PREFIX + _encoder.encode(answer)])


class Client:
    """Asks one node; safe to use from several threads, which then wait for each other.

    Args:
        context: of ZeroMQ.
        address: of the node's server.
        who: what the node is called, for the complaints.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str, who: str):
        self._context = context
        self.address = address
        self.who = who
        self._lock = threading.Lock()
        self._number = 0
        self._socket = self._connected()

    def _connected(self) -> zmq.Socket[bytes]:
        socket = new_socket(self._context, zmq.DEALER, hwm=1000, largest=_LARGEST)
        connect(socket, self.address)
        return socket

    def call(
        self,
        command: str,
        *,
        timeout: float = 10.0,
        alive: Callable[[], None] | None = None,
        **parameters: Any,
    ) -> Any:
        """Ask, and wait for the answer.

        Args:
            command: its name.
            timeout: seconds to wait at most.
            alive: called now and then while waiting; raises when the node is known to be dead.
            parameters: what msgpack can say.

        Raises:
            NodeError: when no answer came in time.
            LimaError: what the command raised in the node.
        """
        with self._lock:
            self._number += 1
            number = self._number
            try:
                request = _encoder.encode(Request(number, command, parameters))
            except OverflowError:
                raise BadParameter(
                    f"node {self.who}, {command}: a number among its parameters has more than 64"
                    " bits and cannot be sent; write a smaller one"
                ) from None
            if self._socket.closed:
                raise NodeError(f"node {self.who}: this session is closed")
            self._socket.send(_PREFIX + request)
            deadline = time.monotonic() + timeout
            while (left := deadline - time.monotonic()) > 0:
                if alive is not None:
                    alive()
                if not self._socket.poll(int(min(left, 0.1) * 1000) + 1):
                    continue
                answer = _answers.decode(check_prefix(self._socket.recv()))
                if answer.id != number:
                    continue  # too late for somebody who gave up
                if answer.error is not None:
                    raise from_wire(*answer.error)
                return answer.result
            raise NodeError(
                f"node {self.who} at {self.address} did not answer {command} within {timeout:g} s"
            )

    def close(self) -> None:
        """Close the socket; may be called twice."""
        with self._lock:
            self._socket.close(linger=0)
