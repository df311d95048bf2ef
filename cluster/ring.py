"""The ring: virtual nodes in token order, and the walk along it.

Consistent hashing (Karger et al., 1997) puts every node at many pseudo-random places of a circle
of 64-bit tokens; a slot belongs to the first nodes clockwise of it. Chance alone makes such loads
uneven, so here each virtual node is placed with a little more care. The circle has one equal arc
for each slot, beginning at the slot's own token. A node has at most one virtual node in an arc:
the node takes the arcs in a pseudo-random order of its own (a permutation seeded by its id), and
the ``k``-th one lies at the expected time of the ``k``-th of ``slot_count`` exponential clocks,
divided by the node's weight. A walk from a slot's token therefore meets the nodes in the order of
weighted rendezvous hashing (Thaler and Ravishankar, 1998), but every node owns an exactly even
sample of good and bad places. With three replicas that cuts the variance of a node's load to a
third of what independent hashes give (`docs/decisions/0002-placement.md`), and lets nothing else
change: where a node stands depends on its own id and weight alone, so a node that comes takes only
places for itself, and a node that goes frees only its own.

Tokens use integers, sums and quotients only: every machine computes the same ones.
"""

from __future__ import annotations

from bisect import bisect_right
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING

import mmh3
from sortedcontainers import SortedList

from cluster.limits import NODE_ID_BITS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cluster.ballot import NodeId

TOKEN_BITS = 64

_NODE_MASK = 2**NODE_ID_BITS - 1


@lru_cache(maxsize=8)
def clock_times(slot_count: int) -> list[float]:
    """Expected times of ``slot_count`` independent exponential clocks of rate 1, in order.

    >>> clock_times(2)
    [0.5, 1.5]
    """
    return list(accumulate(1 / (slot_count - rank) for rank in range(slot_count)))


class Ring:
    """Virtual nodes in a sorted list, each one integer: token, then node id.

    ``reach`` bounds how many there are: a node has only those whose time, at which the walk from
    their slot comes to them, is at most ``reach``: about ``reach * weight * slot_count`` of them.
    """

    def __init__(self, slot_count: int, reach: float) -> None:
        assert slot_count > 0
        assert slot_count & (slot_count - 1) == 0
        assert reach > 0
        self.slot_count = slot_count
        self.reach = reach
        self._arc_bits = TOKEN_BITS - (slot_count.bit_length() - 1)
        self._points: SortedList[int] = SortedList()
        self._weights: dict[NodeId, float] = {}

    def __len__(self) -> int:
        """How many virtual nodes there are."""
        return len(self._points)

    @property
    def nodes(self) -> dict[NodeId, float]:
        """The weight of each node on the ring."""
        return dict(self._weights)

    def update(self, weights: dict[NodeId, float]) -> None:
        """Put many nodes on the ring at once; O(virtual nodes, log of them)."""
        assert not weights.keys() & self._weights.keys(), "a node is on the ring already"
        assert all(weight > 0 for weight in weights.values())
        self._weights |= weights
        self._points.update(
            point for node, weight in weights.items() for point in self._points_of(node, weight)
        )

    def add(self, node: NodeId, weight: float) -> None:
        """Put one node on the ring."""
        self.update({node: weight})

    def remove(self, node: NodeId) -> None:
        """Take a node off the ring."""
        for point in self._points_of(node, self._weights.pop(node)):
            self._points.remove(point)

    def token_of(self, slot: int) -> int:
        """Where a slot's arc begins."""
        return slot << self._arc_bits

    def walk(self, token: int) -> Iterator[NodeId]:
        """Each node once, clockwise from ``token``, round the whole ring.

        O(log n) for the first; stops early when all have been met.
        """
        start = token << NODE_ID_BITS
        seen: set[NodeId] = set()
        for points in (self._points.irange(start), self._points.irange(maximum=start - 1)):
            for point in points:
                node = point & _NODE_MASK
                if node not in seen:
                    seen.add(node)
                    yield node
                    if len(seen) == len(self._weights):
                        return

    def arcs(self) -> list[list[tuple[int, NodeId]]]:
        """For each slot the virtual nodes of its arc in order: (distance from its token, node).

        The beginning of every slot's walk, for all slots in one pass.
        """
        arcs: list[list[tuple[int, NodeId]]] = [[] for _ in range(self.slot_count)]
        shift = self._arc_bits + NODE_ID_BITS
        distance_mask = 2**self._arc_bits - 1
        for point in self._points:
            distance = point >> NODE_ID_BITS & distance_mask
            arcs[point >> shift].append((distance, point & _NODE_MASK))
        return arcs

    def check(self) -> None:
        """Assert every invariant; O(virtual nodes)."""
        self._points._check()
        expected = sorted(
            point
            for node, weight in self._weights.items()
            for point in self._points_of(node, weight)
        )
        assert list(self._points) == expected
        assert all(0 <= point >> NODE_ID_BITS < 2**TOKEN_BITS for point in expected)
        places = {
            (point >> self._arc_bits + NODE_ID_BITS, point & _NODE_MASK) for point in expected
        }
        assert len(places) == len(expected), "two virtual nodes of one node in one arc"

    def _points_of(self, node: NodeId, weight: float) -> Iterator[int]:
        """The virtual nodes of a node, nearest first; at least one.

        Each step of the permutation can be undone modulo a power of two: an odd factor, a
        sum, a shift and exclusive or. The jitter of a node keeps equal ranks of two nodes apart.
        """
        times = clock_times(self.slot_count)
        bits = self.slot_count.bit_length() - 1
        mask, half = self.slot_count - 1, max(1, bits // 2)
        low, high = mmh3.hash64(node.to_bytes(8, "big"), signed=False)
        factor_1, sum_1, factor_2, jitter = low | 1, low >> 32, high | 1, (high >> 32) / 2**32
        scale = 2.0**self._arc_bits
        earlier = 0.0
        for rank in range(max(1, bisect_right(times, self.reach * weight))):
            arc = (rank * factor_1 + sum_1) & mask
            arc = ((arc ^ arc >> half) * factor_2) & mask
            arc = ((arc ^ arc >> half) * factor_1 + sum_1) & mask
            arc ^= arc >> half
            later = times[rank]
            time = (earlier + jitter * (later - earlier)) / weight
            earlier = later
            token = (arc << self._arc_bits) + int(time / (1.0 + time) * scale)
            yield token << NODE_ID_BITS | node
