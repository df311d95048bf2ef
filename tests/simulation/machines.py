"""Simulated machines: a node's process with its disk, and clients, made of the production code."""

from __future__ import annotations

import asyncio
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar

from cluster.topology import Node as Member
from kvstore.client.aio import AsyncClient
from kvstore.client.core import ClientCore
from kvstore.client.streams import StreamTransport
from kvstore.node.node import Node
from tests.simulation.disk import Disk, DiskCommit
from tests.simulation.process_loop import Process

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.simulation.network import Network
    from tests.simulation.process_loop import Universe

T = TypeVar("T")

PORT, HTTP_PORT = 7401, 8401
WALL_MS = 1_700_000_000_000


class SimClock:
    """See `kvstore.node.clock.Clock`: a steady one, and one that may be wrong."""

    def __init__(self, universe: Universe) -> None:
        self._universe = universe
        self.skew_ms = 0

    def now_ms(self) -> int:
        return 1 + int(self._universe.now * 1_000)

    def unix_ms(self) -> int:
        return WALL_MS + self.skew_ms + int(self._universe.now * 1_000)


class Machine:
    """One node's machine: what outlives the process is the disk and the clock."""

    def __init__(
        self, universe: Universe, network: Network, number: int, founders: int, sync_seconds: float
    ) -> None:
        self.universe, self.network = universe, network
        self.host = f"n{number}"
        self.id = number
        self.rng = Random(universe.rng.getrandbits(64))
        self.disk = Disk(self.rng, sync_seconds)
        self.clock = SimClock(universe)
        self.process: Process | None = None
        self.node: Node | None = None
        self.starts = 0
        self.founders = tuple(f"n{n}:{PORT}" for n in range(1, founders + 1))

    def start(self, *, slot_count: int) -> None:
        """A new process on the disk as it is."""
        assert self.process is None
        self.starts += 1
        self.network.host_is_back(self.host)
        process = self.process = Process(self.universe, self.network, self.host)
        process.run_within(lambda: self._boot(process, slot_count))

    def _boot(self, process: Process, slot_count: int) -> None:
        address = f"{self.host}:{PORT}"
        member = Member(self.id, self.host, address, f"{self.host}:{HTTP_PORT}", "", 1.0)
        node = self.node = Node(
            member,
            "sim",
            self.disk.engine,
            DiskCommit(self.disk, process, lambda _: self._disk_lost()),
            lambda _: None,
            founders=self.founders,
            slot_count=slot_count,
            replicas=3,
            clock=self.clock,
            rng=Random(self.rng.getrandbits(64)),
            aside=_beside,
        )

        async def serve() -> None:
            await node.server.bind(self.host, PORT, "--port")  # in the order of `kvstore.process`
            if node.membership.is_founded:
                await node.start()
                await node.server.serve()
            else:
                await node.server.serve()
                await node.start()

        process.create_task(serve()).add_done_callback(_surface)

    def _disk_lost(self) -> None:
        """As `kvstore.process` does: no further word."""
        self.universe.note("disk lost", self.host)
        self.crash(silently=False)

    def crash(self, *, silently: bool) -> None:
        """kill -9, or silently a power cut."""
        process, self.process, self.node = self.process, None, None
        if process is not None:
            process.kill()
            self.network.host_died(process, silently=silently)
            self.disk.crash()

    def stop(self) -> asyncio.Task[None]:
        """SIGTERM; the process is gone when the task is done and `crash` was called."""
        assert self.process is not None
        assert self.node is not None
        node = self.node

        async def end() -> None:
            if node.topology is not None:
                await node.retire()
            await node.close()

        return self.process.spawn(end())

    @property
    def running(self) -> bool:
        """Whether there is a process, paused or not."""
        return self.process is not None


async def _beside(function: Callable[..., T], *arguments: Any) -> T:
    """What a thread would do, in no time."""
    await asyncio.sleep(0)
    return function(*arguments)


def _surface(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        raise error


class Caller:
    """A process with one asyncio client."""

    def __init__(
        self,
        universe: Universe,
        network: Network,
        number: int,
        nodes: int,
        timeout_seconds: float,
    ) -> None:
        self.host = f"c{number}"
        self.rng = Random(universe.rng.getrandbits(64))
        self.process = process = Process(universe, network, self.host)
        seeds = [f"n{n}:{PORT}" for n in range(1, nodes + 1)]
        self.rng.shuffle(seeds)

        def make() -> AsyncClient:
            core = ClientCore(seeds, now=process.time, chance=self.rng)
            core.client_id = self.rng.getrandbits(64)
            transport = StreamTransport(connect_timeout=2.0, now=process.time)
            return AsyncClient(core, transport, timeout=timeout_seconds)

        self.client = process.run_within(make)
