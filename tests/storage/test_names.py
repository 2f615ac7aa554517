"""Names of files can be read backwards: no file of one run looks like one of another."""

from __future__ import annotations

import re
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lima2py.errors import BadParameter
from lima2py.session.place import NodePlace
from lima2py.storage.names import (
    NODE_FILE,
    check_node_template,
    check_template,
    files_at,
    fill,
    longest_suffix,
    master_path,
    node_files_at,
    node_path,
)
from lima2py.task import RunContext

STEMS = st.text("ab01_-.", min_size=1, max_size=8).filter(lambda stem: stem.strip("."))
NODE_NAMES = st.from_regex(r"[A-Za-z][A-Za-z0-9_-]{0,8}", fullmatch=True)
WORDS = st.text("ab0_-.x", max_size=4)


@st.composite
def node_templates(draw: st.DrawFn) -> str:
    """Any that is allowed."""
    places = draw(st.permutations(["number", draw(st.sampled_from(["rank", "node"]))]))
    text = "{file}" + "".join(f"{draw(WORDS)}_{{{place}}}" for place in places) + draw(WORDS)
    check_node_template(text)
    return text


def run(rank: int = 0, node: str = "proc0") -> RunContext:
    return RunContext("f" * 32, "scan", rank=rank, node=node)


def test_nodes_number_their_files_beside_the_master() -> None:
    assert node_path("/data/scan_raw", NODE_FILE, run(2), 0) == "/data/scan_raw_2_00000.h5"
    assert node_path("/data/a{b", "{file}x_{number}_{node}", run(2, "gpu_1"), 17) == (
        "/data/a{bx_00017_gpu-1.h5"
    )
    assert master_path("/data/scan_raw") == "/data/scan_raw_master.h5"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("", "should begin with {file}"),
        ("{file}", "contain {number} and {rank} or {node}"),
        ("{file}_{rank}", "contain {number} and {rank} or {node}"),
        ("{file}_{number}", "two files would have one name"),
        ("x{file}_{rank}_{number}", "should begin with {file}"),
        ("{rank}_{number}", "should begin with {file}"),
        ("{file}{rank}_{number}", "put an underscore before {rank}"),
        ("{file}_{rank}-{number}", "put an underscore before {number}"),
        ("{file}/{rank}_{number}", "put folders into `file`"),
        ("../{file}_{rank}_{number}", "put folders into `file`"),
        ("{file}_{rank}_{rank}_{number}", "a place twice"),
        ("{file}_{rank}_{number}\n", "control characters"),
        ("{file}_{rank}_{number}\0", "control characters"),
        ("{file}_{rank}_{number}" + "x" * 300, "too long"),
        ("{file}_{rank}_{numer}", '{numer} means nothing here (did you mean "number"?)'),
        ("{file}_{name}_{rank}_{number}", "{name} means nothing here"),
        ("{file}_{rank}_{number:05d}", "write {number}, with nothing behind it"),
        ("{file}_{rank}_{number", "for a brace"),
    ],
)
def test_templates_that_could_name_two_files_alike_are_refused(template: str, said: str) -> None:
    with pytest.raises(BadParameter, match=f"^node_file: .*{re.escape(said)}"):
        check_node_template(template)


def test_templates_of_prefixes_know_their_places() -> None:
    check_template("{date}/{name}_{sink}_{run}_{{}}")
    with pytest.raises(BadParameter, match=r'^file: .*\(did you mean "date"\?\)'):
        check_template("{dat}")
    assert fill("{{{name}}}", {"name": "a{b}"}, "file") == "{a{b}}"


@given(NODE_NAMES)
def test_every_name_a_node_may_have_can_be_in_a_file_name(node: str) -> None:
    NodePlace.load({"node": node}, "name")
    path = node_path("/data/x", "{file}_{node}_{number}", run(node=node), 0)
    assert re.fullmatch(r"/data/x_[A-Za-z0-9-]+_00000\.h5", path)


@given(STEMS, node_templates(), st.integers(0, 200), NODE_NAMES, st.integers(0, 200_000))
def test_what_a_node_wrote_is_found_at_its_prefix_and_no_other(
    stem: str, template: str, rank: int, node: str, number: int
) -> None:
    with TemporaryDirectory() as folder:
        path = node_path(f"{folder}/{stem}", template, run(rank, node), number)
        file = Path(f"{path}.part")
        file.touch()
        (found,) = node_files_at(Path(folder, stem), template)
        assert (found.path, found.number) == (file, number)
        assert found.rank == (rank if "{rank}" in template else None)
        assert found.node == (node.replace("_", "-") if "{node}" in template else None)
        for end in range(1, len(file.name)):
            if file.name[:end] != stem:
                assert not node_files_at(Path(folder, file.name[:end]), template)


@given(STEMS, STEMS, node_templates(), NODE_NAMES, NODE_NAMES, st.integers(0, 12))
def test_files_of_two_prefixes_or_nodes_never_have_one_name(
    one: str, other: str, template: str, node: str, peer: str, rank: int
) -> None:
    assume(node.replace("_", "-") != peer.replace("_", "-"))
    paths = [
        node_path(f"/x/{stem}", template, who, 0)
        for stem in dict.fromkeys((one, other))
        for who in (run(rank, node), run(rank + 1, peer))
    ]
    assert len(set(paths)) == len(paths)


def test_masters_and_what_is_not_finished_lie_at_a_prefix_too(tmp_path: Path) -> None:
    names = ["s_0_00000.h5", "s_0_00001.h5.part", "s_10_00000.raw", "s_master.h5",
             "s_master.h5.part", "s_master.json", "s_journal_0.part",
             "s_journal_12.part"]  # fmt: skip
    others = ["s", "s.h5", "s_0_00000", "s_0_0000.h5", "s_a_00000.h5", "s_0_00000.h5.bak",
              "s_0_00000.part", "s_master.part", "s_master", "s2_0_00000.h5", "s_x_0_00000.h5",
              "s_x_master.h5", "s_0_00000.h5\n", "s_journal_0", "s_journal_a.part",
              "s_x_journal_0.part", "s_journal_0.part\n"]  # fmt: skip
    for name in (*names, *others):
        (tmp_path / name).touch()
    assert [path.name for path in files_at(tmp_path / "s")] == names
    ranks = [(found.rank, found.number) for found in node_files_at(tmp_path / "s")]
    assert ranks == [(0, 0), (0, 1), (10, 0)]
    (tmp_path / "t_master.h5").symlink_to("nowhere")
    assert files_at(tmp_path / "t") == [tmp_path / "t_master.h5"]
    assert files_at(tmp_path / "gone" / "s") == []


@given(node_templates(), NODE_NAMES)
def test_the_room_kept_for_suffixes_is_enough(template: str, node: str) -> None:
    path = node_path("/x/s", template, run(99_999, node.ljust(64, "x")), 999_999)
    assert len(Path(f"{path}.part").name) + len("_0001") <= len("s") + longest_suffix(template)
