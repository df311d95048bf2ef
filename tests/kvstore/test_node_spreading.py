"""Every node comes by the newest topology: by gossip, or from the system slot."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from cluster.membership import Leave, Stay, apply_change
from cluster.operations import Code, Failed, Get
from cluster.system_slot import owners
from cluster.topology import Node as Member
from cluster.topology import found_topology, with_zone, without_node
from kvstore.node.clock import SystemClock
from kvstore.node.recovery import stored_topology
from kvstore.node.spreading import Spreading
from kvstore.wire.protocol import Request
from tests.kvstore.cluster_harness import all_at, running_cluster, until

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from cluster.topology import Topology
    from kvstore.node.topology_record import Stored
    from tests.kvstore.cluster_harness import Site

TIMEOUT_MS = 10_000


async def change(site: Site, how: Callable[[Topology], Topology], *, tell: bool) -> Topology:
    """Change the topology by way of one node, which is told, or which dies before it knows."""
    stored = await site.node.membership.record.read(TIMEOUT_MS)
    changed = how(stored.topology)
    assert await site.node.membership.record.replace(changed, stored.version, TIMEOUT_MS)
    if tell:
        site.node.membership.changed(changed)
    return changed


def rezoned(site: Site, zone: str) -> Callable[[Topology], Topology]:
    return lambda topology: with_zone(topology, site.node.id, zone)


async def test_a_change_reaches_all_and_their_disks(tmp_path: Path) -> None:
    async with running_cluster(tmp_path, "", "", "") as cluster:
        for number, site in enumerate(cluster.sites, 2):
            changed = await change(site, rezoned(cluster.sites[0], f"z{number}"), tell=True)
            assert changed.epoch == number
            await all_at(cluster, changed)
            for every in cluster.sites:
                assert stored_topology(every.node.engine) == changed


async def test_a_change_is_found_in_the_system_slot_when_nobody_is_told(tmp_path: Path) -> None:
    async with running_cluster(tmp_path, "", "", "") as cluster:
        site = cluster.sites[1]
        await all_at(cluster, await change(site, rezoned(site, "b"), tell=False))


async def test_who_was_away_catches_up(tmp_path: Path) -> None:
    async with running_cluster(tmp_path, "", "", "") as cluster:
        away = cluster.sites[2]
        await away.stop()
        changed = await change(cluster.sites[0], rezoned(cluster.sites[0], "b"), tell=True)
        await all_at(cluster, changed)
        await away.start()
        assert away.topology.epoch == 1
        await all_at(cluster, changed)


async def test_all_restart_with_what_they_knew(tmp_path: Path) -> None:
    async with running_cluster(tmp_path, "", "", "") as cluster:
        changed = await change(cluster.sites[0], rezoned(cluster.sites[0], "b"), tell=True)
        await all_at(cluster, changed)
        await asyncio.gather(*(site.stop() for site in cluster.sites))
        for site in cluster.sites:
            await site.start()
            assert site.topology == changed


@pytest.mark.parametrize("away", [False, True], ids=["running", "stopped meanwhile"])
async def test_a_removed_node_is_told_and_serves_nothing_any_more(
    tmp_path: Path, away: bool
) -> None:
    async with running_cluster(tmp_path, "", "", "") as cluster:
        first, gone = cluster.sites[0], cluster.sites[2]
        if away:
            await gone.stop()
        member = gone.node.id
        changed = await change(first, lambda old: without_node(old, member), tell=True)
        if away:
            await gone.start()
        await all_at(cluster, changed)
        request = Request(1, 1, 1, False, TIMEOUT_MS, 0, [Get(b"k")], [])
        (refused,) = (await gone.node.submit(request)).results
        assert isinstance(refused, Failed)
        assert refused.code is Code.UNAVAILABLE
        assert "no member" in refused.detail
        assert "no member" in gone.node.status().not_ready_reason
        assert gone.node.peers.names() == {}
        for site in (first, cluster.sites[1]):
            assert gone.node.id not in site.node.peers.names()
            assert (await site.node.submit(request)).results != [refused]


async def test_the_node_that_knows_less_is_not_believed(tmp_path: Path) -> None:
    async with running_cluster(tmp_path, "", "", "") as cluster:
        first = cluster.sites[0]
        old = first.node.membership.document()
        changed = await change(first, rezoned(first, "b"), tell=True)
        await all_at(cluster, changed)
        for document in (old, b"", b"\xc1"):
            first.node.membership.offered(document)
            await asyncio.sleep(0)
        again = await change(first, rezoned(first, "c"), tell=True)
        await all_at(cluster, again)


class Hands:
    """A node that only takes what it is told."""

    def __init__(self) -> None:
        self.owners: list[list[tuple[int, ...]]] = []

    def adopt(self, topology: Topology) -> None:
        pass

    def set_owners(self, owners: Sequence[tuple[int, ...]]) -> None:
        self.owners.append(list(owners))

    def ask_for_topology(self, node: int) -> bool:
        return False

    def topology_here(self) -> bytes | None:
        return None


async def test_owners_that_were_overtaken_are_worked_out_again_when_they_come_back() -> None:
    listed = [Member(n, f"n{n}", f"h{n}:1", f"h{n}:2") for n in range(1, 5)]
    first = found_topology("c1", "test", listed, slot_count=16, replicas=3)
    leaving = apply_change(first, Leave("n4"))
    staying = apply_change(leaving, Stay("n4"))
    again = apply_change(staying, Leave("n4"))
    hands, begun, go_on = Hands(), asyncio.Event(), asyncio.Event()

    async def slowly(function: Callable[..., object], *arguments: object) -> object:
        begun.set()
        await go_on.wait()
        return function(*arguments)

    async def read(_: int) -> Stored:
        raise AssertionError("nobody asked for it")

    spreading = Spreading(first, hands, read, slowly, SystemClock())
    spreading.start(placed=True)
    spreading.changed(leaving)
    await begun.wait()
    spreading.topology = staying
    spreading.changed(again)
    go_on.set()
    await until(lambda: hands.owners != [], "the owners of the last one are handed on")
    assert hands.owners[-1] == owners(again)
    await spreading.close()
