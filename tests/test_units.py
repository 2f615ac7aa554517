"""Quantities as people write them, and models that say everything that is wrong at once."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from lima2py.documents import parse_yaml
from lima2py.errors import BadParameter
from lima2py.units import (
    LENGTH_UNITS,
    SIZE_UNITS,
    TIME_UNITS,
    Bytes,
    Metres,
    Model,
    Seconds,
    as_size,
    as_time,
    digest,
    metres,
    seconds,
    size_in_bytes,
)


class Inner(Model):
    colour: str = "red"


class Settings(Model):
    n: int = 1
    wait: Seconds = 1.0
    ring: Bytes = 100
    pixel: Metres = 1e-6
    on: bool = False
    name: str = ""
    pair: tuple[int, int] = (1, 2)
    inner: Inner = Inner()
    mode: Annotated[str, Field(alias="do")] = "x"


def refused(yaml_or_values: str | dict[str, Any]) -> str:
    """What is said about settings that cannot be."""
    values = (
        parse_yaml(yaml_or_values, "file") if isinstance(yaml_or_values, str) else yaml_or_values
    )
    with pytest.raises(BadParameter) as error:
        Settings.load(values, "file.yaml")
    return str(error.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("200 ms", 0.2),
        ("200ms", 0.2),
        ("9 ms", 0.009),
        (" 1.5 s ", 1.5),
        (".5 s", 0.5),
        ("5. s", 5.0),
        ("1e-3 s", 0.001),
        ("5 us", 5e-6),
        ("5 µs", 5e-6),
        ("7 ns", 7e-9),
        ("2 min", 120.0),
        ("2 h", 7200.0),
        ("-1 s", -1.0),
    ],
)
def test_a_time_may_carry_a_unit(text: str, value: float) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2 GiB", 2 * 2**30),
        ("2GB", 2 * 10**9),
        ("0.5 KiB", 512),
        ("1.005 kB", 1005),
        ("3 B", 3),
        ("1 TiB", 2**40),
    ],
)
def test_a_size_may_carry_a_unit(text: str, value: int) -> None:
    assert size_in_bytes(text) == value


def test_a_length_may_carry_a_unit() -> None:
    assert [metres(text) for text in ("75 um", "75 µm", "172 um", "1 nm", "2 cm")] == [
        75e-6, 75e-6, 172e-6, 1e-9, 0.02,
    ]  # fmt: skip


@given(st.integers(0, 10**6), st.sampled_from(["ns", "us", "ms", "s"]))
def test_a_number_with_a_unit_is_the_number_one_would_write_without(n: int, unit: str) -> None:
    exponent = {"ns": -9, "us": -6, "ms": -3, "s": 0}[unit]
    assert seconds(f"{n} {unit}") == float(f"{n}e{exponent}")


@given(st.integers(0, 10**9))
def test_no_byte_is_lost_in_a_decimal_point(n: int) -> None:
    assert size_in_bytes(f"{n // 1000}.{n % 1000:03} kB") == n


@pytest.mark.parametrize(
    "text",
    ["", "200", "ms", "200 sec", "200 MS", "2 GiB", "1 2 ms", "1e s", "1,5 s", "0x10 s", "inf s"],
)
def test_text_that_is_no_time_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a time: .*\(ns, us, .*\), for instance 200 ms"):
        seconds(text)


@pytest.mark.parametrize("text", ["200", "2 gib", "2 s", "2 Gb"])
def test_text_that_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a size: .* for instance 2 GiB"):
        size_in_bytes(text)


def test_half_a_byte_is_refused() -> None:
    with pytest.raises(ValueError, match="whole number of bytes"):
        size_in_bytes("0.5 B")


@pytest.mark.parametrize("text", ["1e400", "9" * 5000, "1e9999999999"])
def test_absurd_numbers_are_refused_at_once(text: str) -> None:
    assert "too large" in refused({"wait": f"{text} s"})
    assert "too large" in refused({"ring": f"{text} B"})


@given(st.floats(1e-9, 1e3))
def test_a_time_for_a_person_can_be_read_back(value: float) -> None:
    assert seconds(as_time(value)) == pytest.approx(value, rel=1e-3)


@given(st.integers(0, 2**44))
def test_a_size_for_a_person_can_be_read_back(value: int) -> None:
    number, unit = as_size(value).split()
    assert float(number) * SIZE_UNITS[unit] == pytest.approx(value, rel=1e-3)


def test_quantities_for_a_person() -> None:
    assert [as_time(value) for value in (0.0002, 0.2, 2, 0, 3e-9, math.inf)] == [
        "200 us", "200 ms", "2 s", "0 s", "3 ns", "inf s",
    ]  # fmt: skip
    assert [as_size(value) for value in (2**21, 1000, 0, 1.5 * 2**30)] == [
        "2 MiB", "1000 B", "0 B", "1.5 GiB",
    ]  # fmt: skip


def test_every_unit_is_taken() -> None:
    for units, read in ((TIME_UNITS, seconds), (SIZE_UNITS, size_in_bytes), (LENGTH_UNITS, metres)):
        assert {unit: read(f"1 {unit}") for unit in units} == units


@pytest.mark.parametrize(
    ("yaml", "complaint"),
    [
        ("n: true", "n: should be a whole number; given: true"),
        ("n: no", 'n: should be a whole number; given: "no"'),
        ("n: 010", 'n: should be a whole number; given: "010"'),
        ("n: 0x10", 'n: should be a whole number; given: "0x10"'),
        ("n: 1_000", 'n: should be a whole number; given: "1_000"'),
        ("n: 12:30", 'n: should be a whole number; given: "12:30"'),
        ("n: 1e3", "n: should be a whole number; given: 1000.0"),
        ("n: 2.0", "n: should be a whole number; given: 2.0"),
        ("n: '3'", 'n: should be a whole number; given: "3"'),
        ("n:", "n: should be a whole number; given: null"),
        ("n: [1]", "n: should be a whole number; given: [1]"),
        ("wait: 12:30", "wait: is not a time"),
        ("wait: .nan", "wait: is not a time"),
        ("wait: .inf", "wait: is not a time"),
        ("wait: 2 GiB", "wait: is not a time"),
        ("wait: true", "wait: should be a number; given: true"),
        ("ring: 200 ms", "ring: is not a size"),
        ("ring: 1.5", "ring: should be a whole number; given: 1.5"),
        ("pixel: 75 us", "pixel: is not a length"),
        ("on: yes", 'on: should be true or false; given: "yes"'),
        ("on: 1", "on: should be true or false; given: 1"),
        ("name: 2024", "name: should be text; given: 2024"),
        ("name: true", "name: should be text; given: true"),
        ("pair: 3", "pair: should be a list, like [1, 2]; given: 3"),
        ("pair: [1, 2.5]", "pair.1: should be a whole number; given: 2.5"),
    ],
)
def test_yaml_surprises_are_refused_with_what_was_given(yaml: str, complaint: str) -> None:
    assert refused(yaml).startswith(f"file.yaml, {complaint}")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_quantity_is_infinite_or_no_number(value: float) -> None:
    assert "wait: should be a finite number" in refused({"wait": value})
    assert "pixel: should be a finite number" in refused({"pixel": value})


def test_an_unknown_field_is_refused_with_the_nearest_known_one() -> None:
    assert refused({"wiat": 1}) == (
        'file.yaml, wiat: there is no such field (did you mean "wait"?)'
    )
    assert "known: do, inner, n, name, on, pair, pixel, ring, wait" in refused({"zzz": 1})
    assert refused({"inner": {"color": "red"}}) == (
        'file.yaml, inner.color: there is no such field (did you mean "colour"?)'
    )


def test_all_problems_are_said_at_once() -> None:
    text = refused({"n": "x", "wait": "1 lightyear", "onn": True, "pair": [1]})
    fields = [line.removeprefix("file.yaml, ").split(":")[0] for line in text.splitlines()]
    assert fields == ["n", "wait", "pair.1", "onn"]


def test_a_long_value_is_not_repeated_at_length() -> None:
    assert len(refused({"n": "x" * 10**5})) < 200


@pytest.mark.parametrize("value", [{1, 2}, b"bytes", object(), 1j, np.arange(3)])
def test_values_that_are_no_parameters_are_refused(value: object) -> None:
    assert refused({"n": value}).startswith("file.yaml")


def test_a_value_that_contains_itself_is_refused() -> None:
    circle: list[Any] = []
    circle.append(circle)
    assert refused({"n": circle}).startswith("file.yaml: ")


def test_python_values_are_taken_as_what_they_look_like() -> None:
    settings = Settings.load(
        {
            "n": np.int64(3),
            "wait": np.float32(0.5),
            "name": Path("a/b"),
            "pair": (np.uint8(3), 4),
            "inner": Inner(colour="blue"),
        },
        "here",
    )
    assert settings == Settings(n=3, wait=0.5, name="a/b", pair=(3, 4), inner=Inner(colour="blue"))


@given(
    st.builds(
        Settings,
        n=st.integers(),
        wait=st.floats(allow_nan=False, allow_infinity=False),
        ring=st.integers(0, 2**60),
        name=st.text(st.characters(codec="utf-8")),
        pair=st.tuples(st.integers(), st.integers()),
    )
)
def test_a_model_survives_being_written_down(settings: Settings) -> None:
    text = json.dumps(settings.plain())
    assert Settings.load_json(text, "file") == settings
    assert Settings.load(settings.plain(), "file").digest() == settings.digest()


def test_fields_go_by_the_name_a_person_writes() -> None:
    assert Settings.load({"do": "y"}, "file").plain()["do"] == "y"


def test_a_model_never_changes() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().n = 2  # type: ignore[misc]


def test_a_digest_looks_at_values_and_not_at_their_order() -> None:
    assert digest({"a": 1, "b": {"c": 2, "d": 3}}) == digest({"b": {"d": 3, "c": 2}, "a": 1})
    assert digest({"a": 1}) != digest({"a": "1"})
    assert len(digest({})) == 64
