"""The journal: what became of every block, beside the files of a run, for as long as it goes on.

Every acquisition node keeps one, beside the files of the first sink, until the masters are in
place. If it dies, they are made from this: it knows what no file with frames does, why frames are
absent, and which of two copies of a frame counts. Little-endian:

    LIMAJRN1  (u4 length, u4 CRC-32, msgpack of that length)*

The first msgpack is the `Head`, every other a `Batch`. What does not fit its CRC, and all behind
it, counts as never written: its writer died there.
"""

from __future__ import annotations

import os
import struct
import threading
import zlib
from collections import deque
from collections.abc import Callable, Mapping

import msgspec

from lima2py.detector import Share
from lima2py.frame import Absence
from lima2py.storage.failures import failure
from lima2py.storage.names import NODE_FILE, journal_path
from lima2py.storage.steady import lock
from lima2py.task import Sink

MAGIC = b"LIMAJRN1"
WRITE_EVERY = 0.05
"""Seconds between two writes."""
MOST_WAITING = 100_000
"""Blocks that may wait for a disk that hangs; after that the journal is given up."""
MOST_UNWRITTEN = 2**24
"""Bytes that may wait for a disk that is full."""
PATIENCE = 1.0
"""Seconds that the end of a run waits for a disk that hangs."""
FRAMING = struct.Struct("<II")
"""Length and CRC-32 of what follows."""

AbsentRange = tuple[int, int, int, str, str]
"""Offset of the first frame, how many, cause, who, detail."""


class Head(msgspec.Struct, frozen=True):
    """Whose journal it is.

    Attributes:
        run: id of the run.
        name: of the run.
        nb_frames: frames asked for; 0 if endless.
        share: which of them this acquisition node delivers.
        sinks: by name, in the order of their tracks, how many frames one row stands for.
        prefixes: what the files of sinks begin with, relative to the folder of the journal, and
            the `node_file` of each.
    """

    run: str
    name: str
    nb_frames: int
    share: Share
    sinks: dict[str, int]
    prefixes: dict[str, str]


class JournalLine(msgspec.Struct, array_like=True, frozen=True):
    """What became of consecutive frames, of a block or of several.

    Attributes:
        index: of the first.
        count: of frames.
        node: the rank of the node that did them, -1 if none did.
        attempts: how many times they were given to a node.
        rows: by sink, the row of the first frame in the node's file; -1 if it has none.
        absences: track (the frame as a whole, then each sink), and the frames without data there;
            all others are saved.
        nodes: by sink, the rank of the node whose file has the row; nothing if all are of `node`.
    """

    index: int
    count: int
    node: int
    attempts: int
    rows: list[int]
    absences: list[tuple[int, AbsentRange]]
    nodes: list[int] = []


class Rest(msgspec.Struct, array_like=True, frozen=True):
    """What became of all frames of the share that no line tells of.

    Attributes:
        end: how many frames there are, if the run is endless.
        cause: a `Fate`.
        who: says so.
        detail: in words.
    """

    end: int
    cause: int
    who: str
    detail: str


class Batch(msgspec.Struct, array_like=True, frozen=True):
    """What was written at once; the rest is the last of all."""

    lines: list[JournalLine]
    rest: Rest | None = None


