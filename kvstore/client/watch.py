"""Watching a prefix: what happens to its keys, as an iterator that survives failovers.

`kvstore.client.watch_session` decides; this hands out events, and drives the session over blocking
links or those of an event loop. Both classes do the same; one is a plain iterator, the other an
asynchronous one.
"""

from __future__ import annotations

import math
import os
import time
from asyncio import sleep
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self, TypeVar
from weakref import finalize

from cluster.slots import slot_of
from cluster.watches import SUPERSEDED
from kvstore.client.exchange import Exchange, Listen
from kvstore.client.outcomes import Key, entry_of, text_key
from kvstore.client.watch_queue import Item, Reset, State
from kvstore.errors import BadRequest, ClientClosed, KVError
from kvstore.values import check_key, version_to_text

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from kvstore.client.exchange import AsyncLinks, AsyncTransport, Links, Transport
    from kvstore.client.watch_session import WatchFlow, WatchSession

T = TypeVar("T")

_FOREVER_SECONDS = 3_600.0
"""Between two looks at nothing; it means nothing."""


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """Something that happened under the prefix of a watch.

    Attributes:
        type: "put": the key has this value now. "delete": the key is gone. "superseded": the key
            was changed, and changed again before this watch could be told: what it became is not
            known any more; the change that took its place follows. "reset": changes were missed
            that nobody can tell any more; forget the keys that `covers` names, their present state
            follows as "put" events.
        key: Text where it is valid UTF-8, else bytes; empty for "reset".
        value: The new value of a "put", else None.
        version: Of the operation that did it; empty for "reset".
        expires_at: When the value of a "put" goes away by itself, in UTC; None for never.
        content_type: Of a "put" of raw bytes that had one, else empty.
        slots: Those that a "reset" is about; `covers` is easier.
    """

    type: str
    key: Key
    value: Any
    version: str
    expires_at: datetime | None
    content_type: str
    slots: frozenset[int] = field(repr=False)
    _session: WatchSession = field(repr=False, compare=False)
    _number: int = field(repr=False, compare=False)

    @property
    def token(self) -> str:
        """Goes on behind this event, as ``resume``; ask before the next event is taken.

        Raises:
            BadRequest: a later event was taken: what this one's token was is not kept.
        """
        if self._number != self._session.heard.handed_total:
            raise BadRequest(
                "the token of an event is known until the next one is taken: ask for it before, or "
                "use that of the watch"
            )
        return self._session.token()

    def covers(self, key: Key) -> bool:
        """Whether a "reset" is about this key; False for all other events."""
        return bool(self.slots) and slot_of(check_key(key), self._session.slot_count) in self.slots


def _event_of(item: Item, session: WatchSession) -> WatchEvent:
    """What the caller gets.

    Raises:
        CorruptValue: the record is damaged.
    """
    number = session.heard.handed_total
    if isinstance(item, Reset):
        return WatchEvent("reset", "", None, "", None, "", item.slots, session, number)
    key = text_key(item.key)
    if isinstance(item, State) or item.record:
        assert item.record is not None
        entry = entry_of(item.record, key)
        about = (entry.value, entry.version, entry.expires_at, entry.content_type)
        return WatchEvent("put", key, *about, frozenset(), session, number)
    kind = "superseded" if item.record == SUPERSEDED else "delete"
    version = version_to_text(item.version)
    return WatchEvent(kind, key, None, version, None, "", frozenset(), session, number)


