"""Watches over real nodes that are killed under them: nothing lost, doubled or out of order."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import pytest

import kvstore
from tests.process.cluster_processes import command, states_seen_by, wait_for
from tests.process.test_faults import Writers

if TYPE_CHECKING:
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


class Events:
    """Server-sent events, as curl would show them."""

    def __init__(self, cluster: LocalCluster, node: int, token: str | None = None) -> None:
        port = cluster.nodes[node].http_port
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        headers = {"Last-Event-ID": token} if token else {}
        self._connection.request("GET", "/v1/watch?prefix=e:", headers=headers)
        self._response = self._connection.getresponse()
        assert self._response.status == 200, self._response.read()
        self.token = token or ""

    def changes(self) -> list[dict[str, Any]]:
        """The next message's."""
        fields: dict[str, str] = {}
        while line := self._response.readline().decode().rstrip("\n"):
            name, _, value = line.partition(": ")
            fields[name] = value
        if "data" not in fields:
            return []
        self.token = fields.get("id", self.token)
        found = json.loads(fields["data"])
        return found if isinstance(found, list) else []

    def close(self) -> None:
        self._response.close()
        self._connection.close()


def test_server_sent_events_go_on_at_another_node(fresh: LocalCluster) -> None:
    counts: defaultdict[str, list[int | None]] = defaultdict(list)
    with kvstore.connect(fresh.url, timeout=20) as db:

        def count_up(events: Events, last: int) -> None:
            for _ in range(5):
                for key in range(30):
                    db.incr(f"e:{key}")
            while [len(values) for values in counts.values()] != [last] * 30:
                for change in events.changes():
                    assert change["type"] in ("put", "superseded")
                    counts[change["key"]].append(change.get("value"))

        events = Events(fresh, 0)
        count_up(events, 5)
        fresh.nodes[1].signal(signal.SIGKILL)  # the stream goes on
        count_up(events, 10)
        fresh.start_node(fresh.nodes[1])
        fresh.wait_ready(30)
        fresh.nodes[0].signal(signal.SIGKILL)  # the stream ends with its node
        events.close()
        again = Events(fresh, 2, events.token)
        count_up(again, 15)
        again.close()
    for values in counts.values():
        assert all(value in (number, None) for number, value in enumerate(values, 1)), values
        assert values[-1] == 15


def test_the_command_line_prints_and_resumes(
    cluster: LocalCluster, db: Client, tmp_path: Path
) -> None:
    place = tmp_path / "place"
    arguments = ["watch", "c:", "-o", "json", "--limit", "2", "--resume", str(place)]
    with subprocess.Popen(
        [sys.executable, "-m", "kvstore", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "KVSTORE_URL": cluster.url},
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == b"kvstore: watching 'c:'\n"
        version = db.put("c:1", {"x": 1})
        db.delete("c:1")
        lines = process.communicate(timeout=30)[0].splitlines()
    assert process.returncode == 0
    first, second = map(json.loads, lines)
    assert first == {"type": "put", "key": "c:1", "version": version, "value": {"x": 1}}
    assert (second["type"], second["key"]) == ("delete", "c:1")
    db.put("c:2", "two")
    again = command(*arguments[:2], "--limit", "1", "--resume", str(place), url=cluster.url)
    assert (again.returncode, again.stdout) == (0, "put         c:2  two\n")
    wrong = command("watch", "d:", "--resume", str(place), url=cluster.url)
    assert (wrong.returncode, "belongs to another prefix" in wrong.stderr) == (2, True)


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
