"""The page of a comparison: conditions, promises, and a table for each kind of case."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from scripts.compare.cases import MAIN, SIZES
from scripts.compare.ratios import OURS, aim_of, ratio, spread

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from scripts.bench_machine import Machine
    from scripts.compare.bulk import BulkRow
    from scripts.compare.cases import Case
    from scripts.compare.growth import GrowthRow
    from scripts.compare.rounds import Sample
    from scripts.compare.store import Entrant

INTRODUCTION: Final = """\
# Compared with Redis Cluster, etcd and memcached

Written by `make bench`. [benchmarks.md](../benchmarks.md) has our own figures, by stage too. All
processes of a store and its client share the processors and the disk of one machine. In each round
every store runs alone, from data that stays; the order changes from round to round. A figure is the
median of the rounds; a ratio is taken within a round, and the least and the most of all rounds
stand beside it. *ringkv is* says how many times better ringkv is: its rate over theirs, or, where
the case is about latency, their P99 over its own.

Equal for all: keys, values and their order of popularity, the number of clients, a phase's length,
one asyncio event loop, fsync before an answer. ringkv and etcd have three copies, of which two are
on disk at an answer; Redis has two. Where a store promises less, the table of promises says so.
"""
HEADINGS: Final = [
    "workload", "store", "a second", "p50 ms", "p99 ms", "servers' µs", "client's µs",
    "ringkv is", "aim",
]  # fmt: skip
LEGEND: Final = """\
*servers' µs*: processor time of all processes of the store for one operation, which is a key;
*client's µs*: that of the client (for HTTP: wrk). A *half-peak* case finds the peak of 64 tasks,
then times calls that are due at half of that store's own peak; its rate is what was offered. *aim*:
what the ratio should be; ✓ where its median is. A store without an operation has no line for it."""


@dataclass
class Comparison:
    """All that one run found out."""

    machine: Machine
    settings: str
    versions: list[str] = field(default_factory=list)
    entrants: list[Entrant] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    bulk: list[BulkRow] = field(default_factory=list)
    growth: list[GrowthRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What is missing or went wrong."""


def page(comparison: Comparison, plots: Sequence[str]) -> str:
    """In Markdown."""
    parts = [INTRODUCTION, *(f"- {note}\n" for note in comparison.notes)]
    block = [*comparison.machine.lines(), f"{'software':12} {'; '.join(comparison.versions)}"]
    block.append(f"{'run':12} {comparison.settings}")
    parts.append("```text\n" + "\n".join(block) + "\n```\n")
    parts.append("## What each promises\n")
    parts.append(
        table(
            ["store", "an answer means", "client"],
            ([one.name, one.promise, one.client] for one in comparison.entrants),
        )
    )
    measured = {sample.case for sample in comparison.samples}
    for title, cases in (("100-byte values", MAIN), ("Other values and keys", SIZES)):
        chosen = [case for case in cases if case.name in measured]
        if chosen:
            parts += [f"## {title}\n", table(HEADINGS, rows(chosen, comparison.samples))]
    if measured:
        parts.append(LEGEND + "\n")
    parts += [f"![{plot.removesuffix('.svg')}]({plot})\n" for plot in plots]
    if comparison.bulk:
        parts += ["## Very many keys\n", bulk_text(comparison.bulk)]
    if comparison.growth:
        parts += ["## More nodes on the same machine\n", growth_text(comparison.growth)]
    return "\n".join(parts)


def rows(cases: Iterable[Case], samples: Sequence[Sample]) -> Iterable[list[str]]:
    """One line for each entrant of each case, ours first."""
    for case in cases:
        of_case: dict[str, list[Sample]] = {}
        for sample in samples:
            if sample.case == case.name:
                of_case.setdefault(sample.entrant, []).append(sample)
        ours = of_case.get(OURS, [])
        best = best_peer(case, of_case)
        for name in sorted(of_case, key=lambda name: (name != OURS, name)):
            yield row(case, name, of_case[name], ours, best=name == best)


def best_peer(case: Case, of_case: dict[str, list[Sample]]) -> str | None:
    """The peer with the lowest P99 or the highest rate."""

    def badness(name: str) -> float:
        samples = of_case[name]
        if case.by_p99:
            return spread(sample.p99_ms for sample in samples).median
        return -spread(sample.per_second for sample in samples).median

    return min((name for name in of_case if name != OURS), key=badness, default=None)


