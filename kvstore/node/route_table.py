"""The routing table as a node hands it to clients: whole, or what has changed since a version.

A client keeps the table of 16,384 slots and asks again when something in it turned out wrong: after
every failover, all the time while slots move. The whole table has 22 bytes a slot, 360 KB, and a
move changes one of them. So each state of the table that was handed out has a number, and for each
slot it is known in which one it changed last. Whoever names the number of the table that he has is
sent the slots that changed since, from whichever version on: one number a slot is all that it
takes. He gets the whole table if he names another process's number (`source`), if a node has been
removed since, or if most slots have changed.

To look at every slot takes 20 ms, in which a node does nothing else, and many ask when many slots
move. So a look goes over the slots of which something was told since the one before
(`Directory.moved`), no more often than each `ROUTES_MS`: hints may be old. What nobody tells is how
far the slots have come that this node leads itself: `walk` goes round them, a part at a time. A
position alone makes a change when it has come so far that a client's word of it may soon be out of
the key log's reach (rule 5), not with each write.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Final

from cluster.limits import KEY_LOG_ENTRIES_MAX
from cluster.records import BALLOT_BYTES, VERSION_BYTES
from kvstore.wire.protocol import RouteNode, Routes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from cluster.ballot import NodeId
    from cluster.topology import Topology
    from kvstore.node.directory import Directory

ROUTES_MS: Final = 250
"""Age of a table that is still handed out."""

WALK_SLOTS: Final = 512
"""In one step of the walk: a third of a millisecond, and with 20 steps a second 2 s for a round."""

UNKNOWN: Final = 0xFFFF

POSITIONS_BEHIND: Final = KEY_LOG_ENTRIES_MAX // 4
"""Operations of a slot after which its position counts as changed."""

DIFFERENCES_MAX: Final = 64
"""Kept for as long as the table is: when a node dies, all clients ask the same."""

_GONE: Final = ("dead", "left")


class RouteTable:
    """Of one node.

    Args:
        me: The node.
        directory: What the others lead, and what was told of late.
        led_of: Those of these slots that this node leads, with packed committed positions.
        source: A number that no other process has.
    """

    def __init__(
        self,
        me: NodeId,
        directory: Directory,
        led_of: Callable[[Iterable[int]], Iterable[tuple[int, bytes]]],
        source: int,
    ) -> None:
        self._me = me
        self._directory = directory
        self._led_of = led_of
        self._source = source
        self._version = 0
        self._removed_at = 0
        """The version in which a node was last missing that had been there."""
        self._topology: Topology | None = None
        self._leaders: list[NodeId | None] = []
        self._positions = bytearray()
        """As of the version in which each slot changed last."""
        self._changed_at: dict[int, int] = {}
        """Slot -> version, those that changed last at the end."""
        self._unseen: set[int] = set()
        """Slots that have come far since the version that is handed out."""
        self._nodes: dict[NodeId, RouteNode] = {}
        self._node_changed_at: dict[NodeId, int] = {}
        self._usable: frozenset[NodeId] = frozenset()
        """Those that can be asked for anything."""
        self._whole: Routes | None = None
        self._differences: dict[int, Routes] = {}
        self._looked_ms = 0
        self._walk_at = 0

    def routes(self, source: int, since: int) -> Routes:
        """The table, or its difference from a version that this process gave; see `look`."""
        known = source == self._source and self._removed_at <= since <= self._version
        if not known or not since:
            return self._all()
        found = self._differences.get(since)
        if found is None:
            found = self._difference(since)
            if len(self._differences) < DIFFERENCES_MAX:
                self._differences[since] = found
        return found

    def is_fresh(self, now_ms: int) -> bool:
        """Whether `look` would be too early."""
        return self._topology is not None and now_ms - self._looked_ms < ROUTES_MS

    def look(self, topology: Topology, states: dict[NodeId, str], now_ms: int) -> None:
        """Take over what was told since the last look; a microsecond for each such slot.

        Args:
            topology: Its nodes are listed.
            states: By gossip; whoever is dead leads nothing that could be asked of it.
            now_ms: Monotonic time.
        """
        self._looked_ms = now_ms
        nodes = {
            n.id: RouteNode(
                *(n.id, n.name, n.address, n.http_address, n.zone), states.get(n.id, "alive")
            )
            for n in topology.nodes
        }
        usable = frozenset(node for node in nodes if states.get(node) not in _GONE)
        moved, self._directory.moved = self._directory.moved, set()
        moved |= self._unseen
        self._unseen.clear()
        if self._topology is None:
            self._leaders = [None] * topology.slot_count
            self._positions = bytearray(VERSION_BYTES * topology.slot_count)
            moved = set(range(topology.slot_count))
        elif usable != self._usable:
            moved |= self._concerned(self._usable ^ usable)
        self._topology, self._usable = topology, usable
        changed = self._take_over(sorted(moved))
        if changed or nodes != self._nodes or not self._version:
            self._version += 1
            self._note(nodes, changed)
            self._whole = None
            self._differences.clear()

    def walk(self) -> None:
        """See how far the next of the slots have come that this node leads."""
        count = len(self._leaders)
        part = range(self._walk_at, min(self._walk_at + WALK_SLOTS, count))
        for number, position in self._led_of(part):
            told = self._positions[number * VERSION_BYTES : (number + 1) * VERSION_BYTES]
            if _is_news(position, told):
                self._unseen.add(number)
        self._walk_at = part.stop if part.stop < count else 0

    @property
    def is_round(self) -> bool:
        """Whether the next step of the walk begins a round."""
        return self._walk_at == 0

    def _concerned(self, nodes: frozenset[NodeId]) -> set[int]:
        """Slots that one of these leads, by the word of the others or by the table."""
        if self._me in nodes:
            return set(range(len(self._leaders)))
        pairs = zip(self._directory.leaders, self._leaders, strict=False)  # the system slot is last
        return {n for n, (told, was) in enumerate(pairs) if told in nodes or was in nodes}

    def _take_over(self, slots: Sequence[int]) -> list[int]:
        """Look at these slots; returns those that have changed."""
        directory, usable, me = self._directory, self._usable, self._me
        leaders, positions = self._leaders, self._positions
        count = len(leaders)
        led = dict(self._led_of(slots))
        changed = []
        for number in slots:
            if number >= count:
                continue  # the system slot is no business of clients
            begin, end = number * VERSION_BYTES, (number + 1) * VERSION_BYTES
            packed = led.get(number, b"")
            leader: NodeId | None = me
            if not packed:
                leader = directory.leaders[number]
                packed = bytes(directory.positions[begin:end])
            if leader not in usable:
                leader = None
            if leader != leaders[number] or _is_news(packed, positions[begin:end]):
                leaders[number], positions[begin:end] = leader, packed
                changed.append(number)
        return changed

    def _note(self, nodes: dict[NodeId, RouteNode], changed: list[int]) -> None:
        version = self._version
        for number in changed:
            self._changed_at.pop(number, None)
            self._changed_at[number] = version
        if self._nodes.keys() - nodes.keys():
            self._removed_at = version
        self._node_changed_at = {
            node: self._node_changed_at[node] if self._nodes.get(node) == listed else version
            for node, listed in nodes.items()
        }
        self._nodes = nodes

    def _all(self) -> Routes:
        """The whole table, made when it is asked for: a millisecond."""
        if self._whole is None:
            index = {node: at for at, node in enumerate(self._nodes)}
            primaries = [UNKNOWN if node is None else index[node] for node in self._leaders]
            self._whole = self._made(list(self._nodes.values()), primaries, bytes(self._positions))
        return self._whole

    def _made(
        self,
        nodes: list[RouteNode],
        primaries: list[int],
        positions: bytes,
        since: int = 0,
        slots: Sequence[int] = (),
    ) -> Routes:
        topology = self._topology
        assert topology is not None, "looked at before"
        return Routes(
            0,
            topology.cluster_id,
            topology.cluster_name,
            topology.epoch,
            topology.slot_count,
            nodes,
            _packed(primaries),
            positions,
            self._source,
            self._version,
            since,
            _packed(slots),
        )

    def _difference(self, since: int) -> Routes:
        """From a version on; the whole table where that is hardly more."""
        slots = []
        for number, version in reversed(self._changed_at.items()):
            if version <= since:
                break
            slots.append(number)
        if 2 * len(slots) > len(self._leaders):
            return self._all()
        slots.sort()
        leaders = [self._leaders[number] for number in slots]
        named = {node for node in leaders if node is not None}
        named.update(node for node, at in self._node_changed_at.items() if at > since)
        nodes = [self._nodes[node] for node in sorted(named)]
        index: dict[NodeId | None, int] = {node.id: at for at, node in enumerate(nodes)}
        told = self._positions
        return self._made(
            nodes,
            [index.get(leader, UNKNOWN) for leader in leaders],
            b"".join(told[n * VERSION_BYTES : (n + 1) * VERSION_BYTES] for n in slots),
            since,
            slots,
        )


def _is_news(packed: bytes, told: bytearray) -> bool:
    """Whether a position is of another ballot than what was told, or far behind it no more."""
    if packed == told:
        return False
    newest = int.from_bytes(packed[BALLOT_BYTES:], "big")
    then = int.from_bytes(told[BALLOT_BYTES:], "big")
    return packed[:BALLOT_BYTES] != told[:BALLOT_BYTES] or newest - then >= POSITIONS_BEHIND


def _packed(numbers: Iterable[int]) -> bytes:
    """Two bytes each, big-endian."""
    packed = array("H", numbers)
    if array("H", b"\0\1")[0] != 1:
        packed.byteswap()
    return packed.tobytes()
