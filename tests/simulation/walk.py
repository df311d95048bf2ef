"""The production slot tables on a virtual network, disk and clock, walked at random from a seed.

Several nodes hold one or two slots. A step delivers a message, ends a node's tick, finishes an
fsync, crashes a node (any prefix of its unsynced batches survives), cuts or mends links, lets time
pass, or sends a client's operation. After every step: equal positions mean equal content. At the
end the faults stop, and everything must be served again, with all replicas equal and every
acknowledged write there.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgpack
import msgspec

from cluster.operations import (
    Absent,
    Code,
    Conflict,
    Deleted,
    Done,
    Failed,
    Found,
    Get,
    Incr,
    Number,
    Operation,
    Put,
    Result,
    Stale,
)
from cluster.records import BALLOT_BYTES, decode_record, record_version
from cluster.slot import Call, Primary
from cluster.slot_table import SlotTable
from kvstore.node.recovery import stored_slots
from kvstore.storage.memory import MemoryEngine
from kvstore.storage.tick_store import TickStore

if TYPE_CHECKING:
    from cluster.outputs import Changed, Told

KEYS = (b"a", b"b", b"c")
SLOT = 0


class Violation(AssertionError):
    """A promise was broken."""


class SimNode:
    """One node: table, store, and a disk that forgets what was not synced."""

    def __init__(self, world: World, me: int) -> None:
        self.world, self.me = world, me
        self.engine = MemoryEngine()
        self.found = False
        self.epoch = 0
        self.start()

    def start(self) -> None:
        self.epoch += 1
        self.store = TickStore(self.engine)
        self.table = SlotTable(self.me, 2, self.store, self.world.rng)
        self.table.set_time(self.world.now_ms, 0)
        self.unsynced: list[Any] = []
        self.heard: dict[int, bytes] = {}
        for node in self.world.ids:
            if node != self.me:
                self.table.peer_hoped(node)
        if not self.found:
            owners = self.world.first_owners()
            self.table.found([owners, owners])
            self.engine.write(self.store.take())
            self.engine.sync()
            self.found = True
        else:
            self.table.restore(stored_slots(self.engine))

    def end_tick(self) -> None:
        out = self.table.take()
        for peer, messages in out.send.items():
            for message in messages:
                self.world.send(self.me, peer, message)
        batch = self.store.take()
        self.engine.write(batch)
        self.unsynced.append(out.after_fsync)
        for ticket, result in out.answers:
            self.world.answer(ticket, result)
        for moved in out.moved:
            self.world.moved(moved.ticket)
        for told in out.watched:
            self.world.watched(self, told)
        if out.leads_changed:
            led = {number for number, _ in self.table.led()}
            for other in self.world.nodes:
                if other is not self:
                    other.hear_leads(self)
                    other.table.peer_leads_no_more(self.me, out.leads_changed - led)

    def hear_leads(self, other: SimNode, *, complete: bool = False) -> None:
        """What another node leads; words may come crosswise, the higher ballot is the newer one."""
        led = []
        for number, version in other.table.led():
            ballot = version[:BALLOT_BYTES]
            if ballot >= self.heard.get(number, ballot):
                self.heard[number] = ballot
                led.append(number)
        self.table.peer_leads(other.me, led, complete=complete, ballot_of=self.heard.__getitem__)

    def sync(self) -> None:
        self.engine.sync()
        unsynced, self.unsynced = self.unsynced, []
        for after in unsynced:
            for node, messages in after.items():
                for message in messages:
                    if node == self.me:
                        self.table.receive(self.me, [message])
                    else:
                        self.world.send(self.me, node, message)

    def crash(self) -> None:
        self.engine.crash(keep=self.world.rng.randrange(len(self.unsynced) + 1))
        for other in self.world.nodes:
            if other is not self:
                other.table.peer_down(self.me)
        self.start()
        for other in self.world.nodes:
            if other is not self:
                other.table.peer_up(self.me)
                self.table.peer_up(other.me)
                self.hear_leads(other, complete=True)


@dataclass
class Op:
    """A client's operation and all that is known of it."""

    client: int
    number: int
    operation: Operation
    seen: bytes
    began: int
    tries: int = 0
    ended: int | None = None
    result: Result | None = None
    done: bool = False


