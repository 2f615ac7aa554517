"""What a file of recorded frames is to a replay, whatever its format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lima2py.codec import Encoding
from lima2py.frame import Array

Times = NDArray[np.float64]
Sizes = NDArray[np.uint64]


class UnreadableError(Exception):
    """A file, or a frame of it, that cannot be read; the text says why."""


def reason(error: Exception) -> str:
    """Why a library failed: its words, or the kind of error when it has none."""
    return str(error) or type(error).__name__


@dataclass(frozen=True)
class Facts:
    """What a file says about its frames.

    Attributes:
        shape: `(bands, height, width)`.
        dtype: of one pixel, in native byte order.
        count: how many frames.
        times: when each was recorded, seconds since 1970; None if the file does not say.
        period: seconds from frame to frame; None if the file does not say.
        pixel_size: `x, y` in metres; None if the file does not say.
        absent: the frames that were never recorded, and why.
        encoding: how they are compressed, if they are handed on so; else None.
        capacity: the most bytes of one that is handed on compressed.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    count: int
    times: Times | None = None
    period: float | None = None
    pixel_size: tuple[float, float] | None = None
    absent: Mapping[int, str] = field(default_factory=dict)
    encoding: Encoding | None = None
    capacity: int = 0

    @property
    def look(self) -> tuple[object, ...]:
        """What all frames of a series have in common."""
        return self.shape, self.dtype, self.encoding

    def __str__(self) -> str:
        encoding = f" {self.encoding}" if self.encoding else ""
        return f"{' × '.join(map(str, self.shape))} {self.dtype}{encoding}"


class FramesFile(ABC):
    """One file of a series."""

    def __init__(self, path: str):
        self.path = path

    @abstractmethod
    def facts(self) -> Facts:
        """What is in the file, which is closed again afterwards.

        Raises:
            UnreadableError: if it cannot be read, or holds no frames.
        """

    @abstractmethod
    def read(self, first: int, step: int, out: Array, times: Times, sizes: Sizes) -> None:
        """Put the frames `first`, `first + step` ... into `out`, and when they were recorded.

        Of those handed on compressed, also how many bytes they have.

        Raises:
            Exception: whatever the library raises when a frame cannot be read.
        """

    def close(self) -> None:
        """Close the file; the next `read` opens it again."""
        return