def row(
    case: Case, name: str, samples: Sequence[Sample], ours: Sequence[Sample], *, best: bool
) -> list[str]:
    """One line of the table."""
    rate = spread(sample.per_second for sample in samples)
    figures = [
        spread(getattr(sample, figure) for sample in samples).median
        for figure in ("p50_ms", "p99_ms", "servers_cpu_us", "client_cpu_us")
    ]
    better = None if name == OURS else ratio(ours, samples, by_p99=case.by_p99)
    times = aim_of(case.name, name, best=best)
    return [
        case.name,
        name,
        f"{rate.median:,.0f} ({rate.least:,.0f} to {rate.most:,.0f})",
        *(f"{ms:.2f}" for ms in figures[:2]),
        *("" if case.by_p99 else microseconds(us) for us in figures[2:]),
        "" if better is None else f"{better.median:.2f} ({better.least:.2f} to {better.most:.2f})",
        verdict(times, None if better is None else better.median),
    ]


def microseconds(us: float) -> str:
    """With three digits that mean something."""
    return f"{us:,.0f}" if us >= 100 else f"{us:.1f}"


def verdict(times: float | None, got: float | None) -> str:
    """The aim, and whether it is reached.

    >>> verdict(2.0, 2.5), verdict(2.0, 0.4), verdict(None, 1.0)
    ('2 ✓', '2', '')
    """
    if times is None:
        return ""
    return f"{times:g} ✓" if got is not None and got >= times else f"{times:g}"


def bulk_text(found: Sequence[BulkRow]) -> str:
    """Import, memory, restart, reads and scan."""
    lines = []
    ours = next((row for row in found if row.entrant == OURS), None)
    for one in found:
        load = scan = ""
        if ours is not None and one.entrant != OURS:
            load = f" ({ours.keys / ours.load_s / (one.keys / one.load_s):.2f})"
            scan = f" ({one.scan_s / ours.scan_s:.2f})"
        lines.append(
            [
                one.entrant,
                f"{one.keys:,}",
                f"{one.load_s:.1f}",
                f"{one.keys / one.load_s:,.0f}{load}",
                f"{one.rss_mib:.0f}",
                f"{one.restart_s:.1f}",
                f"{one.get_few.p50_ms:.2f} / {one.get_few.p99_ms:.2f}",
                f"{one.get_all.p50_ms:.2f} / {one.get_all.p99_ms:.2f}",
                f"{one.scan_s:.1f}",
                f"{one.keys / one.scan_s:,.0f}{scan}",
            ]
        )
    headings = [
        "store", "keys", "load s", "keys/s", "MiB a node", "restart s", "get before",
        "get after", "scan s", "keys/s",
    ]  # fmt: skip
    return (
        table(headings, lines) + "\nLoad: `kvstore load` of a MessagePack file; `redis-cli --pipe` "
        "to each master at once, then WAIT 1. Values are 100 random bytes. In brackets: how many "
        "times faster ringkv is (aim: load 1, scan 3). MiB a node: resident memory after the load, "
        "of all processes by three (a master and a replica of Redis are one node). Restart: all "
        "processes killed, then started, until a read is answered (aim: 5 s). get: p50 / p99 in "
        "ms, of a client alone, before the load and of all keys after it. scan: every key with its "
        "value by one client; Redis: SCAN of each master and a pipeline of GETs for each page, "
        "because MGET takes the keys of one slot only.\n"
    )


def growth_text(found: Sequence[GrowthRow]) -> str:
    """Processor time for one operation by number of nodes."""
    lines = [
        [str(one.nodes), f"{one.per_second:,.0f}"]
        + [f"{figure:,.2f}" for figure in (one.p50_ms, one.p99_ms)]
        + [f"{one.cpu_us:,.0f}", f"{one.cpu_us - 1e6 * one.idle_share / one.per_second:,.0f}"]
        + [f"{one.idle_share * 100:.1f} %"]
        for one in found
    ]
    few, many = found[0], found[-1]
    headings = ["nodes", "offered/s", "p50 ms", "p99 ms", "all nodes' µs", "above idle", "idle"]
    return (
        table(headings, lines) + f"\nThe same load, half puts and half gets. {many.nodes} nodes "
        f"take {many.cpu_us / few.cpu_us:.2f} times the processor time of {few.nodes} for one "
        "operation, idle work included (aim: at most 1.3). idle: what all nodes use of a processor "
        "without load, and above idle: what is left for an operation without that.\n"
    )


def table(headings: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """In Markdown."""
    body = [list(headings), ["---"] * len(headings), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in body) + "\n"
