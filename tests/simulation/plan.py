"""What a seed draws: the cluster, its speed, its knobs, what clients do, and when what goes wrong.

A plan is data, drawn whole before anything runs, so that parts of it can be left out: that is how a
failing seed is made small (`tests.simulation.shrink`). Whatever is drawn while it runs comes from a
generator of its own for each part (`rng_of`), so that what is left out changes nothing else.

Each seed has only some kinds of faults and operations (*swarm testing*, Groce et al., ISSTA 2012: a
run with every fault hides what a run with few would show), and turns knobs of the production code
to sizes at which its rarer paths are taken (FoundationDB's "buggify").
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from random import Random
from typing import NamedTuple

KINDS = (
    *("put", "get", "get", "incr", "delete", "cas", "absent", "ttl"),
    *("touch", "batch", "many", "scan", "bulk"),
)
PROCESS_FAULTS = ("kill", "power", "blackout", "pause", "stop")
NETWORK_FAULTS = ("cut", "bridge", "break", "slow")
CLOCK_FAULTS = ("jump",)
DISK_FAULTS = ("wipe", "syncfail", "rot", "full", "slowdisk")
MEMBER_FAULTS = ("join", "leave", "weigh", "replicate", "pace")
FAULTS = PROCESS_FAULTS + NETWORK_FAULTS + CLOCK_FAULTS + DISK_FAULTS + MEMBER_FAULTS
LATER_FAULTS = (("later", ("writefail", "duel")), ("latest", ("doubt",)))
"""Drawn by generators of their own, so that older seeds are what they were but for these."""

LATER_SHARE = 0.15
LATER_FAULTS_A_ROUND = 1.0

BUSY_SECONDS = 1.0
BUSY_SHARE = 0.8
"""How many of the faults of a round come within so long of its beginning."""


class Fault(NamedTuple):
    """Something goes wrong, or an operator acts."""

    at: float
    """Seconds of chaos before it."""
    kind: str
    number: int
    """Names its generator (`rng_of`)."""


class Knobs(NamedTuple):
    """Sizes of the production code, small enough to be reached (`tests.simulation.knobs`)."""

    slow: int
    """Timers of ticks and of the failure detector take so many times as long."""
    log_entries: int
    log_step: int
    chunk_rows: int
    """Of a page of a whole copy."""
    retried: int
    """Retries after which a primary takes a new ballot (R5)."""
    scrub_bytes_per_s: int


@dataclass(frozen=True)
class Plan:
    """What a seed drew; printed with a failure, so that a person sees what kind of run it was."""

    nodes: int
    delay_seconds: float
    slow_chance: float
    sync_seconds: float
    slow_sync_chance: float
    skew_seconds: float
    """Between any two wall clocks, at most."""
    callers: int
    customers: int
    observers: int
    round_seconds: float
    """Everyone works at the beginning of a round, when most faults come, and rests then."""
    burst_operations: int
    """Operations in a row, on average, before a customer rests."""
    pause_seconds: float
    timeout_seconds: float
    """Of a client's call: short ones leave outcomes open."""
    keys: int
    kinds: tuple[str, ...]
    chaos_seconds: float
    balanced: bool
    """Clients ask any node, as behind a load balancer."""
    knobs: Knobs
    faults: tuple[Fault, ...]

    def __str__(self) -> str:
        parts = [f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if f.name != "faults"]
        kinds = sorted({fault.kind for fault in self.faults})
        return f"{len(self.faults)} faults ({' '.join(kinds)}), {', '.join(parts)}"


def rng_of(seed: int, *part: object) -> Random:
    """The generator of one part of a world."""
    return Random(f"{seed} {' '.join(map(str, part))}")


def draw_plan(seed: int) -> Plan:
    """The swarm."""
    rng = rng_of(seed, "plan")
    kinds = tuple(kind for kind in KINDS if rng.random() < 0.6) or ("put", "get")
    share = rng.choice((0.15, 0.4))
    allowed = tuple(fault for fault in FAULTS if rng.random() < share) or ("kill",)
    chaos_seconds = rng.choice((15.0, 30.0, 60.0))
    round_seconds = rng.choice((3.0, 6.0, 12.0))
    faults_a_round = rng.choice((0.7, 2.0, 4.0))
    customers = rng.choice((1, 1, 2, 4))
    callers = rng.choice((1, 2, 3))
    operations = rng.choice((30, 80, 160))
    later = {name: rng_of(seed, name) for name, _ in LATER_FAULTS}
    burst = operations * round_seconds / (chaos_seconds * customers * callers)
    return Plan(
        nodes=rng.choice((3, 3, 3, 4, 5)),
        delay_seconds=rng.choice((0.0001, 0.0005, 0.003)),
        slow_chance=rng.choice((0.0, 0.01, 0.05)),
        sync_seconds=rng.choice((0.0002, 0.001, 0.005)),
        slow_sync_chance=rng.choice((0.0, 0.02)),
        skew_seconds=rng.choice((2.0, 2.0, 7_200.0)),
        callers=callers,
        customers=customers,
        observers=rng.choice((0, 0, 1)),
        round_seconds=round_seconds,
        burst_operations=max(2, round(burst)),
        pause_seconds=rng.choice((0.001, 0.01, 0.1)),
        timeout_seconds=rng.choice((0.2, 1.0, 5.0)),
        keys=rng.choice((1, 2, 4)),
        kinds=kinds,
        chaos_seconds=chaos_seconds,
        balanced=later["later"].random() < 0.2,
        knobs=_draw_knobs(rng, allowed),
        faults=_with_later(
            _draw_faults(rng, allowed, chaos_seconds, round_seconds, faults_a_round),
            later,
            chaos_seconds,
            round_seconds,
        ),
    )


def _draw_knobs(rng: Random, allowed: tuple[str, ...]) -> Knobs:
    log_entries, log_step = rng.choice(((3, 1), (8, 4), (64, 16), (256, 64)))
    return Knobs(
        slow=rng.choice((1, 2, 4, 4)),
        log_entries=log_entries,
        log_step=log_step,
        chunk_rows=rng.choice((1, 3, 128)),
        retried=rng.choice((2, 1_024)),
        scrub_bytes_per_s=131_072 if "rot" in allowed else 16_384,
    )


def _draw_faults(
    rng: Random,
    allowed: tuple[str, ...],
    chaos_seconds: float,
    round_seconds: float,
    faults_a_round: float,
) -> tuple[Fault, ...]:
    """Most of them while clients work, some while they rest."""
    times: list[float] = []
    for begin in range(0, int(chaos_seconds), int(round_seconds)):
        for _ in range(int(faults_a_round + rng.random())):
            busy = rng.random() < BUSY_SHARE
            times.append(begin + rng.random() * (BUSY_SECONDS if busy else round_seconds))
    return tuple(Fault(at, rng.choice(allowed), n) for n, at in enumerate(sorted(times)))


def _with_later(
    faults: tuple[Fault, ...], rngs: dict[str, Random], chaos_seconds: float, round_seconds: float
) -> tuple[Fault, ...]:
    """The same, and what was thought of later among them."""
    for name, kinds in LATER_FAULTS:
        rng = rngs[name]
        allowed = tuple(fault for fault in kinds if rng.random() < LATER_SHARE)
        if allowed:
            more = _draw_faults(rng, allowed, chaos_seconds, round_seconds, LATER_FAULTS_A_ROUND)
            numbered = [fault._replace(number=len(faults) + n) for n, fault in enumerate(more)]
            faults = tuple(sorted((*faults, *numbered)))
    return faults
