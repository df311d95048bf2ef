"""Watches over real nodes that are killed under them: nothing lost, doubled or out of order."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import pytest

import kvstore
from tests.process.cluster_processes import running_cluster, states_seen_by, wait_for
from tests.process.test_faults import Writers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kvstore.cli.local_cluster import LocalCluster
    from kvstore.client import Client, Watch, WatchEvent


class Counts:
    """The events of counters that are only ever incremented."""

    def __init__(self) -> None:
        self.heard: defaultdict[str, list[Any]] = defaultdict(list)
        """Key -> each value, or None where it was superseded."""

    def add(self, event: WatchEvent) -> None:
        assert event.type in ("put", "superseded"), event
        assert isinstance(event.key, str)
        self.heard[event.key].append(event.value)

    @property
    def newest(self) -> dict[str, int]:
        return {key: len(values) for key, values in self.heard.copy().items()}

    def check(self) -> None:
        """The n-th event of a counter is its n-th increment, and the last one has its value."""
        for key, values in self.heard.items():
            for number, value in enumerate(values, 1):
                assert value in (number, None), (key, values)
            assert values[-1] is not None, key


class Listening:
    """A thread that reads a watch."""

    def __init__(self, watch: Watch) -> None:
        self.counts = Counts()
        self.errors: list[Exception] = []
        self._watch = watch
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            for event in self._watch:
                self.counts.add(event)
        except Exception as error:
            self.errors.append(error)

    def stop(self) -> None:
        self._watch.close()
        self._thread.join(10)
        assert not self._thread.is_alive()


class LoopListening:
    """The same with the asyncio client, on a loop of its own."""

    def __init__(self, url: str) -> None:
        self.counts = Counts()
        self._loop = asyncio.new_event_loop()
        self._begun = threading.Event()
        self._watch: kvstore.AsyncWatch
        self._thread = threading.Thread(
            target=self._loop.run_until_complete, args=(self._run(url),)
        )
        self._thread.start()
        assert self._begun.wait(10)

    async def _run(self, url: str) -> None:
        async with kvstore.connect_async(url) as db, db.watch("w:") as self._watch:
            self._begun.set()
            async for event in self._watch:
                self.counts.add(event)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._watch.close)
        self._thread.join(10)
        assert not self._thread.is_alive()
        self._loop.close()


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[LocalCluster]:
    with running_cluster(tmp_path) as cluster:
        yield cluster


def kill_two_after_each_other(cluster: LocalCluster, writers: Writers) -> None:
    writers.more(500)
    cluster.nodes[1].signal(signal.SIGKILL)
    writers.more(500)
    wait_for(lambda: states_seen_by(cluster, 0).get("n2") == "dead", "n1 sees n2 dead")
    cluster.start_node(cluster.nodes[1])
    cluster.wait_ready(30)
    wait_for(lambda: states_seen_by(cluster, 0).get("n2") == "alive", "n1 sees n2 alive again")
    writers.more(500)
    cluster.nodes[0].signal(signal.SIGKILL)
    writers.more(500)


def test_kill_9_under_watches_of_both_clients(fresh: LocalCluster) -> None:
    with kvstore.connect(fresh.url) as db:
        listening = Listening(db.watch("w:"))
        on_a_loop = LoopListening(fresh.url)
        writers = Writers(fresh.url)
        try:
            kill_two_after_each_other(fresh, writers)
        finally:
            writers.stop()
        for one in (listening, on_a_loop):
            wait_for(lambda: one.counts.newest == writers.acknowledged, "all writes are heard")  # noqa: B023
        listening.stop()
        on_a_loop.stop()
    assert writers.errors == []
    assert listening.errors == []
    listening.counts.check()
    on_a_loop.counts.check()


def test_a_frozen_node_is_left(fresh: LocalCluster) -> None:
    with kvstore.connect(fresh.url) as db:
        listening = Listening(db.watch("w:"))
        writers = Writers(fresh.url)
        try:
            writers.more(200)
            fresh.nodes[2].signal(signal.SIGSTOP)
            writers.more(500)
            wait_for(
                lambda: sum(listening.counts.newest.values()) >= 600, "events after the freeze"
            )
            fresh.nodes[2].signal(signal.SIGCONT)
            writers.more(300)
        finally:
            fresh.nodes[2].signal(signal.SIGCONT)
            writers.stop()
        wait_for(lambda: listening.counts.newest == writers.acknowledged, "all writes are heard")
        listening.stop()
    assert listening.errors == []
    listening.counts.check()


def test_a_token_goes_on_after_everything_was_restarted(fresh: LocalCluster) -> None:
    counts = Counts()
    with kvstore.connect(fresh.url, timeout=20) as db:
        with db.watch("r:") as watch:
            db.incr("r:1")
            event = watch.poll(5)
            assert event is not None
            counts.add(event)
            token = event.token
        for _ in range(3):
            db.incr("r:1")
            db.incr("r:2")
        for node in fresh.nodes:
            node.signal(signal.SIGKILL)
        for node in fresh.nodes:
            assert node.process is not None
            node.process.wait()
            fresh.start_node(node)
        fresh.wait_ready(30)
        db.incr("r:2")
        with db.watch("r:", resume=token) as watch:
            while counts.newest != {"r:1": 4, "r:2": 4}:
                event = watch.poll(10)
                assert event is not None
                counts.add(event)
            assert watch.poll(0.1) is None
    counts.check()


def rate(db: Client, values: list[bytes]) -> float:
    """Puts a second."""
    began = time.monotonic()
    for number, value in enumerate(values):
        db.put(f"s:{number % 100}", value)
    return len(values) / (time.monotonic() - began)


def test_a_slow_watcher_is_cut_off_and_slows_no_writer(cluster: LocalCluster, db: Client) -> None:
    values = [b"x" * 65_536] * 300
    rate(db, values)
    alone = rate(db, values)
    with db.watch("s:") as fast, db.watch("s:") as slow:
        listening = Listening(fast)
        listening.counts.add = lambda event: None  # type: ignore[method-assign]
        watched = max(rate(db, values) for _ in range(3))
        heard: list[WatchEvent] = []
        with pytest.raises(kvstore.SlowWatcher, match="go on from the last token"):
            heard.extend(slow)
        assert len(heard) < 900
        token = slow.token
        listening.stop()
        assert listening.errors == []
    assert watched > alone / 2
    with db.watch("s:", resume=token) as again:
        event = again.poll(5)
        assert event is not None
