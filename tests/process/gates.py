"""Where the network cannot be cut: a gate before each node's port, which lets in whom it should.

A gate reads who dials (`Hello`) and carries the connection on, or closes it. So what one node sends
to another can be stopped without root, one way: its links are refused, those the other way are not.
Packets that vanish are the better test, for nothing is told then (`scripts.network_namespaces`).
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Self

from kvstore.wire.frames import FrameDecoder
from kvstore.wire.protocol import Hello

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any

HOST: Final = "127.0.0.1"
READ_BYTES: Final = 65_536
END_S: Final = 10.0


class Gates:
    """Gates before nodes ``n1``, ``n2``, ...; a context manager.

    Args:
        ports: Where each node listens.
    """

    def __init__(self, ports: list[int]) -> None:
        self._ports = ports
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="gates")
        self._lost: set[tuple[str, int]] = set()
        self._open: dict[tuple[str, int], set[asyncio.Task[None]]] = {}
        self._servers: list[asyncio.Server] = []
        self.addresses: list[str] = []
        """Where each node is reached through its gate."""

    def __enter__(self) -> Self:
        self._thread.start()
        self._do(self._listen())
        return self

    def __exit__(self, *exception: object) -> None:
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def lose(self, sender: int, receiver: int) -> None:
        """Nothing that this node sends to the other arrives (numbers from 1)."""
        self._do(self._shut(f"n{sender}", receiver))

    def find(self, sender: int, receiver: int) -> None:
        """As before."""
        self._lost.discard((f"n{sender}", receiver))

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(END_S)

    async def _listen(self) -> None:
        for number, port in enumerate(self._ports, 1):

            async def enter(
                reader: asyncio.StreamReader,
                writer: asyncio.StreamWriter,
                number: int = number,
                port: int = port,
            ) -> None:
                with suppress(OSError, asyncio.CancelledError):
                    await self._enter(reader, writer, number, port)
                writer.close()

            server = await asyncio.start_server(enter, HOST, 0)
            self._servers.append(server)
            self.addresses.append(f"{HOST}:{server.sockets[0].getsockname()[1]}")

    async def _enter(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int, port: int
    ) -> None:
        said, decoder = b"", FrameDecoder(expect_magic=True)
        while not (frames := decoder.feed(data := await reader.read(READ_BYTES))):
            if not data:
                return
            said += data
        assert isinstance(frames[0], Hello)
        way = (frames[0].name, number)
        if way in self._lost:
            return
        task = asyncio.current_task()
        assert task is not None
        self._open.setdefault(way, set()).add(task)
        far_reader, far_writer = await asyncio.open_connection(HOST, port)
        try:
            far_writer.write(said + data)
            there = asyncio.ensure_future(_carry(reader, far_writer))
            back = asyncio.ensure_future(_carry(far_reader, writer))
            try:
                await asyncio.wait([there, back], return_when=asyncio.FIRST_COMPLETED)
            finally:
                there.cancel()
                back.cancel()
        finally:
            far_writer.close()
            self._open[way].discard(task)

    async def _shut(self, sender: str, receiver: int) -> None:
        self._lost.add((sender, receiver))
        for task in self._open.get((sender, receiver), set()):
            task.cancel()

    async def _end(self) -> None:
        for server in self._servers:
            server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(READ_BYTES):
            writer.write(data)
            await writer.drain()
