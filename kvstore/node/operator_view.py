"""What a node shows to whoever runs the cluster: its topology, its moves, whom its slots need.

All of it is the asked node's own view. A slot's members are told by its primary alone, so the whole
cluster is what all nodes say together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

from cluster.limits import NODE_WEIGHT_DEFAULT
from cluster.membership import Leave, Pace, Patience, Remove, Replicate, Rezone, Stay, Weigh

if TYPE_CHECKING:
    from cluster.membership import TopologyChange

OperatorChange = Leave | Stay | Remove | Weigh | Rezone | Replicate | Pace | Patience
"""What a person may ask for; to join and to move is the node's own business."""


class Newcomer(msgspec.Struct, frozen=True, tag="join", forbid_unknown_fields=True):
    """A node that might join: what would move then can be asked before there is one."""

    name: str
    zone: str = ""
    weight: float = NODE_WEIGHT_DEFAULT


PlannedChange = OperatorChange | Newcomer


class TopologyNode(msgspec.Struct, frozen=True):
    """A member as the topology lists it; ``joined`` is an epoch."""

    id: int
    name: str
    address: str
    http_address: str
    zone: str
    weight: float
    state: str
    joined: int


class TopologyStatus(msgspec.Struct, frozen=True):
    """The newest topology that the node knows; ``voters`` decide on the next one (rule 17)."""

    cluster: str
    cluster_id: str
    epoch: int
    slot_count: int
    replicas: int
    paused: bool
    copy_bytes_per_s: int
    away_after_s: int
    voters: list[str]
    nodes: list[TopologyNode]


class MoveStatus(msgspec.Struct, frozen=True):
    """A slot on its way, as its primary sees it; ``stage`` is waiting, copying or joint."""

    slot: int
    stage: str
    members: list[str]
    learners: list[str]
    wanted: list[str]
    urgent: bool
    copied_bytes: int
    copied_records: int


class MovesStatus(msgspec.Struct, frozen=True):
    """The slots that the node leads and that are not where the topology wants them.

    ``moves`` are some of them, those on their way first. ``copies`` still have to be made, for
    ``copies_bytes`` by the mean size of the node's slots. ``copied_bytes_total`` and ``done_total``
    count since its start. ``placed``: it has seen what the newest topology moves, which takes a few
    seconds after a change.
    """

    node: str
    epoch: int
    paused: bool
    copy_bytes_per_s: int
    slots: int
    copies: int
    copies_bytes: int
    copied_bytes_total: int
    done_total: int
    moves: list[MoveStatus]
    placed: bool = True


class ConfigStatus(msgspec.Struct, frozen=True):
    """Members that so many slots have: one set, or two while they change, and learners.

    By id: a name goes to another member when a lost disk is replaced.
    """

    sets: list[list[int]]
    learners: list[int]
    slots: int
    wanted: bool


class LossStatus(msgspec.Struct, frozen=True):
    """Nodes or zones, one or two: so many slots stop if all of these fail and not if fewer do."""

    kind: str
    failed: list[str]
    slots: int


class QuorumsStatus(msgspec.Struct, frozen=True):
    """Whom the slots need that the node leads, the system slot among them.

    ``unled`` slots have no primary that the node knows, ``unled_configs`` are the members of those
    that it holds itself. ``losses`` are the failures that would stop some of the slots that it
    leads; those of all nodes add up.
    """

    node: str
    epoch: int
    led: int
    total: int
    configs: list[ConfigStatus]
    unled: int
    unled_configs: list[ConfigStatus]
    losses: list[LossStatus]


class ShareStatus(msgspec.Struct, frozen=True):
    """A node's part of a plan, in slots."""

    node: str
    held_before: int
    held_after: int
    led_before: int
    led_after: int
    receives: int
    sends: int


class PlanStatus(msgspec.Struct, frozen=True):
    """What a change would move; ``seconds`` is by the pace of the moves that the node has seen."""

    reason: str
    slots: int
    copies: int
    copies_bytes: int
    seconds: float
    nodes: list[ShareStatus]


class OperatorView(Protocol):
    """The part of a node that operators meet."""

    def topology(self) -> TopologyStatus | None:
        """The newest topology; None before the cluster is founded."""

    async def moves(self) -> MovesStatus:
        """What is on its way."""

    def quorums(self) -> QuorumsStatus:
        """Whom the slots need."""

    async def change(self, change: TopologyChange, timeout_ms: int) -> TopologyStatus:
        """Change the topology; returns the one in which it is true.

        Raises:
            TopologyError, Unavailable, OutcomeUnknown: see `kvstore.node.changes.Changes.make`.
        """

    async def plan(self, change: PlannedChange) -> PlanStatus:
        """What the change would move; changes nothing.

        Raises:
            TopologyError: it would be refused.
        """
