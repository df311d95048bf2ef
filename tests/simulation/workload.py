"""What simulated clients do, and what they write down about it.

A customer is one task over the production client. It works in bursts, with rests between them. It
draws operations of all kinds on few, hot keys, tells the history when each began and how it ended,
and sometimes settles an unknown outcome by repeating it under its id. What is written down is what
the library promised: a result, "nothing was written" (refused), or nothing known (open).

A scan is written down as a read of every key that it could have named, with or without a value.
"""

from __future__ import annotations

import asyncio
from itertools import count
from typing import TYPE_CHECKING, Any

from kvstore.errors import (
    DeadlineExceeded,
    KVError,
    OutcomeUnknown,
    Overloaded,
    PartialFailure,
    Unavailable,
    VersionConflict,
    WrongType,
)
from tests.simulation.checkers import (
    Action,
    Batch,
    Condition,
    Conflicted,
    Delete,
    Event,
    Get,
    Incr,
    Mistyped,
    Put,
    Touch,
)
from tests.simulation.process_loop import Violation

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from random import Random

    from kvstore.client.aio import AsyncClient
    from tests.simulation.machines import Caller
    from tests.simulation.process_loop import Universe

REFUSALS = (Unavailable, DeadlineExceeded, Overloaded)
TTL_SECONDS = 0.4
REST_LOOK_SECONDS = 1.0
JITTER_SECONDS = 0.3
"""All begin a round together, more or less."""
EPOCH_SECONDS = 1.5
"""Keys change their names after so long: the search for an order is exponential in the worst case,
and a hundred operations on a key show what a thousand would."""


class History:
    """All events, in the order in which they began."""

    def __init__(self, universe: Universe) -> None:
        self._universe = universe
        self._order = count(1)
        self.events: list[Event] = []

    @property
    def now(self) -> float:
        """Virtual seconds."""
        return self._universe.now

    def keys(self) -> list[str]:
        """All that was ever asked for."""
        return sorted({key for event in self.events for key in event.keys})

    def lasting(self) -> dict[str, Any]:
        """Keys that were written once and for all, with their values."""
        return {
            event.key: event.action.value
            for event in self.events
            if event.key[0] == "b" and event.ended is not None and isinstance(event.action, Put)
        }

    def begin(self, client: str, key: str, action: Action) -> Event:
        """An operation is about to be sent."""
        event = Event(client, key, action, next(self._order), self._universe.now)
        self.events.append(event)
        return event

    def end(self, event: Event, answer: Any) -> None:
        """It was answered."""
        event.ended, event.ended_at = next(self._order), self._universe.now
        event.answer = answer


