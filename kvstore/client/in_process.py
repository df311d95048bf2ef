"""Delivery without a network: to a node in the same process.

This is how the HTTP door and the embedded store use the library: the same flows, handed to a
node's own door. What a node offers is named here as a small Protocol, because `kvstore.client`
knows nothing of `kvstore.node`.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final, Protocol

from kvstore.client.exchange import Reply, Send, TimedOut
from kvstore.wire.protocol import Request

if TYPE_CHECKING:
    from kvstore.wire.protocol import Response, Routes

IN_PROCESS: Final = "in-process"
"""In place of an address."""


class LocalNode(Protocol):
    """A running node, as far as this needs it."""

    async def submit(self, request: Request) -> Response:
        """Carry out operations on any keys; failures are results."""

    def routes(self) -> Routes:
        """The routing table."""


class InProcessTransport:
    """A `kvstore.client.exchange.AsyncTransport` to a node on the same event loop."""

    token_aware: bool = False

    def __init__(self, node: LocalNode) -> None:
        self._node = node

    async def exchange(self, sends: list[Send], deadline: float) -> list[Reply]:
        """See `kvstore.client.exchange.AsyncTransport`."""
        return [await self._deliver(send, deadline) for send in sends]

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
