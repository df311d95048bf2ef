"""Nodes join, leave and are replaced; whoever is asked changes the topology, or says why not."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec
import pytest

from cluster.membership import Join, Leave, Remove, Rezone, Weigh
from cluster.operations import Code, Failed
from cluster.topology import LEAVING, TopologyError
from kvstore.errors import SetupError, Unavailable
from kvstore.node.founding import ask
from kvstore.wire.protocol import (
    PROTOCOL_VERSION,
    ChangeTopology,
    Hello,
    TopologyChanged,
)
from tests.kvstore.cluster_harness import all_at, running_cluster, until
from tests.kvstore.node_harness import CLUSTER_NAME

if TYPE_CHECKING:
    from pathlib import Path

    from cluster.membership import TopologyChange

TIMEOUT_MS = 10_000


async def test_a_node_joins_by_any_member_and_comes_back_by_itself(tmp_path: Path) -> None:
    async with running_cluster(tmp_path, "", "", "") as cluster:
        newcomer = cluster.add("b")
        await newcomer.join(cluster.sites[2])
        await all_at(cluster, newcomer.topology)
        listed = newcomer.topology.node(newcomer.node.id)
        assert listed is not None
        assert (listed.name, listed.zone, listed.joined) == ("n4", "b", 2)
        await until(
            lambda: all(all(site.node.peers.names().values()) for site in cluster.up),
            "everybody has a link to everybody",
        )
        assert len(newcomer.node.peers.names()) == 3
        await newcomer.node.wait_ready()
        await newcomer.stop()
        await newcomer.start()
        assert newcomer.topology.epoch == 2


async def test_two_join_at_once_by_two_members(tmp_path: Path) -> None:
    async with running_cluster(tmp_path, "", "") as cluster:
        first, second = cluster.add(), cluster.add()
        await asyncio.gather(first.join(cluster.sites[0]), second.join(cluster.sites[1]))
        await until(lambda: {site.topology.epoch for site in cluster.up} == {3}, "epoch 3")
        assert len(first.topology.nodes) == 4


async def test_two_operators_at_once_both_get_what_they_meant(tmp_path: Path) -> None:
    async with running_cluster(tmp_path, "", "", "") as cluster:
        rooms = [site.node.membership for site in cluster.sites]
        changes: list[TopologyChange] = [
            Rezone("n1", "a"),
            Rezone("n2", "b"),
            Weigh("n1", 2.0),
            Weigh("n3", 3.0),
        ]
        made = await asyncio.gather(
            *(rooms[n % 3].change(change, TIMEOUT_MS) for n, change in enumerate(changes))
        )
        newest = max(made, key=lambda topology: topology.epoch)
        await all_at(cluster, newest)
        assert newest.epoch == 5
        assert {(n.name, n.zone, n.weight) for n in newest.nodes} == {
            ("n1", "a", 2.0),
            ("n2", "b", 1.0),
            ("n3", "", 3.0),
        }


async def test_what_makes_no_sense_after_another_change_is_told(tmp_path: Path) -> None:
    async with running_cluster(tmp_path, "", "", "", "") as cluster:
        made = await asyncio.gather(
            *(
                site.node.membership.change(Leave(name), TIMEOUT_MS)
                for site, name in zip(cluster.sites, ["n3", "n4"], strict=False)
            ),
            return_exceptions=True,
        )
        refused = [answer for answer in made if isinstance(answer, TopologyError)]
        assert len(refused) == 1, made
        assert "2 nodes are left for 3 copies" in str(refused[0])


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("n2", "its name 'n2' is taken by node 'n2'"),
        ("n9", "its HTTP address .* is taken by"),
    ],
)
async def test_a_taken_name_or_address_is_refused(tmp_path: Path, name: str, reason: str) -> None:
    async with running_cluster(tmp_path, "", "") as cluster:
        newcomer = cluster.add(name=f"{name}x")
        newcomer.name = name
        if name == "n9":
            newcomer.http_address = cluster.sites[1].http_address
        with pytest.raises(SetupError, match=f"does not take this node in: .*{reason}"):
            await newcomer.join(cluster.sites[0])
        assert cluster.sites[0].topology.epoch == 1


async def test_another_cluster_name_is_refused(tmp_path: Path) -> None:
    async with running_cluster(tmp_path, "") as cluster:
        newcomer = cluster.add()
        await newcomer.open(join=cluster.sites[0], cluster="other")
        with pytest.raises(SetupError, match=f"this is cluster '{CLUSTER_NAME}', not 'other'"):
            await newcomer.node.start()


async def test_another_protocol_version_is_refused(tmp_path: Path) -> None:
    async with running_cluster(tmp_path, "") as cluster:
        hello = Hello(PROTOCOL_VERSION + 1, "node", "", CLUSTER_NAME, 9, "n9")
        change = ChangeTopology(1, Weigh("n1", 2.0))
        with pytest.raises(SetupError, match="run the same release on both sides"):
            await ask(cluster.sites[0].address, hello, change)


async def test_who_cannot_be_asked_yet_is_asked_again(tmp_path: Path) -> None:
    async with running_cluster(tmp_path, "") as cluster:
        member, newcomer = cluster.sites[0], cluster.add()
        await member.stop()
        await newcomer.open(join=member)
        joining = asyncio.ensure_future(newcomer.node.start())
        await asyncio.sleep(0.05)
        await member.start()
        async with asyncio.timeout(20):
            await joining
        assert [node.name for node in newcomer.topology.nodes] != []


async def test_a_wiped_disk_comes_back_as_another_member_in_the_same_place(tmp_path: Path) -> None:
    async with running_cluster(tmp_path, "", "", "") as cluster:
        old = cluster.sites[2]
        await old.stop()
        new = cluster.wiped(old)
        with pytest.raises(SetupError, match=r"another disk .* --replace n3"):
            await new.join(cluster.sites[0])
        await new.stop()
        await new.join(cluster.sites[0], replaces="n3")
        await all_at(cluster, new.topology)
        assert [node.name for node in new.topology.nodes if node.id == new.node.id] == ["n3"]
        assert len(new.topology.nodes) == 3
        assert new.node.id != old.node.id


async def test_a_node_that_was_taken_out_comes_back_only_by_joining(tmp_path: Path) -> None:
    async with running_cluster(tmp_path, "", "", "") as cluster:
        first, gone = cluster.sites[0], cluster.sites[2]
        await all_at(
            cluster, await first.node.membership.change(Remove("n3", force=True), TIMEOUT_MS)
        )
        with pytest.raises(Unavailable, match="no member"):
            await gone.node.membership.change(Weigh("n1", 2.0), TIMEOUT_MS)
        await gone.stop()
        with pytest.raises(SetupError, match=r"taken out of cluster .* start it with --join"):
            await gone.start()
        await gone.stop()
        await gone.join(first)
        await all_at(cluster, gone.topology)
        assert gone.topology.epoch == 3


async def test_a_cluster_of_one_that_moved_takes_others_in(tmp_path: Path) -> None:
    async with running_cluster(tmp_path, "") as cluster:
        alone = cluster.sites[0]
        await alone.stop()
        moved = cluster.add(name="n1x")
        moved.name, moved.directory = alone.name, alone.directory
        await moved.start()
        await until(lambda: moved.topology.epoch == 2, "its new address is known")
        newcomer = cluster.add()
        await newcomer.join(moved)
        listed = newcomer.topology.named("n1")
        assert listed is not None
        assert listed.address == moved.address
        await until(lambda: all(newcomer.node.peers.names().values()), "they meet")


async def test_a_change_over_the_port_is_answered(tmp_path: Path) -> None:
    async with running_cluster(tmp_path, "", "", "") as cluster:
        hello = Hello(PROTOCOL_VERSION, "client", "", CLUSTER_NAME, 0, "")
        address = cluster.sites[1].address
        refused = await ask(address, hello, ChangeTopology(7, Leave("n2")))
        assert isinstance(refused, TopologyChanged)
        assert isinstance(refused.failed, Failed)
        assert (refused.id, refused.failed.code) == (7, Code.BAD_REQUEST)
        made = await ask(address, hello, ChangeTopology(8, Leave("n2", force=True)))
        assert isinstance(made, TopologyChanged)
        assert made.failed is None
        await until(lambda: cluster.sites[0].topology.epoch == 2, "the change is known")
        assert [n.name for n in cluster.sites[0].topology.nodes if n.state == LEAVING] == ["n2"]


async def test_a_join_for_another_node_is_the_same_change(tmp_path: Path) -> None:
    """Whoever sends it: what comes in is the node in the change, once."""
    async with running_cluster(tmp_path, "") as cluster:
        node = cluster.sites[0].node
        listed = cluster.sites[0].topology.nodes[0]
        twin = msgspec.structs.replace(listed, id=9, name="n9", address="h:1", http_address="h:2")
        joined = await node.membership.change(Join(twin), TIMEOUT_MS)
        assert await node.membership.change(Join(twin), TIMEOUT_MS) == joined