class Journal:
    """The journal of a run that goes on; nothing that goes wrong with it ends the run.

    A thread of its own writes, so that a disk that hangs does not keep the detector waiting.

    Args:
        path: of the file, which is made.
        head: whose it is.
        complain: is told, once and from any thread, if it cannot be written.
    """

    def __init__(self, path: str, head: Head, complain: Callable[[str], None]):
        self._path = path
        self._spans = list(head.sinks.values())
        self._complain = complain
        self._complained = False
        self._gapless = True
        self._rest: Rest | None = None
        self._waiting: deque[JournalLine] = deque()
        self._unwritten = MAGIC + _framed(head)
        self._size = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._main, name="journal", daemon=True)
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except OSError as error:
            self._fail("cannot be made", error)
            self._waiting = deque(maxlen=0)
            return
        lock(self._fd)
        self._write()
        self._thread.start()

    def note(self, line: JournalLine) -> None:
        """Note what became of a block; returns at once."""
        if len(self._waiting) < MOST_WAITING:
            self._waiting.append(line)
        else:
            self._gapless = False

    def close(self, rest: Absence | None = None, end: int = 0) -> None:
        """Write what waits, and let go of the file; may be called twice.

        Args:
            rest: what became of all frames of the share that were not noted, if that is known.
            end: how many frames there are, if the run is endless.
        """
        if self._over.is_set() or self._thread.ident is None:
            return
        if rest is not None:
            self._rest = Rest(end, int(rest.cause), rest.who, rest.detail)
        self._over.set()
        self._thread.join(PATIENCE)
        if self._thread.is_alive():
            self._fail("cannot be written", TimeoutError(f"it hangs for {PATIENCE:g} s"))

    def _main(self) -> None:
        while not self._over.wait(WRITE_EVERY):
            self._write()
        self._write(self._rest if self._gapless else None)
        os.close(self._fd)

    def _write(self, rest: Rest | None = None) -> None:
        """Bring what waits to the disk; what it does not take is tried again with the next."""
        lines = self._taken()
        if lines or rest is not None:
            self._unwritten += _framed(Batch(lines, rest))
        try:
            while self._unwritten:
                done = os.pwrite(self._fd, self._unwritten, self._size)
                self._unwritten = self._unwritten[done:]
                self._size += done
        except OSError as error:
            self._fail("cannot be written", error)
        if len(self._unwritten) > MOST_UNWRITTEN:
            self._unwritten = b""
            self._gapless = False

    def _taken(self) -> list[JournalLine]:
        """What waits, in as few lines as can be."""
        lines: list[JournalLine] = []
        while self._waiting:
            line = self._waiting.popleft()
            if lines and self._goes_on(lines[-1], line):
                before, count = lines[-1], lines[-1].count + line.count
                lines[-1] = JournalLine(
                    before.index, count, line.node, line.attempts, before.rows, [], line.nodes
                )
            else:
                lines.append(line)
        return lines

    def _goes_on(self, line: JournalLine, then: JournalLine) -> bool:
        """Whether two lines can be told as one."""
        first, end = line.index, line.index + line.count
        return (
            then.index == end
            and (then.node, then.nodes) == (line.node, line.nodes)
            and then.attempts == line.attempts
            and not (line.absences or then.absences)
            and -1 not in line.rows
            and then.rows == [row + end // span - first // span
                              for row, span in zip(line.rows, self._spans, strict=True)]
        )  # fmt: skip

    def _fail(self, what: str, error: OSError) -> None:
        if not self._complained:
            self._complained = True
            said = failure(self._path, what, error)
            self._complain(
                f"{said}; the run goes on, but if this node dies now, nobody can say why frames are"
                " absent"
            )


def begin_journal(
    run: str,
    name: str,
    nb_frames: int,
    share: Share,
    sinks: Mapping[str, Sink],
    paths: Mapping[str, str],
    spans: Mapping[str, int],
    complain: Callable[[str], None],
) -> Journal | None:
    """The journal of an acquisition node; None without sinks, since no frame is kept then.

    Args:
        run: id of the run.
        name: of the run.
        nb_frames: frames asked for; 0 if endless.
        share: which of them the node delivers.
        sinks: by name, in the order of the graph.
        paths: by sink, what its files begin with.
        spans: by sink, how many frames one of its rows stands for.
        complain: see `Journal`.
    """
    if not sinks:
        return None
    path = journal_path(next(iter(paths.values())), share.rank)
    folder = os.path.dirname(path)
    prefixes = {
        os.path.relpath(paths[sink], folder): str(getattr(task, "node_file", NODE_FILE))
        for sink, task in sinks.items()
    }
    return Journal(path, Head(run, name, nb_frames, share, dict(spans), prefixes), complain)


def _framed(content: Head | Batch) -> bytes:
    payload = msgspec.msgpack.encode(content)
    return FRAMING.pack(len(payload), zlib.crc32(payload)) + payload
