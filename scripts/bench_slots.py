"""How many slots a cluster should have: `make bench-slots`, for docs/decisions/0013.

Clusters with few and with many slots take turns, round after round, on one machine: each is
founded, filled, measured, stopped and started again. A figure is the median of the rounds.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import psutil
from rich.console import Console

import kvstore
from kvstore.cli.local_cluster import LocalCluster
from scripts.bench import CLIENT_TIMEOUT_S, NODES, READY_TIMEOUT_S, free_ports
from scripts.bench_figures import Meter, columns
from scripts.bench_machine import examine
from scripts.bench_phases import PHASES, Target, load_all, shuffled_keys

if TYPE_CHECKING:
    from collections.abc import Iterator

COUNTS: Final = (1_024, 4_096, 16_384)
MEASURED: Final = (
    "put", "get", "put_many-100", "get_many-100", "put_many-1000", "get_many-1000", "put-64-tasks",
)  # fmt: skip
IMPORT_KEYS: Final = 200_000
IDLE_S: Final = 5.0


@click.command()
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--seconds", type=float, default=2.0, show_default=True, help="Of a phase.")
@click.option("--keys", type=int, default=50_000, show_default=True, help="Stored before.")
def bench_slots(rounds: int, seconds: float, keys: int) -> None:
    """Compare clusters of three nodes with different numbers of slots."""
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="ringkv-bench-") as made:
        click.echo("\n".join(examine(Path(made)).lines()))
        for number in range(rounds):
            for count in COUNTS[:: 1 if number % 2 else -1]:
                directory = Path(made) / f"{count}-{number}"
                with console.status(f"round {number + 1} of {rounds}, {count:,} slots"):
                    for name, value in measure(directory, count, seconds, keys):
                        found[name][count].append(value)
    lines = [["", *(f"{count:,} SLOTS" for count in COUNTS)]]
    for name, values in found.items():
        lines.append([name, *(f"{statistics.median(values[count]):,.2f}" for count in COUNTS)])
    click.echo(columns(lines))


def measure(
    directory: Path, count: int, seconds: float, key_count: int
) -> Iterator[tuple[str, float]]:
    """One cluster's figures, each with what it is."""
    first = free_ports(2 * NODES)
    settings = ["--slot-count", str(count), "--log-level", "warning"]
    cluster = LocalCluster(directory, NODES, first, first + NODES, settings)
    try:
        yield from _start(cluster, "founding")
        pids = [node.process.pid for node in cluster.nodes if node.process is not None]
        with kvstore.connect(cluster.url, timeout=CLIENT_TIMEOUT_S) as client:
            target = Target(client, cluster.url, "", directory, shuffled_keys(key_count))
            load_all(target)
            for name in MEASURED:
                PHASES[name](target, seconds / 5)
                meter = Meter(pids)
                row = meter.row(name, PHASES[name](target, seconds))
                yield f"{name}, a second", row.per_second
                yield f"{name}, us of all nodes", sum(row.nodes_cpu_us)
            begun = time.monotonic()
            before_s = _cpu_s(cluster)
            client.put_many({f"more:{n}": target.value for n in range(IMPORT_KEYS)})
            yield "import, keys a second", IMPORT_KEYS / (time.monotonic() - begun)
            yield "import, us of all nodes", (_cpu_s(cluster) - before_s) * 1e6 / IMPORT_KEYS
            begun = time.monotonic()
            assert sum(1 for _ in client.scan("more:")) == IMPORT_KEYS
            yield "scan, keys a second", IMPORT_KEYS / (time.monotonic() - begun)
        before_s = _cpu_s(cluster)
        time.sleep(IDLE_S)
        idle = (_cpu_s(cluster) - before_s) / IDLE_S / NODES
        yield "idle, percent of a processor for a node", 100 * idle
        cluster.stop()
        yield from _start(cluster, "start")
    finally:
        cluster.stop()


def _start(cluster: LocalCluster, what: str) -> Iterator[tuple[str, float]]:
    begun = time.monotonic()
    cluster.start()
    cluster.wait_ready(READY_TIMEOUT_S)
    yield f"{what}, seconds", time.monotonic() - begun
    yield f"{what}, seconds of processor for a node", _cpu_s(cluster) / NODES


def _cpu_s(cluster: LocalCluster) -> float:
    pids = [node.process.pid for node in cluster.nodes if node.process is not None]
    times = [psutil.Process(pid).cpu_times() for pid in pids]
    return sum(spent.user + spent.system for spent in times)


if __name__ == "__main__":
    bench_slots()
