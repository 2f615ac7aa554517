"""What the documents say is what the code says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
FRAGMENT = re.compile(r"\d+\.(feature|bugfix|removal|misc)(\.\d+)?\.md\Z")


def test_the_tables_in_the_documents_are_those_of_the_code() -> None:
    command = [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"stale:\n{done.stderr}\nrun: make docs"


def test_every_news_fragment_has_a_kind_and_reaches_the_changelog() -> None:
    fragments = [path for path in (ROOT / "docs" / "changes").iterdir() if path.suffix == ".md"]
    assert [path.name for path in fragments if not FRAGMENT.match(path.name)] == []
    towncrier = [sys.executable, "-m", "towncrier", "build", "--draft", "--version", "next"]
    draft = subprocess.run(towncrier, cwd=ROOT, capture_output=True, text=True).stdout
    for path in fragments:
        assert " ".join(path.read_text().split())[:60] in " ".join(draft.split()), path.name


def test_every_decision_says_why_what_and_what_follows() -> None:
    decisions = sorted((ROOT / "docs" / "explanations" / "decisions").glob("[0-9]*.md"))
    assert [path.name[:4] for path in decisions] == [
        f"{number:04d}" for number in range(1, len(decisions) + 1)
    ]
    for path in decisions:
        headings = re.findall(r"^## (.+)$", path.read_text(), re.MULTILINE)
        assert headings == ["Context", "Decision", "Consequences"], path.name


@pytest.mark.parametrize("page", ["README.md", "CHANGELOG.md"])
def test_links_outside_the_documents_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text())
    assert not [link for link in links if not (ROOT / link).exists()]
