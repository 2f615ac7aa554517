"""Arrays that take seconds to compute, kept on disk so that the next prepare is quick.

They lie in the folder of compiled functions (`LIMA2PY_CACHE`), in a folder named by a hash of all
that decides about them, one `.npy` file each, and are mapped into memory when they are used. They
may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lima2py.frame import Array
from lima2py.kernels.compiled import cache_folder, not_kept

log = logging.getLogger(__name__)


class KeptArrays:
    """Some arrays by name; computed now, unless they have been before.

    Args:
        what: they are, one word.
        decides: all that decides about what is in them, as plain values.
        names: of the arrays.
        make: computes them.
    """

    def __init__(
        self,
        what: str,
        decides: Mapping[str, Any],
        names: Sequence[str],
        make: Callable[[], Mapping[str, Array]],
    ):
        text = json.dumps([decides, list(names)], sort_keys=True)
        self._kept = f"{what}-{hashlib.sha256(text.encode()).hexdigest()[:32]}"
        self._names = tuple(names)
        self._make = make
        self._made: Mapping[str, Array] | None = None
        if not self._is_there():
            self._made = self._anew()

    @cached_property
    def arrays(self) -> Mapping[str, Array]:
        """The arrays; a change made to them is not kept."""
        found = self._read() if self._made is None else self._made
        if found is None:  # deleted since, or damaged
            found = self._anew() or self._read()
        if found is None:
            found = self._make()
        self._make = dict  # who makes them may hold them: let go of each other
        return found

    def _is_there(self) -> bool:
        try:
            return (cache_folder() / self._kept).is_dir()
        except OSError:
            return False

    def _anew(self) -> Mapping[str, Array] | None:
        """Compute and write them; they themselves, if they cannot be kept.

        What can be kept is read back, so that all who use it share the memory.
        """
        made = self._make()
        try:
            _write(cache_folder() / self._kept, made)
        except OSError as error:
            not_kept("tables", error)
            return made
        return None

    def _read(self) -> Mapping[str, Array] | None:
        """The arrays mapped into memory; None if they are not there, or are damaged."""
        folder = cache_folder() / self._kept
        try:
            return {
                name: np.load(folder / f"{name}.npy", mmap_mode="c").view(np.ndarray)
                for name in self._names
            }
        except (OSError, ValueError, EOFError) as error:  # EOFError: an empty file
            log.warning("what is kept in %s is damaged, and made anew (%s)", folder, str(error))
            shutil.rmtree(folder, ignore_errors=True)
            return None


def _write(folder: Path, arrays: Mapping[str, Array]) -> None:
    """Write a folder of arrays, whole or not at all: other nodes may be about to read it."""
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=folder.parent, suffix=".part"))
    try:
        for name, array in arrays.items():
            np.save(part / f"{name}.npy", array)
        os.rename(part, folder)
    except OSError:
        shutil.rmtree(part)
        if not folder.is_dir():  # nobody else was quicker
            raise
