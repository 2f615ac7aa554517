"""Events come to every reader, in order and once, and nobody waits for ever."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from lima2py.errors import BadCommand
from lima2py.session.events import Event, Events, Kind
from lima2py.session.session import Session


def test_every_reader_gets_all_events_of_the_run_until_its_end() -> None:
    events = Events()
    events.note("before", Kind.ENDED, "another run")
    found: list[list[str]] = [[], []]

    def read(into: list[str]) -> None:
        into += [event.text for event in events.of_run("now", timeout=20)]

    readers = [threading.Thread(target=read, args=(into,)) for into in found]
    for number, reader in enumerate(readers):
        reader.start()
        events.note("now", Kind.RING_HIGH, f"event {number}", "acq0", 0.8)
    events.note("now", Kind.ENDED, "over")
    for reader in readers:
        reader.join(20)
    assert found == [["event 0", "event 1", "over"]] * 2


def test_old_events_give_way_and_the_serials_say_so() -> None:
    events = Events(most=3)
    for number in range(5):
        assert events.note("now", Kind.OVERRUN, str(number)) == number
    assert [event.serial for event in events.after()] == [2, 3, 4]
    assert [event.serial for event in events.after(3)] == [4]


def test_who_waits_in_vain_is_told_so() -> None:
    with pytest.raises(TimeoutError, match=r"no event within 0\.01 s"):
        next(Events().of_run("now", timeout=0.01))


def test_closing_lets_go_of_who_waits() -> None:
    events = Events()
    found: list[Event] = []
    reader = threading.Thread(target=lambda: found.extend(events.of_run("now")))
    reader.start()
    events.close()
    reader.join(20)
    assert not reader.is_alive()
    assert found == []


def test_the_node_of_an_event_is_named_once() -> None:
    events = Events()
    events.note("now", Kind.NODE_LOST, "node proc0 was killed", "proc0")
    events.note("now", Kind.RING_FULL, "the ring is full", "acq0")
    events.note("now", Kind.PAUSED, "paused")
    shown = ["node proc0 was killed", "acq0: the ring is full", "paused"]
    assert [str(event) for event in events.after()] == shown


def test_a_session_tells_the_events_of_its_last_run(tmp_path: Path) -> None:
    with Session.open("simulator", detector={"shape": [48, 64]}) as session:
        with pytest.raises(BadCommand, match="cannot tell its events while"):
            session.events()
        for name in ("first", "second"):
            session.prepare(
                graph="view_only", output=tmp_path, name=name, nb_frames=20, expo_time=1e-3
            )
            session.start()
            told = list(session.events(timeout=20))
            report = session.wait(20)
            assert [told[0].kind, told[-1].kind] == [Kind.STARTED, Kind.ENDED]
            assert f'"{name}"' in told[0].text
            assert told[-1].text == f'run "{name}": completed'
            assert {event.run for event in told} == {report.run}
            assert list(session.events()) == told
    assert list(session.events()) == told


def test_stop_is_an_event(tmp_path: Path) -> None:
    with Session.open("simulator", detector={"shape": [48, 64]}) as session:
        session.prepare(graph="view_only", output=tmp_path, nb_frames=0, expo_time=1e-3)
        session.start()
        next(session.tap("live", timeout=20))
        session.stop()
        session.wait(20)
        kinds = [event.kind for event in session.events()]
    assert kinds[-1] is Kind.ENDED
    assert set(kinds) <= {Kind.STARTED, Kind.STOPPING, Kind.ENDED}
