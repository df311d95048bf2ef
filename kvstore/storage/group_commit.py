"""One fsync for many writes: the only road from "written" to "durable".

An fsync costs about 0.2 ms whether it covers one write or a thousand, and the loop must not wait
for it. So the loop writes each tick's batch unsynced (it is visible at once) and keeps a callback;
one thread syncs, over and over, and says how many batches were written before each sync began. What
is written while a sync runs is the next group: the slower the disk, the larger the groups, and
nobody waits for more than two syncs (DeWitt et al., "Implementation Techniques for Main Memory
Database Systems", SIGMOD 1984, call it group commit).

What holds:

- A callback runs on the loop, after a sync that *began* after its batch was written.
- Callbacks run in the order of the writes.
- After the first error no callback ever runs. A failed fsync says nothing about which pages are on
  the disk, and the next one may succeed without having written them, so nothing later can be
  believed either (Rebello et al., "Can Applications Recover from fsync Failures?", USENIX ATC
  2020). The node has to exit (rule 12); what it acknowledged before stays true.

The thread competes with the loop for the interpreter: after its sync it needs the GIL once, and a
loop that computes gives it up only each `sys.getswitchinterval` (5 ms by default, which whoever
runs the loop should lower).
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from time import perf_counter
from typing import TYPE_CHECKING, Protocol

from kvstore.storage.engine import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvstore.storage.engine import Batch, Engine

    Done = Callable[[], None]
    OnError = Callable[[Exception], None]

__all__ = ["Commit", "GroupCommit", "ImmediateCommit"]


class Commit(Protocol):
    """What makes batches durable; the counters only grow and may be read at any time."""

    batches: int
    """Batches written."""

    syncs: int
    """Syncs that succeeded."""

    sync_seconds_total: float
    """Time spent in them."""

    last_sync_seconds: float
    """The newest one's time."""

    def write(self, batch: Batch, done: Done) -> None:
        """Write at once; call ``done`` on the loop, from a later tick, when it is durable.

        Must be called on the loop. What the engine raises goes to ``on_error``, not to the caller.
        """

    async def close(self) -> None:
        """Return when everything written so far is durable and its callbacks have run."""


