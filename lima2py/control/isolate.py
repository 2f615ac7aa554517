"""Find the task that cannot stand a frame: the graph is tried in processes that may die of it.

First the whole graph, as a node ran it; then task by task and frame by frame, since a process that
has died cannot say of what. After each death the frames that follow are tried by a fresh process.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple

import msgspec

from lima2py.errors import BadParameter
from lima2py.frame import FrameSpec
from lima2py.graph.definition import DETECTOR
from lima2py.graph.trial import GRAPH, Begins, Failed, Passed, Refused, Said, Trial
from lima2py.storage.reading.run_file import RunFile
from lima2py.units import as_size

MOST_DEATHS = 5
"""After so many no more frames are tried."""
_LAST_WORDS = 30
"""Lines of what a process printed that are shown."""
_OF_NO_USE = "Extension modules:"
"""faulthandler lists all that were ever imported."""
_GRACE = 2.0
"""Seconds in which a process that hangs may say where."""


@dataclass
class _Ended:
    """How a trial ended.

    Attributes:
        begun: what it was at last.
        failures: what tasks raised.
        refused: why it could not be tried at all; empty if it could.
        how: it died; empty if it did not.
        passed: whether it said that all was done.
        printed: the last lines.
    """

    begun: Begins
    failures: list[Failed] = field(default_factory=list)
    refused: str = ""
    how: str = ""
    passed: bool = False
    printed: str = ""


class Frames(NamedTuple):
    """Recorded frames, as they came from the detector.

    Attributes:
        path: of the file.
        sink: whose frames they are.
        first: the first of its rows.
        end: the row after the last.
        about: what they are, for a person.
    """

    path: Path
    sink: str
    first: int
    end: int
    about: str

    @classmethod
    def find(cls, path: Path, frame: int | None) -> Frames:
        """All frames of a file of poison, or one of any file.

        Args:
            path: of the file.
            frame: its number; all if not given, which only a file of poison allows.

        Raises:
            BadParameter: if the file has not the frames as they came from the detector.
            StorageError: if it cannot be read.
        """
        with RunFile(path) as first:
            wanted = _as_they_came(first) if first.put_aside is None else first.sink
        with RunFile(path, wanted) as file:
            why = file.put_aside
            if frame is None and why is None:
                raise BadParameter(
                    f"isolate: {path} holds what a run saved; say which frame: --frame N"
                )
            if frame is None:
                rows = range(len(file))
            else:
                file.frame(frame)  # refuses what is not there
                row = int((file.index == frame).nonzero()[0][-1])
                rows = range(row, row + 1)
            index = file.index[rows.start], file.index[rows.stop - 1]
            which = f"frame {index[0]}" if len(rows) == 1 else f"frames {index[0]} to {index[1]}"
            about = f'{which} of run "{file.facts.name}" ({file.facts.run[:8]})'
            if why:
                about = f"{about}, put aside: {why}"
            return cls(path, wanted, rows.start, rows.stop, about)


def _as_they_came(file: RunFile) -> str:
    """The sink of a run that saved the frames as they came."""
    pipeline = file.parameters["pipeline"]
    tasks, came = pipeline.get("tasks", {}), FrameSpec.from_plain(pipeline["input"])
    for sink in file.sinks:
        if tasks.get(sink, {}).get("from") == [DETECTOR] and came.decoded is None:
            return sink
    raise BadParameter(
        f"isolate: {file.path} holds no frames as they came from the detector, {came}; give a file"
        " of frames that were put aside, or of a sink that saves them `from: detector`"
    )


@dataclass
class Isolation:
    """The search for the task at fault.

    Attributes:
        frames: to try.
        task: the only one to try, with those it depends on; all if empty.
        deadline: seconds after which a task hangs.
        say: is given every line for the user.
    """

    frames: Frames
    task: str
    deadline: float
    say: Callable[[str], None]
    _deaths: int = 0

    def run(self) -> bool:
        """Search; whether anything happened.

        Raises:
            BadParameter: if the graph cannot be used, or has no such task.
        """
        self.say(self.frames.about)
        if not self.task:
            whole = self._tried(self.frames.first)
            if not self._told(whole, in_full=False):
                self.say(f"{GRAPH}: nothing happens")
                return False
        if self._by_task(together=False):
            return True
        if self.frames.end - self.frames.first > 1 and self._by_task(together=True):
            return True
        if self.task:
            self.say(f'task "{self.task}": nothing happens')
            return False
        self._show(whole.printed)
        self.say("each task alone passes: it happens when they work together, or now and then")
        return True

    def _by_task(self, *, together: bool) -> bool:
        """Try task by task; whether anything happened."""
        row, found = self.frames.first, False
        while row < self.frames.end:
            ended = self._tried(row, alone=True, together=together)
            found |= self._told(ended)
            self._deaths += bool(ended.how)
            if not ended.how or together or ended.begun.row < 0:
                break
            row = ended.begun.row + 1
            if self._deaths == MOST_DEATHS and row < self.frames.end:
                self.say(f"{self.frames.end - row} frames after it were not tried")
                break
        return found

    def _told(self, ended: _Ended, *, in_full: bool = True) -> bool:
        """Tell how a trial ended; whether anything happened."""
        if ended.refused:
            raise BadParameter(f"isolate: {ended.refused}")
        once: dict[tuple[str, str], list[Failed]] = {}
        for failed in ended.failures:
            once.setdefault((failed.task, failed.text), []).append(failed)
        for (task, text), same in once.items():
            more = f" and {len(same) - 1} more" if len(same) > 1 else ""
            self.say(f"{_who(task)}, {same[0].at}{more}: {text}")
            if in_full:
                self._show(same[0].trace)
        if ended.how:
            self.say(f"{_who(ended.begun.task)}, {ended.begun.at}: {ended.how}")
            if in_full:
                self._show(ended.printed)
        return bool(once or ended.how)

    def _show(self, text: str) -> None:
        lines = [line for line in text.splitlines() if line and not line.startswith(_OF_NO_USE)]
        for line in lines[-_LAST_WORDS:]:
            self.say(f"    {line}")

    def _tried(self, row: int, *, alone: bool = False, together: bool = False) -> _Ended:
        """Try the frames from a row on, in a process of its own."""
        with tempfile.TemporaryDirectory(prefix="isolate-lima2py-") as folder:
            trial = Trial(
                str(self.frames.path), self.frames.sink, row, self.frames.end, folder,
                alone, together, self.task,
            )  # fmt: skip
            with tempfile.TemporaryFile() as printed:
                return _watched(trial, self.deadline, printed)


def _who(task: str) -> str:
    return task if task == GRAPH else f'task "{task}"'


def _watched(trial: Trial, deadline: float, printed: IO[bytes]) -> _Ended:
    """Start a trial, and follow it to its end, whichever that is."""
    listen, tell = os.pipe()
    command = [sys.executable, "-m", "lima2py.graph.trial"]
    process = subprocess.Popen(
        [*command, msgspec.json.encode(trial).decode(), str(tell)],
        stdin=subprocess.DEVNULL, stdout=printed, stderr=printed, pass_fds=(tell,),
    )  # fmt: skip
    os.close(tell)
    try:
        ended = _followed(listen, deadline)
        if ended.how:
            _make_talk(process)
    except BaseException:  # Ctrl-C
        process.kill()
        raise
    finally:
        os.close(listen)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if not ended.how and (process.returncode or not ended.passed):
        ended.how = _cause(process.returncode, used.ru_maxrss * 1024)
    printed.seek(0)
    ended.printed = printed.read().decode(errors="replace")
    return ended


def _followed(listen: int, deadline: float) -> _Ended:
    """What a trial says until it ends, or says nothing for too long."""
    ended = _Ended(Begins(GRAPH, "is prepared"))
    text = b""
    while select.select([listen], [], [], deadline)[0]:
        received = os.read(listen, 65536)
        if not received:
            return ended
        *lines, text = (text + received).split(b"\n")
        for line in lines:
            match msgspec.json.decode(line, type=Said):
                case Begins() as begun:
                    ended.begun = begun
                case Failed() as failed:
                    ended.failures.append(failed)
                case Refused(why):
                    ended.refused, ended.passed = why, True
                case Passed():
                    ended.passed = True
    ended.how = f"hangs: it took more than {deadline:g} s"
    return ended


def _make_talk(process: subprocess.Popen[bytes]) -> None:
    """Let a process that hangs say where, and end it."""
    process.send_signal(signal.SIGABRT)  # faulthandler prints where all threads are
    deadline = time.monotonic() + _GRACE
    while time.monotonic() < deadline:
        if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return
        time.sleep(0.01)
    process.kill()


def _cause(status: int, memory: int) -> str:
    """How a process died, for a person.

    Args:
        status: as `subprocess` gives it.
        memory: the most it used, in bytes.
    """
    if status >= 0:
        return f"ends the process, with status {status}"
    name = signal.Signals(-status).name
    said = f"dies of signal {-status}, {name} ({signal.strsignal(-status)})"
    if -status == signal.SIGKILL:
        said += f"; it used {as_size(memory)}: the kernel does so when memory runs out"
    return said
