"""Ask who listens at an address where no node answers, so that a complaint can say what to do.

Only the greeting of ZeroMQ is asked for (ZMTP 3, ZeroMQ RFC 23): 64 bytes, which say whether keys
are wanted. It is given to whoever sends the first 11 of his own.
"""

from __future__ import annotations

import socket
from contextlib import suppress

_PATIENCE = 0.5
_BEGINNING = b"\xff" + bytes(8) + b"\x7f\x03"
_MECHANISM = slice(12, 32)


def who_listens(address: str, with_keys: bool) -> str:
    """In words, what is at a tcp address where no node of ours answered.

    Args:
        address: `tcp://host:port`.
        with_keys: whether we use keys.
    """
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    answered = b""
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _PATIENCE) as connection:
            connection.sendall(_BEGINNING)
            with suppress(TimeoutError):
                while len(answered) < _MECHANISM.stop and (more := connection.recv(64)):
                    answered += more
    except socket.gaierror as error:
        return f"no host of this name is known ({error.strerror})"
    except TimeoutError:
        return "nothing answers there: the host is off, another one, or behind a firewall"
    except OSError as error:
        return f"nothing listens there ({error.strerror})"
    if len(answered) < _MECHANISM.stop or answered[:1] != b"\xff" or answered[9:10] != b"\x7f":
        return "some other program listens there"
    their_keys = answered[_MECHANISM].rstrip(b"\0") == b"CURVE"
    if their_keys != with_keys:
        has, has_not = ("it", "this session") if their_keys else ("this session", "it")
        return (
            f"{has} uses keys and {has_not} does not: give both the same file (lima2py node"
            " --keys FILE, and  keys: FILE  in the system file)"
        )
    if their_keys:
        return "it uses other keys than this session, or hangs"
    return "what listens there is no node, or hangs"
