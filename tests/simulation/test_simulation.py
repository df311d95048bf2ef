"""Whole clusters from fixed seeds; `make simulate` walks as many more as there is time for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.simulation.planted import (
    accept_gap,
    commit_on_one,
    conflict_not_logged,
    retry_not_looked_up,
)
from tests.simulation.process_loop import Violation
from tests.simulation.world import World

if TYPE_CHECKING:
    from tests.simulation.planted import Plant

CHUNKS, CHUNK_SEEDS = 4, 3
CHEAP: list[Plant] = [accept_gap, commit_on_one, conflict_not_logged, retry_not_looked_up]
PLANTED_SEEDS_MAX = 20


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_every_promise_is_kept(chunk: int) -> None:
    walk(range(chunk * CHUNK_SEEDS, (chunk + 1) * CHUNK_SEEDS))


def test_a_seed_is_one_run() -> None:
    assert World(5).run() == World(5).run()


@pytest.mark.parametrize("plant", CHEAP)
def test_a_planted_bug_is_found(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises(Violation):
        walk(range(PLANTED_SEEDS_MAX))


def walk(seeds: range) -> None:
    for seed in seeds:
        World(seed).run()
