"""Pictures made of photons: a crystal's diffraction, or one spot that walks.

Picture `n` is the same for the same parameters and seed, whoever draws it. Gaps between modules
hold -1 where the dtype has negative numbers, else 0. Counts beyond the dtype stop at its largest.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lima2py.frame import Array
from lima2py.geometry import Roi
from lima2py.source import PATIENCE

Rate = NDArray[np.float64]

TURN = 32
"""Pictures until the crystal, or the spot, is back where it was."""
HOT = 10
"""A hot pixel counts this many times what the brightest other one does."""


@dataclass(frozen=True)
class Look:
    """What a picture looks like; see the parameters of the simulator."""

    shape: tuple[int, int]
    dtype: np.dtype[Any]
    bands: int
    seed: int
    photons: float
    background: float
    peaks: int
    hot_pixels: int
    gaps: NDArray[np.bool_]


def gap_value(dtype: np.dtype[Any]) -> int:
    """What pixels between modules are set to."""
    return 0 if dtype.kind == "u" else -1


class Photons(ABC):
    """Pictures of one look; the higher the band, the fewer photons pass its threshold."""

    def __init__(self, look: Look):
        self.look = look
        self.static = np.random.default_rng(look.seed)
        height, width = look.shape
        self.hot = self.static.integers(0, height * width, look.hot_pixels)
        largest = np.finfo(look.dtype).max if look.dtype.kind == "f" else np.iinfo(look.dtype).max
        self._most = min(float(largest), 2.0**62)

    @abstractmethod
    def rate(self, number: int) -> Rate:
        """The expected photons of each pixel, `(height, width)`, in an array of its own."""

    @abstractmethod
    def count(self, rate: Rate, dice: np.random.Generator) -> Array:
        """The photons counted in each pixel."""

    def draw(self, number: int) -> Array:
        """A picture: array `(bands, height, width)`."""
        look = self.look
        rate = self.rate(number)
        rate.reshape(-1)[self.hot] = HOT * look.photons
        thresholds = np.arange(1, look.bands + 1)[:, None, None]
        counts = self.count(rate / thresholds, np.random.default_rng((look.seed, number)))
        picture = np.minimum(counts, self._most).astype(look.dtype)
        picture[:, look.gaps] = gap_value(look.dtype)
        return picture


class Diffraction(Photons):
    """A rotating crystal: Bragg peaks come and go on a background that falls outwards."""

    def __init__(self, look: Look):
        super().__init__(look)
        height, width = look.shape
        y = np.arange(height)[:, None] + 0.5 - height / 2
        x = np.arange(width) + 0.5 - width / 2
        reach = min(height, width) / 6
        self._background = look.background / (1 + (y * y + x * x) / reach**2)
        y, x = self._lattice()
        strength = self.static.exponential(size=y.size)
        strength /= 1 + np.hypot(y - height / 2, x - width / 2) / (2 * reach)
        self._strength = look.photons * strength / strength.max(initial=1e-9)
        self._phase = self.static.uniform(0, TURN, y.size)
        near = np.arange(-3, 4)
        rows = np.floor(y).astype(int)[:, None, None] + near[:, None]
        columns = np.floor(x).astype(int)[:, None, None] + near
        rows, columns = np.broadcast_arrays(rows, columns)
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        distance = (rows + 0.5 - y[:, None, None]) ** 2 + (columns + 0.5 - x[:, None, None]) ** 2
        self._owner = np.nonzero(inside)[0]
        self._pixel = (rows * width + columns)[inside]
        self._profile = np.exp(-distance / (2 * 1.1**2))[inside]

    def _lattice(self) -> tuple[Rate, Rate]:
        """Where the peaks are: y and x of the nodes of a square lattice, turned at random."""
        height, width = self.look.shape
        turn = self.static.uniform(0, math.pi / 2)
        if not self.look.peaks:
            return np.empty(0), np.empty(0)
        spacing = math.sqrt(height * width / self.look.peaks)
        most = math.ceil(math.hypot(height, width) / spacing)
        h, k = np.meshgrid(np.arange(-most, most + 1), np.arange(-most, most + 1))
        y = height / 2 + spacing * (h * math.cos(turn) + k * math.sin(turn)).ravel()
        x = width / 2 + spacing * (k * math.cos(turn) - h * math.sin(turn)).ravel()
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        return y[inside], x[inside]

    def rate(self, number: int) -> Rate:
        """See `Photons`."""
        rate = self._background.copy()
        off = (number - self._phase + TURN / 2) % TURN - TURN / 2
        bright = self._strength * np.exp(-(off**2) / (2 * (TURN / 10) ** 2))
        np.add.at(rate.reshape(-1), self._pixel, self._profile * bright[self._owner])
        return rate

    def count(self, rate: Rate, dice: np.random.Generator) -> Array:
        """See `Photons`."""
        return dice.poisson(rate)


class Gauss(Photons):
    """One round spot without noise that walks in a circle round the middle."""

    def rate(self, number: int) -> Rate:
        """See `Photons`."""
        height, width = self.look.shape
        turn = 2 * math.pi * number / TURN
        size = min(height, width) / 8
        y = (np.arange(height) + 0.5 - height / 2 - size * math.sin(turn))[:, None]
        x = np.arange(width) + 0.5 - width / 2 - size * math.cos(turn)
        spread = 2 * (size / 2) ** 2
        rate: Rate = self.look.photons * np.exp(-(y * y) / spread) * np.exp(-(x * x) / spread)
        return rate

    def count(self, rate: Rate, dice: np.random.Generator) -> Array:
        """See `Photons`."""
        return np.rint(rate)


class Pool:
    """Pictures drawn beforehand and shown in turn, as far as they are read out."""

    def __init__(self, photons: Photons, windows: Sequence[Roi], count: int):
        look = photons.look
        shape = (count, look.bands, sum(window.height for window in windows), windows[0].width)
        self._pictures = np.empty(shape, look.dtype)
        for number in range(count):
            self._pictures[number] = _seen(photons.draw(number), windows)

    def write(self, index: int, out: Array) -> int:
        """Put the frames `index` and following into `out`; return how many: all that fit."""
        done = 0
        while done < len(out):
            begin = (index + done) % len(self._pictures)
            pictures = self._pictures[begin : begin + len(out) - done]
            out[done : done + len(pictures)] = pictures
            done += len(pictures)
        return done


class Fresh:
    """Pictures drawn when they are due, each another one."""

    def __init__(self, photons: Photons, windows: Sequence[Roi]):
        self._photons = photons
        self._windows = windows

    def write(self, index: int, out: Array) -> int:
        """Put as many of the frames `index` and following into `out` as a short while allows."""
        until = time.monotonic() + PATIENCE
        for done in range(len(out)):
            if done and time.monotonic() > until:
                return done
            out[done] = _seen(self._photons.draw(index + done), self._windows)
        return len(out)


def _seen(picture: Array, windows: Sequence[Roi]) -> Array:
    """Parts of a picture `(bands, height, width)`, one under the other."""
    return np.concatenate([picture[:, *window.slices] for window in windows], axis=1)
