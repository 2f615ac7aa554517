"""Memory that nothing can leak."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest

from lima2py.errors import BadParameter, LimaError
from lima2py.memory import PAGE, Buffer, Handle, Heap, Placed, Shared, attach
from lima2py.memory_settings import MemorySettings

ALLOCATORS = {
    "heap": Heap(),
    "shared": Shared(),
    "placed": Placed(Shared(), MemorySettings()),
}

OWNER = """
import sys, msgspec, numpy as np
from lima2py.memory import Shared
buffer = Shared().allocate(100_000)
buffer.bytes[:] = np.arange(len(buffer.bytes)) % 251
print(msgspec.json.encode(buffer.handle).decode(), flush=True)
for line in sys.stdin:
    buffer.bytes[0] = int(line)
    print("done", flush=True)
"""

READER = """
import sys, msgspec
from lima2py.memory import Handle, attach
buffer = attach(msgspec.json.decode(sys.argv[1], type=Handle))
print(int(buffer.bytes.sum()), buffer.bytes.flags.writeable)
"""


@contextmanager
def python(code: str) -> Iterator[subprocess.Popen[str]]:
    """Another process, killed at the end if it still lives."""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def line(process: subprocess.Popen[str]) -> str:
    """The next line a process prints."""
    assert process.stdout is not None
    return process.stdout.readline()


def run(code: str, *arguments: str) -> str:
    """What a process prints."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def shared_maps(pid: int | str = "self") -> list[str]:
    """The lines about shared memory among what a process has mapped."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return [text for text in lines if "memfd:lima2py" in text or "/dev/shm" in text]


@pytest.mark.parametrize("name", ALLOCATORS)
@pytest.mark.parametrize("nbytes", [1, PAGE, PAGE + 1, 10**6])
def test_memory_comes_zeroed_and_aligned_and_all_of_it_can_be_written(
    name: str, nbytes: int
) -> None:
    buffer = ALLOCATORS[name].allocate(nbytes)
    assert nbytes <= buffer.bytes.nbytes < nbytes + PAGE
    assert buffer.bytes.ctypes.data % PAGE == 0
    assert not buffer.bytes.any()
    buffer.bytes[:] = 0xA5
    assert (buffer.bytes == 0xA5).all()
    buffer.close()


@pytest.mark.parametrize("name", ALLOCATORS)
def test_nothing_stays_open_or_mapped_and_arrays_outlive_the_buffer(name: str) -> None:
    before = len(os.listdir("/proc/self/fd")), shared_maps()
    buffer = ALLOCATORS[name].allocate(PAGE)
    array = buffer.bytes
    array[:] = 7
    buffer.close()
    buffer.close()
    assert buffer.bytes.size == 0
    assert (array == 7).all()
    del array
    assert (len(os.listdir("/proc/self/fd")), shared_maps()) == before


@pytest.mark.parametrize("name", ALLOCATORS)
def test_more_than_this_host_has_is_refused_with_what_it_has(name: str) -> None:
    with pytest.raises(LimaError, match=r"TiB of memory asked, .* available .*smaller ring"):
        ALLOCATORS[name].allocate(2**60)


@pytest.mark.parametrize("name", ["heap", "shared"])
def test_memory_that_is_reserved_is_not_taken_before_it_is_committed(name: str) -> None:
    before = resident()
    buffer = ALLOCATORS[name].reserve(2**28)
    assert resident() - before < 2**24
    buffer.commit(2**20, 2**26)
    buffer.bytes[2**20 : 2**20 + 2**26] = 1
    assert 2**25 < resident() - before < 2**27
    buffer.close()


@pytest.mark.parametrize("name", ["heap", "shared"])
def test_memory_that_is_released_is_given_back_and_can_be_committed_again(name: str) -> None:
    buffer = ALLOCATORS[name].allocate(2**26)
    buffer.bytes[:] = 1
    before = resident()
    buffer.release(2**20, 2**25)
    assert before - resident() > 2**24
    assert buffer.bytes[2**20 - 1] == 1
    buffer.commit(2**20, 2**25)
    assert not buffer.bytes[2**20 : 2**20 + 2**25].any()
    assert resident() > before - 2**22
    buffer.close()


def resident() -> int:
    """Bytes of this process in memory, shared ones too."""
    return psutil.Process().memory_info().rss


def test_private_memory_has_no_handle() -> None:
    assert Heap().allocate(1).handle is None


def test_another_process_reads_shared_memory_and_cannot_write_it() -> None:
    buffer = Shared().allocate(100_000)
    buffer.bytes[:] = np.arange(len(buffer.bytes)) % 251
    handle = msgspec.json.encode(buffer.handle).decode()
    assert run(READER, handle) == f"{int(buffer.bytes.sum())} False"
    buffer.close()


def test_shared_memory_has_no_name_and_survives_its_owner_only_in_those_who_hold_it() -> None:
    before = shared_maps()
    with python(OWNER) as owner:
        handle = msgspec.json.decode(line(owner), type=Handle)
        assert handle.pid == owner.pid
        assert [" (deleted)" in text for text in shared_maps(owner.pid)] == [True]
        buffer = attach(handle)
        expected = np.arange(handle.nbytes) % 251
        np.testing.assert_array_equal(buffer.bytes, expected)
        assert not buffer.bytes.flags.writeable

        assert owner.stdin is not None
        print(99, file=owner.stdin, flush=True)
        assert line(owner) == "done\n"
        assert buffer.bytes[0] == 99

        owner.send_signal(signal.SIGKILL)
        owner.wait()
        np.testing.assert_array_equal(buffer.bytes[1:], expected[1:])
        with pytest.raises(LimaError, match=f"shared memory of process {handle.pid}: No such"):
            attach(handle)
    assert len(shared_maps()) == len(before) + 1
    buffer.close()
    assert shared_maps() == before


def test_memory_that_is_not_the_one_meant_is_refused() -> None:
    buffer = Shared().allocate(PAGE)
    handle = buffer.handle
    assert handle is not None
    for wrong in (
        msgspec.structs.replace(handle, inode=handle.inode + 1),
        msgspec.structs.replace(handle, nbytes=handle.nbytes * 2),
    ):
        with pytest.raises(LimaError, match="it has been replaced"):
            attach(wrong)
    with pytest.raises(LimaError, match="on another host"):
        attach(msgspec.structs.replace(handle, host="elsewhere"))
    buffer.close()
    with pytest.raises(LimaError, match=f"shared memory of process {os.getpid()}"):
        attach(handle)


def test_locking_more_than_allowed_is_refused_with_the_way_to_allow_it() -> None:
    script = """
