"""Acquire detector frames, process them while they fly, save them: every one accounted for.

The names below are all that most scripts need; each is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lima2py.acquisition import Acquisition, TriggerMode
    from lima2py.errors import (
        BadCommand,
        BadGraph,
        BadParameter,
        DetectorError,
        LimaError,
        NodeError,
        StorageError,
    )
    from lima2py.frame import Absence, Fate, Frame
    from lima2py.graph.apply import apply
    from lima2py.graph.definition import load_graph
    from lima2py.session.report import Report
    from lima2py.session.session import Session
    from lima2py.session.system import System
    from lima2py.storage.reading.run_file import RunFile, open
    from lima2py.storage.reading.source import FileSource

__all__ = [
    "Absence",
    "Acquisition",
    "BadCommand",
    "BadGraph",
    "BadParameter",
    "DetectorError",
    "Fate",
    "FileSource",
    "Frame",
    "LimaError",
    "NodeError",
    "Report",
    "RunFile",
    "Session",
    "StorageError",
    "System",
    "TriggerMode",
    "apply",
    "load_graph",
    "open",
]

_HOMES = {
    "acquisition": ("Acquisition", "TriggerMode"),
    "errors": (
        "BadCommand",
        "BadGraph",
        "BadParameter",
        "DetectorError",
        "LimaError",
        "NodeError",
        "StorageError",
    ),
    "frame": ("Absence", "Fate", "Frame"),
    "graph.apply": ("apply",),
    "graph.definition": ("load_graph",),
    "session.report": ("Report",),
    "session.session": ("Session",),
    "session.system": ("System",),
    "storage.reading.run_file": ("RunFile", "open"),
    "storage.reading.source": ("FileSource",),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"lima2py.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
