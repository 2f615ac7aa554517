"""The disk that HDF5 is shown: exact, patient, and never in a state that cannot be read."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lima2py.frame import Block, Fate, FrameSpec, Ragged
from lima2py.storage import steady
from lima2py.storage.steady import PAGE, SteadyFile
from tests.storage.made_up import LOST, context_of, numbers, sink_for, started
from tests.storage.plain import read

Pwrite = Callable[[int, bytes, int], int]


def with_pwrite(patch: pytest.MonkeyPatch, pwrite: Pwrite) -> None:
    """Let the module write by another function."""
    everything = {name: getattr(os, name) for name in dir(os) if not name.startswith("__")}
    patch.setattr(steady, "os", SimpleNamespace(**{**everything, "pwrite": pwrite}))


actions = st.one_of(
    st.tuples(st.just("write"), st.integers(0, 3 * PAGE), st.integers(1, 2 * PAGE)),
    st.tuples(st.just("append"), st.integers(0, 40), st.integers(1, 2 * PAGE)),
    st.tuples(st.just("read"), st.integers(0, 4 * PAGE), st.integers(1, 2 * PAGE)),
    st.tuples(st.just("commit"), st.just(0), st.just(0)),
    st.tuples(st.just("fail"), st.integers(1, 5), st.just(0)),
)


@given(st.lists(actions, max_size=40))
def test_hdf5_reads_what_it_wrote_however_often_the_disk_fails(
    todo: list[tuple[str, int, int]],
) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = Path(folder) / "a"
        file = SteadyFile(str(path))
        content, committed, solid, refusals = bytearray(), b"", 0, 0

        def pwrite(fd: int, data: bytes, at: int) -> int:
            nonlocal refusals
            if refusals:
                refusals -= 1
                raise OSError(errno.ENOSPC, "full")
            return os.pwrite(fd, data[:3000], at)  # the system may take less than it is given

        with_pwrite(patch, pwrite)
        for number, (what, first, length) in enumerate(todo):
            if what in ("write", "append"):
                at = len(content) + first if what == "append" else min(first, len(content))
                data = bytes([number % 251 + 1]) * length
                content.extend(bytes(max(0, at + length - len(content))))
                content[at : at + length] = data
                file.seek(at)
                assert file.write(memoryview(data)) == length
                assert file.tell() == at + length
            elif what == "read":
                buffer = bytearray(length)
                file.seek(first)
                count = file.readinto(memoryview(buffer))
                assert buffer[:count] == content[first : first + length]
            elif what == "fail":
                refusals = first
            else:
                try:
                    file.commit()
                    committed, solid = bytes(content), len(content)
                except OSError:
                    continue
                assert path.read_bytes() == committed
            if not refusals:
                assert path.read_bytes()[:solid] == committed  # nothing that is safe has changed
        refusals = 0
        file.commit()
        assert path.read_bytes() == content
        file.close()
        file.close()


def test_a_file_that_gets_shorter_is_shorter_on_the_disk(tmp_path: Path) -> None:
    file = SteadyFile(str(tmp_path / "a"))
    file.write(memoryview(b"1" * 3 * PAGE))
    file.commit()
    file.seek(10)
    file.write(memoryview(b"2" * 2 * PAGE))
    file.truncate(PAGE + 5)
    assert file.seek(0, os.SEEK_END) == PAGE + 5
    file.commit()
    file.close()
    assert (tmp_path / "a").read_bytes() == b"1" * 10 + b"2" * (PAGE - 5)


def test_an_existing_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"precious")
    with pytest.raises(FileExistsError):
        SteadyFile(str(tmp_path / "a"))
    assert (tmp_path / "a").read_bytes() == b"precious"


PIXELS = FrameSpec("sparse", (1, 20, 30), np.dtype([("index", "<u4"), ("value", "<u2")]))


def frames_of(spec: FrameSpec, index: int, count: int) -> Block:
    if spec.kind != "sparse":
        return Block(spec, index, count, numbers(spec, index, count))
    counts = np.arange(index, index + count) % 3
    values = np.repeat(np.arange(index, index + count), counts)
    columns = {"index": values.astype("u4") % 600, "value": values.astype("u2")}
    return Block(spec, index, count, Ragged.of(counts, columns))


@pytest.mark.parametrize(
    ("spec", "frames_per_block"),
    [(FrameSpec.dense(8, 8, "u2"), 4), (FrameSpec.dense(128, 128, "u2"), 1), (PIXELS, 4)],
    ids=["shared chunks", "alone", "sparse"],
)
def test_whenever_the_writer_is_killed_all_that_is_safe_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: FrameSpec, frames_per_block: int
) -> None:
    """The file after each single write to the disk, as a kill there would leave it."""
    context = context_of(tmp_path / "a", spec, frames_per_block=frames_per_block)
    sink = started(sink_for(spec, compression="none"), spec, context)
    safe = points = 0
    lost: set[int] = set()

    def pwrite(fd: int, data: bytes, at: int) -> int:
        nonlocal points
        written = os.pwrite(fd, data, at)
        if safe:
            check()
            points += 1
        return written

    def check() -> None:
        left = tmp_path / "left.h5"
        part = Path(f"{sink.files[0]}.part")
        left.write_bytes((part if part.exists() else Path(sink.files[0])).read_bytes())
        seen = read(left)
        count = len(seen.frames["fate"])
        assert count >= safe
        assert seen.frames["index"].tolist()[:safe] == list(range(safe))
        # Neither frames that are safe, nor any other that looks so.
        saved = seen.frames["fate"] == Fate.SAVED
        absent = seen.frames["fate"] == LOST.cause
        assert (saved | absent)[:safe].all()
        assert all(seen.absences[frame] == LOST for frame in lost if frame < safe)
        assert not absent[[frame for frame in range(count) if frame not in lost]].any()
        expected = frames_of(spec, 0, count)
        if spec.kind != "sparse":
            assert np.array_equal(seen.data["data"][:count][saved], expected.pixels[saved, 0])
            return
        rows = seen.rows({"index": "index", "value": "intensity"})
        assert len(rows) >= safe
        for frame in np.flatnonzero(saved[: len(rows)]).tolist():
            wanted = expected.rows.rows(frame)
            assert np.array_equal(rows[frame]["index"], wanted["index"])
            assert np.array_equal(rows[frame]["value"], wanted["value"])

    with_pwrite(monkeypatch, pwrite)
    index = 0
    for step in range(60):
        count = 1 + step % frames_per_block
        gone = {0: LOST} if step % 5 == 4 else {}
        lost.update(index + offset for offset in gone)
        sink.write(frames_of(spec, index, count).refuse(gone))
        index += count
        if step % 3 == 2:
            sink.flush()
            safe = index
    sink.finish()
    assert points > 50
