"""Detectors by name: a YAML file that says which plugin, with which parameters.

    detector: eiger2_4m        # what this beamline calls it; the plugin's name when not given
    plugin: simulator
    about: One line for people who choose from a list.
    shape: [2162, 2068]        # and any other parameter of the plugin

Files of lima2py's own detectors are known by their stem. A plugin's name alone means the plugin
with its defaults; where a file has that name, the file is meant.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from lima2py import plugins
from lima2py.detector import Detector
from lima2py.documents import read_yaml
from lima2py.errors import BadParameter, LimaError

SHIPPED = "lima2py_detectors"
"""The package whose YAML files are known by name."""


class _Paths:
    """Marks a field that holds paths of files."""


def _one_or_more(value: object) -> object:
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


InputFiles = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...],
    Field(min_length=1),
    BeforeValidator(_one_or_more),
    _Paths(),
]
"""Paths or patterns (`*.tif`) of files a detector reads: one or a list of them.

In a detector file they are relative to it, on a command line to the folder one is in.
"""


def open_detector(name_or_path: str, overrides: Mapping[str, Any], base: Path) -> Detector:
    """The detector that a user names.

    Args:
        name_or_path: a known name (`known_detectors`), or the path of a YAML file.
        overrides: parameters that replace those of the file.
        base: the folder that relative paths given here are relative to.

    Raises:
        BadParameter: if there is no such detector or file, or a parameter is wrong.
    """
    shipped = _shipped()
    if name_or_path.endswith((".yaml", ".yml")) or "/" in name_or_path:
        return _from_file(base / Path(name_or_path).expanduser(), overrides, base)
    if name_or_path in shipped:
        return _from_file(shipped[name_or_path], overrides, base, f"detector {name_or_path}")
    known = plugins.known(plugins.DETECTORS)
    if name_or_path in known:
        where = f"detector {name_or_path}"
        return _build(name_or_path, {"name": name_or_path}, overrides, base, base, where)
    raise BadParameter(
        f'there is no detector "{name_or_path}"; known are'
        f" {', '.join(sorted(known.keys() | shipped.keys()))}; or give the path of a .yaml file"
    )


def known_detectors() -> dict[str, str]:
    """Every detector that can be opened by name, with one line about it."""
    lines = {name: _about_plugin(name) for name in plugins.known(plugins.DETECTORS)}
    for name, path in _shipped().items():
        values = read_yaml(path, "detector file")
        lines[name] = str(values.get("about", "")) or _about_plugin(str(values.get("plugin")))
    return dict(sorted(lines.items()))


def _shipped() -> dict[str, Path]:
    folder = Path(str(files(SHIPPED)))
    return {path.stem: path for path in sorted(folder.glob("*/*.yaml"))}


def _about_plugin(name: str) -> str:
    try:
        plugin = plugins.load(plugins.DETECTORS, name, Detector, f"detector {name}")
    except LimaError as error:
        return str(error)
    return plugins.about(plugin)


def _from_file(path: Path, overrides: Mapping[str, Any], base: Path, where: str = "") -> Detector:
    """The detector of a file; what is wrong in it is said to be wrong in `where`."""
    values = read_yaml(path, "detector file")
    plugin = values.pop("plugin", None)
    name = values.pop("detector", plugin)
    values.pop("about", None)
    for field, value in (("plugin", plugin), ("detector", name)):
        if not isinstance(value, str) or not value:
            known = ", ".join(plugins.known(plugins.DETECTORS))
            raise BadParameter(
                f"{path}, {field}: should be a name"
                + (f", one of {known}" if field == "plugin" else "")
                + (f"; given: {value}" if value is not None else "; it is not given")
            )
    where = where or str(path)
    return _build(plugin, {"name": name, **values}, overrides, path.parent, base, where)


def _build(
    plugin_name: str,
    values: Mapping[str, Any],
    overrides: Mapping[str, Any],
    folder: Path,
    base: Path,
    where: str,
) -> Detector:
    at = f"{where}, plugin"
    plugin: type[Detector] = plugins.load(plugins.DETECTORS, plugin_name, Detector, at)
    merged = {**_placed(plugin, values, folder), **_placed(plugin, overrides, base)}
    return plugin.load(merged, where)


def _placed(plugin: type[Detector], values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The values, with relative paths of files taken from a folder."""
    placed = dict(values)
    for name, field in plugin.model_fields.items():
        if name not in placed or not any(isinstance(mark, _Paths) for mark in field.metadata):
            continue
        given = _one_or_more(placed[name])
        if isinstance(given, tuple):
            placed[name] = [
                str(folder / Path(path).expanduser()) if isinstance(path, str) and path else path
                for path in given
            ]
    return placed
