"""Real nodes killed, frozen and started again under load: what was acknowledged is there."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING

import pytest

import kvstore
from kvstore.errors import KVError
from tests.process.cluster_processes import states_seen_by, wait_for

if TYPE_CHECKING:
    from kvstore.cli.local_cluster import LocalCluster

KEYS = 64
PAUSE_S = 0.01
"""Between two writes of a thread that nobody waits for: nodes that start need the processor."""


class Writers:
    """Threads that count up keys of their own, each number once acknowledged."""

    def __init__(self, url: str, threads: int = 2) -> None:
        self._stopping = threading.Event()
        self._wanted = threading.Event()
        """Somebody waits for more writes: no pauses."""
        self.acknowledged: dict[str, int] = {}
        self.errors: list[KVError] = []
        self._threads = [threading.Thread(target=self._run, args=(url, n)) for n in range(threads)]
        for thread in self._threads:
            thread.start()

    def _run(self, url: str, mine: int) -> None:
        with kvstore.connect(url, timeout=10) as db:
            number = 0
            while not self._stopping.is_set():
                number += 1
                key = f"w:{mine}:{number % KEYS}"
                try:
                    self.acknowledged[key] = db.incr(key)
                except KVError as error:
                    self.errors.append(error)
                if not self._wanted.is_set():
                    self._stopping.wait(PAUSE_S)

    def more(self, count: int) -> None:
        """Wait until so many more increments are acknowledged."""
        goal = sum(self.acknowledged.values()) + count
        self._wanted.set()
        wait_for(lambda: sum(self.acknowledged.copy().values()) >= goal, f"{count} more writes")
        self._wanted.clear()

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()


def check_counts(cluster: LocalCluster, writers: Writers) -> None:
    """Each increment was applied once: the counters stand where the last answer said."""
    with kvstore.connect(cluster.url) as db:
        assert db.get_many(list(writers.acknowledged)) == writers.acknowledged


def test_kill_9_loses_nothing_and_counts_once(fresh: LocalCluster) -> None:
    writers = Writers(fresh.url)
    try:
        writers.more(500)
        fresh.nodes[1].signal(signal.SIGKILL)
        writers.more(500)
        wait_for(lambda: states_seen_by(fresh, 0).get("n2") == "dead", "n1 sees n2 dead")
        fresh.start_node(fresh.nodes[1])
        fresh.wait_ready(30)
        wait_for(lambda: states_seen_by(fresh, 0).get("n2") == "alive", "n1 sees n2 alive again")
        writers.more(500)
        fresh.nodes[0].signal(signal.SIGKILL)
        writers.more(500)
    finally:
        writers.stop()
    assert writers.errors == []
    check_counts(fresh, writers)


def test_a_frozen_node_is_passed_over_and_comes_back(fresh: LocalCluster) -> None:
    writers = Writers(fresh.url)
    try:
        writers.more(200)
        fresh.nodes[2].signal(signal.SIGSTOP)
        writers.more(500)
        wait_for(lambda: states_seen_by(fresh, 0).get("n3") == "dead", "n1 sees n3 dead")
        fresh.nodes[2].signal(signal.SIGCONT)
        wait_for(lambda: states_seen_by(fresh, 0).get("n3") == "alive", "n3 refutes its death")
        wait_for(lambda: states_seen_by(fresh, 2).get("n1") == "alive", "n3 sees the others")
        writers.more(500)
    finally:
        writers.stop()
    assert writers.errors == []
    check_counts(fresh, writers)


def test_all_killed_at_once_keep_what_they_acknowledged(fresh: LocalCluster) -> None:
    with kvstore.connect(fresh.url, timeout=20) as db:
        written = {f"k:{n}": n for n in range(2_000)}
        db.put_many(written)
        for node in fresh.nodes:
            node.signal(signal.SIGKILL)
        for node in fresh.nodes:
            assert node.process is not None
            node.process.wait()
            fresh.start_node(node)
        fresh.wait_ready(30)
        assert db.get_many(list(written)) == written
        assert db.incr("k:5") == 6


def test_without_a_quorum_nothing_is_promised(fresh: LocalCluster) -> None:
    with kvstore.connect(fresh.url, timeout=1.5) as db:
        db.put("k", 1)
        for node in fresh.nodes[1:]:
            node.signal(signal.SIGKILL)
        with pytest.raises(KVError):
            db.put("k", 2)
        with pytest.raises(KVError):  # an outage is never answered as an old value or as absence
            db.get("k")
        for node in fresh.nodes[1:]:
            assert node.process is not None
            node.process.wait()
            fresh.start_node(node)
        fresh.wait_ready(30)
        assert db.get("k") in (1, 2)
