"""The walk with rot: now and then a record on one disk changes by itself (rule 18).

One copy at a time, and only of a record that all nodes hold alike: what is left is then enough to
mend it. Everything else goes on as ever: crashes, cuts, lost messages, takeovers in the middle of a
repair. No client may ever see the rotten record, and at the end all copies must be whole and equal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from cluster.records import is_intact
from kvstore.storage.engine import Table
from tests.simulation.test_walk import BusyWorld
from tests.simulation.walk import SLOT, SimNode, Violation

if TYPE_CHECKING:
    from cluster.slot import Slot

CHUNK_SEEDS = 25
PLANTED_SEEDS_MAX = 200
ROT_RATE = 0.1


class RottingWorld(BusyWorld):
    """Rot among the other faults."""

    rotted = 0

    def step(self) -> None:
        if self.chaos and self.rng.random() < ROT_RATE and self.is_whole():
            self.rot()
        super().step()

    def rot(self) -> None:
        kept = [dict(self.records(node)) for node in self.nodes]
        alike = sorted(k for k in kept[0] if all(k in one and one[k] == kept[0][k] for one in kept))
        if alike:
            self.rotted += 1
            node, key = self.rng.choice(self.nodes), self.rng.choice(alike)
            record = kept[0][key]
            at = self.rng.randrange(len(record))
            flipped = record[:at] + bytes([record[at] ^ 1]) + record[at + 1 :]
            for each in self.nodes:  # what is left, and what was mended last, is durable
                each.end_tick()
                each.sync()
            batch = node.engine.batch()
            batch.put(Table.RECORDS, self.slot(node).prefix + key, flipped)
            node.engine.write(batch)
            node.engine.sync()

    def slot(self, node: SimNode) -> Slot:
        slot = node.table.slots[SLOT]
        assert slot is not None
        return slot

    def records(self, node: SimNode) -> list[tuple[bytes, bytes]]:
        return node.store.scan(self.slot(node).prefix, b"", 100)

    def is_whole(self) -> bool:
        return not any(self.slot(node).damaged or self.is_rotten(node) for node in self.nodes)

    def is_rotten(self, node: SimNode) -> bool:
        return not all(is_intact(record) for _, record in self.records(node))

    def check(self) -> None:
        everyone = self.nodes
        self.nodes = [n for n in everyone if not (self.slot(n).damaged or self.is_rotten(n))]
        try:
            super().check()
        finally:
            self.nodes = everyone

    def is_well(self) -> bool:
        return super().is_well() and self.is_whole()


@pytest.mark.parametrize("chunk", range(4))
def test_rot_is_mended_and_never_seen(chunk: int) -> None:
    _walk(range(chunk * CHUNK_SEEDS, (chunk + 1) * CHUNK_SEEDS))


def test_there_is_something_to_mend() -> None:
    rotted = mended = 0
    for seed in range(20):
        world = RottingWorld(seed)
        world.run()
        rotted += world.rotted
        mended += sum(node.table.scrub.repaired_total for node in world.nodes)
    assert rotted >= 8
    assert mended >= 4


def serve_what_rots(patch: pytest.MonkeyPatch) -> None:
    """The primary does not look whether a record is whole."""
    patch.setattr("cluster.reads.check_intact", lambda key, record: None)
    patch.setattr("cluster.evaluate.check_intact", lambda key, record: None)


def never_compare(patch: pytest.MonkeyPatch) -> None:
    """Nothing is looked for."""
    patch.setattr("cluster.scrub.Scrub.tick", lambda scrub: None)


def never_copy(patch: pytest.MonkeyPatch) -> None:
    """Who is damaged says that it is well."""

    def bad(scrub: Any, slot: Slot) -> None:
        return None

    patch.setattr("cluster.scrub.Scrub._give_up", bad)


@pytest.mark.parametrize("plant", [serve_what_rots, never_compare, never_copy])
def test_a_planted_bug_is_found(plant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises((Violation, ValueError)):
        _walk(range(PLANTED_SEEDS_MAX))


def _walk(seeds: range) -> None:
    for seed in seeds:
        RottingWorld(seed).run()
