"""When to try again, and when to leave it.

Waits follow exponential backoff with *full jitter* (Brooker, "Exponential Backoff And Jitter",
AWS 2015): uniform between nothing and a ceiling that doubles. A broken connection is retried at
once the first time, at another node, because that is what makes a failover short.

Retries of a cluster that is merely slow or full make it slower. They are paid from a *budget*
(Finagle's ``RetryBudget``): successes earn a fraction of a retry each, time earns a few a second,
and without credit a client waits for its answer or reports `Overloaded`. Nothing else needs
credit: a refused connection costs nobody anything.
"""

from __future__ import annotations

from typing import Final, Protocol

BACKOFF_SECONDS_MIN: Final = 0.004
"""About one round trip with an fsync: what a takeover needs."""

BACKOFF_SECONDS_MAX: Final = 0.4

ATTEMPT_SECONDS: Final = 0.5
"""Silence after which another node is asked; a frozen node may cost a second in all."""

ATTEMPT_SECONDS_PER_OPERATION: Final = 0.0002
"""On top, so that a large batch is not taken for silence."""

ATTEMPT_SECONDS_PER_BYTE: Final = 1e-7

ANSWER_SECONDS_MAX: Final = 0.25
ANSWER_SHARE: Final = 0.1
"""Of the time that is left, the part that is kept for the way back of an answer, and its most."""

CREDITS_MAX: Final = 200.0
CREDITS_PER_SUCCESS: Final = 0.1
CREDITS_PER_SECOND: Final = 10.0


class Chance(Protocol):
    """The part of `random.Random` that is needed."""

    def random(self) -> float:
        """Uniform in [0, 1)."""


def backoff_seconds(attempt: int, chance: Chance) -> float:
    """How long to wait before attempt number `attempt` (the second attempt is 1)."""
    ceiling = min(BACKOFF_SECONDS_MAX, BACKOFF_SECONDS_MIN * 2.0 ** min(attempt, 16))
    return ceiling * chance.random()


def attempt_seconds(attempt: int, operations: int, size_bytes: int) -> float:
    """How long one node may be silent before the next is asked; doubles with each attempt."""
    base = ATTEMPT_SECONDS * 2.0 ** min(attempt, 16)
    return base + operations * ATTEMPT_SECONDS_PER_OPERATION + size_bytes * ATTEMPT_SECONDS_PER_BYTE


def node_ms(left_seconds: float) -> int:
    """How long a node may take for a request, in milliseconds, when its caller has so long.

    A request is answered as a whole. If a slot of it has no quorum, the node waits for one until
    its time is over; then it says of each operation what became of it. That has to arrive, or all
    the others would have failed too.

    >>> node_ms(20.0), node_ms(1.0)
    (19750, 900)
    """
    kept_seconds = min(left_seconds * ANSWER_SHARE, ANSWER_SECONDS_MAX)
    return max(1, int(1_000 * (left_seconds - kept_seconds)))


class RetryBudget:
    """Credit for retries of what may be overload. Races between threads cost a credit at most."""

    def __init__(self, now: float) -> None:
        self.credits: float = CREDITS_MAX
        self._counted_at = now

    def earn(self, successes: int) -> None:
        """Operations were answered."""
        if self.credits < CREDITS_MAX:
            self.credits = min(CREDITS_MAX, self.credits + successes * CREDITS_PER_SUCCESS)

    def spend(self, now: float) -> bool:
        """Take the credit of one retry; False when there is none."""
        earned = max(0.0, now - self._counted_at) * CREDITS_PER_SECOND
        self._counted_at = now
        self.credits = min(CREDITS_MAX, self.credits + earned)
        if self.credits < 1.0:
            return False
        self.credits -= 1.0
        return True
