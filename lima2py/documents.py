"""Read the YAML that people write, strictly: nothing surprises, nothing explodes.

What is taken is the part of YAML that reads as it looks. One document, a mapping at the top, no
key twice, no anchors, aliases, merge keys or tags. Keys are text as written. A value without quotes
is

* nothing when it is empty, `null` or `~`;
* true or false when it is `true` or `false`;
* a number when it is a decimal one without leading zeros: `12`, `-0.5`, `1e3`;
* else text: `no`, `010`, `12:30`, `2001-01-01`, `.nan`, `200 ms`.

So where a number is due, anything that merely resembles one is refused by the model it is meant
for. Every complaint says file, line and column, what was found and a way out. Size, nesting and
number of values are bounded while the text is read, before anything is built.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import yaml
from yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    NodeEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
)
from yaml.parser import Parser
from yaml.reader import Reader, ReaderError
from yaml.scanner import Scanner, ScannerError

from lima2py.errors import BadParameter, did_you_mean
from lima2py.units import as_size

MAX_BYTES = 256 * 2**10
"""The largest document, in bytes of UTF-8."""
MAX_DEPTH = 32
"""The deepest nesting of lists and mappings."""
MAX_VALUES = 20_000
"""The most values (keys, scalars, lists and mappings) of a document."""

_CONSTANTS = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
    "true": True, "True": True, "TRUE": True,
    "false": False, "False": False, "FALSE": False,
}  # fmt: skip
_WHOLE = re.compile(r"[+-]?(?:0|[1-9][0-9]{0,300})\Z")
_DECIMAL = re.compile(r"[+-]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,5})?\Z")
_NO_TEXT = re.compile("[\0\ud800-\udfff]")
_QUOTE = "if text was meant, put it in quotes"
_TOO_DEEP = f"lists and mappings are nested more than {MAX_DEPTH} deep"


def read_text(path: Path, what: str = "file") -> str:
    """The text of a file a person wrote.

    Args:
        path: the file.
        what: what it is meant to be, for the complaint: "graph".

    Raises:
        BadParameter: if it is not there, cannot be read, is too large or is not UTF-8.
    """
    try:
        if not path.exists():
            raise BadParameter(f"{path}: there is no such {what}{_nearby(path)}")
        if not path.is_file():
            raise BadParameter(f"{path}: is not a file; the {what} should be a YAML file")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise BadParameter(f"{path}: the {what} cannot be read: {error.strerror}") from None
    if len(content) > MAX_BYTES:
        raise BadParameter(f"{path}: {_too_large(path.stat().st_size)}")
    try:
        return content.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        before = content[: error.start].decode()
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        raise BadParameter(
            f"{path}, line {line}, column {column}: byte 0x{content[error.start]:02x} is not UTF-8;"
            " save the file as UTF-8"
        ) from None


def read_yaml(path: Path, what: str = "file") -> dict[str, Any]:
    """The mapping in a YAML file, as plain values.

    Raises:
        BadParameter: see `read_text` and `parse_yaml`.
    """
    return parse_yaml(read_text(path, what), str(path))


def parse_yaml(text: str, where: str) -> dict[str, Any]:
    """The mapping in a YAML text, as plain values.

    Args:
        text: one document.
        where: what the text is (its file), put in front of every complaint.

    Raises:
        BadParameter: with line, column, what was found and a way out.
    """
    value = _parse(text, where)
    if not isinstance(value, dict):
        found = (
            "nothing" if value is None else f"a {'list' if isinstance(value, list) else 'value'}"
        )
        raise BadParameter(f"{where}: should hold `key: value` lines; it holds {found}")
    return value


def plain_scalar(text: str) -> Any:
    """A value from a command line, by the same rules.

    Lists and mappings in brackets and text in quotes are read as YAML; whatever is no YAML
    (`{name}_raw`, `*.tif`) is the text itself.
    """
    text = text.strip()
    if not text.startswith(("[", "{", '"', "'")):
        return _resolve(text)
    try:
        return _parse(text, "value")
    except BadParameter:
        return text


def to_yaml(values: Mapping[str, Any]) -> str:
    """Plain values as YAML text, which `parse_yaml` reads back as the same values."""
    return yaml.dump(
        dict(values),
        Dumper=_Dumper,
        sort_keys=False,
        default_flow_style=None,
        allow_unicode=True,
        width=100,
    )


def _resolve(text: str) -> Any:
    """What text without quotes means."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _WHOLE.match(text):
        return int(text)
    if _DECIMAL.match(text):
        number = float(text)
        return number if math.isfinite(number) else text
    return text


