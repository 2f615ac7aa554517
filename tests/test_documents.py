"""YAML that people write: what is taken, what is refused, and that nothing explodes."""

from __future__ import annotations

import math
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lima2py.documents import (
    MAX_BYTES,
    MAX_DEPTH,
    MAX_VALUES,
    parse_yaml,
    plain_scalar,
    read_yaml,
    to_yaml,
)
from lima2py.errors import BadParameter

TraceFunction = Callable[[FrameType, str, Any], Any]

text_characters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
texts = st.text(text_characters, max_size=30) | st.sampled_from(
    ["no", "010", "12:30", "1e3", ".nan", "", "~", "null", "true", "<<", "=", "*a", "- a", "1_0"]
)
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
plain_values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


def refused(text: str) -> str:
    with pytest.raises(BadParameter) as caught:
        parse_yaml(text, "x.yaml")
    return str(caught.value)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("", None), ("~", None), ("null", None),
        ("true", True), ("false", False), ("True", True),
        ("no", "no"), ("yes", "yes"), ("Off", "Off"), ("on", "on"), ("y", "y"),
        ("0", 0), ("12", 12), ("-3", -3), ("+3", 3),
        ("010", "010"), ("-007", "-007"), ("0o14", "0o14"), ("0x1F", "0x1F"), ("1_000", "1_000"),
        ("1.5", 1.5), (".5", 0.5), ("2.", 2.0), ("1e3", 1000.0), ("1.5E-3", 0.0015),
        ("01.5", "01.5"), ("1e", "1e"), (".", "."), ("1.2.3", "1.2.3"), ("\u0661", "\u0661"),
        (".nan", ".nan"), (".inf", ".inf"), ("-.Inf", "-.Inf"), ("1e999", "1e999"),
        ("12:30", "12:30"), ("12:30:45", "12:30:45"), ("2001-01-01", "2001-01-01"),
        ("200 ms", "200 ms"), ("2 GiB", "2 GiB"), ("/data/*.tif", "/data/*.tif"),
        ("'12'", "12"), ('"true"', "true"), ("''", ""), ("=", "="),
        ("[2, 2]", [2, 2]), ("{a: no}", {"a": "no"}),
    ],
)  # fmt: skip
def test_a_value_means_what_it_looks_like(written: str, meant: Any) -> None:
    found = parse_yaml(f"key: {written}", "x.yaml")["key"]
    assert found == meant
    assert type(found) is type(meant)


def test_a_number_too_long_for_python_stays_text() -> None:
    assert parse_yaml(f"a: {'9' * 5000}", "x.yaml") == {"a": "9" * 5000}


def test_keys_are_text_as_written() -> None:
    assert parse_yaml("1: a\nno: b\n~: c\n1.50: d", "x.yaml") == {
        "1": "a", "no": "b", "~": "c", "1.50": "d",
    }  # fmt: skip


def test_blocks_of_text_keep_their_lines() -> None:
    assert parse_yaml("a: |\n  one\n  two\n", "x.yaml") == {"a": "one\ntwo\n"}


@given(st.dictionaries(texts, plain_values, max_size=5))
@example({"a": 1e16, "b": 1e-7, "c": -0.0, "d": "1e3", "e": 10**40})
def test_what_is_written_is_read_back(values: dict[str, Any]) -> None:
    assert repr(parse_yaml(to_yaml(values), "x.yaml")) == repr(values)


@given(st.text(alphabet=" \n\t-?:,[]{}#&*!|>'\"%@`\\ab01.~<=", max_size=60))
def test_any_text_is_read_or_refused_as_a_bad_parameter(text: str) -> None:
    try:
        parse_yaml(text, "x.yaml")
    except BadParameter as error:
        assert str(error).startswith("x.yaml")  # noqa: PT017


@given(st.text(max_size=60))
def test_any_characters_are_read_or_refused_as_a_bad_parameter(text: str) -> None:
    for written in (text, f"a: {text}", f'a: "{text}"', f"a: [{text}]"):
        try:
            parse_yaml(written, "x.yaml")
        except BadParameter:
            continue


@given(st.binary(max_size=60))
def test_any_file_is_read_or_refused_as_a_bad_parameter(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content)
    try:
        read_yaml(path)
    except BadParameter as error:
        assert str(error).startswith(str(path))  # noqa: PT017


