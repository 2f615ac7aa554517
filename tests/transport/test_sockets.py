"""Folders for sockets are private, and do not outlive their owner for long."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from lima2py.errors import NodeError
from lima2py.transport.sockets import PrivateFolder, bind, new_context, new_socket

KILLED = """
import os, signal
from lima2py.transport.sockets import PrivateFolder
print(PrivateFolder().path, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(autouse=True)
def runtime_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    short = Path("/tmp") / f"l2t-{os.getpid()}"  # pytest's own are too long for a socket
    short.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short))
    yield short
    short.rmdir()


def test_only_the_owner_may_enter() -> None:
    folder = PrivateFolder()
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    folder.close()
    folder.close()
    assert not folder.path.exists()


def test_the_folder_of_the_living_stays_and_that_of_the_dead_goes() -> None:
    living = PrivateFolder()
    killed = subprocess.run(
        [sys.executable, "-c", KILLED], capture_output=True, text=True, check=False
    )
    dead = Path(killed.stdout.strip())
    assert dead.exists()
    another = PrivateFolder()
    assert not dead.exists()
    assert living.path.exists()
    living.close()
    another.close()


def test_an_address_in_use_is_refused_by_name() -> None:
    context = new_context()
    first, second = (new_socket(context, zmq.PULL, hwm=1) for _ in range(2))
    address = bind(first, "tcp://127.0.0.1:*")
    assert address.startswith("tcp://127.0.0.1:")
    with pytest.raises(NodeError, match=f"cannot listen at {address}: Address already in use"):
        bind(second, address)
    first.close()
    second.close()
    context.term()
