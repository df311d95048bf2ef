"""Measure a real cluster of three nodes on this machine: `make bench-own`.

The nodes are processes of their own on loopback with a temporary directory, as a user would run
them; the client is this process, or wrk for HTTP. All of them share the processors of one machine,
so the figures are those of a small computer, not of three. `docs/benchmarks.md` says how to read
them. Values are 100 bytes; an operation is one key.

Each phase is run for a moment before it is measured. Whatever happens, the nodes are stopped.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import socket
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

import click
from rich.console import Console

import kvstore
from kvstore.cli.local_cluster import HOST, LocalCluster
from kvstore.errors import KVError
from scripts.bench_figures import Meter, Row, table
from scripts.bench_loops import WRK_MISSING, PhaseFailed
from scripts.bench_machine import examine
from scripts.bench_phases import NEEDS_WRK, PHASES, Target, load_all, shuffled_keys

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from rich.status import Status

NODES: Final = 3
READY_TIMEOUT_S: Final = 60.0
CLIENT_TIMEOUT_S: Final = 30.0
WARM_UP_SHARE: Final = 0.2
KEYS_MIN: Final = 1_000
KEYS_MAX: Final = 1_000_000
"""What six digits name."""
LEGEND: Final = """
An operation is one key; P50 and P99 are those of a call. US: processor time of a node or of the
client for one operation. MIB: resident memory of a node. The client is this process (with asyncio's
own event loop for the tasks), or wrk on one node for HTTP."""
STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=3.0,
    show_default=True,
    help="Length of a phase; wrk rounds it up.",
)
@click.option(
    "--only",
    "names",
    type=click.Choice(list(PHASES)),
    metavar="NAME",
    multiple=True,
    help=f"Only this phase; may be repeated. One of: {', '.join(PHASES)}.",
)
@click.option(
    "--page",
    type=click.Path(dir_okay=False, exists=True, path_type=Path),
    help="Put what is printed into this page, between the lines that mark the place.",
)
@click.option("--json", "json_file", type=click.File("w"), help="Write all figures there.")
@click.option(
    "--keys",
    "key_count",
    type=click.IntRange(KEYS_MIN, KEYS_MAX),
    default=100_000,
    show_default=True,
    help="Stored before, and drawn from.",
)
@click.option(
    "--dir",
    "parent",
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    help="Keep the temporary directory on this disk.  [default: where the system has its own]",
)
@click.option("--durability", type=click.Choice(["disk", "os"]), default="disk", show_default=True)
def bench(
    seconds: float,
    names: tuple[str, ...],
    page: Path | None,
    json_file: IO[str] | None,
    key_count: int,
    parent: Path | None,
    durability: str,
) -> None:
    """Measure a cluster of three nodes on this machine."""
    for number in STOP_SIGNALS:
        signal.signal(number, leave)
    console = Console(stderr=True)
    chosen = [name for name in PHASES if not names or name in names]
    notes = []
    if shutil.which("wrk") is None and any(name in NEEDS_WRK for name in chosen):
        notes.append(WRK_MISSING)
        chosen = [name for name in chosen if name not in NEEDS_WRK]
        if not chosen:
            raise click.ClickException(WRK_MISSING)
    with tempfile.TemporaryDirectory(prefix="ringkv-bench-", dir=parent) as made:
        directory = Path(made)
        machine = examine(directory)
        setting = (
            f"{NODES} nodes, durability {durability}, {key_count:,} keys, {seconds:g} s a phase"
        )
        said = [*machine.lines(), f"cluster      {setting}", ""]
        click.echo("\n".join(said))
        try:
            rows = run(directory, chosen, seconds, key_count, durability, console)
        except (KVError, PhaseFailed) as error:
            raise click.ClickException(str(error)) from error
    figures = [table(rows), *notes, LEGEND]
    click.echo("\n".join(figures))
    if page is not None:
        page.write_text(filled(page.read_text(), "figures", "\n".join(said + figures)))
    if json_file is not None:
        document = {
            "machine": asdict(machine),
            "nodes": NODES,
            "durability": durability,
            "keys": key_count,
            "seconds": seconds,
            "rows": [asdict(row) for row in rows],
            "notes": notes,
        }
        json.dump(document, json_file, indent=2)
        json_file.write("\n")


def run(
    directory: Path,
    names: list[str],
    seconds: float,
    key_count: int,
    durability: str,
    console: Console,
) -> list[Row]:
    """Start a cluster, measure the phases of these names, stop it.

    Raises:
        KVError: the cluster does not start, or a call failed.
        PhaseFailed: wrk failed.
    """
    rows = []
    with running(directory, key_count, durability, console) as (target, pids, status):
        for name in names:
            status.update(name)
            PHASES[name](target, seconds * WARM_UP_SHARE)
            meter = Meter(pids)
            rows.append(meter.row(name, PHASES[name](target, seconds)))
    return rows


@contextmanager
def running(
    directory: Path, key_count: int, durability: str, console: Console
) -> Iterator[tuple[Target, list[int], Status]]:
    """A cluster that holds the keys, with the ids of its processes and a line on the terminal."""
    first = free_ports(2 * NODES)
    settings = ["--durability", durability, "--log-level", "warning"]
    cluster = LocalCluster(directory, NODES, first, first + NODES, settings)
    try:
        with console.status("starting nodes") as status:
            cluster.start()
            cluster.wait_ready(READY_TIMEOUT_S)
            pids = [node.process.pid for node in cluster.nodes if node.process is not None]
            http_url = f"http://{HOST}:{cluster.nodes[0].http_port}"
            with kvstore.connect(cluster.url, timeout=CLIENT_TIMEOUT_S) as client:
                target = Target(client, cluster.url, http_url, directory, shuffled_keys(key_count))
                status.update("storing the keys")
                load_all(target)
                yield target, pids, status
    finally:
        for number in STOP_SIGNALS:  # a second Ctrl-C must not leave nodes behind
            signal.signal(number, signal.SIG_IGN)
        cluster.stop()


def filled(page: str, mark: str, text: str) -> str:
    r"""The page with the text in the place of this mark.

    >>> filled("a\n<!-- x -->\nold\n<!-- end -->\nb", "x", "new")
    'a\n<!-- x -->\n```text\nnew\n```\n<!-- end -->\nb'
    """
    before, begin, rest = page.partition(f"<!-- {mark} -->\n")
    _, end, after = rest.partition("<!-- end -->")
    if not end:
        raise click.ClickException(f"the page has no <!-- {mark} --> with an <!-- end -->")
    return f"{before}{begin}```text\n{text.strip()}\n```\n{end}{after}"


def leave(number: int, frame: FrameType | None) -> None:
    """End the usual way, through `finally`."""
    sys.exit(128 + number)


def free_ports(count: int) -> int:
    """The first of neighbouring ports that are free now, below those of outgoing connections.

    In a random order: two benchmarks that begin at once would find the same ones.
    """
    firsts = range(20_000, 32_000 - count, count)
    for first in random.sample(firsts, len(firsts)):
        if all(map(_is_free, range(first, first + count))):
            return first
    raise click.ClickException(f"there are no {count} neighbouring free ports")


def _is_free(port: int) -> bool:
    try:
        socket.create_server((HOST, port)).close()
    except OSError:
        return False
    return True


if __name__ == "__main__":
    bench()