import os, resource
from lima2py.memory import *
resource.setrlimit(resource.RLIMIT_MEMLOCK, (4096, 4096))
if os.geteuid() == 0:
    os.setuid(65534)
before = len(os.listdir("/proc/self/fd"))
try:
    Placed(Shared(), MemorySettings(locked=True)).allocate(2**20)
except LimaError as error:
    print(error, len(os.listdir("/proc/self/fd")) - before)
"""
    assert re.fullmatch(
        r"locking 1 MiB of memory: .*; raise the limit \(ulimit -l, LimitMEMLOCK= .*\)"
        r" or set locked: false 0",
        run(script),
    )


def placed(settings: MemorySettings) -> Buffer:
    """Memory as the settings say; skips where this host's rules for programs forbid it."""
    try:
        return Placed(Shared(), settings).allocate(2**20)
    except LimaError as error:
        if "not permitted" in str(error) or "Cannot allocate" in str(error):
            pytest.skip(f"not allowed here: {error}")
        raise


def test_locked_memory_counts_as_locked() -> None:
    def locked() -> int:
        found = re.search(r"VmLck:\s+(\d+) kB", Path("/proc/self/status").read_text())
        assert found
        return int(found[1])

    before = locked()
    buffer = placed(MemorySettings(locked=True))
    assert locked() == before + 1024
    buffer.close()
    assert locked() == before


def test_memory_is_bound_to_the_numa_node_asked_for() -> None:
    buffer = placed(MemorySettings(numa_node=0))
    maps = Path("/proc/self/numa_maps")
    if not maps.exists():
        pytest.skip("this kernel does not tell where memory lies")
    start = f"{buffer.bytes.ctypes.data:x} "
    (found,) = [text for text in maps.read_text().splitlines() if text.startswith(start)]
    assert "bind:0" in found
    buffer.close()


