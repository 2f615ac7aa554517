"""The system file: which nodes run where."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lima2py.errors import BadParameter
from lima2py.memory_settings import MemorySettings
from lima2py.session.session import Session
from lima2py.session.system import System, open_system

ID10 = """
system: id10-eiger
detector: eiger2.yaml
set: {temperature: 22, files: [a.tif]}
acquisition:
  - {node: acq0, memory: {locked: true, cpus: [1]}}
  - {node: acq1}
processing:
  - {node: proc0}
  - {node: proc1, address: "tcp://gpu1.id10:4711"}
keys: id10.keys
memory: {ring: 512 MiB, cpus: [0, 2]}
"""


TWO = "detectors: {b: {detector: simulator}}\nprocessing: [{node: p}]"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "id10.yaml"


def refused(path: Path, text: str) -> list[str]:
    path.write_text(text)
    with pytest.raises(BadParameter) as caught:
        System.read(path)
    return [line.removeprefix(f"{path}, ") for line in str(caught.value).splitlines()]


def test_a_system_is_what_its_file_says(path: Path) -> None:
    path.write_text(ID10)
    system = System.read(path)
    assert (system.system, system.detector) == ("id10-eiger", "eiger2.yaml")
    assert system.set == {"temperature": 22, "files": ["a.tif"]}
    assert [place.node for place in system.acquisition] == ["acq0", "acq1"]
    assert system.processing[0].address is None
    assert system.processing[1].address == "tcp://gpu1.id10:4711"


def test_relative_paths_begin_at_the_system_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_text(ID10)
    monkeypatch.chdir(path.parent.parent)
    assert System.read(path.relative_to(path.parent.parent)).base == path.parent
    path.write_text(ID10 + "base: detectors")
    assert System.read(path).base == path.parent / "detectors"


def test_a_node_has_the_memory_of_the_system_but_for_what_it_says_itself(path: Path) -> None:
    path.write_text(ID10)
    system = System.read(path)
    common = MemorySettings(ring=512 * 2**20, cpus=(0, 2)).plain()
    assert system.memory_of(system.acquisition[1]) == common
    assert system.memory_of(system.acquisition[0]) == common | {"locked": True, "cpus": [1]}
    assert MemorySettings.load(system.memory_of(system.acquisition[0]), "memory").cpus == (1,)


def test_nodes_of_this_host_are_given_its_name_when_other_hosts_take_part(path: Path) -> None:
    path.write_text(ID10)
    system = System.read(path)
    assert system.host_of(system.acquisition[0]) == socket.gethostname()
    path.write_text(ID10.replace("{node: acq1}", "{node: acq1, host: 127.0.0.1}"))
    system = System.read(path)
    assert system.host_of(system.acquisition[1]) == "127.0.0.1"
    alone = System.local("simulator", 1, 1)
    assert alone.host_of(alone.acquisition[0]) is None


def test_nodes_on_another_host_are_for_up_to_start_or_for_somebody_else(path: Path) -> None:
    path.write_text(
        "system: far\ndetector: simulator\nacquisition: [{node: acq0}]\n"
        "processing: [{node: proc0, host: 192.0.2.1}]\n"
    )
    assert [place.is_elsewhere for _, place in System.read(path).places] == [False, True]
    with pytest.raises(BadParameter, match=r"proc0, host: 192.0.2.1 is not this host;  lima2py up"):
        Session.open(path)


def test_what_is_wrong_is_told_at_once(path: Path) -> None:
    told = refused(
        path,
        """
        system: ""
        acquisition: [{node: 1st}, {node: a, adress: "tcp://x:1"}]
        processing: [{node: p, address: "tcp://x"}, {node: q, address: "tcp://x:70000"}, {host: h}]
        memory: {ring: much}
        share: all
        """,
    )
    places = [line.partition(":")[0] for line in told]
    assert places == [
        "system", "detector", "acquisition.0.node", "acquisition.1.adress",
        "processing.0.address", "processing.1.address", "processing.2.node", "memory.ring", "share",
    ]  # fmt: skip
    assert 'did you mean "address"' in told[3]
    assert "tcp://host:port" in told[4]
    assert "known: acquisition, base, detector, detectors, keys, memory, metadata" in told[8]


@pytest.mark.parametrize(
    ("nodes", "problem"),
    [
        ("acquisition: [{node: a}]", "1 acquisition nodes and 0 processing nodes"),
        ("processing: [{node: a}]", "0 acquisition nodes and 1 processing nodes"),
        ("acquisition: [{node: a}]\nprocessing: [{node: a}]", "two nodes have the same node, a"),
        (
            "acquisition: [{node: a, address: 'tcp://[::1]:1'}]\n"
            "processing: [{node: b, address: 'tcp://[::1]:1'}]",
            "two nodes have the same address, tcp://[::1]:1",
        ),
        (f"{TWO}\nacquisition: [{{node: a}}]", "detectors b: each needs one acquisition node"),
        (f"{TWO}\nacquisition: [{{node: a}}, {{node: b, detector: c}}]", "detector c; there are b"),
        (
            f"{TWO}\nacquisition: [{{node: a}}, {{node: b, detector: b}}, {{node: c}}]",
            "the main detector has 2 acquisition nodes; beside other detectors it needs one",
        ),
        (f"{TWO}\nacquisition: [{{node: b, detector: b}}]", "must have the main detector"),
        ("detectors: {b: {detector: simulator}}", "detectors b: each needs one"),
    ],
)
def test_nodes_that_do_not_go_together_are_refused(path: Path, nodes: str, problem: str) -> None:
    (told,) = refused(path, f"system: x\ndetector: simulator\n{nodes}")
    assert told.startswith("processing: ")
    assert problem in told


@pytest.mark.parametrize(
    ("other", "problem"),
    [
        ("every: 0", "every: should be greater than or equal to 1"),
        ("every: 2, events: [0]", "events: says what `every` says, too"),
        ("events: 4", "events: should be a list"),
        ("events: [0, non]", "'non' is neither"),
        ("events: [0, 2]", "should count the frames of a cycle 0, 1, 2"),
        ("events: [none]", "should count the frames of a cycle 0, 1, 2"),
        ("events: [[0, 1]]", "several frames for one event cannot be"),
        ("acquisition: {nb_frames: 3}", "nb_frames follows from the trigger map"),
        ("acquisition: {expo: 3}", 'did you mean "expo_time"'),
    ],
)
def test_other_detectors_that_cannot_be_are_refused(path: Path, other: str, problem: str) -> None:
    nodes = "acquisition: [{node: a}, {node: b, detector: b}]\nprocessing: [{node: p}]"
    detectors = f"detectors: {{b: {{detector: simulator, {other}}}}}"
    (told,) = refused(path, f"system: x\ndetector: simulator\n{detectors}\n{nodes}")
    assert told.startswith("detectors.b.")
    assert problem in told


def test_a_key_given_twice_is_refused(path: Path) -> None:
    (told,) = refused(path, "system: x\nsystem: y\n")
    assert 'key "system" stands here and in line 1' in told


def test_a_system_without_nodes_is_one_process(path: Path) -> None:
    path.write_text("system: laptop\ndetector: simulator\nmemory: {ring: 1 MiB}\n")
    system = System.read(path)
    assert system.acquisition == system.processing == ()
    assert system.memory_of(None)["ring"] == 2**20


@given(st.integers(1, 5), st.integers(1, 5))
def test_a_local_system_has_as_many_nodes_as_asked(acquisition: int, processing: int) -> None:
    system = System.local("simulator", acquisition, processing, {"seed": 3})
    assert [place.node for place in system.acquisition] == [f"acq{n}" for n in range(acquisition)]
    assert [place.node for place in system.processing] == [f"proc{n}" for n in range(processing)]
    assert (system.detector, system.set, system.base) == ("simulator", {"seed": 3}, Path.cwd())
    assert System.load(system.plain(), "again") == system


def test_no_processing_nodes_is_one_process() -> None:
    system = System.local("simulator", 1, 0)
    assert system.acquisition == system.processing == ()


@pytest.mark.parametrize(("acquisition", "processing"), [(0, 2), (-1, 1), (1, -1), (2, 0)])
def test_numbers_of_nodes_that_cannot_be_are_refused(acquisition: int, processing: int) -> None:
    with pytest.raises(BadParameter, match=f"{acquisition} acquisition nodes"):
        System.local("simulator", acquisition, processing)


def test_a_name_opens_a_detector_on_this_host() -> None:
    assert open_system("simulator", 1, 2, {"seed": 1}) == System.local(
        "simulator", 1, 2, {"seed": 1}
    )


def test_a_detector_file_opens_that_detector_on_this_host(path: Path) -> None:
    path.write_text("detector: mine\nplugin: simulator\n")
    assert open_system(str(path), 1, 2, {}) == System.local(str(path), 1, 2)


def test_a_system_file_opens_its_nodes_with_parameters_set_besides(path: Path) -> None:
    path.write_text(ID10)
    system = open_system(str(path), 1, 0, {"temperature": 25, "seed": 1})
    assert len(system.processing) == 2
    assert system.set == {"temperature": 25, "files": ["a.tif"], "seed": 1}


def test_a_file_that_is_not_there_is_refused(path: Path) -> None:
    with pytest.raises(BadParameter, match="no such system or detector file"):
        open_system(str(path), 1, 0, {})


def test_parameters_that_are_no_mapping_are_refused_even_when_some_are_added(path: Path) -> None:
    path.write_text("system: x\ndetector: y\nset: [1]\n")
    with pytest.raises(BadParameter, match=r"set: should be .*given: \[1\]"):
        System.read(path, {"seed": 1})
