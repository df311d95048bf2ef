"""Real nodes join and leave under load: no operation fails, and the data is all there."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

import kvstore
from cluster.membership import Leave
from kvstore.node.founding import ask
from kvstore.wire.protocol import PROTOCOL_VERSION, ChangeTopology, Hello, TopologyChanged
from tests.process.cluster_processes import running_cluster, states_seen_by, wait_for
from tests.process.test_faults import Writers, check_counts

if TYPE_CHECKING:
    from pathlib import Path

    from cluster.membership import TopologyChange
    from kvstore.cli.local_cluster import LocalCluster, LocalNode

HELD_MIN = 150
"""A quarter of 256 slots in three copies is 192."""


def held(node: LocalNode) -> int:
    document = node.fetch("/v1/cluster/node")
    return 0 if document is None else int(document["slots_held"])


def change(cluster: LocalCluster, what: TopologyChange) -> TopologyChanged:
    """Ask the first node for a change."""
    hello = Hello(PROTOCOL_VERSION, "client", "", "ringkv", 0, "")
    answer = asyncio.run(
        ask(cluster.nodes[0].address, hello, ChangeTopology(1, what), timeout_s=20)
    )
    assert isinstance(answer, TopologyChanged)
    return answer


def test_a_fourth_node_joins_under_load_takes_its_share_and_leaves_again(tmp_path: Path) -> None:
    with running_cluster(tmp_path) as cluster:
        with kvstore.connect(cluster.url) as db:
            written = {f"k:{n}": n for n in range(2_000)}
            db.put_many(written)
        writers = Writers(cluster.url)
        try:
            writers.more(200)
            fourth = cluster.add_node()
            wait_for(lambda: held(fourth) >= HELD_MIN, "n4 holds its share", 60)
            wait_for(lambda: fourth.fetch("/health/ready") is not None, "n4 is ready")
            writers.more(300)
            assert change(cluster, Leave("n4")).failed is None
            wait_for(lambda: "n4" not in states_seen_by(cluster, 0), "n4 is out", 60)
            assert fourth.state == "running"
            assert held(fourth) == 0
            fourth.signal(signal.SIGKILL)
            writers.more(300)
        finally:
            writers.stop()
        assert writers.errors == []
        check_counts(cluster, writers)
        with kvstore.connect(f"kv://{cluster.nodes[0].address}") as db:
            assert db.get_many(list(written)) == written


def test_a_node_joins_while_another_is_killed_and_back(tmp_path: Path) -> None:
    with running_cluster(tmp_path) as cluster, kvstore.connect(cluster.url, timeout=20) as db:
        written = {f"k:{n}": n for n in range(2_000)}
        db.put_many(written)
        fourth = cluster.add_node()
        wait_for(lambda: held(fourth) > 0, "slots arrive", 60)
        for victim in (cluster.nodes[1], fourth):
            victim.signal(signal.SIGKILL)
            assert victim.process is not None
            victim.process.wait()
            cluster.start_node(victim)
        wait_for(lambda: held(fourth) >= HELD_MIN, "n4 holds its share", 60)
        cluster.wait_ready(30)
        assert db.get_many(list(written)) == written


def test_a_lost_disk_is_replaced_on_the_same_machine(tmp_path: Path) -> None:
    with running_cluster(tmp_path) as cluster, kvstore.connect(cluster.url, timeout=20) as db:
        written = {f"k:{n}": n for n in range(2_000)}
        db.put_many(written)
        lost = cluster.nodes[2]
        lost.signal(signal.SIGKILL)
        assert lost.process is not None
        lost.process.wait()
        lost.directory = tmp_path / "n3-new"
        lost.start(["--join", cluster.nodes[0].address], ["--slot-count", "256"])
        lost.process.wait(20)
        assert "--replace n3" in lost.log_tail()
        lost.start(["--join", cluster.nodes[0].address, "--replace", "n3"], [])
        wait_for(lambda: held(lost) == 256, "n3 is filled again", 60)
        cluster.nodes[0].signal(signal.SIGKILL)
        assert db.get_many(list(written)) == written
