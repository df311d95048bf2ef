"""The network of nodes where no namespaces can be made: a TCP proxy for each pair of them.

What node a dials to reach node b is a port of its own (`tests.nemesis.bent` sends it there), so
each connection between nodes is known by both its ends, and each direction of it can be stopped:
what is stopped waits, the end of a connection too, and nobody is told, as when packets are lost.
Clients go to the nodes themselves: they reach whom the others do not.

All proxies live in one thread; the methods may be called from any other.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

HOST: Final = "127.0.0.1"
READ_BYTES: Final = 1 << 16
SLOW_SECONDS: Final = 0.03
"""What a piece takes to or from a slow node; see `scripts.network_namespaces.SLOW`."""

START_SECONDS: Final = 30.0

Pair = tuple[int, int]
"""Sender and receiver, or who dials and who is dialled; places are numbered from 1."""


class Proxies:
    """A context manager; inside, all pairs of places are joined.

    Args:
        ports: Of the nodes, by place.
    """

    def __init__(self, ports: list[int]) -> None:
        self._ports = dict(enumerate(ports, 1))
        self._doors: dict[Pair, int] = {}
        self._lost: Counter[Pair] = Counter()
        self._slow: Counter[int] = Counter()
        self._changed = asyncio.Condition()
        self._open: dict[asyncio.StreamWriter, Pair] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="proxies", daemon=True)
        self._ready, self._end = threading.Event(), asyncio.Event()

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._ready.wait(START_SECONDS):
            raise OSError("the proxies do not start")
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()

    def write_map(self, file: Path, number: int) -> None:
        """For `tests.nemesis.bent`: which port a node dials in place of each other's."""
        dialled = {
            str(self._ports[to]): port for (by, to), port in self._doors.items() if by == number
        }
        file.write_text(json.dumps(dialled))

    # -- faults, as those of `scripts.network_namespaces.Namespaces` ----------------------------

    def cut(self, number: int) -> None:
        """Nothing passes between this node and any other."""
        for pair in self._pairs_of(number):
            self.lose(*pair)

    def mend(self, number: int) -> None:
        """As before."""
        for pair in self._pairs_of(number):
            self.find(*pair)

    def lose(self, sender: int, receiver: int) -> None:
        """What one node sends to another waits; the other way nothing changes."""
        self._do(self._add(self._lost, (sender, receiver), 1))

    def find(self, sender: int, receiver: int) -> None:
        """As before."""
        self._do(self._add(self._lost, (sender, receiver), -1))

    def slow(self, number: int) -> None:
        """What is sent from and to this node arrives late."""
        self._do(self._add(self._slow, number, 1))

    def hasten(self, number: int) -> None:
        """As before."""
        self._do(self._add(self._slow, number, -1))

    def snap(self, number: int) -> None:
        """Every connection of this node breaks, with what is under way."""

        async def carry_out() -> None:
            for writer, pair in list(self._open.items()):
                if number in pair:
                    writer.transport.abort()

        self._do(carry_out())

    # -- in the thread -------------------------------------------------------------------------

    def _pairs_of(self, number: int) -> list[Pair]:
        others = [n for n in self._ports if n != number]
        return [pair for n in others for pair in ((n, number), (number, n))]

    async def _add(self, counts: Counter[Any], key: Any, by: int) -> None:
        counts[key] += by
        async with self._changed:
            self._changed.notify_all()

    def _do(self, work: Coroutine[object, object, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(START_SECONDS)

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        servers = []
        for by in self._ports:
            for to in self._ports:
                if by != to:
                    server = await asyncio.start_server(self._door((by, to)), HOST, 0)
                    self._doors[by, to] = server.sockets[0].getsockname()[1]
                    servers.append(server)
        self._ready.set()
        await self._end.wait()
        for server in servers:
            server.close()
        for writer in list(self._open):
            writer.transport.abort()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    def _door(
        self, pair: Pair
    ) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[object, object, None]]:
        by, to = pair

        async def dialled(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._open[writer] = pair
            with suppress(OSError):
                await self._passes((by, to))
                await self._passes((to, by))
                there, back = await asyncio.open_connection(HOST, self._ports[to])
                self._open[back] = pair
                await asyncio.gather(
                    self._carry(reader, back, (by, to)), self._carry(there, writer, (to, by))
                )
            self._open.pop(writer, None)
            writer.transport.abort()

        return dialled

    async def _passes(self, way: Pair) -> None:
        """When nothing stops what goes this way."""
        if self._lost[way] > 0:
            async with self._changed:
                await self._changed.wait_for(lambda: self._lost[way] <= 0)

    async def _carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Pair
    ) -> None:
        """One direction of one connection, its end included."""
        try:
            with suppress(OSError):
                while data := await reader.read(READ_BYTES):
                    if self._slow[way[0]] > 0 or self._slow[way[1]] > 0:
                        await asyncio.sleep(SLOW_SECONDS)
                    await self._passes(way)
                    writer.write(data)
                    await writer.drain()
            await self._passes(way)
        finally:
            self._open.pop(writer, None)
            writer.transport.abort()
