"""`kvstore up`: a local cluster in one terminal, to use and to hurt.

On a terminal it shows live what a fault does to a small steady load (`kvstore.cli.dashboard`).
Elsewhere (in a script, in a container) it prints where the nodes are and waits to be stopped.

The nodes start first: what only this process needs is imported while they read their data.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from kvstore.cli.local_cluster import NODES_MAX, LocalCluster, nodes_in
from kvstore.cli.output import ExitStatus, stderr_console

if TYPE_CHECKING:
    from rich.console import Console

READY_TIMEOUT_S: Final = 60.0
LOOK_S: Final = 0.25
NODES_DEFAULT: Final = 3


@click.command()
@click.option(
    "--nodes",
    type=click.IntRange(1, NODES_MAX),
    help=f"How many.  [default: as many as last time, or {NODES_DEFAULT}]",
)
@click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("var"),
    show_default=True,
    help="Where the data is kept, also between runs.",
)
@click.option("--port", default=7401, show_default=True, help="Of the first node; others follow.")
@click.option("--http-port", default=8401, show_default=True, help="Of the first node's HTTP.")
@click.option("--demo", is_flag=True, help="Load the cities of the world, once.")
@click.option(
    "--load/--no-load", default=None, help="A small steady load.  [default: on a terminal]"
)
@click.option("--durability", type=click.Choice(["disk", "os"]), default="disk", show_default=True)
def up(
    nodes: int | None,
    directory: Path,
    port: int,
    http_port: int,
    demo: bool,
    load: bool | None,
    durability: str,
) -> int:
    """Run a local cluster in this terminal; Ctrl-C or q stops it, the data stays."""
    on_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    nodes = nodes or nodes_in(directory) or NODES_DEFAULT
    cluster = LocalCluster(directory, nodes, port, http_port, ["--durability", durability])
    begun = time.monotonic()
    cluster.start()
    console = stderr_console()
    try:
        from kvstore.cli.dashboard import Dashboard
        from kvstore.cli.demo import load_cities
        from kvstore.client import connect

        cluster.wait_ready(READY_TIMEOUT_S, stopping)
        if not stopping.is_set():
            console.print(f"{nodes} nodes ready in {time.monotonic() - begun:.1f} s")
        cities = 0
        if demo and not stopping.is_set():
            with connect(cluster.url, timeout=30) as client:
                cities = load_cities(client, console)
        if not stopping.is_set():
            print_welcome(cluster, cities)
            if on_terminal:
                Dashboard(cluster, stopping, load=load is not False).run()
            else:
                _watch(cluster, stopping, console, load=bool(load))
    finally:
        console.print("stopping ...")
        cluster.stop()
    console.print(f"stopped; the data is in {directory}/ for next time")
    return ExitStatus.OK


def print_welcome(cluster: LocalCluster, cities: int) -> None:
    """Where the nodes are, and five things to try."""
    first = cluster.nodes[0]
    program = _program()
    url = "" if first.port == 7401 else f" --url kv://{first.address}"
    key = "city:2950159" if cities else "greeting"
    click.echo()
    for node in cluster.nodes:
        click.echo(f"  {node.name}  kv://{node.address}  http://127.0.0.1:{node.http_port}")
    if cities:
        click.echo(f"\n  {cities:,} cities under city:<id>  (GeoNames, CC BY 4.0)")
    click.echo("\nTry:")
    tries = [
        f"{program} get{url} {key}" if cities else f"{program} put{url} {key} hello",
        f"{program} incr{url} visits",
        f"{program} scan{url} city: --limit 5" if cities else f"{program} scan{url} --limit 5",
        f"curl http://127.0.0.1:{first.http_port}/v1/kv/{key}",
        f"{program} status{url}",
    ]
    for line in tries:
        click.echo(f"  {line}")
    click.echo()
    sys.stdout.flush()


def _program() -> str:
    """How the reader of our output can call us: as this process was called, if that works."""
    called = Path(sys.argv[0])
    if called.name != "kvstore":
        return "kvstore"
    try:
        return str(called.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(called)


def _watch(
    cluster: LocalCluster, stopping: threading.Event, console: Console, *, load: bool
) -> None:
    """Without a terminal: say when a node ends, until told to stop."""
    from kvstore.cli.dashboard import load_line
    from kvstore.cli.steady_load import SteadyLoad

    steady = SteadyLoad(cluster.url) if load else None
    if steady is not None:
        steady.start()
    told: set[str] = set()
    while not stopping.wait(LOOK_S):
        for node in cluster.nodes:
            if node.state not in ("running", "frozen") and node.name not in told:
                told.add(node.name)
                console.print(f"node {node.name}: {node.state}; its log is {node.log_path}")
    if steady is not None:
        steady.stop()
        console.print(load_line(steady))
        if steady.last_error:
            console.print(f"last error: {steady.last_error}")