def _parse(text: str, where: str) -> Any:
    size = len(text.encode(errors="replace"))
    if size > MAX_BYTES:
        raise BadParameter(f"{where}: {_too_large(size)}")
    try:
        return _Builder(text, where).document()
    except ReaderError as error:
        before = text[: error.position]
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        raise BadParameter(
            f"{where}, line {line}, column {column}: the character U+{error.character:04X}"
            " cannot stand in a YAML file; delete it"
        ) from None
    except yaml.MarkedYAMLError as error:
        raise BadParameter(_complaint(error, text, where)) from None


def _complaint(error: yaml.MarkedYAMLError, text: str, where: str) -> str:
    """A complaint of the YAML parser, for a person."""
    mark = error.problem_mark or error.context_mark
    if mark is None:
        return f"{where}: {error.problem}"
    context = ""
    if error.context and error.context_mark:
        context = f"{error.context} (line {error.context_mark.line + 1}), "
    if text[mark.index : mark.index + 1] == "\t":
        way_out = "use spaces, not tabs"
    else:
        way_out = (
            "check the indentation and the brackets and quotes above; text that contains `: ` or"
            " begins with one of []{}&*!|>%@ must stand in quotes"
        )
    return f"{where}, {_place(mark)}: {context}{error.problem}; {way_out}"


def _nearby(path: Path) -> str:
    """A hint what there is where a file is missing."""
    folder = path.parent.absolute()
    if not folder.is_dir():
        return f" (nor a folder {folder})"
    names = [entry.name for entry in folder.iterdir() if entry.suffix in (".yaml", ".yml")]
    return did_you_mean(path.name, sorted(names)[:20]) or f" ({folder} holds no YAML file)"


def _too_large(size: int) -> str:
    return f"is {as_size(size)} long; {as_size(MAX_BYTES)} is the most"


class _Events(Reader, Scanner, Parser):
    """The events of a YAML text, one by one; refuses deep brackets as soon as they are opened.

    The scanner reads up to 1024 characters ahead of the parser, with an effort that grows with
    the square of the depth: too late to count depth by events alone.
    """

    def __init__(self, text: str, where: str):
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        self._where = where

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:  # noqa: N803 (PyYAML's name)
        if self.flow_level >= MAX_DEPTH:
            raise BadParameter(f"{self._where}, {_place(self.get_mark())}: {_TOO_DEEP}")
        super().fetch_flow_collection_start(TokenClass)


