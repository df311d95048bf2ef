"""Whom to probe next, and other choices among the members.

SWIM (section 4.3) goes through its members in a random order, each once in a round, and draws a new
order for the next. Here the order is drawn as it is used, one step of Fisher and Yates (1938) at a
time, so that no moment of a large cluster pays for a whole shuffle: ``_nodes[:_at]`` have had their
turn in this round, and the next is any one of the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cluster.ballot import NodeId


class Chance(Protocol):
    """A seeded generator (`random.Random`)."""

    def randrange(self, stop: int, /) -> int:
        """A number from 0 to below ``stop``."""


class Rota:
    """All other members; each choice is O(1), coming and going O(n) at most."""

    def __init__(self, rng: Chance) -> None:
        self._rng = rng
        self._nodes: list[NodeId] = []
        self._at = 0
        self._told = 0

    def __len__(self) -> int:
        return len(self._nodes)

    def __iter__(self) -> Iterator[NodeId]:
        return iter(self._nodes)

    def add(self, nodes: Iterable[NodeId]) -> None:
        """Newcomers have their first turn still in this round."""
        self._nodes += nodes

    def remove(self, node: NodeId) -> None:
        """This one has no turn any more; all others keep theirs."""
        index = self._nodes.index(node)
        if index < self._at:
            self._at -= 1
            self._nodes[index] = self._nodes[self._at]
            index = self._at
        self._nodes[index] = self._nodes[-1]
        self._nodes.pop()

    def next(self) -> NodeId:
        """Whose turn it is."""
        nodes = self._nodes
        if self._at >= len(nodes):
            self._at = 0
        at = self._at
        chosen = at + self._rng.randrange(len(nodes) - at)
        nodes[at], nodes[chosen] = nodes[chosen], nodes[at]
        self._at = at + 1
        return nodes[at]

    def any(self) -> NodeId:
        """One at random, whoever's turn it is."""
        return self._nodes[self._rng.randrange(len(self._nodes))]

    def next_told(self) -> NodeId | None:
        """Round and round the table, by a count of its own; None, once a round, for oneself."""
        self._told = (self._told + 1) % (len(self._nodes) + 1)
        return self._nodes[self._told] if self._told < len(self._nodes) else None

    def check(self) -> None:
        """Assert the invariants."""
        assert 0 <= self._at <= len(self._nodes)
        assert len(set(self._nodes)) == len(self._nodes)
