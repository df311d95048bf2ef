"""Several real nodes in one event loop, over real sockets and files; they stop and come back."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from cluster.topology import Node as Member
from kvstore.node.node import Node
from kvstore.storage.datadir import DataDir
from kvstore.storage.opening import open_store
from tests.kvstore.node_harness import CACHE_BYTES, CLUSTER_NAME, HOST, reserved_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from cluster.topology import Topology

SLOT_COUNT = 16
WAIT_S = 20.0
"""Only a failing test waits so long."""


class Site:
    """A place for a node: its ports and its disk; the node itself comes and goes."""

    def __init__(self, name: str, port: int, http_port: int, directory: Path, zone: str) -> None:
        self.name = name
        self.port = port
        self.address = f"{HOST}:{port}"
        self.http_address = f"{HOST}:{http_port}"
        self.directory = directory
        self.zone = zone
        self.node: Node
        self.up = False

    async def open(
        self,
        founders: tuple[str, ...] = (),
        *,
        join: Site | None = None,
        replaces: str = "",
        cluster: str = CLUSTER_NAME,
    ) -> None:
        """A node that listens and is not started yet."""
        self._disk = DataDir.open(self.directory)
        store = open_store(
            self._disk,
            asyncio.get_running_loop(),
            _disk_lost,
            engine="rocksdb",
            durability="os",
            cache_bytes=CACHE_BYTES,
        )
        self.node = Node(
            Member(self._disk.member_id, self.name, self.address, self.http_address, self.zone),
            cluster,
            store.engine,
            store.commit,
            lambda _: None,
            founders=founders,
            join=(join.address,) if join is not None else (),
            replaces=replaces,
            slot_count=SLOT_COUNT,
            replicas=3,
        )
        await self.node.server.listen(HOST, self.port, "--port")
        self.up = True

    async def start(self) -> None:
        """A node that is back on its disk."""
        await self.open()
        await self.node.start()

    async def join(self, member: Site, *, replaces: str = "") -> None:
        """A node that is taken in by a member."""
        await self.open(join=member, replaces=replaces)
        async with asyncio.timeout(WAIT_S):
            await self.node.start()

    async def stop(self) -> None:
        """The node is gone, its disk stays."""
        if self.up:
            self.up = False
            await self.node.close()
            self._disk.close()

    @property
    def topology(self) -> Topology:
        """The newest that the node knows."""
        assert self.node.topology is not None
        return self.node.topology


class Cluster:
    """Sites, and the nodes that are up on them."""

    def __init__(self, directory: Path, stack: AsyncExitStack) -> None:
        self.directory = directory
        self._stack = stack
        self.sites: list[Site] = []

    def add(self, zone: str = "", *, name: str = "") -> Site:
        """A new site with an empty disk."""
        name = name or f"n{len(self.sites) + 1}"
        port, http_port = (self._stack.enter_context(reserved_port()) for _ in range(2))
        return self.register(Site(name, port, http_port, self.directory / name, zone))

    def wiped(self, site: Site) -> Site:
        """The same machine with an empty disk."""
        port, http_port = site.port, int(site.http_address.rpartition(":")[2])
        return self.register(
            Site(site.name, port, http_port, self.directory / f"{site.name}-new", site.zone)
        )

    def register(self, site: Site) -> Site:
        """Keep it, and stop its node in the end."""
        self._stack.push_async_callback(site.stop)
        self.sites.append(site)
        return site

    @property
    def up(self) -> list[Site]:
        """Sites whose node runs."""
        return [site for site in self.sites if site.up]


@asynccontextmanager
async def running_cluster(directory: Path, *zones: str) -> AsyncIterator[Cluster]:
    """A founded cluster that serves, one node for each zone given."""
    async with AsyncExitStack() as stack:
        cluster = Cluster(directory, stack)
        for zone in zones:
            cluster.add(zone)
        founders = tuple(site.address for site in cluster.sites)
        for site in cluster.sites:
            await site.open(founders)
        async with asyncio.timeout(WAIT_S):
            await asyncio.gather(*(site.node.start() for site in cluster.sites))
            await asyncio.gather(*(site.node.wait_ready() for site in cluster.sites))
        yield cluster


async def all_at(cluster: Cluster, topology: Topology) -> None:
    """Until every node that is up has adopted it."""
    await until(
        lambda: all(site.node.topology == topology for site in cluster.up),
        f"all nodes at epoch {topology.epoch}",
    )


async def until(condition: Callable[[], bool], what: str) -> None:
    """Wait until it holds."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {WAIT_S:g} s: {what}"
        await asyncio.sleep(0.005)


def _disk_lost(error: Exception) -> None:
    raise AssertionError("the disk failed") from error
