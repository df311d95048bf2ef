"""Nodes that stay dead: after a while others take their slots, until they are back.

Gossip says who is dead within seconds, and a restart or a loose cable is over within minutes: so
copies are made only after `Topology.away_after_s`. The node is *away* then, a state of the topology
like any other: it stays a member and owns nothing. All that follows is a change of owners as any
other, by which nothing is ever lost. When the node is back it says so itself, and owns its share
again.

Each node keeps the time, and whoever leads the system slot decides, by compare-and-set: a decision
that was taken twice is one epoch. The time is that since which *this* node has known the member to
be both dead and active, so a node that has just come back is not sent away again by somebody whom
gossip has not told yet.

Nobody is sent away where that would do harm: out of a small cluster, whose other nodes hold all
slots already; when fewer nodes would be left than there are copies; or while half of the cluster
is out of sight, because then a net is cut rather than machines lost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cluster.topology import ACTIVE, LEAVING, Topology, TopologyError

if TYPE_CHECKING:
    from collections.abc import Collection

    from cluster.ballot import NodeId
    from cluster.topology import Node

NODES_MIN: Final = 4
"""Of three nodes each holds everything: there is nobody to take the slots of one."""


def check_spared(topology: Topology, node: Node) -> None:
    """Whether the cluster is complete without this active node.

    Raises:
        TopologyError: it is not.
    """
    members = sum(other.state != LEAVING for other in topology.nodes)
    left = sum(other.state == ACTIVE for other in topology.nodes) - 1
    if members < NODES_MIN or left < topology.replicas:
        raise TopologyError(
            f"node {node.name!r} is waited for: {left} others are active, for "
            f"{topology.replicas} copies of each key in a cluster of {members}"
        )


class Absences:
    """Since when each active member of a cluster is dead, as one node knows it."""

    def __init__(self) -> None:
        self._since_ms: dict[NodeId, int] = {}

    def look(self, topology: Topology, dead: Collection[NodeId], now_ms: int) -> Node | None:
        """Who is to be sent away now: one after the other, the longest dead first.

        Args:
            topology: The newest that the node knows.
            dead: Members that gossip believes dead or gone.
            now_ms: Monotonic time.
        """
        active = [node for node in topology.nodes if node.state == ACTIVE]
        missing = [node for node in active if node.id in dead]
        self._since_ms = {node.id: self._since_ms.get(node.id, now_ms) for node in missing}
        if not missing or not topology.away_after_s:
            return None
        present = len(active) - len(missing)
        members = sum(node.state != LEAVING for node in topology.nodes)
        if present < topology.replicas or 2 * present <= members:
            return None
        first = min(missing, key=lambda node: (self._since_ms[node.id], node.id))
        if now_ms - self._since_ms[first.id] < 1_000 * topology.away_after_s:
            return None
        try:
            check_spared(topology, first)
        except TopologyError:
            return None
        return first
