"""The walk with members that change, over fixed seeds.

What a lost half sentence of the rules would do is in `tests/cluster/test_rules_membership.py`, rule
by rule: a walk meets it too seldom to tell within seconds.
"""

from __future__ import annotations

import pytest

from cluster import transfer
from tests.simulation.moving import MovingWorld

CHUNK_SEEDS = 10


@pytest.mark.parametrize("chunk", range(6))
def test_moving_walks_keep_every_promise(chunk: int) -> None:
    _walk(range(chunk * CHUNK_SEEDS, (chunk + 1) * CHUNK_SEEDS))


def test_copies_of_many_pages_keep_every_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "CHUNK_BYTES", 1)
    _walk(range(1_000, 1_000 + CHUNK_SEEDS))


def test_a_seed_is_one_walk() -> None:
    assert MovingWorld(11).run() == MovingWorld(11).run()


def _walk(seeds: range) -> None:
    for seed in seeds:
        MovingWorld(seed).run()
