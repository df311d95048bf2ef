"""A node that starts on its disk: nobody waits for it before it is ready, nor after."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from cluster.operations import Code, Done, Failed
from kvstore.client.routing import NOBODY, REFRESH_WRONG_HINTS, RoutingTable
from kvstore.node import loop, peers
from kvstore.wire.protocol import Hello, RouteNode, Routes
from tests.kvstore.cluster_harness import running_cluster, until
from tests.kvstore.node_harness import HOST, reserved_port

if TYPE_CHECKING:
    from pathlib import Path

    from kvstore.node.connection import Connection
    from kvstore.node.node import Node


async def test_who_connects_before_the_slots_are_read_is_refused(tmp_path: Path) -> None:
    """... and goes to another node, instead of waiting for this one."""
    async with running_cluster(tmp_path, "") as cluster:
        server = cluster.sites[0].node.server
        with reserved_port() as port:
            await server.close()
            await server.bind(HOST, port, "--port")
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection(HOST, port)
            await server.serve()
            _, writer = await asyncio.open_connection(HOST, port)
            writer.close()


async def test_a_peer_that_says_hello_is_dialled_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_cluster(tmp_path, "", "", "") as cluster:
        one, other, _ = cluster.sites
        monkeypatch.setattr(peers, "PAUSE_S_MIN", 600.0)
        monkeypatch.setattr(peers, "PAUSE_S_MAX", 600.0)
        await other.stop()
        await until(lambda: not one.node.peers.is_up(other.node.id), "n1 has lost n2")
        before = one.node.peers.sent_bytes
        await other.start()
        await until(lambda: one.node.peers.is_up(other.node.id), "n1 is linked to n2 again")
        await until(lambda: one.node.peers.sent_bytes > before, "n1 tells n2 what it leads")


def data_links(node: Node) -> set[Connection]:
    """Of the others to this node."""
    return {
        connection
        for connection in node.server._connections
        if isinstance(connection.peer, Hello) and connection.peer.role == "node"
    }


async def test_a_node_that_was_frozen_takes_nothing_that_was_sent_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It worked all of it off, a second and more, while the others handed it slots."""
    async with running_cluster(tmp_path, "", "", "") as cluster:
        one = cluster.sites[0].node
        await until(lambda: len(data_links(one)) == 2, "both others are linked to n1")
        before, now_ms, passed_ms = data_links(one), one.clock.now_ms, 0
        monkeypatch.setattr(one.clock, "now_ms", lambda: now_ms() + passed_ms)
        monkeypatch.setattr(loop, "SLEPT_MS", 30_000)  # however slow the machine is
        passed_ms = 29_000
        ticks = one.core.ticks_total
        await until(lambda: one.core.ticks_total > ticks + 1, "n1 has ticked")
        assert data_links(one) == before
        passed_ms = 60_000
        await until(lambda: not before & data_links(one), "the old links are broken")
        await until(lambda: len(data_links(one)) == 2, "the others are linked to n1 again")
        await until(
            lambda: all(sum(1 for _ in site.node.table.led()) >= 3 for site in cluster.sites),
            "every node leads its slots",
        )


def test_a_node_that_carried_a_write_out_is_known_to_lead() -> None:
    table = RoutingTable(["a:1", "b:1"])
    refused = Failed(Code.OVERLOADED, "full")
    table.served("b:1", [3, 4, 5], [Done(b""), Done(b""), refused], {4: 7})
    assert table.primaries[3:6] == ["b:1", NOBODY, NOBODY]


def test_who_answered_last_is_asked_next() -> None:
    """A node is silent because it waits for a frozen one: that is no better a guess."""
    table = RoutingTable(["frozen:1", "waits:1", "lives:1"])
    for address in ("lives:1", "frozen:1", "waits:1", "lives:1"):
        table.answered(address)
    table.failed("waits:1", 10.0, silent=True)
    table.failed("lives:1", 10.0, silent=True)  # for the same reason
    asked = {table.resolve("waits:1", 10.1, not_again="waits:1") for _ in range(6)}
    assert asked == {"lives:1"}
    assert {table.resolve(NOBODY, 10.1) for _ in range(6)} == {"frozen:1"}


def test_many_wrong_hints_are_a_reason_to_fetch_the_table_again() -> None:
    table = RoutingTable(["a:1"])
    node = RouteNode(7, "n1", "a:1", "a:2", "", "alive")
    slots = table.slot_count
    table.load(Routes(1, "id", "c", 1, slots, [node], bytes(2 * slots), bytes(20 * slots)), 5.0)
    for slot in range(REFRESH_WRONG_HINTS - 1):
        table.lead({slot: 7})
    assert not table.wants_refresh(7.0)
    table.lead({99: 7})
    assert not table.wants_refresh(5.5)
    assert table.wants_refresh(7.0)


async def test_who_can_serve_is_ready_whatever_others_lost(tmp_path: Path) -> None:
    """A load balancer asks: slots that nobody can serve must not take all nodes out of it."""
    async with running_cluster(tmp_path, "", "", "", "", "") as cluster:
        *left, gone, away = cluster.sites
        await gone.stop()
        await away.stop()
        nodes = [site.node for site in left]

        def lost(node: Node) -> bool:
            return any("have no quorum" in problem for problem in node.status().problems)

        await until(lambda: all(map(lost, nodes)), "who is left tells of slots without a quorum")
        await until(lambda: not any(n.not_ready_reason() for n in nodes), "who is left is ready")
        await left[1].stop()
        await left[2].stop()
        await until(lambda: "too few others" in nodes[0].not_ready_reason(), "n1 is alone")
        for site in (gone, away, left[1], left[2]):
            await site.start()
        back = [site.node for site in cluster.sites]
        await until(lambda: not any(n.not_ready_reason() for n in back), "all are ready")
        assert not any(map(lost, back))
