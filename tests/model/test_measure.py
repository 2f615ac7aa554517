"""What a host can do is measured with real nodes, and what is measured can be planned with."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from lima2py.control import cli
from lima2py.documents import read_yaml
from lima2py.model.costs import Costs

SETUP = """
setup: measured
detector: {frame: 8192, rate: 1000, frames: 500}
costs: costs.yaml
"""


def give(*words: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["lima2py", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    return int(ended.value.code or 0)


def test_costs_are_measured_here_and_planned_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("graph.yaml").write_text("tasks:\n  all: {do: statistics, from: detector}\n"
                                  "  raw: {do: save_dense, from: detector}\n")  # fmt: skip
    assert give("measure", "graph.yaml", "costs.yaml", "--set", "detector.shape=[64,64]") == 0
    costs = Costs.load(read_yaml(Path("costs.yaml")), "costs.yaml")
    assert costs.frame == 8192
    assert list(costs.processing.tasks) == ["all", "raw"]
    assert 0 < costs.processing.frame < 0.1
    assert 1e-6 < costs.acquisition.block < 0.1
    assert 1e-6 < costs.processing.block < 0.1
    assert costs.processing.written > 0
    assert min(costs.acquisition.copy_rate, costs.tcp_rate, costs.disk_rate or 0) > 10**6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["costs.yaml", "graph.yaml"]
    Path("setup.yaml").write_text(SETUP)
    capsys.readouterr()
    assert give("predict", "setup.yaml", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["fates"] == {"saved": 500}
    assert told["setup"] == "measured"


def test_what_is_wrong_with_a_setup_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("setup.yaml").write_text(SETUP.replace("rate", "rates"))
    Path("costs.yaml").write_text("{}")
    assert give("predict", "setup.yaml") == 2
    told = capsys.readouterr().err
    assert 'setup.yaml, detector.rates: there is no such field (did you mean "rate"?)' in told


def test_without_simpy_it_is_said_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "simpy", None)
    for name in [name for name in sys.modules if name.startswith("lima2py.model")]:
        monkeypatch.delitem(sys.modules, name)
    assert give("predict", "setup.yaml") == 2
    assert 'pip install "lima2py[model]"' in capsys.readouterr().err
