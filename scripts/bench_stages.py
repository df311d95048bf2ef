"""Where an operation's processor time goes, stage by stage: `make bench-stages`.

py-spy (`pip install py-spy`) samples the stacks of all nodes from outside while a phase of the
benchmark runs, so the nodes are those that users run. A sample belongs to the innermost frame of
our own code, that is, to whoever called the C code that was at work. Only the loop's thread is
shared out like that: how much processor time each thread uses is what the kernel counted in a run
of the same phase without py-spy, which costs a little itself.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import psutil
from rich.console import Console

from scripts.bench import filled, running
from scripts.bench_figures import columns
from scripts.bench_phases import PHASES, Target

if TYPE_CHECKING:
    from collections.abc import Iterable

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

LEGEND: Final = """
Microseconds of processor time for one operation (one key), all nodes together. frames: sockets,
decoding, encoding. door: checks. router: who leads the slot, gathering answers. core: rules of the
protocol, records and key log. storage: the batch into RocksDB, reads from it. tick and links: the
order of a tick, frames to peers. sync thread: fsync. compaction: RocksDB's own threads. event loop:
uvloop, and samples that belong to nobody."""


@click.command()
@click.option("--seconds", type=click.IntRange(min=1), default=5, show_default=True)
@click.option(
    "--only",
    "names",
    type=click.Choice(list(PHASES)),
    metavar="NAME",
    multiple=True,
    default=("put", "put_many-100", "get", "get_many-100"),
    show_default=True,
)
@click.option(
    "--page",
    type=click.Path(dir_okay=False, exists=True, path_type=Path),
    help="Put what is printed into this page, between the lines that mark the place.",
)
def stages(seconds: int, names: tuple[str, ...], page: Path | None) -> None:
    """Sample a cluster of three nodes under load and print its time by stage."""
    spy = shutil.which("py-spy") or shutil.which("py-spy", path=str(Path(sys.executable).parent))
    if spy is None:
        raise click.ClickException("there is no py-spy here: pip install py-spy")
    spent: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="ringkv-stages-") as made:
        directory = Path(made)
        with running(directory, 100_000, "disk", Console(stderr=True)) as (target, pids, status):
            for name in names:
                status.update(name)
                spent[name] = _spent(spy, name, target, pids, seconds, directory)
    order = sorted(
        {s for by in spent.values() for s in by}, key=lambda s: -spent[names[0]].get(s, 0)
    )
    lines = [["STAGE", *(name.upper() for name in names)]]
    lines += [[s, *(f"{spent[name].get(s, 0.0):,.1f}" for name in names)] for s in order]
    lines.append(["all", *(f"{sum(spent[name].values()):,.1f}" for name in names)])
    said = f"{columns(lines)}\n{LEGEND}"
    click.echo(said)
    if page is not None:
        page.write_text(filled(page.read_text(), "stages", said))


def _spent(
    spy: str, name: str, target: Target, pids: list[int], seconds: int, directory: Path
) -> dict[str, float]:
    """Microseconds of each stage for one operation."""
    before = thread_seconds(pids)
    timing = PHASES[name](target, seconds)
    after = thread_seconds(pids)
    used_us = {kind: 1e6 * (after[kind] - before[kind]) / timing.operations for kind in after}
    files = [directory / f"{pid}.stacks" for pid in pids]
    spies = [
        subprocess.Popen(
            [
                *(spy, "record", "--pid", str(pid), "--format", "raw", "--output", str(file)),
                *("--rate", str(SAMPLES_PER_SECOND), "--duration", str(seconds), "--nonblocking"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for pid, file in zip(pids, files, strict=True)
    ]
    PHASES[name](target, seconds + START_UP_S)
    counts: Counter[str] = Counter()
    for process, file in zip(spies, files, strict=True):
        _, said = process.communicate()
        if process.returncode:
            raise click.ClickException(f"py-spy failed: {said.strip()}")
        counts += count_stages(file.read_text().splitlines())
    on_loop_us = used_us.pop(LOOP)
    shares = {stage: on_loop_us * count / counts.total() for stage, count in counts.items()}
    return used_us | shares


def thread_seconds(pids: list[int]) -> dict[str, float]:
    """The processor time of the nodes' threads: the loop's, the sync thread, those of RocksDB."""
    used = dict.fromkeys((LOOP, SYNC, COMPACTION), 0.0)
    for pid in pids:
        for thread in psutil.Process(pid).threads():
            name = Path(f"/proc/{pid}/task/{thread.id}/comm").read_text()
            kind = LOOP if thread.id == pid else COMPACTION if "rocksdb" in name else SYNC
            used[kind] += thread.user_time + thread.system_time
    return used


def count_stages(lines: Iterable[str]) -> Counter[str]:
    """Samples by stage; a line is ``outer (file:line);inner (file:line) count``.

    >>> count_stages(["thread (1);run (asyncio/x.py:1);feed (kvstore/wire/frames.py:2);f (x) 3"])
    Counter({'frames': 3})
    """
    counts: Counter[str] = Counter()
    for line in lines:
        stack, _, count = line.rpartition(" ")
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
