"""The HTTP door's way to watch the whole cluster: as a client of it.

Slots that this node leads are heard in the process, those of other nodes over a link to each, like
any client's (`kvstore.client.watch_session`). So a stream goes on while other nodes die, and ends
with this node only.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final
from weakref import WeakSet

from kvstore.client.core import ClientCore
from kvstore.client.in_process import IN_PROCESS, InProcessTransport, LocalLink
from kvstore.client.stream_links import StreamLinks
from kvstore.client.streams import StreamTransport
from kvstore.client.watch import AsyncWatch
from kvstore.client.watch_session import WatchSession

if TYPE_CHECKING:
    from kvstore.client.exchange import LinkLost, Reply, Send
    from kvstore.client.stream_links import Ear, Link
    from kvstore.node.view import NodeView

__all__ = ["WatchSource"]

CONNECT_SECONDS: Final = 2.0


class WatchSource:
    """Opens watches; a `kvstore.client.exchange.AsyncTransport` for them.

    Args:
        node: The node whose door this is.
    """

    token_aware: bool = False

    def __init__(self, node: NodeView) -> None:
        self._node = node
        self._here = InProcessTransport(node)
        self._away = StreamTransport(connect_timeout=CONNECT_SECONDS)
        self._core = ClientCore([IN_PROCESS], token_aware=False)
        self._own_address = ""
        self._open: WeakSet[AsyncWatch] = WeakSet()

    def watch(self, prefix: bytes, resume: str | None, seconds: float) -> AsyncWatch:
        """A watch that is to begin within so many seconds."""
        routes = self._node.routes()
        self._core.table.load(routes, self._core.now())
        own = (node.address for node in routes.nodes if node.id == self._node.id)
        self._own_address = next(own, IN_PROCESS)
        session = WatchSession(self._core, prefix, resume)
        watch = AsyncWatch(session, self, self._deadline, seconds)
        self._open.add(watch)
        return watch

    def end_all(self) -> None:
        """The node stops: whoever watches asks another one."""
        for watch in list(self._open):
            watch.close()

    async def exchange(self, sends: list[Send], deadline: float) -> list[Reply]:
        """See `kvstore.client.exchange.AsyncTransport`."""
        return await self._here.exchange(sends, deadline)

    def links(self) -> StreamLinks:
        """See `kvstore.client.exchange.AsyncTransport`."""
        return StreamLinks(self._link)

    async def close(self) -> None:
        """See `kvstore.client.exchange.AsyncTransport`."""
        self.end_all()
        await self._away.close()

    async def _link(self, address: str, ear: Ear) -> Link | LinkLost:
        if address in (self._own_address, IN_PROCESS):
            return LocalLink(self._node, ear)
        return await self._away.open(address, ear)

    def _deadline(self, seconds: float | None) -> float:
        return time.monotonic() + (seconds or CONNECT_SECONDS)
