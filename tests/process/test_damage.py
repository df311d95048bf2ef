"""Real disks that rot, fill and fail, under real nodes: found, said, mended, or the node ends."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest

import kvstore
from kvstore.errors import KVError, Overloaded
from kvstore.storage.engine import Table
from kvstore.storage.rocksdb import RocksEngine
from tests.process.cluster_processes import (
    SMALL,
    command_here,
    free_port_range,
    running_cluster,
    wait_for,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from kvstore.cli.local_cluster import LocalCluster, LocalNode
    from kvstore.client import Client

FAST = [*SMALL, "--scrub-bytes-per-s", "64MiB"]
KEYS = {f"key:{n}": "x" * 100 for n in range(3_000)}
LOST_DISK_STATUS = 74
SMALL_DISK_BYTES = 128 << 20


@pytest.fixture
def filled(tmp_path: Path) -> Iterator[LocalCluster]:
    with running_cluster(tmp_path, extra=FAST) as cluster:
        with kvstore.connect(cluster.url) as db:
            db.put_many(KEYS)
        yield cluster


def stopped(node: LocalNode) -> Path:
    """Stop a node; where its store lies."""
    node.stop()
    return node.directory / "db"


def flip(file: Path, at: int) -> None:
    with file.open("r+b") as stream:
        stream.seek(at)
        byte = stream.read(1)[0]
        stream.seek(at)
        stream.write(bytes([byte ^ 0x10]))


def figures(node: LocalNode) -> dict[str, int]:
    found = node.fetch("/v1/cluster/node")
    return found or {}


def test_a_flipped_byte_in_a_table_file_is_found_said_and_mended(filled: LocalCluster) -> None:
    bad = filled.nodes[1]
    path = stopped(bad)
    RocksEngine(path).close()  # recovery makes tables of what was in the log
    largest = max(path.glob("*.sst"), key=lambda file: file.stat().st_size)
    flip(largest, largest.stat().st_size // 3)
    filled.start_node(bad)
    filled.wait_ready(30)
    wait_for(lambda: figures(bad).get("repaired_total", 0) > 0, "the copy is replaced", 30)
    wait_for(lambda: figures(bad).get("damaged_copies", 1) == 0, "all of them are")
    said = command_here("status", url=filled.url).stdout
    assert "replaced from the others" in said
    with kvstore.connect(filled.url) as db:
        assert db.get_many(list(KEYS)) == KEYS


def test_a_record_that_rots_is_found_and_mended(filled: LocalCluster) -> None:
    """What the engine's own checksums cannot see: it was given the wrong bytes."""
    bad = filled.nodes[2]
    engine = RocksEngine(stopped(bad))
    ((key, record),) = engine.scan(Table.RECORDS, b"", b"\xff" * 8, limit=1)
    batch = engine.batch()
    batch.put(Table.RECORDS, key, record[:-1] + bytes([record[-1] ^ 1]))
    engine.write(batch)
    engine.close()
    filled.start_node(bad)
    filled.wait_ready(30)
    wait_for(lambda: figures(bad).get("repaired_total", 0) == 1, "the copy is replaced", 30)
    found = sum(figures(node).get("damage_found_total", 0) for node in filled.nodes)
    assert found >= 1
    with kvstore.connect(filled.url) as db:
        assert db.get_many(list(KEYS)) == KEYS


def test_a_log_with_a_hole_keeps_its_node_from_starting(filled: LocalCluster) -> None:
    bad = filled.nodes[0]
    assert bad.process is not None
    bad.process.kill()
    bad.process.wait()
    log = max((bad.directory / "db").glob("*.log"), key=lambda file: file.stat().st_size)
    os.truncate(log, log.stat().st_size // 2)
    filled.start_node(bad)
    assert bad.process.wait(20) != 0
    said = bad.log_tail()
    assert "synced writes are lost" in said
    assert "remove the data directory" in said
    with kvstore.connect(filled.url) as db:
        assert db.get_many(list(KEYS)) == KEYS, "the others serve on"


@contextmanager
def small_disk(directory: Path) -> Iterator[bool]:
    """A file system of its own under a directory, if this machine lets us."""
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK_BYTES}", "tmpfs", str(directory)]
    is_small = os.geteuid() == 0 and subprocess.run(mount, check=False).returncode == 0
    try:
        yield is_small
    finally:
        if is_small:
            subprocess.run(["umount", "--lazy", str(directory)], check=True)


