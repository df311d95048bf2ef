"""Both engines through the same behaviour; what is RocksDB's own (kills, damage) at the end."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kvstore.storage.engine import Engine, EngineCorruption, EngineError, Table
from kvstore.storage.memory import MemoryEngine
from kvstore.storage.rocksdb import RocksEngine

if TYPE_CHECKING:
    from collections.abc import Iterator

CACHE_BYTES = 8 * 1_048_576


def rocks(path: Path) -> RocksEngine:
    return RocksEngine(path, cache_bytes=CACHE_BYTES)


@pytest.fixture(params=["memory", "rocksdb"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    opened: Engine = MemoryEngine() if request.param == "memory" else rocks(tmp_path / "db")
    yield opened
    opened.close()


def put(engine: Engine, table: Table, **pairs: bytes) -> None:
    batch = engine.batch()
    for key, value in pairs.items():
        batch.put(table, key.encode(), value)
    engine.write(batch)


def test_absent_and_empty_are_different(engine: Engine) -> None:
    put(engine, Table.META, k=b"")
    assert engine.get(Table.META, b"k") == b""
    assert engine.get(Table.META, b"l") is None


def test_tables_have_their_own_keys(engine: Engine) -> None:
    batch = engine.batch()
    for table in Table:
        batch.put(table, b"k", table.name.encode())
    engine.write(batch)
    assert [engine.get(table, b"k") for table in Table] == [b"RECORDS", b"LOG", b"META"]


def test_get_many_answers_in_order_with_gaps_and_repeats(engine: Engine) -> None:
    put(engine, Table.LOG, a=b"1", b=b"2")
    assert engine.get_many(Table.LOG, [b"b", b"x", b"a", b"b"]) == [b"2", None, b"1", b"2"]
    assert engine.get_many(Table.LOG, []) == []


def test_a_batch_applies_in_the_order_of_its_entries(engine: Engine) -> None:
    batch = engine.batch()
    batch.put(Table.RECORDS, b"a", b"1")
    batch.put(Table.RECORDS, b"b", b"1")
    batch.delete_range(Table.RECORDS, b"a", b"b")
    batch.put(Table.RECORDS, b"c", b"1")
    batch.delete(Table.RECORDS, b"c")
    batch.put(Table.RECORDS, b"c", b"2")
    assert len(batch) == 6
    assert batch.size_bytes > 0
    engine.write(batch)
    assert engine.scan(Table.RECORDS, b"", b"z", limit=9) == [(b"b", b"1"), (b"c", b"2")]


def test_a_batch_is_written_once(engine: Engine) -> None:
    batch = engine.batch()
    batch.put(Table.META, b"k", b"v")
    engine.write(batch)
    with pytest.raises(EngineError):
        engine.write(batch)


def test_an_empty_batch_is_fine(engine: Engine) -> None:
    batch = engine.batch()
    assert len(batch) == 0
    engine.write(batch)
    engine.sync()


def test_a_reversed_range_is_caught_before_the_engine_sees_it(engine: Engine) -> None:
    """RocksDB would log it, fail, and then fail every later write as well."""
    with pytest.raises(AssertionError):
        engine.batch().delete_range(Table.RECORDS, b"b", b"a")
    put(engine, Table.RECORDS, a=b"1")
    assert engine.get(Table.RECORDS, b"a") == b"1"


@pytest.mark.parametrize(
    ("begin", "end", "limit", "found"),
    [
        (b"", b"z", 9, b"abcd"),
        (b"b", b"d", 9, b"bc"),
        (b"a", b"z", 2, b"ab"),
        (b"a", b"z", 0, b""),
        (b"c", b"c", 9, b""),
        (b"d", b"a", 9, b""),
        (b"e", b"z", 9, b""),
    ],
)
def test_scan(engine: Engine, begin: bytes, end: bytes, limit: int, found: bytes) -> None:
    put(engine, Table.RECORDS, a=b"1", b=b"2", c=b"3", d=b"4")
    pairs = engine.scan(Table.RECORDS, begin, end, limit=limit)
    assert b"".join(key for key, _ in pairs) == found


@pytest.mark.parametrize(
    ("size", "found"), [(0, b""), (1, b"a"), (3, b"a"), (4, b"ab"), (99, b"abc")]
)
def test_a_scan_ends_with_the_pair_that_makes_it_long_enough(
    engine: Engine, size: int, found: bytes
) -> None:
    put(engine, Table.RECORDS, a=b"12", b=b"3", c=b"4")
    pairs = engine.scan(Table.RECORDS, b"", b"z", limit=9, size=size)
    assert b"".join(key for key, _ in pairs) == found


def test_a_cursor_finds_the_last_below_a_key(engine: Engine) -> None:
    put(engine, Table.LOG, a1=b"x", a2=b"y", b1=b"z", c1=b"u")
    cursor = engine.cursor(Table.LOG, b"a2", b"c")
    assert cursor.last_below(b"b") == (b"a2", b"y")
    assert cursor.last_below(b"b1") == (b"a2", b"y")
    assert cursor.last_below(b"b2") == (b"b1", b"z")
    assert cursor.last_below(b"z") == (b"b1", b"z"), "its end is its end"
    assert cursor.last_below(b"a2") is None, "and its beginning its beginning"
    cursor.seek(b"b")
    assert cursor.read() == (b"b1", b"z")


def test_a_cursor_seeks_over_gaps(engine: Engine) -> None:
    put(engine, Table.RECORDS, a1=b"1", a2=b"2", c1=b"3", d1=b"4")
    cursor = engine.cursor(Table.RECORDS)
    assert cursor.read() == (b"a1", b"1")
    cursor.seek(b"b")
    assert cursor.read() == (b"c1", b"3")
    assert cursor.read() == (b"d1", b"4")
    assert cursor.read() is None
    assert cursor.read() is None
    cursor.seek(b"a2")
    assert cursor.read() == (b"a2", b"2")
    cursor.close()
    cursor.close()
    with pytest.raises(EngineError):
        cursor.read()
    with pytest.raises(EngineError):
        cursor.seek(b"a")


def test_a_cursor_stays_within_its_bounds(engine: Engine) -> None:
    put(engine, Table.RECORDS, a=b"1", b=b"2", c=b"3")
    cursor = engine.cursor(Table.RECORDS, b"b", b"c")
    assert cursor.read() == (b"b", b"2")
    assert cursor.read() is None
    cursor.seek(b"a")
    assert cursor.read() == (b"b", b"2")
    assert engine.cursor(Table.RECORDS, b"c", b"b").read() is None


def test_a_cursor_sees_one_moment(engine: Engine) -> None:
    put(engine, Table.RECORDS, a=b"1", b=b"2")
    cursor = engine.cursor(Table.RECORDS)
    batch = engine.batch()
    batch.delete(Table.RECORDS, b"a")
    batch.put(Table.RECORDS, b"b", b"new")
    batch.put(Table.RECORDS, b"c", b"new")
    engine.write(batch)
    assert [cursor.read() for _ in range(3)] == [(b"a", b"1"), (b"b", b"2"), None]


def test_after_close_everything_raises(engine: Engine) -> None:
    put(engine, Table.RECORDS, a=b"1")
    late, cursor = engine.batch(), engine.cursor(Table.RECORDS)
    engine.close()
    engine.close()
    for use in (
        lambda: engine.get(Table.LOG, b"a"),
        lambda: engine.get_many(Table.META, [b"a"]),
        lambda: engine.write(late),
        lambda: engine.scan(Table.RECORDS, b"", b"z", limit=1),
        lambda: engine.cursor(Table.RECORDS),
        engine.sync,
        engine.stats,
    ):
        with pytest.raises(EngineError, match="closed"):
            use()
    if isinstance(engine, RocksEngine):
        with pytest.raises(EngineError, match="closed"):
            cursor.read()
        with pytest.raises(EngineError, match="closed"):
            cursor.last_below(b"z")


def test_stats_count_what_is_there(engine: Engine) -> None:
    put(engine, Table.RECORDS, a=b"x" * 100, b=b"x" * 100)
    stats = engine.stats()
    assert stats.records_count == 2
    assert stats.memtable_bytes >= 202


def test_syncs_beside_writes_and_reads(engine: Engine) -> None:
    """`sync` is called on one other thread; neither side may trip over the other."""
    stop = threading.Event()
    failures: list[Exception] = []

    def sync() -> None:
        try:
            while not stop.is_set():
                engine.sync()
        except Exception as exc:
            failures.append(exc)

    thread = threading.Thread(target=sync)
    thread.start()
    deadline = time.monotonic() + 0.3
    written = 0
    while time.monotonic() < deadline:
        put(engine, Table.RECORDS, k=b"%d" % written)
        assert engine.get(Table.RECORDS, b"k") == b"%d" % written
        assert len(engine.scan(Table.RECORDS, b"", b"z", limit=9)) == 1
        written += 1
    stop.set()
    thread.join()
    assert not failures
    assert written > 10


# -- a random walk beside a dictionary ------------------------------------------------------------

KEYS = st.lists(st.sampled_from([b"\x00", b"a", b"b", b"\xff"]), max_size=3).map(b"".join)
TABLES = st.sampled_from(Table)
ENTRIES = st.one_of(
    st.tuples(st.just("put"), TABLES, KEYS, st.binary(max_size=4)),
    st.tuples(st.just("delete"), TABLES, KEYS),
    st.tuples(st.just("range"), TABLES, KEYS, KEYS),
)


class Walk(RuleBasedStateMachine):
    """The model is a dictionary per table; `reopen` differs by engine."""

    def __init__(self) -> None:
        super().__init__()
        self.model: dict[Table, dict[bytes, bytes]] = {table: {} for table in Table}
        self.directory = Path(tempfile.mkdtemp())
        self.engine: Engine = MemoryEngine()

    def teardown(self) -> None:
        self.engine.close()
        shutil.rmtree(self.directory)

    def expected(self, table: Table, begin: bytes, end: bytes) -> list[tuple[bytes, bytes]]:
        return sorted((k, v) for k, v in self.model[table].items() if begin <= k < end)

    @rule(entries=st.lists(ENTRIES, max_size=6))
    def write(self, entries: list[tuple[str, Table, bytes, bytes]]) -> None:
        batch = self.engine.batch()
        for kind, table, key, *rest in entries:
            rows = self.model[table]
            if kind == "put":
                batch.put(table, key, rest[0])
                rows[key] = rest[0]
            elif kind == "delete":
                batch.delete(table, key)
                rows.pop(key, None)
            else:
                begin, end = sorted([key, rest[0]])
                batch.delete_range(table, begin, end)
                for gone, _ in self.expected(table, begin, end):
                    del rows[gone]
        self.engine.write(batch)

    @rule(table=TABLES, keys=st.lists(KEYS, max_size=5))
    def read(self, table: Table, keys: list[bytes]) -> None:
        expected = [self.model[table].get(key) for key in keys]
        assert self.engine.get_many(table, keys) == expected
        assert [self.engine.get(table, key) for key in keys] == expected

    @rule(table=TABLES, begin=KEYS, end=KEYS, limit=st.integers(0, 5), seek=KEYS)
    def walk(self, table: Table, begin: bytes, end: bytes, limit: int, seek: bytes) -> None:
        expected = self.expected(table, begin, end)
        assert self.engine.scan(table, begin, end, limit=limit) == expected[:limit]
        cursor = self.engine.cursor(table, begin, end)
        read = [pair for pair in iter(cursor.read, None) if pair is not None]
        assert read == expected
        cursor.seek(seek)
        above = [pair for pair in expected if pair[0] >= seek]
        assert cursor.read() == (above[0] if above else None)
        below = [pair for pair in expected if pair[0] < seek]
        assert cursor.last_below(seek) == (below[-1] if below else None)

    @rule()
    def sync(self) -> None:
        self.engine.sync()

    @invariant()
    def check(self) -> None:
        for table in Table:
            cursor = self.engine.cursor(table)
            everything = [pair for pair in iter(cursor.read, None) if pair is not None]
            assert everything == sorted(self.model[table].items())


class MemoryWalk(Walk):
    @rule()
    def crash_after_sync(self) -> None:
        assert isinstance(self.engine, MemoryEngine)
        self.engine.sync()
        self.engine.crash()


class RocksWalk(Walk):
    @initialize()
    def open(self) -> None:
        self.engine = rocks(self.directory / "db")

    @rule()
    def reopen(self) -> None:
        self.engine.close()
        self.engine = rocks(self.directory / "db")


TestMemoryWalk = MemoryWalk.TestCase
TestMemoryWalk.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestRocksWalk = RocksWalk.TestCase
TestRocksWalk.settings = settings(max_examples=15, stateful_step_count=25, deadline=None)


# -- the memory engine's crashes ------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0, 1, 2, 3, 9])
def test_a_crash_keeps_a_prefix_that_holds_what_was_synced(keep: int) -> None:
    engine = MemoryEngine()
    put(engine, Table.RECORDS, a=b"1", b=b"1")
    engine.sync()
    put(engine, Table.RECORDS, a=b"2", c=b"2")
    batch = engine.batch()
    batch.delete_range(Table.RECORDS, b"a", b"c")
    batch.put(Table.RECORDS, b"b", b"3")
    engine.write(batch)
    put(engine, Table.META, m=b"4")
    assert (engine.written, engine.synced) == (4, 1)

    engine.crash(keep=keep)

    records = dict(engine.scan(Table.RECORDS, b"", b"z", limit=9))
    assert (
        records
        == [
            {b"a": b"1", b"b": b"1"},
            {b"a": b"2", b"b": b"1", b"c": b"2"},
            {b"b": b"3", b"c": b"2"},
            {b"b": b"3", b"c": b"2"},
        ][min(keep, 3)]
    )
    assert engine.get(Table.META, b"m") == (b"4" if keep >= 3 else None)
    assert engine.synced == engine.written == 1 + min(keep, 3)


def test_a_sync_covers_what_was_written_when_it_began() -> None:
    engine = MemoryEngine()
    put(engine, Table.META, a=b"1")
    began = engine.written
    put(engine, Table.META, b=b"1")
    engine.sync_through(began)
    engine.crash()
    assert engine.get(Table.META, b"a") == b"1"
    assert engine.get(Table.META, b"b") is None


# -- RocksDB's files ------------------------------------------------------------------------------

WRITER = """
import sys
from pathlib import Path
from kvstore.storage.engine import Table
from kvstore.storage.rocksdb import RocksEngine
engine = RocksEngine(Path(sys.argv[1]), cache_bytes=8 << 20)
for number in range(int(sys.argv[2])):
    batch = engine.batch()
    for table in Table:
        batch.put(table, b"%06d" % number, b"%d" % number + b"." * 300)
    engine.write(batch)
    if number % 7 == 6:
        engine.sync()
        print(number + 1, flush=True)
