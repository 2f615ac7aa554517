"""Every example of the documents runs, in the order of its page, in one fresh folder a page.

    ```python     is executed; the blocks of a page share one namespace
    ```console    lines after `$ ` are run; what is shown below one is compared, `...` is anything
    ```yaml       is read by what it is meant for: a graph, a system, metadata, a detector, ...
    ```text       is shown; after `<!-- output -->` it is what the last python block printed
    ```toml       is parsed

A block of any kind whose first line is a comment with only a file's name (`# bright.yaml`) is put
into that file, and a python block is then not executed. A block after `<!-- not run: reason -->` is
only parsed, and so is `lima2py node`, which serves until it is stopped. A command that shows
`lima2py: ...` is one that is refused.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import shlex
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from typing import Any

import numpy as np
import pytest
import typer

import lima2py
from lima2py.control.cli import app
from lima2py.control.files import REFUSED
from lima2py.detector_file import open_detector
from lima2py.documents import parse_yaml
from lima2py.errors import LimaError
from lima2py.graph.definition import parse_graph
from lima2py.metadata import Metadata
from lima2py.model.setup import Setup
from lima2py.session.system import System

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *ROOT.glob("detectors/*.md")]
BIN = Path(sys.executable).parent
LANGUAGES = {"python", "console", "yaml", "text", "toml"}
FENCE = re.compile(r"(?P<indent> *)(?P<marks>```+)(?P<language>.*)\Z")
NAMED = re.compile(r"# (?P<name>[\w./-]+\.[a-z]+)\Z")
NOTE = re.compile(r"<!-- (?P<note>output|not run: .+) -->\Z")
TIMEOUT = 60


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str
    note: str = ""

    @property
    def where(self) -> str:
        return f"{self.page}, line {self.line}"

    @property
    def file(self) -> str:
        """The file it is to be put into."""
        found = NAMED.match(self.text.partition("\n")[0])
        return found["name"] if found else ""

    @property
    def is_run(self) -> bool:
        return not self.note.startswith("not run")


def blocks_of(page: Path) -> Iterator[Block]:
    note, opening, start = "", None, 0
    content: list[str] = []
    for number, line in enumerate(page.read_text().splitlines(), 1):
        found = FENCE.match(line)
        if opening is None and found:
            opening, start, content = found, number, []
        elif opening is not None and line.strip() == opening["marks"]:
            text = textwrap.dedent("\n".join(content)) + "\n"
            yield Block(page, start, opening["language"].strip(), text, note)
            opening, note = None, ""
        elif opening is not None:
            content.append(line)
        elif line.strip():
            remark = NOTE.match(line.strip())
            note = remark["note"] if remark else ""
    assert opening is None, f"{page}, line {start}: the block is not closed"


@dataclass
class Reader:
    """Somebody who follows a page to the letter."""

    folder: Path
    names: dict[str, Any] = field(default_factory=lambda: {"__name__": "__main__"})
    said: str = ""

    def read(self, page: Path) -> None:
        for block in blocks_of(page):
            try:
                self.follow(block)
            except Exception as error:
                error.add_note(f"in {block.where}")
                raise

    def follow(self, block: Block) -> None:
        if block.file:
            path = self.folder / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text)
        if not block.language.startswith("{"):
            assert block.language in LANGUAGES, f"{block.where}: what is {block.language}?"
            getattr(self, block.language)(block)

    def python(self, block: Block) -> None:
        padded = "\n" * block.line + block.text  # so that a traceback names the line of the page
        code = compile(padded, str(block.page), "exec")
        if block.is_run and not block.file:
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                exec(code, self.names)
            self.said = output.getvalue()

    def text(self, block: Block) -> None:
        if block.note == "output":
            compare(block.text, self.said, block.where)

    def toml(self, block: Block) -> None:
        tomllib.loads(block.text)

    def yaml(self, block: Block) -> None:
        values = parse_yaml(block.text, block.where)
        if not block.is_run:
            return
        if "tasks" in values:
            parse_graph(block.text, block.where, self.folder)
        elif all(isinstance(value, dict) and "do" in value for value in values.values()):
            parse_graph(part_of_graph(block.text, values), block.where, self.folder)
        elif values.keys() <= Metadata.model_fields.keys():
            Metadata.load(values, block.where)
        elif "plugin" in values:
            path = self.folder / (block.file or "detector.yaml")
            path.write_text(block.text)
            open_detector(str(path), {}, self.folder).close()
        elif "setup" in values:
            Setup.load(values, block.where)
        else:
            System.load({"system": "a part of one", "detector": "simulator", **values}, block.where)

    def console(self, block: Block) -> None:
        for command, shown in commands_of(block):
            self.run(command, shown, block)

    def run(self, command: str, shown: str, block: Block) -> None:
        words = shlex.split(command, comments=True)
        if words[0] == "lima2py":
            check_options(words[1:], block)
        assert words[0] in {"lima2py", "python", "pytest", "pip", "ls", "make", "silx"}, block.where
        if words[:2] == ["pip", "install"] and words[2:] == ["-e", "."] and block.is_run:
            install_here(self.folder)
        elif block.is_run and words[0] not in ("pip", "make") and words[:2] != ["lima2py", "node"]:
            if words[0] in ("lima2py", "python", "pytest"):
                words[0] = str(BIN / words[0])
            world = {"PYTHONPATH": str(self.folder), "NO_COLOR": "1", "COLUMNS": "100"}
            done = subprocess.run(
                words, cwd=self.folder, capture_output=True, text=True, timeout=TIMEOUT,
                env={**os.environ, **world},
            )  # fmt: skip
            status = REFUSED if shown.startswith("lima2py:") else 0
            said = done.stdout + done.stderr
            assert done.returncode == status, f"{block.where}: {command}\n{said}"
            if shown:
                compare(shown, said, block.where)


def commands_of(block: Block) -> Iterator[tuple[str, str]]:
    """Commands, each with the output that is shown for it."""
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, _, shown = part.replace("\\\n", " ").partition("\n")
        yield command, shown


def compare(shown: str, said: str, where: str) -> None:
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    pattern = re.sub(r"\s*\.\.\.\s*", "...", shown)  # anything may be nothing, blanks included
    same = doctest.OutputChecker().check_output(pattern, said, flags)
    assert same, f"{where} shows\n{shown}\nbut it is\n{said}"


def check_options(words: list[str], block: Block) -> None:
    """Refuse a command or an option that the command line does not know."""
    if words in ([], ["--help"]):
        return
    group: Any = typer.main.get_command(app)
    context = group.make_context("lima2py", list(words), resilient_parsing=True)
    command = group.get_command(context, words[0])
    assert command is not None, f"{block.where}: there is no command {words[0]}"
    command.make_context(words[0], words[1:], parent=context)


def part_of_graph(text: str, values: dict[str, Any]) -> str:
    """A graph in which these tasks stand; what they come from and is not shown, is a tap."""
    given = [value.get("from") for value in values.values()]
    sources = {name for item in given for name in ([item] if isinstance(item, str) else item or ())}
    missing = sources - {*values, "detector"}
    others = "".join(f"  {name}: {{do: tap, from: detector}}\n" for name in sorted(missing))
    return "tasks:\n" + textwrap.indent(text, "  ") + others


def install_here(folder: Path) -> None:
    """What `pip install -e .` would do for the package in this folder, without the network."""
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    metadata = folder / f"{project['name']}-{project['version']}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    lines: list[str] = []
    for group, points in project.get("entry-points", {}).items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (metadata / "entry_points.txt").write_text("\n".join(lines))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_examples_of_a_page_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with np.printoptions(threshold=1000, precision=8):  # importing nexusformat changes these
        Reader(tmp_path).read(page)


def test_the_examples_in_docstrings_run() -> None:
    for package in walk_packages(lima2py.__path__, "lima2py."):
        failed, _ = doctest.testmod(import_module(package.name), optionflags=doctest.ELLIPSIS)
        assert not failed, package.name


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("```python\n1 / 0\n```", ZeroDivisionError),
        ("```python\nprint(1)\n```\n\n<!-- output -->\n```text\n2\n```", AssertionError),
        ("<!-- not run: why -->\n```python\n1 +\n```", SyntaxError),
        ("```yaml\ntasks: {view: {do: bin, from: detector, bye: [2, 2]}}\n```", LimaError),
        ("```yaml\nmemory: {rings: 2 GiB}\n```", LimaError),
        ("```console\n$ lima2py list tasks\nnothing\n```", AssertionError),
        ("<!-- not run: why -->\n```console\n$ lima2py run --no-such x\n```", Exception),
        ("```console\n$ rm -r /\n```", AssertionError),
        ("```bash\nls\n```", AssertionError),
        ("```python\n", AssertionError),
    ],
)
def test_an_example_that_does_not_run_is_noticed(
    text: str, told: type[Exception], tmp_path: Path
) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    reader = Reader(tmp_path)
    with pytest.raises(told):
        reader.read(page)
