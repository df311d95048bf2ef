"""A client that watches, and what it must have heard when all is over.

An observer keeps a copy of every key from the events of a watch, as `docs/watch.md` shows it. Now
and then it stops and goes on with its token, as a program does that is started again. In the end

- within a slot it heard no operation twice, and none before an earlier one;
- it heard every acknowledged write of a key, unless a "reset" of its slot told it that it would
  not;
- its copy is what the cluster holds.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from cluster.slots import slot_of
from kvstore.errors import KVError
from tests.simulation.checkers import Batch, Put
from tests.simulation.process_loop import Violation

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kvstore.client.watch import WatchEvent
    from tests.simulation.checkers import Event
    from tests.simulation.machines import Caller

AGAIN_SECONDS = 0.2


class Observer:
    """One watch of everything, kept alive through all that happens.

    Args:
        caller: Whose client.
        slot_count: Slots of the cluster.
        stop_chance: After each event, to stop and go on with the token.
    """

    def __init__(self, caller: Caller, slot_count: int, stop_chance: float = 0.01) -> None:
        self._stop_chance = stop_chance
        self._client = caller.client
        self._rng = caller.rng
        self._slot_count = slot_count
        self.copy: dict[Any, Any] = {}
        self.resets: set[int] = set()
        """Slots for which it was told that changes were missed."""
        self.began_at: float | None = None
        """When the first watch stood."""
        self._versions: defaultdict[Any, set[str]] = defaultdict(set)
        self._last: dict[int, tuple[int, ...]] = {}
        self._process = caller.process

    def start(self) -> None:
        """Watch until the end of the world."""
        self._process.spawn(self._run()).add_done_callback(lambda task: task.result())

    async def _run(self) -> None:
        token: str | None = None
        while True:
            try:
                watch = self._client.watch("", resume=token)
                async with watch:
                    self.began_at = self._process.time() if self.began_at is None else self.began_at
                    async for event in watch:
                        self._take(event)
                        token = watch.token
                        if self._rng.random() < self._stop_chance:
                            break
            except KVError:
                pass
            await asyncio.sleep(AGAIN_SECONDS * self._rng.random())

    def _take(self, event: WatchEvent) -> None:
        if event.type == "reset":
            self.copy = {key: value for key, value in self.copy.items() if not event.covers(key)}
            self.resets |= event.slots
            for slot in event.slots:
                self._last.pop(slot, None)
            return
        slot = slot_of(event.key.encode(), self._slot_count)  # type: ignore[union-attr]
        place = tuple(int(part, 16) for part in event.version.split("."))
        order = (place[0], place[1], place[2])
        if slot not in self.resets:
            if order < self._last.get(slot, (0,)) or event.version in self._versions[event.key]:
                raise Violation(
                    f"watch: {event.key!r} {event.version} after {self._last.get(slot)} of its slot"
                )
            self._last[slot] = order
        self._versions[event.key].add(event.version)
        match event.type:
            case "put":
                self.copy[event.key] = event.value
            case "delete":
                self.copy.pop(event.key, None)
            case "superseded":
                pass
            case _:
                raise AssertionError(event.type)

    def missed(self, events: Iterable[Event]) -> list[str]:
        """Acknowledged puts that it should have heard of and did not."""
        if self.began_at is None:
            return []
        return [
            f"{key} {event.answer}"
            for event in events
            for key in event.keys
            if isinstance(event.action, Put | Batch)
            and isinstance(event.answer, str)
            and event.began_at > self.began_at
            and slot_of(key.encode(), self._slot_count) not in self.resets
            and event.answer not in self._versions[key]
        ]

    def differences(self, state: dict[str, Any]) -> list[str]:
        """Where its copy is not what the cluster holds, for keys that were written since."""
        return [
            f"{key}: heard {self.copy.get(key)!r}, stored {state.get(key)!r}"
            for key in sorted({*self.copy, *(k for k in state if self._versions[k])})
            if self.copy.get(key) != state.get(key)
        ]
