"""Measure what clients notice while nodes join and leave: `make bench-membership`.

A real cluster of three node processes holds keys and serves a steady load: reads and writes at a
fixed rate, each timed from the moment it was due, so that a pause is not passed over by a load that
waits for it. A fourth node joins, a fifth, and both leave again; the row of each change has its
time, its copies and the latencies meanwhile, above them stands the quiet time before. Then the load
ends, and moves at full speed are measured (`scripts.bench_moves`). The same machine runs all nodes
and the load: the figures are a bound from above, not a capacity.
"""

from __future__ import annotations

import asyncio
import json
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
from cluster.membership import Pace
from kvstore.cli.local_cluster import LocalCluster
from kvstore.cli.membership import send_change
from kvstore.errors import KVError
from scripts.bench import READY_TIMEOUT_S, STOP_SIGNALS, filled, free_ports, leave
from scripts.bench_machine import examine
from scripts.bench_moves import (
    MIB,
    copied,
    go,
    join,
    measure_limits,
    run_speeds,
    speed_table,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvstore.client import AsyncClient

VALUE_BYTES: Final = 100
BATCH_KEYS: Final = 1_000
SETTLE_S: Final = 3.0
PORTS: Final = 8


LEGEND: Final = (
    "Latencies are milliseconds from when an operation was due. Copied is what primaries sent to\n"
    "new members, of all nodes together; planned is by rebalance --plan, at the rate that was set."
)


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
@click.option(
    "--page",
    type=click.Path(dir_okay=False, exists=True, path_type=Path),
    help="Put what is printed into this page, between the lines that mark the place.",
)
@click.option("--json", "json_file", type=click.File("w"), help="Write all figures there.")
@click.option(
    "--dir",
    "parent",
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    help="Keep the temporary directory on this disk.  [default: where the system has its own]",
)
def bench(
    keys: int,
    load: float,
    rate: int | None,
    quiet: float,
    page: Path | None,
    json_file: IO[str] | None,
    parent: Path,
) -> None:
    """Measure 3 -> 4 -> 5 -> 4 -> 3 nodes under load, then moves at full speed, on this machine."""
    for number in STOP_SIGNALS:
        signal.signal(number, leave)
    with tempfile.TemporaryDirectory(prefix="ringkv-membership-", dir=parent) as made:
        machine = examine(Path(made))
        limits = measure_limits(Path(made))
        setting = f"{keys:,} keys of {VALUE_BYTES} bytes, {load:g} operations/s in the first table"
        said = [*machine.lines(), limits.line(), f"cluster      {setting}"]
        click.echo("\n".join(said))
        first = free_ports(2 * PORTS)
        cluster = LocalCluster(Path(made) / "nodes", 3, first, first + PORTS)
        cluster.start()
        try:
            cluster.wait_ready(READY_TIMEOUT_S)
            rows = run(cluster, keys, load, rate, quiet)
            speeds = run_speeds(cluster)
        finally:
            cluster.stop()
    figures = ["", load_table(rows), "", speed_table(speeds, limits), "", LEGEND]
    click.echo("\n".join(figures))
    if page is not None:
        page.write_text(filled(page.read_text(), "figures", "\n".join(said + figures)))
    if json_file is not None:
        document: dict[str, object] = {"machine": asdict(machine), "limits": asdict(limits)}
        document |= {"rows": [asdict(r) for r in rows], "speeds": [asdict(s) for s in speeds]}
        json.dump(document, json_file)


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


def load_table(rows: list[Row]) -> str:
    """Markdown; behind each change its p99 as a multiple of that of the quiet time before."""
    lines = [
        "| under load | s | copied MiB | operations | failed | get p50 | p99 | of quiet | put p50 "
        "| p99 | of quiet | longest ms |",
        "| --- " * 12 + "|",
    ]
    quiet = rows[0]
    for row in rows:
        get = f"{row.get_p50:.1f} | {row.get_p99:.1f} | {_times(row.get_p99, quiet.get_p99)}"
        put = f"{row.put_p50:.1f} | {row.put_p99:.1f} | {_times(row.put_p99, quiet.put_p99)}"
        lines.append(
            f"| {row.what} | {row.seconds:.1f} | {row.copied_mib:.1f} | {row.operations} "
            f"| {row.failed} | {get} | {put} | {row.longest:.1f} |"
        )
    return "\n".join(lines)


def _times(now: float, before: float) -> str:
    return f"{now / before:.1f}x" if before else ""


if __name__ == "__main__":
    bench()
