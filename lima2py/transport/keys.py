"""The keys of a system: who has them is let in at its network ports, and nobody else.

One pair for the whole system, in one file that is copied to its hosts: every node and every
session proves with it who it is, and what they say to each other is encrypted (CurveZMQ). The file
holds the secret half, 40 characters of Z85 (ZeroMQ RFC 32); the public half follows from it.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import NamedTuple

import zmq

from lima2py.errors import BadParameter

_LENGTH = 40
_HEAD = """\
# The secret key of a lima2py system. Whoever has it can command the nodes of the system: it belongs
# on their hosts only, readable by their user only (chmod 600).
"""


class Keys(NamedTuple):
    """A pair of keys, as Z85 text.

    Attributes:
        file: where they stand.
        public: tells the peers apart from strangers.
        secret: proves that they are ours.
    """

    file: Path
    public: bytes
    secret: bytes

    def __repr__(self) -> str:
        return f"Keys({str(self.file)!r})"  # no log and no traceback shows the secret


def make_keys(file: Path) -> Keys:
    """Make a new pair, in a new file that only its owner may read.

    Raises:
        BadParameter: if the file is there already, or cannot be made.
    """
    public, secret = zmq.curve_keypair()
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise BadParameter(
            f"keys {file}: this file is there already; choose another name, or delete it if no"
            " node uses it any more"
        ) from None
    except OSError as error:
        raise BadParameter(f"keys {file}: cannot be made: {error.strerror}") from None
    with os.fdopen(descriptor, "w") as opened:
        opened.write(f"{_HEAD}{secret.decode()}\n")
    return Keys(file, public, secret)


def read_keys(file: Path) -> Keys:
    """The pair in a file.

    Raises:
        BadParameter: if it cannot be read, others may read it too, or it holds no key.
    """
    try:
        with file.open("rb") as opened:
            mode = stat.S_IMODE(os.fstat(opened.fileno()).st_mode)
            content = opened.read(10_000)
    except OSError as error:
        raise BadParameter(
            f"keys {file}: {error.strerror}; make them with  lima2py keys FILE  and copy the file"
            " to every host of the system"
        ) from None
    if mode & 0o077:
        raise BadParameter(
            f"keys {file}: others than its owner may read or change it (mode {mode:o}):"
            f"  chmod 600 {file};  if anybody may have read it, make new ones:  lima2py keys FILE"
        )
    lines = [line.strip() for line in content.splitlines() if not line.startswith(b"#")]
    text = b"".join(lines)
    try:
        if len(text) != _LENGTH:
            raise ValueError
        public = zmq.curve_public(text)
    except (ValueError, zmq.ZMQError):
        raise BadParameter(
            f"keys {file}: should hold one line with the {_LENGTH} characters of a key, as"
            "  lima2py keys FILE  writes them"
        ) from None
    return Keys(file.absolute(), public, text)
