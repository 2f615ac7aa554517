"""The logbook keeps what matters of any number of samples, and takes nothing it cannot keep."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lima2py.errors import BadCommand, BadParameter
from lima2py.node.logbook import MOST_SERIES, Logbook
from lima2py.storage.logs import Series


@settings(max_examples=30)
@given(
    count=st.integers(0, 2000),
    most=st.sampled_from([8, 9, 64]),
    gap=st.floats(1e-3, 100),
)
def test_a_full_series_is_thinned_evenly_and_keeps_the_latest(
    count: int, most: int, gap: float
) -> None:
    book = Logbook("node", most)
    for number in range(count):
        book.add("x", number, "K", number * gap)
    if not count:
        assert book.series() == {}
        return
    times, values, units = book.series()["x"]
    assert units == "K"
    assert len(times) <= most
    assert len(times) >= min(count, most // 2)
    assert values[-1] == count - 1
    np.testing.assert_allclose(times, np.array(values, float) * gap)
    gaps = np.diff(times[:-1])  # the latest lies anywhere
    if len(gaps):
        assert gaps.min() > 0
        assert gaps.max() <= 4 * count * gap / most + gap


@given(st.lists(st.floats(0, 100), min_size=1, max_size=20))
def test_samples_stand_in_the_order_of_their_times(times: list[float]) -> None:
    book = Logbook("node")
    for number, at in enumerate(times):
        book.add("x", number, when=at)
    found = book.series()["x"]
    assert list(found.times) == sorted(times)
    assert [times[int(number)] for number in found.values] == list(found.times)


def test_a_value_without_a_time_is_of_now() -> None:
    book = Logbook("node")
    before = time.time()
    book.note("sample/temperature", np.float32(293.5), "K", None)
    book.note("sample/temperature", 294, None, None)
    series = book.series()["sample/temperature"]
    assert before <= series.times[0] <= series.times[1] <= time.time()
    assert series.values == [293.5, 294.0]
    assert series.units == "K"


def test_what_others_noted_is_added_to_what_is_there() -> None:
    book, other = Logbook("a"), Logbook("b")
    book.add("x", 1, "K", 1.0)
    other.add("x", 0, "K", 0.5)
    other.add("text", "on", None, 2.0)
    book.merge(other.series())
    assert book.series() == {
        "x": Series([0.5, 1.0], [0.0, 1.0], "K"),
        "text": Series([2.0], ["on"], ""),
    }


@pytest.mark.parametrize(
    ("name", "value", "more", "said"),
    [
        ("", 1, {}, "should be words parted by /"),
        ("/a", 1, {}, "should be words parted by /"),
        ("a//b", 1, {}, "should be words parted by /"),
        ("a\n", 1, {}, "should be words parted by /"),
        ("a" * 201, 1, {}, "should be words parted by /"),
        ("sample", 1, {}, "there is a series sample/temperature already"),
        ("sample/temperature/max", 1, {}, "there is a series sample/temperature already"),
        ("sample/temperature", "warm", {}, "holds numbers since its first value"),
        ("sample/temperature", 1, {"units": "Cel"}, 'has been in "K"'),
        ("x", None, {}, "should be a number, or a text"),
        ("x", [1, 2], {}, "should be a number, or a text"),
        ("x", "a" * 1001, {}, "should be a number, or a text of at most 1000"),
        ("x", 1, {"time": float("nan")}, "should be seconds since 1970"),
        ("x", 1, {"time": "now"}, "should be seconds since 1970"),
        ("acquisition/acq0/ring_fill", 1, {}, "those of the run itself"),
        ("detector", 1, {}, "those of the run itself"),
    ],
)
def test_what_cannot_be_kept_is_refused_and_changes_nothing(
    name: str, value: Any, more: dict[str, Any], said: str
) -> None:
    book = Logbook("node")
    book.note("sample/temperature", 293, "K", 1.0)
    before = book.series()
    with pytest.raises(BadParameter, match=said.replace("(", r"\(")):
        book.note(name, value, **{"units": None, "time": None, **more})
    assert book.series() == before


def test_there_is_an_end_to_how_many_series_one_can_begin() -> None:
    book = Logbook("node")
    for number in range(MOST_SERIES):
        book.note(f"x{number}", number, None, None)
    with pytest.raises(BadParameter, match="log into one of them"):
        book.note("one more", 1, None, None)
    book.note("x0", 1, None, None)
    book.add("acquisition/acq0/ring_fill", 1)  # the run itself goes on


def test_a_closed_logbook_takes_nothing() -> None:
    book = Logbook("acquisition node acq0")
    book.add("x", 1, "K", 1.0)
    assert book.close() == {"x": Series([1.0], [1.0], "K")}
    with pytest.raises(BadCommand, match="acquisition node acq0 cannot log x: the run is over"):
        book.note("x", 2, None, None)
    assert book.close()["x"].values == [1.0]