@dataclass
class World:
    """Everything, from one seed."""

    seed: int
    steps: int = 600
    now_ms: int = 0
    net: list[tuple[int, int, Any]] = field(default_factory=list)
    history: list[Op] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.ids = self.choose_ids()
        self.cut: set[tuple[int, int]] = set()
        self.clock = 0
        self.drop = self.rng.choice([0, 0.02, 0.1])
        self.copy = self.rng.choice([0, 0.05])
        self.crash_rate = self.rng.choice([0, 0.01, 0.03])
        self.cut_rate = self.rng.choice([0, 0.01, 0.02])
        self.trace = hashlib.blake2b(digest_size=8)
        self.nodes: list[SimNode] = []
        self.nodes = [self.make_node(me) for me in self.ids]
        self.calls: dict[int, Op | None] = dict.fromkeys(range(3))
        self.seen = dict.fromkeys(range(3), b"\0" * 20)
        self.numbers = 0
        self.chaos = True

    def choose_ids(self) -> list[int]:
        return list(range(1, 1 + self.rng.choice([3, 3, 5])))

    def first_owners(self) -> tuple[int, ...]:
        return tuple(self.ids)

    def make_node(self, me: int) -> SimNode:
        return SimNode(self, me)

    def send(self, sender: int, to: int, message: Any) -> None:
        if (sender, to) in self.cut or self.rng.random() < self.drop:
            return
        self.net.append((sender, to, message))
        if self.rng.random() < self.copy:
            self.net.append((sender, to, message))

    def node(self, me: int) -> SimNode:
        return self.nodes[me - 1]

    # -- clients -----------------------------------------------------------------------------

    def client_step(self, client: int, *, fresh: bool = True) -> None:
        op = self.calls[client]
        if op is None:
            if fresh:
                self.begin(client)
            return
        if op.tries > 3 and self.chaos and self.rng.random() < 0.2:
            self.calls[client] = None  # gives up: the outcome stays open
            return
        self.attempt(op)

    def begin(self, client: int) -> None:
        key = self.rng.choice(KEYS)
        self.numbers += 1
        value = msgspec.Raw(msgpack.packb(self.numbers))
        kind = self.rng.randrange(6)
        operation: Operation
        if kind == 0:
            operation = Put(key, value)
        elif kind in (1, 2):
            operation = Incr(key, 1)
        elif kind == 3:
            expect = self.rng.choice([b"", b"*", self.seen[client]])
            operation = Put(key, value, "", 0, expect)
        else:
            operation = Get(key)
        self.clock += 1
        op = Op(client, self.numbers, operation, self.seen[client], self.clock)
        self.calls[client] = op
        self.history.append(op)
        self.attempt(op)

    def attempt(self, op: Op) -> None:
        node = self.rng.choice(self.nodes)
        retry = op.tries > 0
        call = Call(op.operation, op.client, op.number, op.seen, retry, (op, op.number, retry))
        if node.table.submit(SLOT, call):
            op.tries += 1

    def answer(self, ticket: Any, result: Result) -> None:
        op: Op
        op, number, retry = ticket
        if op.done or op.number != number or self.calls[op.client] is not op:
            return
        if isinstance(result, Stale):
            if op.tries == 1:  # nothing else was sent under this id: begin anew
                self.numbers += 1
                op.number, op.seen, op.tries = self.numbers, result.position, 0
                self.seen[op.client] = result.position
            return
        if isinstance(result, Failed) and result.code in (Code.UNAVAILABLE, Code.OVERLOADED):
            return
        if isinstance(result, Failed) and result.code is Code.UNKNOWN:
            self.calls[op.client] = None
            return
        settles = not isinstance(result, Conflict | Failed) or retry or op.tries == 1
        if not settles:  # R5: another attempt may still succeed
            return
        self.clock += 1
        op.done, op.ended, op.result = True, self.clock, result
        self.calls[op.client] = None
        if isinstance(result, Done | Deleted | Number):
            self.seen[op.client] = max(self.seen[op.client], result.version)

    def moved(self, ticket: Any) -> None:
        """The client will ask again."""

    def watched(self, node: SimNode, told: Changed | Told) -> None:
        """Nobody watches here; see `test_watch_walk`."""

    # -- the walk ----------------------------------------------------------------------------

    def run(self) -> str:
        for _ in range(self.steps):
            self.step()
            self.check()
        self.heal()
        self.judge()
        return self.trace.hexdigest()

    def step(self) -> None:
        rng = self.rng
        roll = rng.random()
        if roll < self.crash_rate:
            rng.choice(self.nodes).crash()
        elif roll < self.crash_rate + self.cut_rate:
            if self.cut:
                self.mend()
            else:
                side = rng.choice(self.ids)
                self.cut = {(side, n) for n in self.ids} | {(n, side) for n in self.ids}
                for n in self.ids:
                    if n != side:
                        self.node(n).table.peer_down(side)
                        self.node(side).table.peer_down(n)
        else:
            self.ordinary_step(rng.choice("ddddddeeesscctt"))

    def mend(self) -> None:
        cut, self.cut = self.cut, set()
        for a, b in sorted(cut):
            if a != b:
                self.node(a).table.peer_up(b)
                self.node(a).hear_leads(self.node(b), complete=True)

    def ordinary_step(self, kind: str) -> None:
        rng = self.rng
        match kind:
            case "d":
                self.deliver()
            case "e":
                rng.choice(self.nodes).end_tick()
            case "s":
                rng.choice(self.nodes).sync()
            case "c":
                self.client_step(rng.randrange(3))
            case "t":
                self.now_ms += rng.choice([1, 50, 300, 2_000])
                node = rng.choice(self.nodes)
                node.table.set_time(self.now_ms, 0)
                node.table.tick()
            case _:
                raise AssertionError(kind)

    def deliver(self) -> None:
        if not self.net:
            return
        at = 0 if self.rng.random() < 0.7 else self.rng.randrange(len(self.net))
        sender, to, message = self.net.pop(at)
        self.trace.update(repr((sender, to, type(message).__name__)).encode())
        self.node(to).table.receive(sender, [message])

    def heal(self) -> None:
        self.chaos = False
        self.drop = self.copy = 0
        self.mend()
        for a in self.nodes:
            for b in self.nodes:
                if a is not b:
                    a.table.peer_up(b.me)
                    a.table.peer_leads_no_more(b.me, range(2))
                    a.hear_leads(b, complete=True)
        for _ in range(400):
            for node in self.nodes:
                self.now_ms += 20
                node.table.set_time(self.now_ms, 0)
                node.table.tick()
                node.end_tick()
                node.sync()
                node.end_tick()
            while self.net:
                self.deliver()
            self.check()
            for client in self.calls:
                self.client_step(client, fresh=False)
            if self.is_well():
                return
        raise Violation(f"does not heal: {[self.describe(n) for n in self.nodes]}")

    @staticmethod
    def describe(node: SimNode) -> str:
        slot = node.table.slots[SLOT]
        return f"{node.me}: nothing" if slot is None else f"{node.me}: {slot.role} {slot.row()}"

    def is_well(self) -> bool:
        slots = [n.table.slots[SLOT] for n in self.nodes]
        positions = {slot.position for slot in slots if slot is not None}
        first = slots[0]
        assert first is not None
        led_right = isinstance(first.role, Primary) and first.role.serving
        committed = isinstance(first.role, Primary) and first.role.committed == first.sequence
        idle = all(op is None for op in self.calls.values())
        return len(positions) == 1 and led_right and committed and idle and not self.net

    def leader(self) -> int:
        """Who leads when all is well."""
        return self.ids[0]

    def content(self, node: SimNode) -> Any:
        slot = node.table.slots[SLOT]
        assert slot is not None
        records = node.store.scan(slot.prefix, b"", 100)
        return (tuple(records), tuple(node.store.log_entries(slot.prefix, 0)), slot.config)

    def check(self) -> None:
        by: dict[Any, tuple[int, Any]] = {}
        for node in self.nodes:
            node.table.check()
            slot = node.table.slots[SLOT]
            if slot is None or not slot.holds_state:
                continue
            mine = self.content(node)
            other = by.setdefault(slot.position, (node.me, mine))
            if other[1] != mine:
                raise Violation(f"nodes {other[0]} and {node.me} differ at {slot.position}")
        slots = [node.table.slots[SLOT] for node in self.nodes]
        roles = [slot.role for slot in slots if slot is not None]
        primaries = [role.ballot for role in roles if isinstance(role, Primary)]
        if len(set(primaries)) != len(primaries):
            raise Violation("two primaries of one ballot")

    def judge(self) -> None:
        node = self.node(self.leader())
        slot = node.table.slots[SLOT]
        assert slot is not None
        final = dict(node.store.scan(slot.prefix, b"", 100))
        self.clock += 1
        for key in KEYS:
            record = final.get(key)
            result: Result = Absent() if record is None else Found(record)
            self.history.append(
                Op(9, 0, Get(key), b"", self.clock, 1, self.clock + 1, result, done=True)
            )
        for key in KEYS:
            ops = [op for op in self.history if getattr(op.operation, "key", None) == key]
            if not linearizable(ops):
                lines = "\n".join(f"{o.began}-{o.ended} {o.operation} {o.result}" for o in ops)
                raise Violation(f"{key!r} is not linearizable:\n{lines}")


