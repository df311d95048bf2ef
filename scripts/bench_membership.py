"""Measure what clients notice while nodes join and leave: `make bench-membership`.

A real cluster of three node processes holds keys and serves a steady load: reads and writes at a
fixed rate, each timed from the moment it was due, so that a pause is not passed over by a load that
waits for it. A fourth node joins, a fifth, and both leave again; the row of each change has its
time, its copies and the latencies meanwhile, above them stands the quiet time before. The same
machine runs all nodes and the load: the figures are a bound from above, not a capacity.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import statistics
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from random import Random, randbytes
from typing import IO, TYPE_CHECKING, Final

import click

import kvstore
from cluster.membership import Leave, Pace
from kvstore.cli.local_cluster import LocalCluster
from kvstore.cli.membership import send_change
from kvstore.errors import KVError
from scripts.bench import READY_TIMEOUT_S, STOP_SIGNALS, free_ports, leave
from scripts.bench_machine import examine

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvstore.client import AsyncClient

MIB: Final = 1_048_576
VALUE_BYTES: Final = 100
BATCH_KEYS: Final = 1_000
SETTLE_S: Final = 3.0
STILL_S: Final = 2.0
"""So long nobody has had anything to move when a change is called done; not counted in its time."""
PORTS: Final = 6


@dataclass(frozen=True)
class Row:
    """One stretch of time; latencies in milliseconds."""

    what: str
    seconds: float
    copied_mib: float
    operations: int
    failed: int
    get_p50: float
    get_p99: float
    put_p50: float
    put_p99: float
    longest: float


class Steady:
    """Reads and writes at a fixed rate, on a thread of its own."""

    def __init__(self, url: str, per_second: float, keys: int) -> None:
        self._url = url
        self._interval_s = 1.0 / per_second
        self._keys = keys
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self.done: list[tuple[float, str, float]] = []
        """When it was due, what, and how long it took in seconds."""
        self.errors: list[tuple[float, str]] = []

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, when everything has been answered."""
        self._stopping.set()
        self._thread.join()

    async def _run(self) -> None:
        rng = Random(1)
        running: set[asyncio.Task[None]] = set()
        async with kvstore.connect_async(self._url, timeout=10) as client:
            due = time.monotonic()
            while not self._stopping.is_set():
                due += self._interval_s
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                what = "get" if rng.random() < 0.5 else "put"
                key = f"key:{rng.randrange(self._keys):07d}"
                task = asyncio.create_task(self._one(client, what, key, due))
                running.add(task)
                task.add_done_callback(running.discard)
            await asyncio.gather(*running)

    async def _one(self, client: AsyncClient, what: str, key: str, due: float) -> None:
        try:
            if what == "get":
                await client.get(key)
            else:
                await client.put(key, randbytes(VALUE_BYTES))
        except KVError as error:
            self.errors.append((due, str(error)))
        else:
            self.done.append((due, what, time.monotonic() - due))

    def row(self, what: str, begin: float, end: float, copied_bytes: float) -> Row:
        """What was seen in a window."""
        inside = [(kind, took) for due, kind, took in list(self.done) if begin <= due < end]
        gets, puts = ([took for k, took in inside if k == kind] for kind in ("get", "put"))
        return Row(
            what,
            end - begin,
            copied_bytes / MIB,
            len(inside),
            sum(begin <= due < end for due, _ in self.errors),
            *_two(gets),
            *_two(puts),
            1_000 * max((took for _, took in inside), default=0.0),
        )


def _two(seconds: list[float]) -> tuple[float, float]:
    if len(seconds) < 2:
        return 0.0, 0.0
    return 1_000 * statistics.median(seconds), 1_000 * statistics.quantiles(seconds, n=100)[98]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--keys", type=click.IntRange(1_000, 10_000_000), default=200_000, show_default=True)
@click.option("--load", type=float, default=200.0, show_default=True, help="Operations a second.")
@click.option("--rate", type=int, help="Bytes/s that a node sends; 0: no limit.  [default: 32 MiB]")
@click.option("--quiet", type=float, default=10.0, show_default=True, help="Seconds of quiet.")
@click.option("--json", "json_file", type=click.File("w"), help="Write all figures there.")
@click.option(
    "--dir",
    "parent",
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    help="Keep the temporary directory on this disk.  [default: where the system has its own]",
)
def bench(
    keys: int, load: float, rate: int | None, quiet: float, json_file: IO[str] | None, parent: Path
) -> None:
    """Measure 3 -> 4 -> 5 -> 4 -> 3 nodes on this machine."""
    for number in STOP_SIGNALS:
        signal.signal(number, leave)
    with tempfile.TemporaryDirectory(prefix="ringkv-membership-", dir=parent) as made:
        machine = examine(Path(made))
        click.echo("\n".join([*machine.lines(), f"load before  {os.getloadavg()[0]:.1f}", ""]))
        first = free_ports(2 * PORTS)
        cluster = LocalCluster(Path(made) / "nodes", 3, first, first + PORTS)
        cluster.start()
        try:
            cluster.wait_ready(READY_TIMEOUT_S)
            rows = run(cluster, keys, load, rate, quiet)
        finally:
            cluster.stop()
    print_rows(rows)
    if json_file is not None:
        json.dump({"machine": asdict(machine), "rows": [asdict(r) for r in rows]}, json_file)


