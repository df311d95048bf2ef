"""The assignment of least cost, which `scripts/placement_table.py` compares with.

The least total distance on a ring like the product's that keeps the product's limits: a
transportation problem, solved by Bertsekas' auction (1988) to within `BID` a copy.
"""

from __future__ import annotations

from heapq import heappush, heappushpop
from typing import TYPE_CHECKING

from cluster.placement import limits_of
from cluster.ring import TOKEN_BITS, Ring
from cluster.shares import replica_shares, zone_rule

if TYPE_CHECKING:
    from cluster.topology import Topology

Owners = list[tuple[int, ...]]
BID = 0.02
"""The least by which a bid outdoes another, in units of the ring's time."""


def min_cost(topology: Topology) -> Owners:
    """Each copy takes what is best for it at the prices of the moment, until all have a place."""
    nodes = sorted(topology.nodes, key=lambda node: node.id)
    zones = {node.id: node.zone for node in nodes}
    rule = zone_rule([node.zone for node in nodes], topology.replicas)
    limits = limits_of(nodes, replica_shares(nodes, topology.slot_count, topology.replicas))
    ring = Ring(topology.slot_count, (6 + 2.5 * topology.replicas) / sum(n.weight for n in nodes))
    ring.update({node.id: node.weight for node in nodes})
    far = 2.0**TOKEN_BITS / topology.slot_count
    costs: list[dict[int, float]] = []
    for slot, arc in enumerate(ring.arcs()):
        cost = {node: distance / (far - distance) for distance, node in arc}
        for place_behind, node in enumerate(ring.walk(ring.token_of(slot))):
            if len(cost) >= min(len(nodes), 40):
                break
            cost.setdefault(node, 50.0 + place_behind)
        costs.append(cost)
    owners: list[dict[int, None]] = [{} for _ in range(topology.slot_count)]
    bids: dict[int, list[tuple[float, int]]] = {node: [] for node in zones}
    prices = dict.fromkeys(zones, 0.0)
    waiting = [slot for slot in range(topology.slot_count) for _ in range(topology.replicas)]
    while waiting:
        slot = waiting.pop()
        taken = [zones[owner] for owner in owners[slot]]
        offers = sorted(
            (cost + prices[node], node)
            for node, cost in costs[slot].items()
            if node not in owners[slot] and rule.admits(zones[node], taken)
        )
        best, node = offers[0]
        margin = offers[1][0] - best if len(offers) > 1 else 1.0
        owners[slot][node] = None
        bid = (prices[node] + margin + BID, slot)
        if len(bids[node]) < limits[node]:
            heappush(bids[node], bid)
            continue
        _, outbid = heappushpop(bids[node], bid)
        prices[node] = bids[node][0][0]
        del owners[outbid][node]
        waiting.append(outbid)
    return [tuple(slot) for slot in owners]
