"""Compare ringkv with what a user would take instead, side by side in one run: `make bench`.

Every store is started by this script on free ports of the loopback interface, with its data in a
temporary directory, and is ended by it, also when this script is. A store that is not installed is
named with the command that installs it, and the others are compared without it.
"""

from __future__ import annotations

import json
import shutil
import signal
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

import click
from rich.console import Console

from kvstore.errors import KVError
from scripts.bench import STOP_SIGNALS, leave
from scripts.bench_loops import WRK_MISSING, PhaseFailed
from scripts.bench_machine import examine
from scripts.compare import plots
from scripts.compare.bulk import run_bulk
from scripts.compare.cases import CASES, MAIN, SIZES
from scripts.compare.etcd import Etcd
from scripts.compare.growth import run_growth
from scripts.compare.memcached import Memcached
from scripts.compare.redis_cluster import RedisCluster
from scripts.compare.report import Comparison, page
from scripts.compare.ringkv import RingKV
from scripts.compare.rounds import run_rounds
from scripts.compare.store import Missing

if TYPE_CHECKING:
    from collections.abc import Callable

    from scripts.compare.bulk import BulkRow
    from scripts.compare.cases import Case
    from scripts.compare.store import BulkStore, Store

STORES: Final[dict[str, Callable[[Path], Store]]] = {
    "ringkv": RingKV,
    "redis": RedisCluster,
    "etcd": Etcd,
    "memcached": Memcached,
}
BULK_STORES: Final[dict[str, Callable[[Path], BulkStore]]] = {
    "ringkv": RingKV,
    "redis": RedisCluster,
}
PARTS: Final = ("main", "sizes", "bulk", "growth")
PAGE: Final = "comparison.md"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rounds", type=click.IntRange(1, 100), default=5, show_default=True)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=2.0,
    show_default=True,
    help="Length of a phase; wrk rounds it up.",
)
@click.option(
    "--part",
    "parts",
    type=click.Choice(PARTS),
    multiple=True,
    help="Only this: 100-byte values, other sizes and Zipf, very many keys, or 3 and 12 nodes.",
)
@click.option(
    "--case",
    "names",
    type=click.Choice(list(CASES)),
    metavar="NAME",
    multiple=True,
    help=f"Only this case; may be repeated. One of: {', '.join(CASES)}.",
)
@click.option(
    "--store",
    "store_names",
    type=click.Choice(list(STORES)),
    multiple=True,
    help="Only this store; may be repeated.",
)
@click.option(
    "--keys",
    type=click.IntRange(1_000, 1_000_000),
    default=100_000,
    show_default=True,
    help="Stored before, and drawn from.",
)
@click.option(
    "--bulk-keys",
    type=click.IntRange(1_000, 100_000_000),
    default=1_000_000,
    show_default=True,
    help="Imported and scanned in the part bulk.",
)
@click.option(
    "--growth-rate",
    type=click.FloatRange(min=1),
    default=500.0,
    show_default=True,
    help="Operations a second in the part growth.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("docs/benchmarks"),
    show_default=True,
    help="Write the page and its plots there.",
)
@click.option("--json", "json_file", type=click.File("w"), help="Write all samples there.")
@click.option(
    "--dir",
    "parent",
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    help="Keep the temporary directory on this disk.  [default: where the system has its own]",
)
def compare(
    rounds: int,
    seconds: float,
    parts: tuple[str, ...],
    names: tuple[str, ...],
    store_names: tuple[str, ...],
    keys: int,
    bulk_keys: int,
    growth_rate: float,
    out: Path,
    json_file: IO[str] | None,
    parent: Path | None,
) -> None:
    """Compare ringkv with Redis Cluster, etcd and memcached on this machine."""
    for number in STOP_SIGNALS:
        signal.signal(number, leave)
    console = Console(stderr=True)
    begun = time.monotonic()
    chosen = [part for part in PARTS if part in parts or not (parts or names)]
    cases = choose_cases(chosen, names)
    wanted = [name for name in STORES if not store_names or name in store_names]
    with tempfile.TemporaryDirectory(prefix="ringkv-compare-", dir=parent) as made:
        directory = Path(made)
        found = Comparison(
            examine(directory), f"{rounds} rounds, {seconds:g} s a phase, {keys:,} keys"
        )
        if shutil.which("wrk") is None and any(case.needs_wrk for case in cases):
            found.notes.append(WRK_MISSING)
            cases = [case for case in cases if not case.needs_wrk]
        with console.status("examining the machine") as status:
            try:
                stores = make_stores(wanted, directory, found)
                if cases and stores:
                    samples, troubles = run_rounds(
                        stores, cases, keys, rounds, seconds, status.update
                    )
                    found.samples += samples
                    found.notes += troubles
                if "bulk" in chosen:
                    found.bulk += many_keys(
                        [store.name for store in stores if store.name in BULK_STORES],
                        *(directory, bulk_keys, seconds, found.notes, status.update),
                    )
                if "growth" in chosen and "ringkv" in wanted:
                    found.growth += run_growth(
                        directory, keys, growth_rate, rounds, 3 * seconds, status.update
                    )
            except (KVError, PhaseFailed) as error:
                raise click.ClickException(str(error)) from error
    found.settings += f"; {(time.monotonic() - begun) / 60:.0f} minutes in all"
    write(found, out)
    if json_file is not None:
        document = {
            "machine": asdict(found.machine),
            "settings": found.settings,
            "versions": found.versions,
            "samples": [asdict(sample) for sample in found.samples],
            "bulk": [asdict(row) for row in found.bulk],
            "growth": [asdict(row) for row in found.growth],
            "notes": found.notes,
        }
        json.dump(document, json_file, indent=2)
        json_file.write("\n")