def run(cluster: LocalCluster, keys: int, load: float, rate: int | None, quiet: float) -> list[Row]:
    """All changes, one after the other."""
    url = cluster.url
    with kvstore.connect(url, timeout=60) as client:
        for begin in range(0, keys, BATCH_KEYS):
            end = min(begin + BATCH_KEYS, keys)
            client.put_many({f"key:{n:07d}": randbytes(VALUE_BYTES) for n in range(begin, end)})
    if rate is not None:
        asyncio.run(send_change(url, Pace(copy_bytes_per_s=rate), 10))
    steady = Steady(url, load, keys)
    steady.start()

    def wait_quiet() -> float:
        time.sleep(quiet)
        return time.monotonic()

    try:
        time.sleep(SETTLE_S)
        rows = [stretch(cluster, steady, "quiet, 3 nodes", wait_quiet)]
        for name in ("n4", "n5"):
            rows.append(stretch(cluster, steady, f"{name} joins", partial(join, cluster)))
            time.sleep(SETTLE_S)
        for name in ("n5", "n4"):
            rows.append(stretch(cluster, steady, f"{name} leaves", partial(go, cluster, name)))
            time.sleep(SETTLE_S)
        rows.append(stretch(cluster, steady, "quiet, 3 nodes", wait_quiet))
    finally:
        steady.stop()
    return rows


def stretch(cluster: LocalCluster, steady: Steady, what: str, happen: Callable[[], float]) -> Row:
    """Let something happen, and see what the load saw and what was copied; it returns its end."""
    before = copied(cluster)
    begin = time.monotonic()
    end = happen()
    row = steady.row(what, begin, end, copied(cluster) - before)
    click.echo(f"{what}: {row.seconds:.1f} s, {row.copied_mib:.0f} MiB", err=True)
    return row


def copied(cluster: LocalCluster) -> int:
    """Bytes that all nodes have sent to new members of slots since they started."""
    told = (node.fetch("/v1/cluster/moves") for node in cluster.nodes)
    return sum(document["copied_bytes_total"] for document in told if document is not None)


def join(cluster: LocalCluster) -> float:
    """One node more, until every slot has arrived."""
    node = cluster.add_node()
    while node.fetch("/health/ready") is None:
        time.sleep(0.05)
    return wait_moved(cluster)


def go(cluster: LocalCluster, name: str) -> float:
    """One node less, until it is out and every slot has arrived."""
    url = f"kv://{cluster.nodes[0].address}"
    asyncio.run(send_change(url, Leave(name), 10))
    while any(n["name"] == name for n in cluster.nodes[0].fetch("/v1/cluster/topology")["nodes"]):
        time.sleep(0.05)
    return wait_moved(cluster)


def wait_moved(cluster: LocalCluster) -> float:
    """Until nobody has anything left to move; returns since when."""
    still_since = time.monotonic()
    while time.monotonic() - still_since < STILL_S:
        told = [node.fetch("/v1/cluster/moves") for node in cluster.nodes]
        there = [document for document in told if document is not None]
        if sum(d["slots"] for d in there) or len({d["epoch"] for d in there}) > 1:
            still_since = time.monotonic()
        time.sleep(0.25)
    return still_since


def print_rows(rows: list[Row]) -> None:
    """A Markdown table."""
    click.echo(
        "| | s | copied MiB | operations | failed | get p50 | p99 | put p50 | p99 | longest ms |"
    )
    click.echo("| --- " * 10 + "|")
    for row in rows:
        latencies = (row.get_p50, row.get_p99, row.put_p50, row.put_p99, row.longest)
        figures = " | ".join(f"{figure:.1f}" for figure in latencies)
        click.echo(
            f"| {row.what} | {row.seconds:.1f} | {row.copied_mib:.1f} | {row.operations} "
            f"| {row.failed} | {figures} |"
        )


if __name__ == "__main__":
    bench()
