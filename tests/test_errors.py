"""Errors keep their class and their words on the way to another process."""

from __future__ import annotations

import inspect

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lima2py import errors
from lima2py.errors import LimaError, NodeError, did_you_mean, from_wire, to_wire

OURS = [cls for cls in vars(errors).values() if inspect.isclass(cls) and issubclass(cls, LimaError)]


@pytest.mark.parametrize("cls", OURS)
def test_an_error_arrives_as_the_same_class_with_the_same_text(cls: type[LimaError]) -> None:
    text = "graph.yaml, task view, by: 3 µm × 2\nsecond line"
    arrived = from_wire(*to_wire(cls(text)))
    assert type(arrived) is cls
    assert str(arrived) == text


def test_an_error_of_somebody_else_arrives_as_a_failure_of_the_node() -> None:
    arrived = from_wire(*to_wire(ZeroDivisionError("by nought")))
    assert type(arrived) is NodeError
    assert str(arrived) == "ZeroDivisionError: by nought"


@given(st.text(), st.text())
def test_an_error_of_an_unknown_class_is_still_an_error(name: str, text: str) -> None:
    arrived = from_wire(name, text)
    assert isinstance(arrived, LimaError)
    assert str(arrived) == text


def test_the_hint_names_the_nearest_word_or_all_of_them() -> None:
    assert did_you_mean("binn", ["bin", "mask"]) == ' (did you mean "bin"?)'
    assert did_you_mean("xyz", ["mask", "bin"]) == " (known: bin, mask)"
    assert did_you_mean("xyz", []) == ""
