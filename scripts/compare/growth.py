"""Our cluster with three nodes and with twelve, under the same load on the same machine.

More nodes on one machine can only cost: every node has its own event loop, gossip and timers. What
they cost for one operation is what growing costs where each has a machine of its own.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from scripts.bench_figures import Meter, Timing
from scripts.bench_loops import at_rate
from scripts.bench_phases import calling, one_get, one_put
from scripts.compare.cases import CASES, make_load
from scripts.compare.processes import stopping
from scripts.compare.ratios import spread
from scripts.compare.ringkv import RingKV

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from kvstore.client import AsyncClient
    from scripts.bench_phases import Target

NODES: Final = (3, 12)
SETTLE_S: Final = 3.0
IDLE_S: Final = 5.0


@dataclass(frozen=True)
class GrowthRow:
    """One size of cluster."""

    nodes: int
    per_second: float
    p50_ms: float
    p99_ms: float
    cpu_us: float
    """Of all nodes, for one operation."""
    idle_share: float
    """Processors that all nodes use without load."""


def half_and_half(target: Target, client: AsyncClient) -> Awaitable[object]:
    """A put or a get."""
    return random.choice((one_put, one_get))(target, client)


def run_growth(
    directory: Path,
    keys: int,
    per_second: float,
    rounds: int,
    seconds: float,
    say: Callable[[str], None],
) -> list[GrowthRow]:
    """A row for each size, of medians; sizes alternate."""
    found: dict[int, list[GrowthRow]] = {nodes: [] for nodes in NODES}
    stores = {}
    for number in range(rounds):
        for nodes in NODES:
            say(f"round {number + 1} of {rounds}: {nodes} nodes")
            if nodes not in stores:
                place = directory / f"of-{nodes}"
                place.mkdir()
                stores[nodes] = RingKV(place, nodes)
            found[nodes].append(measure(stores[nodes], nodes, keys, per_second, seconds))
    return [middle(rows) for rows in found.values()]


def measure(store: RingKV, nodes: int, keys: int, per_second: float, seconds: float) -> GrowthRow:
    """Start, settle, look at it idle, then under load."""
    load = make_load(CASES["put"], keys)
    with stopping(store):
        store.start()
        store.fill(load)
        time.sleep(SETTLE_S)
        meter = Meter(store.pids)
        time.sleep(IDLE_S)
        idle = meter.row("idle", Timing(1, IDLE_S, 0.0, 0.0))
        calls = calling(half_and_half, store.target(load))
        meter = Meter(store.pids)
        row = meter.row("load", at_rate(calls, per_second, seconds))
    return GrowthRow(
        nodes,
        row.per_second,
        row.p50_ms,
        row.p99_ms,
        sum(row.nodes_cpu_us),
        sum(idle.nodes_cpu_us) / 1e6 / IDLE_S,
    )


def middle(rows: list[GrowthRow]) -> GrowthRow:
    """The median of each figure."""
    return GrowthRow(
        rows[0].nodes,
        *(
            spread(getattr(row, name) for row in rows).median
            for name in ("per_second", "p50_ms", "p99_ms", "cpu_us", "idle_share")
        ),
    )
