"""`kvstore up`: a local cluster in one terminal, to use and to hurt.

On a terminal it shows live what a fault does to a small steady load; a fault is one key press.
Elsewhere (in a script, in a container) it prints where the nodes are and waits to be stopped.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from rich.live import Live
from rich.table import Table
from rich.text import Text

from kvstore.cli.demo import load_cities
from kvstore.cli.keyboard import Keyboard
from kvstore.cli.local_cluster import LocalCluster, LocalNode, nodes_in
from kvstore.cli.output import ExitStatus, stderr_console
from kvstore.cli.steady_load import SteadyLoad
from kvstore.client import connect
from kvstore.errors import SetupError

if TYPE_CHECKING:
    from rich.console import Console

READY_TIMEOUT_S: Final = 60.0
REFRESH_S: Final = 0.25
NODES_MAX: Final = 32
NODES_DEFAULT: Final = 3
KEYS_HELP: Final = (
    "k kill   f freeze/thaw   r restart   (then the node's number)   a add a node   q quit"
)


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
    console = stderr_console()
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    nodes = nodes or nodes_in(directory) or NODES_DEFAULT
    cluster = LocalCluster(directory, nodes, port, http_port, ["--durability", durability])
    begun = time.monotonic()
    cluster.start()
    try:
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
    steady = SteadyLoad(cluster.url) if load else None
    if steady is not None:
        steady.start()
    told: set[str] = set()
    while not stopping.wait(REFRESH_S):
        for node in cluster.nodes:
            if node.state not in ("running", "frozen") and node.name not in told:
                told.add(node.name)
                console.print(f"node {node.name}: {node.state}; its log is {node.log_path}")
    if steady is not None:
        steady.stop()
        console.print(load_line(steady))
        if steady.last_error:
            console.print(f"last error: {steady.last_error}")


def load_line(load: SteadyLoad) -> str:
    """The steady load's figures."""
    pause_ms = 1_000 * load.pause_longest_s()
    return (
        f"load: {load.rate:,.0f} writes/s   longest pause {pause_ms:,.0f} ms   "
        f"acknowledged writes lost: {load.lost}   failed: {load.failed}   unknown: {load.unknown}"
    )


class Dashboard:
    """The live view and its keys."""

    def __init__(self, cluster: LocalCluster, stopping: threading.Event, *, load: bool) -> None:
        self._cluster = cluster
        self._stopping = stopping
        self._load = SteadyLoad(cluster.url) if load else None
        self._seen: dict[str, dict[str, Any]] = {}
        self._pending = ""
        self._note = ""

    def run(self) -> None:
        """Until q or a signal."""
        watcher = threading.Thread(target=self._fetch, name="dashboard", daemon=True)
        watcher.start()
        if self._load is not None:
            self._load.start()
        with Keyboard() as keyboard, Live(self._picture(), auto_refresh=False) as live:
            while not self._stopping.is_set():
                self._press(keyboard.read(REFRESH_S))
                live.update(self._picture(), refresh=True)
        watcher.join()
        if self._load is not None:
            self._load.stop()

    def _fetch(self) -> None:
        """What gossip says of each node, asked of the first that answers."""
        while not self._stopping.wait(REFRESH_S):
            running = [node for node in self._cluster.nodes if node.state == "running"]
            answers = (node.fetch("/v1/cluster") for node in running)
            document = next((answer for answer in answers if answer is not None), None)
            if document is not None:
                self._seen = {entry["name"]: entry for entry in document["nodes"]}

    def _press(self, key: str) -> None:
        if not key:
            return
        if key == "q":
            self._stopping.set()
        elif key == "a":
            self._pending, self._note = "", self._add()
        elif key in "kfr":
            self._pending = key
            self._note = f"{key}: which node? 1 to {len(self._cluster.nodes)}"
        elif self._pending and key.isdigit() and 1 <= int(key) <= len(self._cluster.nodes):
            node = self._cluster.nodes[int(key) - 1]
            self._note = self._act(self._pending, node)
            self._pending = ""
        else:
            self._pending, self._note = "", ""

    def _add(self) -> str:
        if len(self._cluster.nodes) >= NODES_MAX:
            return f"{NODES_MAX} nodes are as many as one terminal takes"
        if self._load is not None:
            self._load.begin_fault()
        try:
            node = self._cluster.add_node()
        except SetupError as error:
            return str(error)
        return f"{node.name}: joins, and takes its share of the slots"

    def _act(self, action: str, node: LocalNode) -> str:
        if self._load is not None:
            self._load.begin_fault()
        if action == "k":
            node.signal(signal.SIGKILL)
            return f"{node.name}: killed (SIGKILL)"
        if action == "f":
            if node.frozen:
                node.signal(signal.SIGCONT)
                return f"{node.name}: thawed"
            node.signal(signal.SIGSTOP)
            return f"{node.name}: frozen (SIGSTOP)"
        if node.state in ("running", "frozen"):
            node.stop()
        self._cluster.start_node(node)
        return f"{node.name}: started"

    def _picture(self) -> Table:
        grid = Table.grid(padding=(0, 2))
        grid.add_row("", "NODE", "PROCESS", "GOSSIP", "LEADS", "HOLDS", "PID")
        for number, node in enumerate(self._cluster.nodes, 1):
            entry = self._seen.get(node.name, {})
            pid = node.process.pid if node.process is not None else "-"
            style = "green" if node.state == "running" else "red"
            grid.add_row(
                str(number),
                node.name,
                Text(node.state, style=style),
                str(entry.get("state", "-")),
                str(entry.get("slots_led", "-")),
                str(entry.get("slots_held", "-")),
                str(pid),
            )
        rows = Table.grid()
        rows.add_row(grid)
        if self._load is not None:
            rows.add_row(load_line(self._load))
            if self._load.last_error:
                rows.add_row(Text(f"last error: {self._load.last_error}", style="red"))
        rows.add_row(Text(f"{KEYS_HELP}   {self._note}", style="dim"))
        return rows
