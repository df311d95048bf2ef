"""The arithmetic of a comparison: medians over rounds, and ratios taken within a round.

A ratio says how many times better we are: our rate over theirs, or their P99 over ours. Its spread
is the least and the most of the rounds, so a reader sees whether the difference is more than what
the machine does by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Final

from scripts.bench_loops import TASKS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from scripts.compare.rounds import Sample

OURS: Final = "ringkv"


@dataclass(frozen=True)
class Spread:
    """Of one figure over the rounds."""

    median: float
    least: float
    most: float


@dataclass(frozen=True)
class Aim:
    """What we want a ratio to be."""

    case: str
    against: str
    """An entrant, or "the best peer"."""
    times: float


BEST_PEER: Final = "the best peer"
AIMS: Final = [
    Aim("put", "redis + WAIT 1", 3.0),
    Aim("put", "redis", 1.5),
    Aim("get", "redis", 2.0),
    *(
        Aim(case, against, 5.0)
        for case in ("put_many-100", "get_many-100")
        for against in ("redis", "redis MSET/MGET")
    ),
    Aim(f"put-{TASKS}-tasks", "redis", 2.0),
    Aim(f"get-{TASKS}-tasks", "redis", 2.0),
    Aim(f"incr-one-key-{TASKS}-tasks", "redis + WAIT 1", 2.0),
    Aim("http-put", "etcd", 2.0),
    Aim("http-get", "etcd", 2.0),
    Aim("put-half-peak", BEST_PEER, 1.0),
    Aim("get-half-peak", BEST_PEER, 1.0),
]


def spread(values: Iterable[float]) -> Spread:
    """Of at least one value.

    >>> spread([3.0, 1.0, 2.0])
    Spread(median=2.0, least=1.0, most=3.0)
    """
    ordered = sorted(values)
    assert ordered
    return Spread(median(ordered), ordered[0], ordered[-1])


def ratio(ours: Sequence[Sample], theirs: Sequence[Sample], *, by_p99: bool) -> Spread | None:
    """How many times better we were, round by round; None without a round that both finished."""
    of_round = {sample.round: sample for sample in theirs}
    both = [(sample, of_round[sample.round]) for sample in ours if sample.round in of_round]
    if not both:
        return None
    if by_p99:
        return spread(their.p99_ms / our.p99_ms for our, their in both)
    return spread(our.per_second / their.per_second for our, their in both)


def aim_of(case: str, entrant: str, *, best: bool) -> float | None:
    """What the ratio against this entrant should be; ``best``: it is the best peer of the case."""
    for aim in AIMS:
        if aim.case == case and (aim.against == entrant or (best and aim.against == BEST_PEER)):
            return aim.times
    return None
