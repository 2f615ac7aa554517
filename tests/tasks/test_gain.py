"""Conversion of gain-switching pixels against the formula written out for every pixel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lima2py.errors import BadParameter
from lima2py.frame import Array, Block, FrameSpec
from lima2py.geometry import Affine
from lima2py.task import Task
from lima2py.tasks.gain import GainSwitching
from lima2py.testing.tasks import TaskTests

SPEC = FrameSpec.dense(12, 16, np.uint16, bands=2)
GAIN_OF_BITS = {0: 0, 1: 1, 3: 2}


@pytest.fixture(scope="module")
def stacks() -> dict[str, Array]:
    """Pedestals and gains of two modules, some of them unusable."""
    rng = np.random.default_rng(4)
    shape = (3, *SPEC.shape)
    gain = rng.normal(1, 0.05, shape) * np.reshape([40, -1.5, -0.1], (3, 1, 1, 1))
    pedestal = rng.normal(0, 40, shape) + np.reshape([3000, 14000, 14500], (3, 1, 1, 1))
    gain[0, :, 1, 1], gain[1, :, 2, 2], pedestal[2, :, 3, 3] = 0, np.nan, np.inf
    return {"pedestal": pedestal, "gain": gain}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, stacks: dict[str, Array]) -> dict[str, str]:
    """Their paths."""
    folder: Path = tmp_path_factory.mktemp("gains")
    for name, stack in stacks.items():
        np.save(folder / name, stack)
    return {name: str(folder / f"{name}.npy") for name in stacks}


def raw(count: int = 6) -> Array:
    """Frames with every gain, the invalid one too; the ends of the ADC in each among them."""
    data = np.random.default_rng(6).integers(0, 65536, (count, *SPEC.shape)).astype(np.uint16)
    data[:, :, 5, :8] = [bits + adc for bits in range(0, 65536, 2**14) for adc in (0, 2**14 - 1)]
    return data


class TestGainSwitching(TaskTests):
    @pytest.fixture
    def task(self, files: dict[str, str]) -> Task:
        return GainSwitching(**files, energy=8.0)

    @pytest.fixture
    def frames(self) -> Array:
        return raw(12)


def converted(task: Task, data: Array, spec: FrameSpec = SPEC) -> Array:
    promised = task.prepare(spec)
    found = task.process(Block(spec, 0, len(data), data)).pixels
    assert found.dtype == promised.dtype
    return found


def expected(data: Array, stacks: dict[str, Array], energy: float) -> Array:
    """The formula, pixel by pixel; NaN where it cannot be used."""
    result = np.full(data.shape, np.nan, np.float32)
    for place, value in np.ndenumerate(data):
        gain_bits, adc = divmod(int(value), 2**14)
        if gain_bits not in GAIN_OF_BITS:
            continue
        of_pixel = (GAIN_OF_BITS[gain_bits], *place[1:])
        pedestal, gain = stacks["pedestal"][of_pixel], stacks["gain"][of_pixel]
        if np.isfinite(pedestal) and np.isfinite(gain) and gain != 0:
            factor = np.float32(1 / energy / gain)
            result[place] = (np.float32(adc) - np.float32(pedestal)) * factor
    return result


@pytest.mark.parametrize("energy", [1.0, 12.4])
def test_every_pixel_is_converted_with_its_own_gain(
    files: dict[str, str], stacks: dict[str, Array], energy: float
) -> None:
    data = raw()
    found = converted(GainSwitching(**files, energy=energy), data)
    np.testing.assert_array_equal(found, expected(data, stacks, energy))
    assert np.isnan(found[data >> 14 == 2]).all()
    for gain_bits in GAIN_OF_BITS:
        assert np.isfinite(found[data >> 14 == gain_bits]).mean() > 0.9


def test_photons_can_be_given_as_integers(files: dict[str, str], stacks: dict[str, Array]) -> None:
    data = raw()
    found = converted(GainSwitching(**files, energy=6.0, dtype="int16", value=-9), data)
    real = expected(data, stacks, 6.0)
    clipped = np.clip(np.rint(real), -(2**15), 2**15 - 1)
    np.testing.assert_array_equal(found, np.where(np.isnan(real), -9, clipped))


def test_one_stack_serves_all_bands_and_follows_a_turned_product(
    tmp_path: Path, stacks: dict[str, Array]
) -> None:
    one = {name: stack[:, 0] for name, stack in stacks.items()}
    for name, stack in one.items():
        np.save(tmp_path / name, stack)
    task = {name: str(tmp_path / f"{name}.npy") for name in one}
    spec = SPEC.replace(shape=(1, *SPEC.image))
    data = raw()[:, :1]
    turned = spec.replace(shape=(1, 16, 12), to_detector=Affine.rotate(270, SPEC.image))
    whole = {name: stack[:, np.newaxis] for name, stack in one.items()}
    found = converted(GainSwitching(**task), np.rot90(data, -3, axes=(2, 3)), turned)
    np.testing.assert_array_equal(found, np.rot90(expected(data, whole, 1.0), -3, axes=(2, 3)))


@pytest.mark.parametrize(
    ("spec", "changes", "complaint"),
    [
        (SPEC.replace(dtype=np.dtype("i4")), {}, "from: pixels with gain bits are uint16"),
        (FrameSpec.dense(10, 16, "u2", bands=2), {}, "pedestal: .* is 12 × 16 and the detector"),
        (SPEC, {"value": -1, "dtype": "uint16"}, "value: -1 does not fit pixels of uint16"),
        (
            FrameSpec.dense(
                6, 8, "u2", bands=2, to_detector=Affine.bin(2, 2), detector_shape=(12, 16)
            ),
            {},
            "pedestal: .* put this task before the bin",
        ),
    ],
)
def test_what_cannot_be_converted_is_refused(
    files: dict[str, str], spec: FrameSpec, changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(BadParameter, match=f"^{complaint}"):
        GainSwitching(**files, **changes).prepare(spec)
