"""The memory budget of each host, shared out among the nodes there when a run is prepared.

What processes take has been measured, and cannot be less. Of the rest, what is kept for who looks
has what it asks for as long as three quarters are left for rings, then less, down to a frame each;
then the rings have less, down to the slots without which nothing moves; then the run is refused.

A ring is cut before anybody knows what the graph takes. If then too little is left of it, the run
is prepared once more, with what was learned.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec

from lima2py.errors import LimaError
from lima2py.memory_settings import MemorySettings
from lima2py.node.holdings import Granted, Needs
from lima2py.session.launch import Handle
from lima2py.session.system import System
from lima2py.units import as_size

_OF_FRESH = 64 * 2**20
"""About what a process takes once it has prepared its first run, in bytes: libraries, caches."""
_OF_RUN = 16 * 2**20
"""What a run is taken to need in a node at least, in bytes, until it is known."""
_ENOUGH = 0.75
"""Of what a ring was cut for, so much must be left."""
_OF_SHELVES = 4
"""Shelves have at most one part in so many, unless rings do not need the others."""


class Budgets:
    """The budgets of all hosts of a system, for one run after the other.

    Attributes:
        granted: what the nodes were told to take at most, by name; on hosts with a budget.
        rings: how large the ring of each node may be, in bytes, as `begin` said.
    """

    def __init__(self) -> None:
        self.granted: dict[str, Granted] = {}
        self.rings: dict[str, int] = {}
        self._graph = ""
        self._learned: dict[str, int] = {}
        self._before: dict[str, int] = {}
        self._cut: dict[str, int] = {}

    def begin(
        self, system: System, nodes: Sequence[Handle], with_ring: Collection[str], graph: str
    ) -> dict[str, int]:
        """How large the ring of each node may be, as far as one can know before a run is prepared.

        Args:
            system: has the settings.
            nodes: all of them, those that acquire first.
            with_ring: the names of those that acquire, or hand on to another stage.
            graph: of the run, as text.

        Raises:
            LimaError: if a budget is too small.
        """
        self._settings = _settings(system, nodes)
        self._sources = {*with_ring}
        self.rings = rings = dict[str, int]()
        if not any(settings.budget for settings in self._settings.values()):
            return rings
        if graph != self._graph:
            self._graph, self._learned = graph, {}
        cut, self._cut = self._cut, {}
        for host, needs in self._by_host(self._ask(nodes)).items():
            budget = self._budget(needs)
            if budget is None:
                continue
            share_out(budget, needs)
            before = sum(need.process + need.shelf for need in needs.values())
            fresh = sum(need.fresh for need in needs.values())
            self._before[host] = 0 if fresh else before  # libraries that come are no lesson
            rest = budget - before - self._learned.get(host, _OF_RUN * len(needs))
            free = [name for name in self._sources & needs.keys() if not self._settings[name].ring]
            rest -= sum(self._settings[name].ring or 0 for name in self._sources & needs.keys())
            rest = max(rest // 4, rest - _OF_FRESH * fresh)
            for name in free:
                least = needs[name].least_ring + _OF_RUN
                rings[name] = cut.get(name) or max(least, rest // len(free))
        return rings

    def settle(self, nodes: Sequence[Handle], last: bool = False) -> tuple[bool, str]:
        """Share out the budgets, now that a run is prepared, and tell the nodes.

        Args:
            nodes: all of them, those that acquire first.
            last: whether it will not be prepared once more.

        Returns:
            Whether the rings have about what they were cut for, if not, it is to be prepared once
            more; and a table of it, for a person.

        Raises:
            LimaError: if a budget is too small.
        """
        needs = self._ask(nodes)
        budgets = {}
        self.granted = {}
        for host, here in self._by_host(needs).items():
            budget = self._budget(here)
            if budget is None:
                continue
            budgets[host] = budget
            granted = share_out(budget, here)
            self.granted.update(granted)
            taken = sum(part.process + (part.shelf or 0) for part in granted.values())
            if self._before[host]:
                self._learned[host] = taken - self._before[host]
        fits = last or all(
            (part.ring or 0) >= _ENOUGH * needs[name].ring for name, part in self.granted.items()
        )
        if fits:
            for handle in nodes:
                self.tell(handle)
        else:
            self._cut = {name: part.ring for name, part in self.granted.items() if part.ring}
        return fits, table(budgets, needs, self.granted)

    def tell(self, handle: Handle) -> None:
        """Tell a node what it may take."""
        if handle.name in self.granted:
            handle.call("grant", told=msgspec.to_builtins(self.granted[handle.name]))

    def _ask(self, nodes: Sequence[Handle]) -> dict[str, Needs]:
        with ThreadPoolExecutor(len(nodes)) as pool:
            told = list(pool.map(lambda handle: handle.call("needs"), nodes))
        found = {}
        for handle, plain in zip(nodes, told, strict=True):
            need = msgspec.convert(plain, Needs)
            fixed = self._settings[handle.name].ring
            if fixed and handle.name in self._sources:
                need = msgspec.structs.replace(need, ring=fixed, least_ring=fixed)
            found[handle.name] = need
        return found

    def _by_host(self, needs: Mapping[str, Needs]) -> dict[str, dict[str, Needs]]:
        hosts: dict[str, dict[str, Needs]] = {}
        for name, need in needs.items():
            hosts.setdefault(need.host, {})[name] = need
        return hosts

    def _budget(self, needs: Mapping[str, Needs]) -> int | None:
        said = [self._settings[name].budget for name in needs]
        return min((budget for budget in said if budget), default=None)


def _settings(system: System, nodes: Sequence[Handle]) -> dict[str, MemorySettings]:
    places = (*system.acquisition, *system.processing) or (None,)
    return {
        handle.name: MemorySettings.load(system.memory_of(place), "memory")
        for handle, place in zip(nodes, places, strict=True)
    }


def share_out(budget: int, needs: Mapping[str, Needs]) -> dict[str, Granted]:
    """What each node of a host may take, so that all together do not take more than the budget.

    Args:
        budget: of the host, in bytes.
        needs: of all nodes there, by name.

    Raises:
        LimaError: if the budget is too small, with what takes how much.
    """
    told = list(needs.values())
    least = sum(need.process + need.least_shelf + need.least_ring for need in told)
    if least > budget:
        raise LimaError(
            f"the memory budget of {as_size(budget)} is too small: at least {as_size(least)} are"
            f" needed, {'; '.join(_least(*item) for item in needs.items())}. Wait for runs that are"
            " still processed, or cancel one; use fewer nodes or smaller frames; or make it larger"
            " (memory: {budget: ...} in the system file)"
        )
    rest = budget - sum(need.process for need in told)
    room = max(rest // _OF_SHELVES, rest - sum(need.ring for need in told))
    room = min(room, rest - sum(need.least_ring for need in told))
    shelves = _divide(room, {name: (need.least_shelf, need.shelf) for name, need in needs.items()})
    left = rest - sum(shelves.values())
    rings = _divide(left, {name: (need.least_ring, left if need.ring > need.least_ring else 0)
                           for name, need in needs.items()})  # fmt: skip
    return {name: Granted(need.process, shelves[name], rings[name] if need.ring else None)
            for name, need in needs.items()}  # fmt: skip


def _divide(total: int, wanted: Mapping[str, tuple[int, int]]) -> dict[str, int]:
    """Parts of a number of bytes, for each at least, and if possible at most, so much.

    What is too little for all is shared out as it was asked for.
    """
    parts = {name: least for name, (least, _) in wanted.items()}
    more = {name: max(0, most - least) for name, (least, most) in wanted.items()}
    left, asked = max(0, total - sum(parts.values())), sum(more.values())
    for name, extra in more.items():
        parts[name] += extra if asked <= left else extra * left // asked
    return parts


def table(
    budget: Mapping[str, int], needs: Mapping[str, Needs], granted: Mapping[str, Granted]
) -> str:
    """What nodes ask for and may take, for a person.

    Args:
        budget: of hosts that have one, in bytes.
        needs: of all nodes, by name.
        granted: to those on hosts with a budget.
    """
    cells = [("memory", "process", "kept for taps", "ring")]
    for name, need in needs.items():
        may = granted.get(name)
        cells.append(
            (
                name,
                as_size(need.process),
                _part(need.shelf, may.shelf if may else None),
                _part(need.ring, may.ring if may else None),
            )
        )
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
    lines += [f"memory budget of {as_size(size)} on a host" for size in set(budget.values())]
    return "\n".join(lines)


def _part(asked: int, granted: int | None) -> str:
    if granted is None or granted == asked:
        return as_size(asked) if asked else "-"
    return f"{as_size(granted)} ({as_size(asked)} asked)"


def _least(name: str, need: Needs) -> str:
    parts = {"process": need.process, "taps": need.least_shelf, "ring": need.least_ring}
    return f"{name}: " + ", ".join(f"{what} {as_size(n)}" for what, n in parts.items() if n)
