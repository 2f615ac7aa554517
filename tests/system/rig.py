"""Real commands, real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401 - registers the filters
import numpy as np
import psutil

from tests.account import problems

LIMA2PY = str(Path(sys.executable).parent / "lima2py")


class Command:
    """A running `lima2py` command."""

    def __init__(self, *arguments: str, cwd: Path):
        self.process = subprocess.Popen(
            [LIMA2PY, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            cwd=cwd,
        )

    def nodes(self, kind: str = "", count: int = 1) -> list[psutil.Process]:
        """Its node processes, once there are `count` of them."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            found = [
                child
                for child in psutil.Process(self.process.pid).children(recursive=True)
                if {"lima2py.node.serve", kind or "lima2py.node.serve"} <= set(_cmdline(child))
            ]
            if len(found) >= count:
                return found
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.01)
        raise AssertionError(f"{count} {kind} nodes did not come")

    def interrupt(self) -> None:
        """Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    def finish(self, timeout: float = 60) -> tuple[int, str, str]:
        """Wait for the end: status, output, errors."""
        out, err = self.process.communicate(timeout=timeout)
        return self.process.returncode, out, err

    def report(self) -> dict[str, Any]:
        """Wait for the end; the report that `--json` printed."""
        _, out, err = self.finish()
        assert out, err
        found = json.loads(out)
        assert isinstance(found, dict)
        check_account(found)
        return found


def _cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def wait_until(condition: Callable[[], object], what: str, timeout: float = 30) -> None:
    """Wait for something that must come."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come in {timeout} s"
        time.sleep(0.01)


def frames_saved(folder: Path) -> int:
    """Rows flushed so far in all node files of a folder, read as any viewer would."""
    total = 0
    for path in folder.glob("*_0_00000.h5*"):
        try:
            with h5py.File(path, "r", locking=False) as file:
                total += len(file["entry_0000/measurement/data"])
        except (OSError, KeyError, RuntimeError):
            continue  # it is being made
    return total


def check_account(report: dict[str, Any]) -> None:
    """Every frame asked for has one fate, in the report and in every master."""
    found = problems(report)
    assert not found, "\n".join(found)


def unpack(archive: tarfile.TarFile, folder: Path) -> None:
    """Unpack the recorded data; `filter` is not there before Python 3.11.4, and due after 3.12."""
    if hasattr(tarfile, "data_filter"):
        archive.extractall(folder, filter="data")
    else:
        archive.extractall(folder)


def detector_group(file: h5py.File) -> h5py.Group:
    """The detector's group of one of our files."""
    instrument = file["entry_0000/instrument"]
    return next(
        group for group in instrument.values() if group.attrs.get("NX_class") == "NXdetector"
    )


def alive(pids: list[int]) -> list[int]:
    """Those of some processes that still run."""
    return [pid for pid in pids if psutil.pid_exists(pid) and _running(pid)]


def _running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def socket_folders() -> list[Path]:
    """Folders of local sockets."""
    return list(Path(os.environ["XDG_RUNTIME_DIR"]).glob("lima2py-*"))


def assert_verifiable(path: str, shape: tuple[int, int], dtype: str = "uint16") -> None:
    """Every frame of a master equals the recomputed pattern."""
    from lima2py_detectors.simulator import verifiable_frames

    with h5py.File(path, "r") as file:
        data = file["entry_0000/measurement/data"]
        step = max(1, 2**25 // (shape[0] * shape[1]))
        for first in range(0, len(data), step):
            part = data[first : first + step]
            expected = verifiable_frames(first, len(part), shape, dtype)
            np.testing.assert_array_equal(part, expected.reshape(part.shape))
