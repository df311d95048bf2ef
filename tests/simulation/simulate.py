"""`make simulate SEEDS=0:1000`: walk seeds, say what broke and how to see it again."""

from __future__ import annotations

import logging
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tests.simulation.checkers import Undecided
from tests.simulation.process_loop import Violation
from tests.simulation.world import World

RUN_SEEDS = 10
"""In one task of a worker."""


@dataclass(frozen=True)
class Summary:
    """What a seed came to."""

    seed: int
    fault: str
    virtual_seconds: float
    operations: int
    answered: int
    faults: int


def run_seed(seed: int, *, logging: bool = False) -> tuple[Summary, World]:
    """One seed, its violation included."""
    world = World(seed, logging=logging)
    fault = ""
    try:
        world.run()
    except (Violation, Undecided, AssertionError) as error:
        fault = f"{type(error).__name__}: {error}\n{world.plan}"
    events = world.history.events
    answered = sum(event.ended is not None for event in events)
    seconds = world.universe.now
    return Summary(seed, fault, seconds, len(events), answered, world.faults), world


def run_seeds(seeds: range) -> list[Summary]:
    """Several, in a worker."""
    quiet()
    return [run_seed(seed)[0] for seed in seeds]


def quiet() -> None:
    """Nodes that are killed by the hundred have much to say."""
    logging.getLogger("kvstore").setLevel(logging.CRITICAL)


def parse_seeds(text: str) -> range:
    """``7`` or ``0:1000``."""
    first, _, end = text.partition(":")
    return range(int(first), int(end) if end else int(first) + 1)


@click.command()
@click.argument("seeds", default="0:100")
@click.option("--jobs", default=2, show_default=True, help="Worker processes.")
@click.option("--log", type=click.Path(path_type=Path), help="One seed: write all that happened.")
def main(seeds: str, jobs: int, log: Path | None) -> None:
    """Simulate whole clusters from SEEDS (``7`` or ``0:1000``) and check every promise."""
    wanted = parse_seeds(seeds)
    began = time.perf_counter()
    if len(wanted) == 1:
        quiet()
        summary, world = run_seed(wanted[0], logging=True)
        summaries = [summary]
        if log is not None:
            lines = [*(world.universe.log or ()), "", *map(str, world.history.events)]
            log.write_text("\n".join(lines) + "\n")
        click.echo(f"trace {world.universe.trace}")
    else:
        summaries = _walk(wanted, jobs)
    seconds = time.perf_counter() - began
    bad = sorted((s for s in summaries if s.fault), key=lambda s: s.seed)
    for summary in bad:
        click.echo(f"\nseed {summary.seed}: {summary.fault}", err=True)
        again = f"make simulate SEEDS={summary.seed} LOG=seed-{summary.seed}.txt"
        click.echo(f"to see it again: {again}", err=True)
    virtual = sum(s.virtual_seconds for s in summaries)
    operations, answered = (
        sum(s.operations for s in summaries),
        sum(s.answered for s in summaries),
    )
    click.echo(
        f"{len(summaries):,} seeds, {len(bad)} violations; {sum(s.faults for s in summaries):,} "
        f"faults; {operations:,} operations, {answered:,} answered; {virtual:,.0f} s simulated in "
        f"{seconds:,.0f} s ({virtual / seconds:.0f} x)"
    )
    sys.exit(bool(bad))


def _walk(wanted: range, jobs: int) -> list[Summary]:
    summaries: list[Summary] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with (
        Progress(*columns, TimeRemainingColumn(), disable=not sys.stderr.isatty()) as progress,
        ProcessPoolExecutor(jobs) as pool,
    ):
        task = progress.add_task("seeds", total=len(wanted))
        chunks = [wanted[at : at + RUN_SEEDS] for at in range(0, len(wanted), RUN_SEEDS)]
        for done in as_completed([pool.submit(run_seeds, chunk) for chunk in chunks]):
            found = done.result()
            summaries += found
            progress.advance(task, len(found))
            for summary in found:
                if summary.fault:
                    progress.console.print(f"seed {summary.seed} failed")
    return summaries


if __name__ == "__main__":
    main()
