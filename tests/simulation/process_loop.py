"""Processes on a virtual clock: each has an event loop of its own, all share one heap of time.

The production code of nodes and clients runs on asyncio, so a simulated process *is* an event loop.
`Universe` knows what happens next, whoever it happens to, and turns the clock straight there. A
process runs in turns: what is due when a turn begins is run in order, and the turn takes time, so
that what arrives meanwhile is found together by the next turn. That is how a real loop gathers its
ticks, and what coalesces frames and fsyncs here as there.

A process that is killed never runs again: nothing of it is woken, and what its remains do has no
effect. One that is paused (SIGSTOP) runs what has gathered when it is resumed.

Everything is decided by seeded generators and by the order of events; `trace` is a hash of the
order, so two runs of one seed can be compared.
"""

from __future__ import annotations

import asyncio
import hashlib
import heapq
import inspect
from asyncio import events
from collections import deque
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar

from tests.simulation.network import Listener

if TYPE_CHECKING:
    import contextvars
    from collections.abc import Callable, Coroutine

    from tests.simulation.network import Network

T = TypeVar("T")

TURN_SECONDS = 20e-6
HANDLE_SECONDS = 5e-6
"""What a turn and each of its callbacks cost, roughly as on a real machine."""
NEVER = float("inf")


class Violation(AssertionError):
    """A promise was broken."""


