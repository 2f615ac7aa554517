"""What a session asks of its nodes for a run: enough that another session can take it up later."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from lima2py.acquisition import Acquisition
from lima2py.graph.definition import GraphDefinition
from lima2py.metadata import Metadata
from lima2py.node.orders import AcquisitionReady, GraphText, read_graph
from lima2py.policies import Policies
from lima2py.session.staging import Staging


class Wanted(NamedTuple):
    """A run that is asked for.

    Attributes:
        run: its id.
        name: what the user calls it.
        graph: what is to be done.
        output: the folder for the files.
        asked: what the detector shall do.
        metadata: what the user says of the experiment.
        policies: what to do when something goes wrong.
        processing: when frames are processed: `at_once`, `when_acquired`, `when_told`.
    """

    run: str
    name: str
    graph: GraphDefinition
    output: str
    asked: Acquisition
    metadata: Metadata
    policies: Policies
    processing: str

    def plain(self) -> dict[str, Any]:
        """As msgpack can say it."""
        return {
            **self._asdict(),
            "graph": msgspec.to_builtins(text_of(self.graph)),
            "asked": self.asked.model_dump(mode="json", by_alias=True, exclude_unset=True),
            "metadata": self.metadata.plain(),
            "policies": self.policies.plain(),
        }

    @classmethod
    def load(cls, plain: dict[str, Any]) -> Wanted:
        """From what `plain` gave."""
        return cls(
            **{
                **plain,
                "graph": read_graph(msgspec.convert(plain["graph"], GraphText)),
                "asked": Acquisition.load(plain["asked"], "acquisition"),
                "metadata": Metadata.load(plain["metadata"], "metadata"),
                "policies": Policies.load(plain["policies"], "policies"),
            }
        )


@dataclass
class Call:
    """What nodes need to know to take part in a run.

    Attributes:
        ranks: how many processing nodes have had a part in it.
        members: the processing nodes that have, by rank.
        wanted: what was asked for, for a session that comes later; empty if none will.
        staging: which of them runs what.
    """

    run: str
    name: str
    graph: GraphText
    readies: list[AcquisitionReady]
    ranks: int
    members: dict[int, str]
    wanted: dict[str, Any]
    staging: Staging


def text_of(graph: GraphDefinition) -> GraphText:
    """A graph as nodes are given it."""
    return GraphText(graph.text, graph.where, str(graph.base), graph.detectors)
