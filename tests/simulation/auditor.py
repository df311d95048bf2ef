"""What holds in a simulated cluster at any time, and what must hold when all is well again.

The auditor looks into the nodes from outside, often, and remembers: two replicas that pass through
one position at different times are compared too. A look costs little because only what has changed
since the last one is read.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from cluster.key_log import decode_entry
from cluster.limits import FRAME_BYTES_MAX, PEER_UNSENT_BYTES_MAX, SLOT_OPERATIONS_IN_FLIGHT_MAX
from cluster.reconfigure import next_config
from cluster.slot import Primary
from cluster.slot_table import HELD_CALLS_MAX
from tests.simulation.machines import owners_once
from tests.simulation.process_loop import Violation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cluster.ballot import NodeId, Position
    from cluster.slot import Slot
    from tests.simulation.machines import Machine
    from tests.simulation.world import World

Held = list[list[tuple["Machine", "Slot"]]]


class Auditor:
    """Looks at one world."""

    def __init__(self, world: World, slot_count: int) -> None:
        self._world = world
        self.slot_count = slot_count
        self._looked: dict[tuple[int, NodeId], tuple[object, ...]] = {}
        """Slot and node -> where it stood when its content was read last."""
        self._led: dict[tuple[int, NodeId], Primary] = {}
        """Slot and node -> the role whose ballot was looked at last."""
        self._contents: dict[tuple[int, Position], tuple[str, bytes]] = {}
        """Slot and position -> who stood there first, and the digest of its content."""
        self._ballots: dict[tuple[int, Any], tuple[NodeId, int]] = {}
        """Slot and ballot -> who serves it, since which start of its process."""

    def replicas(self) -> Held:
        """By slot, who holds it; the system slot is the last."""
        held: Held = [[] for _ in range(self.slot_count + 1)]
        for machine, node in self._world.nodes():
            for slot in node.table.slots:
                if slot is not None and slot.holds_state:
                    held[slot.number].append((machine, slot))
        return held

    # -- at any time ---------------------------------------------------------------------------

    def look(self) -> None:
        """The invariants of the protocol, over all nodes.

        Raises:
            Violation: one does not hold.
        """
        for machine, node in self._world.nodes():
            node.table.check()
            self._bounded(machine, node)
            is_rotten = machine.disk.is_rotten
            for slot in node.table.slots:
                if slot is None:
                    continue
                if isinstance(slot.role, Primary):
                    self._lead(machine, slot, slot.role)
                if slot.holds_state and not slot.damaged and not is_rotten:
                    self._compare(machine, node, slot)

    def _lead(self, machine: Machine, slot: Slot, role: Primary) -> None:
        """No two processes lead in one ballot, and none has more waiting than it may."""
        key = (slot.number, machine.id)
        if self._led.get(key) is not role:
            self._led[key] = role
            mine = (machine.id, machine.starts)
            if self._ballots.setdefault((slot.number, role.ballot), mine) != mine:
                raise Violation(f"slot {slot.number} has two primaries of ballot {role.ballot}")
        _bound(machine, "waiting", len(role.waiting), SLOT_OPERATIONS_IN_FLIGHT_MAX)
        _bound(machine, "held", len(role.held), HELD_CALLS_MAX)
        _bound(machine, "retried", len(role.retried), self._world.plan.knobs.retried + 1)

    def _compare(self, machine: Machine, node: Any, slot: Slot) -> None:
        key = (slot.number, machine.id)
        here = (slot.established, slot.sequence, slot.prefix, slot.config)
        if self._looked.get(key) == here:
            return
        self._looked[key] = here
        digest = self._digest(node, slot)
        host, other = self._contents.setdefault(
            (slot.number, slot.position), (machine.host, digest)
        )
        if other != digest:
            raise Violation(
                f"slot {slot.number}: {host} and {machine.host} differ at {slot.position}"
            )

    @staticmethod
    def _digest(node: Any, slot: Slot) -> bytes:
        """Of records, key log and config of a replica."""
        records = node.store.scan(slot.prefix, b"", 10_000)
        log = node.store.log_entries(slot.prefix, 0)
        return blake2b(repr((records, log, slot.config)).encode(), digest_size=16).digest()

    def _bounded(self, machine: Machine, node: Any) -> None:
        """No queue of a node is longer than it may be."""
        for link in (*node.peers._data.values(), *node.peers._gossip.values()):
            unsent_max = PEER_UNSENT_BYTES_MAX + FRAME_BYTES_MAX
            _bound(machine, "unsent", link.unsent_bytes, unsent_max)

    # -- when all is well ------------------------------------------------------------------------

    def is_served(self) -> bool:
        """Whether every member runs and knows a primary for every slot."""
        members = [m for m in self._world.machines if not m.out]
        nodes = self._world.nodes()
        return len(nodes) == len(members) and not any(
            node.board.not_ready_reason() for _, node in nodes
        )

    def is_equal(self) -> bool:
        """Whether all moves are finished, and all replicas stand at one position, all committed."""
        return next(self.unequal(), None) is None

    def unequal(self) -> Iterator[str]:
        """What is not as it should be yet, for a person."""
        nodes = self._world.nodes()
        epochs = {node.topology.epoch for _, node in nodes}
        if len(epochs) != 1:
            yield f"epochs {sorted(epochs)}"
            return
        topology = nodes[0][1].topology
        if {node.id for node in topology.nodes} != {m.id for m, _ in nodes}:
            yield f"members {[node.name for node in topology.nodes]}"
        for machine, _ in nodes:
            if machine.disk.is_rotten:
                yield f"{machine.host} has a rotten record"
        wanted = owners_once(topology)
        for number, held in enumerate(self.replicas()):
            leads = [slot for _, slot in held if isinstance(slot.role, Primary)]
            places = ", ".join(f"{m.host} {s.position.established}.{s.sequence}" for m, s in held)
            if len(leads) != 1:
                yield f"slot {number} has {len(leads)} primaries ({places})"
                continue
            slot = leads[0]
            if next_config(slot.config, wanted[number]) is not None:
                yield f"slot {number} is at {slot.config}, not at {wanted[number]}"
            if {machine.id for machine, _ in held} != set(slot.config.members):
                yield f"slot {number} is held by others than {slot.config.members} ({places})"
            if len({slot.position for _, slot in held}) != 1 or any(s.damaged for _, s in held):
                yield f"slot {number} differs ({places})"
            assert isinstance(slot.role, Primary)
            if slot.role.committed != slot.sequence:
                yield f"slot {number} has committed {slot.role.committed} of {slot.sequence}"

    def may_lose_a_disk(self, copies_min: int) -> bool:
        """Whether one more loss leaves every slot with a quorum of whole copies."""
        machines = self._world.machines
        ids = {machine.id for machine in machines if not machine.out}
        nodes = self._world.nodes()
        if {machine.id for machine, _ in nodes} != ids or any(m.disk.lost for m in machines):
            return False
        for machine, node in nodes:
            if machine.disk.fail_next_sync or machine.disk.is_rotten:
                return False
            if not {member.id for member in node.topology.nodes} <= ids:
                return False
        for held in self.replicas():
            for _, slot in held:
                sets = slot.config.sets
                if slot.damaged or not set(slot.config.everyone) <= ids:
                    return False
                if any(len(members) < copies_min for members in sets):
                    return False
        return True

    def check_exactly_once(self) -> None:
        """No operation stands twice in a key log.

        Raises:
            Violation: one does.
        """
        for number, held in enumerate(self.replicas()):
            machine, slot = held[0]
            assert machine.node is not None
            seen = set()
            for sequence, raw in machine.node.store.log_entries(slot.prefix, 0):
                entry = decode_entry(raw)
                operation = (entry.client, entry.number)
                if entry.client and operation in seen:
                    raise Violation(f"slot {number} carried out {operation} again at {sequence}")
                seen.add(operation)

    def left_over(self) -> Iterator[str]:
        """What is still waiting anywhere of all that was asked for."""
        for machine, node in self._world.nodes():
            left = {
                "requests": node.router.in_flight,
                "admitted": node.admission.requests,
                "admitted bytes": node.admission.size_bytes,
                "rounds of reads": len(node.table._reads._sent),
                "waiting": sum(
                    len(slot.role.waiting) + len(slot.role.held)
                    for slot in node.table.slots
                    if slot is not None and isinstance(slot.role, Primary)
                ),
            }
            for what, count in left.items():
                if count:
                    yield f"{machine.host} still has {count} {what}"


def _bound(machine: Machine, what: str, count: int, limit: int) -> None:
    if count > limit:
        raise Violation(f"{machine.host}: {count} {what}, {limit} is the most")
