"""The walk with members that change: five nodes, owners that are others every now and then.

Each node knows the newest owners, or older ones for a while. A node that holds nothing may lose its
disk, and comes back under a new id (rule 12). A config that is just proposed draws a cut between
the old members and the new ones: that is where faults hurt most. In the end every node knows the
newest owners, and every slot must have come to them: nothing else holds any of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cluster.messages import Accept
from cluster.slot import Primary, Slot
from cluster.slot_config import SlotConfig
from kvstore.storage import keyspace
from kvstore.storage.engine import Table
from kvstore.storage.memory import MemoryEngine
from tests.simulation.walk import SLOT, Op, SimNode, World

if TYPE_CHECKING:
    from cluster.ballot import NodeId

SLOTS = 2
MEND_RATE = 0.02
Owners = list[tuple["NodeId", ...]]


class MovingNode(SimNode):
    """A node that has heard of some topology."""

    known = 0
    world: MovingWorld  # type: ignore[mutable-override]

    def start(self) -> None:
        super().start()
        moves = self.table.moves
        moves.in_flight_max = self.world.in_flight_max
        moves.throttle.set_rate(self.world.bytes_per_s)
        self.table.set_owners(self.world.epochs[self.known])

    def hear(self, epoch: int) -> None:
        if epoch > self.known:
            self.known = epoch
            self.table.set_owners(self.world.epochs[epoch])

    def slot(self, number: int = SLOT) -> Slot | None:
        """The slot if anything of it is held here."""
        slot = self.table.slots[number]
        return slot if slot is not None and slot.holds_state else None


class MovingWorld(World):
    """Owners come and go."""

    nodes: list[MovingNode]  # type: ignore[assignment]

    def __post_init__(self) -> None:
        self.in_flight_max, self.bytes_per_s = 32, None
        self.proposed: dict[int, SlotConfig] = {}
        self.strike: set[int] = set()
        """The proposer of a config and whom it adds: cut them off from the others."""
        self.late_rate = 0.0
        super().__post_init__()
        rng = self.rng
        self.steps = 800
        self.crash_rate = rng.choice([0, 0.005, 0.02])
        self.cut_rate = rng.choice([0, 0.005, 0.01])
        self.move_rate = rng.choice([0.005, 0.02])
        self.wipe_rate = rng.choice([0, 0.01])
        self.strike_rate = rng.choice([0, 0.2, 0.5])
        self.late: list[tuple[int, int, Any]] = []
        self.late_rate = rng.choice([0, 0.03, 0.1])
        self.in_flight_max = rng.choice([1, 32])
        self.bytes_per_s = rng.choice([None, None, 1_000])
        drop, copy = self.drop, self.copy
        self.heal()
        self.drop, self.copy, self.chaos = drop, copy, True

    def choose_ids(self) -> list[int]:
        ids = list(range(1, 6))
        first = tuple(self.rng.sample(ids, 3))
        self.epochs: list[Owners] = [[first] * SLOTS]
        self.born = len(ids)
        return ids

    def first_owners(self) -> tuple[int, ...]:
        return self.epochs[0][SLOT]

    def make_node(self, me: int) -> MovingNode:
        return MovingNode(self, me)

    def node(self, me: int) -> MovingNode:
        return next(node for node in self.nodes if node.me == me)

    def leader(self) -> int:
        return self.epochs[-1][SLOT][0]

    # -- what happens ------------------------------------------------------------------------

    def send(self, sender: int, to: int, message: Any) -> None:
        if to not in self.ids:
            return
        if self.chaos and self.rng.random() < self.late_rate and (sender, to) not in self.cut:
            self.late.append((sender, to, message))
            return
        super().send(sender, to, message)
        if isinstance(message, Accept) and message.config is not None:
            before = self.proposed.get(message.slot)
            self.proposed[message.slot] = message.config
            if before is not None and before != message.config:
                self.strike = {sender, *set(message.config.everyone).difference(before.sets[0])}

    def step(self) -> None:
        rng = self.rng
        side, self.strike = self.strike, set()
        if side and rng.random() < self.strike_rate:
            self.cut_off(
                side.intersection(self.ids).union(rng.sample(self.ids, rng.choice([0, 1])))
            )
            if rng.random() < 0.5:
                self.net += self.late
                self.late = []
        if self.cut and rng.random() < MEND_RATE:
            self.mend()
        roll = rng.random()
        if roll < self.move_rate:
            self.change_owners()
        elif roll < self.move_rate + self.wipe_rate:
            self.wipe()
        elif roll < 2 * self.move_rate + self.wipe_rate + 0.02:
            rng.choice(self.nodes).hear(rng.randrange(len(self.epochs)))
        elif self.late and rng.random() < 0.03:
            self.net.append(self.late.pop(rng.randrange(len(self.late))))
        else:
            super().step()

    def ordinary_step(self, kind: str) -> None:
        """Much happens at once: five nodes, and a move takes a dozen messages and fsyncs."""
        rng = self.rng
        if kind == "t":
            self.now_ms += rng.choice([5, 50, 50, 300, 1_000])
            for node in self.nodes:
                if rng.random() < 0.7:
                    node.table.set_time(self.now_ms, 0)
                    node.table.tick()
        elif kind == "e":
            for node in self.nodes:
                if rng.random() < 0.7:
                    node.end_tick()
        elif kind == "d":
            for _ in range(rng.randrange(1, 16)):
                self.deliver()
        elif kind == "s":
            for node in self.nodes:
                if rng.random() < 0.5:
                    node.sync()
        else:
            super().ordinary_step(kind)

    def attempt(self, op: Op) -> None:
        """Mostly at a node that calls itself primary, rightly or not."""
        everyone = self.nodes
        leading = [n for n in everyone if (s := n.slot()) and isinstance(s.role, Primary)]
        if leading and self.rng.random() < 0.8:
            self.nodes = leading
        try:
            super().attempt(op)
        finally:
            self.nodes = everyone

    def client_step(self, client: int, *, fresh: bool = True) -> None:
        op = self.calls[client]
        if self.chaos and op is not None and op.tries and self.rng.random() < 0.8:
            return
        super().client_step(client, fresh=fresh)

    def cut_off(self, side: set[int]) -> None:
        """These can talk to each other, and to nobody else."""
        self.mend()
        self.cut = {p for a in side for b in self.ids if b not in side for p in ((a, b), (b, a))}
        for a, b in sorted(self.cut):
            self.node(a).table.peer_down(b)

    def change_owners(self) -> None:
        """A new topology: other owners, fewer, more, or the same in another order."""
        rng, newest = self.rng, self.epochs[-1]
        owners = []
        for number in range(SLOTS):
            if rng.random() < 0.2:
                owners.append(tuple(rng.sample(newest[number], len(newest[number]))))
            else:
                owners.append(tuple(rng.sample(self.ids, rng.choice([1, 2, 3, 3, 3, 3, 4, 5]))))
        self.epochs.append(owners)
        for node in self.nodes:
            if rng.random() < 0.6:
                node.hear(len(self.epochs) - 1)

    def wipe(self) -> None:
        """A node whom nothing depends on loses its disk: another one comes in its place."""
        needed = {n for known in {node.known for node in self.nodes} for n in self.named(known)}
        needed |= {n for node in self.nodes for n in self.configured(node)}
        spare = [node for node in self.nodes if node.me not in needed | self.named(-1)]
        if not spare:
            return
        old = self.rng.choice(spare)
        self.born += 1
        at = self.nodes.index(old)
        self.ids.remove(old.me)
        self.ids.append(self.born)
        self.net = [m for m in self.net if m[1] != old.me]
        self.late = [m for m in self.late if m[1] != old.me]
        self.cut = {(a, b) for a, b in self.cut if old.me not in (a, b)}
        new = self.nodes[at] = self.newcomer(self.born)
        for other in self.nodes:
            if other is not new:
                other.table.peer_down(old.me)
                other.table.peer_up(new.me)
                new.hear_leads(other, complete=True)

    def newcomer(self, me: int) -> MovingNode:
        node = MovingNode.__new__(MovingNode)
        node.world, node.me, node.engine = self, me, MemoryEngine()
        node.found, node.epoch, node.known = True, 0, len(self.epochs) - 1
        node.start()
        return node

    def named(self, epoch: int) -> set[int]:
        return {node for owners in self.epochs[epoch] for node in owners}

    @staticmethod
    def configured(node: MovingNode) -> set[int]:
        slots = [s for number in range(SLOTS) if (s := node.slot(number)) is not None]
        return {n for slot in slots for n in (node.me, *slot.config.everyone)}

    # -- the end -----------------------------------------------------------------------------

    def heal(self) -> None:
        self.net += self.late
        self.late = []
        for node in self.nodes:
            node.hear(len(self.epochs) - 1)
        super().heal()

    def is_well(self) -> bool:
        if self.net or any(op is not None for op in self.calls.values()):
            return False
        return all(self.has_arrived(number) for number in range(SLOTS))

    def has_arrived(self, number: int) -> bool:
        """Whether a slot is where it is wanted, all of it, and nowhere else."""
        wanted = self.epochs[-1][number]
        holders = {node.me: slot for node in self.nodes if (slot := node.slot(number))}
        if holders.keys() != set(wanted):
            return False
        role = holders[wanted[0]].role
        return (
            isinstance(role, Primary)
            and role.serving
            and role.committed == holders[wanted[0]].sequence
            and len({slot.position for slot in holders.values()}) == 1
            and all(slot.config == SlotConfig((wanted,)) for slot in holders.values())
            and not any(self.leftovers(n, number) for n in self.nodes if n.me not in holders)
        )

    @staticmethod
    def leftovers(node: MovingNode, number: int) -> int:
        """Records and log entries of a slot in a node's store, in any generation."""
        begin = keyspace.record_prefix(number, 0)[:2]
        end = keyspace.prefix_end(begin)
        return sum(
            len(node.engine.scan(table, begin, end, limit=9))
            for table in (Table.RECORDS, Table.LOG)
        )
