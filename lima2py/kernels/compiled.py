"""Functions compiled from source made at prepare, kept on disk so that the next prepare is quick.

The source is written to a module of its own in the cache folder, named by a hash of all that
decides about the machine code, and numba keeps the code beside it. The folder is `LIMA2PY_CACHE`
if that is set, else `lima2py` in the user's cache folder. Whatever is wrong with the folder, or
with a file in it, costs the time to compile anew and nothing else.
"""

from __future__ import annotations

import contextlib
import errno
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
    """Where compiled functions are kept.

    Raises:
        OSError: if nothing says where, as for a user without a home folder.
    """
    if folder := os.environ.get("LIMA2PY_CACHE"):
        return Path(folder)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lima2py"
    except RuntimeError as error:
        raise FileNotFoundError(errno.ENOENT, "this user has no home folder") from error


def not_kept(what: str, error: OSError) -> None:
    """Say that the cache folder cannot be used, and what to do about it."""
    log.warning(
        "%s cannot be kept in %s (%s): every prepare makes them anew;"
        " set LIMA2PY_CACHE to a folder that can be written",
        what,
        os.environ.get("LIMA2PY_CACHE") or "the user's cache folder",
        error.strerror,
    )


def njit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """`numba.njit` for our kernels: what is wrong with a cache makes no function fail.

    Args:
        **options: those of numba's.
    """
    import numba  # takes half a second, so only those who compile pay

    def compiled(function: Callable[..., Any]) -> Any:
        try:
            return _forgiving(numba.njit(**options)(function))
        except RuntimeError:  # numba has nowhere to keep it: neither here nor in a home folder
            return numba.njit(**{**options, "cache": False})(function)

    return compiled


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
        not_kept("compiled functions", error)
        return _in_memory(name, source)
    found = importlib.util.spec_from_file_location(f"lima2py_kernels_{name}", path)
    if found is None or found.loader is None:
        raise ImportError(f"{path} is no Python module")
    module = importlib.util.module_from_spec(found)
    module.__dict__["OPTIONS"] = {"nogil": True, "cache": True, "error_model": "numpy"}
    sys.modules[module.__name__] = module  # what numba kept refers to it by name
    found.loader.exec_module(module)
    run: Callable[..., Any] = _forgiving(_run_of(module))
    return run


def modules_of(functions: Iterable[str]) -> tuple[str, ...]:
    """The modules in which functions written `module:function` stand, each once."""
    return tuple(dict.fromkeys(name.partition(":")[0] for name in functions))


def _text_of(module: str) -> str:
    return inspect.getsource(importlib.import_module(module))


def _written(name: str, source: str) -> Path:
    folder = cache_folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / f"{name}.py"
    if not path.exists() or path.read_bytes() != source.encode():
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=folder, suffix=".part", delete=False
        ) as file:
            part = Path(file.name)
            try:  # whole or not at all: other nodes may be about to read it
                file.write(source)
                file.close()
                part.replace(path)
            except OSError:
                part.unlink()
                raise
    elif not os.access(folder, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return path


def _forgiving(function: Any) -> Any:
    """Let a file that numba cannot read, or cannot write, cost only the time to compile."""
    cache = function._cache  # noqa: SLF001 - numba has no other way
    load, save = cache.load_overload, cache.save_overload

    def load_overload(*what: Any) -> Any:
        try:
            return load(*what)
        except Exception:
            log.warning("what is kept in %s is damaged, and made anew", cache.cache_path)
            with contextlib.suppress(OSError):
                cache.flush()

    def save_overload(*what: Any) -> None:
        try:
            save(*what)
        except OSError as error:
            not_kept("compiled functions", error)

    cache.load_overload, cache.save_overload = load_overload, save_overload
    return function


def _in_memory(name: str, source: str) -> Callable[..., Any]:
    module = ModuleType(name)
    module.__dict__["OPTIONS"] = {"nogil": True, "error_model": "numpy"}
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    exec(compile(source, name, "exec"), module.__dict__)
    return _run_of(module)


def _run_of(module: ModuleType) -> Callable[..., Any]:
    run: Callable[..., Any] = module.__dict__["run"]
    return run
