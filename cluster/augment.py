"""One copy more where all nodes that could take it are full: the row of shifts that makes room.

Copies flow from slots to nodes: out of each slot as many as it has replicas, into each node as many
as its limit. Between them lie the zones, for a slot may send only so many copies into one
(`cluster.shares.ZoneRule`): ``base`` on a way of its own, and one more by a way that all zones of
the slot share and that carries ``extra``. A row of shifts is an augmenting path of that flow (Ford
and Fulkerson, 1956). Breadth-first it is a shortest one, and there is none only if no placement at
all keeps the limits.

Three kinds of junctions have a copy too many on such a path: a node (some slot of it must go), a
zone of a slot (the copy goes to another node of the zone, or leaves it) and the extra of a slot (it
goes to another zone). They are no tuples: node 4 is not the extra of slot 4.
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from cluster.ballot import NodeId
    from cluster.shares import ZoneRule


@dataclass(frozen=True, slots=True)
class AtNode:
    """This node has one copy more than it held."""

    node: NodeId


@dataclass(frozen=True, slots=True)
class AtZone:
    """This zone of a slot has one copy that needs a node."""

    slot: int
    zone: str


@dataclass(frozen=True, slots=True)
class AtExtra:
    """A slot has one copy that needs a zone, beyond the ``base`` that each may have."""

    slot: int


Junction = AtNode | AtZone | AtExtra


class Shift(NamedTuple):
    """``slot`` gains the owner ``node``, or loses it."""

    slot: int
    node: NodeId
    gained: bool


class Flow:
    """The copies that are placed.

    Args:
        zones: Of each node.
        rule: How a slot's copies spread.
        owners: Of each slot.
        held: The slots of a node.
        has_room: Whether a node is below its limit.
    """

    def __init__(
        self,
        zones: Mapping[NodeId, str],
        rule: ZoneRule,
        owners: Sequence[Collection[NodeId]],
        held: Callable[[NodeId], Iterable[int]],
        has_room: Callable[[NodeId], bool],
    ) -> None:
        self.zones = zones
        self.rule = rule
        self.owners = owners
        self.held = held
        self.has_room = has_room
        self.unseen: defaultdict[str, dict[NodeId, None]] = defaultdict(dict)
        for node, zone in zones.items():
            self.unseen[zone][node] = None

    def row(self, slot: int) -> list[Shift]:
        """The shifts after which ``slot`` has an owner more, and nobody is over its limit.

        O(slots * zones + copies) at worst. May be called once.
        """
        came: dict[Junction, Junction | None] = {}
        queue: deque[Junction] = deque()
        for first in self.entries(slot):
            came[first] = None
            queue.append(first)
        while queue:
            at = queue.popleft()
            if isinstance(at, AtNode) and self.has_room(at.node):
                return self.shifts(at, came)
            for following in self.beyond(at):
                if following not in came:
                    came[following] = at
                    queue.append(following)
        raise AssertionError("limits that no placement can keep: they are below the shares")

    def entries(self, slot: int) -> Iterator[Junction]:
        """Where one copy more of a slot can enter."""
        counts = self.counts(slot)
        for zone in self.unseen:
            if counts[zone] < self.rule.base:
                yield AtZone(slot, zone)
        if self.extras(counts) < self.rule.extra:
            yield AtExtra(slot)

    def beyond(self, at: Junction) -> Iterator[Junction]:
        """Where the copy that is too many here can go next."""
        match at:
            case AtNode(node):
                zone = self.zones[node]
                for slot in self.held(node):
                    yield AtZone(slot, zone)
            case AtZone(slot, zone):
                owners, unseen = self.owners[slot], self.unseen[zone]
                for node in [node for node in unseen if node not in owners]:
                    del unseen[node]
                    yield AtNode(node)
                if self.counts(slot)[zone] > self.rule.base:
                    yield AtExtra(slot)
            case AtExtra(slot):
                counts = self.counts(slot)
                for zone in self.unseen:
                    if counts[zone] <= self.rule.base:
                        yield AtZone(slot, zone)

    def counts(self, slot: int) -> defaultdict[str, int]:
        """Copies of a slot in each zone."""
        counts: defaultdict[str, int] = defaultdict(int)
        for owner in self.owners[slot]:
            counts[self.zones[owner]] += 1
        return counts

    def extras(self, counts: Mapping[str, int]) -> int:
        """Zones with a copy beyond the base."""
        return sum(count > self.rule.base for count in counts.values())

    def shifts(self, last: Junction, came: dict[Junction, Junction | None]) -> list[Shift]:
        """The steps between nodes and slots of the way to ``last``."""
        shifts: list[Shift] = []
        at, before = last, came[last]
        while before is not None:
            if isinstance(at, AtNode) and isinstance(before, AtZone):
                shifts.append(Shift(before.slot, at.node, gained=True))
            elif isinstance(at, AtZone) and isinstance(before, AtNode):
                shifts.append(Shift(at.slot, before.node, gained=False))
            at, before = before, came[before]
        return shifts
