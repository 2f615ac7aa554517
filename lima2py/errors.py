"""Every exception lima2py raises on purpose.

    LimaError
     ├─ BadCommand        not now: the state, and what is possible in it
     │   └─ NeedsLease     only who commands the system may say this
     ├─ BadParameter      where (file, task, field), what was given, what is allowed, a way out
     │   └─ BadGraph      a graph that cannot work: unknown task or input, circle, shapes
     ├─ DetectorError     the detector said no: which plugin, its words
     ├─ NodeError         a node is unreachable or failed: which node, what it said last
     ├─ ProtocolError     a message that is not ours, or not of this version
     └─ StorageError      which file, why, what to do

An error raised inside a node reaches the session as the same class with the same text: see
`to_wire` and `from_wire`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LimaError(Exception):
    """The base of all errors that lima2py raises on purpose; its text is meant for a person."""


class BadCommand(LimaError):
    """A command that cannot be obeyed in the present state."""


class NeedsLease(BadCommand):
    """A command of a session that has not asked for the right to command the system."""


class BadParameter(LimaError):
    """A value that cannot be accepted; the text says where, what it was, what is allowed."""


class BadGraph(BadParameter):
    """A graph that cannot work."""


class DetectorError(LimaError):
    """The detector, or its plugin, refused or failed."""


class NodeError(LimaError):
    """A node cannot be reached, or failed."""


class ProtocolError(LimaError):
    """A message that is malformed, foreign or of another version.

    Attributes:
        reason: in a word, by which such messages are counted.
    """

    def __init__(self, text: str, reason: str = "malformed"):
        super().__init__(text)
        self.reason = reason


class StorageError(LimaError):
    """A file could not be created, written, read or closed."""


def in_words(error: BaseException) -> str:
    """What an error says, for a person; one that is not meant for people is given its class."""
    if isinstance(error, LimaError):
        return str(error)
    kind = type(error).__name__
    return f"{kind}: {error}" if str(error) else kind


def to_wire(error: BaseException) -> tuple[str, str]:
    """Name and text of an error, to be sent to another process."""
    kind = type(error) if isinstance(error, LimaError) else NodeError
    text = in_words(error).encode(errors="backslashreplace")  # names of files need not be UTF-8
    return kind.__name__, text.decode()


def from_wire(name: str, text: str) -> LimaError:
    """The error another process sent; one of an unknown class becomes a plain `LimaError`."""
    return _BY_NAME.get(name, LimaError)(text)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint naming the nearest known word, or all of them: `` ' (did you mean "bin"?)' ``."""
    known = sorted(known)
    near = difflib.get_close_matches(word, known, n=1)
    if near:
        return f' (did you mean "{near[0]}"?)'
    return f" (known: {', '.join(known)})" if known else ""


_BY_NAME: dict[str, type[LimaError]] = {
    cls.__name__: cls
    for cls in (
        LimaError,
        BadCommand,
        NeedsLease,
        BadParameter,
        BadGraph,
        DetectorError,
        NodeError,
        ProtocolError,
        StorageError,
    )
}
