"""How fast slots move when nothing holds them back, whether the plan said so, and a lost disk.

Nobody else uses the cluster meanwhile and no rate is set, so the machine is the limit. Three of its
limits are measured in the same run: what its disk takes with an fsync at the end, what one loopback
connection carries, and what one process takes from one RocksDB and puts into another, in records
like those of the cluster. The last one is the nearest: a copy is read by one node, sent, and
written by another, all on the processors that the other nodes run on too.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import tempfile
import threading
import time
from dataclasses import dataclass
from random import randbytes
from typing import TYPE_CHECKING, Final

import click

from cluster.membership import Leave, Pace, Replicate
from kvstore.cli.membership import ask_plan, send_change
from kvstore.storage.engine import Table
from kvstore.storage.rocksdb import RocksEngine

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from kvstore.cli.local_cluster import LocalCluster, LocalNode
    from kvstore.node.operator_view import OperatorChange, PlanStatus

MIB: Final = 1_048_576
STILL_S: Final = 2.0
"""So long nobody has had anything to move when a change is called done; not counted in its time."""

STILL_LOOKS: Final = 4
"""... and so often: on a busy machine a look alone takes seconds."""

RAW_BYTES: Final = 256 * MIB
RAW_RECORDS: Final = 100_000
RECORD_BYTES: Final = 126
PAGE_RECORDS: Final = 1_000
PACED_SECONDS: Final = 20.0
TIMEOUT_S: Final = 60.0


@dataclass(frozen=True)
class Speed:
    """One change of the cluster without load; ``planned`` is what `--plan` had said, if asked."""

    what: str
    seconds: float
    copied_mib: float
    planned_mib: float | None = None
    planned_seconds: float | None = None

    @property
    def mib_per_s(self) -> float:
        """Of all nodes together."""
        return self.copied_mib / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Limits:
    """What this machine does at its best, in MiB/s."""

    disk: float
    loopback: float
    store: float

    def line(self) -> str:
        """For a person."""
        return (
            f"limits       disk {self.disk:,.0f} MiB/s with an fsync at the end, loopback "
            f"{self.loopback:,.0f} MiB/s, RocksDB to RocksDB {self.store:,.0f} MiB/s in records of "
            f"{RECORD_BYTES} bytes"
        )


def measure_limits(directory: Path) -> Limits:
    """Takes a few seconds."""
    return Limits(_disk(directory), _loopback(), _store(directory))


def _disk(directory: Path) -> float:
    block = randbytes(MIB)
    with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        begin = time.monotonic()
        for _ in range(RAW_BYTES // MIB):
            file.write(block)
        os.fsync(file.fileno())
        return RAW_BYTES / MIB / (time.monotonic() - begin)


def _loopback() -> float:
    block = randbytes(256 * 1_024)
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def send() -> None:
            with socket.create_connection(listening.getsockname()) as out:
                for _ in range(RAW_BYTES // len(block)):
                    out.sendall(block)

        sender = threading.Thread(target=send)
        sender.start()
        connection, _ = listening.accept()
        with connection:
            begin = time.monotonic()
            while connection.recv(MIB):
                pass
            took = time.monotonic() - begin
        sender.join()
    return RAW_BYTES / MIB / took


def _store(directory: Path) -> float:
    """Pages read from one engine and written to another, synced at the end."""
    source = RocksEngine(directory / "limit-a")
    target = RocksEngine(directory / "limit-b")
    try:
        for begin in range(0, RAW_RECORDS, PAGE_RECORDS):
            batch = source.batch()
            for number in range(begin, begin + PAGE_RECORDS):
                batch.put(Table.RECORDS, number.to_bytes(8, "big"), randbytes(RECORD_BYTES - 8))
            source.write(batch)
        source.sync()
        begun, key, moved = time.monotonic(), b"", 0
        while rows := source.scan(Table.RECORDS, key, b"\xff", limit=PAGE_RECORDS):
            batch = target.batch()
            for key_, record in rows:
                batch.put(Table.RECORDS, key_, record)
                moved += len(key_) + len(record)
            target.write(batch)
            key = rows[-1][0] + b"\0"
        target.sync()
        return moved / MIB / (time.monotonic() - begun)
    finally:
        source.close()
        target.close()


# -- changes --------------------------------------------------------------------------------------


def url_of(cluster: LocalCluster) -> str:
    """By the first three nodes, which stay."""
    return "kv://" + ",".join(node.address for node in cluster.nodes[:3])


def set_rate(cluster: LocalCluster, bytes_per_s: int) -> None:
    """What each node may send; 0: as much as it can."""
    change(cluster, Pace(copy_bytes_per_s=bytes_per_s))


def change(cluster: LocalCluster, wanted: OperatorChange) -> int:
    """Change the topology; returns its epoch."""
    return asyncio.run(send_change(url_of(cluster), wanted, TIMEOUT_S)).epoch


def plan(cluster: LocalCluster, wanted: OperatorChange) -> PlanStatus:
    """What it would move."""
    return asyncio.run(ask_plan(url_of(cluster), wanted, TIMEOUT_S))


_copied: dict[tuple[str, int], int] = {}
"""By node and process: one that has left, or was killed, tells no more what it had sent."""


def copied(cluster: LocalCluster) -> int:
    """Bytes that all nodes, those of before included, have sent to new members of slots."""
    for node in cluster.nodes:
        told = node.fetch("/v1/cluster/moves")
        if told is not None and node.process is not None:
            _copied[node.name, node.process.pid] = told["copied_bytes_total"]
    return sum(_copied.values())


def wait_moved(cluster: LocalCluster, epoch: int = 0) -> float:
    """Until nobody has anything left to move, by the word of every member; returns since when.

    ``epoch``: that of the change, which the node that is asked for the members has to know.
    """
    still_since, looks = time.monotonic(), 0
    while looks < STILL_LOOKS or time.monotonic() - still_since < STILL_S:
        looks += 1
        if not _is_still(cluster, epoch):
            still_since, looks = time.monotonic(), 0
        copied(cluster)
        time.sleep(0.25)
    return still_since


def _is_still(cluster: LocalCluster, epoch: int) -> bool:
    topology = cluster.nodes[0].fetch("/v1/cluster/topology")
    if topology is None or topology["epoch"] < epoch:  # too busy to answer, or to have heard of it
        return False
    members = {node["name"] for node in topology["nodes"]}
    told = [node.fetch("/v1/cluster/moves") for node in cluster.nodes if node.name in members]
    return all(
        document is not None
        and document["epoch"] == topology["epoch"]
        and document["placed"]
        and not document["slots"]
        for document in told
    )


def join(cluster: LocalCluster) -> float:
    """One node more, until every slot has arrived."""
    return _arrived(cluster, cluster.add_node())


def _arrived(cluster: LocalCluster, node: LocalNode) -> float:
    """Until a newcomer has been brought all that it should have."""
    while node.fetch("/health/ready") is None:
        time.sleep(0.05)
    while (topology := node.fetch("/v1/cluster/topology")) is None:
        time.sleep(0.05)
    return wait_moved(cluster, topology["epoch"])


def go(cluster: LocalCluster, *names: str) -> float:
    """Nodes less, until they are out and every slot has arrived."""
    for name in names:
        change(cluster, Leave(name))
    first = cluster.nodes[0]
    while True:
        told = first.fetch("/v1/cluster/topology")  # None: too busy to answer in time
        if told is not None and not any(n["name"] in names for n in told["nodes"]):
            return wait_moved(cluster, told["epoch"])
        copied(cluster)
        time.sleep(0.1)


def replicate(cluster: LocalCluster, copies: int) -> float:
    """Another number of copies, until every slot has them."""
    return wait_moved(cluster, change(cluster, Replicate(copies)))


def replace_lost(cluster: LocalCluster, lost: LocalNode) -> float:
    """Kill -9 and an empty disk, on the same ports; until every slot has all its copies again."""
    lost.signal(signal.SIGKILL)
    assert lost.process is not None
    lost.process.wait()
    lost.directory = lost.directory.with_name(f"{lost.directory.name}-new")
    lost.start(["--join", cluster.nodes[0].address, "--replace", lost.name], [])
    return _arrived(cluster, lost)


def run_speeds(cluster: LocalCluster) -> list[Speed]:
    """3 -> 4 -> 5 -> 3 at full speed, a lost disk, and a paced change held against its plan."""
    set_rate(cluster, 0)
    names = [f"n{len(cluster.nodes) + more}" for more in (1, 2)]
    rows = [
        measured(cluster, "3 to 4 nodes", lambda: join(cluster)),
        measured(cluster, "4 to 5 nodes", lambda: join(cluster)),
    ]
    rows.append(measured(cluster, "5 to 3 nodes", lambda: go(cluster, *names)))
    lost = cluster.nodes[1]
    rows.append(measured(cluster, "kill -9 and a new disk", lambda: replace_lost(cluster, lost)))
    replicate(cluster, 1)
    least = plan(cluster, Replicate(3))
    set_rate(cluster, max(int(least.copies_bytes / 3 / PACED_SECONDS), 65_536))
    said = plan(cluster, Replicate(3))
    rows.append(
        measured(cluster, "1 to 3 copies, at a rate", lambda: replicate(cluster, 3), said=said)
    )
    set_rate(cluster, 0)
    return rows


def measured(
    cluster: LocalCluster,
    what: str,
    happen: Callable[[], float],
    said: PlanStatus | None = None,
) -> Speed:
    """Let it happen."""
    before = copied(cluster)
    begin = time.monotonic()
    end = happen()
    row = Speed(
        what,
        end - begin,
        (copied(cluster) - before) / MIB,
        None if said is None else said.copies_bytes / MIB,
        None if said is None else said.seconds,
    )
    click.echo(f"{what}: {row.seconds:.1f} s, {row.copied_mib:.0f} MiB", err=True)
    return row


def speed_table(rows: list[Speed], limits: Limits) -> str:
    """Markdown; the last column is the part of the store's limit."""
    lines = [
        "| without load | s | copied MiB | MiB/s | of store to store | planned MiB | planned s |",
        "| --- " * 7 + "|",
    ]
    for row in rows:
        planned = [
            "" if figure is None else f"{figure:.1f}"
            for figure in (row.planned_mib, row.planned_seconds)
        ]
        lines.append(
            f"| {row.what} | {row.seconds:.1f} | {row.copied_mib:.1f} | {row.mib_per_s:.1f} "
            f"| {row.mib_per_s / limits.store:.0%} | {planned[0]} | {planned[1]} |"
        )
    return "\n".join(lines)
