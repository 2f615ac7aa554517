"""What is asked of a detector: checked, frozen, hashed."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lima2py.acquisition import Acquisition, Parameters, TriggerMode
from lima2py.errors import BadParameter
from lima2py.geometry import Roi

times = st.floats(1e-9, 1e4)
acquisitions = st.builds(
    Acquisition,
    nb_frames=st.integers(0, 10**9),
    expo_time=times,
    latency_time=times,
    trigger_mode=st.sampled_from(TriggerMode),
    nb_frames_per_trigger=st.integers(1, 1000),
    roi=st.none() | st.tuples(*[st.integers(0, 99)] * 2, *[st.integers(1, 99)] * 2),
    binning=st.tuples(st.integers(1, 8), st.integers(1, 8)),
)


def test_a_person_writes_units_and_words() -> None:
    acquisition = Acquisition.load(
        {
            "nb_frames": 1000,
            "expo_time": "1 ms",
            "latency_time": "5 us",
            "trigger_mode": "external",
            "roi": [10, 20, 100, 50],
            "binning": [2, 2],
        },
        "command line",
    )
    assert acquisition == Acquisition(
        nb_frames=1000,
        expo_time=0.001,
        latency_time=5e-6,
        trigger_mode=TriggerMode.EXTERNAL,
        roi=(10, 20, 100, 50),
        binning=(2, 2),
    )
    assert acquisition.region == Roi(10, 20, 100, 50)
    assert acquisition.period == pytest.approx(0.001005)


def test_without_a_number_it_goes_on_until_it_is_stopped() -> None:
    assert Acquisition(nb_frames=0).last == math.inf
    assert Acquisition(nb_frames=7).last == 7
    assert Acquisition().region is None


@given(acquisitions)
def test_it_survives_being_written_down(acquisition: Acquisition) -> None:
    again = Acquisition.load(acquisition.plain(), "file")
    assert again == acquisition
    assert again.digest() == acquisition.digest()


@given(acquisitions, acquisitions)
def test_equal_digests_mean_equal_parameters(one: Acquisition, other: Acquisition) -> None:
    assert (one.digest() == other.digest()) == (one == other)


def test_it_never_changes() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Acquisition().nb_frames = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("nb_frames", -1, "greater than or equal to 0"),
        ("nb_frames", 1.5, "whole number"),
        ("nb_frames", True, "whole number"),
        ("expo_time", 0, "greater than 0"),
        ("expo_time", "-1 ms", "greater than 0"),
        ("expo_time", math.inf, "finite"),
        ("latency_time", -1e-9, "greater than or equal to 0"),
        ("trigger_mode", "soft", "'internal', 'software', 'external' or 'gate'"),
        ("nb_frames_per_trigger", 0, "greater than or equal to 1"),
        ("roi", [1, 2, 3], r"\[x, y, width, height\]"),
        ("roi", [1, 2, 3, 0], "width, height ≥ 1"),
        ("roi", [-1, 2, 3, 4], "x, y ≥ 0"),
        ("roi", [1, 2, 3, 4.0], "whole numbers"),
        ("roi", {"x": 1}, r"\[x, y, width, height\]"),
        ("roi", "1234", r"\[x, y, width, height\]"),
        ("binning", 2, r"\[x, y\]"),
        ("binning", [2, 0], "1 or more"),
        ("binning", [True, 2], "whole numbers"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(field: str, value: object, complaint: str) -> None:
    with pytest.raises(BadParameter, match=complaint) as refused:
        Acquisition.load({field: value}, "command line")
    assert str(refused.value).startswith(f"command line, {field}: ")
    assert "; given: " in str(refused.value)


def test_the_three_sets_have_a_digest_each() -> None:
    asked = Acquisition(expo_time=0.0012).plain()
    done = {**asked, "expo_time": 0.00125}
    parameters = Parameters(requested=asked, hardware=done, pipeline={"stages": 1})
    digests = parameters.digests()
    assert list(digests) == ["requested", "hardware", "pipeline"]
    assert digests["requested"] == Acquisition(expo_time=0.0012).digest()
    assert len(set(digests.values())) == 3
