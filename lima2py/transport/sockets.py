"""ZeroMQ sockets as lima2py uses them: bounded, never lingering, in a private folder.

Local sockets are files in a folder only their owner may enter. A port on the network is bound
only when the system spans hosts. Limits on message size and handshake time hold everywhere.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

import zmq

from lima2py.errors import NodeError

MAX_HEADER = 16 * 2**20
"""The largest message without pixels, in bytes."""
_FOLDER = "lima2py-"


def new_context() -> zmq.Context[zmq.Socket[bytes]]:
    """A ZeroMQ context of our own; `term` it when done."""
    context = zmq.Context()
    context.setsockopt(zmq.BLOCKY, 0)
    return context


def new_socket(
    context: zmq.Context[zmq.Socket[bytes]], kind: int, *, hwm: int, largest: int = MAX_HEADER
) -> zmq.Socket[bytes]:
    """A socket with our limits.

    Args:
        context: where it belongs.
        kind: `zmq.PUSH` and so on.
        hwm: the most messages queued in each direction.
        largest: the largest message part accepted, in bytes.
    """
    socket = context.socket(kind)
    socket.linger = 0
    socket.sndhwm = hwm
    socket.rcvhwm = hwm
    socket.maxmsgsize = largest
    socket.handshake_ivl = 2000
    socket.reconnect_ivl = 20
    socket.reconnect_ivl_max = 500
    socket.heartbeat_ivl = 1000
    socket.heartbeat_timeout = 5000
    return socket


def bind(socket: zmq.Socket[bytes], address: str) -> str:
    """Bind, and say the address a peer connects to (with the port, where one was chosen).

    Raises:
        NodeError: if the address cannot be had.
    """
    try:
        socket.bind(address)
    except zmq.ZMQError as error:
        raise NodeError(f"cannot listen at {address}: {error.strerror}") from None
    endpoint = socket.getsockopt(zmq.LAST_ENDPOINT)
    assert isinstance(endpoint, bytes)  # noqa: S101 - for the type checker
    return endpoint.rstrip(b"\0").decode()


def connect(socket: zmq.Socket[bytes], address: str) -> None:
    """Connect; the peer may come later.

    Raises:
        NodeError: if the address makes no sense.
    """
    try:
        socket.connect(address)
    except zmq.ZMQError as error:
        raise NodeError(f"cannot connect to {address}: {error.strerror}") from None


class PrivateFolder:
    """A folder for the sockets of one session, which only this user may enter.

    It is locked as long as its owner lives, so that whoever comes next can tell the folders of the
    dead from those of the living, and remove them.
    """

    def __init__(self) -> None:
        base = _base()
        _remove_orphans(base)
        self.path = Path(tempfile.mkdtemp(prefix=_FOLDER, dir=base))
        self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    @classmethod
    def of(cls, path: Path) -> PrivateFolder:
        """The folder that somebody else owns, and removes."""
        folder = cls.__new__(cls)
        folder.path = path
        folder._lock = -1  # noqa: SLF001 - our own
        return folder

    def address(self, name: str) -> str:
        """Where a socket of this name lies."""
        return f"ipc://{self.path / name}"

    def close(self) -> None:
        """Remove the folder with everything in it; may be called twice."""
        if self._lock >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1


def _base() -> Path:
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.access(runtime, os.W_OK) and len(runtime) < 50:
        return Path(runtime)  # longer paths do not fit into a socket address
    return Path("/tmp")  # mkdtemp makes an unguessable folder of mode 0700


def _remove_orphans(base: Path) -> None:
    """Remove folders whose owner was killed."""
    for path in base.glob(_FOLDER + "*"):
        try:
            if path.lstat().st_uid != os.getuid() or not path.is_dir():
                continue
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue  # it went away meanwhile
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        except BlockingIOError:
            pass  # its owner lives
        finally:
            os.close(descriptor)
