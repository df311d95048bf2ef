"""`make simulate SEEDS=0:1000`: run seeds, say what broke and how to see it again.

The ratio of simulated to real time is virtual seconds over processor seconds of one process: all
that a seed costs, its checks included. Two processes on two cores do twice as much in an hour.
"""

from __future__ import annotations

import gc
import logging
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tests.simulation.shrink import Shrinker, run, story

RUN_SEEDS = 10
"""In one task of a worker."""


class Summary(NamedTuple):
    """What a seed came to."""

    seed: int
    fault: str
    virtual_seconds: float
    processor_seconds: float
    operations: int
    answered: int
    faults: int
    losses: int
    serving_seconds: float
    equal_seconds: float


def run_seed(seed: int) -> Summary:
    """One seed, its violation included."""
    began = time.process_time()
    world, fault = run(seed)
    events = world.history.events
    answered = sum(event.ended is not None for event in events)
    return Summary(
        seed,
        f"{fault}\n{world.plan}" if fault else "",
        world.universe.now,
        time.process_time() - began,
        len(events),
        answered,
        world.chaos.count,
        world.chaos.losses,
        world.serving_seconds,
        world.equal_seconds,
    )


def run_seeds(seeds: range) -> list[Summary]:
    """Several, in a worker."""
    quiet()
    summaries = [run_seed(seed) for seed in seeds]
    gc.collect()
    return summaries


def quiet() -> None:
    """Nodes that are killed by the hundred have much to say, and leave cycles behind."""
    logging.getLogger("kvstore").setLevel(logging.CRITICAL)
    gc.set_threshold(200_000, 20, 100)


def parse_seeds(text: str) -> range:
    """``7`` or ``0:1000``."""
    first, _, end = text.partition(":")
    return range(int(first), int(end) if end else int(first) + 1)


@click.command()
@click.argument("seeds", default="0:100")
@click.option("--jobs", default=2, show_default=True, help="Worker processes.")
@click.option("--shrink", is_flag=True, help="One seed: leave out what can be.")
@click.option("--log", type=click.Path(path_type=Path), help="One seed: write all that happened.")
def main(seeds: str, jobs: int, shrink: bool, log: Path | None) -> None:
    """Simulate whole clusters from SEEDS (``7`` or ``0:1000``) and check every promise."""
    wanted = parse_seeds(seeds)
    if len(wanted) == 1:
        sys.exit(_show(wanted[0], shrink=shrink, log=log))
    began = time.perf_counter()
    summaries = _walk(wanted, jobs)
    bad = sorted(s for s in summaries if s.fault)
    for summary in bad:
        click.echo(f"\nseed {summary.seed}: {summary.fault}", err=True)
        log_name = f"seed-{summary.seed}.txt"
        click.echo(f"see it: make simulate SEEDS={summary.seed} SHRINK=1 LOG={log_name}", err=True)
    click.echo(_total(summaries, time.perf_counter() - began))
    sys.exit(bool(bad))


def _show(seed: int, *, shrink: bool, log: Path | None) -> int:
    """One seed, with its story."""
    quiet()
    world, fault = run(seed, logging=True)
    if fault and shrink:
        shrinker = Shrinker(seed, fault, world.plan)
        plan = shrinker.shrink()
        click.echo(
            f"after {shrinker.runs} runs: {len(plan.faults)} of {len(world.plan.faults)} faults, "
            f"{plan.chaos_seconds:.1f} of {world.plan.chaos_seconds:.1f} s"
        )
        world, fault = run(seed, plan, logging=True)
    if log is not None:
        log.write_text("\n".join(story(world, fault)) + "\n")
    click.echo(f"trace {world.universe.trace}")
    click.echo(f"seed {seed}: {fault or 'every promise was kept'}")
    return bool(fault)


def _total(summaries: list[Summary], seconds: float) -> str:
    bad = sum(bool(s.fault) for s in summaries)
    virtual = sum(s.virtual_seconds for s in summaries)
    processor = sum(s.processor_seconds for s in summaries)
    return (
        f"{len(summaries):,} seeds, {bad} violations; {sum(s.faults for s in summaries):,} faults, "
        f"{sum(s.losses for s in summaries):,} disks lost or rotten; "
        f"{sum(s.operations for s in summaries):,} operations, "
        f"{sum(s.answered for s in summaries):,} answered; healed: served within "
        f"{max(s.serving_seconds for s in summaries):.1f} s, equal within "
        f"{max(s.equal_seconds for s in summaries):.1f} s; {virtual:,.0f} s simulated by "
        f"{processor:,.0f} s of processor ({virtual / processor:.0f} x) in {seconds:,.0f} s"
    )


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
                    progress.console.print(f"seed {summary.seed}: {summary.fault[:200]}")
    return summaries


if __name__ == "__main__":
    main()
