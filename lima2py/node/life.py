"""The life of a run: its states, and the one table of commands that lead from state to state.

                                          PAUSED ───────────┐
                                       pause ▲ │ resume    stop
                                             │ ▼            ▼
    IDLE ──prepare──► PREPARED ──start──► RUNNING ──stop──► STOPPING
      ▲                  │                   │                  │
      └──────reset───────┘                   └──────finish──────┴──► IDLE
                     any state ──fail──► FAULT ──reset──► IDLE

Nothing else sets a state. *How* a run ended, its `Outcome`, is kept apart from *where* it is. Work
that may be refused is done before a command is given here: then a refusal leaves the state as it
was. No command waits for the run's thread; the thread's last act is `finish` or `fail`.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from threading import RLock

from transitions import Machine, MachineError

from lima2py.errors import BadCommand


class State(Enum):
    """Where a run is."""

    IDLE = "idle"
    PREPARED = "prepared"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"
    FAULT = "fault"


class Outcome(Enum):
    """How a run ended."""

    COMPLETED = "completed"
    STOPPED = "stopped"
    ABORTED = "aborted"
    FAILED = "failed"


ACTIVE = (State.RUNNING, State.PAUSED, State.STOPPING)
"""The states of a run that goes on."""

TRANSITIONS: list[tuple[str, list[State], State]] = [
    # command    from                                               to
    ("prepare", [State.IDLE, State.PREPARED], State.PREPARED),
    ("start", [State.PREPARED], State.RUNNING),
    ("pause", [State.RUNNING], State.PAUSED),
    ("resume", [State.PAUSED], State.RUNNING),
    ("stop", [*ACTIVE], State.STOPPING),
    ("finish", [*ACTIVE], State.IDLE),
    ("fail", [*State], State.FAULT),
    ("reset", [State.IDLE, State.PREPARED, State.FAULT], State.IDLE),
]
"""Every command, the states it is allowed in, and the state it leads to."""


class _Place:
    """What the machine moves: it puts its own methods there, out of everybody's way."""

    state: State


class Life:
    """One life, moved by commands only; safe to use from several threads.

    Args:
        who: whose life, for the complaints: `acquisition node acq0`.
    """

    def __init__(self, who: str):
        self.who = who
        self._place = _Place()
        self._lock = RLock()  # `LockedMachine` would import asyncio and ssl at every node's start
        self._machine = Machine(
            model=self._place,
            states=State,
            initial=State.IDLE,
            transitions=[
                {"trigger": command, "source": sources, "dest": target}
                for command, sources, target in TRANSITIONS
            ],
            auto_transitions=False,
        )

    @property
    def state(self) -> State:
        """Where it is."""
        return self._place.state

    def do(self, command: str) -> None:
        """Obey a command.

        Raises:
            BadCommand: naming the state and what is possible in it.
        """
        try:
            with self._lock:
                self._machine.events[command].trigger(self._place)
        except MachineError:
            raise BadCommand(self.refusal(command)) from None

    def check(self, command: str) -> None:
        """Refuse a command that `do` would refuse, before work is done for it.

        Raises:
            BadCommand: naming the state and what is possible in it.
        """
        if command not in allowed(self.state):
            raise BadCommand(self.refusal(command))

    def refusal(self, command: str) -> str:
        """Why a command is not possible now."""
        can = ", ".join(allowed(self.state))
        return f"{self.who} cannot {command} while {self.state.value}; it can: {can}"


def allowed(state: State) -> list[str]:
    """The commands a state allows, but those that nobody gives: `finish` and `fail`."""
    own = ("finish", "fail")
    return [name for name, sources, _ in TRANSITIONS if state in sources and name not in own]


def aggregate(states: Iterable[State]) -> State:
    """The one state that stands for several: the worst, then the one that explains the others."""
    found = set(states)
    for state in (State.FAULT, State.STOPPING, State.PAUSED, State.RUNNING):
        if state in found:
            return state
    return State.PREPARED if found == {State.PREPARED} else State.IDLE


def worst(outcomes: Iterable[Outcome]) -> Outcome:
    """The one outcome that stands for several."""
    order = (Outcome.ABORTED, Outcome.FAILED, Outcome.STOPPED, Outcome.COMPLETED)
    return min(outcomes, key=order.index)


def diagram() -> str:
    """The table as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", "    [*] --> idle"]
    lines += [
        f"    {source.value} --> {target.value}: {command}"
        for command, sources, target in TRANSITIONS
        for source in sources
    ]
    return "\n".join(lines)
