"""Runs that another session has prepared: what the nodes keep for the next one, and how it is read.

Only of a system that is up. The nodes do not look into what they keep.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import NamedTuple

import msgspec

from lima2py.errors import BadCommand, NodeError
from lima2py.node.life import ACTIVE, State
from lima2py.node.orders import AcquisitionReady
from lima2py.session.call import Call, Wanted
from lima2py.session.launch import Handle


class Recalled(NamedTuple):
    """A run of a system that is up, which another session has prepared.

    Attributes:
        call: what its nodes needed to know.
        wanted: what was asked for.
        ready: what the acquisition node that keeps the books answered.
        state: where it is.
        members: the processing nodes that take part, by rank.
        lost: why others do so no more.
    """

    call: Call
    wanted: Wanted
    ready: AcquisitionReady
    state: State
    members: dict[int, Handle]
    lost: list[str]


def remember(call: Call, acquisition: Sequence[Handle]) -> None:
    """Let the nodes keep what the next session needs to know of a run."""
    notes = msgspec.to_builtins(call)
    for handle in acquisition:
        with suppress(NodeError, BadCommand):  # it is lost, or takes no part
            handle.look("remember", run=call.run, notes=notes)


def recall(
    acquisition: Sequence[Handle], processing: Sequence[Handle], known: Collection[str]
) -> list[Recalled]:
    """The runs that the nodes know, the oldest first, but for those whose ids are known.

    None if the node that keeps the books is lost, and these with it.
    """
    lead = acquisition[0]
    found = []
    with suppress(NodeError):
        for told in lead.look("runs"):
            state = State(told["state"])
            going = state is State.PREPARED or told["outcome"] or state in ACTIVE
            if going and told["run"] not in known:
                with suppress(BadCommand):  # it has just been forgotten
                    if notes := lead.look("recall", run=told["run"]):
                        call = msgspec.convert(notes, Call)
                        found.append(_recalled(call, state, lead, processing))
    return found


def _recalled(call: Call, state: State, lead: Handle, processing: Sequence[Handle]) -> Recalled:
    lost = lead.look("status", run=call.run)["lost"]
    handles = {handle.name: handle for handle in processing}
    # A node that came again has another rank, and is the same handle: only the newest is asked.
    newest = {name: rank for rank, name in sorted(call.members.items())}
    members = {
        rank: handles[name] for name, rank in newest.items() if rank not in lost and name in handles
    }
    wanted, ready = Wanted.load(call.wanted), call.readies[0]
    return Recalled(call, wanted, ready, state, members, list(lost.values()))
