"""Cores and pipes do what queueing theory says, and the clock what the detector does."""

from __future__ import annotations

import pytest
import simpy
from hypothesis import given
from hypothesis import strategies as st

from lima2py.detector import Share
from lima2py.model.clock import Clock, frames_before
from lima2py.model.resources import Cores, Pipe, Steps
from lima2py.model.setup import DetectorLoad

WORK = st.floats(1e-6, 10)


def ends_of(cores: float, threads: int, jobs: list[tuple[float, float]]) -> list[float]:
    """When jobs, each that comes at a time and needs some seconds, are done."""
    env = simpy.Environment()
    host = Cores(env, cores, threads)
    ends = [0.0] * len(jobs)

    def job(number: int) -> Steps:
        at, seconds = jobs[number]
        yield env.timeout(at)
        yield host.work(seconds)
        ends[number] = env.now

    for number in range(len(jobs)):
        env.process(job(number))
    env.run()
    return ends


def test_jobs_that_share_a_core_have_equal_parts_of_it() -> None:
    assert ends_of(1, 2, [(0, 1), (0, 2)]) == pytest.approx([2, 3])
    assert ends_of(1, 3, [(0, 2), (1, 0.25), (1, 5)]) == pytest.approx([3.25, 1.75, 7.25])
    assert ends_of(0.5, 1, [(0, 1)]) == pytest.approx([2])


@given(st.integers(1, 6), st.lists(WORK, min_size=1, max_size=8))
def test_no_job_is_faster_than_its_work_and_all_are_done_in_the_time_of_all_cores(
    cores: int, work: list[float]
) -> None:
    ends = ends_of(cores, len(work), [(0, seconds) for seconds in work])
    assert all(end >= seconds * (1 - 1e-9) for end, seconds in zip(ends, work, strict=True))
    assert max(ends) >= sum(work) / cores * (1 - 1e-9)
    assert max(ends) <= (sum(work) / cores + max(work)) * (1 + 1e-9)
    if len(work) <= cores:
        assert ends == pytest.approx(work)


@given(st.lists(st.tuples(st.floats(0, 5), WORK), min_size=1, max_size=6))
def test_one_core_is_never_idle_while_there_is_work(jobs: list[tuple[float, float]]) -> None:
    free = 0.0
    for at, seconds in sorted(jobs):
        free = max(free, at) + seconds
    assert max(ends_of(1, len(jobs) + 1, jobs)) == pytest.approx(free)


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0, 1e9)), min_size=1))
def test_a_pipe_serves_in_turn_and_is_never_idle_while_somebody_waits(
    asked: list[tuple[float, float]],
) -> None:
    pipe, free = Pipe(1e8), 0.0
    for now, nbytes in sorted(asked):
        free = max(free, now) + nbytes / 1e8
        assert pipe.take(now, nbytes) == pytest.approx(free)
    assert pipe.busy == pytest.approx(sum(nbytes for _, nbytes in asked) / 1e8)
    assert Pipe(None).take(3.0, 1e12) == 3.0


@given(
    rate=st.floats(0.1, 1e6),
    frames=st.integers(1, 10_000),
    burst=st.none() | st.tuples(st.integers(1, 500), st.floats(0, 10)),
)
def test_the_frames_that_are_there_are_those_that_were_due(
    rate: float, frames: int, burst: tuple[int, float] | None
) -> None:
    bursts = {"frames": burst[0], "pause": burst[1]} if burst else None
    told = {"frame": 1, "rate": rate, "frames": frames, "bursts": bursts}
    clock = Clock(DetectorLoad.load(told, "detector"))
    for index in {0, frames // 2, frames - 1}:
        due = clock.due(index)
        assert clock.count(due) >= index + 1
        assert clock.count(due - 0.01 / rate) <= index
        assert index == 0 or due - clock.due(index - 1) >= 1 / rate * (1 - 1e-6)
    assert clock.count(clock.due(frames - 1) + 1e3) == frames


@given(st.integers(1, 5), st.integers(1, 7), st.integers(0, 200))
def test_shares_have_every_frame_once(size: int, group: int, index: int) -> None:
    shares = [Share(rank, size, group) for rank in range(size)]
    for share in shares:
        own = [n for n in range(index) if share.first(n) == n]
        assert frames_before(share, index) == len(own)
    assert sum(frames_before(share, index) for share in shares) == index
