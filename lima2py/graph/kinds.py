"""What the class of a task says to those who read graphs: its inputs, and the files it reads."""

from __future__ import annotations

import inspect
import math
from typing import Any, cast, get_args

from lima2py import plugins
from lima2py.task import ReadByTask, Task


def task_class(do: str, where: str) -> type[Task]:
    """The class of a task by the name it is registered under; see `plugins.load`."""
    return cast("type[Task]", plugins.load(plugins.TASKS, do, Task, where))


def nb_inputs(kind: type[Task]) -> tuple[int, float]:
    """The least and the most inputs a task takes: what its `prepare` is given."""
    _, *given = inspect.signature(kind.prepare).parameters.values()
    needed = [item for item in given if item.default is item.empty]
    if any(item.kind is item.VAR_POSITIONAL for item in given):
        return max(1, len(needed) - 1), math.inf
    return len(needed), len(given)


def path_fields(kind: type[Task]) -> set[str]:
    """The parameters of a task that are paths of files it reads."""
    return {
        field.alias or name
        for name, field in kind.model_fields.items()
        if _is_read(field.metadata) or _holds_read(field.annotation)
    }


def _is_read(metadata: list[Any]) -> bool:
    return any(isinstance(item, ReadByTask) for item in metadata)


def _holds_read(hint: Any) -> bool:
    """Whether the path of a file to read stands anywhere in a type: `dict[str, InputFile]`."""
    return _is_read(getattr(hint, "__metadata__", [])) or any(map(_holds_read, get_args(hint)))
