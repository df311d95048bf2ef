"""Rounds: in each, every store runs alone, one after the other, and does every case.

Only one store runs at a time, so an idle one takes nothing from the one that is measured. What else
happens on the machine changes from minute to minute; therefore a ratio is taken between two figures
of the same round, and the order of the stores changes from round to round.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from scripts.bench_figures import Meter
from scripts.compare.cases import make_load
from scripts.compare.processes import stopping

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from scripts.compare.cases import Case
    from scripts.compare.store import Entrant, Load, Store

WARM_UP_SHARE: Final = 0.2


@dataclass(frozen=True)
class Sample:
    """One entrant in one case of one round."""

    case: str
    entrant: str
    round: int
    per_second: float
    p50_ms: float
    p99_ms: float
    servers_cpu_us: float
    """Processor time of all processes of the store for one operation."""
    client_cpu_us: float


def run_rounds(
    stores: Sequence[Store],
    cases: Sequence[Case],
    keys: int,
    rounds: int,
    seconds: float,
    say: Callable[[str], None],
) -> tuple[list[Sample], list[str]]:
    """All samples, and what went wrong; whatever happens, the stores are stopped."""
    samples: list[Sample] = []
    troubles: list[str] = []
    filled: set[str] = set()
    for number in range(rounds):
        first = number % len(stores)
        for store in [*stores[first:], *stores[:first]]:
            say(f"round {number + 1} of {rounds}: {store.name} starts")
            where = f"round {number + 1}"
            with stopping(store):
                try:
                    store.start()
                    fill(store, cases, keys, again=store.name in filled)
                except Exception as error:
                    troubles.append(f"{store.name}, {where}, not started: {error!r}")
                    continue
                filled.add(store.name)
                for case in cases:
                    say(f"{where} of {rounds}: {store.name}, {case.name}")
                    for entrant in store.entrants:
                        try:
                            samples += measure(store, entrant, case, keys, number, seconds)
                        except Exception as error:
                            troubles.append(f"{entrant.name}, {where}, {case.name}: {error!r}")
    return samples, troubles


def fill(store: Store, cases: Sequence[Case], keys: int, *, again: bool) -> None:
    """Store what the cases draw from, unless it is there from the last round."""
    if again and store.keeps:
        return
    for case in {case.value_bytes: case for case in cases}.values():
        store.fill(make_load(case, keys))


def measure(
    store: Store, entrant: Entrant, case: Case, keys: int, number: int, seconds: float
) -> list[Sample]:
    """One sample, or none if this is not an operation of the entrant."""
    phase = entrant.phases.get(case.operation)
    if phase is None:
        return []
    load: Load = make_load(case, keys)
    phase(load, seconds * WARM_UP_SHARE)
    meter = Meter(store.pids)
    row = meter.row(case.name, phase(load, seconds))
    return [
        Sample(
            case.name,
            entrant.name,
            number,
            row.per_second,
            row.p50_ms,
            row.p99_ms,
            sum(row.nodes_cpu_us),
            row.client_cpu_us,
        )
    ]