class Customer:
    """One task that uses a client.

    Args:
        caller: Whose client.
        history: What is written down.
        number: Of those that use this client.
        keys: On which it works; those of a batch share a slot.
        pause_seconds: Between two operations, on average.
        kinds: Which operations, by name, as often as they stand there.
        burst: Operations in a row, on average, before it rests.
        round_seconds: It rests until the next full multiple of this, as all others do; 0: never.
        rng: All of this customer's chance; the caller's if None.
    """

    def __init__(
        self,
        caller: Caller,
        history: History,
        number: int,
        keys: list[str],
        pause_seconds: float,
        kinds: list[str],
        *,
        burst: int = 1,
        round_seconds: float = 0.0,
        rng: Random | None = None,
    ) -> None:
        self._client: AsyncClient = caller.client
        self._rng: Random = rng or caller.rng
        self._history = history
        self._name = f"{caller.host}.{number}"
        self._keys = keys
        self._pause_seconds = pause_seconds
        self._kinds = kinds
        self._burst = burst
        self._round_seconds = round_seconds
        self._values = count(1)
        self._versions: dict[str, str] = {}
        self._actions: dict[str, Callable[[str], Awaitable[None]]] = {
            "put": self._put,
            "get": self._get,
            "incr": self._incr,
            "delete": self._delete,
            "cas": self._compare_and_set,
            "absent": self._if_absent,
            "ttl": self._expiring,
            "touch": self._touch,
            "batch": self._batch,
            "many": self._many,
            "scan": self._scan,
            "bulk": self._bulk,
        }
        self.stopping = False

    async def run(self) -> None:
        """Until it is told to stop."""
        rng = self._rng
        while not self.stopping:
            for _ in range(rng.randrange(2 * self._burst)):
                name = self._present(rng.choice(self._keys))
                await self._actions[rng.choice(self._kinds)](name)
                await asyncio.sleep(self._pause_seconds * 2 * rng.random())
                if self.stopping:
                    break
            else:
                await self._rest()

    async def _rest(self) -> None:
        """Until the next round, but not when it is told to stop."""
        seconds = self._round_seconds
        if not seconds:
            return
        until = (self._history.now // seconds + 1) * seconds + JITTER_SECONDS * self._rng.random()
        while (left := until - self._history.now) > 0 and not self.stopping:  # noqa: ASYNC110
            await asyncio.sleep(min(left, REST_LOOK_SECONDS))

    async def read_all(self, keys: list[str]) -> None:
        """The last look, when all is well again."""
        lasting = self._history.lasting()
        alone = [key for key in keys if key not in lasting]
        together = [key for key in keys if key in lasting]
        for key in alone:
            await self._until_answered(1, self._get, key)
        for at in range(0, len(together), 50):
            some = together[at : at + 50]
            await self._until_answered(len(some), self._get_many, some)

    async def _until_answered(
        self, events: int, read: Callable[[Any], Awaitable[None]], about: Any
    ) -> None:
        answered = False
        while not answered:
            await read(about)
            answered = all(event.ended is not None for event in self._history.events[-events:])

    def _present(self, name: str) -> str:
        """The key that has this name now."""
        return f"{name}@{self._history.now // EPOCH_SECONDS:.0f}"

    def _value(self) -> str:
        return f"{self._name}:{next(self._values)}"

    async def _observe(self, key: str, action: Action, call: Callable[..., Awaitable[Any]]) -> None:
        """Carry it out and write it down; ``call`` takes an operation id to settle, or None."""
        event = self._history.begin(self._name, key, action)
        operation_id: str | None = None
        for _ in range(2):
            try:
                answer = await call(operation_id)
            except VersionConflict as conflict:
                answer = Conflicted(conflict.current)
            except WrongType:
                answer = Mistyped()
            except OutcomeUnknown as unknown:
                operation_id = unknown.operation_id
                if self._rng.random() < 0.5:
                    continue
                return
            except REFUSALS as refusal:
                event.label = str(refusal)
                event.refused = operation_id is None
                return
            self._history.end(event, answer)
            return

    async def _put(self, key: str) -> None:
        value = self._value()

        async def call(operation_id: str | None) -> Any:
            self._versions[key] = version = await self._client.put(
                key, value, operation_id=operation_id
            )
            return version

        await self._observe(key, Put(value), call)

    async def _expiring(self, key: str) -> None:
        value = self._value()
        await self._observe(
            key,
            Put(value, None, TTL_SECONDS),
            lambda settle: self._client.put(key, value, ttl=TTL_SECONDS, operation_id=settle),
        )

    async def _compare_and_set(self, key: str) -> None:
        version, value = self._versions.get(key), self._value()
        if version is None:
            await self._get(key)
            return
        if self._rng.random() < 0.2:
            await self._observe(
                key,
                Delete(Condition(version=version)),
                lambda settle: self._client.delete(key, if_version=version, operation_id=settle),
            )
            return
        await self._observe(
            key,
            Put(value, Condition(version=version)),
            lambda settle: self._client.put(key, value, if_version=version, operation_id=settle),
        )

    async def _if_absent(self, key: str) -> None:
        value = self._value()
        await self._observe(
            key,
            Put(value, Condition(absent=True)),
            lambda settle: self._client.put(key, value, if_absent=True, operation_id=settle),
        )

    async def _get(self, key: str) -> None:
        async def call(_: str | None) -> Any:
            entry = await self._client.get_entry(key)
            if entry is None:
                self._versions.pop(key, None)
                return None
            self._versions[key] = entry.version
            return entry.value, entry.version

        await self._observe(key, Get(), call)

    async def _incr(self, key: str) -> None:
        by = self._rng.choice((1, 1, 1, 10))
        key = f"n:{key}" if self._rng.random() < 0.9 else key
        await self._observe(
            key, Incr(by), lambda settle: self._client.incr(key, by, operation_id=settle)
        )

    async def _delete(self, key: str) -> None:
        await self._observe(
            key, Delete(), lambda settle: self._client.delete(key, operation_id=settle)
        )

    async def _touch(self, key: str) -> None:
        ttl = self._rng.choice((None, TTL_SECONDS))
        await self._observe(
            key, Touch(ttl), lambda settle: self._client.touch(key, ttl, operation_id=settle)
        )

    async def _batch(self, key: str) -> None:
        tag = self._present(self._rng.choice(("x", "y")))
        names = [f"{{{tag}}}{n}" for n in range(3)]
        picked = sorted(self._rng.sample(names, self._rng.randrange(1, 4)))
        values = {name: self._value() for name in picked}
        writes = tuple((name, Put(value)) for name, value in values.items())
        await self._observe(
            picked[0],
            Batch(writes),
            lambda settle: self._client.batch(dict(values), operation_id=settle),
        )
        await self._get(self._rng.choice(names))

    async def _many(self, key: str) -> None:
        """Several keys in one call are several operations."""
        names = [self._present(name) for name in self._keys]
        picked = self._rng.sample(names, min(len(names), 3))
        if self._rng.random() < 0.5:
            await self._get_many(picked)
        else:
            await self._put_many({name: self._value() for name in picked})

    async def _bulk(self, key: str) -> None:
        """Many keys that nobody has used before."""
        number, many = next(self._values), self._rng.choice((3, 3, 3, 40))
        values = {f"b{self._name}:{number}:{n}": self._value() for n in range(many)}
        await self._put_many(values)
        if self._rng.random() < 0.5:
            await self._get_many(list(values))

    async def _put_many(self, values: dict[str, str]) -> None:
        begun = {
            name: self._history.begin(self._name, name, Put(value))
            for name, value in values.items()
        }
        errors: dict[Any, KVError] = {}
        try:
            await self._client.put_many(values)
        except PartialFailure as failure:
            errors = failure.errors
        for name, event in begun.items():
            error = errors.get(name)
            if error is None:
                self._history.end(event, None)  # it does not say under which version
            elif isinstance(error, REFUSALS):
                event.refused, event.label = True, str(error)
            elif not isinstance(error, OutcomeUnknown):
                raise error

    async def _scan(self, key: str) -> None:
        """Everything, in pages of a few keys."""
        names = [self._present(name) for name in self._keys]
        names += [f"n:{name}" for name in names]
        begun = {name: self._history.begin(self._name, name, Get()) for name in names}
        lasting = self._history.lasting()
        found: dict[Any, tuple[Any, str]] = {}
        cursor: str | None = None
        limit = self._rng.choice((3, 100))
        try:
            while True:
                page = await self._client.scan_page("", limit=limit, cursor=cursor)
                for name, entry in zip(page.keys, page.entries, strict=True):
                    if name in found:
                        raise Violation(f"a scan named {name!r} twice")
                    found[name] = (entry.value, entry.version)
                if (cursor := page.cursor) is None:
                    break
        except REFUSALS:
            for event in begun.values():
                event.refused = True
            return
        for name, event in begun.items():
            self._history.end(event, found.get(name))
        for name, answer in lasting.items():
            if found.get(name, (None,))[0] != answer:
                raise Violation(f"a scan missed {name!r}: {found.get(name)} instead of {answer!r}")

    async def _get_many(self, picked: list[str]) -> None:
        begun = [self._history.begin(self._name, name, Get()) for name in picked]
        try:
            found = await self._client.get_many(picked)
        except (PartialFailure, *REFUSALS):
            for event in begun:
                event.refused = True
            return
        for event in begun:
            value = found.get(event.key)
            self._history.end(event, None if value is None else (value, None))
