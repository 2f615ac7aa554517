"""Find detectors and tasks by name among the entry points of installed packages.

A package offers a detector by the entry point group `lima2py.detectors` and a task by
`lima2py.tasks`; nothing in lima2py changes. Only installed packages are looked at: never a path
or code named in a YAML file.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points

from lima2py.errors import BadParameter, LimaError, did_you_mean

DETECTORS = "lima2py.detectors"
TASKS = "lima2py.tasks"


@cache
def known(group: str) -> dict[str, EntryPoint]:
    """All entry points of a group by name.

    Raises:
        LimaError: if two packages offer the same name.
    """
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=group):
        other = found.setdefault(point.name, point)
        if other.value != point.value:
            raise LimaError(
                f'two installed packages offer "{point.name}" in {group}: {other.value} and'
                f" {point.value}; uninstall one of them"
            )
    return dict(sorted(found.items()))


def about(plugin: type) -> str:
    """The first line of what a plugin says about itself."""
    return (plugin.__doc__ or "").strip().partition("\n")[0]


def load(group: str, name: str, base: type, where: str) -> type:
    """The class registered under a name.

    Args:
        group: `DETECTORS` or `TASKS`.
        name: the name a user wrote.
        base: what the class must derive from.
        where: where the name was written, for the complaint.

    Raises:
        BadParameter: if there is no such name, or what it names is not a `base`.
    """
    points = known(group)
    if name not in points:
        what = group.rpartition(".")[2].removesuffix("s")
        raise BadParameter(f'{where}: there is no {what} "{name}"{did_you_mean(name, points)}')
    try:
        loaded = points[name].load()
    except (ImportError, AttributeError) as error:
        raise BadParameter(
            f'{where}: "{name}" ({points[name].value}) cannot be imported: {error}'
        ) from error
    if not (isinstance(loaded, type) and issubclass(loaded, base)):
        raise BadParameter(f'{where}: "{name}" ({points[name].value}) is not a {base.__name__}')
    return loaded
