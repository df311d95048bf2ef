"""The proxies between two places, with a server that sends back what it hears."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from tests.nemesis.bent import bend_links
from tests.nemesis.proxies import HOST, Proxies

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def joined(directory: Path) -> AsyncIterator[tuple[Proxies, int]]:
    """Two places, of which the second echoes; what the first dials to reach it."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.CancelledError):
            while data := await reader.read(100):
                writer.write(data)
        writer.close()

    server = await asyncio.start_server(echo, HOST, 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        with Proxies([1, port]) as proxies:
            file = directory / "links"
            proxies.write_map(file, 1)
            yield proxies, json.loads(file.read_text())[str(port)]


async def echoes(stream: Stream, data: bytes, seconds: float) -> bool:
    """Whether it comes back in time."""
    reader, writer = stream
    writer.write(data)
    try:
        async with asyncio.timeout(seconds):
            return await reader.readexactly(len(data)) == data
    except TimeoutError:
        return False


@pytest.mark.parametrize("way", [(1, 2), (2, 1)], ids=["request", "answer"])
async def test_what_is_lost_waits_and_then_arrives(tmp_path: Path, way: tuple[int, int]) -> None:
    async with joined(tmp_path) as (proxies, port):
        stream = await asyncio.open_connection(HOST, port)
        assert await echoes(stream, b"one", 30.0)
        await asyncio.to_thread(proxies.lose, *way)
        assert not await echoes(stream, b"two", 0.2)
        await asyncio.to_thread(proxies.find, *way)
        assert await stream[0].readexactly(3) == b"two"
        stream[1].close()


async def test_who_is_cut_twice_is_mended_twice(tmp_path: Path) -> None:
    async with joined(tmp_path) as (proxies, port):
        for _ in range(2):
            await asyncio.to_thread(proxies.cut, 2)
        await asyncio.to_thread(proxies.mend, 2)
        stream = await asyncio.open_connection(HOST, port)
        assert not await echoes(stream, b"one", 0.2)
        await asyncio.to_thread(proxies.mend, 2)
        assert await stream[0].readexactly(3) == b"one"
        stream[1].close()


async def test_a_slow_node_is_heard_all_the_same(tmp_path: Path) -> None:
    async with joined(tmp_path) as (proxies, port):
        await asyncio.to_thread(proxies.slow, 2)
        stream = await asyncio.open_connection(HOST, port)
        assert await echoes(stream, b"one", 30.0)
        stream[1].close()


async def test_connections_snap(tmp_path: Path) -> None:
    async with joined(tmp_path) as (proxies, port):
        stream = await asyncio.open_connection(HOST, port)
        assert await echoes(stream, b"one", 30.0)
        await asyncio.to_thread(proxies.snap, 1)
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await stream[0].readexactly(1)
        stream[1].close()


async def test_a_bent_node_dials_the_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = asyncio.BaseEventLoop
    monkeypatch.setattr(kind, "create_connection", kind.create_connection)
    async with joined(tmp_path) as (proxies, port):
        (real,) = json.loads((tmp_path / "links").read_text())
        bend_links(tmp_path / "links")
        await asyncio.to_thread(proxies.cut, 2)
        stream = await asyncio.open_connection(HOST, int(real))
        assert not await echoes(stream, b"one", 0.2)
        assert stream[1].get_extra_info("peername")[1] == port
        stream[1].close()
