"""The audit of a run of the verifiable pattern: each frame has one fate, and is what it should be.

It reads the files with h5py alone and computes everything again with numpy, so that it believes
nothing that the run says of itself. What is wrong comes in words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from lima2py_detectors.simulator import verifiable_frames

from lima2py.frame import Absence, Array, Fate
from lima2py.session.report import Report
from lima2py.storage.care.verify import verify
from lima2py.trigger_map import TriggerMap
from tests import account
from tests.storage import plain

ABOVE = 60_000
"""Pixels above it are events."""
SPOT = (slice(0, 8), slice(0, 8))
DARK = 2_050_000
"""Frames whose spot has less are rejected: nearly half."""
SUMMED = 5
TASKS: Mapping[str, dict[str, Any]] = {
    "raw": {"do": "save_dense", "from": "detector", "checksum": True},
    "live": {"do": "tap", "from": "detector", "every": 10, "history": 64},
    "spot": {"do": "roi_counters", "from": "detector", "rois": {"spot": [0, 0, 8, 8]}},
    "numbers": {"do": "save_table", "from": "spot"},
    "bright": {"do": "sparsify", "from": "detector", "above": ABOVE},
    "events": {"do": "save_sparse", "from": "bright"},
    "few": {"do": "accumulate", "from": "detector", "frames": SUMMED},
    "sums": {"do": "save_dense", "from": "few"},
    "chosen": {"do": "reject", "from": ["detector", "spot"], "input": "spot", "channel": "sum",
               "below": DARK},
    "kept": {"do": "save_dense", "from": "chosen"},
}  # fmt: skip
"""What a run may have to do; a tap needs nothing, a sink what it comes from."""
SINKS = tuple(name for name, task in TASKS.items() if task["do"].startswith("save_"))
_AT_ONCE = 2**22
"""Pixels computed at a time."""


@dataclass(frozen=True)
class Taken:
    """What the detector gave.

    Attributes:
        shape: of a frame.
        dropped: frames it skipped.
        events: the trigger map of another detector, of the same shape; saved by the sink `theirs`.
    """

    shape: tuple[int, int]
    dropped: tuple[int, ...] = ()
    events: tuple[int | None, ...] = ()

    def frames(self, first: int, count: int) -> Array:
        """Array `(frames, height, width)`."""
        return verifiable_frames(first, count, self.shape, "uint16")[:, 0]

    def theirs(self, rows: Array) -> Array:
        """Those of the other detector that belong to events: array `(frames, height, width)`."""
        numbers = TriggerMap(self.events).numbers(0, int(rows.max(initial=-1)) + 1)[rows]
        first = int(numbers.min(initial=0))
        return self.frames(first, int(numbers.max(initial=-1)) + 1 - first)[numbers - first]

    def parts(self, count: int) -> Iterator[tuple[int, Array]]:
        """All frames, some at a time: the number of the first, and they; whole sums of them."""
        step = max(1, _AT_ONCE // (self.shape[0] * self.shape[1]) // SUMMED) * SUMMED
        for first in range(0, count, step):
            yield first, self.frames(first, min(step, count - first))


def audit(
    report: Report, taken: Taken, folder: Path, causes: frozenset[str], lost: frozenset[int]
) -> list[str]:
    """What is wrong with a run that is over.

    Args:
        report: what it says of itself.
        taken: what the detector gave.
        folder: of its files.
        causes: why frames may be absent, after what was done to the run.
        lost: the ranks of nodes that were lost, whose files may be unfinished.
    """
    return [
        *account.problems(report.plain()),
        *_of_causes(report, taken, causes),
        *of_masters(sorted({Path(path) for path in report.masters.values()}), taken),
        *of_leftovers(folder, lost),
    ]


def _of_causes(report: Report, taken: Taken, causes: frozenset[str]) -> Iterator[str]:
    if strange := {cause: report.absent[cause] for cause in report.absent.keys() - causes}:
        some = [absence for absence in report.absences if absence[2] in strange][:4]
        yield f"nothing was done that explains {strange}: {some}"
    gaps = {
        frame
        for first, count, cause, *_ in report.absences
        if cause == Fate.DETECTOR_GAP.word
        for frame in range(first, first + count)
    }
    span = SUMMED if "sums" in report.sinks else 1  # one that misses costs its whole sum
    if wrong := {frame // span for frame in gaps} - {frame // span for frame in taken.dropped}:
        yield f"the detector is said to have skipped {sorted(wrong)}, times {span}"
    ours = report.absent.keys() - {Fate.DETECTOR_GAP.word, "not_acquired", "aborted"}
    if ours and not report.errors:
        yield f"{ours} without an error"
    if ours and report.outcome == "completed":
        yield f"it lost frames and says that it is {report.outcome}"


def of_masters(masters: Sequence[Path], taken: Taken) -> Iterator[str]:
    """What is wrong with masters, in any pixel or record."""
    for path in masters:
        with h5py.File(path, "r", locking=False) as file:
            names = [name for name in file if name.startswith("entry_")]
            sinks = {name: str(file[name]["lima2py/sink"].asstr()[()]) for name in names}
        for entry, sink in sinks.items():
            for text in _of_entry(plain.read(path, entry), sink, taken):
                yield f"{sink} in {path.name}: {text}"
        yield from (f"{path.name}: {text}" for text in verify(path, pixels=True).problems)


def _of_entry(seen: plain.Plain, sink: str, taken: Taken) -> Iterator[str]:
    fates, index = seen.frames["fate"], seen.frames["index"]
    if not np.array_equal(index, np.arange(len(index))):
        yield "its indices are not 0, 1, 2 …"
    if (open_ones := np.flatnonzero(fates == Fate.NO_RECORD)).size:
        yield f"no fate for {open_ones.tolist()[:8]}"
    fate_of = {frame: said.cause for frame, said in seen.absences.items()}
    alone = [Fate(fate) for fate in fates.tolist()]
    told = [fate_of.get(frame, Fate.SAVED) for frame in range(len(fates))]
    if alone != told:
        wrong = [n for n, (one, other) in enumerate(zip(alone, told, strict=True)) if one != other]
        yield f"fates and absences differ for {wrong[:8]}"
    if nameless := [frame for frame, said in seen.absences.items() if not said.who]:
        yield f"nobody says why {nameless[:8]} are absent"
    yield from _of_rejected(seen.absences, sink, fates, taken)
    saved = np.flatnonzero(fates == Fate.SAVED)
    if (there := set(saved.tolist()) & set(taken.dropped)) and sink not in ("sums", "theirs"):
        yield f"{sorted(there)[:8]} are saved, and were never taken"
    if sink == "theirs":
        none = TriggerMap(taken.events).numbers(0, len(fates)) < 0
        if (strange := np.flatnonzero(none & (fates == Fate.SAVED))).size:
            yield f"{strange.tolist()[:8]} are saved, and the other detector had none for them"
        if (strange := np.flatnonzero(~none & (fates == Fate.NOT_TRIGGERED))).size:
            yield f"{strange.tolist()[:8]} are not_triggered, and should have been"
    rows = seen.rows({"index": "index", "value": "intensity"}) if sink == "events" else []
    span = SUMMED if sink == "sums" else 1
    for first, frames in taken.parts(len(fates) * span):
        frames = frames[: len(frames) // span * span]
        here = saved[(saved >= first // span) & (saved < (first + len(frames)) // span)]
        wanted = frames if span > 1 else frames[here - first]
        wanted = taken.theirs(here) if sink == "theirs" else wanted
        wrong = _wrong(seen, rows, sink, here, here - first // span, wanted)
        if wrong:
            yield f"wrong pixels in {wrong[:8]} ({len(wrong)} in all from {first})"


def _of_rejected(
    absences: Mapping[int, Absence], sink: str, fates: Array, taken: Taken
) -> Iterator[str]:
    """The right frames were rejected, and no others, as far as they were looked at."""
    said = {frame for frame, absence in absences.items() if absence.cause is Fate.REJECTED}
    if sink != "kept":
        if said:
            yield f"{sorted(said)[:8]} are rejected, and nothing rejects"
        return
    for first, frames in taken.parts(len(fates)):
        dark = frames[:, *SPOT].sum((1, 2), np.int64) < DARK
        for frame in np.flatnonzero(dark).tolist():
            if fates[first + frame] == Fate.SAVED:
                yield f"{first + frame} is saved, and was to be rejected"
        said -= set((np.flatnonzero(dark) + first).tolist())
    if said:
        yield f"{sorted(said)[:8]} are rejected, and should not be"


def _wrong(
    seen: plain.Plain,
    rows: list[dict[str, Array]],
    sink: str,
    here: Array,
    offsets: Array,
    wanted: Array,
) -> list[int]:
    """Which of these rows are not what they should be.

    Args:
        seen: the entry.
        rows: of an entry with sparse frames, one by one.
        sink: its name.
        here: the rows.
        offsets: their numbers among the sums of what is wanted.
        wanted: array `(frames, height, width)`: what was taken for them; of sums, for all.
    """
    if sink in ("raw", "kept", "theirs"):
        same = (seen.data["data"][here] == wanted).all((1, 2))
    elif sink == "sums":
        groups = wanted.reshape(-1, SUMMED, *wanted.shape[1:])[offsets]
        same = (seen.data["data"][here] == groups.sum(1, np.uint32)).all((1, 2))
    elif sink == "numbers":
        same = seen.data["data"][here][:, 0]["sum"] == wanted[:, *SPOT].sum((1, 2), np.int64)
    else:
        pairs = zip(here.tolist(), wanted, strict=True)
        same = np.array([_same_events(rows[row], frame) for row, frame in pairs], bool)
    return [int(row) for row in here[~same]]


def _same_events(row: dict[str, Array], frame: Array) -> bool:
    places = np.flatnonzero(frame > ABOVE)
    return np.array_equal(row["index"], places) and np.array_equal(
        row["value"], frame.reshape(-1)[places]
    )


def of_leftovers(folder: Path, lost: frozenset[int]) -> list[str]:
    """Files that should not be there after the end: of nodes that were not lost, or of nobody.

    Args:
        folder: of the files.
        lost: the ranks of nodes that were lost.
    """
    shown = set()
    for path in folder.rglob("*_master.h5"):
        with h5py.File(path, "r", locking=False) as file:
            for entry in file.values():
                shown |= set(entry["lima2py/files/name"].asstr()[()].tolist())
    left = [*folder.rglob("*.h5.part"), *folder.rglob("*journal*")]
    return [
        f"left behind: {path.name}"
        for path in left
        if path.name not in shown and _rank(path) not in lost and not _is_torn(path)
    ]


def _is_torn(path: Path) -> bool:
    """Whether its writer died before there was anything in it."""
    try:
        h5py.File(path, "r", locking=False).close()
    except OSError:
        return "journal" not in path.name
    return False


def _rank(path: Path) -> int:
    """Of the node that wrote it: `{file}_{rank}_{number}.h5`, `{file}_journal_{rank}`.

    Masters are written by the first acquisition node.
    """
    parts = path.name.split(".")[0].split("_")
    if parts[-1] == "master":
        return 0
    return int(parts[-1] if "journal" in parts else parts[-2])
