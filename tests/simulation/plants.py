"""`make plants`: after how many seeds the simulation notices each planted bug, as a table."""

from __future__ import annotations

import gc
import sys
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import click
import pytest

from tests.simulation.planted_around import ALL
from tests.simulation.shrink import run
from tests.simulation.simulate import quiet

SEEDS_MAX = 2_000
SLIPS = ("uncaught: RecursionError", "uncaught: TypeError")
"""What a plant raises that calls itself, or is not called as what it replaces."""


class Catch(NamedTuple):
    """A bug, and the seed that shows it."""

    name: str
    what: str
    seed: int
    """The first; -1 if none does."""
    fault: str


def catch(name: str, seeds_max: int) -> Catch:
    """Plant one bug and run seeds from 0 until one notices."""
    quiet()
    (plant,) = (plant for plant in ALL if plant.__name__ == name)
    what = (plant.__doc__ or "").strip()
    with pytest.MonkeyPatch.context() as patch:
        plant(patch)
        for seed in range(seeds_max):
            _, fault = run(seed)
            assert not any(error in fault for error in SLIPS), f"{name} is planted wrong: {fault}"
            if fault:
                return Catch(name, what, seed, fault)
            if seed % 20 == 0:
                gc.collect()
    return Catch(name, what, -1, "")


@click.command()
@click.argument("names", nargs=-1)
@click.option("--jobs", default=2, show_default=True, help="Worker processes.")
@click.option("--seeds-max", default=SEEDS_MAX, show_default=True)
def main(names: tuple[str, ...], jobs: int, seeds_max: int) -> None:
    """Find each planted bug (or those NAMED), and print docs/correctness.md's table."""
    names = names or tuple(plant.__name__ for plant in ALL)
    missed = 0
    click.echo("| planted bug | what it does | seeds until it is noticed |\n| --- | --- | --- |")
    with ProcessPoolExecutor(jobs) as pool:
        for found in pool.map(catch, names, [seeds_max] * len(names)):
            missed += found.seed < 0
            seeds = f"{found.seed + 1:,}" if found.seed >= 0 else f"not within {seeds_max:,}"
            click.echo(f"| {found.name.replace('_', ' ')} | {found.what} | {seeds} |")
            click.echo(f"{found.name}: {found.fault.splitlines()[:1]}", err=True)
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