engine.sync()
print("done", flush=True)
sys.stdin.read()
"""


def killed(path: Path, batch_count: int, *, kill_at: str) -> int:
    """Run a writer, kill -9 it when it has printed ``kill_at``; what it said was synced."""
    command = [sys.executable, "-c", WRITER, str(path), str(batch_count)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        synced = 0
        for line in writer.stdout:
            if line.strip() == "done":
                synced = batch_count
                break
            synced = int(line)
            if line.strip() == kill_at:
                break
        os.kill(writer.pid, signal.SIGKILL)
    return synced


def survivors(engine: Engine) -> int:
    """How many batches are there; asserts that they are a prefix, whole in every table."""
    rows = [engine.scan(table, b"", b"z", limit=1_000_000) for table in Table]
    assert rows[0] == rows[1] == rows[2]
    assert [key for key, _ in rows[0]] == [b"%06d" % number for number in range(len(rows[0]))]
    return len(rows[0])


def wal(path: Path) -> Path:
    return max(path.glob("*.log"), key=lambda file: file.stat().st_size)


def flip(file: Path, offset: int) -> None:
    content = bytearray(file.read_bytes())
    content[offset] ^= 0x10
    file.write_bytes(content)


def test_what_a_sync_covered_survives_kill_9(tmp_path: Path) -> None:
    synced = killed(tmp_path / "db", 1_000_000, kill_at="140")
    assert synced == 140
    engine = rocks(tmp_path / "db")
    assert survivors(engine) >= synced
    engine.close()


def test_a_torn_last_write_is_tolerated(tmp_path: Path) -> None:
    killed(tmp_path / "db", 100, kill_at="done")
    log = wal(tmp_path / "db")
    with log.open("ab") as file:  # a record that got no further than this
        file.write(log.read_bytes()[:100])
    for _ in range(2):  # the second time there is nothing torn any more
        engine = rocks(tmp_path / "db")
        assert survivors(engine) == 100
        engine.close()


@pytest.mark.parametrize("part", [0.0, 0.3, 0.6])
def test_a_log_with_damage_in_the_middle_is_refused(tmp_path: Path, part: float) -> None:
    killed(tmp_path / "db", 100, kill_at="done")
    log = wal(tmp_path / "db")
    flip(log, int(log.stat().st_size * part) + 8)
    before = {file.name: file.read_bytes() for file in (tmp_path / "db").glob("*.log")}
    with pytest.raises(EngineCorruption) as caught:
        rocks(tmp_path / "db")
    message = str(caught.value)
    assert log.name in message
    assert str(tmp_path / "db") in message
    assert "lost" in message
    assert "remove the data directory" in message
    after = {file.name: file.read_bytes() for file in (tmp_path / "db").glob("*.log")}
    assert {name: after[name] for name in before} == before, "what could be examined is kept"


def test_a_damaged_table_file_is_never_taken_for_absence(tmp_path: Path) -> None:
    killed(tmp_path / "db", 2_000, kill_at="done")
    rocks(tmp_path / "db").close()  # recovery turns the log into table files
    for file in (tmp_path / "db").glob("*.sst"):
        flip(file, file.stat().st_size // 2)
    engine = rocks(tmp_path / "db")
    keys = [b"%06d" % number for number in range(2_000)]
    with pytest.raises(EngineCorruption, match=r"\.sst"):
        engine.get_many(Table.RECORDS, keys)
    with pytest.raises(EngineCorruption, match=r"\.sst"):
        [engine.get(Table.LOG, key) for key in keys]
    with pytest.raises(EngineCorruption, match=r"\.sst"):
        engine.scan(Table.META, b"", b"z", limit=10_000)
    cursor = engine.cursor(Table.RECORDS)
    with pytest.raises(EngineCorruption, match=r"\.sst"):
        list(iter(cursor.read, None))
    engine.close()


def test_a_store_without_its_head_is_not_started_afresh(tmp_path: Path) -> None:
    """RocksDB would make a new, empty database beside the old files."""
    killed(tmp_path / "db", 20, kill_at="done")
    (tmp_path / "db" / "CURRENT").unlink()
    before = sorted(os.listdir(tmp_path / "db"))
    with pytest.raises(EngineCorruption, match="CURRENT is missing"):
        rocks(tmp_path / "db")
    assert sorted(os.listdir(tmp_path / "db")) == before


def test_a_missing_table_file_is_refused(tmp_path: Path) -> None:
    killed(tmp_path / "db", 20, kill_at="done")
    rocks(tmp_path / "db").close()
    next((tmp_path / "db").glob("*.sst")).unlink()
    with pytest.raises(EngineCorruption, match=r"\.sst"):
        rocks(tmp_path / "db")


def test_close_releases_the_files_although_cursors_live(tmp_path: Path) -> None:
    engine = rocks(tmp_path / "db")
    put(engine, Table.LOG, a=b"1")
    cursor = engine.cursor(Table.LOG)
    batch = engine.batch()
    engine.close()
    again = rocks(tmp_path / "db")
    assert again.get(Table.LOG, b"a") == b"1"
    again.close()
    del cursor, batch


def test_a_path_that_cannot_be_a_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(EngineError, match="file"):
        rocks(tmp_path / "file" / "db")
