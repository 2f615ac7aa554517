"""How the frames of a run are shared out: how many go to one node together, and how many may wait.

All of it is settled at prepare, from the plan and the ring.
"""

from __future__ import annotations

from lima2py.acquisition import Acquisition
from lima2py.errors import BadParameter
from lima2py.graph.plan import Plan
from lima2py.node.orders import AcquisitionOrder
from lima2py.ring import Ring, RingShape
from lima2py.storage.masters.virtual import MAX_MAPPINGS
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


def credits_for(slots: int, nodes: int, group: int) -> int:
    """How many blocks of an acquisition node may be in flight to one node.

    All blocks of a group have to wait for its last, and a detector may give frames one by one. A
    node may have part of the newest group, of one that waits for a lost node's blocks to be tried,
    and of these: so there is room for three groups, as far as the ring goes.

    Args:
        slots: of the ring.
        nodes: that process.
        group: consecutive frames that go to one node.
    """
    of_groups = 3 * group if group > 1 else 0
    return max(2, min(MAX_CREDITS, slots // nodes), min(of_groups, slots - 1))


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
    room = ring.room * order.size
    if not 0 < asked.nb_frames <= room:
        many = f"{asked.nb_frames} frames" if asked.nb_frames else "endless frames"
        raise BadParameter(
            f"processing {order.processing}: {many} would wait in the ring, which is sure to hold"
            f" {room} now; ask for fewer, wait for other runs, or make the ring larger"
            f" (memory: {{ring: ...}}, now {as_size(ring.arena.nbytes)})"
        )
