"""Find a function that a user wrote, and the line of it at which something went wrong."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from lima2py.errors import BadParameter, did_you_mean, in_words


def found(call: str, file: str | None) -> Callable[..., Any]:
    """The function or class of that name.

    Args:
        call: `package.module:function`; only the function if there is a file.
        file: the Python file that holds it.

    Raises:
        BadParameter: beginning with `call:` or `file:`.
    """
    place, _, path = call.rpartition(":")
    if file is not None:
        if place:
            raise BadParameter(f"call: with file, only what is in it should be named: {path}")
        home = _module_in(file)
    elif place:
        home = _module(place)
    else:
        raise BadParameter(
            f"call: {call} should be package.module:function; or say by file: where it is"
        )
    item: Any = home
    for name in path.split("."):
        if not hasattr(item, name):
            known = [key for key in vars(item) if not key.startswith("_")]
            raise BadParameter(
                f"call: there is no {path} in {place or file}" + did_you_mean(name, known)
            )
        item = getattr(item, name)
    if not callable(item):
        raise BadParameter(f"call: {call} is a {type(item).__name__}, which cannot be called")
    target: Callable[..., Any] = item
    return target


def _module(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise BadParameter(
            f"call: {name} cannot be imported: {error}; looked in"
            f" {', '.join(filter(None, sys.path))}; install it, or put its folder into PYTHONPATH"
            " before the nodes start, or name its file by file:"
        ) from error
    except (Exception, SystemExit) as error:  # importing runs the user's code
        raise BadParameter(f"call: {name} cannot be imported: {in_words(error)}") from error


def _module_in(file: str) -> ModuleType:
    """A module read from its file, however often it was read before."""
    try:
        code = compile(Path(file).read_bytes(), file, "exec")
    except OSError as error:
        raise BadParameter(
            f"file: {file} cannot be read: {error.strerror}; it should be a Python file"
        ) from error
    except (SyntaxError, ValueError) as error:
        raise BadParameter(f"file: {file} cannot be read as Python: {in_words(error)}") from error
    module = sys.modules[file] = ModuleType(file)  # dataclasses, for one, look up where they are
    module.__file__ = file
    try:
        exec(code, module.__dict__)
    except (Exception, SystemExit) as error:
        raise BadParameter(
            f"file: {file} cannot be imported: {in_words(error)}{place_of(error, None, file)}"
        ) from error
    return module


def place_of(error: BaseException, target: object, file: str = "") -> str:
    """The innermost line of the user's file that an error came through: ` (mine.py:12)`."""
    called = getattr(target, "__call__" if isinstance(target, type) else "__wrapped__", target)
    code = getattr(called, "__code__", None)
    file = file or getattr(code, "co_filename", "")
    lines = [
        (frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if Path(frame.f_code.co_filename).parent != Path(__file__).parent
    ]
    if not lines:
        return ""
    name, line = ([item for item in lines if item[0] == file] or lines)[-1]
    return f" ({Path(name).name}:{line})"
