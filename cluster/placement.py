"""Which nodes should own which slot: a pure function of the topology.

Three steps, each the same for everyone who has the same document, whatever the order of its nodes:

1. *Shares* (`cluster.shares`): how many slots each node should hold and lead, by weight.
2. *Owners.* Every slot walks the ring (`cluster.ring`) and asks the first nodes that keep its zones
   apart. A node that is asked by more slots than its limit keeps the nearest ones and turns the
   others away; these walk on. That is the stable matching of Gale and Shapley (1962) with nearness
   as everybody's preference: there is one result only, however it is reached. It bounds the loads
   like Mirrokni, Thorup and Zadimoghaddam (2018), but without an order of arrival.
3. *Primaries.* One owner of each slot comes first, by the same matching among its owners; where all
   of them are full, a chain of swaps makes room.

A node's limit is 1.05 times its share, or its share rounded up where that is more. What this does
not know: who is alive, and where the slots are now. `docs/decisions/0002-placement.md` compares it
with other ways, in numbers.
"""

from __future__ import annotations

from collections import deque
from heapq import heapify, heappush, heappushpop
from math import ceil, floor
from typing import TYPE_CHECKING, NamedTuple

import mmh3
import msgspec

from cluster.augment import Flow
from cluster.ring import Ring, clock_times
from cluster.shares import ZoneRule, primary_shares, replica_shares, zone_rule
from cluster.topology import ACTIVE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cluster.ballot import NodeId
    from cluster.topology import Node, Topology

LOAD_MAX = 1.05
"""A node's load over its share: what the balance promises."""

_EARLY = 0.3
"""Slots before its time that a limit may fall: more would only make all of them tighter."""

_ROUNDING = 1e-6
"""More than the error of a share, much less than a slot."""

_FAR = 2**64
"""A distance beyond every arc."""

_RATE_STEPS = 256
_RATES = [0.0, *clock_times(_RATE_STEPS)]


class Placement(NamedTuple):
    """The owners of every slot: the preferred primary first, the others in the order of rule 10.

    Every slot has as many owners as the topology has replicas, or all nodes where there are fewer.
    """

    epoch: int
    owners: list[tuple[NodeId, ...]]


def place(topology: Topology) -> Placement:
    """The owners that this topology proposes; about 0.7 s for 1,000 nodes and 16,384 slots."""
    active = [node for node in topology.nodes if node.state == ACTIVE]
    seated = {node.ring_id: node.id for node in active}
    nodes = sorted(
        (msgspec.structs.replace(node, id=node.ring_id) for node in active),
        key=lambda node: node.id,
    )
    replicas = min(topology.replicas, len(nodes))
    held = replica_shares(nodes, topology.slot_count, replicas)
    led = primary_shares(nodes, topology.slot_count, held)
    rule = zone_rule([node.zone for node in nodes], replicas)
    rates = _rates(nodes, held, topology.slot_count, rule)
    ring = Ring(topology.slot_count, (6 + 2.5 * replicas) / sum(rates.values()))
    ring.update(rates)
    zones = {node.id: node.zone for node in nodes}
    owners = _Matching(ring, zones, rule, replicas, limits_of(nodes, held)).run()
    led_by = _Leading(owners, limits_of(nodes, led)).run()
    if any(seat != node for seat, node in seated.items()):
        led_by = [tuple(seated[seat] for seat in slot) for slot in led_by]
    return Placement(topology.epoch, led_by)


def limits_of(nodes: Sequence[Node], shares: Sequence[float]) -> dict[NodeId, int]:
    """The most that each node takes.

    Where the bound is about to fall by one slot, it falls earlier for some nodes, by a hash of
    their ids: a few at a time as the cluster grows, instead of all of them with one join.
    """
    limits = {}
    for node, share in zip(nodes, shares, strict=True):
        early = mmh3.hash(node.id.to_bytes(8, "big"), 1, signed=False) / 2**32 * _EARLY
        limits[node.id] = max(floor(share * LOAD_MAX - early), ceil(share - _ROUNDING))
    return limits


def _rates(
    nodes: Sequence[Node], shares: Sequence[float], slot_count: int, rule: ZoneRule
) -> dict[NodeId, float]:
    """Ring weights with which the walks give each node about its share.

    Someone with rate ``r`` is met before time 1 with probability ``1 - exp(-r)``, so that is
    solved for the share (order sampling, Rosen 1997). Where a zone holds one copy, the
    zone is met with its nodes' joint rate, and each of them in proportion.
    """
    zone_shares: dict[str, float] = {}
    for node, share in zip(nodes, shares, strict=True):
        zone_shares[node.zone] = zone_shares.get(node.zone, 0.0) + share
    rates = {}
    for node, share in zip(nodes, shares, strict=True):
        whole = zone_shares[node.zone] if rule.base == 0 else share
        rates[node.id] = _rate(min(1.0, whole / slot_count)) * (share / whole)
    return rates


def _rate(probability: float) -> float:
    """``-log(1 - probability)`` from a table, the same on all machines; 6.1 for 1."""
    step = min(int(probability * _RATE_STEPS), _RATE_STEPS - 1)
    part = probability * _RATE_STEPS - step
    return _RATES[step] + part * (_RATES[step + 1] - _RATES[step])