class Universe:
    """Time, and what happens when."""

    def __init__(self) -> None:
        self.now = 0.0
        self.steps = 0
        self.failure: BaseException | None = None
        """The first thing that nobody caught, in whatever process."""
        self.log: list[str] | None = None
        """What happened, for people; filled only if asked for."""
        self.heap: list[tuple[float, int, Callable[[], None]]] = []
        """What happens, first things first."""
        self._order = count()
        self._trace = hashlib.blake2b(digest_size=8)
        self._graves: list[Process] = []

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Do it then; actions of one moment run in the order in which they were asked for."""
        heapq.heappush(self.heap, (max(when, self.now), next(self._order), action))

    def note(self, *words: object) -> None:
        """Into the trace, and into the log if there is one."""
        line = " ".join(map(str, words))
        self._trace.update(line.encode())
        if self.log is not None:
            self.log.append(f"{self.now:10.6f} {line}")

    @property
    def trace(self) -> str:
        """A hash of all that was noted, and of how many steps there were."""
        return f"{self._trace.copy().hexdigest()}-{self.steps}"

    def run(self, until: float, stop: Callable[[], bool] | None = None) -> bool:
        """Let time pass; whether `stop` said so before it was over.

        Raises:
            Violation: something raised that no process caught.
        """
        heap, pop = self.heap, heapq.heappop
        before = events._get_running_loop()
        try:
            while heap and heap[0][0] <= until:
                self.now, _, action = pop(heap)
                self.steps += 1
                action()
                if self.failure is not None:
                    raise Violation(f"uncaught: {self.failure!r}") from self.failure
                if stop is not None and stop():
                    return True
        finally:
            events._set_running_loop(before)  # each turn of a process sets its own
        self.now = max(self.now, until)
        return False

    def bury(self, process: Process) -> None:
        """Keep what is left of a process: its coroutines must not be finalised midway."""
        self._graves.append(process)


class Callback:
    """What a loop was asked to call; `asyncio.Handle` without what only debugging needs.

    Two of three seconds of a simulation pass below it, so it keeps no traceback and copies no
    context: a callback without a context of its own (all but those of tasks) runs in none.
    """

    __slots__ = ("args", "context", "function")

    def __init__(
        self,
        function: Callable[..., object],
        args: tuple[Any, ...],
        context: contextvars.Context | None,
    ) -> None:
        self.function: Callable[..., object] | None = function
        self.args = args
        self.context = context

    def cancel(self) -> None:
        self.function, self.args = None, ()

    def cancelled(self) -> bool:
        return self.function is None


class Process:
    """One process: an event loop whose time is the universe's.

    It has the methods of `asyncio.AbstractEventLoop` that asyncio itself, nodes and clients call.

    Args:
        universe: Its time.
        network: Its sockets.
        host: Its name; addresses are ``host:port``.
    """

    def __init__(self, universe: Universe, network: Network, host: str) -> None:
        self.universe = universe
        self.network = network
        self.host = host
        self.alive = True
        self.paused = False
        self._as_loop: Any = self
        self._ready: deque[Callback] = deque()
        self._timers: list[tuple[float, int, Callback]] = []
        self._order = count()
        self._free_at = 0.0
        self._woken_for = NEVER
        self._due: set[float] = set()
        """Moments at which the universe looks after it already."""
        self._in_turn = False

    # -- life --------------------------------------------------------------------------------

    def run_within(self, function: Callable[[], T]) -> T:
        """Call something as if this loop were running it."""
        before = events._get_running_loop()
        events._set_running_loop(self._as_loop)
        try:
            return function()
        finally:
            events._set_running_loop(before)

    def spawn(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start a task from outside."""
        return self.run_within(lambda: self.create_task(coroutine))

    def kill(self) -> None:
        """It never runs again."""
        self.alive = False
        for callback in self._ready:
            task = getattr(callback.function, "__self__", None)  # the next step of a task
            if isinstance(task, asyncio.Task):
                _close_if_new(task.get_coro())
        self._ready.clear()
        self._timers.clear()
        self.universe.bury(self)

    def pause(self) -> None:
        """SIGSTOP."""
        self.paused = True

    def resume(self) -> None:
        """SIGCONT."""
        self.paused = False
        self._woken_for = NEVER
        self._wake(self.universe.now)

    def _wake(self, when: float) -> None:
        if not self.alive or self.paused or self._in_turn:
            return
        now, free_at = self.universe.now, self._free_at
        if when < now:
            when = now
        if when < free_at:
            when = free_at
        if when < self._woken_for:
            self._woken_for = when
            if when not in self._due:
                self._due.add(when)
                self.universe.at(when, self._turns)

    def _turns(self) -> None:
        """A turn, and more of them as long as nothing else happens meanwhile."""
        universe = self.universe
        self._due.discard(universe.now)
        if universe.now != self._woken_for or not self.alive or self.paused:
            return
        timers, ready = self._timers, self._ready
        self._woken_for = NEVER
        events._set_running_loop(self._as_loop)
        self._in_turn = True
        try:
            self._turn()
            heap = universe.heap
            while ready and not self.paused and not (heap and heap[0][0] <= self._free_at):
                universe.now = self._free_at
                universe.steps += 1
                self._turn()
        finally:
            self._in_turn = False
        while timers and timers[0][2].function is None:
            heapq.heappop(timers)
        if ready:
            self._wake(self._free_at)
        elif timers:
            self._wake(timers[0][0])

    def _turn(self) -> None:
        now, timers, ready = self.universe.now, self._timers, self._ready
        while timers and timers[0][0] <= now:
            timer = heapq.heappop(timers)[2]
            if timer.function is not None:
                ready.append(timer)
        turn = len(ready)
        for _ in range(turn):
            if not ready:  # it was killed by itself
                break
            callback = ready.popleft()
            function, context = callback.function, callback.context
            if function is None:
                continue
            try:
                if context is None:
                    function(*callback.args)
                else:
                    context.run(function, *callback.args)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:
                self.call_exception_handler({"exception": error})
        self._free_at = now + TURN_SECONDS + turn * HANDLE_SECONDS

    # -- what asyncio asks of a loop -----------------------------------------------------------

    def time(self) -> float:
        return self.universe.now

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return not self.alive

    def call_soon(
        self,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> Callback:
        handle = Callback(callback, args, context)
        if self.alive:
            self._ready.append(handle)
            if not self._in_turn:
                self._wake(self.universe.now)
        return handle

    def call_later(
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> Callback:
        return self.call_at(self.universe.now + delay, callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> Callback:
        handle = Callback(callback, args, context)
        if self.alive:
            heapq.heappush(self._timers, (when, next(self._order), handle))
            if not self._in_turn:
                self._wake(when)
        return handle

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self._as_loop)

    def create_task(
        self, coroutine: Any, *, name: str | None = None, context: Any = None
    ) -> asyncio.Task[Any]:
        if not self.alive:
            _close_if_new(coroutine)
        return asyncio.Task(coroutine, loop=self._as_loop, name=name, context=context)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """In a process of ours nothing may be left uncaught."""
        if self.alive and self.universe.failure is None:
            error = context.get("exception")
            self.universe.failure = error or RuntimeError(str(context.get("message")))

    async def create_server(
        self,
        factory: Any,
        host: Any = None,
        port: Any = None,
        *,
        start_serving: bool = True,
        **_: Any,
    ) -> Listener:
        listener = Listener(self, factory, int(port))
        if start_serving:
            await listener.start_serving()
        return listener

    async def create_connection(
        self, factory: Any, host: Any = None, port: Any = None, **_: Any
    ) -> tuple[Any, Any]:
        return await self.network.connect(self, factory, f"{host}:{port}")


def _close_if_new(coroutine: Any) -> None:
    """What will never begin is closed, or Python warns that nobody awaited it; nothing of it runs.

    One that has begun is left as it is: to close it would run what follows its current step.
    """
    if inspect.iscoroutine(coroutine) and inspect.getcoroutinestate(coroutine) == "CORO_CREATED":
        coroutine.close()
