"""A test that leaves something behind fails, and says what."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.system.rig import alive, wait_until

CONFTEST = Path(__file__).parent / "conftest.py"
LEAKS = """
import os, socket, subprocess, tempfile, threading
import pytest
from lima2py.memory import Shared
from lima2py.transport.sockets import PrivateFolder

kept = []

def test_thread():
    threading.Thread(target=threading.Event().wait, daemon=True, name="watch").start()

def test_process():
    kept.append(subprocess.Popen(["sleep", "60"]))

def test_orphan():
    subprocess.run(["bash", "-c", "sleep 60 & echo $! > orphan; kill -STOP $!"], check=True)

def test_socket():
    kept.append(socket.socket())

def test_file(tmp_path):
    kept.append((tmp_path / "open.h5").open("w"))

def test_memory():
    kept.append(Shared().allocate(4096))

def test_folder():
    kept.append(PrivateFolder())

def test_environment():
    os.environ["LIMA2PY_LEFT"] = "1"

def test_directory(tmp_path):
    os.chdir(tmp_path)

def test_nothing():
    thread = threading.Thread(target=threading.Event().wait, args=[0.05])
    thread.start()
    Shared().allocate(4096).close()
"""


def test_every_kind_of_leftover_is_told(tmp_path: Path) -> None:
    (tmp_path / "test_leaks.py").write_text(LEAKS)
    quick = CONFTEST.read_text().replace("PATIENCE = 10.0", "PATIENCE = 0.2")
    (tmp_path / "conftest.py").write_text(quick)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_leaks.py"]
    root = {**os.environ, "PYTHONPATH": str(CONFTEST.parent.parent)}
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=root).stdout
    orphan = (tmp_path / "orphan").read_text().strip()
    for test, what in {
        "thread": "thread watch",
        "process": "child process",
        "socket": "1 more open: socket",
        "file": "1 more open: .*open.h5",
        "memory": r"\d more open: /memfd:lima2py",
        "folder": "folder of sockets",
        "environment": "environment LIMA2PY_LEFT=1",
        "directory": "working directory",
    }.items():
        assert re.search(rf"ERROR test_leaks.py::test_{test} - .*left behind:", said), said
        assert re.search(rf"left behind: .*{what}", said), said
    assert re.search(rf"processes left behind: .*{orphan}: .*sleep 60", said)
    assert "ERROR test_leaks.py::test_orphan" not in said, "only told at the end of the session"
    assert re.search(r"10 passed, 9 errors", said)
    wait_until(lambda: not alive([int(orphan)]), "the end of what is stopped, with the tests", 10)
