"""One session at a time commands a system: who has the lease, until when, and who is refused."""

from __future__ import annotations

import time
from types import SimpleNamespace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lima2py.errors import BadCommand
from lima2py.node.lease import EXPIRES, Holder, Lease
from lima2py.node.standing import Process

ann = msgspec.to_builtins(Holder("ann@pc", Process.this()))
bob = msgspec.to_builtins(Holder("bob@pc", Process(1, 1, "another host")))
dead = msgspec.to_builtins(Holder("eve@pc", msgspec.structs.replace(Process.this(), began=1)))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    ours = SimpleNamespace(**{**vars(time), "monotonic": lambda: now[0]})
    monkeypatch.setattr("lima2py.node.lease.time", ours)
    return now


def test_the_second_is_told_who_has_it_and_what_to_do() -> None:
    lease = Lease()
    assert lease.ask(ann, 0, False) == 1
    with pytest.raises(BadCommand, match=r"ann@pc commands this system, since .* can look .* take"):
        lease.ask(bob, 0, False)
    assert lease.plain()["who"] == "ann@pc"


def test_who_takes_over_relieves_the_other(clock: list[float]) -> None:
    lease = Lease()
    first = lease.ask(ann, 0, False)
    second = lease.ask(bob, 0, True)
    with pytest.raises(BadCommand, match="bob@pc has taken over"):
        lease.renew(first, ann)
    lease.release(first)  # too late to let others in
    lease.renew(second, bob)
    assert lease.plain()["who"] == "bob@pc"


def test_a_lease_that_nobody_renews_is_free_and_one_that_is_renewed_is_not(
    clock: list[float],
) -> None:
    lease = Lease()
    first = lease.ask(ann, 0, False)
    for _ in range(3):
        clock[0] += EXPIRES - 0.1
        lease.renew(first, ann)
    clock[0] += EXPIRES - 0.1
    with pytest.raises(BadCommand):
        lease.ask(bob, 0, False)
    clock[0] += 0.2
    assert lease.plain() == {}
    lease.renew(first, ann)  # frozen, and back before anybody else came
    assert lease.plain()["who"] == "ann@pc"
    clock[0] += EXPIRES
    assert lease.ask(bob, 0, False) == first + 1


def test_a_writer_that_was_killed_on_the_same_host_holds_up_nobody() -> None:
    lease = Lease()
    lease.ask(dead, 0, False)
    assert lease.plain() == {}
    assert lease.ask(bob, 0, False) == 2  # who is elsewhere, is believed to live
    with pytest.raises(BadCommand, match="bob@pc commands"):
        lease.ask(ann, 0, False)


def test_a_node_that_was_started_again_goes_on_where_the_others_are() -> None:
    lease = Lease()
    assert lease.ask(bob, 7, False) == 8
    again = Lease()
    again.renew(8, bob)
    assert again.plain()["who"] == "bob@pc"
    with pytest.raises(BadCommand):
        again.ask(ann, 0, False)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.booleans(), st.integers(0, 5)), max_size=20))
@settings(max_examples=30)
def test_numbers_only_grow_so_that_the_newest_writer_has_the_highest(
    asked: list[tuple[str, bool, int]],
) -> None:
    lease, numbers = Lease(), [0]
    for who, take_over, above in asked:
        try:
            number = lease.ask({"a": ann, "b": bob}[who], above, take_over)
        except BadCommand:
            continue
        assert number > max(*numbers, above)
        numbers.append(number)
