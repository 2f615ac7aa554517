"""Start a node that stays when whoever started it leaves: in a process of its own session.

This process only waits until the node takes commands, and ends: then nobody is its parent.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from lima2py.errors import NodeError
from lima2py.node.standing import Card, Nest

START_TIMEOUT = 60.0
"""Seconds a node process may take until it takes commands."""


def detach(
    system: str, kind: str, name: str, address: str, host: str | None, keys: str, isolated: bool
) -> Card:
    """Start a node, and leave it running.

    Args:
        system: name of the system it belongs to.
        kind: `acquisition` or `processing`.
        name: of the node.
        address: where it shall take commands; empty for a local socket.
        host: name by which other hosts reach it, if the system spans several.
        keys: the file of its keys; empty without.
        isolated: see `Node`.

    Returns:
        Its card.

    Raises:
        NodeError: with its last words, if it ends, or does not take commands in time.
    """
    nest = Nest(system)
    nest.make()
    nest.check_room()
    address = address or f"ipc://{nest.path / name}-{time.monotonic_ns():x}"
    log = nest.path / f"{name}.log"
    command = [sys.executable, "-m", "lima2py.node.serve", kind, name, address]
    command += ["--folder", str(nest.path), "--system", system]
    command += ["--host", host] if host is not None else []
    command += ["--isolated"] if isolated else []
    command += ["--keys", keys] if keys else []
    ours, theirs = os.pipe()
    try:
        with log.open("ab") as output:
            process = subprocess.Popen(
                [*command, "--ready", str(theirs)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[theirs],
                start_new_session=True,  # no terminal ends it
                cwd="/",
                # What one thread has let go of serves the others: memory stays flat.
                env={"MALLOC_ARENA_MAX": "1", **os.environ},
            )
        os.close(theirs)
        theirs = -1
        said = _read(ours)
        if not said:
            process.kill()
            process.wait()
            raise NodeError(f"see {log}{last_words(log)}")
    finally:
        for descriptor in (ours, theirs):
            if descriptor >= 0:
                os.close(descriptor)
    return msgspec.json.decode(said, type=Card)


def last_words(log: Path, size: int = 2000) -> str:
    """The end of a log, for a message; empty if there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - size))
            words = file.read().decode(errors="replace").strip()
    except OSError:
        return ""
    return f"; its last words:\n{words}" if words else ""


def _read(descriptor: int) -> bytes:
    """What the node says when it takes commands; nothing if it ends, or takes too long."""
    said = b""
    until = time.monotonic() + START_TIMEOUT
    while (left := until - time.monotonic()) > 0:
        if select.select([descriptor], [], [], left)[0]:
            part = os.read(descriptor, 65536)
            if not part:
                return said
            said += part
    return b""


def main() -> None:
    """Entry point: takes the arguments of `detach` as a JSON list; prints the card, or fails."""
    try:
        card = detach(*msgspec.json.decode(sys.argv[1]))
    except NodeError as error:
        sys.exit(str(error))
    sys.stdout.buffer.write(msgspec.json.encode(card))


if __name__ == "__main__":
    main()