State = tuple[Any, bytes] | None
"""A key's value and version."""


def outcome(op: Op, state: State, stamp: bytes) -> tuple[State, bool]:
    """The state after the operation, and whether its recorded result agrees with that."""
    result = op.result
    match op.operation:
        case Get():
            return state, _read_agrees(result, state)
        case Incr():
            if state is not None and type(state[0]) is not int:
                return state, result is None or isinstance(result, Failed)
            number = (state[0] if state else 0) + 1
            version = result.version if isinstance(result, Number) else stamp
            return (number, version), result is None or (
                isinstance(result, Number) and result.value == number
            )
        case Put(value=value, expect=expect):
            meets = (
                expect is None
                or (expect == b"" and state is None)
                or (state is not None and expect in (b"*", state[1]))
            )
            if not meets:
                current = b"" if state is None else state[1]
                agrees = isinstance(result, Conflict) and (
                    result.current == current or current.startswith(b"?") or not current
                )
                return state, result is None or agrees
            version = result.version if isinstance(result, Done) else stamp
            after = (msgpack.unpackb(bytes(value)), version)
            return after, result is None or isinstance(result, Done)
        case _:
            raise AssertionError(op.operation)


def _read_agrees(result: Result | None, state: State) -> bool:
    if result is None:
        return True
    if state is None:
        return isinstance(result, Absent)
    if not isinstance(result, Found):
        return False
    value = msgpack.unpackb(decode_record(result.record).value)
    known = state[1].startswith(b"?") or record_version(result.record) == state[1]
    return bool(value == state[0]) and known


def linearizable(ops: list[Op]) -> bool:
    """Wing and Gong's search with Lowe's memory, one key; open operations may happen or not."""
    ops = sorted(ops, key=lambda op: op.began)
    must = sum(1 << i for i, op in enumerate(ops) if op.done)
    ends = [op.ended if op.ended is not None else 1 << 60 for op in ops]
    visited: set[tuple[int, State]] = set()
    stack: list[tuple[int, State]] = [(0, None)]
    while stack:
        taken, state = stack.pop()
        if taken & must == must:
            return True
        limit = min(ends[i] for i in range(len(ops)) if not taken >> i & 1)
        for i, op in enumerate(ops):
            if taken >> i & 1 or op.began > limit:
                continue
            after, agrees = outcome(op, state, b"?%d" % i)
            step = (taken | 1 << i, after)
            if agrees and step not in visited:
                visited.add(step)
                stack.append(step)
    return False