class Watch:
    """A watch under way; iterate over it. Made by ``Client.watch``.

    Iterating blocks until something happens, and rides out failovers and outages however long they
    take. It ends when the watch is closed, from any thread, or by an interrupt (its token goes on).
    One thread reads at a time.
    """

    def __init__(
        self, session: WatchSession, transport: Transport, deadline: Callable[[float | None], float]
    ) -> None:
        self._session = session
        self._transport = transport
        self._deadline = deadline
        self._links: Links = transport.links()
        self._closed = False
        self._process = os.getpid()
        self._finalizer = finalize(self, self._links.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> WatchEvent:
        while not self._closed:
            event = self.poll(_FOREVER_SECONDS)
            if event is not None:
                return event
        raise StopIteration

    def poll(self, timeout: float) -> WatchEvent | None:
        """The next event, or None if there is none within so many seconds (0: none yet).

        Raises:
            SlowWatcher: a node cut this watch off; go on from its token.
            CorruptValue: a value is damaged; the next call goes on behind it.
        """
        if not isinstance(timeout, int | float) or not 0 <= timeout < math.inf:
            raise BadRequest(f"timeout is a number of seconds from 0, not {timeout!r:.60}")
        if self._process != os.getpid():
            raise ClientClosed(
                "a watch belongs to the process that began it: begin another one in a forked child"
            )
        self._deadline(None)
        flow = self._session.next_item(self._session.core.now() + timeout)
        item: Item | None = self._drive(flow)
        return None if item is None else _event_of(item, self._session)

    @property
    def token(self) -> str:
        """Goes on behind what was taken from this watch, as ``resume``, on any client."""
        return self._session.token()

    def close(self) -> None:
        """End the watch; whoever waits for its next event is let go."""
        self._closed = True
        self._finalizer()

    def begin(self, deadline: float) -> Self:
        """For ``Client.watch``: until every slot is watched."""
        try:
            self._drive(self._session.begin(deadline))
        except BaseException:
            self.close()
            raise
        return self

    def _drive(self, flow: WatchFlow[T]) -> T | None:
        """Run a flow to its value; None if the watch is closed meanwhile."""
        try:
            step = next(flow)
            while not self._closed:
                if isinstance(step, Listen):
                    step = flow.send(self._links.listen(step))
                elif isinstance(step, Exchange):
                    step = flow.send(self._transport.exchange(step.sends, step.deadline))
                else:
                    time.sleep(max(0.0, step.seconds))
                    step = flow.send([])
                self._deadline(None)
        except StopIteration as stop:
            value: T = stop.value
            return value
        except KVError:
            raise
        except BaseException:  # an interrupt: what had just arrived may be lost with it
            self.close()
            raise
        finally:
            flow.close()
        return None


class AsyncWatch:
    """A watch under way on an event loop; iterate over it. Made by ``AsyncClient.watch``.

    ``async with`` begins it, so that it misses nothing that happens inside; without, the first
    event that is asked for begins it. Waiting for an event may be cancelled and loses nothing. One
    task reads at a time.
    """

    def __init__(
        self,
        session: WatchSession,
        transport: AsyncTransport,
        deadline: Callable[[float | None], float],
        timeout: float | None,
    ) -> None:
        self._session = session
        self._transport = transport
        self._deadline = deadline
        self._timeout = timeout
        self._begun = False
        self._closed = False
        self._links: AsyncLinks | None = None

    async def __aenter__(self) -> Self:
        await self.begin()
        return self

    async def __aexit__(self, *exception: object) -> None:
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> WatchEvent:
        await self.begin()
        while not self._closed:
            self._deadline(None)
            flow = self._session.next_item(self._session.core.now() + _FOREVER_SECONDS)
            item: Item | None = await self._drive(flow)
            if item is not None:
                return _event_of(item, self._session)
        raise StopAsyncIteration

    async def begin(self) -> None:
        """Until every slot is watched: what is written from then on is told. Once is enough.

        Raises:
            Unavailable: not within the timeout.
            BadRequest: the token is none of this watch.
        """
        if self._begun or self._closed:
            return
        try:
            await self._drive(self._session.begin(self._deadline(self._timeout)))
        except KVError:
            self.close()
            raise
        self._begun = True

    @property
    def token(self) -> str:
        """Goes on behind what was taken from this watch, as ``resume``, on any client."""
        return self._session.token()

    def close(self) -> None:
        """End the watch; whoever waits for its next event is let go."""
        self._closed = True
        if self._links is not None:
            self._links.close()

    async def _drive(self, flow: WatchFlow[T]) -> T | None:
        """Run a flow to its value; None if the watch is closed meanwhile."""
        if self._links is None:
            self._links = self._transport.links()
            finalize(self, self._links.close)
        try:
            step = next(flow)
            while not self._closed:
                if isinstance(step, Listen):
                    step = flow.send(await self._links.listen(step))
                elif isinstance(step, Exchange):
                    step = flow.send(await self._transport.exchange(step.sends, step.deadline))
                else:
                    await sleep(max(0.0, step.seconds))
                    step = flow.send([])
                self._deadline(None)
        except StopIteration as stop:
            value: T = stop.value
            return value
        finally:
            flow.close()
        return None


def check_resume(resume: Any) -> str | None:
    """A token, or None; whose token it is shows once the cluster is known.

    Raises:
        BadRequest: it is no text.
    """
    if resume is not None and (not isinstance(resume, str) or not resume):
        raise BadRequest(f"resume is the token of a watch or None, not {resume!r:.60}")
    return resume
