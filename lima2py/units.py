"""Quantities as people write them (`200 ms`, `2 GiB`), and the frozen models that hold parameters.

Inside lima2py a time is a float in seconds, a size an int in bytes. A person may write either the
plain number or a number with a unit. Models refuse unknown fields, never change, and report
every problem at once as one `BadParameter`.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Annotated, Any, Self, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from lima2py.errors import BadParameter, did_you_mean

TIME_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
SIZE_UNITS = {
    "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40,
}  # fmt: skip
LENGTH_UNITS = {
    "pm": 1e-12, "angstrom": 1e-10, "Å": 1e-10, "nm": 1e-9, "um": 1e-6, "µm": 1e-6, "mm": 1e-3,
    "cm": 1e-2, "m": 1.0,
}  # fmt: skip
ENERGY_UNITS = {"eV": 1.0, "keV": 1e3, "MeV": 1e6}

_QUANTITY = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*([A-Za-zµÅ]+)\s*\Z")


def _quantity(text: str, units: Mapping[str, float], what: str) -> Decimal:
    found = _QUANTITY.match(text)
    if found is None or found[2] not in units:
        example = {"time": "200 ms", "size": "2 GiB", "length": "75 um", "energy": "12.7 keV"}[what]
        article = "an" if what == "energy" else "a"
        raise ValueError(
            f"is not {article} {what}: write a plain number or one with a unit"
            f" ({', '.join(units)}), for instance {example}"
        )
    if math.isinf(float(found[1])):
        raise ValueError(f"is too large for a {what}")
    return Decimal(found[1]) * Decimal(str(units[found[2]]))  # 9 ms is the float 0.009


def seconds(value: object) -> object:
    """A time as text (`"200 ms"`) in seconds; anything else is handed on for the model to judge."""
    return float(_quantity(value, TIME_UNITS, "time")) if isinstance(value, str) else value


def size_in_bytes(value: object) -> object:
    """A size as text (`"2 GiB"`) in bytes; anything else is handed on for the model to judge."""
    if not isinstance(value, str):
        return value
    size = _quantity(value, SIZE_UNITS, "size")
    if size != int(size):
        raise ValueError("is not a whole number of bytes")
    return int(size)


def metres(value: object) -> object:
    """A length as text (`"75 um"`) in metres; anything else is handed on for the model to judge."""
    return float(_quantity(value, LENGTH_UNITS, "length")) if isinstance(value, str) else value


def electronvolts(value: object) -> object:
    """An energy as text (`"12.7 keV"`) in eV; anything else is handed on for the model to judge."""
    return float(_quantity(value, ENERGY_UNITS, "energy")) if isinstance(value, str) else value


Seconds = Annotated[float, BeforeValidator(seconds), Field(allow_inf_nan=False)]
"""A time in seconds; text may carry a unit."""
Bytes = Annotated[int, BeforeValidator(size_in_bytes)]
"""A size in bytes; text may carry a unit."""
Metres = Annotated[float, BeforeValidator(metres), Field(allow_inf_nan=False)]
"""A length in metres; text may carry a unit."""
ElectronVolts = Annotated[float, BeforeValidator(electronvolts), Field(allow_inf_nan=False)]
"""An energy in electronvolts; text may carry a unit."""


class Model(BaseModel):
    """The base of everything a user can set: frozen, closed to unknown fields, hashable as JSON."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False
    )

    @classmethod
    def load(cls, values: Mapping[str, Any], where: str) -> Self:
        """Check what a person wrote (YAML, command line, keyword arguments) and build the model.

        Types are taken strictly: text is no number, `true` is no 1.

        Args:
            values: field names and plain values (what JSON can say; tuples, paths and numpy
                scalars are taken as what they look like).
            where: where the values stand, put in front of every complaint.

        Raises:
            BadParameter: naming every field that is wrong, what was given and what is allowed.
        """
        try:
            text = json.dumps(dict(values), default=_plain, allow_nan=True)
        except (TypeError, ValueError, RecursionError) as error:
            raise BadParameter(f"{where}: {error}") from None
        return cls.load_json(text, where)

    @classmethod
    def load_json(cls, text: str, where: str) -> Self:
        """Like `load`, from JSON text."""
        try:
            return cls.model_validate_json(text, strict=True)
        except ValidationError as error:
            raise BadParameter(explain(error, where, cls)) from None

    def plain(self) -> dict[str, Any]:
        """The fields as JSON can say them, under the names a person writes."""
        return self.model_dump(mode="json", by_alias=True)

    def digest(self) -> str:
        """SHA-256 over the fields, as 64 hexadecimal digits; equal models have equal digests."""
        return digest(self.plain())


