"""Makes the calibration files of the ready graphs, for the simulated detectors they run on.

    python graphs/files/make.py

A real detector comes with its own: a mask from the maker or from dark frames, a dark image and a
flat field measured in the morning, a PONI file from pyFAI's calibration.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from lima2py_detectors.simulator import Simulator
from lima2py_detectors.simulator.photons import Diffraction, Look
from numpy.typing import NDArray

from lima2py.detector_file import open_detector
from lima2py.geometry import Roi

HERE = Path(__file__).parent
DARK_OF_CAMERA = 100

PONI = """\
# Beam in the middle, detector perpendicular to it; calibrate your own with pyFAI-calib2.
poni_version: 2.1
Detector: Detector
Detector_config: {{"pixel1": 7.5e-05, "pixel2": 7.5e-05, "max_shape": [{0}, {1}], "orientation": 3}}
Distance: {2}
Poni1: {3:.10g}
Poni2: {4:.10g}
Rot1: 0.0
Rot2: 0.0
Rot3: 0.0
Wavelength: 9.762535e-11
"""


def look_of(name: str) -> Look:
    """What the simulator is told to draw."""
    detector = open_detector(name, {}, Path())
    assert isinstance(detector, Simulator)  # noqa: S101 - all of these are
    gaps = np.full(detector.shape, bool(detector.info.modules))
    for place in detector.info.modules:
        gaps[Roi(*place.at, place.size[1], place.size[0]).slices] = False
    return Look(
        detector.shape, np.dtype(detector.dtype), detector.bands, detector.seed, detector.photons,
        detector.background, detector.peaks, detector.hot_pixels, gaps,
    )  # fmt: skip


def mask_of(look: Look, beamstop: float) -> NDArray[np.uint8]:
    """Hot pixels, gaps between modules, and a disk round the direct beam; 1 where masked."""
    height, width = look.shape
    y, x = np.ogrid[0.5:height, 0.5:width]
    masked = look.gaps | (np.hypot(y - height / 2, x - width / 2) < beamstop)
    masked.reshape(-1)[Diffraction(look).hot] = True
    return masked.astype(np.uint8)


def poni_of(look: Look, distance: float) -> str:
    """The geometry, in pyFAI's words."""
    height, width = look.shape
    return PONI.format(height, width, distance, height / 2 * 75e-6, width / 2 * 75e-6)


def made() -> dict[str, dict[str, NDArray[Any]] | str]:
    """By file: the images of an HDF5 file by name, or text."""
    simulator, serial, xpcs, camera = map(
        look_of, ("simulator", "eiger2_serial_like", "eiger2_xpcs_like", "tomography_camera_like")
    )
    columns = np.broadcast_to(np.arange(512), simulator.shape)  # each has an amplifier of its own
    beam = Diffraction(camera).rate(0)
    return {
        "simulator.h5": {
            "mask": mask_of(simulator, beamstop=12),
            "dark": (0.25 + 0.0625 * (columns % 4)).astype(np.float32),
            "flat": (1000 + 20 * (columns % 5)).astype(np.uint16),
        },
        "simulator.poni": poni_of(simulator, 0.1),
        "eiger2_serial.h5": {"mask": mask_of(serial, beamstop=16)},
        "eiger2_serial.poni": poni_of(serial, 0.15),
        "eiger2_xpcs.h5": {"mask": mask_of(xpcs, beamstop=0)},
        "tomography_camera.h5": {
            "dark": np.full(camera.shape, DARK_OF_CAMERA, np.uint16),
            "flat": np.rint((beam - DARK_OF_CAMERA) / 8).astype(np.uint16) * np.uint16(8),
        },
    }


def main(folder: Path = HERE) -> None:
    """Write all of them."""
    for name, content in made().items():
        if isinstance(content, str):
            (folder / name).write_text(content)
            continue
        with h5py.File(folder / name, "w") as file:
            for image, values in content.items():
                file.create_dataset(image, data=values, compression=9, shuffle=True, chunks=True)


if __name__ == "__main__":
    main()
