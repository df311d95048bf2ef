"""Two ways of placing that `scripts/placement_table.py` compares with: dearest and cheapest.

`min_cost` is the assignment with the least total distance on the product's own ring that keeps the
product's limits: a transportation problem, solved by Bertsekas' auction (1988) to within ``BID``
a copy. `remembering` knows the owners of before and changes only what it must: what could be
reached if the owners were not a function of the topology alone.
"""

from __future__ import annotations

from collections import Counter
from heapq import heappush, heappushpop
from itertools import chain
from typing import TYPE_CHECKING

from cluster.placement import limits_of, place
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


def remembering(topology: Topology, before: Owners | None = None) -> Owners:
    """The former owners, as far as the zones and the new shares admit; copies only."""
    if before is None:
        return place(topology).owners
    nodes = sorted(topology.nodes, key=lambda node: node.id)
    zones = {node.id: node.zone for node in nodes}
    rule = zone_rule([node.zone for node in nodes], topology.replicas)
    shares = replica_shares(nodes, topology.slot_count, topology.replicas)
    limits = limits_of(nodes, shares)
    wants = {node.id: int(share) for node, share in zip(nodes, shares, strict=True)}
    owners = [[owner for owner in slot if owner in zones] for slot in before]
    held = Counter(chain.from_iterable(owners))

    def move(slot: int, giver: int | None) -> bool:
        rest = [owner for owner in owners[slot] if owner != giver]
        taken = [zones[owner] for owner in rest]
        takers = [node for node in zones if node not in owners[slot]]
        takers = [node for node in takers if rule.admits(zones[node], taken)]
        taker = min(takers, key=lambda node: held[node] / wants[node], default=None)
        if taker is None or (giver is not None and held[taker] >= wants[taker]):
            return False
        owners[slot] = [*rest, taker]
        held[taker] += 1
        if giver is not None:
            held[giver] -= 1
        return True

    for slot, kept in enumerate(owners):
        while len(kept) < topology.replicas and move(slot, None):
            kept = owners[slot]
    for node in nodes:
        short = wants[node.id] * 0.95 - held[node.id]
        for slot in range(topology.slot_count) if short > 1 else ():
            if held[node.id] >= wants[node.id]:
                break
            fullest = max(owners[slot], key=lambda owner: held[owner] / wants[owner])
            if held[fullest] > wants[fullest] * 0.97 and node.id not in owners[slot]:
                move(slot, fullest)
    for slot in range(topology.slot_count):
        for owner in owners[slot]:
            if held[owner] > limits[owner] and move(slot, owner):
                break
    return [tuple(slot) for slot in owners]
