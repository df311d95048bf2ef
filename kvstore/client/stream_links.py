"""A watch's connections on an event loop: one link a node, one inbox for all of them.

How a link is made is handed in: over TCP (`kvstore.client.streams`) or to the node in the same
process (`kvstore.client.in_process`). Links put what they hear into the inbox; when it is full they
are held, so that the node keeps what is unread, and cuts off who leaves too much.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, Final, Protocol

from kvstore.client.exchange import LinkLost

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from kvstore.client.exchange import Heard, Listen
    from kvstore.wire.protocol import RouteQuery, Routes, Watch, Watched

INBOX_BYTES: Final = 1_048_576
"""Unread bytes above which links are held."""


class Link(Protocol):
    """One connection after its handshake."""

    def send_frame(self, frame: Watch | RouteQuery) -> None:
        """Send it; if that fails, the ear hears why."""

    def hold(self) -> None:
        """Bring nothing more until `unhold`, as far as possible."""

    def unhold(self) -> None:
        """Go on."""

    def close(self, why: str) -> None:
        """The ear hears nothing more."""


class Ear:
    """Where a link says what it hears; deaf once the watch has no use for it."""

    def __init__(self, links: StreamLinks, address: str) -> None:
        self._links = links
        self._address = address
        self.link: Link | None = None
        self.unread_bytes = 0

    @property
    def is_deaf(self) -> bool:
        """Whether the link was dropped."""
        return self._links.ears.get(self._address) is not self

    def hear(self, frame: Watched | Routes | LinkLost, size_bytes: int) -> None:
        """Something came, or the link is lost."""
        if not self.is_deaf:
            self.unread_bytes += size_bytes
            self._links.put(self._address, frame)


class StreamLinks:
    """A `kvstore.client.exchange.AsyncLinks`.

    Args:
        open_: Makes a link to an address.
        now: The clock that deadlines are on, in seconds; monotonic.
    """

    def __init__(
        self,
        open_: Callable[[str, Ear], Awaitable[Link | LinkLost]],
        now: Callable[[], float] = monotonic,
    ) -> None:
        self._open = open_
        self._now = now
        self.ears: dict[str, Ear] = {}
        self._opening: dict[str, tuple[asyncio.Task[None], list[Watch | RouteQuery]]] = {}
        self._inbox: list[Heard] = []
        self._filled = asyncio.Event()
        self._held = False
        self._closed = False

    async def listen(self, step: Listen) -> list[Heard]:
        """See `kvstore.client.exchange.AsyncLinks`; all is sent before the first wait."""
        if self._closed:
            return []
        for address in step.drops:
            self._drop(address)
        for address, frame in step.sends:
            self._send(address, frame)
        if not self._inbox:
            self._filled.clear()
            try:
                async with asyncio.timeout(max(0.0, step.deadline - self._now())):
                    await self._filled.wait()
            except TimeoutError:
                pass
        heard, self._inbox = self._inbox, []
        for address, word in heard:
            if isinstance(word, LinkLost):
                self._drop(address)
        for ear in self.ears.values():
            ear.unread_bytes = 0
            if self._held and ear.link is not None:
                ear.link.unhold()
        self._held = False
        return heard

    def close(self) -> None:
        """See `kvstore.client.exchange.AsyncLinks`."""
        self._closed = True
        for address in list(self.ears):
            self._drop(address)
        self._filled.set()

    def put(self, address: str, frame: Watched | Routes | LinkLost) -> None:
        """Into the inbox; hold everybody if it is full."""
        self._inbox.append((address, frame))
        self._filled.set()
        if not self._held and sum(e.unread_bytes for e in self.ears.values()) > INBOX_BYTES:
            self._held = True
            for ear in self.ears.values():
                if ear.link is not None:
                    ear.link.hold()

    def _drop(self, address: str) -> None:
        ear = self.ears.pop(address, None)
        opening = self._opening.pop(address, None)
        if opening is not None:
            opening[0].cancel()
        if ear is not None and ear.link is not None:
            ear.link.close("the watch ended")

    def _send(self, address: str, frame: Watch | RouteQuery) -> None:
        ear = self.ears.get(address)
        if ear is not None and ear.link is not None:
            ear.link.send_frame(frame)
        elif address in self._opening:
            self._opening[address][1].append(frame)
        else:
            ear = self.ears[address] = Ear(self, address)
            task = asyncio.get_running_loop().create_task(self._make(address, ear))
            self._opening[address] = (task, [frame])

    async def _make(self, address: str, ear: Ear) -> None:
        opened = await self._open(address, ear)
        if ear.is_deaf:
            if not isinstance(opened, LinkLost):
                opened.close("the watch ended")
            return
        _, frames = self._opening.pop(address)
        if isinstance(opened, LinkLost):
            ear.hear(opened, 0)
            return
        ear.link = opened
        if self._held:
            opened.hold()
        for frame in frames:
            opened.send_frame(frame)
