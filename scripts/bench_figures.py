"""The arithmetic of a benchmark: percentiles, and who used how much processor time.

A phase gives a `Timing`; a `Meter` around it turns that into a `Row` with the processor time of
each process per operation and its memory afterwards. Processor time comes from the kernel in ticks
of 10 ms, so a phase of some seconds is exact to about one percent.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Final

import psutil

if TYPE_CHECKING:
    from collections.abc import Sequence

MIB: Final = 1024 * 1024


@dataclass(frozen=True)
class Timing:
    """What a phase measured; an operation is a key, a call may carry many."""

    operations: int
    seconds: float
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True)
class Row:
    """One line of the table; lists have an entry for each node, in order."""

    name: str
    operations: int
    per_second: float
    p50_ms: float
    p99_ms: float
    nodes_cpu_us: list[float]
    """Processor time of each node for one operation."""
    client_cpu_us: float
    nodes_rss_mib: list[float]


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The least value that so many percent do not exceed (nearest rank).

    >>> percentile([1, 2, 3, 4], 50), percentile([1, 2, 3, 4], 99)
    (2, 4)
    """
    assert ordered
    assert 0 < percent <= 100
    return ordered[max(0, ceil(len(ordered) * percent / 100) - 1)]


def timing_of(latencies_s: list[float], seconds: float, keys_per_call: int = 1) -> Timing:
    """From the time that each call took."""
    ordered = sorted(latencies_s)
    p50_ms, p99_ms = (percentile(ordered, percent) * 1_000 for percent in (50, 99))
    return Timing(len(ordered) * keys_per_call, seconds, p50_ms, p99_ms)


class Meter:
    """The processor time of the nodes and of this process with its ended children, from now."""

    def __init__(self, node_pids: list[int]) -> None:
        self._nodes = [psutil.Process(pid) for pid in node_pids]
        self._client = psutil.Process()
        self._before_s = self._cpu_s()

    def row(self, name: str, timing: Timing) -> Row:
        """What the phase that ends now has cost."""
        used_us = [
            (after_s - before_s) * 1e6 / timing.operations
            for before_s, after_s in zip(self._before_s, self._cpu_s(), strict=True)
        ]
        return Row(
            name,
            timing.operations,
            timing.operations / timing.seconds,
            timing.p50_ms,
            timing.p99_ms,
            nodes_cpu_us=used_us[:-1],
            client_cpu_us=used_us[-1],
            nodes_rss_mib=[node.memory_info().rss / MIB for node in self._nodes],
        )

    def _cpu_s(self) -> list[float]:
        """Of each node; the client, to which a child such as wrk belongs, is the last."""
        nodes = [(times := node.cpu_times()).user + times.system for node in self._nodes]
        mine = self._client.cpu_times()
        children = mine.children_user + mine.children_system
        return [*nodes, mine.user + mine.system + children]


HEADINGS: Final = ["PHASE", "OPERATIONS", "PER SECOND", "P50 MS", "P99 MS"]


def table(rows: list[Row]) -> str:
    """Aligned columns; the names at the left, all figures at the right."""
    assert rows
    names = [f"N{number}" for number in range(1, len(rows[0].nodes_cpu_us) + 1)]
    heading = [*HEADINGS, *(f"{name} US" for name in names), "CLIENT US"]
    lines = [[*heading, *(f"{name} MIB" for name in names)]]
    for row in rows:
        cpu = [*row.nodes_cpu_us, row.client_cpu_us]
        lines.append(
            [row.name, f"{row.operations:,}", f"{row.per_second:,.0f}"]
            + [f"{ms:.2f}" for ms in (row.p50_ms, row.p99_ms)]
            + [f"{us:,.0f}" if us >= 100 else f"{us:.1f}" for us in cpu]
            + [f"{mib:.0f}" for mib in row.nodes_rss_mib]
        )
    return columns(lines)


def columns(lines: list[list[str]]) -> str:
    """Aligned: names at the left, figures at the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in lines
    )
