"""A real HTTP listener in front of a `FakeNode`, and a client that sends just what it is told."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kvstore.http import HttpSettings, make_app, start_http
from kvstore.metrics import Metrics
from tests.kvstore.fake_node import FakeNode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from kvstore.node.view import NodeView


@dataclass(frozen=True)
class Answer:
    """An HTTP answer; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def problem(self) -> str:
        """The last part of a problem's type; fails on anything but a well-formed problem."""
        assert self.headers["content-type"] == "application/problem+json"
        document = self.json
        assert document["status"] == self.status
        assert document["title"]
        assert document["detail"]
        return str(document["type"]).removeprefix("/problems/")


class Connection:
    """One connection, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, *, head_only: bool = False) -> Answer:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        status = int(head[0].split(" ")[1])
        headers = {}
        for line in head[1:-2]:
            name, _, value = line.partition(": ")
            headers[name.lower()] = value
        if headers.get("transfer-encoding") == "chunked" and not head_only:
            return Answer(status, headers, await self.reader.read(65_536))  # a stream begins
        length = 0 if head_only or status in (100, 204, 304) else int(headers["content-length"])
        return Answer(status, headers, await self.reader.readexactly(length))

    async def ended(self) -> bool:
        """Whether the other side closes without another byte."""
        try:
            return await self.reader.read(1) == b""
        except ConnectionError:
            return True


@dataclass(frozen=True)
class Harness:
    """The listener and what stands behind it."""

    node: FakeNode
    metrics: Metrics
    port: int

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Connection]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            yield Connection(reader, writer)
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def ask(
        self, method: str, target: str, body: bytes | None = None, /, **headers: str
    ) -> Answer:
        """One request on a connection of its own; ``If_Match`` stands for ``If-Match``."""
        lines = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.ask_with(method, target, body, lines)

    async def ask_with(
        self, method: str, target: str, body: bytes | None, headers: Mapping[str, str]
    ) -> Answer:
        given = {"Host": "test"} | dict(headers)
        if body is not None:
            given.setdefault("Content-Length", str(len(body)))
        lines = "".join(f"{name}: {value}\r\n" for name, value in given.items())
        async with self.connect() as connection:
            await connection.send(
                f"{method} {target} HTTP/1.1\r\n{lines}\r\n".encode("latin-1") + (body or b"")
            )
            return await connection.answer(head_only=method == "HEAD")


@asynccontextmanager
async def serving(
    node: FakeNode | None = None,
    settings: HttpSettings | None = None,
    view: NodeView | None = None,
) -> AsyncIterator[Harness]:
    """A listener on a free port; ``view`` replaces the node that the door sees."""
    node = node or FakeNode()
    metrics = Metrics()
    metrics.watch_node(view or node)
    app = make_app(view or node, metrics, settings or HttpSettings())
    runner = await start_http(app, "127.0.0.1", 0)
    try:
        yield Harness(node, metrics, runner.port)
    finally:
        await runner.cleanup()
