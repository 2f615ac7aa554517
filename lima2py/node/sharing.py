"""How the frames of a run are shared out: how many go to one node together, and how many may wait.

All of it is settled at prepare, from the plan and the ring.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from lima2py.acquisition import Acquisition
from lima2py.detector import DetectorInfo
from lima2py.errors import BadParameter
from lima2py.graph.plan import Plan
from lima2py.node.orders import AcquisitionOrder, AcquisitionReady
from lima2py.policies import Policies
from lima2py.ring import Ring, RingShape
from lima2py.storage.masters.virtual import MAX_MAPPINGS
from lima2py.transport.join import MOST_MODULES, Piece
from lima2py.units import as_size

MAX_CREDITS = 64


def frames_in_turn(plan: Plan, shape: RingShape, nb_frames: int, shares: int) -> int:
    """How many consecutive frames one node gets: a block at least.

    Sparse frames of several nodes are shown in order by a list of stretches, which must stay short:
    there nodes get more at a time, as far as the ring holds that twice for every node.

    Args:
        plan: of the graph.
        shape: of the ring.
        nb_frames: frames asked for; 0 if endless.
        shares: among how many nodes the frames are shared out.
    """
    group = max(plan.group, shape.frames // plan.group * plan.group)
    if shares > 1 and any(plan.specs[sink].kind == "sparse" for sink in plan.sinks):
        wanted = -(-nb_frames // MAX_MAPPINGS)
        room = shape.slots * shape.frames // (2 * shares)
        group = max(group, min(wanted, room) // group * group)
    return group


def credits_for(slots: int, nodes: int, group: int, most: int = MAX_CREDITS) -> int:
    """How many blocks of an acquisition node may be in flight to one node.

    All blocks of a group have to wait for its last, and a detector may give frames one by one. A
    node may have part of the newest group, of one that waits for a lost node's blocks to be tried,
    and of these: so there is room for three groups, as far as the ring goes.

    Args:
        slots: of the ring.
        nodes: that process.
        group: consecutive frames that go to one node.
        most: for which the node has room, where groups do not need more.
    """
    of_groups = 3 * group if group > 1 else 0
    return max(2, min(MAX_CREDITS, most, slots // nodes), min(of_groups, slots - 1))


def room_for_blocks(ready: AcquisitionReady, lead: AcquisitionReady) -> int:
    """How many blocks of the main detector an acquisition node has room for in its ring.

    Args:
        ready: what it answered; of another detector, its frames for so many blocks.
        lead: what the first one of the main detector answered.
    """
    if not ready.other:
        return ready.ring.slots
    events = ready.companion.events.event(ready.ring.frames * (ready.ring.slots - 1))
    return max(2, events // lead.ring.frames)


def check_modules(order: AcquisitionOrder, info: DetectorInfo, policies: Policies) -> None:
    """Refuse modules that are not those of the detector, each once.

    Raises:
        BadParameter: naming them.
    """
    taken = Counter(name for names in order.modules for name in names)
    known = [module.name for module in info.modules]
    problems = [f"{name} belongs to two acquisition nodes" for name in taken if taken[name] > 1]
    problems += [f"{name} belongs to no acquisition node" for name in known if name not in taken]
    if problems:
        raise BadParameter(
            f"modules: {'; '.join(problems)}; each module of detector {info.name} needs one node"
        )
    if policies.missing_modules == "keep" and len(known) > MOST_MODULES:
        raise BadParameter(
            f"missing_modules keep: detector {info.name} has {len(known)} modules, and frames can"
            f" say of {MOST_MODULES} which are missing; use mark or stop"
        )


def pieces_of(sources: Sequence[AcquisitionReady]) -> dict[int, Piece]:
    """What each acquisition node, by rank, delivers of a frame; empty if all have whole ones."""
    lead = sources[0]
    if not lead.modules:
        return {}
    info = DetectorInfo.load(lead.detector["info"], "detector")
    number = {module.name: place for place, module in enumerate(info.modules)}
    return {
        source.rank: Piece(
            source.name,
            tuple(source.modules),
            tuple(info.boxes(source.modules)),
            sum(1 << number[name] % MOST_MODULES for name in source.modules),
        )
        for source in sources
    }


def check_room(order: AcquisitionOrder, asked: Acquisition, ring: Ring) -> None:
    """Refuse to put processing off where the ring may not hold all frames until then.

    Raises:
        BadParameter: with how many it holds, and what to do.
    """
    if order.processing == "at_once":
        return
    if not order.nodes:
        raise BadParameter(
            f"processing {order.processing}: in one process every frame is processed at once; ask"
            " for a processing node, or leave it out"
        )
    room = ring.room * order.share.size
    if not 0 < asked.nb_frames <= room:
        many = f"{asked.nb_frames} frames" if asked.nb_frames else "endless frames"
        raise BadParameter(
            f"processing {order.processing}: {many} would wait in the ring, which is sure to hold"
            f" {room} now; ask for fewer, wait for other runs, or make the ring larger"
            f" (memory: {{ring: ...}}, now {as_size(ring.arena.limit)})"
        )
