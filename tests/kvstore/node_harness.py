"""A real node of a cluster of one on loopback ports, and sockets that say just what they are told.

Nothing is replaced: the node, its ports and its storage are those of a process, only the slots are
few. Exceptions that reach the event loop are collected, because a door that raises has not refused.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections import Counter
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any, Self

import msgspec

from cluster.operations import Done, Found, Get, Page, Put, Scan
from cluster.records import decode_record
from cluster.topology import Node as Member
from kvstore.http.app import DOOR, make_app
from kvstore.http.server import start_http
from kvstore.http.settings import HttpSettings
from kvstore.metrics import Metrics
from kvstore.node.node import Node
from kvstore.storage.datadir import DataDir
from kvstore.storage.group_commit import ImmediateCommit
from kvstore.storage.memory import MemoryEngine
from kvstore.storage.opening import Store, open_store
from kvstore.wire.frames import FrameDecoder, encode_frame
from kvstore.wire.protocol import (
    MAGIC,
    PROTOCOL_VERSION,
    Hello,
    Refused,
    Request,
    Response,
    Welcome,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from cluster.operations import Operation, Result
    from kvstore.wire.protocol import Frame

HOST = "127.0.0.1"
CLUSTER_NAME = "harness"
MEMBER_ID = 0xA11CE
SLOT_COUNT = 64
WAIT_S = 5.0
"""For anything that must arrive; only a failing test waits so long."""

CACHE_BYTES = 1_048_576

_client_ids = count(0xC11E47)

CLIENT = Hello(PROTOCOL_VERSION, "client", "", CLUSTER_NAME, 0, "")


class Wire:
    """One connection to the peer and client port."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder = FrameDecoder()
        self._arrived: list[Frame] = []
        self._client = next(_client_ids)
        self._numbers = count(1)

    async def send_bytes(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def send(self, *frames: Frame) -> None:
        await self.send_bytes(b"".join(map(encode_frame, frames)))

    def write(self, *frames: Frame) -> None:
        """Send without waiting for anything."""
        self._writer.write(b"".join(map(encode_frame, frames)))

    async def receive(self) -> Frame | None:
        """The next frame; None when the other side has closed."""
        async with asyncio.timeout(WAIT_S):
            while not self._arrived:
                try:
                    data = await self._reader.read(65_536)
                except ConnectionError:  # closed while we still sent
                    return None
                if not data:
                    return None
                self._arrived += self._decoder.feed(data)
        return self._arrived.pop(0)

    async def greet(self, hello: Hello = CLIENT) -> Self:
        """The handshake as it should be."""
        await self.send_bytes(MAGIC + encode_frame(hello))
        assert isinstance(await self.receive(), Welcome)
        return self

    async def refusal(self) -> Refused:
        """What comes next is a refusal, and then the end."""
        refused = await self.receive()
        assert isinstance(refused, Refused)
        assert refused.detail
        assert await self.receive() is None
        return refused

    async def ask(self, ops: Sequence[Operation], **fields: Any) -> list[Result]:
        """The results of one request; ``fields`` are those of the frame that differ."""
        number = next(self._numbers)
        given: dict[str, Any] = {
            "id": number,
            "client": self._client,
            "number": number * 10_000,
            "retry": False,
            "timeout_ms": 2_000,
            "hops": 0,
            "ops": list(ops),
            "seen": [],
        }
        request = Request(**given | fields)
        await self.send(request)
        response = await self.receive()
        assert isinstance(response, Response), response
        assert response.id == request.id
        return response.results

    async def stored(self) -> dict[bytes, bytes]:
        """Every key with its value, as the node tells it."""
        found: dict[bytes, bytes] = {}
        for page in await self.ask([Scan(n, b"", b"", 1_000, True) for n in range(SLOT_COUNT)]):
            assert isinstance(page, Page), page
            assert not page.more
            records = [bytes(decode_record(record).value) for record in page.records]
            found |= zip(page.keys, records, strict=True)
        return found

    async def close(self) -> None:
        self._writer.close()
        with suppress(ConnectionError):
            await self._writer.wait_closed()


@dataclass
class Harness:
    """The node and its doors."""

    node: Node
    port: int
    http_port: int
    metrics: Metrics
    refused: Counter[str] = field(default_factory=Counter)
    """What the node was told of refusals, by reason; the metrics are told the same."""
    end_watches: Callable[[], None] = lambda: None
    """What the HTTP door does when the node stops."""
    raised: list[object] = field(default_factory=list)
    """What reached the event loop instead of being refused."""

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Wire]:
        """A connection that has said nothing yet."""
        wire = Wire(*await asyncio.open_connection(HOST, self.port))
        try:
            yield wire
        finally:
            await wire.close()

    @asynccontextmanager
    async def client(self, hello: Hello = CLIENT) -> AsyncIterator[Wire]:
        """A connection after the handshake."""
        async with self.connect() as wire:
            yield await wire.greet(hello)


