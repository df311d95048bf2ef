"""The routing table as a node hands it to clients: whole, or what has changed since a version.

A client keeps the table of 16,384 slots and asks again when something in it turned out wrong: after
every failover, all the time while slots move. The whole table has 22 bytes a slot, 360 KB, and a
move changes one of them. So each state of the table that was handed out has a number, and for each
slot it is known in which one it changed last. Whoever names the number of the table that he has is
sent the slots that changed since, from whichever version on: one number a slot is all that it
takes. He gets the whole table if he names another process's number (`source`), if a node has been
removed since, or if most slots have changed.

The table is looked at when somebody asks, and no more often than each `ROUTES_MS`: hints may be
old. A position alone makes a change when it has come so far that a client's word of it may soon
be out of the key log's reach (rule 5), not with each write.
"""

from __future__ import annotations

from array import array
from struct import Struct
from typing import TYPE_CHECKING, Final

from cluster.limits import KEY_LOG_ENTRIES_MAX
from cluster.records import BALLOT_BYTES, VERSION_BYTES, pack_version
from kvstore.wire.protocol import RouteNode, Routes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cluster.ballot import NodeId, Position
    from cluster.topology import Topology
    from kvstore.node.directory import Directory

ROUTES_MS: Final = 250
"""Age of a table that is still handed out: to look takes 15 ms, in which nothing else is done."""

UNKNOWN: Final = 0xFFFF

POSITIONS_BEHIND: Final = KEY_LOG_ENTRIES_MAX // 4
"""Operations of a slot after which its position counts as changed."""

DIFFERENCES_MAX: Final = 64
"""Kept for as long as the table is: when a node dies, all clients ask the same."""

_GONE: Final = ("dead", "left")

_POSITION: Final = Struct(f">{BALLOT_BYTES}sQ")
assert _POSITION.size == VERSION_BYTES


