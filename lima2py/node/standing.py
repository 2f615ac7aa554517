"""Nodes that stay when whoever started them leaves: where they lie on a host, and who they are.

    /tmp/lima2py.UID/SYSTEM/NODE.json     the card of a node: its process, where it takes commands
    /tmp/lima2py.UID/SYSTEM/NODE.log      what it said
    /tmp/lima2py.UID/SYSTEM/...           local sockets

A node writes its card when it takes commands and removes it when it leaves in order: a card without
its process is that of a node that was killed. The folder is not in XDG_RUNTIME_DIR, which goes when
its user logs out. Every node holds a lock on it, by which those who tidy up /tmp know that it is in
use (systemd-tmpfiles leaves locked folders alone).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from lima2py.errors import NodeError
from lima2py.memory import host_identity

_CARD = ".json"
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}\Z")
_LEAST_ROOM = 2**20
_LONGEST_BASE = 40
"""Characters; a local socket's whole path may have 107."""


class Process(msgspec.Struct, frozen=True):
    """A process, and no other that gets the same number later.

    Attributes:
        pid: its number.
        began: when it began, in ticks since its host did.
        identity: of its host, see `lima2py.memory.host_identity`.
    """

    pid: int
    began: int
    identity: str

    @classmethod
    def this(cls) -> Process:
        """This one."""
        began = _began(os.getpid())
        assert began is not None  # noqa: S101 - for the type checker: we live
        return cls(os.getpid(), began, host_identity())

    @property
    def lives(self) -> bool | None:
        """Whether it is there; None if that cannot be told, since its host is not this one."""
        if self.identity != host_identity():
            return None
        return _began(self.pid) == self.began


class Card(msgspec.Struct, frozen=True):
    """Who a node is.

    Attributes:
        node: its name.
        kind: `acquisition` or `processing`.
        address: where it takes commands; empty of one that never was there.
        process: its process.
        log: the file that takes what it says.
        host: where it was started, over ssh; empty if on this host.
        keys: the file of its keys; empty without.
        reach: the name by which other hosts reach it; empty if they cannot.
    """

    node: str
    kind: str
    address: str
    process: Process
    log: str
    host: str = ""
    keys: str = ""
    reach: str = ""

    @property
    def is_here(self) -> bool:
        """Whether it was started on this host, be it before the host was started last."""
        return not self.host

    @property
    def lives(self) -> bool:
        """Whether its process is there; one on another host is believed to be."""
        return not self.is_here or self.process.lives is True


def _began(pid: int) -> int | None:
    """When a process began, in ticks; None if there is none, or it has ended."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    state, *rest = status.rpartition(")")[2].split()  # its name may hold anything
    return None if state in ("Z", "X") else int(rest[18])


class Nest:
    """The folder of a system's nodes on this host.

    Args:
        system: name of the system.

    Attributes:
        path: of the folder, which need not be there.
    """

    def __init__(self, system: str):
        self.path = _base() / _plain(system)

    def make(self) -> None:
        """Make the folder, unless it is there.

        Raises:
            NodeError: if it cannot be, or somebody else has taken its place.
        """
        try:
            self.path.parent.mkdir(mode=0o700, exist_ok=True)
            _check(self.path.parent)
            self.path.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise NodeError(
                f"{self.path}: cannot be made ({error.strerror}); it lies in TMPDIR, or in /tmp"
            ) from None

    def check_room(self) -> None:
        """Refuse a disk without room for what nodes say.

        Raises:
            NodeError: saying where.
        """
        free = shutil.disk_usage(self.path).free
        if free < _LEAST_ROOM:
            raise NodeError(
                f"{self.path}: {free} bytes are free on its disk, too few for the cards and logs of"
                " nodes; make room there"
            )

    def cards(self) -> dict[str, Card]:
        """All cards, by name of the node.

        Raises:
            NodeError: if one cannot be read, or somebody else could have put it there.
        """
        found: dict[str, Card] = {}
        if not self.path.parent.is_dir():
            return found
        _check(self.path.parent)
        for path in sorted(self.path.glob("*" + _CARD)):
            with suppress(FileNotFoundError):  # it has just left
                try:
                    card = msgspec.json.decode(path.read_bytes(), type=Card)
                except msgspec.MsgspecError as error:
                    raise NodeError(
                        f"{path}: should say who a node is ({error}); if another version of lima2py"
                        " wrote it, end the node with that one; else remove the file"
                    ) from None
                found[card.node] = card
        return found

    def put(self, card: Card) -> None:
        """Write a card, whole or not at all."""
        path = self.path / (card.node + _CARD)
        new = path.with_suffix(f".{os.getpid()}")
        new.write_bytes(msgspec.json.encode(card))
        new.rename(path)

    def remove(self, card: Card) -> None:
        """Remove a card, unless another node of this name has put its own there."""
        if self.cards().get(card.node) == card:
            (self.path / (card.node + _CARD)).unlink(missing_ok=True)

    def tidy(self, logs: bool = False) -> None:
        """Remove what nodes have left, when none is there; the logs stay until the next start."""
        for path in self.path.iterdir():
            if path.is_socket() or path.suffix == _CARD or (logs and path.suffix == ".log"):
                path.unlink(missing_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only one who starts and ends nodes here."""
        self.make()
        descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def hold(self) -> None:
        """Let those who tidy up know, as long as this process lives, that it is in use."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)


def _base() -> Path:
    """The folder of this user."""
    temporary = os.environ.get("TMPDIR", "")
    if not temporary or len(temporary) > _LONGEST_BASE:
        temporary = "/tmp"
    return Path(temporary) / f"lima2py.{os.getuid()}"


def _check(base: Path) -> None:
    """Refuse a folder that others may enter."""
    found = base.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise NodeError(
            f"{base}: should be a folder that belongs to this user and that nobody else may enter;"
            " somebody has made or changed it: look at it, and remove it"
        )


def _plain(system: str) -> str:
    """A name for a folder."""
    if _PLAIN.match(system):
        return system
    mark = hashlib.sha256(system.encode()).hexdigest()[:8]
    return re.sub(r"[^A-Za-z0-9_-]", "_", system)[:20] + "-" + mark
