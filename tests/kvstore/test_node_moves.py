"""A live cluster changes its shape while it is written to: every write counts, and counts once."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import kvstore
from cluster.membership import Leave, Remove, Replicate, Rezone, Stay, Weigh
from cluster.placement import place
from tests.kvstore.cluster_harness import SLOT_COUNT, Cluster, Site, running_cluster, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from cluster.membership import TopologyChange
    from cluster.topology import Topology
    from kvstore.client import AsyncClient

TIMEOUT_MS = 10_000


class Counting:
    """Counts up keys for as long as it lives; a number that is not the next one is an error."""

    def __init__(self, db: AsyncClient) -> None:
        self._db = db
        self._task = asyncio.create_task(self._run())
        self.counts: Counter[str] = Counter()

    async def _run(self) -> None:
        while True:
            for number in range(24):
                key = f"n:{number}"
                self.counts[key] += 1
                assert await self._db.incr(key) == self.counts[key]

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def check(self) -> None:
        """Every operation was done, once."""
        assert self._task.cancelled(), self._task.exception()
        found = await self._db.get_many(list(self.counts))
        off = {key: (found[key], self.counts[key]) for key in found}
        assert all(self.counts[key] - value in (0, 1) for key, (value, _) in off.items()), off


@asynccontextmanager
async def counting(cluster: Cluster) -> AsyncIterator[AsyncClient]:
    seeds = ",".join(site.address for site in cluster.sites[:3])
    async with kvstore.connect_async(f"kv://{seeds}", timeout=20) as db:
        load = Counting(db)
        try:
            yield db
        finally:
            await load.stop()
        await load.check()


async def change(cluster: Cluster, wanted: TopologyChange) -> Topology:
    return await cluster.sites[0].node.membership.change(wanted, TIMEOUT_MS)


def holders(cluster: Cluster) -> list[set[int]]:
    """Of each slot, the nodes that hold it."""
    return [
        {
            site.node.id
            for site in cluster.up
            if (slot := site.node.table.slots[n]) is not None and slot.holds_state
        }
        for n in range(SLOT_COUNT)
    ]


def held(site: Site) -> int:
    return sum(slot is not None and slot.holds_state for slot in site.node.table.slots[:SLOT_COUNT])


async def arrived(cluster: Cluster, topology: Topology) -> None:
    """Until each slot is where this topology wants it, and nowhere else."""
    wanted = [set(owners) for owners in place(topology).owners]
    await until(lambda: holders(cluster) == wanted, f"all slots at the owners of {topology.epoch}")
    await until(
        lambda: not any(site.node.table.moves.pending for site in cluster.up), "nothing moves"
    )


async def changed(cluster: Cluster, wanted: TopologyChange) -> None:
    """Change it, and wait until the slots have followed."""
    await arrived(cluster, await change(cluster, wanted))


async def test_copies_weights_and_zones_change_on_a_live_cluster(tmp_path: Path) -> None:
    async with running_cluster(tmp_path, *[""] * 5) as cluster, counting(cluster):
        for replicas in (1, 3, 5, 3):
            await changed(cluster, Replicate(replicas))
        heavy = cluster.sites[4]
        before = held(heavy)
        await changed(cluster, Weigh("n5", 3.0))
        assert held(heavy) > before
        for name, zone in zip(("n1", "n2", "n3", "n4"), "aabb", strict=True):
            await change(cluster, Rezone(name, zone))  # each retargets what the last one began
        await changed(cluster, Rezone("n5", "c"))
        assert held(heavy) == SLOT_COUNT, "alone in its zone it has a copy of everything"
        await changed(cluster, Replicate(1))


async def test_a_node_leaves_while_it_joins(tmp_path: Path) -> None:
    async with running_cluster(tmp_path, "", "", "") as cluster, counting(cluster):
        fourth = cluster.add()
        await fourth.join(cluster.sites[0])
        await until(lambda: fourth.node.topology is not None, "it is in")
        await change(cluster, Leave("n4"))
        await until(lambda: len(cluster.sites[0].topology.nodes) == 3, "it has taken itself out")
        await arrived(cluster, cluster.sites[0].topology)
        assert held(fourth) == 0


async def test_below_the_number_of_copies_only_by_force_and_back(tmp_path: Path) -> None:
    async with running_cluster(tmp_path, "", "", "") as cluster, counting(cluster):
        await change(cluster, Leave("n3", force=True))
        await until(lambda: len(cluster.sites[0].topology.nodes) == 2, "it is out")
        third = cluster.sites[2]
        assert held(third) == 0
        await third.stop()
        await arrived(cluster, cluster.sites[0].topology)
        assert {len(nodes) for nodes in holders(cluster)} == {2}
        fourth = cluster.add()
        await fourth.join(cluster.sites[1])
        await arrived(cluster, fourth.topology)
        assert {len(nodes) for nodes in holders(cluster)} == {3}


async def test_two_operators_who_want_the_opposite_end_with_one_of_the_two(tmp_path: Path) -> None:
    async with running_cluster(tmp_path, "", "", "", "") as cluster, counting(cluster):
        wishes: list[TopologyChange] = [Leave("n4"), Stay("n4")] * 4
        makers = [site.node.membership for site in cluster.sites[:2]] * 4
        await asyncio.gather(
            *(m.change(wish, TIMEOUT_MS) for m, wish in zip(makers, wishes, strict=True)),
            return_exceptions=True,
        )
        await changed(cluster, Stay("n4"))
        assert {node.state for node in cluster.sites[0].topology.nodes} == {"active"}


async def test_an_absurd_weight_within_the_limits_moves_what_it_says(tmp_path: Path) -> None:
    async with running_cluster(tmp_path, "", "", "", "") as cluster, counting(cluster):
        await changed(cluster, Weigh("n4", 0.001))
        assert held(cluster.sites[3]) <= 1
        await changed(cluster, Weigh("n4", 1_000.0))
        # The ids are random, and limits are rounded: the others may have room for one copy more.
        assert held(cluster.sites[3]) >= SLOT_COUNT - 1, "a copy of every slot is the most there is"


async def test_a_member_that_was_removed_by_force_while_slots_moved_is_missed_by_none(
    tmp_path: Path,
) -> None:
    async with running_cluster(tmp_path, "", "", "", "") as cluster, counting(cluster):
        await change(cluster, Weigh("n4", 2.0))
        await cluster.sites[3].stop()
        await changed(cluster, Remove("n4", force=True))