def test_a_numa_node_that_is_not_there_is_refused_with_those_that_are() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(LimaError, match=r"numa_node 99: this host has \[0"):
        Placed(Shared(), MemorySettings(numa_node=99)).allocate(PAGE)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_process_runs_only_on_the_processors_asked_for() -> None:
    cpu = max(os.sched_getaffinity(0))
    script = (
        "import os; from lima2py.memory_settings import *;"
        f" MemorySettings(cpus=({cpu},)).apply_to_process(); print(os.sched_getaffinity(0))"
    )
    assert run(script) == f"{{{cpu}}}"


def test_a_processor_that_is_not_there_is_refused_with_those_that_are() -> None:
    before = os.sched_getaffinity(0)
    with pytest.raises(LimaError, match=r"cpus \[4711\]: this host allows \[\d"):
        MemorySettings(cpus=(4711,)).apply_to_process()
    MemorySettings().apply_to_process()
    assert os.sched_getaffinity(0) == before


def thread_of(scheduling: str) -> str:
    """Prints the scheduling class of a thread that was there before the settings were applied."""
    return f"""
import os, threading
from lima2py.memory import *
done, told = threading.Event(), threading.Event()
def wait():
    told.set()
    done.wait()
    print(os.sched_getscheduler(0), os.sched_getparam(0).sched_priority)
thread = threading.Thread(target=wait)
thread.start()
told.wait()
try:
    {scheduling}
except LimaError as error:
    print(error)
done.set()
thread.join()
"""


def test_all_threads_of_a_process_get_the_scheduling_class() -> None:
    settings = "MemorySettings(scheduling='batch').apply_to_process()"
    assert run(thread_of(settings)) == f"{os.SCHED_BATCH} 0"


def test_real_time_scheduling_is_given_or_refused_with_what_is_allowed() -> None:
    settings = "MemorySettings(scheduling='fifo', priority=7).apply_to_process()"
    told = run(thread_of(settings))
    if told != f"{os.SCHED_FIFO} 7":
        assert re.match(r"scheduling fifo, priority 7: this user may go up to \d+; raise", told)
    drop = "import resource; resource.setrlimit(resource.RLIMIT_RTPRIO, (0, 0)); os.setuid(65534)"
    if os.geteuid() == 0:
        told = run(thread_of(f"{drop}; {settings}"))
        assert told.startswith("scheduling fifo, priority 7: this user may go up to 0; raise")
        assert told.endswith(f"{os.SCHED_OTHER} 0")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"scheduling": "fifo"}, "priority: scheduling fifo needs one: should be from 1 to 99"),
        ({"priority": 3}, "priority: only scheduling fifo has one; leave it out"),
        ({"scheduling": "fifo", "priority": 100}, "priority: should be .* 99"),
        ({"scheduling": "idle"}, "scheduling: should be"),
        ({"budget": "1 MiB"}, "budget: should be .* 67108864"),
    ],
)
def test_settings_that_cannot_be_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(BadParameter, match=said):
        MemorySettings.load(given, "system.yaml")


@pytest.mark.parametrize("kind", [Heap, Shared])
def test_huge_pages_are_used_or_refused_with_the_way_to_have_them(
    kind: type[Heap] | type[Shared],
) -> None:
    try:
        buffer = kind(huge_pages=True).allocate(2**22)
    except LimaError as refusal:
        if not re.match(r"huge_pages: this host has none to give; as root, .*echo", str(refusal)):
            raise
        pytest.skip(f"not here: {refusal}")
    buffer.bytes[:] = 1
    text = Path("/proc/self/smaps").read_text()
    (found,) = re.findall(rf"^{buffer.bytes.ctypes.data:x}-.*\n(?:\w+:.*\n)*", text, re.MULTILINE)
    assert "hg" in re.search(r"VmFlags:(.*)", found)[1] or buffer.page > PAGE  # type: ignore[index]
    buffer.release(0, buffer.page)
    assert not buffer.bytes[: buffer.page].any()
    buffer.close()


def test_settings_are_written_with_units() -> None:
    settings = MemorySettings.load({"ring": "2 GiB", "cpus": [0, 1]}, "system.yaml")
    assert (settings.ring, settings.cpus) == (2**31, (0, 1))
    with pytest.raises(BadParameter, match=r"ring: should be .* 65536; given: \"1 KiB\""):
        MemorySettings.load({"ring": "1 KiB"}, "system.yaml")
