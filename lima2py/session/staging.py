"""Staging: which processing nodes take part in a run, stage by stage, and which tasks they run."""

from __future__ import annotations

import msgspec

from lima2py.graph.definition import GraphDefinition
from lima2py.graph.stages import assign
from lima2py.node.orders import Feeder, ProcessingReady
from lima2py.session.system import System


class Staging(msgspec.Struct):
    """The stages of a run.

    The first stage of the system takes part in every run, of the others those that have tasks.

    Attributes:
        tasks: the stage of every task, by its place among those that take part.
        names: of these stages.
        nodes: the names of the nodes of each.
        readies: what these nodes answered, by rank; of one that came again only the last.
    """

    tasks: dict[str, int]
    names: list[str]
    nodes: list[list[str]]
    readies: dict[int, ProcessingReady] = {}

    @classmethod
    def of(cls, graph: GraphDefinition, system: System) -> Staging:
        """The stages for a graph.

        Raises:
            BadGraph: if a task needs what no stage has.
        """
        chain = system.chain
        found = assign(graph, chain)
        used = sorted({0, *found.values()})
        tasks = {name: used.index(place) for name, place in found.items()}
        names = [chain[place].name for place in used]
        nodes = [list(chain[place].nodes) for place in used] if system.processing else [[]]
        return cls(tasks, names, nodes)

    @property
    def several(self) -> bool:
        """Whether there is more than one."""
        return len(self.nodes) > 1

    @property
    def handing_on(self) -> list[str]:
        """The nodes that hand products on to others."""
        return [name for nodes in self.nodes[:-1] for name in nodes]

    def stage_of(self, node: str) -> int:
        """The stage of a node that takes part, by its place; -1 if it does not."""
        return next((place for place, nodes in enumerate(self.nodes) if node in nodes), -1)

    def of_stage(self, stage: int) -> dict[int, ProcessingReady]:
        """What the nodes of a stage answered, by rank."""
        return {
            rank: ready
            for rank, ready in self.readies.items()
            if self.stage_of(ready.name) == stage
        }

    def feeders(self, stage: int) -> list[Feeder]:
        """The nodes of the stage before one; none of the first."""
        found = self.of_stage(stage - 1).values() if stage else ()
        return [ready.feeder for ready in found if ready.feeder is not None]

    def behind(self, stage: int) -> int:
        """How many nodes the stage behind one has."""
        return len(self.nodes[stage + 1]) if stage + 1 < len(self.nodes) else 0

    def keep(self, ready: ProcessingReady) -> None:
        """A node has answered, which may be one that comes again."""
        before = [rank for rank, known in self.readies.items() if known.name == ready.name]
        for rank in before:
            del self.readies[rank]
        self.readies[ready.rank] = ready

    @property
    def where(self) -> dict[str, list[str]]:
        """By task, the nodes that run it."""
        return {name: self.nodes[stage] for name, stage in self.tasks.items()}

    @property
    def table(self) -> str:
        """For a person: what runs where, if that is not everywhere."""
        lines = []
        for place, (name, nodes) in enumerate(zip(self.names, self.nodes, strict=True)):
            tasks = [task for task, stage in self.tasks.items() if stage == place]
            what = ", ".join(tasks) or "nothing but handing frames on"
            lines.append(f"stage {name} ({', '.join(nodes)}): {what}")
        return "\n".join(lines) if self.several else ""