class RouteTable:
    """Of one node.

    Args:
        me: The node.
        directory: What the others lead.
        source: A number that no other process has.
    """

    def __init__(self, me: NodeId, directory: Directory, source: int) -> None:
        self._me = me
        self._directory = directory
        self._source = source
        self._version = 0
        self._removed_at = 0
        """The version in which a node was last missing that had been there."""
        self._leaders: list[NodeId | None] = []
        self._positions = bytearray()
        """As of the version in which each slot changed last."""
        self._changed_at = array("Q")
        self._nodes: dict[NodeId, RouteNode] = {}
        self._node_changed_at: dict[NodeId, int] = {}
        self._whole: Routes | None = None
        self._differences: dict[int, Routes] = {}
        self._looked_ms = 0

    def routes(self, source: int, since: int) -> Routes:
        """The table, or its difference from a version that this process gave; see `look`."""
        assert self._whole is not None
        known = source == self._source and self._removed_at <= since <= self._version
        if not known or not since:
            return self._whole
        found = self._differences.get(since)
        if found is None:
            found = self._difference(since)
            if len(self._differences) < DIFFERENCES_MAX:
                self._differences[since] = found
        return found

    def is_fresh(self, now_ms: int) -> bool:
        """Whether `look` would be too early."""
        return self._whole is not None and now_ms - self._looked_ms < ROUTES_MS

    def look(
        self,
        topology: Topology,
        states: dict[NodeId, str],
        led: Iterable[tuple[int, Position]],
        now_ms: int,
    ) -> None:
        """Take the table as it is now; some 15 ms for 16,384 slots.

        Args:
            topology: Its nodes are listed.
            states: By gossip; whoever is dead leads nothing that could be asked of it.
            led: The data's slots that this node leads; it names itself only while it is listed.
            now_ms: Monotonic time.
        """
        count = topology.slot_count
        self._looked_ms = now_ms
        nodes = {
            n.id: RouteNode(
                *(n.id, n.name, n.address, n.http_address, n.zone), states.get(n.id, "alive")
            )
            for n in topology.nodes
        }
        gone = {node for node in states if states[node] in _GONE}
        leaders = [
            None if node in gone or node not in nodes else node
            for node in self._directory.leaders[:count]
        ]
        positions = self._directory.positions[: VERSION_BYTES * count]
        for number, position in led:
            leaders[number] = self._me if self._me in nodes else None
            packed = pack_version(position.established, position.sequence)
            positions[number * VERSION_BYTES : (number + 1) * VERSION_BYTES] = packed
        if not self._leaders:
            self._leaders, self._positions = [None] * count, bytearray(len(positions))
            self._changed_at = array("Q", bytes(8 * count))
        changed = self._compare(leaders, positions)
        if changed or nodes != self._nodes:
            self._version += 1
            self._note(nodes, changed, leaders, positions)
        self._differences.clear()
        self._whole = self._make(topology, nodes, leaders, positions)

    def _compare(self, leaders: Sequence[NodeId | None], positions: bytearray) -> list[int]:
        """The slots that have changed."""
        before, known = self._positions, self._leaders
        if positions == before and leaders == known:
            return []
        read = _POSITION.iter_unpack
        pairs = zip(leaders, known, read(positions), read(before), strict=True)
        return [
            number
            for number, (leader, was, (ballot, newest), (older, then)) in enumerate(pairs)
            if leader != was or ballot != older or newest - then >= POSITIONS_BEHIND
        ]

    def _note(
        self,
        nodes: dict[NodeId, RouteNode],
        changed: list[int],
        leaders: list[NodeId | None],
        positions: bytearray,
    ) -> None:
        version = self._version
        for number in changed:
            begin, end = number * VERSION_BYTES, (number + 1) * VERSION_BYTES
            self._changed_at[number] = version
            self._leaders[number] = leaders[number]
            self._positions[begin:end] = positions[begin:end]
        if self._nodes.keys() - nodes.keys():
            self._removed_at = version
        self._node_changed_at = {
            node: self._node_changed_at[node] if self._nodes.get(node) == listed else version
            for node, listed in nodes.items()
        }
        self._nodes = nodes

    def _make(
        self,
        topology: Topology,
        nodes: dict[NodeId, RouteNode],
        leaders: Sequence[NodeId | None],
        positions: bytearray,
    ) -> Routes:
        index = {node: at for at, node in enumerate(nodes)}
        return Routes(
            0,
            topology.cluster_id,
            topology.cluster_name,
            topology.epoch,
            topology.slot_count,
            list(nodes.values()),
            _packed([UNKNOWN if node is None else index[node] for node in leaders]),
            bytes(positions),
            self._source,
            self._version,
        )

    def _difference(self, since: int) -> Routes:
        """From a version on; the whole table where that is hardly more."""
        whole = self._whole
        assert whole is not None
        slots = [number for number, at in enumerate(self._changed_at) if at > since]
        if 2 * len(slots) > whole.slot_count:
            return whole
        leaders = [self._leaders[number] for number in slots]
        named = {node for node in leaders if node is not None}
        named.update(node for node, at in self._node_changed_at.items() if at > since)
        nodes = [self._nodes[node] for node in sorted(named)]
        index: dict[NodeId | None, int] = {node.id: at for at, node in enumerate(nodes)}
        told = whole.positions
        return Routes(
            0,
            whole.cluster_id,
            whole.cluster_name,
            whole.epoch,
            whole.slot_count,
            nodes,
            _packed([index.get(leader, UNKNOWN) for leader in leaders]),
            b"".join(told[n * VERSION_BYTES : (n + 1) * VERSION_BYTES] for n in slots),
            self._source,
            self._version,
            since,
            _packed(slots),
        )


def _packed(numbers: Iterable[int]) -> bytes:
    """Two bytes each, big-endian."""
    packed = array("H", numbers)
    if array("H", b"\0\1")[0] != 1:
        packed.byteswap()
    return packed.tobytes()
