"""The walk with members that change, over fixed seeds and over planted bugs.

The bugs are those of changing members: each undoes half a sentence of rule 14. What rarer faults
would show is in `tests/cluster/test_rules_membership.py`, rule by rule.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cluster import reconfigure, transfer
from cluster.slot_config import SlotConfig
from tests.simulation.moving import MovingWorld
from tests.simulation.walk import Violation

if TYPE_CHECKING:
    from collections.abc import Callable

    from cluster.ballot import NodeId
    from cluster.slot import Context, Primary, Slot

CHUNK_SEEDS = 10
PLANTED_SEEDS_MAX = 40


@pytest.mark.parametrize("chunk", range(6))
def test_moving_walks_keep_every_promise(chunk: int) -> None:
    _walk(range(chunk * CHUNK_SEEDS, (chunk + 1) * CHUNK_SEEDS))


def test_copies_of_many_pages_keep_every_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "CHUNK_BYTES", 1)
    monkeypatch.setattr(transfer, "CHUNK_ROWS_MIN", 1)
    _walk(range(1_000, 1_000 + CHUNK_SEEDS))


def test_a_seed_is_one_walk() -> None:
    assert MovingWorld(11).run() == MovingWorld(11).run()


# -- planted bugs ------------------------------------------------------------------------------


def learners_out_of_step(patch: pytest.MonkeyPatch) -> None:
    """R14: the joint config does not wait for the learners."""

    def bad(slot: Slot, primary: Primary, step: SlotConfig, ctx: Context) -> bool:
        return True

    patch.setattr("cluster.moves.is_ready", bad)


def members_at_once(patch: pytest.MonkeyPatch) -> None:
    """R14: the new members follow the old ones without a joint config between."""

    def bad(config: SlotConfig, wanted: tuple[NodeId, ...]) -> SlotConfig | None:
        step = reconfigure.next_config(config, wanted)
        return SlotConfig(step.sets[1:]) if step is not None and len(step.sets) == 2 else step

    patch.setattr("cluster.moves.next_config", bad)


@pytest.mark.parametrize(("plant", "first"), [(members_at_once, 25), (learners_out_of_step, 105)])
def test_a_planted_bug_is_found(
    plant: Callable[[pytest.MonkeyPatch], None], first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They show themselves in one seed of thirty and of seventy; begun shortly before."""
    plant(monkeypatch)
    with pytest.raises(Violation):
        _walk(range(first, first + PLANTED_SEEDS_MAX))


def _walk(seeds: range) -> None:
    for seed in seeds:
        MovingWorld(seed).run()
