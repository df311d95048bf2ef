"""A callback means: durable. It runs in order, on the loop, and never after an error."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest

from kvstore.storage.engine import EngineError, Table
from kvstore.storage.group_commit import Commit, GroupCommit, ImmediateCommit
from kvstore.storage.memory import MemoryEngine
from kvstore.storage.rocksdb import RocksEngine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from kvstore.storage.engine import Batch


class SteppedEngine(MemoryEngine):
    """Each sync waits to be let through, and covers what was written when it began."""

    def __init__(self) -> None:
        super().__init__()
        self.sync_began = threading.Semaphore(0)
        self.sync_may_end = threading.Semaphore(0)
        self.sync_error: Exception | None = None
        self.write_error: EngineError | None = None
        self.sync_threads: set[int] = set()

    def sync(self) -> None:
        self.sync_threads.add(threading.get_ident())
        covered = self.written
        self.sync_began.release()
        assert self.sync_may_end.acquire(timeout=10)
        if self.sync_error is not None:
            raise self.sync_error
        self.sync_through(covered)

    def write(self, batch: Batch) -> None:
        if self.write_error is not None:
            raise self.write_error
        super().write(batch)

    async def began(self) -> None:
        assert await asyncio.to_thread(self.sync_began.acquire, timeout=10)


class Journal:
    """What happened on the loop, in order."""

    def __init__(self, engine: MemoryEngine) -> None:
        self.engine = engine
        self.events: list[object] = []
        self.errors: list[Exception] = []
        self.thread = threading.get_ident()

    def done(self, name: object) -> Callable[[], None]:
        needed = self.engine.written + 1  # made just before the write

        def call() -> None:
            assert threading.get_ident() == self.thread
            assert self.engine.synced >= needed, "called before its write was durable"
            self.events.append(name)

        return call

    def on_error(self, exc: Exception) -> None:
        assert threading.get_ident() == self.thread
        self.errors.append(exc)


def a_batch(engine: MemoryEngine | RocksEngine) -> Batch:
    batch = engine.batch()
    batch.put(Table.META, b"k", b"v")
    return batch


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is watched is a plain list
            await asyncio.sleep(0.001)


@pytest.fixture
async def engine() -> SteppedEngine:
    return SteppedEngine()


@pytest.fixture
async def journal(engine: SteppedEngine) -> Journal:
    return Journal(engine)


@pytest.fixture
async def commit(engine: SteppedEngine, journal: Journal) -> AsyncIterator[GroupCommit]:
    group = GroupCommit(engine, asyncio.get_running_loop(), journal.on_error)
    yield group
    engine.sync_may_end.release(1_000)
    await group.close()


async def test_a_callback_waits_for_its_sync(
    engine: SteppedEngine, journal: Journal, commit: GroupCommit
) -> None:
    commit.write(a_batch(engine), journal.done("a"))
    assert engine.get(Table.META, b"k") == b"v", "visible at once"
    await engine.began()
    await asyncio.sleep(0.01)
    assert journal.events == []
    engine.sync_may_end.release()
    await until(lambda: journal.events)
    assert journal.events == ["a"]
    assert journal.thread not in engine.sync_threads
    assert (commit.batches, commit.syncs) == (1, 1)
    assert commit.sync_seconds_total == commit.last_sync_seconds >= 0.009


async def test_what_arrives_during_a_sync_is_one_next_group_in_order(
    engine: SteppedEngine, journal: Journal, commit: GroupCommit
) -> None:
    commit.write(a_batch(engine), journal.done(0))
    await engine.began()
    for number in range(1, 6):
        commit.write(a_batch(engine), journal.done(number))
    engine.sync_may_end.release()
    await engine.began()
    await until(lambda: journal.events)
    assert journal.events == [0], "the sync that was running does not cover them"
    commit.write(a_batch(engine), journal.done(6))
    engine.sync_may_end.release()
    await until(lambda: len(journal.events) > 1)
    assert journal.events == [0, 1, 2, 3, 4, 5]
    engine.sync_may_end.release()
    await until(lambda: len(journal.events) == 7)
    assert commit.syncs == 3


async def test_callbacks_may_write(
    engine: SteppedEngine, journal: Journal, commit: GroupCommit
) -> None:
    engine.sync_may_end.release(2)
    commit.write(
        a_batch(engine), lambda: commit.write(a_batch(engine), journal.done("from a callback"))
    )
    await until(lambda: journal.events)


async def test_close_waits_for_the_last_group(engine: SteppedEngine, journal: Journal) -> None:
    commit = GroupCommit(engine, asyncio.get_running_loop(), journal.on_error)
    commit.write(a_batch(engine), journal.done("a"))
    await engine.began()
    commit.write(a_batch(engine), journal.done("b"))
    closing = asyncio.ensure_future(commit.close())
    await asyncio.sleep(0.01)
    assert not closing.done()
    engine.sync_may_end.release(2)
    await closing
    assert journal.events == ["a", "b"]
    await commit.close()
    with pytest.raises(AssertionError):
        commit.write(a_batch(engine), journal.done("late"))
    assert threading.active_count() < 20
    assert not [t for t in threading.enumerate() if t.name == "group-commit"]


async def test_after_a_failed_sync_no_callback_ever_runs(
    engine: SteppedEngine, journal: Journal, commit: GroupCommit
) -> None:
    engine.sync_may_end.release()
    commit.write(a_batch(engine), journal.done("a"))
    await until(lambda: journal.events)
    await engine.began()
    failure = EngineError("the disk is gone")
    commit.write(a_batch(engine), journal.done("b"))
    await engine.began()
    commit.write(a_batch(engine), journal.done("c"))
    engine.sync_error = failure
    engine.sync_may_end.release()
    await until(lambda: journal.errors)
    engine.sync_error = None
    engine.sync_may_end.release(10)
    written = engine.written
    commit.write(a_batch(engine), journal.done("d"))
    await commit.close()
    assert journal.events == ["a"]
    assert journal.errors == [failure]
    assert engine.written == written, "nothing is written after an error either"


async def test_after_a_failed_write_no_callback_ever_runs(
    engine: SteppedEngine, journal: Journal, commit: GroupCommit
) -> None:
    commit.write(a_batch(engine), journal.done("in flight"))
    await engine.began()
    engine.write_error = EngineError("no space")
    commit.write(a_batch(engine), journal.done("failed"))
    assert not journal.errors, "not from within the write"
    engine.sync_may_end.release(10)
    engine.write_error = None
    commit.write(a_batch(engine), journal.done("later"))
    await commit.close()
    assert journal.events == []
    assert [str(exc) for exc in journal.errors] == ["no space"]


async def test_a_callback_that_raises_ends_it_all(
    engine: SteppedEngine, journal: Journal, commit: GroupCommit
) -> None:
    def broken() -> None:
        raise AssertionError("an invariant is gone")

    commit.write(a_batch(engine), journal.done("a"))
    await engine.began()
    commit.write(a_batch(engine), broken)
    commit.write(a_batch(engine), journal.done("c"))
    engine.sync_may_end.release(10)
    await commit.close()
    assert journal.events == ["a"]
    assert [str(exc) for exc in journal.errors] == ["an invariant is gone"]


@pytest.mark.parametrize("kind", ["group", "os", "memory"])
async def test_many_writers(kind: str, tmp_path: Path) -> None:
    """Every callback runs once and in order, however writes and syncs interleave."""
    loop = asyncio.get_running_loop()
    engine = MemoryEngine() if kind == "memory" else RocksEngine(tmp_path / "db")
    errors: list[Exception] = []
    commit: Commit = (
        GroupCommit(engine, loop, errors.append)
        if kind == "group"
        else ImmediateCommit(engine, loop, errors.append, synced=kind == "memory")
    )
    events: list[int] = []
    for number in range(500):
        commit.write(a_batch(engine), lambda n=number: events.append(n))  # type: ignore[misc]
        assert number not in events, "never from within the write"
        if number % 7 == 0:
            await asyncio.sleep(0)
        if number % 50 == 0:
            await asyncio.sleep(0.002)
    await commit.close()
    assert events == list(range(500))
    assert not errors
    assert commit.batches == 500
    assert commit.syncs == {"group": commit.syncs, "os": 0, "memory": 500}[kind]
    assert commit.syncs < 500 or kind == "memory"
    engine.close()


async def test_immediate_commit_reports_errors_and_stops(
    engine: SteppedEngine, journal: Journal
) -> None:
    commit = ImmediateCommit(engine, asyncio.get_running_loop(), journal.on_error, synced=False)
    ran: list[str] = []
    commit.write(a_batch(engine), lambda: ran.append("a"))
    await asyncio.sleep(0)
    engine.write_error = EngineError("no space")
    commit.write(a_batch(engine), lambda: ran.append("b"))
    engine.write_error = None
    commit.write(a_batch(engine), lambda: ran.append("c"))
    await commit.close()
    assert ran == ["a"]
    assert [str(exc) for exc in journal.errors] == ["no space"]


async def test_immediate_commit_syncs_where_asked(engine: SteppedEngine, journal: Journal) -> None:
    engine.sync_may_end.release(10)
    commit = ImmediateCommit(engine, asyncio.get_running_loop(), journal.on_error, synced=True)
    commit.write(a_batch(engine), journal.done("a"))
    await commit.close()
    engine.crash()
    assert engine.get(Table.META, b"k") == b"v"
    assert journal.events == ["a"]
