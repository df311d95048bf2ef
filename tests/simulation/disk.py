"""A disk in memory that forgets what was not synced, takes its time, fills up, and rots.

Batches are visible at once and durable when a sync that began after them has ended, as in
`kvstore.storage.group_commit`. A crash keeps any prefix of what no sync has covered: that is what a
write-ahead log may come back with; a batch that was torn in the middle fails its checksum there and
is not part of it. A sync may fail; then nothing more is acknowledged and the disk is lost (R12). A
write may fail in the middle of a tick, whether or not the log has it; then the node ends, and comes
back.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from cluster.records import is_intact
from kvstore.storage.engine import EngineError, EngineSyncError, Table
from kvstore.storage.memory import MemoryEngine

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from kvstore.storage.engine import Batch
    from tests.simulation.process_loop import Process

RESERVE_BYTES = 1_000
ROOM_BYTES = 100_000
"""Free on a disk with which nothing is wrong."""


class Disk:
    """What outlives a process.

    Args:
        rng: For sync times and crashes.
        sync_seconds: A usual sync.
        slow_chance: How often a sync takes fifty times as long.
    """

    def __init__(self, rng: Random, sync_seconds: float, slow_chance: float) -> None:
        self.rng = rng
        self.engine = MemoryEngine()
        self.sync_seconds = sync_seconds
        self.slow_chance = slow_chance
        self.slow_factor = 1.0
        self.fail_next_sync = False
        self.fail_next_write = False
        self.free_bytes = ROOM_BYTES
        """Below `RESERVE_BYTES` a node takes no more writes; at 0 nothing can be written."""
        self.lost = False
        """A sync has failed: nobody opens it again."""
        self._rotted = False

    def crash(self) -> None:
        """The process or the machine is gone: any prefix of what was not synced stays."""
        unsynced = self.engine.written - self.engine.synced
        self.engine.crash(keep=self.rng.randrange(unsynced + 1))

    def next_sync_seconds(self) -> float:
        """How long the sync that begins now takes."""
        seconds = self.sync_seconds * self.slow_factor * (0.5 + self.rng.random())
        return seconds * 50 if self.rng.random() < self.slow_chance else seconds

    def rot(self, rng: Random) -> bool:
        """Flip a bit of a record that is durable; False if there is none."""
        engine = self.engine
        rows = engine.scan(Table.RECORDS, b"", b"\xff" * 8, limit=10_000)
        if not rows or engine.written != engine.synced:
            return False
        key, record = rng.choice(rows)
        at = rng.randrange(len(record))
        flipped = record[:at] + bytes([record[at] ^ 1 << rng.randrange(8)]) + record[at + 1 :]
        batch = engine.batch()
        batch.put(Table.RECORDS, key, flipped)
        engine.write(batch)
        engine.sync()
        self._rotted = True
        return True

    @property
    def is_rotten(self) -> bool:
        """Whether a record does not fit its checksum."""
        if self._rotted:
            rows = self.engine.scan(Table.RECORDS, b"", b"\xff" * 8, limit=10_000)
            self._rotted = not all(is_intact(record) for _, record in rows)
        return self._rotted


class DiskCommit:
    """See `kvstore.storage.group_commit.Commit`; one sync at a time, in virtual time."""

    def __init__(self, disk: Disk, process: Process, on_error: Callable[[Exception], None]) -> None:
        self.batches = 0
        self.syncs = 0
        self.sync_seconds_total = 0.0
        self.last_sync_seconds = 0.0
        self._disk = disk
        self._process = process
        self._on_error = on_error
        self._waiting: deque[tuple[int, Callable[[], None]]] = deque()
        self._syncing = False
        self._failed = False

    def write(self, batch: Batch, done: Callable[[], None]) -> None:
        """Visible now, durable after the next sync."""
        if self._failed:
            return
        disk = self._disk
        if disk.free_bytes == 0 or disk.fail_next_write:
            self._failed = True
            why = "an input/output error" if disk.free_bytes else "no space left on device"
            if disk.fail_next_write and disk.rng.random() < 0.5:  # who was told of an error
                disk.engine.write(batch)  # knows nothing of what is in the log
            disk.fail_next_write = False
            self._process.call_soon(self._on_error, EngineError(why))
            return
        disk.engine.write(batch)
        self.batches += 1
        self._waiting.append((disk.engine.written, done))
        if not self._syncing:
            self._begin_sync()

    def _begin_sync(self) -> None:
        self._syncing = True
        seconds = self._disk.next_sync_seconds()
        self._process.call_later(seconds, self._end_sync, self._disk.engine.written, seconds)

    def _end_sync(self, covered: int, seconds: float) -> None:
        disk = self._disk
        if self._failed:
            return
        if disk.fail_next_sync:
            disk.fail_next_sync = False
            self._failed = True
            self._on_error(EngineSyncError("the sync failed"))
            return
        disk.engine.sync_through(covered)
        self.syncs += 1
        self.last_sync_seconds = seconds
        self.sync_seconds_total += seconds
        while self._waiting and self._waiting[0][0] <= covered:
            self._waiting.popleft()[1]()
        self._syncing = False
        if self._waiting:
            self._begin_sync()

    async def close(self) -> None:
        """A node that stops cleanly syncs once more."""
        if not self._failed:
            self._disk.engine.sync()
