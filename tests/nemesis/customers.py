"""Clients of three kinds that do what the simulated ones do, and write it down in real time.

A *cell* is a handful of keys and the three clients, one of each kind, that work on them: few enough
at a time for the checker to search all orders, while all cells together load the cluster. Blocking
clients get a thread each, and an event loop that only paces them.
"""

from __future__ import annotations

import asyncio
import threading
import time
import traceback
from contextlib import AsyncExitStack
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

import kvstore
from kvstore.errors import CorruptValue, KVError, PartialFailure
from tests.nemesis.http_client import HttpClient
from tests.nemesis.ledger import EPOCH_SECONDS, Files, Ledger
from tests.simulation.checkers import Get
from tests.simulation.workload import REFUSALS, Customer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from multiprocessing.synchronize import Event as Flag
    from pathlib import Path

    from kvstore.client import AsyncClient, Client
    from tests.simulation.machines import Caller

KINDS: Final = (
    *("put", "get", "get", "incr", "delete", "cas", "absent", "ttl", "touch", "batch", "many"),
    *("scan", "many", "many"),
)
KEYS: Final = 6
MANY_KEYS: Final = 48
TIMEOUTS: Final = (2.0, 5.0, 5.0)
STOP_LOOK_SECONDS: Final = 0.1
MISHAPS_MAX: Final = 20


class Total(Protocol):
    """A number that processes share."""

    value: int


@dataclass(frozen=True)
class Errand:
    """What a process of clients is told."""

    kind: str
    url: str
    http_addresses: list[str]
    clients: int
    seed: int
    directory: Path
    pause_seconds: float


class Unawaited:
    """A blocking client behind the asyncio client's methods, on a loop that nobody else uses."""

    def __init__(self, client: Client | HttpClient) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        method = getattr(self._client, name)

        async def call(*arguments: Any, **options: Any) -> Any:
            return method(*arguments, **options)

        return call


@dataclass(frozen=True)
class Desk:
    """What `Customer` knows of a caller."""

    client: Any
    host: str
    rng: Random


