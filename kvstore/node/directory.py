"""Who leads what, cluster-wide, as this node has been told: hints for routing (rule 10).

Every node tells every other which slots it leads: all of them when a link opens, changes as they
happen. For its clients a node keeps that as two flat tables, which are also what a client is sent
(`kvstore.wire.protocol.Routes`): two bytes a slot for the leader, 20 bytes a slot for a committed
position (rule 5 lets a client begin with it).
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from cluster.records import BALLOT_BYTES, VERSION_BYTES, pack_version
from kvstore.wire.protocol import Leads, RouteNode, Routes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cluster.ballot import NodeId, Position
    from cluster.topology import Topology

UNKNOWN = 0xFFFF
_NO_POSITION = bytes(VERSION_BYTES)


def pack_leads(
    slots: Iterable[tuple[int, Position]], lost: Iterable[int], *, complete: bool
) -> Leads:
    """What this node leads, for another node."""
    numbers, positions = bytearray(), bytearray()
    for number, position in slots:
        numbers += number.to_bytes(2, "big")
        positions += pack_version(position.established, position.sequence)
    gone = b"".join(number.to_bytes(2, "big") for number in lost)
    return Leads(complete, bytes(numbers), bytes(positions), gone)


def unpack_slots(data: bytes) -> list[int]:
    """Slot numbers of two big-endian bytes each.

    Raises:
        ValueError: an odd number of bytes.
    """
    if len(data) % 2:
        raise ValueError("a list of slots has two bytes for each")
    numbers = array("H", data)
    if array("H", b"\0\1")[0] != 1:
        numbers.byteswap()
    return numbers.tolist()


class Directory:
    """The routing table of this node."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        """All of them, the system slot included."""
        self.leaders: list[NodeId | None] = [None] * slots
        self._positions = bytearray(VERSION_BYTES * slots)

    def take(self, node: NodeId, leads: Leads) -> tuple[list[int], list[int]]:
        """A node's summary: returns the slots that it now leads, and those that it leads no more.

        Summaries of two nodes may arrive crosswise; the higher ballot is the newer leader.

        Raises:
            ValueError: a malformed summary.
        """
        slots, lost = unpack_slots(leads.slots), unpack_slots(leads.lost)
        if len(leads.positions) != len(slots) * VERSION_BYTES:
            raise ValueError("a summary has one position for each slot")
        if any(number >= self._slots for number in (*slots, *lost)):
            raise ValueError("a summary names a slot that this cluster does not have")
        if leads.complete:
            named = set(slots)
            lost = [n for n, led in enumerate(self.leaders) if led == node and n not in named]
        for number in lost:
            if self.leaders[number] == node:
                self.leaders[number] = None
        led: list[int] = []
        for at, number in enumerate(slots):
            position = leads.positions[at * VERSION_BYTES : (at + 1) * VERSION_BYTES]
            begin = number * VERSION_BYTES
            if position[:BALLOT_BYTES] < self._positions[begin : begin + BALLOT_BYTES]:
                continue  # word of a leader before, by another connection: ballots tell the order
            self.leaders[number] = node
            self._positions[begin : begin + VERSION_BYTES] = position
            led.append(number)
        return led, lost

    def led_by(self, node: NodeId) -> list[int]:
        """The slots that this node has said it leads."""
        return [number for number, leader in enumerate(self.leaders) if leader == node]

    def forget(self, node: NodeId) -> None:
        """This node is no member any more."""
        self.leaders = [None if leader == node else leader for leader in self.leaders]

    def routes(
        self,
        frame_id: int,
        topology: Topology,
        states: dict[NodeId, str],
        me: NodeId,
        led: Iterable[tuple[int, Position]],
    ) -> Routes:
        """The table as a client is sent it; ``led`` are the data's slots that this node leads.

        Whoever is dead leads nothing that could be asked of it.
        """
        gone = ("dead", "left")
        index = {
            node.id: at for at, node in enumerate(topology.nodes) if states.get(node.id) not in gone
        }
        primaries = array(
            "H",
            [
                UNKNOWN if node is None else index.get(node, UNKNOWN)
                for node in self.leaders[: topology.slot_count]
            ],
        )
        positions = self._positions[: VERSION_BYTES * topology.slot_count]
        for number, position in led:
            primaries[number] = index[me]
            packed = pack_version(position.established, position.sequence)
            positions[number * VERSION_BYTES : (number + 1) * VERSION_BYTES] = packed
        if array("H", b"\0\1")[0] != 1:
            primaries.byteswap()
        nodes = [
            RouteNode(n.id, n.name, n.address, n.http_address, n.zone, states.get(n.id, "alive"))
            for n in topology.nodes
        ]
        return Routes(
            frame_id,
            topology.cluster_id,
            topology.cluster_name,
            topology.epoch,
            topology.slot_count,
            nodes,
            primaries.tobytes(),
            bytes(positions),
        )
