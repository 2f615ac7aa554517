"""Every test ends as it began, and every frame of its runs has one fate.

What is looked at after each test, and again after each module: threads, child processes, open
files, sockets and shared memory of this process, entries of /dev/shm, folders of local sockets,
the working directory and the environment. What ends by itself is given a few seconds.
"""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tests.account import Ended

ROOT = Path(__file__).parent.parent
PATIENCE = 10.0
"""Seconds in which what is ending may end."""
OUR_THREADS = ("run ", "watch", "lifeline", "commands", "trigger", "guard", "gate")
MARK = "LIMA2PY_TESTS"
"""In the environment of every process that descends from this one, orphans too."""
GUARD = """
import glob, os, signal, sys
sys.stdin.read()
for path in glob.glob("/proc/[0-9]*/environ"):
    try:
        with open(path, "rb") as environment:
            if sys.argv[1].encode() in environment.read().split(bytes(1)):
                os.kill(int(path.split("/")[2]), signal.SIGKILL)
    except OSError:
        continue
"""
"""Ends what descends from tests that were killed: a node that is stopped cannot see that."""

guard: subprocess.Popen[bytes]

settings.register_profile(
    "ci", deadline=None, derandomize=True, max_examples=50, print_blob=True, database=None
)
settings.load_profile("ci")


def pytest_configure() -> None:
    """Local sockets and compiled functions go into folders of our own."""
    global guard
    mark = str(os.getpid())
    guard = subprocess.Popen(
        [sys.executable, "-S", "-c", GUARD, f"{MARK}={mark}"], stdin=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    os.environ[MARK] = mark
    os.environ["LIMA2PY_CACHE"] = str(ROOT / ".pytest_cache" / "lima2py")  # compiled once
    os.environ["XDG_RUNTIME_DIR"] = tempfile.mkdtemp(prefix="l2t-", dir="/tmp")


def pytest_unconfigure() -> None:
    shutil.rmtree(os.environ["XDG_RUNTIME_DIR"], ignore_errors=True)
    guard.communicate()


class Scene:
    """What there is of everything a test might leave behind."""

    def __init__(self) -> None:
        self.cwd = os.getcwd()
        self.environment = {**os.environ, "PYTEST_CURRENT_TEST": ""}
        self.threads = set(threading.enumerate())
        self.children = _children()
        self.descriptors = _descriptors()
        self.shared_memory = _names("/dev/shm")
        self.folders = _names(os.environ.get("XDG_RUNTIME_DIR", "/tmp"))

    def since(self, before: Scene) -> list[str]:
        """What is here and was not there before."""
        return [
            *(
                f"thread {thread.name}"
                for thread in self.threads - before.threads
                if not thread.daemon or thread.name.startswith(OUR_THREADS)
            ),
            *(f"child process {pid}: {self.children[pid]}"
              for pid in self.children.keys() - before.children.keys()),
            *(f"{count} more open: {name}"
              for name, count in (self.descriptors - before.descriptors).items()),
            *(f"shared memory {name}" for name in self.shared_memory - before.shared_memory),
            *(f"folder of sockets {name}" for name in self.folders - before.folders),
            *([f"working directory {self.cwd}"] if self.cwd != before.cwd else []),
            *(
                f"environment {name}={self.environment.get(name)}"
                for name in sorted({*self.environment, *before.environment})
                if self.environment.get(name) != before.environment.get(name)
            ),
        ]  # fmt: skip


def _children() -> dict[int, str]:
    """Processes whose parent is this one, by id."""
    found = {}
    for process in psutil.Process().children():
        try:
            command = " ".join(process.cmdline()) or "ended, but never waited for"
        except psutil.NoSuchProcess:
            continue
        if "resource_tracker" not in command:  # Python's own, which stays
            found[process.pid] = command
    return found


def _descriptors() -> Counter[str]:
    """What this process holds open, counted by name; only the kinds that lima2py opens."""
    names: Counter[str] = Counter()
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{descriptor}")
        except FileNotFoundError:
            continue
        if target.startswith("socket:"):
            names["socket"] += 1
        elif target.startswith("/memfd:lima2py") or os.path.isfile(target):
            names[target] += 1
    return names


def _names(folder: str) -> set[str]:
    """What lies in a folder and belongs to this user."""
    try:
        return {entry.path for entry in os.scandir(folder) if _is_mine(entry)}
    except FileNotFoundError:
        return set()


def _is_mine(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.stat(follow_symlinks=False).st_uid == os.getuid()
    except FileNotFoundError:
        return False


def whatever_is_left(before: Scene) -> list[str]:
    """What is still here after a while and was not there before, in words."""
    deadline = time.monotonic() + PATIENCE
    while (left := Scene().since(before)) and time.monotonic() < deadline:
        gc.collect()  # what nobody refers to any more is not left behind
        time.sleep(0.02)
    return [f"left behind: {what}" for what in left]


def _check_nothing_left(before: Scene) -> None:
    if left := whatever_is_left(before):
        pytest.fail("\n".join(left), pytrace=False)


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Fail the test that leaves something behind."""
    before = Scene()
    yield
    _check_nothing_left(before)


@pytest.fixture(autouse=True, scope="module")
def nothing_left_behind_by_the_module() -> Iterator[None]:
    """Fail the module whose shared fixtures leave something behind."""
    before = Scene()
    yield
    _check_nothing_left(before)


@pytest.fixture(autouse=True, scope="session")
def no_process_left_behind() -> Iterator[None]:
    """Fail the whole lot if a process that descends from it, even as an orphan, is still there."""
    yield
    deadline = time.monotonic() + PATIENCE
    while (left := _descendants()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left, f"processes left behind: {left}"


def _descendants() -> list[str]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(MARK) == str(os.getpid()):
                found.append(f"{process.pid}: {' '.join(process.cmdline())}")
        except psutil.Error:
            continue  # it has just ended, or belongs to somebody else
    return [text for text in found if "resource_tracker" not in text]


@pytest.fixture(scope="session")
def ended_runs() -> Iterator[Ended]:
    """Looks at every run of all tests."""
    from tests.account import Ended  # when there is a folder for what it compiles

    ended = Ended()
    with ended.looking():
        yield ended


@pytest.fixture(autouse=True)
def every_frame_has_one_fate(ended_runs: Ended) -> Iterator[None]:
    """Fail the test of which a run, asked or not, does not account for every frame."""
    yield
    if found := ended_runs.take():
        pytest.fail("the account is wrong:\n  " + "\n  ".join(found), pytrace=False)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of recorded data beside the project."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the recorded data are absent: there is no folder {folder}")
    return folder