class Shopper(Customer):
    """A customer whose keys belong to a cell, and whose history goes to files."""

    def __init__(
        self,
        desk: Desk,
        cell: int,
        files: Files,
        pause_seconds: float,
        listing: Callable[[str], Awaitable[dict[str, Any]]],
    ) -> None:
        self.ledger = Ledger()
        names = [f"k{n}" for n in range(KEYS)]
        super().__init__(cast("Caller", desk), self.ledger, cell, names, pause_seconds, list(KINDS))
        self._cell = cell
        self._files = files
        self._listing = listing
        self._actions["scan"] = self._scan
        self.mishaps: list[str] = []

    async def run(self) -> None:
        """Until it is told to stop; what no client should see is kept as a mishap."""
        epoch = -1
        while not self.stopping:
            if epoch != (epoch := self._epoch()):
                self._versions.clear()
            try:
                name = self._present(self._rng.choice(self._keys))
                await self._actions[self._rng.choice(self._kinds)](name)
            except CorruptValue:  # a read that met damage before the scrub did
                for event in self.ledger.events:
                    event.refused = event.refused or isinstance(event.action, Get)
            except Exception:
                self.mishaps = [*self.mishaps, traceback.format_exc()][-MISHAPS_MAX:]
            self._files.write(self.ledger.take())
            await asyncio.sleep(self._pause_seconds * 2 * self._rng.random())

    def _epoch(self) -> int:
        return int(self.ledger.now // EPOCH_SECONDS)

    def _present(self, name: str) -> str:
        """The key that has this name in this cell now."""
        return f"{self._cell}/{name}@{self._epoch()}"

    async def _many(self, key: str) -> None:
        """Many keys in one call are as many operations: most of what a run counts."""
        names = [self._present(f"m{n}") for n in range(MANY_KEYS)]
        picked = self._rng.sample(names, self._rng.randrange(2, MANY_KEYS))
        if self._rng.random() < 0.5:
            await self._get_many(picked)
            return
        await self._put_many({name: self._value() for name in picked})

    async def _scan(self, key: str) -> None:
        """What lies under a tag: a read of each of its keys, all of one moment."""
        tag = self._present(self._rng.choice(("x", "y")))
        prefix = f"{{{tag}}}"
        begun = [self.ledger.begin(self._name, f"{prefix}{n}", Get()) for n in range(3)]
        try:
            found = await self._listing(prefix)
        except (PartialFailure, *REFUSALS):
            for event in begun:
                event.refused = True
            return
        for event in begun:
            self.ledger.end(event, (found[event.key], None) if event.key in found else None)


def run_process(errand: Errand, stop: Flag, total: Total, mishaps: Any) -> None:
    """A process of clients of one kind, until ``stop`` is set; ``mishaps`` is a queue."""
    files = Files(errand.directory, errand.kind)
    try:
        if errand.kind == "async":
            found = asyncio.run(_run_async(errand, files, stop, total))
        else:
            found = _run_threads(errand, files, stop, total)
    finally:
        files.close()
        total.value = files.count
    for text in found:
        mishaps.put(f"{errand.kind}: {text}")


async def _run_async(errand: Errand, files: Files, stop: Flag, total: Total) -> list[str]:
    shoppers = []
    async with AsyncExitStack() as stack:
        for cell in range(errand.clients):
            rng = Random(f"{errand.seed} {errand.kind} {cell}")
            made = kvstore.connect_async(errand.url, timeout=rng.choice(TIMEOUTS))
            client = await stack.enter_async_context(made)
            desk = Desk(client, errand.kind, rng)
            shoppers.append(
                Shopper(desk, cell, files, errand.pause_seconds, _async_listing(client))
            )
        tasks = [asyncio.create_task(shopper.run()) for shopper in shoppers]
        while not stop.is_set():
            await asyncio.sleep(STOP_LOOK_SECONDS)
            total.value = files.count
        for shopper in shoppers:
            shopper.stopping = True
        await asyncio.gather(*tasks)
    return [text for shopper in shoppers for text in shopper.mishaps]


def _async_listing(client: AsyncClient) -> Callable[[str], Awaitable[dict[str, Any]]]:
    async def listing(prefix: str) -> dict[str, Any]:
        return {key: value async for key, value in client.scan(prefix)}

    return listing


def _run_threads(errand: Errand, files: Files, stop: Flag, total: Total) -> list[str]:
    shoppers: list[Shopper] = []
    clients: list[Client | HttpClient] = []
    for cell in range(errand.clients):
        rng = Random(f"{errand.seed} {errand.kind} {cell}")
        client: Client | HttpClient
        if errand.kind == "http":
            client = HttpClient(errand.http_addresses, rng.choice(TIMEOUTS), rng)
        else:
            client = kvstore.connect(errand.url, timeout=rng.choice(TIMEOUTS))
        clients.append(client)
        desk = Desk(Unawaited(client), errand.kind, rng)
        shoppers.append(Shopper(desk, cell, files, errand.pause_seconds, _listing(client)))
    threads = [threading.Thread(target=asyncio.run, args=(s.run(),)) for s in shoppers]
    for thread in threads:
        thread.start()
    while not stop.is_set():
        time.sleep(STOP_LOOK_SECONDS)
        total.value = files.count
    for shopper in shoppers:
        shopper.stopping = True
    for thread in threads:
        thread.join()
    for client in clients:
        client.close()
    return [text for shopper in shoppers for text in shopper.mishaps]


def _listing(client: Client | HttpClient) -> Callable[[str], Awaitable[dict[str, Any]]]:
    async def listing(prefix: str) -> dict[str, Any]:
        if isinstance(client, HttpClient):
            return client.listing(prefix)
        return dict(client.scan(prefix))

    return listing


async def look(url: str, keys: list[str], timeout: float) -> dict[str, Any]:
    """What the keys hold, asked until it is answered.

    Raises:
        KVError: it never was.
    """
    deadline = time.monotonic() + timeout
    async with kvstore.connect_async(url, timeout=timeout) as client:
        while True:
            try:
                return await client.get_many(keys)
            except KVError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(STOP_LOOK_SECONDS)
