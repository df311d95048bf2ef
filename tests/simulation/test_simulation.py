"""Whole clusters from fixed seeds; `make simulate` runs as many more as there is time for."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.simulation import planted
from tests.simulation.plan import draw_plan
from tests.simulation.planted_around import ALL, CHEAP
from tests.simulation.shrink import Shrinker, kind_of, run, story
from tests.simulation.simulate import quiet
from tests.simulation.world import World

if TYPE_CHECKING:
    from tests.simulation.plan import Plan
    from tests.simulation.planted import Plant

CHUNKS, CHUNK_SEEDS = 20, 15
CHAOS_SECONDS = 5.0
"""Of a seed here: so many of them see more than a few long ones."""

pytestmark = pytest.mark.timeout(900)
"""Processor time, on a machine that is busy with other things."""

FOUND: list[int] = [20_072, 100_168]
"""Seeds that once found a bug (`docs/correctness.md`), as they were."""

PLANTED_SEEDS_MAX = 20


@pytest.fixture(autouse=True)
def _quiet() -> None:
    quiet()


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_every_promise_is_kept(chunk: int) -> None:
    for seed in range(chunk * CHUNK_SEEDS, (chunk + 1) * CHUNK_SEEDS):
        World(seed, shortened(seed)).run()


@pytest.mark.parametrize("seed", FOUND)
def test_what_once_broke_holds(seed: int) -> None:
    World(seed).run()


def test_a_seed_is_one_run() -> None:
    assert World(5).run() == World(5).run()


@pytest.mark.parametrize("plant", ALL)
def test_a_plant_finds_its_place(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)  # raises if there is nothing of that name
    assert plant.__doc__


@pytest.mark.parametrize("plant", CHEAP)
def test_a_planted_bug_is_found(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    assert first_fault() is not None


def test_what_fails_is_made_small(monkeypatch: pytest.MonkeyPatch) -> None:
    planted.accept_gap(monkeypatch)
    found = first_fault()
    assert found is not None
    seed, fault = found
    monkeypatch.setattr("tests.simulation.shrink.RUNS_MAX", 8)
    plan = draw_plan(seed)
    small = Shrinker(seed, fault, plan).shrink()
    assert len(small.faults) < len(plan.faults)
    world, again = run(seed, small, logging=True)
    assert kind_of(again) == kind_of(fault)
    assert again.splitlines()[-1] in "\n".join(story(world, again))


def first_fault() -> tuple[int, str] | None:
    """The first seed that fails, and how."""
    for seed in range(PLANTED_SEEDS_MAX):
        _, fault = run(seed)
        if fault:
            return seed, fault
    return None


def shortened(seed: int) -> Plan:
    """The seed's plan without all but its beginning."""
    plan = draw_plan(seed)
    faults = tuple(fault for fault in plan.faults if fault.at < CHAOS_SECONDS)
    return replace(plan, chaos_seconds=CHAOS_SECONDS, round_seconds=3.0, faults=faults)