class GroupCommit:
    """Group commit with one thread; see `Commit`.

    The two sides share counters instead of queues: `batches` is moved by the loop, ``_durable`` by
    the thread, and each reads the other's. They wake each other through event descriptors (Linux),
    the cheapest hand-over that was measured: over a write and sync in place (200 us, two cores) it
    costs 25 to 75 us, a `queue.SimpleQueue` or a semaphore with ``call_soon_threadsafe`` 65 to 130,
    an executor 100 to 240.

    Args:
        engine: where batches go.
        loop: the loop that writes, and that callbacks run on.
        on_error: called once, on the loop, with the first error; the node is to exit.
    """

    def __init__(self, engine: Engine, loop: asyncio.AbstractEventLoop, on_error: OnError) -> None:
        self.batches = 0
        self.syncs = 0
        self.sync_seconds_total = 0.0
        self.last_sync_seconds = 0.0
        self._engine = engine
        self._loop = loop
        self._on_error = on_error
        self._waiting: deque[Done] = deque()
        self._durable = 0
        self._delivered = 0
        self._failed = False
        self._closing = False
        self._signalled = False
        self._ended = asyncio.Event()
        self._failure: Exception | None = None
        self._stopped = False
        self._to_thread = os.eventfd(0)
        self._to_loop = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        loop.add_reader(self._to_loop, self._deliver)
        # A daemon, so that a node that crashes is not kept alive by a hanging disk.
        self._thread = threading.Thread(target=self._run, name="group-commit", daemon=True)
        self._thread.start()

    def write(self, batch: Batch, done: Done) -> None:
        """Write at once; ``done`` runs on the loop when it is durable, or never after an error."""
        assert not self._closing, "written to after close"
        if self._failed:
            return
        try:
            self._engine.write(batch)
        except EngineError as exc:
            self._failed = True
            self._loop.call_soon(self._on_error, exc)
            return
        self._waiting.append(done)
        self.batches += 1
        self._wake()

    async def close(self) -> None:
        """Wait for the last group and its callbacks, and end the thread; twice is fine."""
        if not self._closing:
            self._closing = True
            if not self._ended.is_set():  # by an error
                self._wake()
        await self._ended.wait()

    def _wake(self) -> None:
        # Not if a signal is still unread: the thread looks at our state after it has read one.
        if not self._signalled:
            self._signalled = True
            os.eventfd_write(self._to_thread, 1)

    def _run(self) -> None:
        """The thread: sync what was written; until told to stop, or an error."""
        stop = False
        while not stop:
            os.eventfd_read(self._to_thread)
            self._signalled = False
            stop = self._closing  # before the count: nothing is written after it
            covered = self.batches
            if covered > self._durable:
                begin = perf_counter()
                try:
                    self._engine.sync()
                except Exception as exc:
                    self._failure = exc
                    stop = True
                else:
                    self.last_sync_seconds = perf_counter() - begin
                    self.sync_seconds_total += self.last_sync_seconds
                    self.syncs += 1
                    self._durable = covered
            if stop:
                self._stopped = True
            os.eventfd_write(self._to_loop, 1)

    def _deliver(self) -> None:
        """On the loop: run the callbacks of what is durable, and pass on how the thread ended."""
        os.eventfd_read(self._to_loop)
        stopped = self._stopped  # before the count: nothing becomes durable after it
        try:
            while self._delivered < self._durable and not self._failed:
                self._delivered += 1
                self._waiting.popleft()()
        except Exception as exc:
            # Half of a group's callbacks is a state that nobody has thought about.
            self._fail(exc)
        if self._failure is not None and not self._failed:
            self._fail(self._failure)
        if stopped:
            self._release()

    def _fail(self, exc: Exception) -> None:
        self._failed = True
        self._on_error(exc)

    def _release(self) -> None:
        """On the loop, once the thread has sent its last word."""
        self._thread.join()
        self._loop.remove_reader(self._to_loop)
        os.close(self._to_loop)
        os.close(self._to_thread)
        self._ended.set()


class ImmediateCommit:
    """The same without a thread; see `Commit`.

    For ``durability="os"``, where a batch counts as soon as the operating system has it
    (``synced=False``), and for the memory engine, whose sync costs nothing (``synced=True``).
    """

    def __init__(
        self,
        engine: Engine,
        loop: asyncio.AbstractEventLoop,
        on_error: OnError,
        *,
        synced: bool,
    ) -> None:
        self.batches = 0
        self.syncs = 0
        self.sync_seconds_total = 0.0
        self.last_sync_seconds = 0.0
        self._engine = engine
        self._loop = loop
        self._on_error = on_error
        self._synced = synced
        self._failed = False
        self._closing = False

    def write(self, batch: Batch, done: Done) -> None:
        """Write at once; ``done`` runs in the loop's next round, or never after an error."""
        assert not self._closing, "written to after close"
        if self._failed:
            return
        try:
            self._engine.write(batch)
            self.batches += 1
            if self._synced:
                begin = perf_counter()
                self._engine.sync()
                self.syncs += 1
                self.last_sync_seconds = perf_counter() - begin
                self.sync_seconds_total += self.last_sync_seconds
        except EngineError as exc:
            self._failed = True
            self._loop.call_soon(self._on_error, exc)
            return
        self._loop.call_soon(self._deliver, done)

    async def close(self) -> None:
        """Let the callbacks of what was written run."""
        self._closing = True
        # Callbacks run in the order in which they were queued, so this one comes last.
        last = self._loop.create_future()
        self._loop.call_soon(last.set_result, None)
        await last

    def _deliver(self, done: Done) -> None:
        if self._failed:
            return
        try:
            done()
        except Exception as exc:
            self._failed = True
            self._on_error(exc)
