"""ZeroMQ sockets as lima2py uses them: bounded, never lingering, in a private folder.

Local sockets are files in a folder only their owner may enter. A port on the network is bound
only when the system spans hosts: with keys it takes only peers that have them, too, and what goes
through it is encrypted; without keys it can only be one of the loopback, which other hosts do not
reach. Limits on message size and handshake time hold everywhere.
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
import shutil
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

import zmq
from zmq.utils import z85

from lima2py.errors import NodeError
from lima2py.transport.keys import Keys

MAX_HEADER = 16 * 2**20
"""The largest message without pixels, in bytes."""
_FOLDER = "lima2py-"


class Context(zmq.Context[zmq.Socket[bytes]]):
    """A ZeroMQ context, and the keys that its sockets use on the network; None without."""

    keys: Keys | None = None


def new_context(keys: Keys | None = None) -> Context:
    """A ZeroMQ context of our own; `term` it when done.

    Args:
        keys: that sockets on the network use, as clients and as servers.
    """
    context = Context()
    context.setsockopt(zmq.BLOCKY, 0)
    context.keys = keys
    if keys is not None:
        # A shadow: whoever destroys the context closes its own sockets, and not this one under the
        # hands of its thread, which ends when the context does.
        asked: zmq.Socket[bytes] = zmq.Context.shadow(context.underlying).socket(zmq.REP)
        asked.linger = 0
        asked.bind("inproc://zeromq.zap.01")
        gate = threading.Thread(target=_admit, args=(asked, keys), name="gate", daemon=True)
        gate.start()
    return context


def _admit(asked: zmq.Socket[bytes], keys: Keys) -> None:
    """Answer ZeroMQ's question whether a peer may come in (ZAP, ZeroMQ RFC 27): if it has our keys.

    The handshake has proved before that the peer has the secret of the public key it shows. Without
    a handshake of keys (NULL) it is asked for local sockets only, and those who may open them were
    let into their folder.
    """
    ours = z85.decode(keys.public)
    with suppress(zmq.ContextTerminated):
        while True:
            version, number, _, _, _, mechanism, *shown = asked.recv_multipart()
            wanted = {b"CURVE": [ours], b"NULL": []}.get(mechanism)
            known = shown == wanted
            status = (b"200", b"OK") if known else (b"400", b"another key")
            asked.send_multipart([version, number, *status, b"", b""])
    asked.close()


def new_socket(
    context: zmq.Context[zmq.Socket[bytes]], kind: int, *, hwm: int, largest: int = MAX_HEADER
) -> zmq.Socket[bytes]:
    """A socket with our limits.

    Args:
        context: where it belongs.
        kind: `zmq.PUSH` and so on.
        hwm: the most messages queued in each direction; a PULL has no limit but the credits that
            its peers were given.
        largest: the largest message part accepted, in bytes.
    """
    socket = context.socket(kind)
    socket.linger = 0
    socket.sndhwm = hwm
    # ZeroMQ stops reading at the limit, heartbeats too, and when the peer then cuts the connection
    # an assertion ends this process (libzmq #3937, #4767).
    socket.rcvhwm = 0 if kind == zmq.PULL else hwm
    socket.maxmsgsize = largest
    socket.handshake_ivl = 2000
    socket.reconnect_ivl = 20
    socket.reconnect_ivl_max = 500
    if kind == zmq.PUSH:
        socket.heartbeat_ivl = 1000
        socket.heartbeat_timeout = 5000
    return socket


def bind(socket: zmq.Socket[bytes], address: str) -> str:
    """Bind, and say the address a peer connects to (with the port, where one was chosen).

    Raises:
        NodeError: if the address cannot be had, or others could reach it and there are no keys.
    """
    keys = _keys_for(socket, address, "listen at")
    if keys is not None:
        socket.curve_secretkey = keys.secret
        socket.curve_server = True
        socket.zap_domain = b"lima2py"
        socket.zap_enforce_domain = True
    try:
        socket.bind(address)
    except zmq.ZMQError as error:
        raise NodeError(f"cannot listen at {address}: {error.strerror}") from None
    finally:
        _forget_keys(socket, keys)
    endpoint = socket.getsockopt(zmq.LAST_ENDPOINT)
    assert isinstance(endpoint, bytes)  # noqa: S101 - for the type checker
    return endpoint.rstrip(b"\0").decode()


def connect(socket: zmq.Socket[bytes], address: str) -> None:
    """Connect; the peer may come later.

    Raises:
        NodeError: if the address makes no sense, or is on another host and there are no keys.
    """
    keys = _keys_for(socket, address, "connect to")
    if keys is not None:
        socket.curve_publickey = socket.curve_serverkey = keys.public
        socket.curve_secretkey = keys.secret
    try:
        socket.connect(address)
    except zmq.ZMQError as error:
        raise NodeError(f"cannot connect to {address}: {error.strerror}") from None
    finally:
        _forget_keys(socket, keys)


def is_loopback(address: str) -> bool:
    """Whether a tcp address is one that other hosts cannot reach: a number, or `localhost`."""
    host = address.removeprefix("tcp://").rpartition(":")[0].strip("[]")
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _keys_for(socket: zmq.Socket[bytes], address: str, what: str) -> Keys | None:
    """The keys to use at an address; None where none are needed.

    Raises:
        NodeError: if some are needed, and there are none.
    """
    if not address.startswith("tcp:"):
        return None
    context = socket.context
    keys = context.keys if isinstance(context, Context) else None
    if keys is None and not is_loopback(address):
        raise NodeError(
            f"cannot {what} {address}: without keys only this host may be spoken to"
            " (tcp://127.0.0.1:PORT); make them with  lima2py keys FILE,  copy the file to every"
            " host, and give it to each node (--keys FILE) and to the system file (keys: FILE)"
        )
    return keys


def _forget_keys(socket: zmq.Socket[bytes], keys: Keys | None) -> None:
    """What the socket binds or connects from now on is local, until it is said otherwise."""
    if keys is not None:
        socket.curve_server = False


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
