"""Commands to a node and its answers, over ROUTER and DEALER.

A request is sealed like every message, and is msgpack `[id, command, parameters]`; an answer
carries the same id and either a result or the name and text of an error, which is raised where it
was asked. A request of another version is answered with what both versions are.
`ping` is answered by the loop itself: it says that the node is there, whatever command is being
worked on.

Who commands nodes that others may command, too, has a number (`lima2py.node.lease`) and says it
with every request. A server remembers the highest, and refuses what would change something from
whoever has a lower one: a session that was frozen, and relieved, changes nothing when it returns.
Who has none is told that it is needed.
"""

from __future__ import annotations

import inspect
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import msgspec
import zmq

from lima2py.errors import (
    BadCommand,
    BadParameter,
    LimaError,
    NeedsLease,
    NodeError,
    ProtocolError,
    from_wire,
    to_wire,
)
from lima2py.transport.guard import Guard
from lima2py.transport.refusals import Refusals
from lima2py.transport.sockets import bind, connect, new_socket
from lima2py.transport.wire import seal, unseal

_LARGEST = 2**30  # answers may carry frames of a tap
_LARGEST_REQUEST = 4 * 2**20
_MOST_WAITING = 1000
_BUSY = f"{_MOST_WAITING} commands wait to be worked on: no more are taken"
_TICK_MS = 100
_LARGE = 2**20
"""Bytes from which on an answer is counted, until its peer has taken it."""
_MOST_UNTAKEN = 1
"""Large answers that wait for one peer; what it asks for beyond them is not answered."""

log = logging.getLogger(__name__)


class Request(msgspec.Struct, array_like=True, frozen=True):
    """What is asked; `writer` is the number of who commands the system, 0 of who has none."""

    id: int
    command: str
    parameters: dict[str, Any]
    writer: int = 0


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
        reads: like `quick`, but they change nothing, or are about the lease: anybody may give them.
        leased: whether all others need a lease.

    Attributes:
        address: where it listens.
        refused: what was no request.
        writer: the highest number of a writer that was seen.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        address: str,
        commands: Mapping[str, Callable[..., Any]],
        quick: Mapping[str, Callable[..., Any]],
        reads: Mapping[str, Callable[..., Any]],
        leased: bool = False,
    ):
        self._socket = new_socket(context, zmq.ROUTER, hwm=1000, largest=_LARGEST_REQUEST)
        try:
            self.address = bind(self._socket, address)
        except BaseException:
            self._socket.close()
            raise
        self.refused = Refusals("a request")
        self._guard = Guard([self.address], 2 * _LARGEST_REQUEST, self.refused)
        self._commands = commands
        self._quick = quick
        self._reads = {"ping": lambda: None, **reads}
        self._leased = leased
        self.writer = 0
        self._wake = new_socket(context, zmq.PULL, hwm=1000)
        self._waker = new_socket(context, zmq.PUSH, hwm=1000)
        name = f"inproc://wake-{id(self)}"
        self._wake.bind(name)
        self._waker.connect(name)
        self._untaken: list[tuple[bytes, zmq.MessageTracker]] = []
        self._waking = threading.Lock()
        self._stopping = threading.Event()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="commands")

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
            self._guard.close()
            for socket in (self._socket, self._waker, self._wake):
                socket.close(linger=500)

    def stop(self) -> None:
        """End `serve` once what is being worked on is answered. From any thread."""
        self._stopping.set()

    def _receive(self, pending: list[tuple[bytes, int, Future[Any]]]) -> None:
        frames = self._socket.recv_multipart(copy=False)
        self._guard.took(frames[-1])
        peer = frames[0].bytes
        try:
            request = request_of([frame.buffer for frame in frames[1:]])
        except ProtocolError as error:
            self.refused.note(error)
            if error.reason == "version":  # it is one of ours, who should know what we are
                self._answer(peer, 0, partial(_raise, error))
            return
        self.writer = max(self.writer, request.writer)
        if (read := self._reads.get(request.command)) is not None:
            self._answer(peer, request.id, partial(_called, read, request))
        elif (quick := self._quick.get(request.command)) is not None:
            self._answer(peer, request.id, partial(self._obey, quick, request))
        elif (command := self._commands.get(request.command)) is None:
            self._answer(peer, request.id, partial(_raise, self._unknown(request)))
        elif len(pending) == _MOST_WAITING:
            self._answer(peer, request.id, partial(_raise, NodeError(_BUSY)))
        else:
            future = self._worker.submit(self._obey, command, request)
            pending.append((peer, request.id, future))
            future.add_done_callback(self._wake_up)

    def _unknown(self, request: Request) -> NodeError:
        known = ", ".join(sorted({*self._commands, *self._quick, *self._reads}))
        return NodeError(f'there is no command "{request.command[:100]}" (known: {known})')

    def _obey(self, command: Callable[..., Any], request: Request) -> Any:
        if not request.writer and (self._leased or self.writer):
            raise NeedsLease(
                f"{request.command}: only a session that commands this system may say this"
            )
        if request.writer < self.writer:
            raise BadCommand(
                f"{request.command}: another session has taken over the command of this system;"
                " this one can look only. Open it again, with take_over=True (lima2py run"
                " --take-over) if the other must not go on"
            )
        return _called(command, request)

    def _wake_up(self, _: Future[Any]) -> None:
        with self._waking:  # from the worker, or from the loop when it was quicker
            self._waker.send(b"")

    def _answer(self, peer: bytes, number: int, result: Callable[[], Any]) -> None:
        try:
            sent = seal(_encoder.encode(Answer(number, result())))
        except Exception as error:  # whatever it is, it belongs to the one who asked
            if not isinstance(error, LimaError):
                log.exception("a command failed")
            sent = seal(_encoder.encode(Answer(number, None, to_wire(error))))
        if len(sent) < _LARGE:
            self._socket.send_multipart([peer, sent])
            return
        self._untaken = [(who, one) for who, one in self._untaken if not one.done]
        if [who for who, _ in self._untaken].count(peer) < _MOST_UNTAKEN:
            tracker = self._socket.send_multipart([peer, sent], copy=False, track=True)
            assert tracker is not None  # noqa: S101 - for the type checker
            self._untaken.append((peer, tracker))


