"""Real processes under too much: a peer that takes nothing, and more load than can be served."""

from __future__ import annotations

import asyncio
import signal
import urllib.request
from typing import TYPE_CHECKING

import psutil

import kvstore
from cluster.limits import PEER_UNSENT_BYTES_MAX
from kvstore.errors import Overloaded
from tests.process.cluster_processes import wait_for

if TYPE_CHECKING:
    from kvstore.cli.local_cluster import LocalCluster, LocalNode

VALUE = bytes(512 * 1_024)
VALUES = 96
"""48 MiB: three times what is kept unsent for a peer."""

STORE_BYTES_MAX = 160 * 1_048_576
"""What RocksDB keeps of them in memory at most."""

TASKS = 3_000


def memory_bytes(node: LocalNode) -> int:
    assert node.process is not None
    resident: int = psutil.Process(node.process.pid).memory_info().rss
    return resident


def held_by(node: LocalNode, key: str) -> bytes | None:
    """What this node itself holds of a key."""
    url = f"http://127.0.0.1:{node.http_port}/v1/kv/{key}?consistency=eventual"
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            body: bytes = answer.read()
            return body
    except OSError:
        return None


def test_a_frozen_peer_costs_nobody_memory_and_is_brought_up_to_date(fresh: LocalCluster) -> None:
    with kvstore.connect(fresh.url) as db:
        frozen, *others = reversed(fresh.nodes)
        keys = [f"frozen:{number}" for number in range(VALUES)]
        db.put_many(dict.fromkeys(keys, b"before"))
        before = [memory_bytes(node) for node in others]
        told = len(logs(fresh))
        frozen.signal(signal.SIGSTOP)
        for key in keys:
            db.put(key, VALUE, timeout=20)
        grown = [memory_bytes(node) - was for node, was in zip(others, before, strict=True)]
        assert max(grown) < STORE_BYTES_MAX + 4 * PEER_UNSENT_BYTES_MAX
        frozen.signal(signal.SIGCONT)
        wait_for(lambda: all(held_by(frozen, key) == VALUE for key in keys), "it has caught up")
        noticed = ("does not take what it is sent", "link lost")  # 16 MiB, or a second and a half
        assert any(word in logs(fresh)[told:] for word in noticed), "or this has tested nothing"


def logs(cluster: LocalCluster) -> str:
    """Of the nodes that are not frozen."""
    return "".join(node.log_path.read_text() for node in cluster.nodes[:2])


def test_too_many_callers_are_served_or_told_to_come_later(cluster: LocalCluster) -> None:
    """With a library client's retries nearly all are served; nobody is left without an answer."""

    async def call(db: kvstore.AsyncClient, number: int) -> str:
        try:
            await db.put(f"many:{number}", number, timeout=20)
        except Overloaded:
            return "refused"
        return "done"

    async def calls(url: str) -> list[str]:
        async with kvstore.connect_async(url) as db:
            return await asyncio.gather(*(call(db, number) for number in range(TASKS)))

    outcomes = asyncio.run(calls(cluster.url))
    with kvstore.connect(cluster.url) as db:
        stored = {int(key.split(":")[1]) for key, _ in db.scan("many:")}
    done = {number for number, outcome in enumerate(outcomes) if outcome == "done"}
    assert done == stored, "refused means that nothing was written"
    assert len(done) > TASKS * 0.7
