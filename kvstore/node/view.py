"""What a node shows of itself to its doors: HTTP, the command line, the embedded store.

The doors are written against this Protocol and know nothing else of the node. All of it is cheap
and never waits, `submit` excepted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

if TYPE_CHECKING:
    from cluster.ballot import NodeId
    from cluster.topology import Topology
    from kvstore.node.operator_view import OperatorView
    from kvstore.node.watching import Watching
    from kvstore.wire.protocol import Request, Response, Routes


class MemberStatus(msgspec.Struct, frozen=True):
    """A node of the cluster as the asked node sees it; ``since_ms`` is the time in this state."""

    id: int
    name: str
    address: str
    http_address: str
    zone: str
    state: str
    since_ms: int
    slots_led: int
    slots_held: int
    leaving: bool = False
    away: bool = False
    """Dead for long: others hold its slots until it is back."""


class SlotStatus(msgspec.Struct, frozen=True):
    """Where a slot lives; ``role`` and the figures behind it are those of the asked node."""

    slot: int
    members: list[str]
    learners: list[str]
    primary: str | None
    role: str
    ballot: str
    sequence: int
    committed: int | None


class NodeStatus(msgspec.Struct, frozen=True):
    """One node's figures; bytes and milliseconds, totals since its start."""

    id: int
    name: str
    version: str
    ready: bool
    not_ready_reason: str
    uptime_ms: int
    keys_estimate: int
    disk_bytes: int
    memory_bytes: int
    slots_led: int
    slots_held: int
    requests_in_flight: int
    reads_total: int
    writes_total: int
    syncs_total: int
    sync_ms_mean: float
    problems: list[str]
    disk_free_bytes: int = 0
    scrub_bytes_total: int = 0
    """Compared with the other members' copies (rule 18)."""
    scrub_passes_total: int = 0
    damage_found_total: int = 0
    damaged_copies: int = 0
    repaired_total: int = 0
    slots_moving: int = 0
    """Slots that it leads and that are not where the topology wants them."""
    copied_bytes_total: int = 0
    """Sent to nodes that are new among a slot's members (rule 13)."""


class NodeView(Protocol):
    """A running node."""

    @property
    def id(self) -> NodeId:
        """Its member id."""

    @property
    def name(self) -> str:
        """Its human name, unique in the cluster."""

    @property
    def topology(self) -> Topology | None:
        """The newest topology that it knows; None before the cluster is founded."""

    @property
    def operator(self) -> OperatorView:
        """What operators ask and change."""

    async def submit(self, request: Request) -> Response:
        """Carry out operations on any keys; what goes wrong is in the results, never raised."""

    @property
    def watching(self) -> Watching:
        """Its room of the watches."""

    def routes(self, id: int = 0) -> Routes:  # noqa: A002 - the frame's field
        """The routing table as a client needs it."""

    def members(self) -> list[MemberStatus]:
        """Every node of the topology with its state by gossip."""

    def slot_status(self, slot: int) -> SlotStatus:
        """Where a slot lives."""

    def not_ready_reason(self) -> str:
        """Why this node does not serve yet; empty when it does. Asked often: costs little."""

    def status(self) -> NodeStatus:
        """This node's own figures."""
