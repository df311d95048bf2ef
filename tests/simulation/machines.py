"""Simulated machines: a node's process with its disk, and clients, made of the production code."""

from __future__ import annotations

import asyncio
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from cluster.system_slot import owners
from cluster.topology import Node as Member
from kvstore.client.aio import AsyncClient
from kvstore.client.core import ClientCore
from kvstore.client.routing import NOBODY, RoutingTable
from kvstore.client.streams import StreamTransport
from kvstore.errors import SetupError
from kvstore.node.node import Node
from kvstore.storage.disk_space import DiskSpace
from kvstore.storage.engine import EngineSyncError
from tests.simulation.disk import RESERVE_BYTES, Disk, DiskCommit
from tests.simulation.process_loop import Process

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.simulation.network import Network
    from tests.simulation.process_loop import Universe

T = TypeVar("T")

PORT, HTTP_PORT = 7401, 8401
SPARES = 2
"""Machines that may join."""
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


class MachineSettings(NamedTuple):
    """What all machines have in common."""

    slot_count: int
    sync_seconds: float
    slow_sync_chance: float
    scrub_bytes_per_s: int


class Machine:
    """One node's machine: what outlives the process is the disk and the clock.

    Args:
        universe: Its time.
        network: Its sockets.
        number: Its name is ``n`` and this.
        founders: How many machines found the cluster; one beyond them joins it.
        world: What the seed drew.
        rng: All of this machine's chance.
    """

    def __init__(
        self,
        universe: Universe,
        network: Network,
        number: int,
        founders: int,
        world: MachineSettings,
        rng: Random,
    ) -> None:
        self.universe, self.network = universe, network
        self.host = f"n{number}"
        self.id = number
        self.rng = rng
        self.settings = world
        self.clock = SimClock(universe)
        self.process: Process | None = None
        self.node: Node | None = None
        self.starts = 0
        self.started_at = 0.0
        self.replaces = ""
        """Whose place it takes when it joins with a new disk: its own."""
        self.joins = number > founders
        self.out = self.joins
        """It is no part of the cluster, and nobody starts it."""
        self.start_is_due = False
        self.founders = tuple(f"n{n}:{PORT}" for n in range(1, founders + 1))
        self.everyone = tuple(f"n{n}:{PORT}" for n in range(1, founders + SPARES + 1))
        """Whom it asks to be taken in: an operator knows where members are."""
        self.disk = self._new_disk()

    def _new_disk(self) -> Disk:
        settings = self.settings
        return Disk(self.rng, settings.sync_seconds, settings.slow_sync_chance)

    def new_disk(self) -> None:
        """Whatever it held is gone; a member id belongs to a disk (R12, R16)."""
        assert self.process is None
        self.disk = self._new_disk()
        self.id += 100
        self.joins = True

    def start(self) -> None:
        """A new process on the disk as it is."""
        assert self.process is None
        self.starts += 1
        self.started_at = self.universe.now
        self.network.host_is_back(self.host)
        process = self.process = Process(self.universe, self.network, self.host)
        process.run_within(lambda: self._boot(process))

    def _boot(self, process: Process) -> None:
        address = f"{self.host}:{PORT}"
        member = Member(self.id, self.host, address, f"{self.host}:{HTTP_PORT}", "", 1.0)
        disk, settings = self.disk, self.settings
        join = tuple(a for a in self.everyone if a != address) if self.joins else ()
        node = self.node = Node(
            member,
            "sim",
            disk.engine,
            DiskCommit(disk, process, self._disk_failed),
            lambda _: None,
            founders=() if self.joins else self.founders,
            join=join,
            replaces=self.replaces,
            slot_count=settings.slot_count,
            replicas=3,
            clock=self.clock,
            rng=Random(self.rng.getrandbits(64)),
            aside=_beside,
            space=DiskSpace(Path(self.host), RESERVE_BYTES, lambda: disk.free_bytes),
            scrub_bytes_per_s=settings.scrub_bytes_per_s,
        )

        async def serve() -> None:
            await node.server.bind(self.host, PORT, "--port")  # in the order of `kvstore.process`
            if node.membership.is_founded:
                await node.start()
                await node.server.serve()
            else:
                await node.server.serve()
                await node.start()

        def started(task: asyncio.Task[None]) -> None:
            if task.cancelled() or self.process is not process:
                return
            error = task.exception()
            if isinstance(error, SetupError):  # as the command: it says why, and ends
                self.universe.note("not started", self.host, error)
                self.crash(silently=False)
                self.replaces = "" if self.replaces else self.host  # as the message says
            elif error is not None:
                raise error

        process.create_task(serve()).add_done_callback(started)

    def _disk_failed(self, error: Exception) -> None:
        """As `kvstore.process` does: no further word, and no second try after a failed sync."""
        self.universe.note("disk failed", self.host, error)
        self.disk.lost = isinstance(error, EngineSyncError)
        self.crash(silently=False)

    def crash(self, *, silently: bool) -> None:
        """kill -9, or silently a power cut."""
        process, self.process, self.node = self.process, None, None
        if process is not None:
            process.kill()
            self.network.host_died(process, silently=silently)
            self.disk.crash()

    def stop(self) -> None:
        """SIGTERM: the process ends when the node has closed."""
        process, node = self.process, self.node
        if process is None or node is None or process.paused:
            return

        async def end() -> None:
            if node.topology is not None:
                await node.retire()
            await node.close()

        def gone(_: asyncio.Task[None]) -> None:
            if self.process is process:
                self.crash(silently=False)

        process.spawn(end()).add_done_callback(gone)

    @property
    def running(self) -> bool:
        """Whether there is a process, paused or not."""
        return self.process is not None


owners_once = lru_cache(maxsize=64)(owners)
"""All nodes compute the same; here it is computed once."""


async def _beside(function: Callable[..., T], *arguments: Any) -> T:
    """What a thread would do, in no time."""
    await asyncio.sleep(0)
    if function is owners:
        return owners_once(*arguments)  # type: ignore[return-value]
    return function(*arguments)


class Balanced(RoutingTable):
    """Knows everything but who serves what."""

    def resolve(self, primary: str, now: float, *, not_again: str = NOBODY) -> str:
        return super().resolve(NOBODY, now, not_again=not_again)


class Caller:
    """A process with one asyncio client.

    Args:
        universe: Its time.
        network: Its sockets.
        number: Its name is ``c`` and this.
        nodes: How many machines founded the cluster: the seeds of the client.
        timeout_seconds: Of a call.
        rng: All of this client's chance.
        balanced: It asks any node, as behind a load balancer, so that most is forwarded.
    """

    def __init__(
        self,
        universe: Universe,
        network: Network,
        number: int,
        nodes: int,
        timeout_seconds: float,
        rng: Random,
        *,
        balanced: bool = False,
    ) -> None:
        self.host = f"c{number}"
        self.rng = rng
        self.process = process = Process(universe, network, self.host)
        seeds = [f"n{n}:{PORT}" for n in range(1, nodes + 1)]
        self.rng.shuffle(seeds)

        def make() -> AsyncClient:
            core = ClientCore(seeds, now=process.time, chance=self.rng)
            core.client_id = self.rng.getrandbits(64)
            if balanced:
                core.table = Balanced(seeds)
            transport = StreamTransport(connect_timeout=2.0, now=process.time)
            return AsyncClient(core, transport, timeout=timeout_seconds)

        self.client = process.run_within(make)
