"""The real command, badly used: it says why, ends, and leaves nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.system.rig import LIMA2PY, Command, alive, socket_folders, wait_until

SMALL = ("--set", "detector.shape=[48,64]", "--expo-time", "1 us", "--nb-frames", "5")
GRAPHS = {
    "unknown": ("tasks:\n  a: {do: tab, from: detector}\n", 'task "a", do: there is no task "tab"'),
    "twice": ("graph: a\ngraph: b\n", 'line 2, column 1: key "graph" stands here and in line 1'),
    "brackets": ("[" * 200_000, "nested more than 32 deep"),
    "box": (
        "tasks:\n  a: {do: crop, from: detector, box: [0, 0, 65, 48]}\n",
        'task "a", box: [0, 0, 65, 48]',
    ),
}


def contents(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*"))


@pytest.mark.parametrize(("text", "told"), GRAPHS.values(), ids=GRAPHS)
def test_a_bad_graph_ends_with_2_and_one_message(
    text: str, told: str, tmp_path: Path, command: Callable[..., Command]
) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    run = command("run", "bad.yaml", *SMALL, "--processing-nodes", 2, "--output", "out", "--json")
    status, out, err = run.finish()
    assert (status, out) == (2, "")
    assert err.startswith("lima2py: bad.yaml, ")
    assert err.count("\n") == 1
    assert told in err
    assert contents(tmp_path) == [str(tmp_path / "bad.yaml")]


@pytest.mark.parametrize("output", ["/proc/lima2py", "file/below"])
def test_an_output_folder_that_cannot_be_ends_the_nodes_again(
    output: str, tmp_path: Path, command: Callable[..., Command]
) -> None:
    (tmp_path / "file").write_text("in the way")
    run = command("run", "save_raw", *SMALL, "--processing-nodes", 1, "--output", output, "--json")
    pids = [node.pid for node in run.nodes(count=2)]
    status, out, err = run.finish()
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert output in err
    assert "cannot be made" in err
    assert alive(pids) == []
    assert socket_folders() == []
    assert contents(tmp_path) == [str(tmp_path / "file")]


def test_ctrl_c_while_nodes_start_ends_them_and_leaves_nothing(
    tmp_path: Path, command: Callable[..., Command]
) -> None:
    run = command("run", "save_raw", *SMALL, "--processing-nodes", 2, "--output", "out", "--json")
    pids = [node.pid for node in run.nodes(count=1)]
    run.interrupt()
    assert run.finish() == (130, "", "lima2py: interrupted\n")
    wait_until(lambda: not alive(pids), "the end of the nodes", 10)
    wait_until(lambda: not socket_folders(), "the end of the sockets", 10)
    assert contents(tmp_path) == []


HOSTILE = """
import resource, sys
from lima2py.errors import LimaError
from lima2py.graph.definition import load_graph

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

load_graph("save_raw")
before = peak()
for path in sys.argv[1:]:
    try:
        load_graph(path)
    except LimaError:
        continue
    sys.exit(f"{path} was read")
print(peak() - before)
"""


def test_hostile_graphs_take_no_memory(tmp_path: Path) -> None:
    texts = [
        "tasks: " + "[" * 200_000,
        "tasks: " + "{" * 200_000,
        "- " * 100_000,
        "a: &a [x, x]\n" + "".join(f"b{n}: &b{n} [*b{n - 1}, *b{n - 1}]\n" for n in range(1, 99)),
        "graph: '" + "x" * 200_000,
        "a: " * 60_000,
        "\n".join(f"k{n}: v" for n in range(25_000)),
    ]
    paths = []
    for number, text in enumerate(texts):
        paths.append(tmp_path / f"{number}.yaml")
        paths[-1].write_text(text)
    done = subprocess.run(
        [sys.executable, "-c", HOSTILE, *map(str, paths)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 50 * 10**6


@pytest.mark.parametrize("words", [["list", "tasks"], ["check", "first_light"], ["--help"]])
def test_a_reader_that_goes_away_gets_no_traceback(words: list[str], tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [LIMA2PY, *words], stdout=writer, stderr=subprocess.PIPE, text=True, cwd=tmp_path
        )
    finally:
        os.close(writer)
    assert done.returncode == 1
    assert done.stderr == ""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_that_lacks_characters_still_shows_the_rest(
    encoding: str, tmp_path: Path
) -> None:
    name = "caf\u00e9\u2192"
    (tmp_path / "g.yaml").write_text(
        f"graph: g\nabout: {name}\ntasks:\n  a: {{do: bin, from: detector, by: [3, 3]}}\n"
    )
    world = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0", "LC_ALL": "C"}

    def give(*words: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run([LIMA2PY, *words], capture_output=True, cwd=tmp_path, env=world)

    done = give("check", "g.yaml", "--set", "detector.shape=[48,66]")
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr
    assert done.stdout.startswith(b"g: caf")
    done = give("check", "g.yaml")
    assert done.returncode == 2
    assert done.stderr.startswith(b'lima2py: g.yaml, task "a", by: [3, 3] does not divide 512 ')


def test_a_closed_standard_input_gives_no_trigger_and_ends_the_run(tmp_path: Path) -> None:
    words = " ".join(map(repr, [LIMA2PY, "run", "save_raw", *SMALL, "--processing-nodes", "0"]))
    done = subprocess.run(
        ["sh", "-c", f"exec {words} --trigger-mode software <&-"],
        capture_output=True, text=True, cwd=tmp_path, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert "stopped in" in done.stdout
    assert "standard input has ended after 0 of 5 triggers: stopping" in done.stderr
    assert "Traceback" not in done.stderr
