"""How long a node with many keys takes to come back, and what it costs the others to bring it on.

Bytes are those that all nodes handed to their data links (``kvstore_peer_sent_bytes_total``) from
the start of the returning node until nothing more is sent: content, and everything that is said
about it. They are compared with the keys and records that the node missed.
"""

from __future__ import annotations

import re
import signal
import time
import urllib.request
from dataclasses import dataclass
from itertools import count
from random import randbytes
from typing import TYPE_CHECKING, Final

import psutil

import kvstore
from cluster.records import VERSION_BYTES
from kvstore.errors import KVError
from scripts.failover_scenarios import BACK_TIMEOUT_S, restart, wait_back

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from kvstore.cli.local_cluster import LocalCluster, LocalNode

BATCH_KEYS: Final = 2_000
VALUE_BYTES: Final = 98
"""100 packed; they are random, because what is sent is compressed."""

RECORD_BYTES: Final = 6 + VERSION_BYTES + VALUE_BYTES + 2
"""See `cluster.records`."""

STILL_S: Final = 1.0
MIB: Final = 1_048_576


@dataclass(frozen=True)
class Return:
    """A node came back after missing writes."""

    name: str
    writes: int
    missed_bytes: int
    sent_bytes: int
    seconds: float
    rss_mib: float


def fill(cluster: LocalCluster, keys: int) -> None:
    """Store so many keys."""
    write(cluster, (f"key:{number:07d}" for number in range(keys)))


def write(cluster: LocalCluster, keys: Iterable[str]) -> tuple[int, int]:
    """Write each key once: how many, and the bytes of their keys and records."""
    written = size = 0
    with kvstore.connect(cluster.url, timeout=60) as client:
        for some in _batches(keys):
            client.put_many({key: randbytes(VALUE_BYTES) for key in some})
            written += len(some)
            size += sum(len(key) + RECORD_BYTES for key in some)
    return written, size


def serves_after_s(cluster: LocalCluster, node: LocalNode) -> float:
    """Kill -9 a node, start it: seconds until it answers a read of every kind of slot."""
    node.signal(signal.SIGKILL)
    assert node.process is not None
    node.process.wait()
    begin = time.monotonic()
    cluster.start_node(node)
    with kvstore.connect(f"kv://{node.address}", timeout=BACK_TIMEOUT_S) as client:
        keys = [f"key:{number:07d}" for number in range(BATCH_KEYS)]
        while True:
            try:
                assert len(client.get_many(keys)) == len(keys)
            except KVError:
                continue
            return time.monotonic() - begin


def missed(cluster: LocalCluster, node: LocalNode, name: str, keys: Iterable[str]) -> Return:
    """Stop a node, write, start it: what it took to bring it on."""
    node.signal(signal.SIGTERM)
    assert node.process is not None
    node.process.wait()
    writes, size = write(cluster, keys)
    before = {other.name: sent_bytes(other) for other in cluster.nodes if other is not node}
    begin = time.monotonic()
    restart(cluster, node)
    wait_back(cluster)
    sent, still_since = -1.0, time.monotonic()
    while time.monotonic() - still_since < STILL_S:
        now = sum(sent_bytes(other) - before.get(other.name, 0) for other in cluster.nodes)
        if now > sent + 10_000:  # what the nodes say when nothing happens is less
            sent, still_since = now, time.monotonic()
        time.sleep(0.1)
    rss = psutil.Process(node.process.pid).memory_info().rss / MIB
    return Return(name, writes, size, int(sent), still_since - begin, rss)


def sent_bytes(node: LocalNode) -> float:
    """The node's counter; 0 while it does not answer."""
    try:
        with urllib.request.urlopen(
            f"http://{node.host}:{node.http_port}/metrics", timeout=10
        ) as answer:
            text = answer.read().decode()
    except OSError:
        return 0.0
    found = re.search(r"^kvstore_peer_sent_bytes_total (\S+)$", text, re.MULTILINE)
    assert found is not None
    return float(found[1])


def keys_of_few_slots(writes: int, slots: int, keys_each: int) -> Iterator[str]:
    """So many writes to a few keys each of a few slots, far beyond the reach of a key log."""
    for number in count():
        if number == writes:
            return
        yield f"{{few:{number % slots}}}:{number // slots % keys_each}"


def _batches(keys: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for key in keys:
        batch.append(key)
        if len(batch) == BATCH_KEYS:
            yield batch
            batch = []
    if batch:
        yield batch
