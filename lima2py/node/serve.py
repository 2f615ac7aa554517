"""Put a node behind its command socket, in a process of its own.

    python -m lima2py.node.serve processing proc0 ipc:///run/user/1000/lima2py-x/proc0 ...

A node that a session started ends with it: it holds one end of a pipe, and when the other end
closes, however its owner ended, it aborts its runs, closes their files, removes the folder of
sockets and exits within seconds. One that stays (`lima2py.node.detach`) has no such pipe: it says
who it is when it takes commands, and ends when it is told to.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec

from lima2py.node.acquisition import AcquisitionNode
from lima2py.node.node import PATIENCE, Node
from lima2py.node.processing import ProcessingNode
from lima2py.node.standing import Card, Nest, Process
from lima2py.transport.keys import read_keys
from lima2py.transport.rpc import Server
from lima2py.transport.sockets import PrivateFolder

KINDS: dict[str, type[Node]] = {"acquisition": AcquisitionNode, "processing": ProcessingNode}

log = logging.getLogger(__name__)


def serve(
    node: Node,
    address: str,
    announce: Callable[[str], None] = lambda address: None,
    leased: bool = False,
) -> None:
    """Answer commands until `shutdown`, SIGTERM or Ctrl-C; then close the node.

    Args:
        node: whom to serve.
        address: where to listen.
        announce: is given the address once commands are answered there.
        leased: whether only who has the writer lease may command it.

    Raises:
        NodeError: if the address cannot be had.
    """
    quick = {**node.quick(), "shutdown": lambda: server.stop()}
    reads = {
        **node.reads(),
        "describe": lambda: {
            **node.describe(),
            "refused": server.refused.plain(),
            "writer": server.writer,
        },
    }
    server: Server = Server(node.context, address, node.commands(), quick, reads, leased)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.stop())
    announce(server.address)
    try:
        server.serve()
    finally:
        node.close()


def watch_owner(lifeline: int, node: Node, folder: Path) -> None:
    """Wait for the owner's end of a pipe to close; then end the runs, tidy up and leave."""
    while os.read(lifeline, 1):
        pass
    leave = threading.Timer(2 * PATIENCE, os._exit, [1])  # whatever hangs, we do not stay
    leave.daemon = True
    leave.start()
    for run in list(node.runs.values()):
        if node.kind == "processing":
            run.linger(PATIENCE / 2)  # its acquisition node tells it to end
        run.abandon(PATIENCE)
    shutil.rmtree(folder, ignore_errors=True)
    os.kill(os.getpid(), signal.SIGTERM)  # the usual way out: last words are sent before the end


def main(arguments: list[str] | None = None) -> None:
    """Entry point of a node process."""
    parser = argparse.ArgumentParser(prog="lima2py.node.serve")
    parser.add_argument("kind", choices=sorted(KINDS))
    parser.add_argument("name")
    parser.add_argument("address")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--host")
    parser.add_argument("--isolated", action="store_true")
    parser.add_argument("--keys", type=Path)
    owner = parser.add_mutually_exclusive_group(required=True)
    owner.add_argument("--lifeline", type=int, help="it ends when this pipe does")
    owner.add_argument("--ready", type=int, help="it stays; where to write its card")
    parser.add_argument("--system", help="name of the system, of a node that stays")
    told = parser.parse_args(arguments)
    logging.basicConfig(format=f"%(asctime)s {told.name} %(levelname)s %(message)s")
    node = KINDS[told.kind](
        told.name,
        PrivateFolder.of(told.folder),
        host=told.host,
        isolated=told.isolated,
        keys=read_keys(told.keys) if told.keys else None,
    )
    if told.lifeline is None:
        stay(node, told.address, told)
        return
    watch = threading.Thread(
        target=watch_owner, args=(told.lifeline, node, told.folder), name="lifeline", daemon=True
    )
    watch.start()
    serve(node, told.address)


def stay(node: Node, address: str, told: argparse.Namespace) -> None:
    """Serve until told to end; with a card while commands are taken."""
    nest = Nest(told.system)
    nest.hold()
    log = str(nest.path / f"{node.name}.log")
    card = None

    def announce(address: str) -> None:
        nonlocal card
        keys, reach = str(told.keys or ""), told.host or ""
        who = Process.this()
        card = Card(node.name, node.kind, address, who, log, keys=keys, reach=reach)
        nest.put(card)
        with os.fdopen(told.ready, "wb") as starter, suppress(BrokenPipeError):  # it may have gone
            starter.write(msgspec.json.encode(card))

    try:
        serve(node, address, announce, leased=True)
    finally:
        if card is not None:
            nest.remove(card)


if __name__ == "__main__":
    main()
