"""Where the processor time goes, stage by stage, and how far from physics: `make bench-stages`.

py-spy samples the stacks of all nodes from outside while a phase of the benchmark runs or an event
happens, so the nodes are those that users run. A sample belongs to the innermost frame of our own
code, that is, to whoever called the C code that was at work. Only the loop's thread is shared out
like that: how much processor time each thread uses is what the kernel counted, for a phase in a run
without py-spy, which costs a little itself; an event happens once, so it is counted while it is
sampled.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import psutil
from rich.console import Console

from kvstore.cli.local_cluster import LocalCluster
from kvstore.errors import KVError
from scripts.bench import NODES, READY_TIMEOUT_S, STOP_SIGNALS, filled, free_ports, leave, running
from scripts.bench_events import Events
from scripts.bench_failover import stop
from scripts.bench_figures import columns
from scripts.bench_loops import PhaseFailed
from scripts.bench_machine import examine
from scripts.bench_phases import PHASES, Target, http
from scripts.bench_physics import OF_PHASES
from scripts.bench_physics import table as physics_table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from scripts.bench_events import Happened
    from scripts.bench_figures import Timing

SAMPLES_PER_SECOND: Final = 100
START_UP_S: Final = 1.0
"""What py-spy needs to read a process; the phase begins before it and ends after it."""

SYNC: Final = "sync thread"
COMPACTION: Final = "compaction"
LOOP: Final = "event loop"
STAGES: Final = {
    "kvstore/wire/": "frames",
    "kvstore/node/connection.py": "frames",
    "kvstore/node/server.py": "door",
    "kvstore/node/door.py": "door",
    "kvstore/node/router.py": "router",
    "kvstore/node/": "tick and links",
    "kvstore/storage/": "storage",
    "kvstore/http/": "http",
    "cluster/": "core",
}
"""Path, the first that matches -> stage."""

PATHS: Final = ("put", "put_many-100", "get", "get_many-100", "http-put", "http-get")
ALONE: Final[dict[str, Callable[[Target, float], Timing]]] = {
    "http-put-alone": partial(http, "PUT", connections=1),
    "http-get-alone": partial(http, "GET", connections=1),
}
"""Not in the table of stages: the latency of HTTP without a queue of other requests."""

LEGEND: Final = """
Microseconds of processor time, all nodes together: for one key, in TAKEOVER and JOIN for one slot.
frames: sockets, decoding, encoding. door: checks. router: who leads the slot, gathering answers.
core: rules of the protocol, records and key log. storage: the batch into RocksDB, reads from it.
http: requests and answers. tick and links: the order of a tick, frames to peers. sync thread:
fsync, and other work aside. compaction: RocksDB's own threads. event loop: uvloop, aiohttp, and
samples that belong to nobody."""
PHYSICS_LEGEND: Final = """
LIMIT: what the path waits for at least, at the raw speed of the machine. TOOK: the median of a
call (HTTP: of one connection alone), or the whole event. load and join write three copies and what
is copied to the one disk of the machine; takeover is from kill -9 until every slot has answered a
read, and slots are taken over in bounded numbers at a time; join is paced (32 MiB/s a node)."""


@click.command()
@click.option("--seconds", type=click.IntRange(min=1), default=5, show_default=True)
@click.option(
    "--only",
    "names",
    type=click.Choice([*PHASES, *Events.NAMES]),
    metavar="NAME",
    multiple=True,
    default=(*PATHS, *Events.NAMES),
    show_default=True,
)
@click.option("--keys", type=click.IntRange(min=1_000), default=100_000, show_default=True)
@click.option(
    "--page",
    type=click.Path(dir_okay=False, exists=True, path_type=Path),
    help="Put what is printed into this page, between the lines that mark the place.",
)
def stages(seconds: int, names: tuple[str, ...], keys: int, page: Path | None) -> None:
    """Sample a cluster of three nodes at work; print its time by stage, and the limits beside."""
    for number in STOP_SIGNALS:
        signal.signal(number, leave)
    spy = shutil.which("py-spy") or shutil.which("py-spy", path=str(Path(sys.executable).parent))
    if spy is None:
        raise click.ClickException("there is no py-spy here: make bench-stages installs it")
    phases = [name for name in names if name in PHASES]
    events: list[str] = [name for name in Events.NAMES if name in names]
    spent: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="ringkv-stages-") as made:
        directory = Path(made)
        machine = examine(directory)
        sampler = Sampler(spy, directory)
        try:
            timings = measure_phases(sampler, phases, seconds, keys, spent) if phases else {}
            happened = measure_events(sampler, events, keys, spent) if events else {}
        except (KVError, PhaseFailed) as error:
            raise click.ClickException(str(error)) from error
    order = sorted(
        {s for by in spent.values() for s in by}, key=lambda s: -spent[names[0]].get(s, 0)
    )
    lines = [["STAGE", *(name.upper() for name in spent)]]
    lines += [[s, *(f"{by.get(s, 0.0):,.1f}" for by in spent.values())] for s in order]
    lines.append(["all", *(f"{sum(by.values()):,.1f}" for by in spent.values())])
    said = f"{columns(lines)}\n{LEGEND}"
    limits = "\n".join(
        [*machine.lines(), "", physics_table(machine, timings, happened), PHYSICS_LEGEND]
    )
    click.echo(f"{said}\n\n{limits}")
    if page is not None:
        text = filled(page.read_text(), "stages", said)
        page.write_text(filled(text, "physics", limits))


def measure_phases(
    sampler: Sampler,
    names: list[str],
    seconds: int,
    keys: int,
    spent: dict[str, dict[str, float]],
) -> dict[str, Timing]:
    """Put microseconds of each stage for one operation into ``spent``; the timings unsampled."""
    timings: dict[str, Timing] = {}
    setting = (sampler.directory / "phases", keys, "disk", Console(stderr=True))
    with running(*setting) as (target, pids, status):
        for name in names:
            status.update(name)
            before = thread_seconds(pids)
            timings[name] = PHASES[name](target, seconds)
            used_us = used(before, thread_seconds(pids), timings[name].operations)
            phase = partial(PHASES[name], target, seconds)
            spent[name] = shared_out(used_us, sampler.during(pids, phase))
        for name in ALONE:
            if name.removesuffix("-alone") in names:
                timings[name] = ALONE[name](target, seconds)
    return {name: timing for name, timing in timings.items() if name in OF_PHASES}


def measure_events(
    sampler: Sampler, names: list[str], keys: int, spent: dict[str, dict[str, float]]
) -> dict[str, Happened]:
    """Put microseconds of each stage for a key or slot into ``spent``; what happened."""
    found: dict[str, Happened] = {}
    with Console(stderr=True).status("starting nodes") as status:
        first = free_ports(2 * (NODES + 1))  # one node joins
        cluster = LocalCluster(
            *(sampler.directory / "events", NODES, first, first + NODES + 1),
            ["--log-level", "warning"],
        )
        try:
            cluster.start()
            cluster.wait_ready(READY_TIMEOUT_S)
            events = Events(cluster, keys)
            if "load" not in names:
                events.load(lambda pids, happen: happen())
            for name in names:
                status.update(name)
                counts: Counter[str] = Counter()
                seconds: dict[str, float] = {}

                def sample(pids: list[int], happen: Callable[[], None]) -> None:
                    before = thread_seconds(pids)
                    counts.update(sampler.during(pids, happen))  # noqa: B023 - called at once
                    seconds.update(used(before, thread_seconds(pids), 1))  # noqa: B023

                found[name] = events.run(name, sample)
                used_us = {kind: us / found[name].operations for kind, us in seconds.items()}
                spent[name] = shared_out(used_us, counts)
        finally:
            stop(cluster)
    return found


class Sampler:
    """py-spy on some processes while something happens."""

    def __init__(self, spy: str, directory: Path) -> None:
        self._spy = spy
        self.directory = directory

    def during(self, pids: list[int], happen: Callable[[], object]) -> Counter[str]:
        """Samples by stage."""
        files = [self.directory / f"{pid}.stacks" for pid in pids]
        spies = [
            subprocess.Popen(
                [
                    *(self._spy, "record", "--pid", str(pid), "--format", "raw"),
                    *("--output", str(file), "--rate", str(SAMPLES_PER_SECOND), "--nonblocking"),
                ],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            for pid, file in zip(pids, files, strict=True)
        ]
        try:
            time.sleep(START_UP_S)
            happen()
        finally:
            for process in spies:
                process.send_signal(signal.SIGINT)  # it writes what it has
        counts: Counter[str] = Counter()
        for process, file in zip(spies, files, strict=True):
            _, said = process.communicate()
            if process.returncode:
                raise click.ClickException(f"py-spy failed: {said.strip()}")
            counts += count_stages(file.read_text().splitlines())
            file.unlink()
        return counts


def used(before: dict[str, float], after: dict[str, float], operations: int) -> dict[str, float]:
    """Microseconds of each kind of thread for one operation."""
    return {kind: 1e6 * (after[kind] - before[kind]) / operations for kind in after}


def shared_out(used_us: dict[str, float], counts: Counter[str]) -> dict[str, float]:
    """The loop's time by stage, as its samples were; the other threads as they are.

    >>> shared_out({"event loop": 8.0, "sync thread": 1.0}, Counter(core=3, frames=1))
    {'sync thread': 1.0, 'core': 6.0, 'frames': 2.0}
    """
    rest = {kind: us for kind, us in used_us.items() if kind != LOOP}
    shares = {stage: used_us[LOOP] * count / counts.total() for stage, count in counts.items()}
    return rest | shares


def thread_seconds(pids: list[int]) -> dict[str, float]:
    """The processor time of the nodes' threads: the loop's, the sync thread, those of RocksDB."""
    seconds = dict.fromkeys((LOOP, SYNC, COMPACTION), 0.0)
    for pid in pids:
        for thread in psutil.Process(pid).threads():
            name = Path(f"/proc/{pid}/task/{thread.id}/comm").read_text()
            kind = LOOP if thread.id == pid else COMPACTION if "rocksdb" in name else SYNC
            seconds[kind] += thread.user_time + thread.system_time
    return seconds


def count_stages(lines: Iterable[str]) -> Counter[str]:
    """Samples by stage; a line is ``outer (file:line);inner (file:line) count``.

    >>> count_stages(["thread (1);run (asyncio/x.py:1);feed (kvstore/wire/frames.py:2);f (x) 3"])
    Counter({'frames': 3})
    """
    counts: Counter[str] = Counter()
    for line in lines:
        stack, _, count = line.rpartition(" ")
        if not count.isdigit():  # a frame read while it changed: nobody is stopped for a sample
            continue
        if "_run (kvstore/storage/group_commit.py" not in stack:  # of the sync thread
            counts[_stage_of(stack)] += int(count)
    return counts


def _stage_of(stack: str) -> str:
    for frame in reversed(stack.split(";")):
        for path, stage in STAGES.items():
            if f"({path}" in frame:
                return stage
    return LOOP


if __name__ == "__main__":
    stages()
