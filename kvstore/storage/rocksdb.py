"""RocksDB behind the `Engine` protocol, by way of `rocksdict`.

One database with three column families, one write-ahead log (WAL) over all of them: a batch is
atomic across tables, one fsync covers everything. What `rocksdict` 0.3.29 does, each seen in a run:

- It pickles unless every `Options` and `WriteBatch` says ``raw_mode=True``.
- ``write`` holds the GIL, its fsync included; ``flush_wal(True)`` does not. Hence `write` never
  syncs and `sync` does nothing else (see `kvstore.storage.group_commit`).
- A range whose end is below its begin fails *after* it reached the WAL, and every later write fails
  too. Such a range is an assertion failure here, before it gets near.
- ``items()`` ends quietly at a damaged block; a plain iterator does too, but tells when its
  ``status()`` is asked. Every walk here asks.
- ``close()`` leaves files open and the lock held while an iterator or a column family handle lives.
  So open cursors are tracked, and `close` drops every handle.
- ``ReadOptions.set_iterate_lower_bound`` sets the *upper* bound. Begins are kept by seeking here.
- A table that is asked after ``close()`` may answer None. Closed means raising here.

Recovery refuses a WAL with a bad checksum and takes one whose last record is cut off
(``tolerate_corrupted_tail_records``), unless that record had been synced
(`kvstore.storage.synced_mark`). It is strict: a power cut that leaves garbage instead of a short
file after the last sync is refused too, and the node comes back from its peers (rule 12). A kill of
the process never looks like that.

Memory is the block cache, and what the write buffers use is charged to it. Indexes and filters live
in the cache as well, so that a node's memory does not grow with its number of keys.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import rocksdict

from kvstore.storage.engine import (
    Batch,
    Cursor,
    EngineCorruption,
    EngineError,
    EngineStats,
    EngineSyncError,
    Table,
)
from kvstore.storage.synced_mark import SyncedMark, shortfall

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["RocksBatch", "RocksCursor", "RocksEngine"]

CACHE_BYTES_DEFAULT = 192 * 1_048_576
"""Block cache including write buffers; a node with 10 million keys stays below 512 MiB in all."""

_WRITE_BUFFERS_SHARE = 3
"""A third of the cache may be write buffers, before the largest one is flushed."""

_WRITE_BUFFER_BYTES = 8 * 1_048_576
"""Small enough for the processor's cache, where a row is put in half of the time that one of 32 MiB
takes (`docs/decisions/0003-storage.md`)."""

_MERGED_FILES = 8
"""Flushed buffers that are merged into the level below together: with fewer, each row is rewritten
more often; with more, a read asks more filters."""

_WAL_BYTES_MAX = 128 * 1_048_576
"""What a restart may have to replay: about a second."""

_OPEN_FILES_MAX = 512
"""Table files held open; the rest of the usual 1,024 descriptors is for connections."""

_BLOOM_BITS_PER_KEY = 10
"""One lookup of an absent key in a hundred reads a block (1.2 MB of filters per million keys)."""

_FAMILIES = {Table.RECORDS: "default", Table.LOG: "log", Table.META: "meta"}


class RocksBatch:
    """A write batch; see `kvstore.storage.engine.Batch`."""

    __slots__ = ("_delete", "_delete_range", "_families", "_put", "raw")

    def __init__(self, families: list[rocksdict.ColumnFamily]) -> None:
        self.raw = raw = rocksdict.WriteBatch(raw_mode=True)
        # Shared with the engine, which empties it on close: a handle would keep the files open.
        self._families = families
        self._put = raw.put
        self._delete = raw.delete
        self._delete_range = raw.delete_range

    def __len__(self) -> int:
        return len(self.raw)

    @property
    def size_bytes(self) -> int:
        """About what the batch adds to the write-ahead log."""
        return self.raw.size_in_bytes()

    def put(self, table: Table, key: bytes, value: bytes) -> None:
        """Set a key."""
        self._put(key, value, self._families[table])

    def delete(self, table: Table, key: bytes) -> None:
        """Remove a key."""
        self._delete(key, self._families[table])

    def delete_range(self, table: Table, begin: bytes, end: bytes) -> None:
        """Remove the keys of a range."""
        assert begin <= end, "a range ends where it begins, or above"
        self._delete_range(begin, end, self._families[table])


class RocksCursor:
    """An iterator that reports damage; see `kvstore.storage.engine.Cursor`."""

    __slots__ = ("__weakref__", "_begin", "_engine", "_iterator")

    def __init__(self, engine: RocksEngine, iterator: rocksdict.RdictIter, begin: bytes) -> None:
        self._engine = engine
        self._begin = begin
        self._iterator: rocksdict.RdictIter | None = iterator

    def seek(self, key: bytes) -> None:
        """Go to the first key that is not below ``key``."""
        self._open().seek(max(key, self._begin))

    def read(self) -> tuple[bytes, bytes] | None:
        """The key and value here, and step on; None at the end."""
        iterator = self._open()
        if iterator.valid():
            pair = iterator.key(), iterator.value()
            iterator.next()
            return pair
        self._engine.check(iterator)
        return None

    def last_below(self, key: bytes) -> tuple[bytes, bytes] | None:
        """The pair with the highest key below ``key``, or None."""
        iterator = self._open()
        iterator.seek_for_prev(key)
        if iterator.valid() and iterator.key() == key:
            iterator.prev()
        pair = (iterator.key(), iterator.value()) if iterator.valid() else None
        self._engine.check(iterator)
        return pair if pair is not None and pair[0] >= self._begin else None

    def close(self) -> None:
        """Let go of the files and memory that the iterator holds."""
        self._iterator = None

    def _open(self) -> rocksdict.RdictIter:
        if self._iterator is None:
            raise EngineError("the cursor is closed")
        return self._iterator


class RocksEngine:
    """An ordered byte store on disk; see `kvstore.storage.engine.Engine`.

    Args:
        path: the database's directory; made when missing.
        cache_bytes: block cache and write buffers together.

    Raises:
        EngineCorruption: what is there is damaged or incomplete.
        EngineError: it cannot be opened for another reason.
    """

    def __init__(self, path: Path, *, cache_bytes: int = CACHE_BYTES_DEFAULT) -> None:
        self._path = path
        self._closed = False
        self._cursors: WeakSet[RocksCursor] = WeakSet()
        self._refuse_headless()
        self._refuse_short_log()
        self._cache = rocksdict.Cache(cache_bytes)
        options = _options(self._cache, cache_bytes)
        named = {name: options for name in _FAMILIES.values() if name != "default"}
        try:
            self._db = rocksdict.Rdict(str(path), options, column_families=named)
        except Exception as exc:
            raise self.translated(exc) from exc
        db = self._db
        self._tables = tuple(
            db if name == "default" else db.get_column_family(name) for name in _FAMILIES.values()
        )
        self._mark = SyncedMark(path)
        self._families = [db.get_column_family_handle(name) for name in _FAMILIES.values()]

    def get(self, table: Table, key: bytes) -> bytes | None:
        """The value of a key, or None."""
        try:
            value: bytes | None = self._tables[table].get(key)
        except Exception as exc:
            raise self.translated(exc) from exc
        return value

    def get_many(self, table: Table, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of several keys, in their order.

        One call for all: 0.8 us a key from table files against 1.1 us one by one (100 keys of 100
        bytes, cached); from the write buffers it is 0.45 against 0.39.
        """
        try:
            values: Any = self._tables[table].get(list(keys))
        except Exception as exc:
            raise self.translated(exc) from exc
        found: list[bytes | None] = values
        return found

    def batch(self) -> RocksBatch:
        """A new, empty batch."""
        return RocksBatch(self._families)

    def write(self, batch: Batch) -> None:
        """Apply a batch and hand it to the operating system."""
        assert isinstance(batch, RocksBatch)
        try:
            self._db.write(batch.raw)
        except Exception as exc:
            raise self.translated(exc) from exc

    def sync(self) -> None:
        """Fsync the write-ahead log, letting Python run meanwhile."""
        covered = self._mark.before_sync()
        try:
            self._db.flush_wal(True)
        except Exception as exc:
            raise EngineSyncError(str(self.translated(exc))) from exc
        self._mark.after_sync(covered)

    def scan(
        self, table: Table, begin: bytes, end: bytes, *, limit: int, size: int | None = None
    ) -> list[tuple[bytes, bytes]]:
        """The first pairs of a range, in key order (0.35 us each; an iterator takes 30 to 60)."""
        if begin >= end:
            return []
        iterator = self._iterator(table, begin, end)
        valid, key, value, step = iterator.valid, iterator.key, iterator.value, iterator.next
        found: list[tuple[bytes, bytes]] = []
        while len(found) < limit and (size is None or size > 0) and valid():
            found.append((key(), value()))
            if size is not None:
                size -= len(found[-1][0]) + len(found[-1][1])
            step()
        self.check(iterator)
        return found

    def cursor(self, table: Table, begin: bytes = b"", end: bytes | None = None) -> Cursor:
        """A cursor over a range, as it is now."""
        cursor = RocksCursor(self, self._iterator(table, begin, end), begin)
        self._cursors.add(cursor)
        return cursor

    def stats(self) -> EngineStats:
        """What the engine holds."""
        return EngineStats(
            disk_bytes=self._files_bytes(),
            records_count=self._number(Table.RECORDS, "rocksdb.estimate-num-keys"),
            memtable_bytes=self._sum("rocksdb.cur-size-all-mem-tables"),
            cache_bytes=self._cache.get_usage(),
            compaction_pending_bytes=self._sum("rocksdb.estimate-pending-compaction-bytes"),
        )

    def _files_bytes(self) -> int:
        """All files, the write-ahead log among them."""
        total = 0
        with os.scandir(self._path) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # a compaction may remove it meanwhile
                    total += entry.stat().st_size
        return total

    def close(self) -> None:
        """Sync, and let go of every handle, which is what releases the files."""
        if self._closed:
            return
        try:
            self.sync()
        finally:
            self._closed = True
            self._mark.close()
            for cursor in self._cursors:
                cursor.close()
            self._families.clear()
            tables, self._tables = self._tables, ()
            for table in reversed(tables):
                table.close()

    def translated(self, exc: Exception) -> EngineError:
        """The engine's exception in our terms; `rocksdict` tells kinds apart by text only."""
        if self._closed:
            return EngineError("the store is closed")
        text = str(exc)
        if text.startswith("Corruption"):
            return self._corruption(text)
        return EngineError(f"storage under {self._path}: {text}")

    def _corruption(self, text: str) -> EngineCorruption:
        where = "" if str(self._path) in text else f" ({self._suspects()})"
        return EngineCorruption(
            f"the data under {self._path} is damaged: {text}{where}. Treat this disk as lost: stop"
            " the node, check the hardware, remove the data directory and start the node again; it"
            " comes back as a new, empty member and is filled from the others"
        )

    def _suspects(self) -> str:
        """The write-ahead logs: whatever is wrong in a table file is named by its path."""
        logs = sorted(log.name for log in self._path.glob("*.log") if log.stat().st_size)
        return "write-ahead log " + ", ".join(logs) if logs else "no write-ahead log"

    def _refuse_headless(self) -> None:
        """RocksDB starts afresh, without a word, beside files whose CURRENT has gone."""
        if not (self._path / "CURRENT").exists():
            left = sorted(p.name for p in self._path.glob("*") if p.suffix in {".sst", ".log"})
            if left:
                raise self._corruption(f"CURRENT is missing, {', '.join(left[:3])} still there")

    def _refuse_short_log(self) -> None:
        """RocksDB takes whatever it cannot read at the end of a log for a write under way."""
        missing = shortfall(self._path)
        if missing:
            raise self._corruption(f"synced writes are lost: {missing}")

    def _iterator(self, table: Table, begin: bytes, end: bytes | None) -> rocksdict.RdictIter:
        # The bound lets RocksDB stop early instead of stepping over what was deleted beyond.
        options = rocksdict.ReadOptions()
        if end is not None:
            options.set_iterate_upper_bound(end)
        try:
            iterator = self._tables[table].iter(options)
        except Exception as exc:
            raise self.translated(exc) from exc
        iterator.seek(begin)
        return iterator

    def check(self, iterator: rocksdict.RdictIter) -> None:
        """Raise what ended an iterator, if it was not the end."""
        try:
            iterator.status()
        except Exception as exc:
            raise self.translated(exc) from exc

    def _number(self, table: Table, name: str) -> int:
        try:
            return self._tables[table].property_int_value(name) or 0
        except Exception as exc:
            raise self.translated(exc) from exc

    def _sum(self, name: str) -> int:
        return sum(self._number(table, name) for table in Table)


