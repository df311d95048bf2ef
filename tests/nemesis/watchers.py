"""Clients that watch everything, judged as the simulated ones are (`tests.simulation.observer`).

They live in a process of their own. When the run is over it is given the histories of all clients
and what the keys hold, and says what it should have heard and did not.
"""

from __future__ import annotations

import asyncio
import pickle
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any, Final, TextIO, cast

import kvstore
from tests.nemesis.ledger import read_rows
from tests.simulation.observer import Observer

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from multiprocessing.synchronize import Event as Flag
    from pathlib import Path

    from kvstore.client.watch import WatchEvent
    from tests.simulation.machines import Caller

LOOK_SECONDS: Final = 0.2
HEAR_SECONDS: Final = 60.0
"""How long after the end a watch may take to tell all of it."""

STOP_CHANCE: Final = 0.0005
"""To begin a watch of 256 slots again takes as long as hundreds of events."""

SHOWN: Final = 5


class Listener(Observer):
    """An observer that writes down what it hears, for whoever looks for the cause of a fault."""

    def note(self, directory: Path, number: int) -> Listener:
        """Where to; returns itself."""
        self._note: TextIO = (directory / f"heard-{number}.txt").open("w")
        return self

    def _take(self, event: WatchEvent) -> None:
        what = sorted(event.slots) if event.type == "reset" else (event.key, event.version)
        self._note.write(f"{time.monotonic():.6f} {event.type} {what}\n")
        super()._take(event)


@dataclass(frozen=True)
class Watching:
    """What the process of observers is told."""

    url: str
    observers: int
    slot_count: int
    seed: int
    directory: Path

    @property
    def state_file(self) -> Path:
        """What the keys hold in the end: pickled, written before ``judge`` is set."""
        return self.directory / "state"


@dataclass
class Process:
    """What `Observer` knows of the process that it lives in."""

    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run it beside everything else."""
        self.tasks.append(asyncio.create_task(work))
        return self.tasks[-1]

    def time(self) -> float:
        """On the clock of the histories."""
        return time.monotonic()


@dataclass(frozen=True)
class Seat:
    """What `Observer` knows of a caller."""

    client: Any
    rng: Random
    process: Process


def run_watchers(watching: Watching, judge: Flag, told: Any) -> None:
    """Watch until ``judge`` is set, then put the verdict into the queue: (faults, resets)."""
    told.put(asyncio.run(_watch(watching, judge)))


async def _watch(watching: Watching, judge: Flag) -> tuple[list[str], int]:
    process = Process()
    observers = []
    async with AsyncExitStack() as stack:
        for number in range(watching.observers):
            client = await stack.enter_async_context(kvstore.connect_async(watching.url))
            seat = Seat(client, Random(f"{watching.seed} observer {number}"), process)
            listener = Listener(cast("Caller", seat), watching.slot_count, STOP_CHANCE)
            observers.append(listener.note(watching.directory, number))
            observers[-1].start()
        await asyncio.to_thread(judge.wait)
        state = pickle.loads(watching.state_file.read_bytes())
        deadline = time.monotonic() + HEAR_SECONDS
        events = [row.event for row in read_rows(watching.directory)]
        while any(o.missed(events) or o.differences(state) for o in observers):
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(LOOK_SECONDS)
        faults = [repr(task.exception()) for task in process.tasks if task.done()]
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    for observer in observers:
        faults += [f"not heard: {line}" for line in observer.missed(events)[:SHOWN]]
        faults += [f"copy differs: {line}" for line in observer.differences(state)[:SHOWN]]
    return faults, sum(len(observer.resets) for observer in observers)
