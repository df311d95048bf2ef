"""A node in a dictionary: `NodeView` without replication, for tests of the doors.

It keeps the meaning of every operation (conditions, expiry, atomic batches, pages, rule 5's
repeats), so that a door tested against it meets what a cluster would answer. Faults are injected
by setting `fail` or `hang`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgpack

from cluster.ballot import Ballot
from cluster.membership import TopologyChange, apply_change
from cluster.operations import (
    PRESENT,
    Absent,
    Atomic,
    Code,
    Conflict,
    Delete,
    Deleted,
    Done,
    Failed,
    Found,
    Get,
    Incr,
    Number,
    Operation,
    Page,
    Put,
    Result,
    Scan,
    Touch,
)
from cluster.outputs import WatchState
from cluster.records import (
    decode_record,
    encode_record,
    expires_at_ms,
    pack_version,
    record_version,
)
from cluster.slots import slot_of
from cluster.topology import Node as Member
from cluster.topology import Topology, found_topology
from kvstore.errors import OutcomeUnknown, Unavailable
from kvstore.node.operator_view import (
    ConfigStatus,
    LossStatus,
    MovesStatus,
    MoveStatus,
    Newcomer,
    PlannedChange,
    PlanStatus,
    QuorumsStatus,
    ShareStatus,
    TopologyNode,
    TopologyStatus,
)
from kvstore.node.view import MemberStatus, NodeStatus, SlotStatus
from kvstore.node.watching import Listener, Watching
from kvstore.wire.protocol import Request, Response, RouteNode, Routes, SlotTold, Watch, Watched

if TYPE_CHECKING:
    from collections.abc import Callable

BALLOT = Ballot(1, 7)


class FakeWatching(Watching):
    """Every slot is watched, and nothing ever happens."""

    def take(self, listener: Listener, watch: Watch) -> None:
        listener.send(Watched([SlotTold(slot, WatchState.STARTED, 7, 0) for slot in watch.slots]))


class FakeOperator:
    """The topology of a cluster of one, changed without a word to anybody."""

    def __init__(self, fail: Callable[[Operation], Result | None]) -> None:
        self.fail = fail
        node = Member(BALLOT.node, "n1", "127.0.0.1:7401", "127.0.0.1:8401", "a")
        self.document = found_topology("c1", "test", [node], slot_count=64)

    def topology(self) -> TopologyStatus:
        now = self.document
        nodes = [
            TopologyNode(
                *(n.id, n.name, n.address, n.http_address, n.zone, n.weight, n.state, n.joined)
            )
            for n in now.nodes
        ]
        return TopologyStatus(
            *(now.cluster_name, now.cluster_id, now.epoch, now.slot_count, now.replicas),
            *(now.paused, now.copy_bytes_per_s, now.away_after_s, ["n1"], nodes),
        )

    async def moves(self) -> MovesStatus:
        move = MoveStatus(5, "copying", ["n1"], ["n2"], ["n1", "n2"], True, 10, 1)
        return MovesStatus("n1", 1, False, 1_000, 1, 1, 100, 10, 0, [move])

    def quorums(self) -> QuorumsStatus:
        configs = [ConfigStatus([[BALLOT.node]], [], 65, True)]
        return QuorumsStatus(
            "n1", self.document.epoch, 65, 65, configs, 0, [], [LossStatus("node", ["n1"], 65)]
        )

    async def change(self, change: TopologyChange, timeout_ms: int) -> TopologyStatus:
        failed = self.fail(Get(b"topology"))
        if isinstance(failed, Failed):
            if failed.code is Code.UNKNOWN:
                raise OutcomeUnknown(failed.detail, "")
            raise Unavailable(failed.detail)
        self.document = apply_change(self.document, change)
        return self.topology()

    async def plan(self, change: PlannedChange) -> PlanStatus:
        if not isinstance(change, Newcomer):
            apply_change(self.document, change)
        share = ShareStatus("n1", 64, 64, 64, 64, 0, 0)
        return PlanStatus("because", 0, 0, 0, 0.0, [share])


class FakeNode:
    """One node that holds everything."""

    def __init__(self, slot_count: int = 64, now_ms: Callable[[], int] = lambda: 1_000) -> None:
        self.slot_count = slot_count
        self.records: dict[bytes, bytes] = {}
        self.sequence = 0
        self.answered: dict[tuple[int, int], Result] = {}
        self.requests: list[Request] = []
        self.fail: Callable[[Operation], Result | None] = lambda op: None
        self.hang = False
        self.ready = True
        self._now_ms = now_ms
        self._watching = FakeWatching(now_ms)
        self.operator_ = FakeOperator(lambda op: self.fail(op))

    @property
    def id(self) -> int:
        return BALLOT.node

    @property
    def name(self) -> str:
        return "n1"

    @property
    def topology(self) -> Topology | None:
        return None

    async def submit(self, request: Request) -> Response:
        if self.hang:
            await asyncio.sleep(3600)
        await asyncio.sleep(0)
        self.requests.append(request)
        results: list[Result] = []
        for index, op in enumerate(request.ops):
            offset = request.offsets[index] if request.offsets else index
            results.append(self._once(op, (request.client, request.number + offset)))
        return Response(request.id, results, {})

    @property
    def operator(self) -> FakeOperator:
        return self.operator_

    @property
    def watching(self) -> Watching:
        return self._watching

    def routes(self, id: int = 0) -> Routes:  # noqa: A002
        node = RouteNode(self.id, self.name, "127.0.0.1:7401", "127.0.0.1:8401", "a", "alive")
        nothing = bytes(20 * self.slot_count)
        return Routes(
            id, "c1", "test", 3, self.slot_count, [node], bytes(2 * self.slot_count), nothing
        )

    def members(self) -> list[MemberStatus]:
        count = self.slot_count
        alive = ("127.0.0.1:7401", "127.0.0.1:8401", "a", "alive", 0, count, count)
        return [MemberStatus(self.id, self.name, *alive)]

    def slot_status(self, slot: int) -> SlotStatus:
        return SlotStatus(slot, ["n1"], [], "n1", "primary", "1.7", self.sequence, self.sequence)

    def not_ready_reason(self) -> str:
        return "" if self.ready else "slot 5 has no primary"

    def status(self) -> NodeStatus:
        reason = self.not_ready_reason()
        slots = self.slot_count
        return NodeStatus(
            id=self.id,
            name=self.name,
            version="0.1.0",
            ready=self.ready,
            not_ready_reason=reason,
            uptime_ms=5_000,
            keys_estimate=len(self.records),
            disk_bytes=4_096,
            memory_bytes=1_048_576,
            slots_led=slots,
            slots_held=slots,
            requests_in_flight=0,
            reads_total=3,
            writes_total=self.sequence,
            syncs_total=2,
            sync_ms_mean=1.5,
            problems=[],
        )

    def _once(self, op: Operation, id_: tuple[int, int]) -> Result:
        failed = self.fail(op)
        if failed is not None:
            return failed
        if isinstance(op, Get | Scan):
            return self._read(op)
        if id_ not in self.answered:
            self.answered[id_] = self._write(op)
        return self.answered[id_]

    def _live(self, key: bytes) -> bytes | None:
        record = self.records.get(key)
        if record is not None and 0 < expires_at_ms(record) <= self._now_ms():
            del self.records[key]
            return None
        return record

    def _read(self, op: Get | Scan) -> Result:
        if isinstance(op, Get):
            record = self._live(op.key)
            return Absent() if record is None else Found(record)
        keys = sorted(
            key
            for key in list(self.records)
            if slot_of(key, self.slot_count) == op.slot
            and key.startswith(op.prefix)
            and key > op.after
            and self._live(key) is not None
        )
        page = keys[: op.limit]
        records = [self.records[key] for key in page] if op.values else []
        return Page(page, records, len(keys) > len(page))

    def _write(self, op: Put | Delete | Incr | Touch | Atomic) -> Result:
        for write in op.writes if isinstance(op, Atomic) else [op]:
            if isinstance(write, Put | Delete) and not self._holds(write):
                current = self._live(write.key)
                return Conflict(b"" if current is None else record_version(current))
        version = pack_version(BALLOT, self.sequence + 1)
        result = self._change(op, version)
        if not isinstance(result, Failed | Conflict):
            self.sequence += 1
        return result

    def _holds(self, op: Put | Delete) -> bool:
        record = self._live(op.key)
        if op.expect is None:
            return True
        if op.expect == PRESENT:
            return record is not None
        return op.expect == (b"" if record is None else record_version(record))

    def _change(self, op: Put | Delete | Incr | Touch | Atomic, version: bytes) -> Result:
        match op:
            case Put():
                expiry = self._now_ms() + op.ttl_ms if op.ttl_ms else 0
                record = encode_record(version, bytes(op.value), op.content_type, expiry)
                self.records[op.key] = record
                return Done(version)
            case Delete():
                existed = self._live(op.key) is not None
                self.records.pop(op.key, None)
                return Deleted(version, existed)
            case Incr():
                return self._increment(op, version)
            case Touch():
                return self._touch(op, version)
            case Atomic():
                for write in op.writes:
                    self._change(write, version)
                return Done(version)

    def _increment(self, op: Incr, version: bytes) -> Result:
        before = self._live(op.key)
        value = 0 if before is None else msgpack.unpackb(decode_record(before).value)
        if type(value) is not int or not -(2**63) <= value + op.by < 2**63:
            return Failed(Code.WRONG_TYPE, "the stored value is no 64-bit integer")
        self.records[op.key] = encode_record(version, msgpack.packb(value + op.by))
        return Number(version, value + op.by)

    def _touch(self, op: Touch, version: bytes) -> Result:
        before = self._live(op.key)
        if before is None:
            return Conflict(b"")
        old = decode_record(before)
        expiry = self._now_ms() + op.ttl_ms if op.ttl_ms else 0
        self.records[op.key] = encode_record(version, old.value, old.content_type, expiry)
        return Done(version)
