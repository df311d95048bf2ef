"""The topology document in the system slot of a real node: who may read and write it, and how."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from cluster.limits import TOPOLOGY_BYTES_MAX
from cluster.operations import Absent, Code, Conflict, Delete, Done, Failed, Found, Get, Put, Scan
from cluster.records import decode_record
from cluster.system_slot import FOUNDING_VERSION, TOPOLOGY_KEY
from cluster.topology import decode_topology, encode_topology, with_zone
from kvstore.wire.protocol import PROTOCOL_VERSION, Hello
from tests.kvstore.node_harness import (
    CLUSTER_NAME,
    MEMBER_ID,
    RAW,
    SLOT_COUNT,
    Site,
    assert_says,
    running,
    working,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from cluster.operations import Operation
    from cluster.topology import Topology
    from tests.kvstore.node_harness import Wire

MEMBER = Hello(PROTOCOL_VERSION, "node", "", CLUSTER_NAME, MEMBER_ID, "n1")


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with working() as site:
        yield site


async def stored(wire: Wire) -> tuple[Topology, bytes]:
    """The document with its version."""
    (found,) = await wire.ask([Get(TOPOLOGY_KEY)], system=True)
    assert isinstance(found, Found)
    record = decode_record(found.record)
    return decode_topology(record.value), record.version


def put(topology: Topology, expect: bytes) -> Put:
    return Put(TOPOLOGY_KEY, msgspec.Raw(encode_topology(topology)), expect=expect)


async def test_the_founding_document_is_its_first_content(site: Site) -> None:
    async with site.harness.client(MEMBER) as wire:
        topology, version = await stored(wire)
    assert topology == site.harness.node.topology
    assert version == FOUNDING_VERSION


async def test_it_is_changed_by_compare_and_set(site: Site) -> None:
    async with site.harness.client(MEMBER) as wire:
        topology, version = await stored(wire)
        changed = with_zone(topology, MEMBER_ID, "b")
        (done,) = await wire.ask([put(changed, version)], system=True)
        assert isinstance(done, Done)
        assert await stored(wire) == (changed, done.version)
        (conflict,) = await wire.ask(
            [put(with_zone(topology, MEMBER_ID, "c"), version)], system=True
        )
        assert conflict == Conflict(done.version)


async def test_it_survives_a_restart(tmp_path: Path) -> None:
    async with running(tmp_path) as harness, harness.client(MEMBER) as wire:
        topology, version = await stored(wire)
        await wire.ask([put(with_zone(topology, MEMBER_ID, "b"), version)], system=True)
    async with running(tmp_path) as harness, harness.client(MEMBER) as wire:
        again, _ = await stored(wire)
        assert [node.zone for node in again.nodes] == ["b"]


async def test_no_key_of_a_user_leads_there(site: Site) -> None:
    """Neither by name nor by scanning every slot that there is."""
    (found,) = await site.good.ask([Get(TOPOLOGY_KEY)])
    assert isinstance(found, Absent)
    (refused,) = await site.good.ask([Scan(SLOT_COUNT, b"", b"", 10, True)])
    assert isinstance(refused, Failed)
    assert TOPOLOGY_KEY not in await site.good.stored()


NOT_FOR_IT: dict[str, tuple[Operation, str]] = {
    "another key": (Get(b"k"), "Get is not"),
    "a delete": (Delete(TOPOLOGY_KEY), "Delete is not"),
    "a scan": (Scan(0, b"", b"", 10, True), "Scan is not"),
    "a blind put": (Put(TOPOLOGY_KEY, RAW), "replaces the version"),
    "a put of what lives": (Put(TOPOLOGY_KEY, RAW, expect=b"*"), "replaces the version"),
    "one that expires": (Put(TOPOLOGY_KEY, RAW, "", 5, FOUNDING_VERSION), "a topology of"),
    "one too large": (
        Put(
            TOPOLOGY_KEY,
            msgspec.Raw(msgspec.msgpack.encode(bytes(TOPOLOGY_BYTES_MAX))),
            expect=FOUNDING_VERSION,
        ),
        f"the limit is {TOPOLOGY_BYTES_MAX}",
    ),
}


@pytest.mark.parametrize(("op", "detail"), NOT_FOR_IT.values(), ids=NOT_FOR_IT.keys())
async def test_nothing_else_is_done_there(site: Site, op: Operation, detail: str) -> None:
    async with site.harness.client(MEMBER) as wire:
        before = await stored(wire)
        (refused,) = await wire.ask([op], system=True)
        assert isinstance(refused, Failed)
        assert refused.code is Code.BAD_REQUEST
        assert_says(refused.detail, detail)
        assert await stored(wire) == before
    await site.unharmed({"operation": 1})


async def test_it_does_not_show_among_the_slots(site: Site) -> None:
    node = site.harness.node
    (me,) = node.members()
    assert (me.slots_led, me.slots_held) == (SLOT_COUNT, SLOT_COUNT)
    assert (node.status().slots_led, node.status().slots_held) == (SLOT_COUNT, SLOT_COUNT)
    routes = node.routes()
    assert routes.slot_count == SLOT_COUNT
    assert len(routes.primaries) == 2 * SLOT_COUNT
    assert len(routes.positions) == 20 * SLOT_COUNT
