"""Measure a cluster of three nodes at five times the load that saturates it.

::

    1. peak        closed loops of growing windows; the best rate is the peak
    2. overload    open loops that offer so many times the peak together
    3. kill        the same with `kill -9` of one node midway

Reported: puts completed in time per second and their share of the peak, the p99 of those that were
admitted, how many were refused, the memory of each node, whether gossip went on believing in the
living, and how long the killed node's slots took no write. The load (`scripts.overload_load`) runs
on the same machine, so it takes processor time from the nodes, and five times the load takes more
of it: what is said of the peak is a lower bound. Beside it stands what the nodes complete for each
second of processor time that they get, which the load does not change.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import click
import psutil

from cluster.slots import slot_of
from kvstore.cli.local_cluster import LocalCluster, LocalNode
from scripts.bench import NODES, READY_TIMEOUT_S, STOP_SIGNALS, free_ports, leave
from scripts.bench_figures import MIB, percentile
from scripts.overload_load import KEYS

if TYPE_CHECKING:
    from collections.abc import Callable

PROCESSES: Final = 1
"""Of the load; one offers 100,000 puts a second."""
WINDOWS: Final = (64, 256, 1_024)
WARM_UP_S: Final = 1.0
SAMPLE_S: Final = 0.1
LOOK_SAMPLES: Final = 10
"""So many samples of the processor time to each look at what the nodes think: that costs them."""
DETECTED_S: Final = 10.0


@dataclass
class Figures:
    """What all load processes of a phase counted; times are those of one monotonic clock."""

    seconds: float
    load_s: float = 0.0
    """Processor time of the load."""
    nodes_s: float = 0.0
    """Processor time of the nodes."""
    counts: Counter[str] = field(default_factory=Counter)
    latencies_ms: list[int] = field(default_factory=list)
    done_at: dict[int, list[float]] = field(default_factory=dict)
    """Slot -> when (to a tenth of a second) puts into it were completed."""

    @property
    def per_second(self) -> float:
        """Puts completed in time."""
        return self.counts["done"] / self.seconds

    @property
    def per_processor_second(self) -> float:
        """The same for each second of processor time of the nodes."""
        return self.counts["done"] / self.nodes_s

    def percentile_ms(self, percent: float) -> float:
        """Of the puts that were carried out."""
        return percentile(sorted(self.latencies_ms) or [0], percent)


class Watcher(threading.Thread):
    """The nodes' processor time, memory and what they think of each other, again and again."""

    def __init__(self, cluster: LocalCluster) -> None:
        super().__init__(daemon=True)
        self._cluster = cluster
        self._ended = threading.Event()
        self._used_s: dict[str, float] = {}
        self._samples: list[tuple[float, float]] = []
        self.rss_mib_max: Counter[str] = Counter()
        self.looks = 0
        self.wrong: Counter[str] = Counter()
        """Living nodes that were thought to be something else."""
        self.expected_down: set[str] = set()

    def run(self) -> None:
        """Until `stop`."""
        while not self._ended.wait(SAMPLE_S):
            self._sample()
            if len(self._samples) % LOOK_SAMPLES == 0:
                for node in self._cluster.nodes:
                    self._look(node.name)

    def _sample(self) -> None:
        for node in self._cluster.nodes:
            if node.state == "running" and node.process is not None:
                with suppress(psutil.Error):
                    times = psutil.Process(node.process.pid).cpu_times()
                    self._used_s[node.name] = times.user + times.system
        self._samples.append((time.monotonic(), sum(self._used_s.values())))

    def used_s(self, begin: float, end: float) -> float:
        """Processor time of the nodes between two moments."""
        at = [min(self._samples, key=lambda s: abs(s[0] - moment)) for moment in (begin, end)]
        return (at[1][1] - at[0][1]) * (end - begin) / (at[1][0] - at[0][0])

    def _look(self, name: str) -> None:
        node = next(node for node in self._cluster.nodes if node.name == name)
        if node.state != "running" or node.process is None:
            return
        rss = psutil.Process(node.process.pid).memory_info().rss / MIB
        self.rss_mib_max[name] = max(self.rss_mib_max[name], int(rss))
        document = node.fetch("/v1/cluster")
        if document is None:
            self.wrong[f"{name} did not answer HTTP within 1 s"] += 1
            return
        self.looks += 1
        for other in document["nodes"]:
            if other["state"] != "alive" and other["name"] not in self.expected_down:
                self.wrong[f"{name} thought {other['name']} {other['state']}"] += 1

    def stop(self) -> None:
        """Look no more."""
        self._ended.set()
        self.join()


