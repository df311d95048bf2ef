"""Rule 7 in the random walk: what is put expires, and each node's clock is wrong in its own way.

The checker of linearizability knows no clocks, so it does not judge here. What must hold whatever
the clocks say: replicas stay equal, the cluster heals, and in the end nothing that expires is left
on any disk, though nobody reads it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cluster.operations import Put
from cluster.records import expires_at_ms
from cluster.slot_table import SlotTable
from tests.simulation import walk
from tests.simulation.test_walk import BusyWorld
from tests.simulation.walk import Violation

if TYPE_CHECKING:
    import msgspec


SKEW_MS = 20_000
"""Between two nodes' clocks."""

TTL_MS = 10_000

SEEDS = 60


class ExpiringWorld(BusyWorld):
    """Clients put with a time to live."""

    def judge(self) -> None:
        self.now_ms += 200_000
        for _ in range(20):
            for node in self.nodes:
                self.now_ms += 20
                node.table.set_time(self.now_ms, 0)
                node.table.tick()
                node.end_tick()
                node.sync()
                node.end_tick()
            while self.net:
                self.deliver()
            self.check()
        for node in self.nodes:
            if any(expires_at_ms(record) for _, record in self.content(node)[0]):
                raise Violation(f"node {node.me} keeps what has expired")


def expiring(
    key: bytes, value: msgspec.Raw, content_type: str = "", ttl_ms: int = 0, expect: object = None
) -> Put:
    return Put(key, value, content_type, TTL_MS, expect if isinstance(expect, bytes) else None)


@pytest.fixture(autouse=True)
def wrong_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    set_time = SlotTable.set_time

    def skewed(table: SlotTable, now_ms: int, unix_ms: int) -> None:
        set_time(table, now_ms, now_ms + SKEW_MS * table._ctx.me)

    monkeypatch.setattr(SlotTable, "set_time", skewed)
    monkeypatch.setattr(walk, "Put", expiring)


@pytest.mark.parametrize("first", range(0, SEEDS, 20))
def test_replicas_agree_and_nothing_stays_whatever_the_clocks_say(first: int) -> None:
    walk_seeds(range(first, first + 20))


def test_the_walk_notices_a_background_that_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.expiry.Expiry.tick", lambda expiry, ctx: None)
    with pytest.raises(Violation, match="keeps what has expired"):
        walk_seeds(range(20))


def walk_seeds(seeds: range) -> None:
    for seed in seeds:
        ExpiringWorld(seed).run()
