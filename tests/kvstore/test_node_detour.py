"""A bridge: two nodes that cannot reach each other, and a third that reaches both (rule 10)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from cluster.operations import Done, Get, Put
from cluster.slots import slot_of
from kvstore.wire.protocol import Request, Response
from tests.kvstore.cluster_harness import SLOT_COUNT, running_cluster, until

if TYPE_CHECKING:
    from pathlib import Path

    from cluster.operations import Operation
    from tests.kvstore.cluster_harness import Cluster, Site

RAW = msgspec.Raw(msgspec.msgpack.encode("value"))


def part(one: Site, other: Site) -> None:
    """The data links between them are gone for good; gossip still hears of each by the third."""
    for here, there in ((one.node, other.node), (other.node, one.node)):
        link = here.peers._data[there.id]
        link.close("cut")
        here.neighbours.link_down(there.id)


def key_led_by(site: Site) -> bytes:
    """A key of a slot that this site's node leads."""
    led = {number for number, _ in site.node.table.led()}
    return next(key for n in range(999) if slot_of(key := b"k%d" % n, SLOT_COUNT) in led)


async def ask(site: Site, op: Operation, timeout_ms: int = 5_000) -> Response:
    async with asyncio.timeout(10):
        return await site.node.submit(Request(1, 7, 1, False, timeout_ms, 0, [op], []))


async def settled(cluster: Cluster) -> None:
    await until(
        lambda: all(sum(1 for _ in site.node.table.led()) >= 3 for site in cluster.sites),
        "every node leads its part",
    )


async def test_a_leader_out_of_reach_is_asked_by_way_of_another(tmp_path: Path) -> None:
    async with running_cluster(tmp_path, "", "", "") as cluster:
        await settled(cluster)
        one, other, _ = cluster.sites
        key = key_led_by(other)
        slot = slot_of(key, SLOT_COUNT)
        ballot = other.node.table.slots[slot].promised  # type: ignore[union-attr]
        part(one, other)
        response = await ask(one, Put(key, RAW))
        assert isinstance(response.results[0], Done), response.results
        assert response.leads == {slot: other.node.id}
        for _ in range(3):
            assert (await ask(one, Get(key))).results
        # It was not stolen, nor was anybody disturbed.
        assert other.node.table.slots[slot].promised == ballot  # type: ignore[union-attr]
        assert slot in {number for number, _ in other.node.table.led()}


async def test_nobody_hears_of_a_dead_leader_so_there_is_no_detour(tmp_path: Path) -> None:
    async with running_cluster(tmp_path, "", "", "") as cluster:
        await settled(cluster)
        one, other, _ = cluster.sites
        key = key_led_by(other)
        await other.stop()
        response = await ask(one, Put(key, RAW))
        assert isinstance(response.results[0], Done), response.results
        assert one.node.neighbours.detour(slot_of(key, SLOT_COUNT)) is None
