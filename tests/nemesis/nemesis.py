"""`make nemesis`: real processes under real faults, judged by the checkers of the simulation.

Five nodes, sixty clients of three kinds that use all operations, watches of everything, and faults
drawn from a seed (`tests.nemesis.faults`). After the last fault everything must serve again and all
replicas must be equal, within the bounds below; then each key is read once more, and the history
of all clients must be linearizable key by key: lost, doubled or revived writes have no order.
A seed draws the same faults and operations again; how they meet is up to the machine.

Whatever is found, the histories and logs are kept, and where they are is said.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import pickle
import shutil
import signal
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty
from random import Random
from typing import TYPE_CHECKING, Any, Final

import click

import kvstore
from kvstore.errors import KVError, PartialFailure, Unavailable
from scripts.bench import STOP_SIGNALS, leave
from scripts.failover_load import one_key_per_slot
from tests.nemesis.arena import POLL_SECONDS, SLOT_COUNT, Arena
from tests.nemesis.bent import NOTHING, PLANTED
from tests.nemesis.customers import Errand, look, run_process
from tests.nemesis.faults import HEAVY, LIGHT, SKEW_MS_MAX, Nemesis
from tests.nemesis.judge import LOOK, Times, Verdict, judge_chunk
from tests.nemesis.ledger import Files, Ledger, chunks_in, read_rows
from tests.nemesis.watchers import HEAR_SECONDS, Watching, run_watchers
from tests.simulation.checkers import Get
from tests.simulation.workload import TTL_SECONDS

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

    from tests.nemesis.judge import Span

KINDS: Final = ("async", "sync", "http")
OBSERVERS: Final = 2
SERVING_SECONDS: Final = 10.0
EQUAL_SECONDS: Final = 60.0
"""After the last fault; the aims."""

PATIENCE: Final = 6
"""So many times as long it is waited, to tell late from never."""

END_SECONDS: Final = 180.0
ANSWERED_SHARE_MIN: Final = 0.30
UNKNOWN_SHARE_MAX: Final = 0.001
LOOK_KEYS: Final = 500
SKEW_SECONDS: Final = 2 * SKEW_MS_MAX / 1_000 + 0.1
SHOWN: Final = 5


@dataclass
class Outcome:
    """All that a run came to."""

    verdict: Verdict = field(default_factory=Verdict)
    spans: list[Span] = field(default_factory=list)
    seconds: float = 0.0
    serving_seconds: float = 0.0
    equal_seconds: float = 0.0
    resets: int = 0
    violations: list[str] = field(default_factory=list)
    """Everything but the order of operations, which is in the verdict."""

    def lines(self) -> list[str]:
        """The summary."""
        hurt, calm = self.verdict.hurt, self.verdict.calm
        total, times = hurt.total + calm.total, Times(self.spans)
        kinds = sorted({span.kind for span in self.spans})
        counts = ", ".join(f"{sum(s.kind == k for s in self.spans)} {k}" for k in kinds)
        rate = self.verdict.written_bytes / max(self.seconds, 1e-9)
        found = len(self.violations) + len(self.verdict.violations)
        ok, open_ = hurt.answered / max(hurt.total, 1), calm.unknown / max(calm.total, 1)
        return [
            f"operations           {total:,} in {self.seconds:,.0f} s, {rate / 1_024:,.0f} KiB/s "
            "of values acknowledged",
            f"faults               {len(self.spans)}, on for {times.seconds:,.0f} s: {counts}",
            f"while faults are on  {hurt.total:,} operations: {ok:.1%} answered (aim 30 %), "
            f"{hurt.refused:,} refused, {hurt.unknown:,} unknown",
            f"outside of faults    {calm.total:,} operations: {open_:.3%} unknown (aim 0.1 %), "
            f"{calm.refused:,} refused",
            f"after the last fault served after {self.serving_seconds:.1f} s (aim 10), replicas "
            f"equal after {self.equal_seconds:.1f} s (aim 60)",
            f"checked              {self.verdict.groups:,} groups of keys, "
            f"{len(self.verdict.undecided)} undecided; watches were reset in {self.resets} slots",
            f"violations           {found}",
        ]

    @property
    def is_good(self) -> bool:
        """Whether every promise was kept; the shares are figures, not promises."""
        return not self.violations and not self.verdict.violations


class Crowd:
    """The processes of clients and observers."""

    def __init__(self, arena: Arena, directory: Path, plan: Plan) -> None:
        context = multiprocessing.get_context("spawn")
        self._stop, self._judge = context.Event(), context.Event()
        self._totals = [context.Value("q", 0) for _ in KINDS]
        self._mishaps, self._told = context.Queue(), context.Queue()
        url, addresses = arena.cluster.url, arena.http_addresses
        self._clients: list[SpawnProcess] = []
        for kind, total in zip(KINDS, self._totals, strict=True):
            errand = Errand(
                kind, url, addresses, plan.clients, plan.seed, directory, plan.pause_seconds
            )
            arguments = (errand, self._stop, total, self._mishaps)
            self._clients.append(context.Process(target=run_process, args=arguments, daemon=True))
        self.watching = Watching(url, OBSERVERS, SLOT_COUNT, plan.seed, directory)
        watch = (self.watching, self._judge, self._told)
        self._watchers = context.Process(target=run_watchers, args=watch, daemon=True)

    def start(self) -> None:
        """All of them; returns when each kind is at work.

        Raises:
            Unavailable: they are not.
        """
        for process in [self._watchers, *self._clients]:
            process.start()
        deadline = time.monotonic() + END_SECONDS
        while not all(total.value for total in self._totals):
            if time.monotonic() > deadline:
                raise Unavailable(f"not all clients have begun after {END_SECONDS:g} s")
            time.sleep(POLL_SECONDS)

    @property
    def operations(self) -> int:
        """So far."""
        return sum(total.value for total in self._totals)

    def stop_clients(self) -> list[str]:
        """Let them finish; returns what no client should have seen."""
        self._stop.set()
        found = []
        deadline = time.monotonic() + END_SECONDS
        while any(p.is_alive() for p in self._clients) and time.monotonic() < deadline:
            with suppress(Empty):
                found.append(f"a client saw: {self._mishaps.get(timeout=POLL_SECONDS)}")
        with suppress(Empty):
            while True:
                found.append(f"a client saw: {self._mishaps.get(timeout=POLL_SECONDS)}")
        for process, kind in zip(self._clients, KINDS, strict=True):
            if process.is_alive() or process.exitcode:
                found.append(f"the {kind} clients do not end (status {process.exitcode})")
        return found

    def ask_watchers(self, state: dict[str, Any]) -> tuple[list[str], int]:
        """What watches missed, and how many slots were reset in them."""
        self.watching.state_file.write_bytes(pickle.dumps(state))
        self._judge.set()
        try:
            faults, resets = self._told.get(timeout=2 * HEAR_SECONDS + END_SECONDS)
        except Empty:
            return ["the process of the watches does not end"], 0
        return [f"watch: {fault}" for fault in faults], resets

    def kill(self) -> None:
        """End what is left, by its id."""
        for process in [self._watchers, *self._clients]:
            if process.is_alive():
                process.kill()


@dataclass(frozen=True)
class Plan:
    """What was asked for."""

    seconds: float | None
    operations: int | None
    seed: int
    kinds: list[str]
    clients: int
    pause_seconds: float
    plant: str
    with_proxies: bool


def run(plan: Plan, directory: Path) -> Outcome:
    """One run in an empty directory."""
    histories = directory / "histories"
    histories.mkdir()
    outcome = Outcome()
    with Arena(directory, plan.plant, with_proxies=plan.with_proxies) as arena:
        crowd = Crowd(arena, histories, plan)
        nemesis = Nemesis(arena, Random(f"nemesis {plan.seed}"), plan.kinds, say)
        say(f"faults: {' '.join(nemesis.kinds)}")
        try:
            crowd.start()
            began = time.monotonic()
            nemesis.start()
            try:
                _wait(plan, crowd, nemesis, began)
            finally:
                nemesis.stop()
            _heal(arena, outcome)
            outcome.seconds = time.monotonic() - began
            outcome.violations += nemesis.troubles + crowd.stop_clients()
            outcome.spans = nemesis.spans
            healed = time.monotonic()
            wrong = arena.wait_for(arena.difference, PATIENCE * EQUAL_SECONDS)
            outcome.equal_seconds = time.monotonic() - healed + outcome.serving_seconds
            if wrong:
                outcome.violations.append(f"replicas differ: {wrong}")
            outcome.violations += _compare(arena)
            time.sleep(2 * TTL_SECONDS)
            state = asyncio.run(last_look(arena.cluster.url, histories))
            faults, outcome.resets = crowd.ask_watchers(state)
            outcome.violations += faults
        except KVError as error:
            outcome.violations.append(f"{type(error).__name__}: {error}")
        finally:
            crowd.kill()
    say("judging")
    _judge(histories, outcome)
    return outcome


def _wait(plan: Plan, crowd: Crowd, nemesis: Nemesis, began: float) -> None:
    """Until enough was done, or something is broken."""
    said = began
    while not nemesis.is_over:
        time.sleep(POLL_SECONDS)
        now, done = time.monotonic(), crowd.operations
        if now - said > 10.0:
            said = now
            say(f"{done:,} operations, {done / (now - began):,.0f}/s")
        if plan.seconds is not None and now - began >= plan.seconds:
            return
        if plan.operations is not None and done >= plan.operations:
            return


def _heal(arena: Arena, outcome: Outcome) -> None:
    """Every slot must take a write again, while all clients go on."""
    say("no more faults")
    begin = time.monotonic()
    waiting: list[Any] = list(one_key_per_slot(SLOT_COUNT, "nothing/"))
    told = ""
    with kvstore.connect(arena.cluster.url, timeout=2.0) as client:
        while waiting and time.monotonic() - begin < PATIENCE * SERVING_SECONDS:
            try:
                client.delete_many(waiting)
                waiting = []
            except PartialFailure as failure:
                waiting, told = list(failure.errors), str(failure)
            except KVError as error:
                told = str(error)
    if waiting:
        outcome.violations.append(f"{len(waiting)} slots do not serve: {told}")
    outcome.serving_seconds = time.monotonic() - begin


async def last_look(url: str, histories: Path) -> dict[str, Any]:
    """Read every key that was ever asked for, and write the reads into the histories."""
    files, ledger = Files(histories, LOOK), Ledger()
    state: dict[str, Any] = {}
    for chunk in chunks_in(histories):
        keys = sorted({key for row in read_rows(histories, [chunk]) for key in row.event.keys})
        for at in range(0, len(keys), LOOK_KEYS):
            some = keys[at : at + LOOK_KEYS]
            begun = [ledger.begin(LOOK, key, Get()) for key in some]
            found = await look(url, some, END_SECONDS)
            for event in begun:
                ledger.end(event, (found[event.key], None) if event.key in found else None)
            state |= found
            files.write(ledger.take())
    files.close()
    return state


def _compare(arena: Arena) -> list[str]:
    """Let the nodes compare all copies by their digests (rule 18): none may differ now."""
    say("comparing copies")
    before = arena.scrubs()
    wrong = arena.wait_for(lambda: arena.uncompared(before), PATIENCE * EQUAL_SECONDS)
    if wrong:
        return [wrong]
    after = arena.scrubs()
    return [
        f"{name} found copies that differ: {found - before[name][1]}"
        for name, (_, found) in after.items()
        if found > before[name][1]
    ]


def _judge(histories: Path, outcome: Outcome) -> None:
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        judging = [
            pool.submit(judge_chunk, histories, chunk, outcome.spans, SKEW_SECONDS)
            for chunk in chunks_in(histories)
        ]
        for judged in judging:
            outcome.verdict.merge(judged.result())


def say(text: str) -> None:
    """A line of what happens."""
    click.echo(f"{time.strftime('%H:%M:%S')}  {text}", err=True)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--seconds", type=float, help="How long.  [default: 60, without --operations]")
@click.option("--operations", type=int, help="How many operations at least.")
@click.option("--seed", default=1, show_default=True)
@click.option("--faults", help="Only these, with commas between them.  [default: all]")
@click.option("--clients", default=20, show_default=True, help="Of each of the three kinds.")
@click.option("--pause", default=0.0, show_default=True, help="Seconds between two operations.")
@click.option("--plant", type=click.Choice([NOTHING, *PLANTED]), default=NOTHING, help="A bug.")
@click.option(
    "--dir",
    "parent",
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    help="Where the data and histories are kept.  [default: where the system has its own]",
)
@click.option("--proxies", is_flag=True, help="Even where namespaces can be made.")
@click.option("--keep", is_flag=True, help="Keep histories and logs of a good run too.")
def main(
    seconds: float | None,
    operations: int | None,
    seed: int,
    faults: str | None,
    clients: int,
    pause: float,
    plant: str,
    parent: Path | None,
    proxies: bool,
    keep: bool,
) -> None:
    """Hurt a real cluster under load and check every promise."""
    kinds = faults.split(",") if faults is not None else [*LIGHT, *HEAVY]
    for kind in kinds:
        if kind and kind not in (*LIGHT, *HEAVY):
            raise click.BadParameter(f"{kind!r} is none of {', '.join((*LIGHT, *HEAVY))}")
    for number in STOP_SIGNALS:
        signal.signal(number, leave)
    if seconds is None and operations is None:
        seconds = 60.0
    plan = Plan(seconds, operations, seed, kinds, clients, pause, plant, proxies)
    directory = Path(tempfile.mkdtemp(prefix="ringkv-nemesis-", dir=parent))
    is_good = False
    try:
        outcome = run(plan, directory)
        is_good = outcome.is_good
    finally:
        if is_good and not keep:
            shutil.rmtree(directory)
        else:
            click.echo(f"histories and logs are in {directory}", err=True)
    for violation in [*outcome.violations, *outcome.verdict.violations][:SHOWN]:
        click.echo(f"\nVIOLATION {violation}")
    for undecided in outcome.verdict.undecided[:SHOWN]:
        click.echo(f"undecided: {undecided}")
    click.echo("\n".join(["", f"seed {seed}", *outcome.lines()]))
    sys.exit(not is_good)


if __name__ == "__main__":
    main()