@asynccontextmanager
async def running(data_dir: Path | None = None, *, founded: bool = True) -> AsyncIterator[Harness]:
    """A node that is ready.

    Args:
        data_dir: For RocksDB; without it the data is in memory.
        founded: False leaves it listening but not started, as one that waits for other founders.
    """
    metrics = Metrics()
    refused: Counter[str] = Counter()

    def on_refused(reason: str) -> None:
        refused[reason] += 1
        metrics.refused(reason)

    with reserved_port() as port, reserved_port() as http_port, _opened(data_dir) as store:
        member = Member(MEMBER_ID, "n1", f"{HOST}:{port}", f"{HOST}:{http_port}")
        node = Node(
            member,
            CLUSTER_NAME,
            store.engine,
            store.commit,
            on_refused,
            slot_count=SLOT_COUNT,
            replicas=1,
        )
        harness = Harness(node, port, http_port, metrics, refused)
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: harness.raised.append(context.get("exception") or context["message"])
        )
        try:
            await node.server.listen(HOST, port, "--port")
            app = make_app(node, metrics, HttpSettings())
            harness.end_watches = app[DOOR].watches.end_all
            http = await start_http(app, HOST, http_port)
            metrics.watch_node(node)
            try:
                async with asyncio.timeout(WAIT_S):
                    if founded:
                        await node.start()
                        await node.wait_ready()
                yield harness
            finally:
                await http.cleanup()
        finally:
            await node.close()


@contextmanager
def _opened(data_dir: Path | None) -> Iterator[Store]:
    loop = asyncio.get_running_loop()
    if data_dir is None:
        engine = MemoryEngine()
        yield Store(engine, ImmediateCommit(engine, loop, _disk_lost, synced=True))
        return
    directory = DataDir.open(data_dir)
    try:
        yield open_store(
            directory,
            loop,
            _disk_lost,
            engine="rocksdb",
            durability="os",
            cache_bytes=CACHE_BYTES,
        )
    finally:
        directory.close()


def _disk_lost(error: Exception) -> None:
    raise AssertionError("the disk failed") from error


@contextmanager
def reserved_port() -> Iterator[int]:
    """A free port that nobody else is given: bound, so taken, yet free for who reuses addresses."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind((HOST, 0))
        yield holder.getsockname()[1]


VALUE = msgspec.msgpack.encode("value")
RAW = msgspec.Raw(VALUE)
BEFORE = {b"before": VALUE}


class Site:
    """A node, and a good client that was there before."""

    def __init__(self, harness: Harness, good: Wire) -> None:
        self.harness = harness
        self.good = good

    async def begin(self) -> Self:
        """The good client has stored something."""
        await self.good.ask([Put(b"before", RAW)])
        return self

    async def unharmed(
        self, refused: Mapping[str, int], stored: Mapping[bytes, bytes] | None = None
    ) -> None:
        """Just this was counted, just this is stored, and the good are served."""
        harness = self.harness
        assert harness.raised == []
        assert harness.refused == Counter(refused)
        assert {name: harness.metrics.refused_total(name) for name in refused} == refused
        assert await self.good.stored() == BEFORE | dict(stored or {})
        (written,) = await self.good.ask([Put(b"before", RAW)])
        assert isinstance(written, Done)
        async with harness.client() as newcomer:
            (found,) = await newcomer.ask([Get(b"before")])
            assert isinstance(found, Found)
        await self.alone()

    async def alone(self) -> None:
        """Only the good client's connection is left."""
        server = self.harness.node.server
        for _ in range(1_000):
            if server.connections == 1:
                break
            await asyncio.sleep(0.001)
        assert server.connections == 1
        assert self.harness.node.router.in_flight == 0


@asynccontextmanager
async def working() -> AsyncIterator[Site]:
    """The site."""
    async with running() as harness, harness.client() as good:
        yield await Site(harness, good).begin()


def put(key: bytes) -> Request:
    """A request as it should be."""
    return Request(1, 0xBAD, 1, False, 1_000, 0, [Put(key, RAW)], [])


def assert_says(text: str, pattern: str) -> None:
    """The pattern is in the text."""
    assert re.search(pattern, text), text