def _options(cache: rocksdict.Cache, cache_bytes: int) -> rocksdict.Options:
    """Options of the database and of each table; RocksDB takes from them what concerns it."""
    write_buffers_bytes = cache_bytes // _WRITE_BUFFERS_SHARE
    options = rocksdict.Options(raw_mode=True)
    options.create_if_missing(True)
    options.create_missing_column_families(True)
    options.set_paranoid_checks(True)
    options.set_wal_recovery_mode(rocksdict.DBRecoveryMode.tolerate_corrupted_tail_records())
    options.set_max_total_wal_size(_WAL_BYTES_MAX)
    options.set_max_open_files(_OPEN_FILES_MAX)
    options.set_max_background_jobs(2)
    options.set_avoid_unnecessary_blocking_io(True)

    # Memory: never stall a write for it, because writes happen on the event loop.
    options.set_write_buffer_manager(
        rocksdict.WriteBufferManager.new_write_buffer_manager_with_cache(
            write_buffers_bytes, False, cache
        )
    )
    options.set_write_buffer_size(min(_WRITE_BUFFER_BYTES, write_buffers_bytes // 2))
    options.set_max_write_buffer_number(4)

    # A stalled write stalls the loop, so brake late; reads pay with a few more files to look into.
    options.set_level_zero_file_num_compaction_trigger(_MERGED_FILES)
    options.set_level_zero_slowdown_writes_trigger(8 * _MERGED_FILES)
    options.set_level_zero_stop_writes_trigger(16 * _MERGED_FILES)
    options.set_level_compaction_dynamic_level_bytes(True)
    options.set_compression_type(rocksdict.DBCompressionType.lz4())
    # Written back as it comes: else the WAL's fsync waits behind a whole flushed table.
    options.set_bytes_per_sync(1_048_576)
    options.set_wal_bytes_per_sync(1_048_576)

    # RocksDB's own text log: small, few, and without the hourly statistics.
    options.set_keep_log_file_num(2)
    options.set_max_log_file_size(4 * 1_048_576)
    options.set_stats_dump_period_sec(0)
    options.set_stats_persist_period_sec(0)

    blocks = rocksdict.BlockBasedOptions()
    blocks.set_block_cache(cache)
    blocks.set_bloom_filter(_BLOOM_BITS_PER_KEY, False)
    blocks.set_cache_index_and_filter_blocks(True)
    blocks.set_pin_l0_filter_and_index_blocks_in_cache(True)
    blocks.set_format_version(5)
    options.set_block_based_table_factory(blocks)
    return options