def choose_cases(parts: list[str], names: tuple[str, ...]) -> list[Case]:
    """Those of the parts, and those that are named."""
    of_parts = [*(MAIN if "main" in parts else []), *(SIZES if "sizes" in parts else [])]
    return [case for case in CASES.values() if case in of_parts or case.name in names]


def make_stores(wanted: list[str], directory: Path, found: Comparison) -> list[Store]:
    """Those that are installed; the others are noted."""
    stores = []
    for name in wanted:
        place = directory / name
        place.mkdir()
        try:
            store = STORES[name](place)
        except Missing as missing:
            found.notes.append(f"{name}: not compared. {missing}")
            continue
        stores.append(store)
        found.versions.append(store.version)
        found.entrants += store.entrants
    return stores


def many_keys(
    names: list[str],
    directory: Path,
    keys: int,
    seconds: float,
    notes: list[str],
    say: Callable[[str], None],
) -> list[BulkRow]:
    """The part bulk; what goes wrong is noted."""
    rows = []
    for name in names:
        place = directory / f"bulk-{name}"
        place.mkdir()
        try:
            rows.append(run_bulk(BULK_STORES[name](place), keys, seconds, say))
        except Exception as error:
            notes.append(f"{name}, very many keys: {error!r}")
        finally:
            shutil.rmtree(place)  # gigabytes, perhaps
    return rows


def write(found: Comparison, out: Path) -> None:
    """Print the page; write it with its plots."""
    out.mkdir(parents=True, exist_ok=True)
    files = []
    try:
        for stem, cases in (("main", MAIN), ("sizes", SIZES)):
            if any(sample.case in {case.name for case in cases} for sample in found.samples):
                of_part = [s for s in found.samples if CASES[s.case] in cases]
                files += plots.draw(of_part, cases, out, stem)
    except ImportError:
        found.notes.append(plots.MISSING)
    said = page(found, files)
    (out / PAGE).write_text(said)
    click.echo(said)
    click.echo(f"written to {out / PAGE}", err=True)


if __name__ == "__main__":
    compare()