def load(url: str, seconds: float, *, rate: float = 0.0, window: int = 0) -> list[Any]:
    """Start the load processes."""
    command = [sys.executable, "-m", "scripts.overload_load", url, "--seconds", str(seconds)]
    command += ["--rate", str(rate / PROCESSES), "--window", str(window // PROCESSES)]
    return [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(PROCESSES)]


def gather(processes: list[subprocess.Popen[str]], skip_s: float, watcher: Watcher) -> Figures:
    """Wait for them, and add up what they said after a first moment."""
    said = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise click.ClickException("a load process failed")
    lines = [[json.loads(line) for line in text.splitlines()] for text in said]
    begin = max(each[0]["at"] for each in lines) + skip_s
    end = min(each[-1]["at"] for each in lines)
    figures = Figures(end - begin, nodes_s=watcher.used_s(begin, end))
    for each in lines:
        used = [line.pop("processor_s") for line in each]
        figures.load_s += (used[-1] - used[0]) * (end - begin) / (each[-1]["at"] - each[0]["at"])
    for line in (line for each in lines for line in each if begin < line["at"] <= end):
        at, slots = line.pop("at"), line.pop("slots")
        figures.latencies_ms += line.pop("latencies_ms")
        figures.counts.update(line)
        for slot in slots:
            figures.done_at.setdefault(slot, []).append(at)
    return figures


def find_peak(url: str, seconds: float, watcher: Watcher, say: Callable[[str], None]) -> Figures:
    """The best of closed loops."""
    found = []
    for window in WINDOWS:
        figures = gather(load(url, seconds + WARM_UP_S, window=window), WARM_UP_S, watcher)
        say(f"window {window:>5}  {describe(figures)}")
        found.append(figures)
    return max(found, key=lambda figures: figures.per_second)


def describe(figures: Figures) -> str:
    """A line for people."""
    refused = ", ".join(
        f"{figures.counts[name]:,} {name}"
        for name in ("overloaded", "withheld", "late", "unavailable", "unknown", "broken", "other")
        if figures.counts[name]
    )
    return (
        f"{figures.per_second:>8,.0f} puts/s  p50 {figures.percentile_ms(50):>5,.0f} ms  "
        f"p99 {figures.percentile_ms(99):>5,.0f} ms  processors: nodes "
        f"{figures.nodes_s / figures.seconds:.2f}, load {figures.load_s / figures.seconds:.2f}  "
        f"{refused}"
    )


def silence_s(figures: Figures, slots: set[int], killed_at: float) -> float:
    """How long after the kill none of these slots completed a put."""
    after = [at for slot in slots for at in figures.done_at.get(slot, ()) if at > killed_at + 0.2]
    return min(after, default=float("inf")) - killed_at


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--seconds", type=click.FloatRange(min=1), default=6.0, show_default=True)
@click.option("--times", type=click.FloatRange(min=1), default=5.0, show_default=True)
@click.option("--json", "json_file", type=click.File("w"), help="Write all figures there.")
@click.option("--dir", "parent", type=click.Path(file_okay=False, exists=True, path_type=Path))
def main(seconds: float, times: float, json_file: IO[str] | None, parent: Path | None) -> None:
    """Measure a cluster of three nodes under too much load."""
    for number in STOP_SIGNALS:
        signal.signal(number, leave)
    with tempfile.TemporaryDirectory(prefix="ringkv-overload-", dir=parent) as made:
        first = free_ports(2 * NODES)
        cluster = LocalCluster(Path(made), NODES, first, first + NODES)
        try:
            cluster.start()
            cluster.wait_ready(READY_TIMEOUT_S)
            document = measure(cluster, seconds, times)
        finally:
            cluster.stop()
    if json_file is not None:
        json.dump(document, json_file, indent=2)


def measure(cluster: LocalCluster, seconds: float, times: float) -> dict[str, Any]:
    """All phases."""
    watcher = Watcher(cluster)
    watcher.start()
    best = find_peak(cluster.url, seconds, watcher, click.echo)
    peak = best.per_second
    rate = peak * times
    click.echo(f"peak {peak:,.0f} puts/s; offering {rate:,.0f}")
    overload = gather(load(cluster.url, seconds + WARM_UP_S, rate=rate), WARM_UP_S, watcher)
    share = overload.per_second / peak
    node_share = overload.per_processor_second / best.per_processor_second
    click.echo(f"overload      {describe(overload)}")
    click.echo(
        f"completed     {share:.0%} of the peak; {node_share:.0%} of it for each second of the "
        f"nodes' processor time ({best.per_processor_second:,.0f} puts at the peak)"
    )
    victim, led = who_leads_most(cluster)
    processes = load(cluster.url, 2 * seconds + WARM_UP_S, rate=rate)
    time.sleep(seconds / 2 + WARM_UP_S)
    watcher.expected_down.add(victim.name)
    killed_at = time.monotonic()
    victim.signal(signal.SIGKILL)
    killed = gather(processes, WARM_UP_S, watcher)
    silence = silence_s(killed, led, killed_at)
    watcher.stop()
    click.echo(f"with a kill   {describe(killed)}")
    click.echo(
        f"completed     {killed.per_second / peak:.0%} of the peak, kill and takeover included"
    )
    click.echo(f"taken over    {silence:.1f} s after the kill its slots completed puts again")
    click.echo(f"memory        {dict(watcher.rss_mib_max)} MiB at most")
    click.echo(f"gossip        {watcher.looks} looks, wrong: {dict(watcher.wrong) or 'never'}")
    return {
        "peak_per_second": peak,
        "offered_per_second": rate,
        "overload_per_second": overload.per_second,
        "share": share,
        "share_per_processor_second": node_share,
        "kill_share": killed.per_second / peak,
        "p99_ms": overload.percentile_ms(99),
        "counts": dict(overload.counts),
        "kill_counts": dict(killed.counts),
        "kill_silence_s": silence,
        "rss_mib_max": dict(watcher.rss_mib_max),
        "gossip_looks": watcher.looks,
        "gossip_wrong": dict(watcher.wrong),
    }


def who_leads_most(cluster: LocalCluster) -> tuple[LocalNode, set[int]]:
    """The node that leads most slots of the load's keys, with those slots."""
    wanted = {slot_of(key) for key in KEYS}
    led: dict[str, set[int]] = {node.name: set() for node in cluster.nodes}
    begin: int | None = 0
    while begin is not None:
        page = cluster.nodes[0].fetch(f"/v1/cluster/slots?from={begin}&limit=1000")
        if page is None:
            raise click.ClickException("node n1 does not answer")
        for row in page["slots"]:
            if row["primary"] in led and row["slot"] in wanted:
                led[row["primary"]].add(row["slot"])
        begin = page["next"]
    victim = max(cluster.nodes, key=lambda node: len(led[node.name]))
    return victim, led[victim.name]


if __name__ == "__main__":
    main()
