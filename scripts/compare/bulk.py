"""Very many keys: import them, see the memory, kill everything, start again, read, scan.

Each store does it once, alone and from an empty directory, with its own import command. Values
differ from key to key, because three copies of one value compress well and say nothing.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import psutil

from scripts.bench import NODES
from scripts.bench_events import values
from scripts.bench_figures import MIB, Timing
from scripts.compare.cases import CASES, SEED, make_load
from scripts.compare.processes import stopping
from scripts.compare.store import BULK_PREFIX, Load

if TYPE_CHECKING:
    from collections.abc import Callable

    from scripts.compare.store import BulkStore

READ_KEYS_MAX: Final = 1_000_000
FEW_KEYS: Final = 100_000


@dataclass(frozen=True)
class BulkRow:
    """One store."""

    entrant: str
    keys: int
    load_s: float
    rss_mib: float
    """Of all processes after the load, divided by the number of nodes."""
    restart_s: float
    get_few: Timing
    get_all: Timing
    scan_s: float


def run_bulk(store: BulkStore, keys: int, seconds: float, say: Callable[[str], None]) -> BulkRow:
    """Everything; whatever happens, the store is stopped.

    Raises:
        PhaseFailed: the import failed, or the scan did not find every key.
    """
    few = make_load(CASES["get"], min(keys, FEW_KEYS))
    names = [f"{BULK_PREFIX}{number:08}" for number in range(keys)]
    some = random.Random(SEED).sample(names, min(keys, READ_KEYS_MAX))
    with stopping(store):
        say(f"{store.name}: starts, for {keys:,} keys")
        store.start()
        store.fill(few)
        get_few = reading(store, few, seconds)
        store.prepare_import(zip(names, values(), strict=False))
        del names
        say(f"{store.name}: loads {keys:,} keys")
        load_s = timed(store.load_prepared)
        rss_mib = sum(psutil.Process(pid).memory_info().rss for pid in store.pids) / MIB / NODES
        say(f"{store.name}: restarts with {keys:,} keys")
        store.kill()
        restart_s = timed(store.start) + timed(lambda: reading(store, Load(some, some, b""), 0))
        get_all = reading(store, Load(some, some, b""), seconds)
        say(f"{store.name}: scans {keys:,} keys")
        begun = time.perf_counter()
        found = store.scan()
        scan_s = time.perf_counter() - begun
    assert found == keys, f"{store.name}: a scan found {found:,} of {keys:,} keys"
    return BulkRow(
        store.entrants[0].name, keys, load_s, rss_mib, restart_s, get_few, get_all, scan_s
    )


def reading(store: BulkStore, load: Load, seconds: float) -> Timing:
    """The phase `get` of the store's first entrant; at least one call."""
    return store.entrants[0].phases["get"](load, max(seconds, 1e-3))


def timed(what: Callable[[], object]) -> float:
    """Seconds that it takes."""
    begun = time.perf_counter()
    what()
    return time.perf_counter() - begun
