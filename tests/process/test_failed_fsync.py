"""A disk whose fsync really fails, under one node of three: the node ends, the others go on.

The node's directory is a file system without a journal in a file on a tmpfs. When the tmpfs is full
the kernel cannot write back what the file system has taken, and fsync says so (EIO); reads go on,
and so do writes into the page cache, which is what makes this worse than a full disk. Where nothing
may be mounted, a limit on the size of files stands for it: the write itself fails then.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import kvstore
from tests.process.cluster_processes import SMALL, command, make_cluster, states_seen_by, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kvstore.cli.local_cluster import LocalNode

LOST_DISK_STATUS = 74
SLOTS = int(SMALL[-1])
RAM_BYTES = 48 << 20
DISK_BYTES = 4 << 30
"""By its own word: a node with less in reserve takes no writes."""
VALUE = "x" * 10_000
WRITES_MAX = 5_000


class FailingDisk:
    """Under the directory of one node."""

    def __init__(self, node: LocalNode, ram: Path) -> None:
        self._node = node
        self._ram = ram
        self._mounted = ExitStack()
        self.fails_to_sync = False
        """Whether it is fsync that will fail, and not the write before it."""

    def make(self) -> None:
        """A file system of its own, if this machine lets us."""
        image, directory = self._ram / "image", self._node.directory
        self._ram.mkdir()
        directory.mkdir()
        self.fails_to_sync = (
            os.geteuid() == 0
            and self._mount("-t", "tmpfs", "-o", f"size={RAM_BYTES}", "tmpfs", str(self._ram))
            and _done("truncate", "-s", str(DISK_BYTES), str(image))
            and _done(
                "mkfs.ext4",
                "-q",
                "-O",
                "^has_journal",
                "-E",
                "nodiscard,lazy_itable_init=1",
                str(image),
            )
            and self._mount("-o", "loop", str(image), str(directory))
        )

    def _mount(self, *arguments: str) -> bool:
        if not _done("mount", *arguments):
            return False
        self._mounted.callback(_done, "umount", "--lazy", arguments[-1])
        return True

    def fail(self) -> None:
        """From now on."""
        if self.fails_to_sync:
            free = os.statvfs(self._ram)
            (self._ram / "ballast").write_bytes(bytes(free.f_bavail * free.f_frsize))
        else:
            assert self._node.process is not None
            resource.prlimit(self._node.process.pid, resource.RLIMIT_FSIZE, (4_096, 4_096))

    def remove(self) -> None:
        """It is taken out of the machine."""
        self._mounted.close()


def _done(*arguments: str) -> bool:
    try:
        return subprocess.run(arguments, check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


@contextmanager
def failing_disk(node: LocalNode, ram: Path) -> Iterator[FailingDisk]:
    disk = FailingDisk(node, ram)
    try:
        disk.make()
        yield disk
    finally:
        node.stop()
        disk.remove()


def test_a_failed_fsync_ends_the_node_and_the_others_go_on(tmp_path: Path) -> None:
    cluster = make_cluster(tmp_path / "nodes", extra=SMALL)
    (tmp_path / "nodes").mkdir(exist_ok=True)
    other, _, bad = cluster.nodes
    with ExitStack() as ends:
        disk = ends.enter_context(failing_disk(bad, tmp_path / "ram"))
        ends.callback(cluster.stop)
        cluster.start()
        cluster.wait_ready(30)
        db = ends.enter_context(kvstore.connect(cluster.url, timeout=20))
        stored = {f"before:{n}": VALUE for n in range(100)}
        db.put_many(stored)
        disk.fail()
        assert bad.process is not None
        for n in range(WRITES_MAX):
            db.put(f"k{n}", VALUE)  # no caller sees an error
            stored[f"k{n}"] = VALUE
            if bad.process.poll() is not None:
                break
        assert bad.process.wait(20) == LOST_DISK_STATUS
        assert "the disk failed; this node stops" in bad.log_tail()
        db.put("after", VALUE)
        stored["after"] = VALUE
        assert db.get_many(list(stored)) == stored, "what was acknowledged is there without it"
        wait_for(lambda: states_seen_by(cluster, 0)["n3"] == "dead", "they know that it is gone")
        assert "n3 is dead" in command("status", url=f"kv://{other.address}").stdout
        if disk.fails_to_sync:
            cluster.start_node(bad)
            assert bad.process.wait(20) != 0, "a lost disk is not opened again"
            assert "counts as lost" in bad.log_tail()
            assert "remove the data directory" in bad.log_tail()
        bad.directory = tmp_path / "new"
        bad.start(["--join", other.address, "--replace", bad.name], [])
        wait_for(lambda: held(bad) == SLOTS, "it is filled from the others", 60)
        wait_for(lambda: can_stop(other), "the last members have changed")
        other.signal(signal.SIGKILL)
        assert db.get_many(list(stored)) == stored


def can_stop(node: LocalNode) -> bool:
    return command("can-stop", node.name, url=f"kv://{node.address}").returncode == 0


def held(node: LocalNode) -> int:
    """Slots of which it has a copy."""
    document = node.fetch("/v1/cluster/node") or {}
    count: int = document.get("slots_held", 0)
    return count
