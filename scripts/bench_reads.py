"""Two ways to confirm a linearizable read (rule 6), side by side: `python -m scripts.bench_reads`.

The primary asks its peers, which is what is built; or the client asks the primary and one other
member in parallel, and compares what that member has promised with the primary's ballot. The second
way is a prototype: the primary is asked for what it has (an eventual read, which confirms nothing),
and the member for an absent key of the same slot, which costs it what a look at its promise costs,
and a lookup that a filter answers. Nothing else of that way is missing from its figures but the
comparison; `docs/decisions/0012-reads.md` says what it would need beside.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
from rich.console import Console

from cluster.operations import Get
from cluster.slots import slot_of
from kvstore.client.exchange import Send
from kvstore.client.sockets import SocketTransport
from kvstore.client.streams import StreamTransport
from kvstore.wire.protocol import Request, Response, RouteQuery, Routes
from scripts.bench import running
from scripts.bench_figures import columns, percentile

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Way = Callable[[list[bytes]], dict[int, list[Get]]]
    """Keys to what each node is asked."""
    Drive = Callable[["Reader", Way, list[list[bytes]]], list[float]]

KEYS: Final = 20_000
IDLE_S: Final = 0.5
TASKS: Final = 64
ABSENT: Final = b"{%b}?"
"""Of the same slot as a key without braces, by its tag."""
_ids = count(1)


class Reader:
    """Asks nodes directly, in one way or the other."""

    def __init__(self, url: str) -> None:
        self._transport = SocketTransport(connect_timeout=2.0)
        seed = url.removeprefix("kv://").partition(",")[0].partition("/")[0]
        routes = self._exchange([Send(seed, RouteQuery(next(_ids)))])[0]
        assert isinstance(routes, Routes)
        self._addresses = [node.address for node in routes.nodes]
        self._slots = routes.slot_count
        self._primaries = memoryview(routes.primaries)

    def _exchange(self, sends: list[Send]) -> Sequence[object]:
        return self._transport.exchange(sends, time.monotonic() + 10)

    def _leader(self, key: bytes) -> int:
        at = 2 * slot_of(key, self._slots)
        return int.from_bytes(self._primaries[at : at + 2], "big")

    def ask(self, asked: dict[int, list[Get]]) -> None:
        """One call, and all its answers."""
        replies = self._exchange(self.sends(asked))
        assert all(isinstance(reply, Response) for reply in replies)

    def sends(self, asked: dict[int, list[Get]]) -> list[Send]:
        """One request a node."""
        return [
            Send(
                self._addresses[node],
                Request(next(_ids), 1, 1, False, 5_000, 0, list(gets), []),
            )
            for node, gets in asked.items()
        ]

    def primary_asks(self, keys: list[bytes]) -> dict[int, list[Get]]:
        """One request to each primary; it has its peers confirm."""
        asked: dict[int, list[Get]] = {}
        for key in keys:
            asked.setdefault(self._leader(key), []).append(Get(key))
        return asked

    def client_asks(self, keys: list[bytes]) -> dict[int, list[Get]]:
        """To each primary, and to one other member, in one request a node."""
        asked: dict[int, list[Get]] = {}
        for key in keys:
            leader = self._leader(key)
            member = (leader + 1) % len(self._addresses)
            asked.setdefault(leader, []).append(Get(key, eventual=True))
            asked.setdefault(member, []).append(Get(ABSENT % key, eventual=True))
        return asked


def one_by_one(reader: Reader, way: Way, batches: list[list[bytes]]) -> list[float]:
    """Seconds of each call."""
    taken = []
    for keys in batches:
        now = time.perf_counter()
        reader.ask(way(keys))
        taken.append(time.perf_counter() - now)
    return taken


def by_tasks(reader: Reader, way: Way, batches: list[list[bytes]]) -> list[float]:
    """The same with many under way."""
    taken = []

    async def work(transport: StreamTransport, mine: list[list[bytes]]) -> None:
        for keys in mine:
            now = time.perf_counter()
            replies = await transport.exchange(reader.sends(way(keys)), time.monotonic() + 10)
            assert all(isinstance(reply, Response) for reply in replies)
            taken.append(time.perf_counter() - now)

    async def all_tasks() -> None:
        transport = StreamTransport(connect_timeout=2.0)
        await asyncio.gather(*(work(transport, batches[n::TASKS]) for n in range(TASKS)))
        await transport.close()

    asyncio.run(all_tasks())
    return taken


def measured(
    drive: Drive, reader: Reader, way: Way, batches: list[list[bytes]], pids: list[int]
) -> tuple[float, float, float]:
    """Median milliseconds of a call, and microseconds of nodes and client for each."""
    begun, before, mine = time.perf_counter(), cpu_s(pids), time.process_time()
    taken = drive(reader, way, batches)
    client, nodes = time.process_time() - mine, cpu_s(pids) - before
    before, ended = cpu_s(pids), time.perf_counter()
    time.sleep(IDLE_S)  # what the nodes use anyway is no part of a read
    idle = (cpu_s(pids) - before) / (time.perf_counter() - ended)
    nodes -= idle * (ended - begun)
    calls = len(batches)
    return 1e3 * percentile(sorted(taken), 50), 1e6 * nodes / calls, 1e6 * client / calls


def cpu_s(pids: list[int]) -> float:
    """Processor time of the nodes' loops, to the nanosecond."""
    stats = [Path(f"/proc/{pid}/task/{pid}/schedstat").read_text() for pid in pids]
    return sum(int(line.split()[0]) for line in stats) / 1e9


@click.command()
@click.option("--calls", default=2_000, show_default=True, help="Of each way in a round.")
@click.option("--rounds", default=5, show_default=True)
def reads(calls: int, rounds: int) -> None:
    """Measure both ways in turn, for one key a call and for a hundred."""
    lines = [["KEYS A CALL", "TASKS", "WAY", "P50 MS", "NODES US", "CLIENT US"]]
    with (
        tempfile.TemporaryDirectory(prefix="ringkv-reads-") as made,
        running(Path(made), KEYS, "disk", Console(stderr=True)) as (target, pids, _),
    ):
        reader = Reader(target.url)
        ways = {"primary asks": reader.primary_asks, "client asks": reader.client_asks}
        for size, drive in ((1, one_by_one), (100, one_by_one), (1, by_tasks)):
            found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in ways}
            for _ in range(rounds):
                batches = [
                    [key.encode() for key in random.sample(target.keys, size)]
                    for _ in range(max(1, calls // (1 + size // 10)))
                ]
                for name, way in ways.items():
                    found[name].append(measured(drive, reader, way, batches, pids))
            for name, rows in found.items():
                middle = [sorted(column)[len(column) // 2] for column in zip(*rows, strict=True)]
                figures = [f"{middle[0]:.2f}", f"{middle[1]:,.0f}", f"{middle[2]:,.0f}"]
                tasks = TASKS if drive is by_tasks else 1
                lines.append([str(size), str(tasks), name, *figures])
    click.echo(columns(lines))


if __name__ == "__main__":
    reads()
