"""The asyncio client: the same flows, driven on an event loop.

The methods are those of `kvstore.client.sync`, a test compares them. A client belongs to the loop
that first uses it. Any call may be cancelled; a cancelled write may still take effect.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any, Self, TypeVar

from kvstore.client import flows, many
from kvstore.client.address import check_seconds, parse_url
from kvstore.client.core import ClientCore
from kvstore.client.exchange import Exchange
from kvstore.client.scanning import ScanPage, Walk, check_limit, checked_prefix
from kvstore.client.streams import StreamTransport
from kvstore.client.sync import CLOSED_UNDER_WAY, LINEARIZABLE, PAGE_KEYS
from kvstore.client.watch import AsyncWatch, check_resume
from kvstore.client.watch_session import WatchSession
from kvstore.errors import ClientClosed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping

    from kvstore.client.exchange import AsyncTransport, Flow
    from kvstore.client.outcomes import Entry, Key

T = TypeVar("T")


def connect_async(
    url: str | None = None, *, timeout: float | None = None, connect_timeout: float | None = None
) -> AsyncClient:
    """As `kvstore.connect`, for asyncio; needs no ``await`` and no running loop."""
    target = parse_url(url, timeout=timeout, connect_timeout=connect_timeout)
    transport = StreamTransport(connect_timeout=target.connect_timeout)
    return AsyncClient(ClientCore(target.seeds), transport, timeout=target.timeout)


class AsyncClient:
    """A key-value store on an event loop. Made by `kvstore.connect_async`.

    Args:
        core: Routing and ids.
        transport: Delivery; closed with the client.
        timeout: Seconds for a call that names none.
    """

    def __init__(self, core: ClientCore, transport: AsyncTransport, *, timeout: float) -> None:
        self._core = core
        self._transport = transport
        self._timeout = timeout
        self._process = os.getpid()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections; every later call raises `ClientClosed`."""
        if not self._closed:
            self._check_place()
            self._closed = True
            await self._transport.close()

    async def put(
        self,
        key: Key,
        value: Any,
        *,
        ttl: float | None = None,
        if_version: str | None = None,
        if_absent: bool = False,
        content_type: str = "",
        operation_id: str | None = None,
        timeout: float | None = None,
    ) -> str:
        """Store a value; it is durable on a quorum when this returns.

        Args:
            key: 1 to 4,096 bytes.
            value: What MessagePack holds, up to 1 MiB; see `kvstore.values`.
            ttl: Seconds after which the key goes away; None keeps it.
            if_version: Only if the key is still at this version.
            if_absent: Only if there is no such key.
            content_type: Of raw bytes, for those who read over HTTP.
            operation_id: That of an `OutcomeUnknown`, to settle what it left open.
            timeout: Seconds for the whole call; None is the client's.

        Returns:
            The version that it now has.

        Raises:
            VersionConflict: the condition is not met.
            Unavailable: nothing was written.
            OutcomeUnknown: nobody knows.
            BadRequest: key, value or an argument can never work.
        """
        return await self._run(
            flows.put(
                self._core,
                self._deadline(timeout),
                key,
                value,
                ttl=ttl,
                if_version=if_version,
                if_absent=if_absent,
                content_type=content_type,
                operation_id=operation_id,
            )
        )

    async def get(
        self,
        key: Key,
        default: Any = None,
        *,
        consistency: str = LINEARIZABLE,
        timeout: float | None = None,
    ) -> Any:
        """The value of a key, or `default` if there is none; an outage raises instead.

        Args:
            key: The key.
            default: For an absent key.
            consistency: "linearizable", or "eventual" for any replica's word.
            timeout: Seconds for the whole call; None is the client's.

        Raises:
            Unavailable: no answer in time.
            CorruptValue: what is stored is no value.
        """
        return await self._run(
            flows.get(self._core, self._deadline(timeout), key, default, consistency)
        )

    async def get_entry(
        self, key: Key, *, consistency: str = LINEARIZABLE, timeout: float | None = None
    ) -> Entry | None:
        """A key's value with its version, expiry and content type; None if there is no such key.

        Raises:
            Unavailable: no answer in time.
            CorruptValue: what is stored is no value.
        """
        return await self._run(
            flows.get_entry(self._core, self._deadline(timeout), key, consistency)
        )

    async def delete(
        self,
        key: Key,
        *,
        if_version: str | None = None,
        operation_id: str | None = None,
        timeout: float | None = None,
    ) -> bool:
        """Remove a key; True if it was there. Arguments and errors are those of `put`."""
        return await self._run(
            flows.delete(
                self._core,
                self._deadline(timeout),
                key,
                if_version=if_version,
                operation_id=operation_id,
            )
        )

    async def incr(
        self,
        key: Key,
        by: int = 1,
        *,
        operation_id: str | None = None,
        timeout: float | None = None,
    ) -> int:
        """Add to an integer, once, however often the network made it try; absent counts as 0.

        Returns:
            The new number.

        Raises:
            WrongType: the value is no integer, or would leave 64 bits.
        """
        return await self._run(
            flows.incr(self._core, self._deadline(timeout), key, by, operation_id=operation_id)
        )

    async def touch(
        self,
        key: Key,
        ttl: float | None = None,
        *,
        operation_id: str | None = None,
        timeout: float | None = None,
    ) -> bool:
        """Give a key a new time to live in seconds (None: for ever); False if it is not there."""
        return await self._run(
            flows.touch(
                self._core, self._deadline(timeout), key, ttl=ttl, operation_id=operation_id
            )
        )

    async def update(
        self, key: Key, change: Callable[[Any], Any], *, timeout: float | None = None
    ) -> Any:
        """Replace a value by `change(value)`, repeated while other writers are faster.

        Args:
            key: The key.
            change: Gets the value, None if absent, and returns the new one; may be called again.
            timeout: Seconds for the whole call; None is the client's.

        Returns:
            The new value.
        """
        return await self._run(flows.update(self._core, self._deadline(timeout), key, change))

    async def batch(
        self,
        puts: Mapping[Any, Any],
        *,
        deletes: Iterable[Key] = (),
        ttl: float | None = None,
        operation_id: str | None = None,
        timeout: float | None = None,
    ) -> str:
        """Write several keys of one slot (one ``{tag}``), all or nothing; returns their version."""
        return await self._run(
            flows.batch(
                self._core,
                self._deadline(timeout),
                puts,
                deletes=deletes,
                ttl=ttl,
                operation_id=operation_id,
            )
        )

    async def put_many(
        self,
        items: Mapping[Any, Any],
        *,
        ttl: float | None = None,
        content_type: str = "",
        timeout: float | None = None,
    ) -> None:
        """Store many independent keys; returns when every one is durable.

        Raises:
            PartialFailure: some failed, each with its own error in ``errors``.
        """
        await self._run(
            many.put_many(
                self._core, self._deadline(timeout), items, ttl=ttl, content_type=content_type
            )
        )

    async def get_many(
        self,
        keys: Iterable[Key],
        *,
        consistency: str = LINEARIZABLE,
        timeout: float | None = None,
    ) -> dict[Any, Any]:
        """The values of those keys that exist, under the keys as they were given.

        Raises:
            PartialFailure: some could not be read.
        """
        asked = many.checked_keys(keys)
        return await self._run(
            many.get_many(self._core, self._deadline(timeout), asked, consistency)
        )

    async def delete_many(self, keys: Iterable[Key], *, timeout: float | None = None) -> int:
        """Remove many independent keys; returns how many were there.

        Raises:
            PartialFailure: some failed, each with its own error in ``errors``.
        """
        asked = many.checked_keys(keys)
        return await self._run(many.delete_many(self._core, self._deadline(timeout), asked))

    def scan(
        self, prefix: Key = "", *, limit: int | None = None, timeout: float | None = None
    ) -> AsyncIterator[tuple[Any, Any]]:
        """Every key that begins with `prefix`, with its value; fetched page by page.

        The order is stable but means nothing, unless the prefix holds a whole ``{tag}``: then it
        is that of the keys. Each page is of one moment within its slot. Keys are text where they
        are valid UTF-8, else bytes.

        Args:
            prefix: What keys begin with.
            limit: Stop after so many; None for all.
            timeout: Seconds for each page; None is the client's.
        """
        check_limit(limit)
        self._deadline(timeout)
        walk = Walk(self._core, prefix, values=True)
        return self._walk(walk, limit, timeout)

    async def scan_page(
        self,
        prefix: Key = "",
        *,
        limit: int = 100,
        cursor: str | None = None,
        values: bool = True,
        timeout: float | None = None,
    ) -> ScanPage:
        """One page of a scan, and the cursor that continues it, today or tomorrow.

        Args:
            prefix: What keys begin with; the same for all pages of a scan.
            limit: Keys at most; a page may hold fewer and still not be the last.
            cursor: That of the page before; None for the first.
            values: False brings keys alone.
            timeout: Seconds for the whole call; None is the client's.
        """
        check_limit(limit)
        walk = Walk(self._core, prefix, values=values, cursor=cursor)
        return await self._run(walk.next_page(self._deadline(timeout), limit))

    def watch(
        self, prefix: Key = "", *, resume: str | None = None, timeout: float | None = None
    ) -> AsyncWatch:
        """What happens to the keys that begin with `prefix` from now on, or behind a token.

        Every committed change is told once, in commit order within a slot, through any failover; a
        slot that nobody can tell without a gap any more begins anew with a "reset" event. What
        `WatchEvent` says and what a token is good for: docs/watch.md.

        Args:
            prefix: What keys begin with; a whole ``{tag}`` in it keeps the watch to one slot.
            resume: The token of a watch of the same prefix, to go on behind it.
            timeout: Seconds to begin; a watch itself has none. None is the client's.

        Raises:
            Unavailable: some slots could not be watched in time.
            BadRequest: the prefix or the token can never work.
        """
        session = WatchSession(self._core, checked_prefix(prefix), check_resume(resume))
        self._deadline(timeout)
        return AsyncWatch(session, self._transport, self._deadline, timeout)

    async def _walk(
        self, walk: Walk, limit: int | None, timeout: float | None
    ) -> AsyncIterator[tuple[Any, Any]]:
        left = limit
        while not walk.ended and left != 0:
            room = PAGE_KEYS if left is None else min(left, PAGE_KEYS)
            page = await self._run(walk.next_page(self._deadline(timeout), room))
            for key, entry in zip(page.keys, page.entries, strict=True):
                yield key, entry.value
            left = None if left is None else left - len(page.keys)

    def _deadline(self, timeout: float | None) -> float:
        """When this call must end, if it may begin."""
        if self._closed:
            raise ClientClosed("this client was closed: make another with kvstore.connect_async")
        return self._core.now() + check_seconds(timeout, self._timeout, "timeout")

    def _check_place(self) -> None:
        """Its sockets belong to one process and one loop; anywhere else answers would get lost."""
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        if self._loop is not loop or self._process != os.getpid():
            raise ClientClosed(
                "this client belongs to another event loop or process: make one there"
            )

    async def _run(self, flow: Flow[T]) -> T:
        """Drive a flow to its value; a cancellation in between ends it."""
        self._check_place()
        try:
            step = next(flow)
            while True:
                if self._closed:
                    raise ClientClosed(CLOSED_UNDER_WAY)
                if isinstance(step, Exchange):
                    step = flow.send(await self._transport.exchange(step.sends, step.deadline))
                else:
                    await asyncio.sleep(max(0.0, step.seconds))
                    step = flow.send([])
        except StopIteration as stop:
            value: T = stop.value
            return value
        finally:
            flow.close()
