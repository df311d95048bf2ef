"""A failing seed made small: what can be left out of its plan while it still fails.

Delta debugging (Zeller and Hildebrandt, 2002) over the plan: faults first, in ever smaller groups,
then kinds of operations, clients, and time. Everything random has a generator of its own for each
part, so what is left does mostly what it did before. A run counts as failing the same way if its
violation begins alike.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tests.simulation.checkers import Undecided
from tests.simulation.process_loop import Violation
from tests.simulation.world import World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.simulation.plan import Fault, Plan

RUNS_MAX = 150


def run(seed: int, plan: Plan | None = None, *, logging: bool = False) -> tuple[World, str]:
    """One run, and what broke in it; empty if nothing did."""
    world = World(seed, plan, logging=logging)
    try:
        world.run()
    except (Violation, Undecided, AssertionError) as error:
        return world, f"{type(error).__name__}: {error}"
    return world, ""


def kind_of(fault: str) -> str:
    """What two runs must have in common to fail the same way."""
    return " ".join(fault.split()[:3])


class Shrinker:
    """Looks for the smallest plan of one seed that fails the same way."""

    def __init__(self, seed: int, fault: str, plan: Plan) -> None:
        self.seed = seed
        self.plan = plan
        self.runs = 0
        self._kind = kind_of(fault)

    def shrink(self) -> Plan:
        """Leave out what can be; stops after `RUNS_MAX` runs."""
        self._try(lambda plan: replace(plan, observers=0))
        self._faults()
        for _ in range(2):
            for kind in self.plan.kinds:
                rest = tuple(other for other in self.plan.kinds if other != kind)
                if rest:
                    self._try(lambda plan, rest=rest: replace(plan, kinds=rest))  # type: ignore[misc]
            self._while_it_fails(lambda plan: replace(plan, callers=plan.callers - 1))
            self._while_it_fails(lambda plan: replace(plan, customers=plan.customers - 1))
            self._while_it_fails(lambda plan: replace(plan, keys=plan.keys - 1))
            self._while_it_fails(_shorter)
        self._faults()
        return self.plan

    def _faults(self) -> None:
        size = len(self.plan.faults)
        while size >= 1 and self.runs < RUNS_MAX:
            at = 0
            while at < len(self.plan.faults):
                faults = self.plan.faults
                rest = faults[:at] + faults[at + size :]
                if not self._try(lambda plan, rest=rest: replace(plan, faults=rest)):  # type: ignore[misc]
                    at += size
            size //= 2

    def _while_it_fails(self, change: Callable[[Plan], Plan]) -> None:
        while self._try(change):
            pass

    def _try(self, change: Callable[[Plan], Plan]) -> bool:
        """Keep the change if it still fails the same way."""
        plan = change(self.plan)
        if self.runs >= RUNS_MAX or plan == self.plan or not _is_sane(plan):
            return False
        self.runs += 1
        _, fault = run(self.seed, plan)
        if kind_of(fault) != self._kind:
            return False
        self.plan = plan
        return True


def _is_sane(plan: Plan) -> bool:
    return min(plan.callers, plan.customers, plan.keys) >= 1 and plan.chaos_seconds >= 0.1


def _shorter(plan: Plan) -> Plan:
    seconds = plan.chaos_seconds * 0.7
    faults: tuple[Fault, ...] = tuple(fault for fault in plan.faults if fault.at < seconds)
    return replace(plan, chaos_seconds=seconds, faults=faults)


def story(world: World, fault: str) -> Iterator[str]:
    """All that happened in a run, in order, for a person."""
    lines = [(0.0, f"plan: {world.plan}")]
    for line in world.universe.log or ():
        seconds, _, text = line.strip().partition(" ")
        lines.append((float(seconds), text))
    for event in world.history.events:
        keys = ",".join(event.keys)
        began = f"{event.client} asks {keys}: {event.action}"
        lines.append((event.began_at, began))
        if event.ended is not None:
            lines.append((event.ended_at, f"{event.client} is told {keys}: {event.answer!r}"))
    for at, text in sorted(lines, key=lambda pair: pair[0]):
        yield f"{at:10.6f} {text}"
    yield f"{world.universe.now:10.6f} {fault}"
