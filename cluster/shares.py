"""How much each node should carry: fair shares by weight, as far as copies and zones allow.

A slot's replicas lie on distinct nodes and on zones as different as there are. So a node never
holds more than every slot once, and a zone no more than its rule allows, however heavy they are;
what they cannot take falls to the others in proportion to their weights. Filling vessels to one
common water level, each with its own brim, is the picture.

Only sums, products and quotients of IEEE doubles in the order of node ids: every machine computes
the same shares.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cluster.topology import Node

_BISECTIONS = 100
"""More than the bits of a double: the level is as exact as it can be."""


class ZoneRule(NamedTuple):
    """How a slot's copies spread: each zone may hold ``base``, and ``extra`` zones one more.

    The smallest numbers with which the copies still find enough nodes: with three copies, three or
    more zones give (0, 3), two zones (1, 1), one zone (2, 1). The sets that keep the rule are the
    independent sets of a matroid, so that greedy choices are best ones.
    """

    base: int
    extra: int

    def admits(self, zone: str, zones: Sequence[str]) -> bool:
        """May a slot with copies in ``zones`` take one in ``zone`` too?

        >>> ZoneRule(0, 3).admits("a", ["a", "b"])
        False
        >>> ZoneRule(1, 1).admits("a", ["a", "b"])
        True
        """
        here = zones.count(zone)
        if here != self.base:
            return here < self.base
        return sum(1 for other in set(zones) if zones.count(other) > self.base) < self.extra


def zone_rule(zones: Sequence[str], replicas: int) -> ZoneRule:
    """The rule for nodes in these zones (one entry a node).

    >>> zone_rule(["a", "b", "c", "c"], 3), zone_rule(["a", "b", "b", "b"], 3)
    (ZoneRule(base=0, extra=3), ZoneRule(base=1, extra=1))
    """
    assert 0 < replicas <= len(zones)
    sizes = Counter(zones).values()
    base = 0
    while sum(min(base + 1, size) for size in sizes) < replicas:
        base += 1
    return ZoneRule(base, replicas - sum(min(base, size) for size in sizes))


def replica_shares(nodes: Sequence[Node], slot_count: int, replicas: int) -> list[float]:
    """Slots that each node should hold; the sum is ``slot_count * replicas``."""
    rule = zone_rule([node.zone for node in nodes], replicas)
    zones: defaultdict[str, list[int]] = defaultdict(list)
    for index, node in enumerate(nodes):
        zones[node.zone].append(index)

    def zone_share(members: list[int], level: float) -> float:
        poured = sum(min(slot_count, level * nodes[index].weight) for index in members)
        least = slot_count * min(rule.base, len(members))
        most = slot_count * min(rule.base + 1, len(members))
        return min(max(poured, least), most)

    low, high = 0.0, slot_count / min(node.weight for node in nodes)
    for _ in range(_BISECTIONS):
        level = (low + high) / 2
        if sum(zone_share(members, level) for members in zones.values()) < slot_count * replicas:
            low = level
        else:
            high = level
    shares = [0.0] * len(nodes)
    for members in zones.values():
        weights = [nodes[index].weight for index in members]
        poured = fill(weights, [float(slot_count)] * len(members), zone_share(members, high))
        for index, share in zip(members, poured, strict=True):
            shares[index] = share
    return shares


def primary_shares(
    nodes: Sequence[Node], slot_count: int, replica_shares: Sequence[float]
) -> list[float]:
    """Slots that each node should lead, at most those that it holds; the sum is ``slot_count``."""
    return fill([node.weight for node in nodes], replica_shares, slot_count)


def fill(weights: Sequence[float], brims: Sequence[float], total: float) -> list[float]:
    """Share out ``total`` in proportion to ``weights``, nobody above its brim; O(n log n).

    >>> fill([1, 1, 2], [10, 10, 3], 9)
    [3.0, 3.0, 3.0]
    """
    shares = [0.0] * len(weights)
    weight_left = sum(weights)
    total_left = min(total, sum(brims))
    for index in sorted(range(len(weights)), key=lambda index: brims[index] / weights[index]):
        shares[index] = min(float(brims[index]), total_left * weights[index] / weight_left)
        total_left -= shares[index]
        weight_left -= weights[index]
    return shares
