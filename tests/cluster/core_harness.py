"""Three slot tables whose messages, fsyncs and crashes the test decides, one verb a line.

Every verb that touches a node is one tick of it: what the tick sends waits on its link until
`Cluster.deliver`, what must wait for the disk waits until `Cluster.sync`. Nothing happens by
itself, nothing is random, and no time passes but by `Cluster.pass_time`. Where nothing else is said
there is one slot, 0, with the members 1, 2 and 3 in ring order, so node 1 leads it.

What nodes tell each other of who leads (hints, never rules) arrives at once, unless the link is
held.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, TypeVar

import msgpack
import msgspec

from cluster.key_log import LogEntry, decode_entry
from cluster.operations import Delete, Get, Incr, Put
from cluster.records import decode_record, pack_version
from cluster.slot import Call, Primary, Slot
from cluster.slot_table import SlotTable
from kvstore.node.recovery import stored_slots
from kvstore.storage.engine import Table
from kvstore.storage.memory import MemoryEngine
from kvstore.storage.tick_store import TickStore

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cluster.ballot import NodeId, Position
    from cluster.messages import SlotMessage
    from cluster.operations import Operation, Result
    from cluster.outputs import Changed, Told
    from cluster.scrub import Finding

SLOT = 0
MEMBERS = (1, 2, 3)
NO_VERSION = bytes(20)
"""``seen`` of a client that was never told a position."""

Kind = TypeVar("Kind")


_restarts = count(1)


class NoJitter:
    """The chance that is none."""

    def randrange(self, start: int, /) -> int:
        """No jitter; a number that must not be that of before a restart is another one."""
        return next(_restarts) << 32 if start > 1 << 32 else 0


@dataclass(eq=False)
class Asked:
    """A client's operation, and everything that its attempts were answered."""

    operation: Operation
    client: int
    number: int
    seen: bytes
    slot: int = SLOT
    accepted: bool = True
    """Whether the last node that was asked took it."""
    answers: list[Result] = field(default_factory=list)
    moved: list[bool] = field(default_factory=list)
    """One entry each time that a node gave it back (R4): whether it had been started."""

    @property
    def answer(self) -> Result | None:
        """The newest answer, None while there is none."""
        return self.answers[-1] if self.answers else None


class Node:
    """A table, and a disk that a crash takes back to what an fsync covered."""

    def __init__(self, cluster: Cluster, me: NodeId) -> None:
        self.cluster, self.me = cluster, me
        self.engine = MemoryEngine()
        self.unsynced: list[tuple[NodeId, SlotMessage]] = []
        self.watched: list[Changed | Told] = []
        """What watchers were told, in order."""
        self.alarms: list[Finding] = []
        self._open()

    def _open(self) -> None:
        self.store = TickStore(self.engine)
        self.table = SlotTable(self.me, len(self.cluster.owners), self.store, NoJitter())
        self.table.set_time(self.cluster.now_ms, self.cluster.unix_ms)
        for node in self.cluster.ids:
            self.table.peer_hoped(node)
        if self.cluster.wanted:
            self.table.set_owners(self.cluster.wanted)

    @property
    def slot(self) -> Slot:
        slot = self.table.slots[SLOT]
        assert slot is not None
        return slot

    def found(self) -> None:
        self.table.found(self.cluster.owners)
        self.end_tick()
        self.engine.sync()

    def end_tick(self) -> None:
        out = self.table.take()
        batch = self.store.take()
        if len(batch):
            self.engine.write(batch)
        for peer, messages in out.send.items():
            self.cluster.wire(self.me, peer).extend(messages)
        for peer, messages in out.after_fsync.items():
            self.unsynced += [(peer, message) for message in messages]
        for asked, result in out.answers:
            asked.answers.append(result)
            self.cluster.answered.append(asked)
        for moved in out.moved:
            moved.ticket.moved.append(moved.started)
        self.watched += out.watched
        if out.leads_changed:
            self.cluster.tell_leads(self)
        self.alarms += out.alarms
        self.table.check()

    def sync(self) -> None:
        """The fsync ends: what waited for it leaves, and comes back where it is for this node."""
        self.engine.sync()
        released, self.unsynced = self.unsynced, []
        for peer, message in released:
            if peer == self.me:
                self.table.receive(self.me, [message])
            else:
                self.cluster.wire(self.me, peer).append(message)
        self.end_tick()

    def crash(self, keep: int) -> None:
        """The process and its unsynced batches are lost, but for the ``keep`` oldest batches."""
        self.engine.crash(keep=keep)
        self.unsynced = []
        self._open()
        self.table.restore(stored_slots(self.engine))


