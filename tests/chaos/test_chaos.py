"""Whatever happens to a run, and in whatever order: no frame vanishes, none comes twice.

Six small trials, in which everything happens at least once; `make chaos` carries out 200 of any
size, in processes of their own.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.trial import Trial, carry_out

SEEDS = {
    143: {"slow", "disk", "kill", "abort"},
    213: {"disk", "leave", "kill everything"},
    312: {"kill"},
    1624: {"freeze"},
    2121: {"kill", "disk", "kill acquisition"},
    2630: {"slow", "stop"},
}
"""What happens in each of them."""


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_happens_to_a_run_every_frame_has_one_fate_and_is_right(
    tmp_path: Path, seed: int
) -> None:
    trial = Trial.of(seed)
    assert {*trial.kinds} == SEEDS[seed]
    result = carry_out(trial, tmp_path)
    assert not result.problems, "\n".join([*result.problems, str(result)])
