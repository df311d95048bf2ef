"""Where an operation's processor time goes, stage by stage: `make bench-stages`.

py-spy (`pip install py-spy`) samples the stacks of all nodes from outside while a phase of the
benchmark runs, so the nodes are those that users run. A sample belongs to the innermost frame of
our own code, that is, to whoever called the C code that was at work; samples of the sync thread are
a stage of their own. The shares are applied to the processor time that the kernel counted for the
nodes in the same seconds, which needs no sampling.
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
from rich.console import Console

from scripts.bench import running
from scripts.bench_figures import Meter, columns
from scripts.bench_phases import PHASES, Target

if TYPE_CHECKING:
    from collections.abc import Iterable

SAMPLES_PER_SECOND: Final = 250
START_UP_S: Final = 1.0
"""What py-spy needs to read a process; the phase begins before it and ends after it."""

SYNC: Final = "sync thread"
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
order of a tick, frames to peers. sync thread: fsync. event loop: all that is not ours."""


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
def stages(seconds: int, names: tuple[str, ...]) -> None:
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
    click.echo(columns(lines))
    click.echo(LEGEND)


def _spent(
    spy: str, name: str, target: Target, pids: list[int], seconds: int, directory: Path
) -> dict[str, float]:
    """Microseconds of each stage for one operation."""
    files = [directory / f"{pid}.stacks" for pid in pids]
    spies = [
        subprocess.Popen(
            [
                *(spy, "record", "--pid", str(pid), "--format", "raw", "--output", str(file)),
                *("--rate", str(SAMPLES_PER_SECOND), "--duration", str(seconds), "--threads"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for pid, file in zip(pids, files, strict=True)
    ]
    meter = Meter(pids)
    row = meter.row(name, PHASES[name](target, seconds + START_UP_S))
    counts: Counter[str] = Counter()
    for process, file in zip(spies, files, strict=True):
        _, said = process.communicate()
        if process.returncode:
            raise click.ClickException(f"py-spy failed: {said.strip()}")
        counts += count_stages(file.read_text().splitlines())
    used_us = sum(row.nodes_cpu_us)
    return {stage: used_us * count / counts.total() for stage, count in counts.items()}


def count_stages(lines: Iterable[str]) -> Counter[str]:
    """Samples by stage; a line is ``outer (file:line);inner (file:line) count``.

    >>> count_stages(["thread (1);run (asyncio/x.py:1);feed (kvstore/wire/frames.py:2);f (x) 3"])
    Counter({'frames': 3})
    """
    counts: Counter[str] = Counter()
    for line in lines:
        stack, _, count = line.rpartition(" ")
        counts[_stage_of(stack)] += int(count)
    return counts


def _stage_of(stack: str) -> str:
    if "_run (kvstore/storage/group_commit.py" in stack:
        return SYNC
    for frame in reversed(stack.split(";")):
        for path, stage in STAGES.items():
            if f"({path}" in frame:
                return stage
    return LOOP


if __name__ == "__main__":
    stages()
