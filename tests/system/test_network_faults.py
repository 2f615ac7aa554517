"""The network between two hosts is slow, loses packets, or is cut: no frame vanishes."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.audit import TASKS, Taken, of_masters
from tests.system.hosts import Network, two_hosts
from tests.system.rig import LIMA2PY, check_account, frames_saved, wait_until

SYSTEM = """
system: two hosts
detector: simulator
set: {{pattern: verifiable, shape: [64, 64]}}
keys: keys
acquisition: [{{node: acq0, host: {here}}}]
processing:
  - {{node: proc0, host: {here}}}
  - {{node: proc1, address: "tcp://{other}:4711"}}
"""


class Rig:
    """A run over two hosts: a session and two nodes on one, a node on the other."""

    def __init__(self, network: Network, folder: Path):
        self.network = network
        self.folder = folder
        subprocess.run([LIMA2PY, "keys", "keys"], cwd=folder, check=True, capture_output=True)
        (folder / "graph.yaml").write_text(json.dumps({"tasks": {"raw": TASKS["raw"]}}))
        places = {"here": network.here.address, "other": network.other.address}
        (folder / "system.yaml").write_text(SYSTEM.format(**places))
        listen = f"tcp://{network.other.address}:4711"
        self._node = self._start(
            network.other.there(
                [LIMA2PY, "node", "processing", "proc1", "--isolated", "--listen", listen,
                 "--keys", "keys"]
            )
        )  # fmt: skip
        assert self._node.stdout is not None
        assert listen in self._node.stdout.readline()
        self._run: subprocess.Popen[str] | None = None

    def _start(self, command: list[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command, cwd=self.folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def run(self, frames: int) -> None:
        """Begin a run of a thousand frames a second, and see that it goes."""
        self._run = self._start(
            self.network.here.there(
                [LIMA2PY, "run", "graph.yaml", "--system", "system.yaml", "--nb-frames",
                 str(frames), "--expo-time", "1 ms", "--output", "out", "--json"]
            )
        )  # fmt: skip
        wait_until(lambda: frames_saved(self.folder / "out") > 200 or self.over, "frames")

    @property
    def over(self) -> bool:
        """Whether the run is over."""
        return self._run is not None and self._run.poll() is not None

    def report(self) -> dict[str, Any]:
        """Of the run, once it is over; all that its masters show is right."""
        assert self._run is not None
        out, err = self._run.communicate(timeout=60)
        assert out, err
        report: dict[str, Any] = json.loads(out)
        check_account(report)
        masters = {Path(path) for path in report["masters"].values()}
        assert list(of_masters(sorted(masters), Taken((64, 64)))) == []
        return report

    def close(self) -> None:
        """End it all."""
        for process in (self._run, self._node):
            if process is not None:
                process.terminate()
                try:
                    process.communicate(timeout=10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.communicate()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """Two hosts, and a node on the other one."""
    with two_hosts() as network:
        made = Rig(network, tmp_path)
        try:
            yield made
        finally:
            made.close()


def test_a_cut_of_a_moment_costs_no_frame(rig: Rig) -> None:
    """Usually it is not even noticed; where the host is slow, frames are given to another node."""
    rig.run(1200)
    with rig.network.cut():
        time.sleep(0.3)
    report = rig.report()
    assert report["saved"] == 1200, report
    assert report["outcome"] == "completed"


def test_a_longer_cut_gives_the_frames_to_another_node_and_none_comes_twice(rig: Rig) -> None:
    rig.run(2500)
    with rig.network.cut():
        time.sleep(1.5)
        assert not rig.over
    report = rig.report()
    assert report["saved"] == 2500, report
    assert any("proc1 was lost" in text for text in report["errors"]), report


def test_a_cut_for_ever_costs_no_frame(rig: Rig) -> None:
    rig.run(1000)
    with rig.network.cut():
        report = rig.report()
    assert report["saved"] == 1000, report
    assert any("proc1 was lost" in text for text in report["errors"]), report


def test_answers_that_are_lost_while_frames_pass_make_no_frame_come_twice(rig: Rig) -> None:
    rig.run(2500)
    with rig.network.cut(rig.network.back):
        time.sleep(1.5)
    report = rig.report()
    assert report["saved"] == 2500, report


def test_a_slow_network_that_loses_packets_loses_no_frame(rig: Rig) -> None:
    for way in (rig.network.out, rig.network.back):
        way.delay, way.loss = 0.02, 0.005
    rig.run(600)
    report = rig.report()
    assert report["saved"] == 600, report
