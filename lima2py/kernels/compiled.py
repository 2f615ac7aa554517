"""Functions compiled from source made at prepare, kept on disk so that the next prepare is quick.

The source is written to a module of its own in the cache folder, named by a hash of all that
decides about the machine code, and numba keeps the code beside it. The folder is `LIMA2PY_CACHE`
if that is set, else `lima2py` in the user's cache folder.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import inspect
import linecache
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Where compiled functions are kept."""
    if folder := os.environ.get("LIMA2PY_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lima2py"


@functools.lru_cache(maxsize=256)
def function_from(source: str, uses: tuple[str, ...] = ()) -> Callable[..., Any]:
    """The function `run` that a source text defines, compiled when it is first called.

    Args:
        source: a module that defines `run` by `@njit(**OPTIONS)`.
        uses: names of the modules whose compiled functions it calls: when one of them changes, it
            is compiled anew.
    """
    import numba  # takes half a second, so only those who compile pay

    parts = [source, numba.__version__, *(_text_of(name) for name in uses)]
    name = "k" + hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
    try:
        path = _written(name, source)
    except OSError as error:
        log.warning(
            "compiled functions cannot be kept in %s (%s): every prepare compiles anew;"
            " set LIMA2PY_CACHE to a folder that can be written",
            cache_folder(),
            error.strerror,
        )
        return _in_memory(name, source)
    found = importlib.util.spec_from_file_location(f"lima2py_kernels_{name}", path)
    if found is None or found.loader is None:
        raise ImportError(f"{path} is no Python module")
    module = importlib.util.module_from_spec(found)
    module.__dict__["OPTIONS"] = {"nogil": True, "cache": True, "error_model": "numpy"}
    sys.modules[module.__name__] = module  # what numba kept refers to it by name
    found.loader.exec_module(module)
    return _run_of(module)


def modules_of(functions: Iterable[str]) -> tuple[str, ...]:
    """The modules in which functions written `module:function` stand, each once."""
    return tuple(dict.fromkeys(name.partition(":")[0] for name in functions))


def _text_of(module: str) -> str:
    return inspect.getsource(importlib.import_module(module))


def _written(name: str, source: str) -> Path:
    folder = cache_folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / f"{name}.py"
    if not path.exists():  # whole or not at all: other nodes may be about to read it
        with tempfile.NamedTemporaryFile("w", dir=folder, suffix=".part", delete=False) as file:
            file.write(source)
        Path(file.name).replace(path)
    elif not os.access(folder, os.W_OK):
        raise PermissionError(13, os.strerror(13))
    return path


def _in_memory(name: str, source: str) -> Callable[..., Any]:
    module = ModuleType(name)
    module.__dict__["OPTIONS"] = {"nogil": True, "error_model": "numpy"}
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    exec(compile(source, name, "exec"), module.__dict__)
    return _run_of(module)


def _run_of(module: ModuleType) -> Callable[..., Any]:
    run: Callable[..., Any] = module.__dict__["run"]
    return run
