"""Measure what clients notice when a node dies, freezes or returns: `make bench-failover`.

Real clusters of three node processes under the load of `scripts.failover_load`, which writes to all
16,384 slots all the time. Each fault is done to each node in turn. `docs/failover.md` says how to
read the tables. Whatever happens, the nodes are stopped.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import click
from rich.console import Console

from kvstore.cli.local_cluster import LocalCluster
from kvstore.errors import KVError
from scripts import network_namespaces
from scripts.bench import NODES, READY_TIMEOUT_S, STOP_SIGNALS, free_ports, leave
from scripts.bench_machine import examine
from scripts.failover_load import Load
from scripts.failover_recovery import Return, fill, keys_of_few_slots, missed, serves_after_s
from scripts.failover_scenarios import Rows, cut, freeze, kill, rolling_restart, table, wait_back

if TYPE_CHECKING:
    from collections.abc import Callable

PARTS: Final = ("faults", "cut", "recovery")
RESTARTS: Final = 3
MIB: Final = 1_048_576
LEGEND: Final = """
GAP: the longest time without any acknowledged write of the whole load. LONGEST WRITE: the longest
that one caller waited. SLOT GAP: the longest between two acknowledged writes of one slot, which
contains the time that the load takes to come round (see the first line). Median of the runs, worst
beside it."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--runs", type=click.IntRange(1, 30), default=3, show_default=True)
@click.option(
    "--only", "parts", type=click.Choice(PARTS), multiple=True, help="Only this; may be repeated."
)
@click.option(
    "--keys",
    type=click.IntRange(1_000, 10_000_000),
    default=1_000_000,
    show_default=True,
    help="Stored before a restart is timed.",
)
@click.option("--json", "json_file", type=click.File("w"), help="Write all figures there.")
@click.option(
    "--dir",
    "parent",
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    help="Keep the temporary directory on this disk.  [default: where the system has its own]",
)
def bench(
    runs: int, parts: tuple[str, ...], keys: int, json_file: IO[str] | None, parent: Path | None
) -> None:
    """Measure failover on this machine, with three nodes."""
    for number in STOP_SIGNALS:
        signal.signal(number, leave)
    chosen = [part for part in PARTS if not parts or part in parts]
    document: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="ringkv-failover-", dir=parent) as made:
        directory = Path(made)
        machine = examine(directory)
        click.echo("\n".join([*machine.lines(), f"load before  {os.getloadavg()[0]:.1f}", ""]))
        document["machine"] = asdict(machine)
        try:
            rows = Rows()
            if "faults" in chosen:
                faults(directory / "faults", runs, rows)
            if "cut" in chosen:
                cuts(directory / "cut", runs, rows)
            if rows.seen:
                click.echo(f"{table(rows)}\n{LEGEND}\n")
            document["rows"] = {n: [asdict(s) for s in seen] for n, seen in rows.seen.items()}
            if "recovery" in chosen:
                document |= recovery(directory / "recovery", keys)
        except KVError as error:
            raise click.ClickException(str(error)) from error
    if json_file is not None:
        json.dump(document, json_file, indent=2)
        json_file.write("\n")


def faults(directory: Path, runs: int, rows: Rows) -> None:
    """Kill and freeze each node in turn, restart all one after the other."""

    def scenario(cluster: LocalCluster, load: Load) -> None:
        for run in range(runs):
            node = cluster.nodes[run % NODES]
            kill(cluster, node, load, rows)
            freeze(cluster, node, load, rows)
            if run % NODES == 0:
                rolling_restart(cluster, load, rows)

    under_load(directory, lambda cluster: None, scenario)


def cuts(directory: Path, runs: int, rows: Rows) -> None:
    """Cut each node off in turn, if this machine lets us."""
    if not network_namespaces.available():
        click.echo("nothing is cut off: this needs root and iproute2\n")
        return
    with network_namespaces.Namespaces(NODES) as namespaces:

        def scenario(cluster: LocalCluster, load: Load) -> None:
            for run in range(runs):
                cut(cluster, run % NODES + 1, load, rows, namespaces)

        under_load(directory, namespaces.place, scenario, "--insecure")


def under_load(
    directory: Path,
    prepare: Callable[[LocalCluster], None],
    scenario: Callable[[LocalCluster, Load], None],
    *extra: str,
) -> None:
    """Run a scenario against a cluster that is written to, and check that nothing was lost."""
    with Console(stderr=True).status(directory.name):
        cluster = started(directory, prepare, *extra)
        load = Load(cluster.url)
        try:
            load.start()
            time.sleep(1.0)
            scenario(cluster, load)
        finally:
            load.stop()
            try:
                lost = load.lost() if load.acknowledged else []
            finally:
                stop(cluster)
    acknowledged = sum(len(call.slots) for call in load.calls)
    click.echo(
        f"{directory.name}: {acknowledged:,} acknowledged writes, {len(lost)} lost, "
        f"{len(load.errors)} errors"
    )
    for _, error in load.errors[:3]:
        click.echo(f"    {error}")


def recovery(directory: Path, keys: int) -> dict[str, Any]:
    """Restart with many keys; return after missing writes."""
    with Console(stderr=True).status(f"storing {keys:,} keys"):
        cluster = started(directory, lambda cluster: None)
        try:
            fill(cluster, keys)
            wait_back(cluster)
            starts = []
            for node in [*cluster.nodes] * (RESTARTS // NODES):
                starts.append(serves_after_s(cluster, node))
                wait_back(cluster)
            returns = [
                missed(cluster, cluster.nodes[2], name, some)
                for name, some in (
                    ("within the key log", (f"key:{n * 7 % keys:07d}" for n in range(100_000))),
                    ("beyond it", keys_of_few_slots(100_000, 50, 40)),
                )
            ]
        finally:
            stop(cluster)
    click.echo(
        f"restart after kill -9 with {keys:,} keys, until it serves: "
        f"{statistics.median(starts):.2f} s (worst {max(starts):.2f})"
    )
    click.echo("\n".join(map(line, returns)))
    return {"restarts_s": starts, "returns": [asdict(one) for one in returns]}


def line(one: Return) -> str:
    """One return, for people."""
    return (
        f"return after missing {one.writes:,} writes ({one.name}): missed "
        f"{one.missed_bytes / MIB:.1f} MiB, sent {one.sent_bytes / MIB:.1f} MiB "
        f"({one.sent_bytes / one.missed_bytes:.2f} x) in {one.seconds:.1f} s; "
        f"the node has {one.rss_mib:.0f} MiB"
    )


def started(directory: Path, prepare: Callable[[LocalCluster], None], *extra: str) -> LocalCluster:
    """A cluster that serves, every node what it should."""
    first = free_ports(2 * NODES)
    cluster = LocalCluster(
        directory, NODES, first, first + NODES, ["--log-level", "warning", *extra]
    )
    prepare(cluster)
    try:
        cluster.start()
        cluster.wait_ready(READY_TIMEOUT_S)
        wait_back(cluster)
    except BaseException:
        stop(cluster)
        raise
    return cluster


def stop(cluster: LocalCluster) -> None:
    """Stop the nodes, whoever else wants to stop us."""
    before = [signal.signal(number, signal.SIG_IGN) for number in STOP_SIGNALS]
    try:
        cluster.stop()
    finally:
        for number, handler in zip(STOP_SIGNALS, before, strict=True):
            signal.signal(number, handler)


if __name__ == "__main__":
    bench()
