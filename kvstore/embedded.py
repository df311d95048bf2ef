"""The store inside a program: `kvstore.open`, the same node with one member and no ports.

A thread runs the node's event loop; the blocking client hands it the same frames that it would
send over a socket. So every rule, the log on disk and every answer are those of a cluster; a quorum
is one, and one fsync. The directory is locked: one process at a time.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final
from weakref import WeakSet

from cluster.topology import NOWHERE
from cluster.topology import Node as Member
from kvstore.client import Client, ClientCore, InProcessTransport
from kvstore.client.exchange import NotSent, TimedOut
from kvstore.client.in_process import IN_PROCESS
from kvstore.errors import ClientClosed, SetupError
from kvstore.node.node import Node
from kvstore.sizes import DISK_RESERVE_BYTES_DEFAULT
from kvstore.storage.datadir import DataDir
from kvstore.storage.disk_space import DiskSpace
from kvstore.storage.engine import EngineSyncError
from kvstore.storage.opening import Store, open_store

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any

    from kvstore.client.exchange import Heard, Listen, Reply, Send
    from kvstore.client.stream_links import StreamLinks

__all__ = ["open"]

NAME: Final = "embedded"
CLUSTER_NAME: Final = "ringkv"
SLOT_COUNT: Final = 64
"""Slots spread load over nodes; for the only one they need not be many, and it opens at once."""

CACHE_BYTES: Final = 64 * 1_048_576
START_TIMEOUT_S: Final = 60.0


def open(  # noqa: A001 - like every `open`, and meant to be used as kvstore.open
    path: str | os.PathLike[str],
    *,
    durability: str = "disk",
    timeout: float = 5.0,
) -> Client:
    """Open the store in a directory, making it if it is not there.

    Args:
        path: A directory for this store alone.
        durability: "disk" returns from a write when it is synced; "os" trusts the operating
            system, so that the last moments before a power failure may be lost.
        timeout: Seconds for a call that names none.

    Returns:
        A client like that of `kvstore.connect`; closing it closes the store.

    Raises:
        SetupError: the directory is in use, another program's, or part of a larger cluster.
        ValueError: an unknown durability.
    """
    if durability not in ("disk", "os"):
        raise ValueError(f'durability is "disk" or "os", not {durability!r}')
    transport = EmbeddedTransport(Path(path), durability)
    return Client(ClientCore([IN_PROCESS], token_aware=False), transport, timeout=timeout)


class EmbeddedTransport:
    """A `kvstore.client.exchange.Transport` to a node on a thread of its own."""

    token_aware: bool = False

    def __init__(self, path: Path, durability: str) -> None:
        self._process = os.getpid()
        self._failure = ""
        self._closed = False
        self._links: WeakSet[EmbeddedLinks] = WeakSet()
        self._directory = DataDir.open(path)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=NAME, daemon=True)
        self._thread.start()
        try:
            self._node = self._call(self._start(durability), START_TIMEOUT_S)
        except BaseException:
            self._stop()
            raise
        self._door = InProcessTransport(self._node)

    def exchange(self, sends: list[Send], deadline: float) -> list[Reply]:
        """See `kvstore.client.exchange.Transport`."""
        if self._process != os.getpid():
            raise ClientClosed(
                "an embedded store belongs to the process that opened it: a forked child cannot "
                "use it (serve the data with `kvstore serve` to share it)"
            )
        if self._failure:
            return [NotSent(self._failure) for _ in sends]
        coroutine = self._door.exchange(sends, deadline)
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            # The door keeps the deadline; the little more is for its own answer to arrive.
            return future.result(max(0.0, deadline - time.monotonic()) + 1.0)
        except TimeoutError:
            future.cancel()
            return [TimedOut(self._failure or "the store did not answer in time") for _ in sends]

    def links(self) -> EmbeddedLinks:
        """See `kvstore.client.exchange.Transport`."""
        links = EmbeddedLinks(self._door.links(), self._loop)
        self._links.add(links)
        return links

    def close(self) -> None:
        """Stop the node and unlock the directory."""
        if self._closed or self._process != os.getpid():
            return
        self._closed = True
        for links in list(self._links):
            links.close()
        try:
            self._call(self._node.close(), START_TIMEOUT_S)
        finally:
            self._stop()

    def _call(self, coroutine: Coroutine[Any, Any, Any], timeout_s: float) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout_s)

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._directory.close()

    async def _start(self, durability: str) -> Node:
        store = open_store(
            self._directory,
            self._loop,
            self._disk_lost,
            engine="rocksdb",
            durability=durability,
            cache_bytes=CACHE_BYTES,
        )
        member = Member(self._directory.member_id, NAME, *NOWHERE)
        space = DiskSpace(self._directory.path, DISK_RESERVE_BYTES_DEFAULT)
        node = make_node(member, store, space)
        try:
            await node.start()
            if node.topology is not None and len(node.topology.nodes) > 1:
                raise SetupError(
                    f"{self._directory.path} holds one node's part of a cluster of "
                    f"{len(node.topology.nodes)}: it cannot be opened alone (use `kvstore serve`)"
                )
            await node.wait_ready()
        except BaseException:
            await node.close()
            raise
        return node

    def _disk_lost(self, error: Exception) -> None:
        """Nothing is acknowledged any more (R12); calls say why."""
        if isinstance(error, EngineSyncError):
            self._directory.mark_lost(str(error))
        self._failure = f"the disk failed, this store is closed to protect your data: {error}"


class EmbeddedLinks:
    """A `kvstore.client.exchange.Links` to a node whose loop runs on another thread."""

    def __init__(self, links: StreamLinks, loop: asyncio.AbstractEventLoop) -> None:
        self._links = links
        self._loop = loop

    def listen(self, step: Listen) -> list[Heard]:
        """See `kvstore.client.exchange.Links`."""
        if self._loop.is_closed():
            return []
        future = asyncio.run_coroutine_threadsafe(self._links.listen(step), self._loop)
        try:
            return future.result(max(0.0, step.deadline - time.monotonic()) + 1.0)
        except TimeoutError:  # the loop stopped
            return []

    def close(self) -> None:
        """See `kvstore.client.exchange.Links`."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._links.close)


def make_node(member: Member, store: Store, space: DiskSpace) -> Node:
    """A cluster of one."""
    return Node(
        member,
        CLUSTER_NAME,
        store.engine,
        store.commit,
        lambda _: None,
        slot_count=SLOT_COUNT,
        replicas=1,
        space=space,
    )
