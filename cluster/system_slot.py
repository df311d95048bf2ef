"""The system slot: one more slot behind the data's, which holds the topology document (rule 17).

It is replicated by the same rules as every other slot. What is special is only who its members are:
up to five *voters*, so that a change of the topology costs the same in the largest cluster. And
nobody's key is hashed to it, so the data API can neither read nor write it. The document lies there
under one key and is changed by compare-and-set, each change one epoch.

The founding document is the slot's first content, the same bytes on each voter, so that equal
positions mean equal content from the first moment (rule 16).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cluster.ballot import NO_BALLOT
from cluster.limits import SYSTEM_SLOT_VOTERS_MAX
from cluster.placement import place
from cluster.records import encode_record, pack_version
from cluster.topology import ACTIVE, encode_topology

if TYPE_CHECKING:
    from cluster.ballot import NodeId
    from cluster.topology import Node, Topology

TOPOLOGY_KEY: Final = b"topology"
"""Where the document lies in the system slot."""

FOUNDING_VERSION: Final = pack_version(NO_BALLOT, 0)
"""The version of the founding document: older than every write."""


def voters(topology: Topology) -> tuple[NodeId, ...]:
    """The members that the system slot should have, the preferred primary first.

    The oldest node of each zone, then the second of each, and so on: new nodes change nothing while
    there are enough old ones, unless they bring a new zone. An odd number, because an even one
    survives no more than one less; both of two nodes, because one copy survives nothing.
    """
    active = sorted(
        (node for node in topology.nodes if node.state == ACTIVE),
        key=lambda node: (node.joined, node.id),
    )
    seen: dict[str, int] = {}
    ranked: list[tuple[int, int, Node]] = []
    for age, node in enumerate(active):
        seen[node.zone] = seen.get(node.zone, 0) + 1
        ranked.append((seen[node.zone], age, node))
    count = min(len(active), SYSTEM_SLOT_VOTERS_MAX)
    if count > 2:
        count -= 1 - count % 2
    return tuple(node.id for _, _, node in sorted(ranked)[:count])


def owners(topology: Topology) -> list[tuple[NodeId, ...]]:
    """The members that every slot should have, the system slot last; as slow as `place`."""
    return [*place(topology).owners, voters(topology)]


def founding_record(topology: Topology) -> bytes:
    """The founding document as each voter stores it."""
    return encode_record(FOUNDING_VERSION, encode_topology(topology))
