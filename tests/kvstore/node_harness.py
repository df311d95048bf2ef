"""A real node of a cluster of one on loopback ports, and sockets that say just what they are told.

Nothing is replaced: the node, its ports and its storage are those of a process, only the slots are
few. Exceptions that reach the event loop are collected, because a door that raises has not refused.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from cluster.operations import Page, Scan
from cluster.records import decode_record
from cluster.topology import Node as Member
from kvstore.http.app import make_app
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
    from collections.abc import AsyncIterator, Iterator, Sequence
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

CLIENT = Hello(PROTOCOL_VERSION, "client", "", CLUSTER_NAME, 0, "")


class Wire:
    """One connection to the peer and client port."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder = FrameDecoder()
        self._arrived: list[Frame] = []
        self._numbers = iter(range(1, 1_000_000))

    async def send_bytes(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def send(self, *frames: Frame) -> None:
        await self.send_bytes(b"".join(map(encode_frame, frames)))

    async def receive(self) -> Frame | None:
        """The next frame; None when the other side has closed."""
        async with asyncio.timeout(WAIT_S):
            while not self._arrived:
                data = await self._reader.read(65_536)
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
            "client": 0xC11E47,
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
    raised: list[str] = field(default_factory=list)
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
    loop = asyncio.get_running_loop()
    metrics = Metrics()
    with _reserved_port() as port, _reserved_port() as http_port, _opened(data_dir) as store:
        member = Member(MEMBER_ID, "n1", f"{HOST}:{port}", f"{HOST}:{http_port}")
        node = Node(
            member,
            CLUSTER_NAME,
            store.engine,
            store.commit,
            metrics.refused,
            slot_count=SLOT_COUNT,
            replicas=1,
        )
        harness = Harness(node, port, http_port, metrics)
        loop.set_exception_handler(lambda _, context: harness.raised.append(str(context)))
        try:
            await node.server.listen(HOST, port, "--port")
            http = await start_http(make_app(node, metrics, HttpSettings()), HOST, http_port)
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
def _reserved_port() -> Iterator[int]:
    """A free port that nobody else is given: bound, so taken, yet free for who reuses addresses."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind((HOST, 0))
        yield holder.getsockname()[1]