def test_a_full_disk_refuses_writes_and_serves_on(tmp_path: Path) -> None:
    """Elsewhere than on a disk that can be filled, the node is told to reserve more than it has."""
    reserve = ["--disk-reserve-bytes", str(SMALL_DISK_BYTES // 4)]
    with (
        small_disk(tmp_path / "disk") as is_small,
        running_cluster(tmp_path / "disk", nodes=1, extra=[*SMALL, *reserve]) as cluster,
    ):
        ballast = tmp_path / "disk" / "ballast"
        with kvstore.connect(cluster.url) as db:
            db.put_many(KEYS)
        if is_small:
            room = os.statvfs(ballast.parent)
            ballast.write_bytes(bytes(room.f_bavail * room.f_frsize - SMALL_DISK_BYTES // 8))
        else:
            restart(cluster, [*SMALL, "--disk-reserve-bytes", "1024GiB"])
        with kvstore.connect(cluster.url, timeout=2) as db:
            wait_for(lambda: is_refused(lambda: db.put("other", 1)), "writes are refused")
            assert is_refused(lambda: db.incr("n"))
            assert db.get("key:1") == KEYS["key:1"]
            assert db.delete("key:1")
        assert "is full" in command_here("status", url=cluster.url).stdout
        if is_small:
            ballast.unlink()
        else:
            restart(cluster, [*SMALL, *reserve])
        with kvstore.connect(cluster.url) as db:
            wait_for(lambda: not is_refused(lambda: db.put("key:1", 1)), "there is room again")
            assert db.get("key:1") == 1


def restart(cluster: LocalCluster, settings: list[str]) -> None:
    cluster.nodes[0].stop()
    cluster._extra = settings
    cluster.start_node(cluster.nodes[0])
    cluster.wait_ready(30)


def is_refused(write: Callable[[], object]) -> bool:
    try:
        write()
    except Overloaded as error:
        return "full" in str(error)
    return False


def is_up(db: Client) -> bool:
    try:
        return db.get("k") is None
    except KVError:
        return False


def test_a_failed_write_ends_the_node_without_another_acknowledgement(tmp_path: Path) -> None:
    """A limit on the size of its files stands for the disk that fails."""
    port = free_port_range(2)
    limit = 2 << 20
    arguments = [
        "--port",
        str(port),
        "--http-port",
        str(port + 1),
        "--data-dir",
        str(tmp_path / "d"),
    ]
    with (tmp_path / "log").open("wb") as log:
        node = subprocess.Popen(
            [sys.executable, "-m", "kvstore", "serve", *SMALL, *arguments],
            stdout=log,
            stderr=log,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        )
    acknowledged = 0
    try:
        with kvstore.connect(f"kv://127.0.0.1:{port}", timeout=3) as db, suppress(KVError):
            wait_for(lambda: is_up(db), "the node serves")
            for n in range(10_000):
                db.put(f"k{n}", "x" * 10_000)
                acknowledged += 1
        assert node.wait(20) == LOST_DISK_STATUS
    finally:
        node.kill()
        node.wait()
    assert 0 < acknowledged < 10_000
    assert "the disk failed" in (tmp_path / "log").read_text()
    engine = RocksEngine(tmp_path / "d" / "db")
    stored = len(engine.scan(Table.RECORDS, b"", b"\xff" * 8, limit=100_000))
    engine.close()
    assert stored >= acknowledged, "what was acknowledged is there"