def test_a_key_given_twice_names_both_lines() -> None:
    message = refused("a: 1\nb: 2\n\na: 3\n")
    assert message == 'x.yaml, line 4, column 1: key "a" stands here and in line 1; keep one'


def test_a_key_given_twice_is_found_at_any_depth_and_in_any_spelling() -> None:
    assert 'key "1"' in refused("a:\n  - b: {1: 2, '1': 3}\n")


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("a: &x 1", "line 1, column 4", "anchor `&x` is not allowed"),
        ("a: *x", "line 1, column 4", "alias `*x` is not allowed"),
        ("&x a: 1", "line 1, column 1", "anchor"),
        ("a:\n  <<: {b: 1}", "line 2, column 3", "`<<` merges a mapping"),
        ("a: !!python/name:os.system x", "line 1, column 4", "tag `!!python/name:os.system`"),
        ("a: !bin [2, 2]", "line 1, column 4", "tag `!bin`"),
        ("! a: 1", "line 1, column 1", "tag `!`"),
        ("? [a]\n: 1", "line 1, column 3", "cannot be a key"),
        ("? \n: 1", "line 1, column 2", "a key is missing"),
        ("a: 1\n---\nb: 2", "line 2, column 1", "a second document begins here"),
        ("a:\n\tb: 1", "line 2, column 1", "use spaces, not tabs"),
        ("a: b: c", "line 1, column 5", "must stand in quotes"),
        ("a: {name}", "line 1, column 9", '`name` has no value; if text was meant, put it in quot'),
        ("a: {do:flip}", "line 1, column 12", "a blank after the colon: `do: flip`"),
        ("a: {low: 12,5}", "line 1, column 14", "a number has a point, not a comma"),
        ("a: [1, 2]_raw", "line 1, column 10", "must stand in quotes"),
        ("a: 'b", "line 1, column 6", "while scanning a quoted scalar (line 1)"),
        ("a: [1, 2", "line 1, column 9", "expected ',' or ']'"),
        ('a: "\\UFFFFFFFF"', "line 1, column 7", "out of range"),
        ("%YAML 2.0\n---\na: 1", "line 1, column 1", "version"),
        ('a: "\\0"', "line 1, column 4", "U+0000"),
        ('a: "\\ud800"', "line 1, column 4", "U+D800"),
        ("a: b\n\0", "line 2, column 1", "U+0000 cannot stand in a YAML file"),
        ("a: \x07", "line 1, column 4", "U+0007 cannot stand in a YAML file"),
    ],
)  # fmt: skip
def test_what_is_not_taken_is_refused_with_its_place(text: str, place: str, words: str) -> None:
    message = refused(text)
    assert message.startswith(f"x.yaml, {place}: ")
    assert words in message


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n"])
def test_an_empty_text_is_refused(text: str) -> None:
    assert refused(text) == "x.yaml: is empty"


@pytest.mark.parametrize(
    ("text", "found"), [("---", "nothing"), ("- a", "a list"), ("just text", "a value")]
)
def test_what_is_no_mapping_is_refused(text: str, found: str) -> None:
    assert refused(text) == f"x.yaml: should hold `key: value` lines; it holds {found}"


def nested(depth: int) -> str:
    """A mapping with lists in it, `depth` deep in all."""
    return "a: " + "[" * (depth - 1) + "]" * (depth - 1)


def test_nesting_is_taken_to_its_limit_and_not_beyond() -> None:
    assert parse_yaml(nested(MAX_DEPTH), "x.yaml")
    assert "nested more than 32 deep" in refused(nested(MAX_DEPTH + 1))


def test_values_are_taken_to_their_limit_and_not_beyond() -> None:
    items = MAX_VALUES - 3  # the mapping, the key, the list
    assert len(parse_yaml(f"a: [{'1,' * items}]", "x.yaml")["a"]) == items
    assert f"more than {MAX_VALUES} values" in refused(f"a: [{'1,' * (items + 1)}]")


