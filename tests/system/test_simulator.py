"""Many frames through real nodes: all saved, all right, in memory that does not grow."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.system.rig import Command, assert_verifiable, check_account


def acquire(
    command: Callable[..., Command], name: str, frames: int, shape: tuple[int, int]
) -> dict:  # type: ignore[type-arg]
    return command(
        "run", "save_raw", "--nb-frames", frames, "--expo-time", "1 us",
        "--processing-nodes", 2, "--output", "out", "--name", name, "--json",
        "--set", "detector.pattern=verifiable", "--set", f"detector.shape={list(shape)}",
    ).report()  # fmt: skip


@pytest.mark.parametrize(
    ("few", "many", "shape"), [(1000, 3000, (256, 256)), (15_000, 50_000, (64, 64))]
)
def test_all_frames_are_saved_and_right_in_flat_memory(
    command: Callable[..., Command], few: int, many: int, shape: tuple[int, int]
) -> None:
    small = acquire(command, "few", few, shape)
    large = acquire(command, "many", many, shape)
    for report, frames in ((small, few), (large, many)):
        assert (report["outcome"], report["asked"], report["saved"]) == (
            "completed",
            frames,
            frames,
        )
        check_account(report)
        assert_verifiable(report["masters"]["raw"], shape)
    assert large["ring"] == small["ring"] == 256 * 2**20
    for name, peak in large["memory"].items():
        # the ledger has a few bytes for each frame; nothing else may grow
        assert peak < small["memory"][name] + 24 * 2**20, name
        assert peak < 200 * 2**20, name
