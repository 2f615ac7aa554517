"""The model gives what theory knows exactly, and every frame of it has one fate."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lima2py.errors import BadParameter
from lima2py.frame import Fate
from lima2py.model.forecast import Forecast
from lima2py.model.setup import Setup
from lima2py.model.simulate import SEEN, simulate

LULL = 2e-3
BIG = 10 * 2**20
"""Bytes of a frame that fills a block alone."""


def forecast(**fields: Any) -> Forecast:
    """Of a system where everything is free that is not said to cost anything."""
    free: dict[str, Any] = {
        "acquisition": {"block": 0, "frame": 0, "copy_rate": "1000 TB", "choice": 0},
        "processing": {"block": 0},
        "message": 0,
        "tcp_rate": "1000 TB",
    }
    for part, costs in fields.pop("costs", {}).items():
        free[part] = {**free[part], **costs} if isinstance(costs, dict) else costs
    return simulate(Setup.load({"setup": "test", "costs": free, **fields}, "test"))


def processing(seconds: float, **more: object) -> dict[str, Any]:
    return {"processing": {"block": 0, "tasks": {"all": seconds}, **more}}


@given(rate=st.floats(10, 1e4), service=st.floats(1e-4, 0.1), frames=st.integers(1, 200))
def test_one_server_that_is_too_slow_is_always_busy(
    rate: float, service: float, frames: int
) -> None:
    found = forecast(
        detector={"frame": BIG, "rate": rate, "frames": frames},
        acquisition={"ring": BIG * 1024},
        costs=processing(service),
    )
    slower = max(service, 1 / rate)
    exact = 1 / rate + service + (frames - 1) * slower
    assert exact * (1 - 1e-9) <= found.seconds <= exact + LULL * 1.001
    assert found.fates == {Fate.SAVED: frames}
    if service < 1 / rate:  # nobody ever waits for anything but the others of its batch
        assert found.latency[2] <= service + 32 / rate + LULL * 1.001


@settings(max_examples=20)
@given(
    nodes=st.integers(1, 8),
    rate=st.floats(50, 2000),
    reading=st.floats(1e-4, 5e-3),
    service=st.floats(1e-3, 0.05),
    host=st.floats(0.5, 20),
    thread=st.floats(0.5, 20),
)
def test_the_rate_is_the_least_of_all_capacities(
    nodes: int, rate: float, reading: float, service: float, host: float, thread: float
) -> None:
    found = forecast(
        detector={"frame": BIG, "rate": rate, "frames": 600},
        acquisition={"ring": BIG * 256},
        processing={"nodes": nodes, "hosts": nodes},
        network={"host": int(host * 1e9), "latency": 0},
        costs={
            "acquisition": {"block": reading},
            "tcp_rate": int(thread * 1e9),
            **processing(service),
        },
    )
    least = min(rate, 1 / reading, nodes / service, host * 1e9 / BIG, thread * 1e9 / BIG)
    way = 1 / rate + reading + BIG / (host * 1e9) + BIG / (thread * 1e9) + 2 * service
    assert 600 / least * 0.98 <= found.seconds <= 600 / least * 1.02 + way + LULL
    assert found.fates == {Fate.SAVED: 600}


@given(nodes=st.integers(1, 6), service=st.floats(0.005, 0.05), factor=st.floats(1.5, 4))
@settings(max_examples=8)
def test_the_ring_fills_with_what_comes_and_does_not_go(
    nodes: int, service: float, factor: float
) -> None:
    done = nodes / service
    come = done * factor
    slots = 1000
    found = forecast(
        detector={"frame": BIG, "rate": come, "frames": 4000},
        acquisition={"ring": BIG * slots},
        processing={"nodes": nodes},
        costs=processing(service),
    )
    times, fill = found.samples.times, found.samples.fill
    filling = (fill > 0.3) & (np.arange(fill.size) < np.argmax(fill > 0.9))
    expected = (come - done) * times[filling] / slots
    batches = nodes * 40 / slots  # what waits to be flushed
    assert fill[filling] == pytest.approx(expected, abs=batches)
    assert found.ring_peak == 1
    assert found.held > 0


def test_a_shared_disk_is_a_limit_for_all_nodes_together() -> None:
    found = forecast(
        detector={"frame": BIG, "rate": 1000, "frames": 3000},
        acquisition={"ring": BIG * 128},
        processing={"nodes": 8},
        disk={"all": 10**9},
        costs=processing(1e-4, written=2_000_000),
    )
    assert found.rate == pytest.approx(500, rel=0.05)
    assert found.bottleneck == "shared disk"


def test_nodes_on_one_host_share_its_cores() -> None:
    found = forecast(
        detector={"frame": BIG, "rate": 1e5, "frames": 2000},
        acquisition={"ring": BIG * 64, "cores": 2},
        processing={"nodes": 6},
        costs=processing(0.01),
    )
    assert found.rate == pytest.approx(200, rel=0.03)
    assert found.bottleneck == "cores of acquisition hosts"


def test_what_finds_no_room_is_lost_in_the_ring_or_in_the_detector() -> None:
    detector = {"frame": BIG, "rate": 1000, "frames": 5000}
    told: dict[str, Any] = {"acquisition": {"ring": BIG * 50}, "costs": processing(2e-3)}
    dropped = forecast(detector=detector, policies={"overload": "drop"}, **told)
    written_over = forecast(detector={**detector, "buffer": 20}, **told)
    for found in (dropped, written_over):
        assert found.fates[Fate.OVERRUN] == pytest.approx(2500, abs=60)
        assert found.held < 0.1
    stopped = forecast(detector=detector, policies={"overload": "stop"}, **told)
    assert stopped.fates[Fate.NOT_ACQUIRED] == pytest.approx(4925, abs=60)


def faulty(what: str, **more: Any) -> Forecast:
    fields: dict[str, Any] = {
        "detector": {"frame": BIG, "rate": 200, "frames": 2000},
        "acquisition": {"ring": BIG * 300},
        "processing": {"nodes": 3},
        "costs": processing(0.01, restart=1),
        "faults": [{"at": 3, "what": what, "node": 1}],
    }
    return forecast(**{**fields, **more})


def test_with_room_in_the_ring_a_lost_node_costs_no_frame() -> None:
    killed, frozen = faulty("kill"), faulty("freeze")
    for found, what in ((killed, "kill"), (frozen, "freeze")):
        assert found.fates == {Fate.SAVED: 2000}
        (incident,) = found.incidents
        assert incident.recovered is not None
        assert incident.recovered >= SEEN[what]
        assert found.keeps_up
    assert frozen.latency[2] > 0.65
    assert frozen.incidents[0].backlog > killed.incidents[0].backlog


def test_a_slow_node_is_given_less_unless_nodes_take_turns() -> None:
    slow = {"factor": 20, "at": 0, "what": "slow", "node": 0}
    least = faulty("slow", faults=[slow])
    turns = faulty("slow", faults=[slow], policies={"dispatch": "round_robin"})
    assert least.keeps_up
    assert turns.held > 1


def test_policies_say_what_becomes_of_the_frames_of_a_lost_node() -> None:
    marked = faulty("kill", policies={"node_loss": "mark"})
    assert marked.fates[Fate.NODE_LOST] > 0
    assert not marked.keeps_up
    stopped = faulty("kill", policies={"node_loss": "stop"})
    assert stopped.fates[Fate.SAVED] == pytest.approx(600, abs=10)
    assert stopped.fates[Fate.NOT_ACQUIRED] == 2000 - stopped.fates[Fate.SAVED]
    alone = faulty("kill", processing={"nodes": 2}, policies={"restarts": 0, "node_patience": 1},
                   faults=[{"at": 3, "what": "kill", "node": node} for node in (0, 1)])  # fmt: skip
    assert alone.fates[Fate.NODE_LOST] > 0
    assert sum(alone.fates.values()) == 2000


def test_a_block_that_two_nodes_die_of_is_given_up() -> None:
    def killed_again(at: float) -> Forecast:
        kills = [{"at": when, "what": "kill", "node": node} for when, node in ((1, 0), (at, 1))]
        return faulty(
            "kill", processing={"nodes": 2}, faults=kills,
            detector={"frame": BIG, "rate": 20, "frames": 60},
            costs=processing(0.08, restart=5),
        )  # fmt: skip

    found = [killed_again(1 + 0.02 * n) for n in range(1, 20)]
    assert {forecast.fates.get(Fate.POISON, 0) for forecast in found} == {0, 1}
    assert all(sum(forecast.fates.values()) == 60 for forecast in found)


def test_chance_is_repeatable() -> None:
    def once(seed: int) -> dict[str, Any]:
        varied = {"nodes": 3, "variation": 0.5}
        return faulty("kill", processing=varied, seed=seed).plain()

    assert once(1) == once(1)
    assert once(1) != once(2)


FAULTS = st.lists(
    st.fixed_dictionaries(
        {
            "at": st.floats(0, 3),
            "what": st.sampled_from(["kill", "freeze", "slow"]),
            "node": st.integers(0, 1),
            "factor": st.floats(1, 10),
            "lasts": st.none() | st.floats(0.1, 1),
        }
    ),
    max_size=4,
)
POLICIES = st.fixed_dictionaries(
    {
        "node_loss": st.sampled_from(["redispatch", "mark", "stop"]),
        "overload": st.sampled_from(["wait", "drop", "stop"]),
        "dispatch": st.sampled_from(["least_loaded", "round_robin"]),
        "node_patience": st.floats(0.1, 2),
        "restarts": st.integers(0, 3),
    }
)
DETECTORS = st.fixed_dictionaries(
    {
        "frame": st.integers(1, 2 * BIG),
        "rate": st.floats(50, 3000),
        "frames": st.integers(1, 800),
        "buffer": st.none() | st.integers(1, 300),
        "bursts": st.none()
        | st.fixed_dictionaries({"frames": st.integers(1, 100), "pause": st.floats(0, 1)}),
    }
)


@settings(max_examples=60)
@given(
    detector=DETECTORS,
    policies=POLICIES,
    faults=FAULTS,
    sources=st.integers(1, 3),
    workers=st.integers(2, 4),
    hosts=st.integers(0, 2),
    cores=st.floats(0.5, 8),
    service=st.floats(0, 0.01),
    variation=st.sampled_from([0.0, 0.5]),
)
def test_every_frame_has_one_fate(
    detector: dict[str, Any], policies: dict[str, Any], faults: list[dict[str, Any]],
    sources: int, workers: int, hosts: int, cores: float, service: float, variation: float,
) -> None:  # fmt: skip
    found = forecast(
        detector=detector, policies=policies, faults=faults,
        acquisition={"nodes": sources, "cores": cores, "ring": 2**28},
        processing={"nodes": workers, "hosts": hosts, "cores": cores, "variation": variation},
        network={"host": 10**10},
        costs={**processing(service, flush=1e-3, written=1e4, restart=0.5), "message": 1e-4},
    )  # fmt: skip
    assert sum(found.fates.values()) == detector["frames"]
    assert min(found.fates.values()) > 0
    assert 0 < found.ring_peak <= 1
    assert found.samples.fill.min() >= 0
    assert found.samples.backlog.max() <= detector["frames"]


def test_a_thousand_nodes_and_200_gigabytes_a_second_can_be_simulated() -> None:
    found = forecast(
        detector={"frame": "32 MB", "rate": 6250, "frames": 5000},
        acquisition={"nodes": 64, "hosts": 64, "ring": "16 GiB"},
        processing={"nodes": 1000, "hosts": 40, "cores": 32},
        network={"host": "50 GB"},
        costs={"tcp_rate": "5 GB", **processing(0.14)},
    )
    assert found.keeps_up
    assert sum(found.fates.values()) == 5000


def test_a_fault_of_a_node_that_is_not_there_is_refused() -> None:
    with pytest.raises(BadParameter, match=r"faults.*node 3: there are 3 processing nodes"):
        faulty("kill", faults=[{"at": 0, "what": "kill", "node": 3}])