def test_bytes_are_taken_to_their_limit_and_not_beyond() -> None:
    text = "a: " + "µ" * ((MAX_BYTES - 3) // 2)
    assert parse_yaml(text, "x.yaml")
    assert "256 KiB is the most" in refused(text + "µ")


def alias_bomb(link: str) -> str:
    lines = [f"a0: &a0 {{x: {'y' * 9}}}"]
    for level in range(1, 10):
        nine = ", ".join([f"*a{level - 1}"] * 9)
        lines.append(f"a{level}: &a{level} {link % nine}")
    return "\n".join(lines)


BOMBS = {
    "brackets": "[" * 200_000,
    "braces": "{" * 200_000,
    "brackets with keys": "{a: " * 50_000,
    "brackets on lines": "[\n" * 100_000,
    "brackets after a key": "a: " + "[" * 200_000,
    "dashes": "- " * 100_000,
    "question marks": "? " * 100_000,
    "indents": "".join(" " * depth + "a:\n" for depth in range(700)),
    "aliases": alias_bomb("[%s]"),
    "merge keys": alias_bomb("{<<: [%s]}"),
    "self reference": "a: &a [*a]",
    "documents": "---\n" * 60_000,
    "large": "a: [" + "1," * 2_500_000,
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_a_bomb_is_refused_with_little_work_and_memory(bomb: str) -> None:
    lines = 0

    def count(frame: FrameType, event: str, argument: object) -> TraceFunction:
        nonlocal lines
        lines += event == "line"
        return count

    before = sys.gettrace()
    tracemalloc.start()
    sys.settrace(count)
    try:
        with pytest.raises(BadParameter):
            parse_yaml(bomb, "x.yaml")
    finally:
        sys.settrace(before)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert lines < 100_000  # far less than 0.1 s, however large the bomb
    assert peak < len(bomb) + 10e6


def test_a_byte_that_is_not_utf_8_is_named_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes("a: 1\nb: µ and ".encode() + "é".encode("latin1"))
    with pytest.raises(BadParameter, match=r"line 2, column 10: byte 0xe9 is not UTF-8; save"):
        read_yaml(path)


def test_a_mark_of_byte_order_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "windows.yaml"
    path.write_bytes("\ufeffa: 1\r\nb: 2\r\n".encode())
    assert read_yaml(path) == {"a": 1, "b": 2}


def test_a_missing_file_is_named_with_what_is_near(tmp_path: Path) -> None:
    (tmp_path / "first_light.yaml").touch()
    with pytest.raises(BadParameter, match=r'no such graph \(did you mean "first_light.yaml"\?'):
        read_yaml(tmp_path / "first_lihgt.yaml", "graph")
    with pytest.raises(BadParameter, match=r"no such file \(nor a folder .*/nowhere\)"):
        read_yaml(tmp_path / "nowhere" / "x.yaml")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadParameter, match="is not a file"):
        read_yaml(tmp_path)


def test_a_path_no_system_can_open_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadParameter, match="cannot be read: File name too long"):
        read_yaml(tmp_path / ("x" * 1000))


def test_a_large_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    with path.open("wb") as file:
        file.truncate(10**9)
    with pytest.raises(BadParameter, match=r"is 953.7 MiB long; 256 KiB is the most"):
        read_yaml(path)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("[2,2]", [2, 2]), ("{a: [1, 2]}", {"a": [1, 2]}), ("200 ms", "200 ms"), ("12", 12),
        ("1e-3", 0.001), ("true", True), ("no", "no"), ("010", "010"), ("/x/*.tif", "/x/*.tif"),
        ("*", "*"), ("*.tif", "*.tif"), ("&a", "&a"), ("!x", "!x"), ("a: b", "a: b"), ("#5", "#5"),
        ("{name}_raw", "{name}_raw"), ("{name}", "{name}"), ("[2,2", "[2,2"), ("'12'", "12"),
        ('"{name}"', "{name}"), ("", None), ("null", None), ("- a", "- a"), ("%", "%"), ("-", "-"),
    ],
)  # fmt: skip
def test_a_value_of_the_command_line_is_read_by_the_same_rules(written: str, meant: Any) -> None:
    found = plain_scalar(written)
    assert found == meant
    assert type(found) is type(meant)


@given(st.text(max_size=40))
def test_any_text_is_a_value_of_the_command_line(text: str) -> None:
    found = plain_scalar(text)
    assert not (isinstance(found, float) and not math.isfinite(found))
