"""What is done to a cluster under load, and what the load saw of it.

A scenario hurts one node, waits, and lets the node come back; that makes two rows: the fault, and
the return until all slots are where they were. `Rows` collects the same row over several runs.
"""

from __future__ import annotations

import signal
import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from kvstore.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvstore.cli.local_cluster import LocalCluster, LocalNode
    from scripts.failover_load import Load, Seen
    from scripts.network_namespaces import Namespaces

WATCHED_S: Final = 3.0
"""How long a fault is watched: everything that it causes is over by then, or it is too long."""

QUIET_S: Final = 2.0
"""Before each fault; what the load sees then is the measure of what is usual."""

AFTER_S: Final = 1.0
BACK_TIMEOUT_S: Final = 60.0
POLL_S: Final = 0.5
BALANCED: Final = 0.9
"""A node leads what it should when it leads this share of an equal part."""


@dataclass
class Rows:
    """Row name -> what each run saw, in the order of the table."""

    seen: dict[str, list[Seen]] = field(default_factory=dict)

    def add(self, name: str, seen: Seen) -> None:
        """One run more."""
        self.seen.setdefault(name, []).append(seen)


def kill(cluster: LocalCluster, node: LocalNode, load: Load, rows: Rows) -> None:
    """Kill -9, then a start."""
    name = "kill -9"
    begin = fault(load, rows, name, lambda: node.signal(signal.SIGKILL))
    come_back(cluster, load, rows, f"return after {name}", begin, lambda: restart(cluster, node))


def freeze(cluster: LocalCluster, node: LocalNode, load: Load, rows: Rows) -> None:
    """SIGSTOP, then SIGCONT."""
    name = "freeze"
    begin = fault(load, rows, name, lambda: node.signal(signal.SIGSTOP))
    thaw = lambda: node.signal(signal.SIGCONT)  # noqa: E731
    come_back(cluster, load, rows, f"return after {name}", begin, thaw)


def cut(cluster: LocalCluster, number: int, load: Load, rows: Rows, namespaces: Namespaces) -> None:
    """Out of the network, and back into it."""
    name = "cut off"
    begin = fault(load, rows, name, lambda: namespaces.cut(number))
    mend = lambda: namespaces.mend(number)  # noqa: E731
    come_back(cluster, load, rows, f"return after {name}", begin, mend)


def rolling_restart(cluster: LocalCluster, load: Load, rows: Rows) -> None:
    """Each node is stopped as an operator does it, and started again when all is well."""
    time.sleep(QUIET_S)
    begin = time.monotonic()
    for node in cluster.nodes:
        node.signal(signal.SIGTERM)
        restart(cluster, node)
        wait_back(cluster)
    time.sleep(AFTER_S)
    rows.add("rolling restart of all three", load.seen(begin, time.monotonic()))


def fault(load: Load, rows: Rows, name: str, hurt: Callable[[], None]) -> float:
    """Hurt, watch; returns when it was."""
    time.sleep(QUIET_S)
    begin = time.monotonic()
    rows.add("nothing", load.seen(begin - QUIET_S, begin))
    hurt()
    time.sleep(WATCHED_S)
    rows.add(name, load.seen(begin, begin + WATCHED_S))
    return begin


def come_back(
    cluster: LocalCluster,
    load: Load,
    rows: Rows,
    name: str,
    since: float,
    heal: Callable[[], None],
) -> None:
    """Heal, wait until all slots are where they were."""
    begin = time.monotonic()
    assert begin - since >= WATCHED_S
    heal()
    wait_back(cluster)
    time.sleep(AFTER_S)
    rows.add(name, load.seen(begin, time.monotonic()))


def restart(cluster: LocalCluster, node: LocalNode) -> None:
    """Start a node that was told to end."""
    assert node.process is not None
    node.process.wait(BACK_TIMEOUT_S)
    cluster.start_node(node)


def wait_back(cluster: LocalCluster) -> None:
    """Until every node is alive and leads its part, by the word of each.

    Raises:
        Unavailable: not within a minute.
    """
    deadline = time.monotonic() + BACK_TIMEOUT_S
    while not all(is_balanced(node) for node in cluster.nodes):
        if time.monotonic() > deadline:
            raise Unavailable(f"not all slots are back after {BACK_TIMEOUT_S:g} s")
        time.sleep(POLL_S)


def is_balanced(viewer: LocalNode) -> bool:
    """Whether all nodes are alive and lead about equally many slots, as this one sees it."""
    document = viewer.fetch("/v1/cluster")
    if document is None:
        return False
    led = [member["slots_led"] for member in document["nodes"]]
    alive = all(member["state"] == "alive" for member in document["nodes"])
    return alive and min(led) >= BALANCED * sum(led) / len(led) > 0


HEADINGS: Final = [
    "WHAT", "RUNS", "GAP MS", "(WORST)", "LONGEST WRITE MS", "(WORST)", "SLOT GAP MS", "ERRORS",
]  # fmt: skip


def table(rows: Rows) -> str:
    """Medians of the runs, and the worst beside them."""
    lines = [HEADINGS]
    for name, runs in rows.seen.items():
        gaps, longest = [run.gap_ms for run in runs], [run.longest_ms for run in runs]
        lines.append(
            [
                name,
                str(len(runs)),
                f"{statistics.median(gaps):,.0f}",
                f"{max(gaps):,.0f}",
                f"{statistics.median(longest):,.0f}",
                f"{max(longest):,.0f}",
                f"{statistics.median([run.slot_gap_ms for run in runs]):,.0f}",
                str(sum(run.errors for run in runs)),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in lines
    )
