"""Real nodes join and leave under load: no operation fails, and the data is all there."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING

import kvstore
from tests.process.cluster_processes import command_here as command
from tests.process.cluster_processes import (
    running_cluster,
    states_seen_by,
    wait_for,
)
from tests.process.test_faults import Writers, check_counts

if TYPE_CHECKING:
    from pathlib import Path

    from kvstore.cli.local_cluster import LocalCluster, LocalNode

HELD_MIN = 150
"""A quarter of 256 slots in three copies is 192."""


def held(node: LocalNode) -> int:
    document = node.fetch("/v1/cluster/node")
    return 0 if document is None else int(document["slots_held"])


def arrived(cluster: LocalCluster) -> bool:
    """Whether every slot is where the topology wants it."""
    return "all slots are where they should be" in command("rebalance", url=cluster.url).stdout


def kill(node: LocalNode) -> None:
    node.signal(signal.SIGKILL)
    assert node.process is not None
    node.process.wait()


def can_stop(cluster: LocalCluster, name: str) -> bool:
    return command("can-stop", name, url=cluster.url).returncode == 0


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
            assert can_stop(cluster, "n4")
            left = command("leave", "n4", url=cluster.url)
            assert left.returncode == 0, left.stderr
            assert "n4 is out of the cluster and holds nothing" in left.stdout
            assert "n4" not in states_seen_by(cluster, 0)
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


def test_source_target_and_both_are_killed_while_a_node_joins(tmp_path: Path) -> None:
    with running_cluster(tmp_path) as cluster, kvstore.connect(cluster.url, timeout=20) as db:
        written = {f"k:{n}": n for n in range(2_000)}
        db.put_many(written)
        fourth = cluster.add_node()
        wait_for(lambda: held(fourth) > 0, "slots arrive", 60)
        source = cluster.nodes[1]
        for victims in ([source], [fourth], [source, fourth]):
            for victim in victims:
                kill(victim)
            for victim in victims:
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
        wait_for(lambda: can_stop(cluster, "n1"), "the last members have changed")
        cluster.nodes[0].signal(signal.SIGKILL)
        assert db.get_many(list(written)) == written


def test_a_node_that_stays_dead_is_replaced_by_itself_and_comes_back(tmp_path: Path) -> None:
    with running_cluster(tmp_path, nodes=4) as cluster:
        first, last = cluster.nodes[0], cluster.nodes[3]
        with kvstore.connect(cluster.url, timeout=20) as db:
            written = {f"k:{n}": n for n in range(2_000)}
            db.put_many(written)
            assert command("rebalance", "--away-after", "1", url=cluster.url).returncode == 0
            kill(last)
            wait_for(lambda: "away" in command("members", url=cluster.url).stdout, "n4 is away", 60)
            wait_for(lambda: can_stop(cluster, "n1"), "all slots have three copies again", 60)
            assert [held(node) for node in cluster.nodes[:3]] == [256] * 3
            kill(first)
            assert db.get_many(list(written)) == written
            cluster.start_node(first)
            cluster.start_node(last)
            wait_for(lambda: held(last) >= HELD_MIN, "n4 has its share again", 60)
            wait_for(lambda: arrived(cluster), "all slots are where they should be", 60)
            assert db.get_many(list(written)) == written
        assert "away" not in command("members", url=cluster.url).stdout
        assert states_seen_by(cluster, 1)["n4"] == "alive"


def test_the_commands_tell_the_truth(tmp_path: Path) -> None:
    with running_cluster(tmp_path) as cluster:
        url = cluster.url
        with kvstore.connect(url) as db:
            db.put_many({f"k:{n}": "x" * 1_000 for n in range(2_000)})
        refused = command("leave", "n3", url=url)
        assert refused.returncode == 2
        assert "2 nodes are left for 3 copies" in refused.stderr
        losses = command("can-stop", "-o", "json", url=url)
        assert json.loads(losses.stdout) == [
            {"loss": name, "kind": "node", "slots_lost": 0} for name in ("n1", "n2", "n3")
        ]
        pairs = json.loads(command("can-stop", "--pairs", "-o", "json", url=url).stdout)[3:]
        assert sorted((row["loss"], row["slots_lost"]) for row in pairs) == [
            (pair, 257) for pair in ("n1+n2", "n1+n3", "n2+n3")
        ]
        assert arrived(cluster)

        shown = command("join", cluster.nodes[1].address, "--plan", "--name", "n4", url=url)
        assert "reason  n4 joins" in shown.stdout, shown.stderr
        (row,) = (line.split() for line in shown.stdout.splitlines() if line.startswith("n4 "))
        assert row[:3] == ["n4", "0", row[5]], "what it will hold, it is brought"
        assert abs(int(row[5]) - 192) <= 0.05 * 192, "three copies of 256 slots on four nodes"

        shown = command("rebalance", "--plan", "--replicas", "1", "-o", "json", url=url)
        planned = json.loads(shown.stdout)
        assert planned["reason"] == "1 copies of each key instead of 3"
        assert (planned["slots"], planned["copies"]) == (256, 0)
        assert cluster.nodes[0].fetch("/v1/cluster/topology")["epoch"] == 1

        assert command("rebalance", "--replicas", "1", "--wait", url=url).returncode == 0
        wait_for(lambda: sum(map(held, cluster.nodes)) == 256, "one copy of each slot", 60)
        assert command("can-stop", "n1", url=url).returncode == 1
        plan = command("rebalance", "--plan", "--replicas", "3", "-o", "json", url=url)
        planned = json.loads(plan.stdout)
        assert planned["copies"] == 512
        assert abs(planned["copies_bytes"] / (2 * 2_000 * 1_050) - 1) < 0.1

        assert command("rebalance", "--pause", "--replicas", "3", url=url).returncode == 0
        paused = command("rebalance", url=url)
        wait_for(lambda: "256 slots to go" in command("rebalance", url=url).stdout, "all wait")
        assert sum(map(held, cluster.nodes)) == 256, paused.stdout
        assert command("rebalance", "--resume", "--rate", "0", "--wait", url=url).returncode == 0
        wait_for(lambda: sum(map(held, cluster.nodes)) == 768, "three copies again", 60)

        cluster.nodes[2].signal(signal.SIGKILL)
        wait_for(lambda: states_seen_by(cluster, 0).get("n3") == "dead", "n3 is dead")
        no = command("can-stop", "n1", url=url)
        assert no.returncode == 1
        assert "no: 257 slots would have no quorum without n1" in no.stdout
