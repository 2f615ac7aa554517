"""Fixtures of the tests with real processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.system.rig import Command


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    """Start `lima2py ...` in an empty folder."""
    started: list[Command] = []

    def start(*arguments: object) -> Command:
        made = Command(*map(str, arguments), cwd=tmp_path)
        started.append(made)
        return made

    yield start
    for made in started:
        if made.process.poll() is None:
            made.process.kill()
        made.process.communicate()
