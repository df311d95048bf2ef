"""`make fuzz INPUTS=100000`: every parser against inputs that were valid once.

For each target and block of inputs there is a generator of its own, so that ``TARGET SEED BLOCK``
shows a crash again. Besides crashes it looks for *hangs*, processor seconds on one input, and for
*bombs*: how far the memory of the process rises, whoever in it asked for that memory.
"""

from __future__ import annotations

import logging
import resource
import shutil
import signal
import sys
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Final

import click

from tests.fuzz.mutation import Mutator
from tests.fuzz.targets import SCRATCH, TARGETS

if TYPE_CHECKING:
    from types import FrameType

BLOCK: Final = 1_000
HANG_SECONDS: Final = 2.0
"""Of processor time for one input of up to 64 KiB; most take some microseconds."""

GROWTH_BYTES_MAX: Final = 192 << 20
"""What a target may add to the peak of its process: a frame of 16 MiB may become lists of objects;
a bomb would take gigabytes."""

SHOWN: Final = 3


class Hang(BaseException):
    """An input took too long; no handler of the code under test catches this."""


@dataclass
class Found:
    """What a target came to."""

    target: str
    inputs: int = 0
    seconds: float = 0.0
    slowest_ms: float = 0.0
    growth_bytes: int = 0
    faults: list[str] = field(default_factory=list)


def run_target(target: str, inputs: int, seed: int, first_block: int = 0) -> Found:
    """All inputs of one target."""
    found, run = Found(target), TARGETS[target]
    signal.signal(signal.SIGPROF, _hang)
    for name in ("kvstore", "aiohttp"):  # they would tell each refusal
        logging.getLogger(name).setLevel(logging.CRITICAL)
    run_block(found, target, min(BLOCK, inputs), seed, -1)  # what everybody needs once is there
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    for block in range(first_block, first_block + -(-inputs // BLOCK)):
        left = min(BLOCK, inputs - (block - first_block) * BLOCK)
        run_block(found, target, left, seed, block)
        found.inputs += left
        growth = 1_024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        if growth > GROWTH_BYTES_MAX >= found.growth_bytes:
            found.faults.append(f"block {block}: memory rose by {growth:,} bytes")
        found.growth_bytes = growth
        if len(found.faults) >= SHOWN:
            break
    found.seconds = time.process_time() - began
    assert run is TARGETS[target]
    return found


def run_block(found: Found, target: str, inputs: int, seed: int, block: int) -> None:
    """Inputs of one generator."""
    mutator, run = Mutator(Random(f"{target} {seed} {block}")), TARGETS[target]
    for number in range(inputs):
        begin = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, HANG_SECONDS)
        try:
            run(mutator)
        except (Exception, Hang):
            found.faults.append(f"block {block}, input {number}:\n{traceback.format_exc()}")
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        found.slowest_ms = max(found.slowest_ms, 1_000 * (time.process_time() - begin))
        if len(found.faults) >= SHOWN:
            return


def _hang(number: int, frame: FrameType | None) -> None:
    raise Hang(f"{HANG_SECONDS:g} s of processor time on one input")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("targets", nargs=-1)
@click.option("--inputs", default=100_000, show_default=True, help="For each target.")
@click.option("--seed", default=1, show_default=True)
@click.option("--block", default=0, help="The first block of inputs, to see a crash again.")
@click.option("--jobs", default=2, show_default=True, help="Processes.")
def main(targets: tuple[str, ...], inputs: int, seed: int, block: int, jobs: int) -> None:
    """Give TARGETS (default: all) inputs that were valid once."""
    for target in targets:
        if target not in TARGETS:
            raise click.BadParameter(f"{target!r} is none of {', '.join(TARGETS)}")
    bad = 0
    click.echo(f"{'target':<16}{'inputs':>12}{'us each':>10}{'slowest ms':>12}{'memory MiB':>12}")
    with ProcessPoolExecutor(jobs, max_tasks_per_child=1) as pool:
        running = [
            pool.submit(run_target, target, inputs, seed, block) for target in targets or TARGETS
        ]
        for done in running:
            found = done.result()
            each = 1e6 * found.seconds / max(found.inputs, 1)
            memory = found.growth_bytes / (1 << 20)
            click.echo(
                f"{found.target:<16}{found.inputs:>12,}{each:>10.1f}{found.slowest_ms:>12.1f}"
                f"{memory:>12.1f}"
            )
            for fault in found.faults:
                bad += 1
                click.echo(f"  {found.target}, seed {seed}, {fault}", err=True)
    shutil.rmtree(SCRATCH, ignore_errors=True)
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
