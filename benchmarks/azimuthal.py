"""Azimuthal integration against pyFAI, on one core: the same geometry, bins and splitting."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

import lima2py
from benchmarks.processing import EIGER_1M, Array, Pipeline, photon_frames, times_as_fast

BINS = 1000
FRAMES = 60
PONI = """# Eiger-1M, 20 cm away, beam a little off the middle
poni_version: 2.1
Detector: Detector
Detector_config: {"pixel1": 7.5e-05, "pixel2": 7.5e-05, "max_shape": [1065, 1030], "orientation": 3}
Distance: 0.2
Poni1: 0.0385
Poni2: 0.0402
Rot1: 0.002
Rot2: -0.001
Rot3: 0.0
Wavelength: 1e-10
"""


def against_pyfai(
    folder: Path, photons: float, split: str = "full", dtype: str = "uint16"
) -> Callable[[], float]:
    """A graph that integrates, against `integrate1d_ng` of pyFAI with its CSR engine.

    Args:
        folder: for the geometry.
        photons: in a pixel, on the average.
        split: how a pixel on the border of bins is shared out.
        dtype: of the pixels.

    Raises:
        ImportError: without pyFAI.
    """
    os.environ["OMP_NUM_THREADS"] = "1"  # read when pyFAI's compiled parts are loaded
    from pyFAI.integrator.azimuthal import AzimuthalIntegrator

    poni = folder / "eiger.poni"
    poni.write_text(PONI)
    frames = photon_frames(count=FRAMES, photons=photons).astype(dtype)
    graph = (
        "graph: g\ntasks: {curve: {do: azimuthal_integrate, from: detector, poni: eiger.poni,"
        f" bins: {BINS}, split: '{split}'}}}}"
    )
    ours = Pipeline(graph, frames, folder)
    pyfai = AzimuthalIntegrator.sload(str(poni))

    def integrate(frame: Array) -> Array:
        made = pyfai.integrate1d_ng(
            frame, BINS, unit="q_nm^-1", method=(split, "csr", "cython"), correctSolidAngle=True
        )
        intensity: Array = made.intensity
        return intensity

    def theirs() -> None:
        for frame in frames:
            integrate(frame)

    curve = lima2py.apply(graph, frames[:1], base=folder)["curve"].pixels["intensity"][0]
    assert frames.shape[1:] == EIGER_1M
    np.testing.assert_allclose(curve, integrate(frames[0]), rtol=1e-3, atol=1e-6)
    return times_as_fast(ours, theirs)
