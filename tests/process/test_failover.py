"""What clients notice of a single failure of real nodes: a longer latency, and nothing else.

Figures are for `make bench-failover`; here only what is right or wrong is looked at: no error,
nothing lost, nothing counted twice, and slots that come back to where they belong.
"""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING

import psutil
import pytest

import kvstore
from kvstore.errors import KVError
from tests.process.cluster_processes import wait_for
from tests.process.test_faults import PAUSE_S

if TYPE_CHECKING:
    from kvstore.cli.local_cluster import LocalCluster, LocalNode

KEYS = 512
"""Some in every slot."""

BALANCED = 256 // 3 - 10
"""Slots that each of three nodes leads at least, of the 256 of a small cluster."""


class Counters:
    """Threads that count up every key, and put the number beside it, with default settings."""

    def __init__(self, url: str, threads: int = 2) -> None:
        self._stopping = threading.Event()
        self._wanted = threading.Event()
        """Somebody waits for them to count: no pauses."""
        self.counted: dict[str, int] = {}
        self.errors: list[KVError] = []
        self._threads = [threading.Thread(target=self._run, args=(url, n)) for n in range(threads)]
        for thread in self._threads:
            thread.start()

    def _run(self, url: str, mine: int) -> None:
        with kvstore.connect(url) as db:
            while not self._stopping.is_set():
                for number in range(KEYS):
                    key = f"{mine}:{number}"
                    try:
                        self.counted[key] = db.incr(key)
                        if number % 64 == 0:
                            db.put_many({f"{key}:{n}": self.counted[key] for n in range(64)})
                    except KVError as error:
                        self.errors.append(error)
                    if self._stopping.is_set():
                        return
                    if not self._wanted.is_set():
                        self._stopping.wait(PAUSE_S)

    def more(self, count: int) -> None:
        """Wait until so many more are counted."""
        goal = sum(self.counted.copy().values()) + count
        self._wanted.set()
        wait_for(lambda: sum(self.counted.copy().values()) >= goal, f"{count} more counted")
        self._wanted.clear()

    def stop(self, cluster: LocalCluster) -> None:
        """No error, and each counter stands where its last answer said: once, and not lost."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        assert self.errors == []
        with kvstore.connect(cluster.url, timeout=20) as db:
            assert db.get_many(list(self.counted)) == self.counted


def leads(viewer: LocalNode) -> dict[str, int]:
    """Who leads how many slots, of the living, by one node's word."""
    document = viewer.fetch("/v1/cluster")
    if document is None:
        return {}
    return {n["name"]: n["slots_led"] for n in document["nodes"] if n["state"] == "alive"}


def wait_balanced(cluster: LocalCluster) -> None:
    """Until every node leads its part again."""
    wait_for(
        lambda: all(
            len(led := leads(node)) == 3 and min(led.values()) >= BALANCED for node in cluster.nodes
        ),
        "all slots are back where they belong",
        timeout_s=30,
    )


def test_a_killed_node_costs_no_operation_and_takes_its_slots_back(fresh: LocalCluster) -> None:
    counters = Counters(fresh.url)
    for node in fresh.nodes[:2]:
        counters.more(300)
        node.signal(signal.SIGKILL)
        assert node.process is not None
        node.process.wait()
        counters.more(1_000)
        fresh.start_node(node)
        wait_balanced(fresh)
        counters.more(300)
    counters.stop(fresh)


def test_a_frozen_node_costs_no_operation_and_takes_its_slots_back(fresh: LocalCluster) -> None:
    counters = Counters(fresh.url)
    node = fresh.nodes[0]
    counters.more(300)
    node.signal(signal.SIGSTOP)
    wait_for(lambda: "n1" not in leads(fresh.nodes[1]), "n2 passes n1 over")
    counters.more(1_000)
    node.signal(signal.SIGCONT)
    wait_balanced(fresh)
    counters.more(300)
    counters.stop(fresh)


def test_a_rolling_restart_fails_no_operation(fresh: LocalCluster) -> None:
    counters = Counters(fresh.url)
    for node in fresh.nodes:
        counters.more(200)
        node.signal(signal.SIGTERM)
        assert node.process is not None
        assert node.process.wait(15) == 0
        counters.more(200)
        fresh.start_node(node)
        wait_balanced(fresh)
    counters.more(200)
    counters.stop(fresh)


def test_a_node_that_is_stopped_hands_its_slots_over_first(fresh: LocalCluster) -> None:
    """Whoever looks after its end finds every slot led: nothing waits to be taken over."""
    node = fresh.nodes[1]
    wait_balanced(fresh)
    earlier = len(node.log_path.read_text())
    node.signal(signal.SIGTERM)
    assert node.process is not None
    assert node.process.wait(15) == 0
    log = node.log_path.read_text()[earlier:]
    assert '"slots_left": 0' in log
    assert sum(leads(fresh.nodes[0]).values()) == 256


@pytest.mark.parametrize(
    ("rounds", "keys"),
    [pytest.param(3, 4_096, id="by key log"), pytest.param(30, 1_024, id="by whole copy")],
)
def test_a_node_that_missed_writes_is_brought_on(
    fresh: LocalCluster, rounds: int, keys: int
) -> None:
    """... and answers for its own copy then; what it takes meanwhile is bounded."""
    node = fresh.nodes[2]
    with kvstore.connect(fresh.url, timeout=20) as db:
        names = [f"key:{number}" for number in range(keys)]
        db.put_many(dict.fromkeys(names, -1))
        node.signal(signal.SIGKILL)
        assert node.process is not None
        node.process.wait()
        for number in range(rounds):
            for tag in range(4):  # these four slots are written past the reach of a key log
                db.put_many({f"{{{tag}}}:{n}": number for n in range(40)})
            db.put_many(dict.fromkeys(names, number))
        fresh.start_node(node)
        wait_balanced(fresh)
        wanted = dict.fromkeys(names, rounds - 1)
        wait_for(lambda: held_by(node, names) == wanted, "n3 holds all of it itself")
        tagged = [f"{{{tag}}}:{n}" for tag in range(4) for n in range(40)]
        wait_for(
            lambda: held_by(node, tagged) == dict.fromkeys(tagged, rounds - 1),
            "n3 holds what was beyond the key log",
        )
    assert psutil.Process(node.process.pid).memory_info().rss < 512 * 1_048_576


def held_by(node: LocalNode, keys: list[str]) -> dict[str, int]:
    """What this node's own copy has."""
    with kvstore.connect(f"kv://{node.address}", timeout=20) as db:
        db.get("anything")  # fetches the routing table, which is then made to know this node alone
        db._core.token_aware, db._core.table.addresses = False, [node.address]
        return dict(db.get_many(keys, consistency="eventual"))
