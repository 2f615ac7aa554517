"""A sink that waits for its disk loses nothing, and gives up when it is told to."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lima2py.errors import StorageError
from lima2py.frame import Block, FrameSpec, Ragged
from lima2py.policies import Policies
from lima2py.storage import patience, steady
from lima2py.storage.care.verify import verify
from lima2py.storage.patience import Patience
from lima2py.storage.reading.run_file import RunFile
from lima2py.storage.saving import flat, node_file
from lima2py.storage.saving.flat import SaveFlat
from lima2py.storage.saving.sinks import SaveDense, SaveSparse
from lima2py.storage.steady import LockedFile
from lima2py.task import RunContext
from tests.storage.made_up import context_of

SPEC = FrameSpec.dense(8, 12, "uint16")
PIXELS = FrameSpec("sparse", (1, 8, 12), np.dtype([("index", "u4"), ("value", "u2")]))
GOES_AWAY = [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ETIMEDOUT, errno.ESTALE, errno.ENOENT]


class Disk:
    """What the system answers to those who write; `refusals` are the next answers."""

    def __init__(self) -> None:
        self.refusals: list[int] = []
        self.asked = 0
        self.attempts = 0

    def ask(self, what: Callable[..., Any], *arguments: Any) -> Any:
        self.asked += 1
        if self.refusals and self.refusals[0]:
            number = self.refusals.pop(0)
            raise OSError(number, os.strerror(number))
        if self.refusals:
            self.refusals.pop(0)
        return what(*arguments)

    def alive(self) -> None:
        self.attempts += 1


@contextmanager
def disk(waits: bool = True) -> Iterator[tuple[Disk, RunContext]]:
    """A disk whose answers can be chosen, and a run that waits for it, without its pauses."""
    made = Disk()
    names = {name: getattr(os, name) for name in dir(os) if not name.startswith("__")}
    for name in ("open", "pwrite", "ftruncate", "rename"):
        names[name] = partial(made.ask, getattr(os, name))
    with pytest.MonkeyPatch.context() as patch:
        for module in (steady, node_file, flat):
            patch.setattr(module, "os", SimpleNamespace(**names))
        patch.setattr(patience, "AGAIN", 0.0)
        run = RunContext(
            "a" * 32,
            "run",
            policies=Policies(disk="wait" if waits else "mark"),
            alive=made.alive,
        )
        yield made, run


def images(first: int, count: int) -> Block:
    data = np.arange(first * 96, (first + count) * 96, dtype="u2").reshape(count, *SPEC.shape)
    return Block(SPEC, first, count, data)


def pixels(first: int, count: int) -> Block:
    columns = {"index": np.arange(first, first + count, dtype="u4") % 96}
    columns["value"] = columns["index"].astype("u2") + 1
    return Block(PIXELS, first, count, Ragged.of(np.ones(count, np.int64), columns))


@settings(max_examples=25)
@given(
    st.sampled_from(["dense", "sparse", "flat"]),
    st.sampled_from([0, 5]),
    st.lists(st.tuples(st.integers(1, 4), st.booleans()), min_size=1, max_size=8),
    st.lists(
        st.tuples(st.integers(0, 30), st.lists(st.sampled_from(GOES_AWAY), min_size=1, max_size=5)),
        max_size=6,
    ),
)
def test_whatever_the_disk_refuses_and_when_every_frame_is_there(
    tmp_path_factory: pytest.TempPathFactory,
    kind: str,
    per_file: int,
    blocks: list[tuple[int, bool]],
    refusals: list[tuple[int, list[int]]],
) -> None:
    """Refusals come in bursts, after some answers that are none."""
    folder = tmp_path_factory.mktemp("disk")
    spec, make = (PIXELS, pixels) if kind == "sparse" else (SPEC, images)
    sink = {"dense": SaveDense, "sparse": SaveSparse, "flat": SaveFlat}[kind](
        frames_per_file=per_file
    )
    with disk() as (made, run):
        sink.prepare(spec)
        paths = {"raw": str(folder / "raw")}
        sink.start(
            RunContext(
                run.run, run.name, task="raw", paths=paths, policies=run.policies, alive=run.alive
            )
        )
        made.refusals = [said for good, burst in refusals for said in [*[0] * good, *burst]]
        first = 0
        for count, flushed in blocks:
            assert sink.write(make(first, count)) == first
            first += count
            if flushed:
                sink.flush()
        sink.finish()
        waited = made.attempts
    assert bool(waited) == any(text.startswith("waited ") for text in sink.remarks)
    assert sink.waiting == ""
    assert not list(folder.glob("*.part"))
    if kind == "flat":
        found = np.concatenate([np.fromfile(path, "u2") for path in sink.files])
        assert np.array_equal(found, images(0, first).pixels.reshape(-1))
        return
    at = 0
    for path in sink.files:
        assert verify(Path(path)).problems == []
        with RunFile(path) as file:
            block = file.block(0, len(file))
            expected = make(at, len(file))
            assert block.index == at
            if kind == "dense":
                assert np.array_equal(block.pixels, expected.pixels)
            else:
                assert np.array_equal(block.rows.columns["index"], expected.rows.columns["index"])
            at += len(file)
    assert at == first


def started(sink: SaveDense, folder: Path, run: RunContext, **changes: Any) -> SaveDense:
    sink.prepare(SPEC)
    told = {"alive": run.alive, "policies": run.policies, **changes}
    sink.start(context_of(folder / "raw", SPEC, **told))
    return sink


def test_nothing_is_waited_for_before_the_run_has_begun(tmp_path: Path) -> None:
    with disk() as (made, run):
        made.refusals = [errno.ENOSPC] * 1000
        with pytest.raises(StorageError, match="No space left on device"):
            started(SaveDense(), tmp_path, run)
        assert made.attempts == 0


def test_a_sink_that_waits_says_so_and_gives_up_when_told_to(tmp_path: Path) -> None:
    said: list[str] = []

    def alive() -> None:
        said.append(sink.waiting)

    with disk() as (made, run):
        sink = started(
            SaveDense(), tmp_path, run, alive=alive, stopping=lambda: len(said) >= 3
        )  # fmt: skip
        sink.write(images(0, 2))
        sink.flush()
        made.refusals = [errno.ENOSPC] * 1000
        sink.write(images(2, 2))
        with pytest.raises(StorageError, match=r"No space left on device \(.* free on that disk"):
            sink.flush()
        assert said == ["has been waiting 0 s for the disk: No space left on device"] * 3
        with pytest.raises(StorageError):
            sink.finish()
        assert len(said) == 3
    (path,) = tmp_path.glob("*.part")
    with RunFile(path) as file:
        assert np.array_equal(file[:], images(0, 2).pixels[:, 0])


@pytest.mark.parametrize("number", [errno.EFBIG, errno.EINVAL, errno.EEXIST])
def test_what_no_waiting_mends_is_told_at_once(tmp_path: Path, number: int) -> None:
    with disk() as (made, run):
        sink = started(SaveDense(), tmp_path, run)
        sink.write(images(0, 2))
        made.refusals = [number] * 100
        with pytest.raises(StorageError):
            sink.flush()
        made.refusals = []
        sink.finish()
        assert made.attempts == 0


def test_a_sink_may_say_otherwise_than_the_policy(tmp_path: Path) -> None:
    with disk(waits=False) as (made, run):
        sink = started(SaveDense(if_fails="wait"), tmp_path, run)
        sink.write(images(0, 2))
        made.refusals = [errno.ENOSPC] * 3
        sink.flush()
        sink.finish()
        assert made.attempts > 0
    with disk(waits=True) as (made, run):
        (tmp_path / "other").mkdir()
        sink = started(SaveDense(if_fails="mark"), tmp_path / "other", run)
        sink.write(images(0, 2))
        made.refusals = [errno.ENOSPC] * 3
        with pytest.raises(StorageError):
            sink.flush()
        made.refusals = []
        sink.finish()
        assert made.attempts == 0


def test_a_file_that_its_server_has_forgotten_is_opened_again(tmp_path: Path) -> None:
    with disk() as (made, _):
        file = LockedFile(str(tmp_path / "a"))
        file.put(0, b"before")
        made.refusals = [errno.ESTALE]
        file.put(6, b" after")
        assert (tmp_path / "a").read_bytes() == b"before after"
        assert steady.is_being_written(tmp_path / "a")
        (tmp_path / "a").rename(tmp_path / "b")
        (tmp_path / "a").write_bytes(b"somebody else's")
        made.refusals = [errno.ESTALE]
        with pytest.raises(OSError, match="Stale"):
            file.put(12, b"!")
        file.close()
    assert (tmp_path / "a").read_bytes() == b"somebody else's"


def test_patience_adds_up_what_it_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "AGAIN", 0.0)
    patient = Patience(waits=True)
    patient.begun = True
    answers = iter([errno.ENOSPC, 0, errno.ENOSPC, errno.EIO, 0, 0])

    def attempt() -> str:
        if number := next(answers):
            raise OSError(number, os.strerror(number))
        return "done"

    assert [patient(attempt) for _ in range(3)] == ["done"] * 3
    assert patient.remarks == [
        "waited 0.0 s for the disk: No space left on device",
        "waited 0.0 s for the disk: Input/output error",
    ]
