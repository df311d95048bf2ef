"""The judgement on a real run: the checker of the simulation, and what clients got out of it.

An operation is *while a fault is on* if its time and that of a fault have a moment in common; a
fault lasts until whatever it hit serves again. What was neither answered nor refused is *unknown*.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tests.nemesis.ledger import Row, read_rows
from tests.simulation.checkers import Batch, Checker, Put, Undecided, groups_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

FAULTS_SHOWN: Final = 3


class Span(NamedTuple):
    """A fault: nanoseconds on the steady clock."""

    kind: str
    nodes: str
    begin: int
    end: int


@dataclass
class Tally:
    """Operations by how they ended."""

    answered: int = 0
    refused: int = 0
    unknown: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.answered + self.refused + self.unknown

    def add(self, row: Row) -> None:
        """One operation more."""
        if row.event.refused:
            self.refused += 1
        elif row.event.ended is None:
            self.unknown += 1
        else:
            self.answered += 1

    def merge(self, other: Tally) -> None:
        """What another counted."""
        self.answered += other.answered
        self.refused += other.refused
        self.unknown += other.unknown


@dataclass
class Verdict:
    """On some operations or on all."""

    hurt: Tally = field(default_factory=Tally)
    """While a fault was on."""
    calm: Tally = field(default_factory=Tally)
    written_bytes: int = 0
    """Of acknowledged values."""
    groups: int = 0
    violations: list[str] = field(default_factory=list)
    undecided: list[str] = field(default_factory=list)

    def merge(self, other: Verdict) -> None:
        """What was found elsewhere."""
        self.hurt.merge(other.hurt)
        self.calm.merge(other.calm)
        self.written_bytes += other.written_bytes
        self.groups += other.groups
        self.violations += other.violations
        self.undecided += other.undecided


class Times:
    """When anything was wrong, as stretches that do not touch."""

    def __init__(self, spans: Iterable[Span]) -> None:
        self._begins: list[int] = []
        self._ends: list[int] = []
        for begin, end in sorted((span.begin, span.end) for span in spans):
            if self._ends and begin <= self._ends[-1]:
                self._ends[-1] = max(end, self._ends[-1])
            else:
                self._begins.append(begin)
                self._ends.append(end)

    def touch(self, begin: int, end: int) -> bool:
        """Whether anything was wrong between two moments."""
        at = bisect_right(self._begins, end) - 1
        return at >= 0 and self._ends[at] >= begin

    @property
    def seconds(self) -> float:
        """All of it."""
        return sum(self._ends) / 1e9 - sum(self._begins) / 1e9


def judge_chunk(directory: Path, chunk: int, spans: Sequence[Span], skew: float) -> Verdict:
    """Everything about the keys of one stretch of time."""
    times, verdict = Times(spans), Verdict()
    events = []
    for row in read_rows(directory, [chunk]):
        events.append(row.event)
        if row.event.client != LOOK:
            is_hurt = times.touch(row.event.began, row.told)
            (verdict.hurt if is_hurt else verdict.calm).add(row)
            verdict.written_bytes += bytes_of(row)
    checker = Checker(skew=skew)
    for group in groups_of(events):
        verdict.groups += 1
        try:
            if not checker.is_linearizable(group):
                ordered = sorted(group, key=lambda event: event.began)
                verdict.violations.append("no order explains:\n" + "\n".join(map(str, ordered)))
        except Undecided as error:
            verdict.undecided.append(str(error))
    return verdict


LOOK: Final = "look"
"""The client of the last look, which is no part of the load."""


def bytes_of(row: Row) -> int:
    """What an acknowledged write stored."""
    if row.event.ended is None:
        return 0
    match row.event.action:
        case Put(value):
            return size_of(value)
        case Batch(writes):
            return sum(size_of(w.value) for _, w in writes if isinstance(w, Put))
        case _:
            return 0


def size_of(value: Any) -> int:
    """Of a text."""
    return len(value) if isinstance(value, str) else 8