class Cluster:
    """Nodes in touch with each other; the first owner of each slot serves it, all is at rest.

    Args:
        owners: Each slot's members by the founding document.
        ids: All nodes, owners or not.
        at_rest: Whether to let the owners take their slots over first.
    """

    def __init__(
        self,
        *,
        owners: Sequence[tuple[NodeId, ...]] = (MEMBERS,),
        ids: tuple[NodeId, ...] = MEMBERS,
        at_rest: bool = True,
    ) -> None:
        self.owners, self.ids = owners, ids
        self.now_ms, self.unix_ms = 0, 1_000_000
        self.wires: dict[tuple[NodeId, NodeId], list[SlotMessage]] = {}
        self.held: set[tuple[NodeId, NodeId]] = set()
        self.wanted: Sequence[tuple[NodeId, ...]] = ()
        """The owners by the newest topology, which every node knows; none at first."""
        self.answered: list[Asked] = []
        """Everything that was answered, in order."""
        self._numbers = 0
        self.nodes = {me: Node(self, me) for me in ids}
        for node in self.nodes.values():
            for other in self._others(node.me):
                if at_rest:
                    node.table.peer_leads(other, (), complete=True)
            node.found()
        if at_rest:
            self.settle()
            assert all(self.serves(members[0]) for members in owners)

    # -- clients -----------------------------------------------------------------------------

    def put(
        self,
        at: NodeId,
        key: bytes,
        value: object,
        *,
        expect: bytes | None = None,
        ttl_ms: int = 0,
        seen: bytes | None = None,
    ) -> Asked:
        raw = msgspec.Raw(msgpack.packb(value))
        return self.ask(at, Put(key, raw, "", ttl_ms, expect), seen=seen)

    def incr(self, at: NodeId, key: bytes, *, by: int = 1, seen: bytes | None = None) -> Asked:
        return self.ask(at, Incr(key, by), seen=seen)

    def delete(self, at: NodeId, key: bytes) -> Asked:
        return self.ask(at, Delete(key))

    def get(self, at: NodeId, key: bytes) -> Asked:
        return self.ask(at, Get(key))

    def ask(self, at: NodeId, operation: Operation, *, seen: bytes | None = None) -> Asked:
        """A first attempt, under a new id; ``seen`` is the newest if nothing else is said."""
        asked = self.new(operation, seen=self.version(at) if seen is None else seen)
        self.submit(at, asked)
        self.nodes[at].end_tick()
        return asked

    def new(self, operation: Operation, *, slot: int = SLOT, seen: bytes = NO_VERSION) -> Asked:
        """An operation that nobody was sent yet."""
        self._numbers += 1
        return Asked(operation, 7, self._numbers, seen, slot)

    def retry(self, at: NodeId, asked: Asked) -> Asked:
        """The same operation again, with the same id, marked as a retry."""
        self.submit(at, asked, retry=True)
        self.nodes[at].end_tick()
        return asked

    def first(self, at: NodeId, asked: Asked) -> Asked:
        """The first attempt arrives, be it after a retry of it."""
        self.submit(at, asked)
        self.nodes[at].end_tick()
        return asked

    def submit(self, at: NodeId, asked: Asked, *, retry: bool = False) -> None:
        """Without the end of the tick, so that several operations share one."""
        call = Call(asked.operation, asked.client, asked.number, asked.seen, retry, asked)
        asked.accepted = self.nodes[at].table.submit(asked.slot, call)

    # -- network -----------------------------------------------------------------------------

    def wire(self, sender: NodeId, to: NodeId) -> list[SlotMessage]:
        """What is on its way between two nodes, in order."""
        return self.wires.setdefault((sender, to), [])

    def sent(self, sender: NodeId, to: NodeId, kind: type[Kind]) -> list[Kind]:
        """Messages of one kind on their way."""
        return [message for message in self.wire(sender, to) if isinstance(message, kind)]

    def waits_for_fsync(self, at: NodeId, kind: type[Kind]) -> list[Kind]:
        """Messages of one kind that leave when the node's next fsync ends."""
        return [message for _, message in self.nodes[at].unsynced if isinstance(message, kind)]

    def deliver(self, sender: NodeId, to: NodeId, *kinds: type) -> None:
        """Let arrive what is on its way now (of these kinds), one tick each; held or not."""
        for message in self.drop(sender, to, *kinds):
            self.inject(sender, to, message)

    def inject(self, sender: NodeId, to: NodeId, message: SlotMessage) -> None:
        """Let this message arrive, whether or not it was ever sent: late, doubled, made up."""
        self.nodes[to].table.receive(sender, [message])
        self.nodes[to].end_tick()

    def drop(self, sender: NodeId, to: NodeId, *kinds: type) -> list[SlotMessage]:
        """Lose what is on its way (of these kinds)."""
        wire = self.wire(sender, to)
        gone = [m for m in wire if not kinds or isinstance(m, kinds)]
        wire[:] = [m for m in wire if kinds and not isinstance(m, kinds)]
        return gone

    def hold(self, a: NodeId, b: NodeId) -> None:
        """Nothing arrives between the two, either way, but by `deliver`."""
        self.held |= {(a, b), (b, a)}

    def release(self, a: NodeId, b: NodeId) -> None:
        """What was held arrives again."""
        self.held -= {(a, b), (b, a)}

    def deliver_all(self) -> None:
        """Everything arrives that is not held, and what follows from it, without any fsync."""
        while waiting := [
            ends for ends in self.wires if self.wires[ends] and ends not in self.held
        ]:
            for sender, to in waiting:
                self.deliver(sender, to)

    def settle(self) -> None:
        """All messages that are not held and all fsyncs, until nothing is left to do."""
        self.deliver_all()
        while any(node.unsynced for node in self.nodes.values()):
            self.sync(*self.nodes)
            self.deliver_all()

    # -- nodes -------------------------------------------------------------------------------

    def sync(self, *nodes: NodeId) -> None:
        for me in nodes:
            self.nodes[me].sync()

    def crash(self, me: NodeId, *, keep: int = 0) -> None:
        """Restart from the disk; the others notice, and see it come back without any slots."""
        self.nodes[me].crash(keep)
        for other in self._others(me):
            if (me, other) not in self.held:
                self.nodes[other].table.peer_down(me)
                self.nodes[other].table.peer_up(me)
                self.nodes[me].table.peer_up(other)

    def want(self, *owners: tuple[NodeId, ...]) -> None:
        """A new topology: these should be each slot's members."""
        self.wanted = owners
        for node in self.nodes.values():
            node.table.set_owners(owners)
            node.end_tick()

    def isolate(self, me: NodeId) -> None:
        """Cut a node off; the others notice, it does not."""
        for other in self._others(me):
            self.hold(me, other)
            self.nodes[other].table.peer_down(me)

    def reconnect(self, me: NodeId) -> None:
        """The links carry again; what was on its way is late, not lost."""
        for other in self._others(me):
            self.release(me, other)
            for a, b in ((me, other), (other, me)):
                self.nodes[a].table.peer_up(b)
                self.nodes[a].table.peer_leads(b, self._led(self.nodes[b]), complete=True)
                self.nodes[a].end_tick()

    def depose(self, me: NodeId) -> None:
        """Cut a node off and let those behind it take over what it leads; it knows of nothing."""
        self.isolate(me)
        self.pass_time(0, nodes=self._others(me))
        self.settle()
        assert any(self.serves(other) for other in self._others(me))

    def pass_time(self, ms: int, *, nodes: Iterable[NodeId] | None = None) -> None:
        """Time goes by for all; the timers run on these nodes."""
        self.now_ms += ms
        self.unix_ms += ms
        for node in self.nodes.values():
            node.table.set_time(self.now_ms, self.unix_ms)
        for me in self.ids if nodes is None else nodes:
            self.nodes[me].table.tick()
            self.nodes[me].end_tick()

    def calm_down(self) -> None:
        """Four quiet seconds: takeovers end, members catch up, slots return to their first."""
        for _ in range(40):
            self.pass_time(100)
            self.settle()

    def tell_leads(self, node: Node) -> None:
        led = self._led(node)
        for other in self._others(node.me):
            if (node.me, other) not in self.held:
                self.nodes[other].table.peer_leads(node.me, led)
                self.nodes[other].table.peer_leads_no_more(
                    node.me, set(range(len(self.owners))) - led
                )

    def _others(self, me: NodeId) -> list[NodeId]:
        return [other for other in self.nodes if other != me]

    @staticmethod
    def _led(node: Node) -> set[int]:
        return {number for number, _ in node.table.led()}

    # -- what is so --------------------------------------------------------------------------

    def slot(self, at: NodeId) -> Slot:
        return self.nodes[at].slot

    def holds(self, at: NodeId, number: int = SLOT) -> bool:
        slot = self.nodes[at].table.slots[number]
        return slot is not None and slot.holds_state

    def holders(self, number: int = SLOT) -> set[NodeId]:
        return {me for me in self.ids if self.holds(me, number)}

    def position(self, at: NodeId) -> Position:
        return self.slot(at).position

    def primary(self, at: NodeId) -> Primary:
        role = self.slot(at).role
        assert isinstance(role, Primary), f"node {at} is no primary"
        return role

    def serves(self, at: NodeId) -> bool:
        role = self.slot(at).role
        return isinstance(role, Primary) and role.serving

    def version(self, at: NodeId) -> bytes:
        """The newest committed version by this node's word: what its answers carry."""
        role = self.slot(at).role
        if not isinstance(role, Primary) or not role.serving:
            return NO_VERSION
        return pack_version(role.ballot, role.committed)

    def value(self, at: NodeId, key: bytes) -> object:
        """What the node's store holds now, whoever may see it; None for nothing."""
        record = self.nodes[at].store.read(self.slot(at).prefix + key)
        return None if record is None else msgpack.unpackb(decode_record(record).value)

    def rot(self, at: NodeId, key: bytes, record: bytes | None = None) -> None:
        """Change a record on a node's disk behind its back: one bit, or to another record."""
        node = self.nodes[at]
        record_key = node.slot.prefix + key
        if record is None:
            record = node.engine.get(Table.RECORDS, record_key)
            assert record is not None
            record = record[:-1] + bytes([record[-1] ^ 1])
        batch = node.engine.batch()
        if record:
            batch.put(Table.RECORDS, record_key, record)
        else:
            batch.delete(Table.RECORDS, record_key)
        node.engine.write(batch)

    def log(self, at: NodeId) -> list[LogEntry]:
        node = self.nodes[at]
        return [decode_entry(raw) for _, raw in node.store.log_entries(node.slot.prefix, 0)]

    def content(self, at: NodeId) -> object:
        """All that equal positions promise to be equal."""
        node = self.nodes[at]
        records = node.store.scan(node.slot.prefix, b"", 1_000)
        return records, node.store.log_entries(node.slot.prefix, 0), node.slot.config
