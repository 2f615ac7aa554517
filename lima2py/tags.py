"""Tags: what a node has, and what tasks need of it.

    tags: {gpu: 2, memory: 64, host: fast, fpga: true}       # of a node, in the system file
    needs: {gpu: 1, host: fast}                              # of a task, in the graph

Of a number a node has to have at least as much; a word has to be the same; `true` says that a node
has something, or must have it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}\Z")


def _check(tag: object) -> object:
    word = isinstance(tag, str) and tag.strip()
    number = isinstance(tag, (int, float)) and not isinstance(tag, bool) and tag >= 0
    if not (tag is True or word or number):
        raise ValueError("should be a number from 0 on, a word, or true")
    return tag


def _check_names(tags: dict[str, Tag]) -> dict[str, Tag]:
    for name in tags:
        if not _NAME.match(name):
            raise ValueError(f'"{name}" should be a letter, then up to 63 letters, digits, _, -')
    return tags


Tag = Annotated[bool | float | str, BeforeValidator(_check)]
"""How much of it, which one, or `True`: that it is there."""
Tags = Annotated[dict[str, Tag], AfterValidator(_check_names)]
"""Tags by name."""


def lacking(needs: Mapping[str, Tag], tags: Mapping[str, Tag]) -> list[str]:
    """What a node lacks, in words: `gpu` (it has none), `memory 128` (it has 64).

    Args:
        needs: of a task.
        tags: of the node.
    """
    return [_said(name, need, tags.get(name)) for name, need in needs.items()
            if not _has(need, tags.get(name))]  # fmt: skip


def in_words(tags: Mapping[str, Tag]) -> str:
    """Tags for a person: `gpu 1, host fast`."""
    return ", ".join(name if tag is True else f"{name} {_plain(tag)}" for name, tag in tags.items())


def _has(need: Tag, tag: Tag | None) -> bool:
    if need is True:
        return tag is not None and tag != 0
    if tag is None or tag is True or isinstance(need, str) or isinstance(tag, str):
        return type(need) is type(tag) and need == tag
    return tag >= need


def _said(name: str, need: Tag, tag: Tag | None) -> str:
    has = "nothing of that name" if tag is None else in_words({name: tag})
    return f"{in_words({name: need})} (it has {has})"


def _plain(tag: Tag) -> str:
    return f"{tag:g}" if isinstance(tag, (int, float)) else tag
