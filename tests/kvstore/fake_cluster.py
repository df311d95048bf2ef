"""A cluster of lies: real sockets and frames, one dict behind all nodes, faults on command.

Nodes run on an event loop in a thread. Each slot's primary is node ``slot % nodes``; any node
answers any key. Every request is noted; `faults` decide, request by request, what happens to it.
Operation ids are remembered as the key log does, so that a retry finds its first attempt's
result.
"""

from __future__ import annotations

import asyncio
import struct
import threading
from collections import defaultdict, deque
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Self

import msgspec

from cluster.ballot import Ballot
from cluster.limits import SLOT_COUNT_DEFAULT
from cluster.operations import (
    ABSENT,
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
from cluster.records import encode_record, pack_version, record_version
from cluster.slots import slot_of
from kvstore.values import pack_value, unpack_value
from kvstore.wire.frames import FrameDecoder, encode_frame
from kvstore.wire.protocol import (
    PROTOCOL_VERSION,
    Frame,
    Hello,
    Refused,
    Request,
    Response,
    RouteNode,
    RouteQuery,
    Routes,
    Welcome,
)

ROUTE_SLOTS = SLOT_COUNT_DEFAULT


class Noted(NamedTuple):
    """A request as it arrived, and the number of the node that it came to."""

    node: int
    request: Request


Fault = Callable[[Noted], str | list[Result] | None]
"""None: serve it. "drop": close without serving. "serve-drop": serve, close without answering.
"silent": serve nothing, answer nothing. A list: answer these results."""


class FakeCluster:
    """Start with ``with FakeCluster(3) as cluster``; `url` is for `kvstore.connect`."""

    def __init__(self, nodes: int = 1) -> None:
        self.node_count = nodes
        self.requests: list[Noted] = []
        self.faults: deque[Fault] = deque()
        self.rule: Fault | None = None
        self.records: dict[bytes, bytes] = {}
        self.results: dict[tuple[int, int], Result] = {}
        self.refuse: Refused | None = None
        self.cluster_id = "fake-1"
        self.connections = 0
        self.route_queries = 0
        self.page_keys_max = 1_000
        self.sequence = 0
        self._indexed_at = (0, 0)
        self._keys_of_slot: defaultdict[int, list[bytes]] = defaultdict(list)
        self._doors: list[asyncio.Server] = []
        self._open: list[set[_Door]] = [set() for _ in range(nodes)]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.addresses: list[str] = []

    @property
    def url(self) -> str:
        return "kv://" + ",".join(self.addresses)

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(5)
        return self

    def __exit__(self, *exception: object) -> None:
        for node in range(self.node_count):
            self.stop(node)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    async def _listen(self) -> None:
        for node in range(self.node_count):
            server = await self._loop.create_server(partial(_Door, self, node), "127.0.0.1", 0)
            self._doors.append(server)
            self.addresses.append(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")

    def stop(self, node: int) -> None:
        """Kill a node: its port refuses, its connections break."""

        async def stop() -> None:
            self._doors[node].close()
            self.break_connections(node)
            await asyncio.sleep(0)

        asyncio.run_coroutine_threadsafe(stop(), self._loop).result(5)

    def break_connections(self, node: int) -> None:
        for door in list(self._open[node]):
            door.transport.abort()

    def close_connections(self, node: int) -> None:
        """As a node does that restarts: from outside the loop."""

        async def close() -> None:
            self.break_connections(node)
            await asyncio.sleep(0.01)

        asyncio.run_coroutine_threadsafe(close(), self._loop).result(5)

    def routes(self, frame_id: int = 0) -> Routes:
        nodes = [
            RouteNode(100 + n, f"n{n}", address, "", "", "alive")
            for n, address in enumerate(self.addresses)
        ]
        primaries = [slot % self.node_count for slot in range(ROUTE_SLOTS)]
        position = pack_version(Ballot(1, 100), 0)
        return Routes(
            frame_id,
            self.cluster_id,
            "fake",
            1,
            ROUTE_SLOTS,
            nodes,
            struct.pack(f">{ROUTE_SLOTS}H", *primaries),
            position * ROUTE_SLOTS,
        )

    def answer(self, node: int, request: Request) -> Response | str:
        noted = Noted(node, request)
        self.requests.append(noted)
        rule = self.faults.popleft() if self.faults else self.rule
        verdict = rule(noted) if rule is not None else None
        if verdict in ("drop", "silent"):
            return str(verdict)
        if isinstance(verdict, list):
            return Response(request.id, verdict, {})
        results = [
            self._once((request.client, request.number + i), op) for i, op in enumerate(request.ops)
        ]
        return "drop" if verdict == "serve-drop" else Response(request.id, results, {})

    def _once(self, operation_id: tuple[int, int], op: Operation) -> Result:
        if operation_id in self.results:
            return self.results[operation_id]
        result = self.apply(op)
        if not isinstance(op, Get | Scan):
            self.results[operation_id] = result
        return result

    def apply(self, op: Operation) -> Result:
        match op:
            case Get():
                record = self.records.get(op.key)
                return Absent() if record is None else Found(record)
            case Scan():
                return self._page(op)
            case Put():
                current = self._current(op.key)
                if not _met(op.expect, current):
                    return Conflict(current)
                return self._store(op)
            case Delete():
                current = self._current(op.key)
                if not _met(op.expect, current):
                    return Conflict(current)
                existed = self.records.pop(op.key, None) is not None
                return Deleted(self._version(), existed)
            case Incr():
                record = self.records.get(op.key)
                old = 0 if record is None else unpack_value(record[26:])
                if type(old) is not int:
                    return Failed(Code.WRONG_TYPE, "the value is no integer")
                self._store(Put(op.key, msgspec.Raw(pack_value(old + op.by))))
                return Number(self._version(), old + op.by)
            case Touch():
                if op.key not in self.records:
                    return Conflict(b"")
                return Done(self._version())
            case Atomic():
                for write in op.writes:
                    self.apply(write)
                return Done(self._version())

    def _store(self, op: Put) -> Done:
        version = self._version()
        expires = 1_700_000_000_000 + op.ttl_ms if op.ttl_ms else 0
        self.records[op.key] = encode_record(version, bytes(op.value), op.content_type, expires)
        return Done(version)

    def _version(self) -> bytes:
        self.sequence += 1
        return pack_version(Ballot(1, 100), self.sequence)

    def _current(self, key: bytes) -> bytes:
        record = self.records.get(key)
        return b"" if record is None else record_version(record)

    def _page(self, op: Scan) -> Page:
        if self._indexed_at != (self.sequence, len(self.records)):
            self._indexed_at = (self.sequence, len(self.records))
            self._keys_of_slot.clear()
            for key in sorted(self.records):
                self._keys_of_slot[slot_of(key)].append(key)
        candidates = self._keys_of_slot.get(op.slot, [])
        keys = [key for key in candidates if key.startswith(op.prefix) and key > op.after]
        limit = min(op.limit, self.page_keys_max)
        some = keys[:limit]
        records = [self.records[key] for key in some] if op.values else []
        return Page(some, records, len(keys) > limit)


def _met(expect: bytes | None, current: bytes) -> bool:
    if expect is None:
        return True
    if expect == ABSENT:
        return not current
    return bool(current) if expect == PRESENT else expect == current


class _Door(asyncio.Protocol):
    def __init__(self, cluster: FakeCluster, node: int) -> None:
        self.cluster = cluster
        self.node = node
        self.decoder = FrameDecoder(expect_magic=True)
        self.transport: asyncio.Transport = None  # type: ignore[assignment]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.cluster.connections += 1
        self.cluster._open[self.node].add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.cluster._open[self.node].discard(self)

    def data_received(self, data: bytes) -> None:
        for frame in self.decoder.feed(data):
            self.on_frame(frame)

    def on_frame(self, frame: Frame) -> None:
        cluster = self.cluster
        match frame:
            case Hello():
                welcome = Welcome(PROTOCOL_VERSION, cluster.cluster_id, "fake", 100 + self.node, "")
                self.transport.write(encode_frame(cluster.refuse or welcome))
            case RouteQuery():
                cluster.route_queries += 1
                self.transport.write(encode_frame(cluster.routes(frame.id)))
            case Request():
                answer = cluster.answer(self.node, frame)
                if isinstance(answer, Response):
                    self.transport.write(encode_frame(answer))
                elif answer == "drop":
                    self.transport.abort()
            case _:
                raise AssertionError(f"a client never sends {frame}")
