"""What may go wrong is listed whole, and every test that is named there exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
ROW = re.compile(r"\| (\d+) \| (.+) \| (.+) \| (.*?) ?\|\Z")
TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def rows() -> list[tuple[int, str, str]]:
    """Of every scenario: its number, what becomes of it, its tests."""
    page = (ROOT / "docs" / "reference" / "scenarios.md").read_text()
    found = [ROW.match(line) for line in page.splitlines()]
    return [(int(row[1]), row[3], row[4]) for row in found if row]


def test_every_scenario_is_listed_and_has_a_test_or_a_reason() -> None:
    assert [number for number, *_ in rows()] == list(range(1, 54))
    for number, outcome, tests in rows():
        assert TEST.search(tests) or outcome.startswith(("not yet: ", "no test: ")), number


def test_every_test_of_a_scenario_exists() -> None:
    for number, _, tests in rows():
        named = TEST.findall(tests)
        assert len(named) == tests.count("`") // 2, f"scenario {number} names what is no test"
        for file, test in named:
            tree = ast.parse((ROOT / file).read_text())
            known = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
            assert test in known, f"scenario {number}: {file} has no {test}"