class _Matching:
    """Slots ask nodes in the order of their walks; nodes keep the nearest up to their limits."""

    def __init__(
        self,
        ring: Ring,
        zones: dict[NodeId, str],
        rule: ZoneRule,
        replicas: int,
        limits: dict[NodeId, int],
    ) -> None:
        self.ring = ring
        self.zones = zones
        self.rule = rule
        self.replicas = replicas
        self.limits = limits
        self.arcs = ring.arcs()
        self.owners: list[dict[NodeId, int]] = [{} for _ in range(ring.slot_count)]
        self.refused: dict[int, set[NodeId]] = {}
        # Of each node, what it holds as a heap of (-distance, -slot): the farthest comes first.
        self.holds: dict[NodeId, list[tuple[int, int]]] = {node: [] for node in zones}

    def run(self) -> list[list[NodeId]]:
        """The owners of every slot, nearest first."""
        for slot in range(self.ring.slot_count):
            for _ in range(self.replicas):
                self.settle(slot)
        return [sorted(owners, key=owners.__getitem__) for owners in self.owners]

    def settle(self, slot: int) -> None:
        """Find one owner more for a slot, and for whoever is turned away by that."""
        asking: int | None = slot
        while asking is not None:
            asking = self.ask(asking)

    def ask(self, slot: int) -> int | None:
        """One slot takes the next node of its walk; the slot that this turns away, if any."""
        owners, refused = self.owners[slot], self.refused.get(slot, ())
        taken = [self.zones[owner] for owner in owners]
        for distance, node in self.walk(slot):
            if node in owners or node in refused or not self.rule.admits(self.zones[node], taken):
                continue
            held = self.holds[node]
            owners[node] = distance
            if len(held) < self.limits[node]:
                heappush(held, (-distance, -slot))
                return None
            farthest = -heappushpop(held, (-distance, -slot))[1]
            del self.owners[farthest][node]
            self.refused.setdefault(farthest, set()).add(node)
            return farthest
        self.make_room(slot)
        return None

    def make_room(self, slot: int) -> None:
        """All that the zones admit are full: shift other slots along a row to one with room.

        Rare, for it takes weights and zones at odds. There is always one: the shares themselves
        are a placement that keeps all limits, in fractions.
        """
        flow = Flow(
            self.zones,
            self.rule,
            self.owners,
            lambda node: [-negative for _, negative in self.holds[node]],
            lambda node: len(self.holds[node]) < self.limits[node],
        )
        for shifted, node, gained in flow.row(slot):
            if gained:
                self.owners[shifted][node] = _FAR
                self.holds[node].append((-_FAR, -shifted))
            else:
                self.holds[node].remove((-self.owners[shifted].pop(node), -shifted))
            heapify(self.holds[node])

    def walk(self, slot: int) -> Iterator[tuple[int, NodeId]]:
        """Distance and node in walk order: the slot's own arc, then the ring behind it."""
        yield from self.arcs[slot]
        behind = self.ring.walk(self.ring.token_of(slot))
        yield from ((_FAR + place, node) for place, node in enumerate(behind))


class _Leading:
    """Who leads which slot: nobody more than its limit while that can be.

    A slot is led by its nearest owner that has room. If none has, one of them hands a slot that it
    leads to another owner of that slot, which may have to do the same (Kuhn's augmenting paths).
    """

    def __init__(self, owners: list[list[NodeId]], limits: dict[NodeId, int]) -> None:
        self.owners = owners
        self.limits = limits
        self.leads: list[NodeId | None] = [None] * len(owners)
        self.counts = dict.fromkeys(limits, 0)
        # heirs[a][b]: the slots that a leads and b owns too.
        self.heirs: dict[NodeId, dict[NodeId, dict[int, None]]] = {node: {} for node in limits}

    def run(self) -> list[tuple[NodeId, ...]]:
        """The owners of every slot, its primary first."""
        for slot in range(len(self.owners)):
            for step, node in self.handovers(slot):
                self.give(step, node)
        return [
            (leader, *(node for node in nodes if node != leader))
            for leader, nodes in zip(self.leads, self.owners, strict=True)
            if leader is not None
        ]

    def give(self, slot: int, node: NodeId) -> None:
        """Make ``node`` the primary of ``slot``."""
        former = self.leads[slot]
        if former is not None:
            self.counts[former] -= 1
            for heir in self.owners[slot]:
                del self.heirs[former][heir][slot]
        self.leads[slot] = node
        self.counts[node] += 1
        for heir in self.owners[slot]:
            self.heirs[node].setdefault(heir, {})[slot] = None

    def handovers(self, slot: int) -> list[tuple[int, NodeId]]:
        """The shortest row of (slot, its new primary) that ends with a primary for ``slot``.

        If all that can be reached are full, the owner that is least above its limit takes it.
        """
        came: dict[NodeId, tuple[int, NodeId | None]] = dict.fromkeys(
            self.owners[slot], (slot, None)
        )
        queue = deque(came)
        while queue:
            node = queue.popleft()
            if self.counts[node] < self.limits[node]:
                steps: list[tuple[int, NodeId]] = []
                taker: NodeId | None = node
                while taker is not None:
                    given, giver = came[taker]
                    steps.append((given, taker))
                    taker = giver
                return steps
            for heir, slots in self.heirs[node].items():
                if slots and heir not in came:
                    came[heir] = (next(iter(slots)), node)
                    queue.append(heir)
        return [(slot, min(self.owners[slot], key=self._surplus))]

    def _surplus(self, node: NodeId) -> int:
        return self.counts[node] - self.limits[node]
