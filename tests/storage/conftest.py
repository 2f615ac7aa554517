"""Fixtures of the storage tests."""

from __future__ import annotations

import io

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


@pytest.fixture(scope="session", autouse=True)
def fonts() -> None:
    """Let matplotlib open its fonts, which it never closes, before anybody counts open files."""
    figure = Figure()
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_title("words and $x$")
    axes.loglog([1, 100], [1, 100])
    figure.savefig(io.BytesIO())