def _called(command: Callable[..., Any], request: Request) -> Any:
    try:
        inspect.signature(command).bind(**request.parameters)
    except TypeError as error:
        raise BadParameter(f"{request.command}: {error}") from None
    return command(**request.parameters)


def _raise(error: LimaError) -> None:
    raise error


def request_of(parts: Sequence[bytes | memoryview]) -> Request:
    """The request in the parts that follow the peer's identity."""
    if len(parts) != 1:
        raise ProtocolError(f"a request of {len(parts)} parts", "parts")
    content = unseal(parts[0])
    try:
        return _requests.decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"a malformed request: {error}") from None


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
        writer: int = 0,
        **parameters: Any,
    ) -> Any:
        """Ask, and wait for the answer.

        Args:
            command: its name.
            timeout: seconds to wait at most.
            alive: called now and then while waiting; raises when the node is known to be dead.
            writer: the number of who commands the system; 0 of who has none.
            parameters: what msgpack can say.

        Raises:
            NodeError: when no answer came in time.
            ProtocolError: when the answer is none of ours, or of another version.
            LimaError: what the command raised in the node.
        """
        with self._lock:
            self._number += 1
            number = self._number
            try:
                request = _encoder.encode(Request(number, command, parameters, writer))
            except OverflowError:
                raise BadParameter(
                    f"node {self.who}, {command}: a number among its parameters has more than 64"
                    " bits and cannot be sent; write a smaller one"
                ) from None
            if self._socket.closed:
                raise NodeError(f"node {self.who}: this session is closed")
            try:
                self._socket.send(seal(request), zmq.NOBLOCK)
            except zmq.Again:
                raise NodeError(f"node {self.who} at {self.address} takes nothing") from None
            deadline = time.monotonic() + timeout
            while (left := deadline - time.monotonic()) > 0:
                if alive is not None:
                    alive()
                if not self._socket.poll(int(min(left, 0.1) * 1000) + 1):
                    continue
                answer = self._answer(self._socket.recv())
                if answer.id != number:
                    continue  # too late for somebody who gave up
                if answer.error is not None:
                    raise from_wire(*answer.error)
                return answer.result
            raise NodeError(
                f"node {self.who} at {self.address} did not answer {command} within {timeout:g} s"
            )

    def _answer(self, sent: bytes) -> Answer:
        try:
            return _answers.decode(unseal(sent))
        except (ProtocolError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            said = f"node {self.who} at {self.address} sent {error}"
            raise ProtocolError(said) from None

    def close(self) -> None:
        """Close the socket; may be called twice."""
        with self._lock:
            self._socket.close(linger=0)
