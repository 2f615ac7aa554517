"""The command line: what is refused says so once and leaves nothing; what is not does what it says.

All of it runs in this process, through the entry point of the command.
"""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from rich.console import Console

from lima2py.acquisition import Acquisition, TriggerMode
from lima2py.control import cli, files, progress
from lima2py.graph.flow import Flow
from lima2py.session.launch import Child
from lima2py.session.report import Report
from lima2py.session.session import Session
from tests.system.rig import LIMA2PY

TAP = "{do: tap, from: detector}"
QUICK = ("--expo-time", "1 us", "--set", "detector.shape=[48,64]", "--processing-nodes", "0")


@dataclass(frozen=True)
class Told:
    """What a command said, and how it ended."""

    status: int
    out: str
    err: str


Command = Callable[..., Told]


@pytest.fixture
def lima2py(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Give a command in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def give(*words: object) -> Told:
        monkeypatch.setattr(sys, "argv", ["lima2py", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        assert ended.value.code is None or isinstance(ended.value.code, int)
        return Told(ended.value.code or 0, said.out, said.err)

    return give


@pytest.fixture
def refused(lima2py: Command, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Give a command that must be refused; its one message."""

    def no_node(*args: object, **kwargs: object) -> None:
        raise AssertionError("a node was started")

    def give(*words: object) -> str:
        before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
        with monkeypatch.context() as patch:
            patch.setattr(Child, "__init__", no_node)
            told = lima2py(*words)
        assert told.status == files.REFUSED, told
        assert told.out == ""
        assert told.err.startswith("lima2py: ")
        assert not re.search("^lima2py: ", told.err[1:], re.MULTILINE)
        assert "Traceback" not in told.err
        assert {path: path.stat().st_mtime_ns for path in Path().rglob("*")} == before
        return told.err.removeprefix("lima2py: ")

    return give


def task(text: str) -> str:
    return f"tasks:\n  one: {text}\n"


BAD_GRAPHS: dict[str, tuple[str | bytes, str]] = {
    "unknown task": (task("{do: tab, from: detector}"), 'task "one", do: .*"tab".*mean "tap"'),
    "no task": ("graph: x\n", "tasks: should hold at least one task.*nothing was given"),
    "unknown key": (task("{do: tap, from: detector, hist: 3}"), 'task "one", hist: .*history'),
    "unknown key at the top": (f"task: {{}}\n{task(TAP)}", 'task: there is no such.*mean "tasks"'),
    "key given twice": (
        f"tasks:\n  one: {TAP}\n  one: {TAP}\n", 'line 3, column 3: key "one".*line 2; keep one'
    ),
    "wrong type": (
        task("{do: bin, from: detector, by: two}"), 'task "one", by: should be .*given: "two"'
    ),
    "wrong unit": (
        task("{do: tap, from: detector, every: 3 parsec}"), 'every: is not a time.*200 ms.*parsec'
    ),
    "size for a time": (task("{do: tap, from: detector, every: 3 MiB}"), 'every: .*"3 MiB"'),
    "no for a number": (
        task("{do: tap, from: detector, history: no}"), 'history: .*whole number; given: "no"'
    ),
    "010 for a number": (
        task("{do: tap, from: detector, history: 010}"), 'history: .*whole number; given: "010"'
    ),
    "12:30 for a time": (task("{do: tap, from: detector, every: 12:30}"), 'every: .*"12:30"'),
    "yes among numbers": (
        task("{do: bin, from: detector, by: [2, yes]}"), r'by: .*given: \[2, "yes"\]'
    ),
    "below its least": (task("{do: tap, from: detector, history: 0}"), "history: .*given: 0"),
    "cycle": (
        "tasks:\n  one: {do: tap, from: two}\n  two: {do: tap, from: one}\n",
        "tasks: one → two → one is a circle; let one of them begin from detector",
    ),
    "missing input": (task("{do: tap}"), 'task "one", from: is required.*detector'),
    "unknown input": (task("{do: tap, from: detectr}"), 'from: .*"detectr".*mean "detector"'),
    "too many inputs": (
        f"tasks:\n  one: {TAP}\n  two: {{do: tap, from: [one, detector]}}\n",
        'task "two", from: tap takes 1 input; given: .*one.*detector',
    ),
    "two formats to one file": (
        "tasks:\n  one: {do: save_dense, from: detector, file: run}\n"
        '  two: {do: save_flat, from: detector, file: "{name}"}\n',
        'task "two", file: .*where task "one" writes already, .*; put {sink} into both',
    ),
    "two sinks to one file that do not agree on it": (
        "tasks:\n  one: {do: save_dense, from: detector, file: run}\n"
        '  two: {do: save_dense, from: detector, file: "{name}", exists: overwrite}\n',
        'task "two", exists: .overwrite. is given, and .abort. in task "one"',
    ),
    "file that leads out": (
        task("{do: save_dense, from: detector, file: ../../x}"), 'task "one", file: .*leads out'
    ),
    "file with an unknown place": (
        task('{do: save_dense, from: detector, file: "{nam}"}'), 'file: .*{nam}.*mean "name"'
    ),
    "bin that does not divide": (
        task("{do: bin, from: detector, by: [3, 2]}"), r"by: \[3, 2\] does not .*512 × 512.*crop"
    ),
    "crop outside": (
        task("{do: crop, from: detector, box: [500, 0, 20, 20]}"), r"box: \[500, 0.*512 × 512"
    ),
    "ROI outside": (
        task("{do: roi_counters, from: detector, rois: {a: [0, 510, 4, 4]}}"),
        r'task "one", rois.a: \[0, 510, 4, 4\].*outside the detector.*512 × 512',
    ),
    "mask of wrong shape": (
        task("{do: mask, from: detector, file: small.npy}"), "file: .*small.npy is 10 × 10.*512"
    ),
    "mask that is absent": (
        task("{do: mask, from: detector, file: none.npy}"), "file: .*none.npy cannot be .*No such"
    ),
    "mask that is no image": (
        task("{do: mask, from: detector, file: text.tif}"), "file: .*text.tif cannot be read"
    ),
    "alias bomb": (
        "a: &a [x, x]\n" + "".join(f"b{n}: [*a, *a]\n" for n in range(9)), "`&a` is not allowed"
    ),
    "merge key": (f"tasks:\n  one: {TAP}\n  two:\n    <<: {TAP}\n", "line 4, .*`<<` merges"),
    "tag": ("graph: !!python/name:os.system\n", "tag `!!python/name:os.system` is not allowed"),
    "200 kB of brackets": ("tasks: " + "[" * 200_000, "nested more than 32 deep"),
    "too large": ("x" * 300_000, "293 KiB long; 256 KiB is the most"),
    "empty": ("", "is empty"),
    "a list": ("- tap\n", "should hold `key: value` lines; it holds a list"),
    "tabs": ("graph: x\ntasks:\n\tone: 1\n", "line 3, column 1: .*use spaces, not tabs"),
    "binary": (bytes(range(256)), "line 2, column 118: byte 0x80 is not UTF-8"),
    "not UTF-8": ("graph: caf\xe9\n".encode("latin-1"), "column 11: byte 0xe9 is not UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "told"), BAD_GRAPHS.values(), ids=BAD_GRAPHS)
def test_a_bad_graph_is_refused_by_run_and_check_alike(
    text: str | bytes, told: str, refused: Callable[..., str]
) -> None:
    np.save("small.npy", np.zeros((10, 10), bool))
    Path("text.tif").write_text("hello")
    Path("bad.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    said = refused("run", "bad.yaml", "--json", "--processing-nodes", 2)
    assert said.startswith("bad.yaml")
    assert re.search(told, said), said
    assert refused("check", "bad.yaml") == said


def test_every_problem_of_a_graph_is_told_at_once(refused: Callable[..., str]) -> None:
    Path("bad.yaml").write_text(
        "tasks:\n  one: {do: tap}\n  two: {do: no, from: detector}\n  three: {do: bin, from: x}\n"
    )
    lines = refused("run", "bad.yaml").splitlines()
    assert [re.findall('task "(.*?)"', line)[0] for line in lines] == [
        "one", "two", "three", "three",
    ]  # fmt: skip


BAD_OPTIONS: list[tuple[str, str]] = [
    ("--nb-frames -1", "nb_frames: should be greater than or equal to 0; given: -1"),
    ("--nb-frames 9999999999999999999999", "nb_frames: should be less than .*given: 9999"),
    ("--nb-frames ten", 'nb_frames: .*whole number; given: "ten"'),
    ("--nb-frames no", 'nb_frames: .*given: "no"'),
    ("--nb-frames 010", 'nb_frames: .*given: "010"'),
    ("--nb-frames 1.5", r"nb_frames: .*given: 1\.5"),
    ("--expo-time 12:30", 'expo_time: is not a time.*200 ms; given: "12:30"'),
    ("--expo-time 1y", 'expo_time: .*ns, us, µs, ms, s, min, h.*given: "1y"'),
    ("--expo-time 0", "expo_time: should be greater than 0; given: 0"),
    ("--expo-time 2h", "detector simulator, expo_time 7200 s: it allows 1 us to 3600 s"),
    ("--expo-time 1ns", "expo_time 1 ns: it allows 1 us"),
    ("--latency-time -1ms", "latency_time: should be greater than or equal to 0"),
    ("--trigger-mode magic", "trigger_mode: should be 'internal'.* 'gate'; given: \"magic\""),
    ("--trigger-mode gate", "trigger_mode gate: it knows external, internal, software"),
    ("--nb-frames-per-trigger 0", "nb_frames_per_trigger: .*given: 0"),
    ("--processing-nodes -1", "-1 processing nodes: .*0 or more"),
    ("--processing-nodes two", "--processing-nodes: should be a whole number; given: two"),
    ("--acquisition-nodes 0", "0 acquisition nodes .*at least 1"),
    ("--acquisition-nodes 2 --processing-nodes 0", "2 acquisition nodes without a processing"),
    ("--detector simulatr", 'there is no detector "simulatr"; known are .*simulator'),
    ("--detector none.yaml", "none.yaml: there is no such detector file"),
    ("--detector replay", "files: is required and was not given"),
    ("--detector replay --set detector.files=*.h5", r"files: there is no file .*\*\.h5"),
    ("--detector replay --set detector.files=text.tif", "files: .*text.tif: "),
    ("--name ../x", r"name '\.\./x': should be 1 to 100 letters"),
    ("--name .x", "not begin with a dot"),
    ("--set raw", "--set 'raw': should be TASK.PARAM=VALUE .* --set view.by="),
    ("--set raw=1", "should be TASK.PARAM=VALUE"),
    ("--set .x=1", "should be TASK.PARAM=VALUE"),
    ("--set row.file=x", 'override row.file: there is no task "row".*mean "raw"'),
    ("--set raw.fil=x", 'task "raw", fil: there is no such field.*mean "file"'),
    ("--set raw.exists=maybe", "exists: should be 'abort', 'overwrite' or 'append-number'; given"),
    ("--set detector.shap=[4,4]", 'shap: there is no such field.*mean "shape"'),
    ("--set detector.shape=[0,4]", "shape.0: should be greater than or equal to 1; given: 0"),
    ("--set detector.shape=[4,4]x", "shape: .*given"),
    ("--system none.yaml", "none.yaml: there is no such system file"),
    ("--system lab.yaml --detector simulator", "leave out --detector, .* or --system"),
    ("--system lab.yaml --processing-nodes 2", "leave out .*--processing-nodes, or --system"),
    ("--bogus", "No such option: --bogus; see lima2py run --help"),
    ("--nam x", "No such option: --nam .*--name"),
    ("--name", "'--name' requires an argument"),
    ("more", "unexpected extra argument.*more.*; see lima2py run --help"),
]


@pytest.mark.parametrize(("options", "told"), BAD_OPTIONS, ids=[words for words, _ in BAD_OPTIONS])
def test_a_bad_option_is_refused(options: str, told: str, refused: Callable[..., str]) -> None:
    Path("text.tif").write_text("hello")
    Path("lab.yaml").write_text("system: lab\ndetector: simulator\n")
    said = refused("run", "save_raw", "--json", "--output", "out", *options.split())
    assert re.search(told, said), said


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("frob", "No such command 'frob'; see lima2py --help"),
        ("rum save_raw", "Did you mean 'run'"),
        ("run", "Missing argument 'graph'; see lima2py run --help"),
        ("run first_ligth", 'no graph "first_ligth" .*mean "first_light".*path of a .yaml file'),
        ("run none.yaml", "none.yaml: there is no such graph"),
        ("run folder.yaml", "folder.yaml: is not a file; the graph should be a YAML file"),
        ("list things", "'things' is not one of 'detectors', 'tasks', 'graphs'"),
        ("info none.h5", "none.h5 cannot be read: No such file"),
        ("info text.tif", "text.tif cannot be read: it is not an HDF5 file"),
        ("info other.h5", "other.h5 is not a file of lima2py"),
        ("show none.h5", "Missing option '--png'"),
        ("show none.h5 --png x.png", "none.h5 cannot be read: No such file"),
        ("show other.h5 --png x.png --frame 1 --sum", "give --frame or --sum, not both"),
        ("show other.h5 --png x.png --frame one", "--frame: should be a whole number; given: one"),
        ("node helper n0 --listen tcp://*:1", "'helper' is not one of 'acquisition', 'processing'"),
        ("node processing n0 --listen 4711", "--listen 4711: should be tcp://HOST:PORT"),
        (
            "node processing ../n --listen tcp://localhost:4711",
            r'should be a letter.*given: "\.\./n"',
        ),
        ("node processing n0", "Missing option '--listen'"),
    ],
)
def test_a_bad_command_is_refused(words: str, told: str, refused: Callable[..., str]) -> None:
    Path("text.tif").write_text("hello")
    Path("folder.yaml").mkdir()
    h5py.File("other.h5", "w").close()
    said = refused(*words.split())
    assert re.search(told, said), said


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("shape: [4, 4]\n", "own.yaml, plugin: should be a name, one of replay, simulator"),
        ("plugin: simulater\n", 'own.yaml, plugin: .*"simulater".*mean "simulator"'),
        ("plugin: simulator\nshpe: [4, 4]\n", 'own.yaml, shpe: .*mean "shape"'),
        ("plugin: simulator\nshape: [4, wide]\n", 'own.yaml, shape.1: .*given: "wide"'),
        ("plugin: simulator\ndtype: uint7\n", "own.yaml, dtype: .*'uint8'.*given: \"uint7\""),
        ("plugin: simulator\nplugin: replay\n", 'own.yaml, line 2, .*key "plugin"'),
    ],
)
def test_a_bad_detector_file_is_refused(text: str, told: str, refused: Callable[..., str]) -> None:
    Path("own.yaml").write_text(text)
    said = refused("run", "save_raw", "--detector", "own.yaml")
    assert re.search(told, said), said


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("detector: simulator\n", "lab.yaml, system: is required"),
        ("system: lab\ndetector: simulatr\n", 'no detector "simulatr"'),
        ("system: lab\ndetector: simulator\nprocesing: []\n", 'procesing: .*mean "processing"'),
        (
            "system: lab\ndetector: simulator\nacquisition: [{node: a}]\nprocessing: [{node: a}]\n",
            "two nodes have the same node, a",
        ),
        (
            "system: lab\ndetector: simulator\nacquisition: [{node: a}]\n",
            "1 acquisition nodes and 0 processing nodes",
        ),
        ("system: lab\ndetector: simulator\nmemory: {ring: 2 s}\n", 'memory.ring: .*given: "2 s"'),
        (
            "system: lab\ndetector: simulator\nacquisition: [{node: a, address: here}]\n"
            "processing: [{node: b}]\n",
            'acquisition.0.address: .*tcp://host:port; given: "here"',
        ),
    ],
)
def test_a_bad_system_file_is_refused(text: str, told: str, refused: Callable[..., str]) -> None:
    Path("lab.yaml").write_text(text)
    said = refused("run", "save_raw", "--system", "lab.yaml")
    assert re.search(told, said), said


@pytest.mark.parametrize(
    ("output", "told"),
    [("file", "a part of the path is a file"), ("file/below", "a part of the path is a file"),
     ("/proc/lima2py", "/proc/lima2py cannot be made")],
)  # fmt: skip
def test_an_output_folder_that_cannot_be_is_refused(
    output: str, told: str, refused: Callable[..., str]
) -> None:
    Path("file").write_text("in the way")
    said = refused("run", "save_raw", *QUICK, "--output", output)
    assert output in said
    assert told in said


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("output", ["closed", "closed/below"])
def test_an_output_folder_without_the_right_to_write_is_refused(
    output: str, refused: Callable[..., str]
) -> None:
    Path("closed").mkdir(mode=0o555)
    assert "this user may not write there" in refused("run", "save_raw", *QUICK, "--output", output)


def test_files_that_exist_are_kept_unless_the_graph_says_otherwise(
    lima2py: Command, refused: Callable[..., str]
) -> None:
    words = ("run", "save_raw", *QUICK, "--nb-frames", 3, "--output", "out", "--json")
    assert lima2py(*words).status == 0
    said = refused(*words)
    assert 'task "raw": ' in said
    assert "out/run_0_00000.h5 and 1 more of it exists already" in said
    assert "--set raw.exists=append-number" in said
    assert refused("check", *words[1:-1]) == said
    first = Path("out/run_master.h5").stat().st_mtime_ns
    numbered = lima2py(*words, "--set", "raw.exists=append-number")
    assert json.loads(numbered.out)["masters"]["raw"].endswith("out/run_0001_master.h5")
    assert Path("out/run_master.h5").stat().st_mtime_ns == first
    assert lima2py(*words, "--set", "raw.exists=overwrite").status == 0
    assert Path("out/run_master.h5").stat().st_mtime_ns > first
    assert len(list(Path("out").iterdir())) == 4


def test_a_run_prints_its_report(lima2py: Command) -> None:
    told = lima2py(
        "run", "first_light", "--nb-frames", 20, "--expo-time", "1 us", "--processing-nodes", 0,
        "--output", "out", "--name", "scan1", "--set", "detector.drop=[3,4,9]",
    )  # fmt: skip
    assert told.status == 0
    assert told.err == ""
    lines = told.out.splitlines()
    assert lines[0].startswith("scan1: completed in ")
    assert lines[1] == "  asked 20: saved 17, absent 3 (detector_gap 3: 3-4, 9)"
    sinks = {"raw": "raw", "small": "view", "counts": "counters"}
    assert lines[2:] == [
        f"  {sink}: {Path.cwd()}/out/scan1_{end}_master.h5" for sink, end in sinks.items()
    ]


def test_json_is_one_object_and_begins_with_what_programs_ask_for(lima2py: Command) -> None:
    told = lima2py("run", "save_raw", *QUICK, "--nb-frames", 5, "--json")
    assert told.out.count("\n") == 1
    report = json.loads(told.out)
    assert list(report)[:8] == [
        "outcome", "asked", "saved", "rejected", "absent", "masters", "errors", "seconds",
    ]  # fmt: skip
    assert (report["outcome"], report["asked"], report["saved"]) == ("completed", 5, 5)
    assert Path(report["masters"]["raw"]).exists()


def test_a_run_that_fails_ends_with_1_and_says_why(lima2py: Command) -> None:
    told = lima2py("run", "save_raw", *QUICK, "--nb-frames", 50, "--set", "detector.fail_at=17")
    assert told.status == files.INCOMPLETE
    assert "failed in" in told.out
    assert "asked 50: saved 17, absent 33 (not_acquired 33: 17-49)" in told.out
    assert "error: acquisition node local: detector simulator: failed at frame 17" in told.out
    assert told.out.count("detector simulator") == 1


def test_without_a_number_all_recorded_frames_are_taken(lima2py: Command) -> None:
    assert lima2py("run", "save_raw", *QUICK, "--nb-frames", 7).status == 0
    told = lima2py(
        "run", "save_raw", "--detector", "replay", "--set", "detector.files=run_master.h5",
        "--processing-nodes", 0, "--expo-time", "1 us", "--name", "again", "--json",
    )  # fmt: skip
    assert json.loads(told.out)["saved"] == 7


def test_check_prints_the_plan_and_makes_nothing(lima2py: Command) -> None:
    told = lima2py("check", "first_light", "--output", "out", "--name", "scan1")
    assert told.status == 0
    lines = told.out.splitlines()
    assert lines[0].startswith("first_light: Save every frame")
    table = {line.split()[0]: line for line in lines[1:9]}
    assert list(table) == ["detector", "raw", "centre", "view", "live", "small", "beam", "counts"]
    assert "to_detector" not in table["raw"]
    assert table["view"].endswith("to_detector [[2, 0, 128], [0, 2, 128], [0, 0, 1]]")
    assert "table of 2: direct, background" in table["beam"]
    assert len({line.index(" from ") for line in lines[2:9]}) == 1
    assert len({line.index("512 KiB") for line in lines[1:3]}) == 1
    assert re.fullmatch(r"ring: \d+ blocks of \d+ frames?, .* on each acquisition node", lines[9])
    place = f"{Path.cwd()}/out/scan1"
    assert lines[10] == f"raw writes {place}_raw_master.h5, 50 MiB before compression"
    assert "taps: live" in lines
    (speed,) = (n for n, line in enumerate(lines) if re.match(r"speed: about \S+ frames/s", line))
    costs = [line.split()[0] for line in lines[speed + 1 : speed + 9]]
    assert sorted(costs) == sorted([*list(table)[1:], "flush"])
    assert list(Path().iterdir()) == []


def test_check_warns_when_the_asked_rate_cannot_be_held(lima2py: Command) -> None:
    asked = ("check", "counters", "--expo-time", "1 us")
    assert "warning: 1,000,000 frames/s are asked for, and 1 node on " in lima2py(*asked).out
    assert "warning" not in lima2py("check", "counters", "--expo-time", "10").out


@pytest.mark.parametrize(
    ("nb_frames", "lost"), [("4", "there will be none"), ("13", "3 are left over"), ("20", "")]
)
def test_frames_that_belong_to_no_product_are_told_beforehand(
    lima2py: Command, nb_frames: str, lost: str
) -> None:
    Path("mean.yaml").write_text(
        "tasks:\n"
        "  mean: {do: accumulate, from: detector, frames: 10, how: mean}\n"
        "  beam: {do: centre_of_mass, from: mean}\n"
        "  live: {do: tap, from: beam}\n"
    )
    asked = ("mean.yaml", "--nb-frames", nb_frames, "--expo-time", "1 us")
    warning = f"warning: each product of mean takes 10 frames, and {nb_frames} are asked for: "
    checked, ran = lima2py("check", *asked), lima2py("run", *asked, "--processing-nodes", "0")
    assert [line for line in checked.out.splitlines() if "each product" in line] == (
        [f"{warning}{lost}"] if lost else []
    )
    assert (f"lima2py: {warning}{lost}\n" in ran.err) == bool(lost)
    assert ran.status == 0


def test_check_says_when_nothing_will_be_written(lima2py: Command) -> None:
    assert "the graph has no sink: nothing will be written" in lima2py("check", "view_only").out


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("detectors", {"simulator", "replay", "eiger2_4m_like", "pilatus3_6m_like"}),
        ("tasks", {"mask", "crop", "bin", "flip", "rotate", "roi_counters", "tap", "save_dense"}),
        ("graphs", {"first_light", "save_raw", "view_only", "counters"}),
    ],
)
def test_everything_that_is_listed_has_a_line_about_it(
    what: str, names: set[str], lima2py: Command
) -> None:
    lines = dict(line.split(maxsplit=1) for line in lima2py("list", what).out.splitlines())
    assert names <= lines.keys()


def test_info_and_show_say_what_is_in_a_file(lima2py: Command) -> None:
    lima2py("run", "save_raw", *QUICK, "--nb-frames", 4, "--set", "detector.drop=[2]")
    described = lima2py("info", "run_master.h5").out
    assert "detector_gap  1: 2 " in described
    assert re.search(r"raw +save_dense +from detector ", described)
    plain = json.loads(lima2py("info", "--json", "run_master.h5").out)
    assert plain["sinks"]["raw"]["fates"] == {"saved": 3, "detector_gap": 1}
    told = lima2py("show", "run_master.h5", "--png", "none.png", "--frame", 2)
    assert told.status == files.REFUSED
    assert "frame 2 of run_master.h5 has no data: detector_gap" in told.err
    assert not Path("none.png").exists()
    for words in (["--frame", "3"], ["--sum"]):  # not here: matplotlib never closes its fonts
        Path("picture.png").unlink(missing_ok=True)
        command = [LIMA2PY, "show", "run_master.h5", "--png", "picture.png", *words]
        assert subprocess.run(command, capture_output=True).stdout == b"picture.png\n"
        assert Path("picture.png").read_bytes().startswith(b"\x89PNG")


def test_export_writes_frames_and_says_which_have_no_data(lima2py: Command) -> None:
    lima2py("run", "save_raw", *QUICK, "--nb-frames", 7, "--set", "detector.drop=[2,4,5]")
    done = lima2py("export", "run_master.h5", "all", "--to", "raw")
    assert [line.partition(":")[0] for line in done.out.splitlines()] == [
        "frame 2 is absent", "frames 4 to 5 are absent", "4 frames",
    ]  # fmt: skip
    done = lima2py("export", "run_master.h5", "out", "--to", "edf", "--frames", "1:4")
    assert done.status == 0
    assert done.out.splitlines()[0].startswith("frame 2 is absent: detector_gap")
    assert done.out.endswith("\n2 frames: out/run_000001.edf to run_000003.edf\n")
    assert len(list(Path("out").iterdir())) == 2
    for words, said in (
        (["--to", "edf"], "already; give another folder, or --overwrite"),
        (["--to", "csr"], "to: csr holds sparse pixels"),
        (["--to", "tif", "--frames", "3"], "--frames: should be like 10:20, 10: or :20; given: 3"),
        (["--to", "tif", "--frames", "3:3"], "--frames 3:3: holds no frame"),
        (["--to", "tif", "--sink", "no"], "sink: none that is called 'no' wrote to run_master.h5"),
        (["--to", "png"], "'png' is not one of"),
    ):
        told = lima2py("export", "run_master.h5", "out", *words)
        assert told.status == files.REFUSED
        assert said in told.err
    assert lima2py("export", "run_master.h5", "out", "--to", "edf", "--overwrite").status == 0
    assert len(list(Path("out").iterdir())) == 4


def test_help_and_version_are_there(lima2py: Command) -> None:
    told = lima2py()
    assert told.status == 0
    assert told.out == lima2py("--help").out
    for command in ("run", "check", "list", "info", "show", "export", "node"):
        assert f"\n  {command} " in told.out
        assert lima2py(command, "--help").out.startswith(f"Usage: lima2py {command} ")
    assert re.fullmatch(r"lima2py \d+\.\d+\.\d+\n", lima2py("--version").out)


def test_the_help_names_every_trigger_mode_and_run_and_check_take_the_same(
    lima2py: Command,
) -> None:
    def options(command: str) -> set[str]:
        return set(re.findall("--[a-z-]+", lima2py(command, "--help").out))

    said = " ".join(lima2py("run", "--help").out.split())
    assert all(mode.value in said for mode in TriggerMode)
    only = {"--json", "--metrics", "--policy", "--take-over"}
    assert options("run") - options("check") == only


# Software triggers


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put text on standard input, and end it."""

    def give(text: str) -> None:
        reader, writer = os.pipe()
        os.write(writer, text.encode())
        os.close(writer)
        monkeypatch.setattr(sys, "stdin", open(reader, encoding="utf-8"))

    return give


def triggered(lima2py: Command, *words: object) -> tuple[Told, dict[str, Any]]:
    told = lima2py(
        "run", "save_raw", *QUICK, "--trigger-mode", "software", "--nb-frames-per-trigger", 2,
        "--json", *words,
    )  # fmt: skip
    sys.stdin.close()
    report = json.loads(told.out)
    assert isinstance(report, dict)
    return told, report


def test_every_line_is_a_software_trigger(lima2py: Command, typed: Callable[[str], None]) -> None:
    typed("\n\nthird\n")
    told, report = triggered(lima2py, "--nb-frames", 6)
    assert told.status == 0
    assert report["saved"] == 6
    assert "software trigger: every line (Enter) is one, 3 in all" in told.err


def test_the_end_of_input_before_the_last_trigger_stops_the_run(
    lima2py: Command, typed: Callable[[str], None]
) -> None:
    typed("\n\n")
    told, report = triggered(lima2py, "--nb-frames", 100)
    assert told.status == files.INCOMPLETE
    assert report["outcome"] == "stopped"
    assert report["saved"] == 4
    assert report["absent"] == {"not_acquired": 96}
    assert "standard input has ended after 2 of 50 triggers: stopping" in told.err


def test_without_any_input_a_run_that_waits_for_triggers_stops(
    lima2py: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", None)  # as with <&-
    told = lima2py("run", "save_raw", *QUICK, "--trigger-mode", "software", "--nb-frames", 0)
    assert told.status == 0  # it had no end of its own to miss
    assert "standard input has ended after 0 triggers" in told.err
    assert "asked 0: saved 0" in told.out


# Ctrl-C


def test_ctrl_c_while_a_run_is_prepared_leaves_nothing(
    lima2py: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = Flow.__init__

    def interrupted(self: Flow, *args: Any) -> None:
        begin(self, *args)
        assert list(Path("out").iterdir()) != []
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Flow, "__init__", interrupted)
    told = lima2py("run", "save_raw", *QUICK, "--output", "out", "--json")
    assert told == Told(cli.INTERRUPTED, "", "lima2py: interrupted\n")
    assert not Path("out").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(("times", "outcome"), [(1, "stopped"), (2, "aborted")])
def test_ctrl_c_stops_and_another_aborts(
    times: int, outcome: str, lima2py: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = Session.wait
    pressed: list[int] = []

    def press(self: Session, timeout: float | None = None) -> Report:
        if self.progress().settled > 10 and not pressed:
            for _ in range(times):
                pressed.append(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)
        return wait(self, timeout)

    monkeypatch.setattr(Session, "wait", press)
    told = lima2py(
        "run", "save_raw", "--processing-nodes", 0, "--expo-time", "1 ms", "--nb-frames", 10**6,
        "--set", "detector.shape=[48,64]", "--json",
    )  # fmt: skip
    assert told.status == files.INCOMPLETE
    report = json.loads(told.out)
    assert report["outcome"] == outcome
    assert report["saved"] > 10
    assert "stopping: what was acquired is saved; Ctrl-C again aborts" in told.err
    assert ("aborting" in told.err) is (times == 2)
    with h5py.File(report["masters"]["raw"], "r") as file:
        assert file["entry_0000/lima2py/outcome"].asstr()[()] == outcome


def test_only_so_many_ctrl_c_are_held_back() -> None:
    with progress.Interrupts(hold=2) as interrupts:
        interrupts.check()
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert interrupts.count == 2
        with pytest.raises(KeyboardInterrupt):
            interrupts.check()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# Progress


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_shows_rate_ring_and_every_node(
    terminal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "REFRESH", 0.02)
    monkeypatch.setattr(progress, "QUIET_REFRESH", 0.0)
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=100, highlight=False)
    with Session.open("simulator", detector={"shape": [48, 64], "drop": [0]}) as session:
        session.prepare(graph="save_raw", output=tmp_path, nb_frames=400, expo_time=0.001)
        session.start()
        with progress.Interrupts(hold=2) as interrupts:
            report = progress.follow(session, interrupts, console)
    assert report.saved == 399
    said = text.getvalue()
    line = (
        r"running: \d+ of 400 frames, \d+/s, \d\.\d{3} GB/s, ring \d+%,"
        r" lag \d+ frames \d+\.\d s, detector_gap 1"
    )
    assert re.search(line, said), said
    node = (
        r"local +running +\d+ +\d+/s +\d+% +[\d.]+ [MG]iB +\d+/\d+"
        if terminal
        else r"\(local \d+\)"
    )
    assert re.search(node, said), said


def test_an_endless_run_shows_no_number_to_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Session.open("simulator", detector={"shape": [48, 64]}) as session:
        session.prepare(graph="view_only", output=tmp_path, nb_frames=0, expo_time=0.001)
        session.start()
        next(session.tap("live"))
        while not (now := session.progress()).settled:
            pass
        session.stop()
        report = session.wait(10)
    assert now.asked == 0
    assert " of " not in progress._line(now)
    assert report.asked > 0


def test_a_trigger_that_waits_long_says_for_what(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: Callable[[str], None]
) -> None:
    monkeypatch.setattr(progress, "QUIET_REFRESH", 0.0)
    text = io.StringIO()
    asked: dict[str, Any] = {"nb_frames": 2, "expo_time": 0.2, "trigger_mode": "software"}
    with Session.open("simulator", detector={"shape": [48, 64]}) as session:
        session.prepare(graph="view_only", output=tmp_path, **asked)
        session.start()
        typed("\n\n")
        triggers = progress.LineTriggers(
            session, Acquisition(**asked), Console(file=text, soft_wrap=True)
        )
        triggers.start()
        report = session.wait(10)
    sys.stdin.close()
    assert report.ok
    assert "trigger 2 waits: detector simulator cannot be triggered: it exposes" in text.getvalue()


# The report


def report(**changes: Any) -> Report:
    told = {
        "run": "0123456789abcdef", "name": "scan", "outcome": "failed", "asked": 10,
        "counts": {"saved": 4, "rejected": 1, "detector_gap": 2, "node_lost": 3},
        "absences": [(n, 1, 10, "det", "") for n in (0, 2)] + [(5, 3, 21, "ledger", "")],
        "sinks": {"raw": {}}, "masters": {"raw": "/data/scan_master.h5"}, "errors": [],
        "remarks": [], "seconds": 1.25, "ring_bytes": 0,
    }  # fmt: skip
    more = changes.pop("more", [])
    return Report.make({**told, **changes}, {}, {}, {}, more)


def test_a_report_says_which_frames_are_missing_and_why() -> None:
    assert str(report()).splitlines() == [
        "scan: failed in 1.25 s (01234567)",
        "  asked 10: saved 4, rejected 1, absent 5 (detector_gap 2: 0, 2; node_lost 3: 5-7)",
        "  raw: /data/scan_master.h5",
    ]


def test_a_report_tells_every_error_once_and_indented() -> None:
    errors = ["proc0 was lost: killed by signal 9", "a\nb"]
    lines = str(report(errors=errors, more=["killed by signal 9", "a\nb"])).splitlines()
    assert lines[3:] == ["  error: proc0 was lost: killed by signal 9", "  error: a", "    b"]


@pytest.mark.parametrize(
    ("outcome", "told"),
    [("completed", "nothing was written"), ("stopped", "nothing was written"),
     ("failed", "no master file was written; lima2py recover writes it")],
)  # fmt: skip
def test_a_report_without_files_says_so(outcome: str, told: str) -> None:
    assert told in str(report(outcome=outcome, sinks={}, masters={}))
