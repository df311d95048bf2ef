"""Who leads what, cluster-wide, as this node has been told: hints for routing (rule 10).

Every node tells every other which slots it leads: all of them when a link opens, changes as they
happen: a leader for each slot, and a committed position (rule 5 lets a client begin with it). What
a client is sent of it is made in `kvstore.node.route_table`.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from cluster.records import BALLOT_BYTES, VERSION_BYTES
from kvstore.wire.protocol import Leads

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cluster.ballot import NodeId


def pack_leads(slots: Iterable[tuple[int, bytes]], lost: Iterable[int], *, complete: bool) -> Leads:
    """What this node leads, each with its packed position, for another node."""
    numbers, positions = bytearray(), bytearray()
    for number, position in slots:
        numbers += number.to_bytes(2, "big")
        positions += position
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
    """Who leads each slot, by the word of the others."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        """All of them, the system slot included."""
        self.leaders: list[NodeId | None] = [None] * slots
        self.positions = bytearray(VERSION_BYTES * slots)
        """20 bytes a slot (`cluster.records.pack_version`), zeros where nobody told."""
        self.moved: set[int] = set()
        """Slots of which something was told since the routing table looked last."""

    def take(self, node: NodeId, leads: Leads) -> tuple[list[int], list[int]]:
        """A node's summary: returns the slots that it now leads, and those that it leads no more.

        Summaries of two nodes may arrive crosswise; the higher ballot is the newer leader.

        Raises:
            ValueError: a malformed summary.
        """
        slots, lost = unpack_slots(leads.slots), unpack_slots(leads.lost)
        if len(leads.positions) != len(slots) * VERSION_BYTES:
            raise ValueError("a summary has one position for each slot")
        if max(slots, default=0) >= self._slots or max(lost, default=0) >= self._slots:
            raise ValueError("a summary names a slot that this cluster does not have")
        if leads.complete:
            named = set(slots)
            lost = [n for n, led in enumerate(self.leaders) if led == node and n not in named]
        self.moved.update(slots, lost)
        for number in lost:
            if self.leaders[number] == node:
                self.leaders[number] = None
        led: list[int] = []
        for at, number in enumerate(slots):
            position = leads.positions[at * VERSION_BYTES : (at + 1) * VERSION_BYTES]
            begin = number * VERSION_BYTES
            if position[:BALLOT_BYTES] < self.positions[begin : begin + BALLOT_BYTES]:
                continue  # word of a leader before, by another connection: ballots tell the order
            self.leaders[number] = node
            self.positions[begin : begin + VERSION_BYTES] = position
            led.append(number)
        return led, lost

    def ballot_of(self, slot: int) -> bytes:
        """In which ballot its leader leads it (`cluster.records.pack_ballot`)."""
        begin = slot * VERSION_BYTES
        return bytes(self.positions[begin : begin + BALLOT_BYTES])

    def led_by(self, node: NodeId) -> list[int]:
        """The slots that this node has said it leads."""
        return [number for number, leader in enumerate(self.leaders) if leader == node]

    def forget(self, node: NodeId) -> None:
        """This node is no member any more."""
        self.moved.update(self.led_by(node))
        self.leaders = [None if leader == node else leader for leader in self.leaders]