class _Builder:
    """Plain values from the events of one text."""

    def __init__(self, text: str, where: str):
        self._where = where
        self._values = 0
        self._depth = 0
        self._events = _Events(text, where)
        self._get: Callable[[], Event] = self._events.get_event

    def document(self) -> Any:
        """The value of the one document."""
        self._next()  # the stream starts
        start = self._next()
        if isinstance(start, StreamEndEvent):
            raise BadParameter(f"{self._where}: is empty")
        value = self._value(self._next())
        self._next()  # the document ends
        after = self._next()
        if isinstance(after, DocumentStartEvent):
            self._refuse(after, "a second document begins here; write one file for each")
        return value

    def _next(self) -> Event:
        try:
            return self._get()
        except (ValueError, OverflowError):  # PyYAML lets an escape like \\UFFFFFFFF through
            problem = "a number in an escape or a directive is out of range"
            raise ScannerError(problem=problem, problem_mark=self._events.get_mark()) from None

    def _refuse(self, event: Event, problem: str) -> NoReturn:
        raise BadParameter(f"{self._where}, {_place(event.start_mark)}: {problem}")

    def _value(self, event: Event) -> Any:
        self._check(event)
        if isinstance(event, ScalarEvent):
            return self._text(event) if event.style else _resolve(event.value)
        self._depth += 1
        if self._depth > MAX_DEPTH:
            self._refuse(event, _TOO_DEEP)
        if isinstance(event, SequenceStartEvent):
            value: Any = self._list()
        else:
            value = self._mapping(in_brackets=bool(getattr(event, "flow_style", False)))
        self._depth -= 1
        return value

    def _check(self, event: Event) -> None:
        """Refuse what is never taken, whatever it holds."""
        self._values += 1
        if self._values > MAX_VALUES:
            self._refuse(event, f"there are more than {MAX_VALUES} values")
        if isinstance(event, AliasEvent):
            alias = _short(f"*{event.anchor}")
            self._refuse(event, f"alias `{alias}` is not allowed: write the value out; {_QUOTE}")
        if isinstance(event, NodeEvent) and event.anchor is not None:
            self._refuse(event, f"anchor `{_short(f'&{event.anchor}')}` is not allowed; {_QUOTE}")
        tag: str | None = getattr(event, "tag", None)
        if tag is not None:
            tag = _short(tag.replace("tag:yaml.org,2002:", "!!"))
            self._refuse(event, f"tag `{tag}` is not allowed; {_QUOTE}")

    def _text(self, event: ScalarEvent) -> str:
        found = _NO_TEXT.search(event.value)
        if found:
            self._refuse(event, f"the text holds U+{ord(found[0]):04X}, which no text here may")
        return event.value

    def _list(self) -> list[Any]:
        values = []
        while not isinstance(event := self._next(), SequenceEndEvent):
            values.append(self._value(event))
        return values

    def _mapping(self, *, in_brackets: bool) -> dict[str, Any]:
        values: dict[str, Any] = {}
        lines: dict[str, int] = {}
        while not isinstance(event := self._next(), MappingEndEvent):
            key = self._key(event)
            line = event.start_mark.line + 1 if event.start_mark else 0
            if key in lines:
                other = f"in line {lines[key]}"
                self._refuse(event, f'key "{_short(key)}" stands here and {other}; keep one')
            lines[key] = line
            event = self._next()
            if in_brackets and isinstance(event, ScalarEvent) and not (event.value or event.style):
                self._refuse(event, f"`{_short(key)}` has no value; {_meant_by(key)}")
            values[key] = self._value(event)
        return values

    def _key(self, event: Event) -> str:
        self._check(event)
        if not isinstance(event, ScalarEvent):
            self._refuse(event, f"a list or mapping cannot be a key; {_QUOTE}")
        if not event.style and event.value == "":
            self._refuse(event, "a key is missing before the `:`")
        if not event.style and event.value == "<<":
            self._refuse(event, "`<<` merges a mapping, not allowed: write its values out")
        return self._text(event)


def _meant_by(key: str) -> str:
    """What to do about a key in brackets that has no value."""
    name, colon, value = key.partition(":")
    if colon and value:
        return f"write a blank after the colon: `{_short(f'{name}: {value}')}`"
    if _DECIMAL.match(key):
        return "a number has a point, not a comma; several numbers stand in brackets: [1, 2]"
    return f'{_QUOTE}, like "{{{_short(key)}}}"'


def _place(mark: Any) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}"


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."


class _Dumper(yaml.SafeDumper):
    """Writes plain values so that they are read back as the same: quotes what is not just text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = None if _resolve(text) is text and text.isprintable() else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)
