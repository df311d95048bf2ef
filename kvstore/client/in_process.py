"""Delivery without a network: to a node in the same process.

This is how the HTTP door and the embedded store use the library: the same flows, handed to a
node's own door. What a node offers is named here as a small Protocol, because `kvstore.client`
knows nothing of `kvstore.node`.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final, Protocol

from kvstore.client.exchange import LinkLost, Reply, Send, TimedOut
from kvstore.client.stream_links import StreamLinks
from kvstore.wire.protocol import Request, RouteQuery, SlotChanged, Watched

if TYPE_CHECKING:
    from kvstore.client.stream_links import Ear
    from kvstore.wire.protocol import Frame, Response, Routes, Watch

IN_PROCESS: Final = "in-process"
"""In place of an address."""


class LocalWatches(Protocol):
    """A node's watches."""

    def take(self, listener: LocalLink, watch: Watch) -> None:
        """Begin a watch, or add slots to it."""

    def leave(self, listener: LocalLink) -> None:
        """The listener is gone."""


class LocalNode(Protocol):
    """A running node, as far as this needs it."""

    async def submit(self, request: Request) -> Response:
        """Carry out operations on any keys; failures are results."""

    def routes(self) -> Routes:
        """The routing table."""

    @property
    def watching(self) -> LocalWatches:
        """Its room of the watches."""


class LocalLink:
    """A watch's link to the node of this process, and what that node sees of the watch."""

    def __init__(self, node: LocalNode, ear: Ear) -> None:
        self._node = node
        self._ear = ear

    @property
    def unsent_bytes(self) -> int:
        """What the watch has not taken."""
        return self._ear.unread_bytes

    def send(self, frame: Frame) -> None:
        """The node tells something."""
        if isinstance(frame, Watched):
            self._ear.hear(frame, _size_bytes(frame))

    def refuse(self, reason: str, detail: str, *, kind: str = "") -> None:
        """The node cuts the watch off."""
        self._ear.hear(LinkLost(reason, detail), 0)

    def abort(self, reason: str) -> None:
        """Nothing is kept here."""

    def send_frame(self, frame: Watch | RouteQuery) -> None:
        """The watch asks something."""
        if isinstance(frame, RouteQuery):
            self._ear.hear(self._node.routes(), 0)
        else:
            self._node.watching.take(self, frame)

    def hold(self) -> None:
        """What is unread is counted, and the node judges."""

    def unhold(self) -> None:
        """See `hold`."""

    def close(self, why: str) -> None:
        """The watch is over."""
        self._node.watching.leave(self)


def _size_bytes(frame: Watched) -> int:
    size = 0
    for item in frame.items:
        size += 64
        if isinstance(item, SlotChanged):
            size += sum(64 + len(key) + len(record or b"") for key, record in item.changes)
    return size


class InProcessTransport:
    """A `kvstore.client.exchange.AsyncTransport` to a node on the same event loop."""

    token_aware: bool = False

    def __init__(self, node: LocalNode) -> None:
        self._node = node

    async def exchange(self, sends: list[Send], deadline: float) -> list[Reply]:
        """See `kvstore.client.exchange.AsyncTransport`."""
        return [await self._deliver(send, deadline) for send in sends]

    def links(self) -> StreamLinks:
        """See `kvstore.client.exchange.AsyncTransport`."""
        return StreamLinks(self.open)

    async def open(self, address: str, ear: Ear) -> LocalLink | LinkLost:
        """A link to this node, whatever the address."""
        return LocalLink(self._node, ear)

    async def close(self) -> None:
        """The node is not ours to close."""

    async def _deliver(self, send: Send, deadline: float) -> Reply:
        if not isinstance(send.frame, Request):
            return self._node.routes()
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                return await self._node.submit(send.frame)
        except TimeoutError:
            return TimedOut("this node did not answer in time")
