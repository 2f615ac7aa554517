"""Virtual detectors against LiberTEM, on one core, over the same raw file mapped into memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import lima2py
from benchmarks.processing import Pipeline, photon_frames, times_as_fast

FILE = 512 * 2**20


def against_libertem(folder: Path, shape: tuple[int, int]) -> Callable[[], float]:
    """The sum of all frames and a ring, against LiberTEM with its inline executor.

    Both read the file through the page cache.

    Args:
        folder: for the file.
        shape: of the frames, `(height, width)`.

    Raises:
        ImportError: without LiberTEM.
    """
    from libertem.api import Context
    from libertem.udf.masks import ApplyMasksUDF
    from libertem.udf.sum import SumUDF

    height, width = shape
    count = FILE // (2 * height * width)
    path = folder / f"frames_{height}.raw"
    photon_frames(shape, count, photons=1.0).tofile(path)
    frames = np.memmap(path, np.uint16, "r", shape=(count, height, width))
    inner, outer = height // 8, height // 4
    graph = f"""
graph: g
tasks:
  sum: {{do: accumulate, from: detector, frames: {count}}}
  ring: {{do: mask_products, from: detector, masks: {{ring: {{
    centre: [{width // 2 + 0.5}, {height // 2 + 0.5}], radii: [{inner}, {outer}]}}}}}}
"""
    ours = Pipeline(graph, frames)
    context = Context.make_with("inline")
    dataset = context.load(
        "raw", str(path), dtype="uint16", nav_shape=(count,), sig_shape=(height, width)
    )

    udfs = [SumUDF(), ApplyMasksUDF(mask_factories=[partial(_ring, shape, inner, outer)])]

    def theirs() -> Any:
        return context.run_udf(dataset, udfs)

    summed, rings = theirs()
    made = lima2py.apply(graph, frames)
    np.testing.assert_allclose(summed["intensity"], made["sum"].pixels[0, 0], rtol=1e-4)
    np.testing.assert_allclose(
        np.ravel(rings["intensity"]), made["ring"].pixels["sum"].ravel(), rtol=1e-4
    )
    return times_as_fast(ours, theirs)


def _ring(shape: tuple[int, int], inner: int, outer: int) -> NDArray[np.float32]:
    """An image of the pixels whose centre lies in the ring round the middle."""
    y, x = np.ogrid[: shape[0], : shape[1]]
    distance = (x - shape[1] // 2) ** 2 + (y - shape[0] // 2) ** 2
    return np.asarray((distance >= inner**2) & (distance < outer**2), np.float32)
