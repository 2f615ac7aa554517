"""Metrics are served where one asks for them, and nowhere else."""

from __future__ import annotations

import socket
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from lima2py.control.cli import app
from lima2py.control.metrics import address_of, serving
from lima2py.errors import BadParameter
from lima2py.session.metrics import METRICS
from lima2py.session.session import Session


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("9464", ("127.0.0.1", 9464)),
        (":9464", ("127.0.0.1", 9464)),
        ("0.0.0.0:9464", ("0.0.0.0", 9464)),
        ("[::1]:9464", ("::1", 9464)),
        ("localhost:0", ("localhost", 0)),
    ],
)
def test_without_an_address_only_this_host_is_served(text: str, address: tuple[str, int]) -> None:
    assert address_of(text) == address


@pytest.mark.parametrize("text", ["", "localhost", "127.0.0.1:http", "127.0.0.1:99999", ":-1"])
def test_what_is_no_address_is_refused_with_one_that_is(text: str) -> None:
    with pytest.raises(BadParameter, match=r"--metrics .*should be ADDRESS:PORT, .*:9464"):
        address_of(text)


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=20) as answer:
        content = answer.read()
    assert isinstance(content, bytes)
    return content.decode()


def test_prometheus_can_read_while_a_run_goes_on_and_after_it(tmp_path: Path) -> None:
    with (
        Session.open("simulator", detector={"shape": [48, 64]}) as session,
        serving(session, "127.0.0.1:0") as url,
    ):
        session.prepare(graph="save_raw", output=tmp_path, nb_frames=10**6, expo_time=1e-3)
        session.start()
        next(session.tap("live", timeout=20))
        during = fetch(url)
        session.stop()
        session.wait(20)
        after = fetch(url)
    assert len(list(text_string_to_metric_families(during))) == len(METRICS)
    assert 'lima2py_state{state="running"} 1.0' in during
    assert 'lima2py_runs_total{outcome="stopped"} 1.0' in after


def test_a_port_that_is_taken_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, Session.open("simulator") as session:
        port = other.getsockname()[1]
        with pytest.raises(BadParameter, match=rf"--metrics {port}: nobody can listen there"):
            serving(session, str(port)).__enter__()


def test_a_wrong_address_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(BadParameter, match="--metrics here"):
        app(
            ["run", "view_only", "--output", str(tmp_path), "--metrics", "here"],
            standalone_mode=False,
        )
    assert list(tmp_path.iterdir()) == []