def digest(values: object) -> str:
    """SHA-256 of anything JSON can say, as 64 hexadecimal digits; key order does not matter."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()


_PLAINER = {
    "int_type": "should be a whole number",
    "int_from_float": "should be a whole number",
    "float_type": "should be a number",
    "string_type": "should be text",
    "bool_type": "should be true or false",
    "dict_type": "should be a mapping, like {name: value}",
    "model_type": "should be a mapping, like {name: value}",
    "list_type": "should be a list, like [1, 2]",
    "tuple_type": "should be a list, like [1, 2]",
}
"""Pydantic's words for a wrong type, in those of the people who write YAML."""


def explain(error: ValidationError, where: str, model: type[BaseModel]) -> str:
    """Pydantic's complaints as lines for a person: where, what was given, what is allowed."""
    lines = []
    for problem in error.errors(include_url=False):
        path = ".".join(str(step) for step in problem["loc"])
        at = f"{where}, {path}" if path else where
        if problem["type"] == "extra_forbidden":
            *above, name = problem["loc"]
            hint = did_you_mean(str(name), _fields_at(model, above))
            lines.append(f"{at}: there is no such field{hint}")
        elif problem["type"] == "missing":
            lines.append(f"{at}: is required and was not given")
        else:
            message = _PLAINER.get(problem["type"]) or (
                problem["msg"].removeprefix("Value error, ").replace("Input should be", "should be")
            )
            lines.append(f"{at}: {message}; given: {_short(problem['input'])}")
    return "\n".join(lines)


def _fields_at(model: type[BaseModel], path: Iterable[int | str]) -> set[str]:
    """Names of the fields at a place of a model, as a person writes them."""
    fields = _fields(model)
    for step in path:  # a step that is no field is a position in a list, or a key
        if step in fields:
            fields = _fields(fields[str(step)].annotation)
    return set(fields)


def _fields(hint: Any) -> dict[str, FieldInfo]:
    """The fields of the models that stand in a type: of B in `tuple[B, ...] | None`."""
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        return {field.alias or name: field for name, field in hint.model_fields.items()}
    return {name: field for part in get_args(hint) for name, field in _fields(part).items()}


def _short(value: object) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."


def _plain(value: object) -> object:
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    listed = getattr(value, "tolist", None)  # numpy scalars and arrays
    if callable(listed):
        return listed()
    if isinstance(value, Model):
        return value.plain()
    if hasattr(value, "__fspath__"):
        return str(value)
    raise TypeError(f"{type(value).__name__} {value!r} cannot be a parameter")


def as_time(value: float) -> str:
    """A time for a person: `0.0002` becomes `200 us`."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g} s"
    for unit in ("s", "ms", "us"):
        if abs(value) >= TIME_UNITS[unit]:
            return f"{value / TIME_UNITS[unit]:.4g} {unit}"
    return f"{value / 1e-9:.4g} ns"


def as_size(value: float) -> str:
    """A size for a person: `2097152` becomes `2 MiB`."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if abs(value) >= SIZE_UNITS[unit]:
            return f"{value / SIZE_UNITS[unit]:.4g} {unit}"
    return f"{value:.0f} B"
