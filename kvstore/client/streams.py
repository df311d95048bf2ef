"""Delivery on an event loop: one pipelined connection a node.

Requests of one loop tick leave in one write; answers find their request by frame id, in any
order. A future stands for a frame, never for a key. A request that was cancelled or timed out is
forgotten, and its late answer with it. Frames wait while a connection's buffer is full, and a
semaphore bounds what is under way in all.
"""

from __future__ import annotations

import asyncio
import os
import socket
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Final, cast
from weakref import WeakSet

from kvstore.client.address import split_address
from kvstore.client.exchange import Broken, LinkLost, NotSent, Reply, Send, TimedOut
from kvstore.client.greeting import Greeting
from kvstore.client.stream_links import StreamLinks
from kvstore.wire.frames import FrameDecoder, FrameError, encode_frame
from kvstore.wire.protocol import Refused, Response, Routes, Watched

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvstore.client.stream_links import Ear
    from kvstore.wire.protocol import Frame, RouteQuery, Watch

FRAMES_IN_FLIGHT_MAX: Final = 1_024
"""What a node takes unanswered from one connection (`CONNECTION_REQUESTS_IN_FLIGHT_MAX`)."""


class _Connection(asyncio.Protocol):
    """One connection: handshake first, then frames both ways.

    With an ear it is a watch's link (`kvstore.client.stream_links.Link`): what comes unasked goes
    there.
    """

    def __init__(
        self, greeting: Greeting, now: Callable[[], float], ear: Ear | None = None
    ) -> None:
        self._greeting = greeting
        self._now = now
        self._ear = ear
        self._received_bytes = 0
        self._decoder: FrameDecoder = greeting.decoder
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._out: list[bytes] = []
        self._writable = asyncio.Event()
        self._writable.set()
        self._waiting: dict[int, tuple[asyncio.Future[Reply], float]] = {}
        """By frame: whoever waits for its answer, and until when."""
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = inf
        self.welcome: asyncio.Future[str | None] = self._loop.create_future()
        self.lost = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast(
            "asyncio.Transport", transport
        )  # uvloop's is no subclass
        peer = transport.get_extra_info("socket")
        if peer is not None:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        transport.write(self._greeting.first_bytes())

    def data_received(self, data: bytes) -> None:
        try:
            if not self._greeting.welcomed:
                refusal = self._greeting.feed(data)
                if (refusal or self._greeting.welcomed) and not self.welcome.done():
                    self.welcome.set_result(refusal)
                return
            self._received_bytes += len(data)
            for frame in self._decoder.feed(data):
                if self._ear is not None:
                    self._pass_on(frame, self._ear)
                elif isinstance(frame, Response | Routes):
                    waiting = self._waiting.pop(frame.id, None)
                    if waiting is not None and not waiting[0].done():
                        waiting[0].set_result(frame)
        except FrameError as error:
            self.close(str(error))

    def _pass_on(self, frame: Frame, ear: Ear) -> None:
        if isinstance(frame, Watched | Routes):
            ear.hear(frame, self._received_bytes)
            self._received_bytes = 0
        elif isinstance(frame, Refused):
            ear.hear(LinkLost(frame.reason, frame.detail), 0)

    def connection_lost(self, exc: Exception | None) -> None:
        self._give_up(self.lost or (str(exc) if exc else "closed by the node"))

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    async def writable(self, seconds: float) -> bool:
        """Wait until the buffer has room; False if it has none for so long."""
        if self._writable.is_set():
            return True
        try:
            async with asyncio.timeout(seconds):
                await self._writable.wait()
        except TimeoutError:
            return False
        return True

    def send(self, frame_id: int, data: bytes, deadline: float) -> asyncio.Future[Reply]:
        """Queue a frame for this tick's write; the future is its reply, or that it came too late.

        One timer serves all that wait: it is set for the earliest deadline, which mostly belongs to
        an answer that has come long before, and then looks for the next one.
        """
        future: asyncio.Future[Reply] = self._loop.create_future()
        if self.lost or self._transport is None:
            future.set_result(NotSent(self.lost or "not connected"))
            return future
        self._waiting[frame_id] = future, deadline
        if deadline < self._timer_at:
            self._look_at(deadline)
        self._queue(data)
        return future

    def _look_at(self, deadline: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = deadline
        left = max(0.0, deadline - self._now())
        self._timer = self._loop.call_later(left, self._expire)

    def _expire(self) -> None:
        """Tell those whose time is over, and look again when the next one's is."""
        now = self._now()
        late = [frame_id for frame_id, (_, deadline) in self._waiting.items() if deadline <= now]
        for frame_id in late:
            future, _ = self._waiting.pop(frame_id)
            if not future.done():
                future.set_result(TimedOut("no answer in time"))
        self._timer, self._timer_at = None, inf
        if self._waiting:
            self._look_at(min(deadline for _, deadline in self._waiting.values()))

    def send_frame(self, frame: Watch | RouteQuery) -> None:
        """Queue a frame of a watch."""
        self._queue(encode_frame(frame))

    def hold(self) -> None:
        """Read nothing more until `unhold`."""
        if self._transport is not None and not self.lost:
            self._transport.pause_reading()

    def unhold(self) -> None:
        """Read again."""
        if self._transport is not None and not self.lost:
            self._transport.resume_reading()

    def _queue(self, data: bytes) -> None:
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(data)

    def forget(self, frame_id: int) -> None:
        """Nobody waits for this answer any more."""
        self._waiting.pop(frame_id, None)

    def close(self, why: str) -> None:
        """Close at once; what waits is told."""
        self._give_up(why)
        if self._transport is not None:
            self._transport.abort()

    def _flush(self) -> None:
        out, self._out = self._out, []
        if self._transport is not None and not self.lost:
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))

    def _give_up(self, why: str) -> None:
        self.lost = self.lost or why
        self._writable.set()
        if self._ear is not None and self.welcome.done():
            self._ear.hear(LinkLost("", self.lost), 0)
        if not self.welcome.done():
            self.welcome.set_result(f"{why} during the handshake")
        waiting, self._waiting = self._waiting, {}
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_at = None, inf
        for future, _ in waiting.values():
            if not future.done():
                future.set_result(Broken(self.lost))


class StreamTransport:
    """A `kvstore.client.exchange.AsyncTransport` over TCP, for one event loop.

    Args:
        connect_timeout: Seconds for one connection with its handshake.
        in_flight_max: Exchanges under way at a time; others wait for their turn.
        now: The clock that deadlines are on, in seconds; monotonic.
    """

    token_aware: bool = True

    def __init__(
        self,
        *,
        connect_timeout: float,
        in_flight_max: int = FRAMES_IN_FLIGHT_MAX,
        now: Callable[[], float] = monotonic,
    ) -> None:
        self._now = now
        self._connect_timeout = connect_timeout
        self._turns = asyncio.Semaphore(in_flight_max)
        self._connections: dict[str, _Connection] = {}
        self._links: WeakSet[StreamLinks] = WeakSet()
        self._dialling: dict[str, asyncio.Task[_Connection | NotSent]] = {}
        self._cluster_id = ""
        self._closed = False

    async def exchange(self, sends: list[Send], deadline: float) -> list[Reply]:
        """See `kvstore.client.exchange.AsyncTransport`."""
        async with self._turns:
            if len(sends) == 1:
                return [await self._deliver(sends[0], deadline)]
            # All frames are queued before the first wait where connections exist.
            deliveries = [asyncio.ensure_future(self._deliver(send, deadline)) for send in sends]
            try:
                return list(await asyncio.gather(*deliveries))
            finally:
                for delivery in deliveries:
                    delivery.cancel()

    def links(self) -> StreamLinks:
        """See `kvstore.client.exchange.AsyncTransport`."""
        links = StreamLinks(self.open, self._now)
        self._links.add(links)
        return links

    async def open(self, address: str, ear: Ear) -> _Connection | LinkLost:
        """A connection that only an ear hears."""
        opened = await self._connect(address, ear)
        if isinstance(opened, NotSent):
            refused = opened.detail.partition("refused (")[2].partition(")")[0]
            return LinkLost(refused, opened.detail, silent="no connection within" in opened.detail)
        return opened

    async def close(self) -> None:
        """See `kvstore.client.exchange.AsyncTransport`."""
        self._closed = True
        for links in list(self._links):
            links.close()
        dialling = list(self._dialling.values())
        for task in dialling:
            task.cancel()
        await asyncio.gather(*dialling, return_exceptions=True)
        for connection in list(self._connections.values()):
            connection.close("the client was closed")
        self._connections.clear()
        await asyncio.sleep(0)  # lets the loop close the sockets

    async def _deliver(self, send: Send, deadline: float) -> Reply:
        """One frame to its reply, or to what became of it."""
        address, frame = send
        connection = self._connections.get(address)
        if connection is None or connection.lost:
            dialled = await self._dial(address, deadline)
            if isinstance(dialled, NotSent):
                return dialled
            connection = dialled
        left = deadline - self._now()
        if not await connection.writable(left):
            return NotSent(f"{address} takes no more requests")
        try:
            result = await connection.send(frame.id, encode_frame(frame), deadline)
        except asyncio.CancelledError:
            connection.forget(frame.id)
            raise
        match result:
            case Broken(detail):
                return Broken(f"{address}: {detail}")
            case TimedOut():
                return TimedOut(f"{address} did not answer in time")
            case answer:
                return answer

    async def _dial(self, address: str, deadline: float) -> _Connection | NotSent:
        """Connect once for all who ask; a waiter that gives up leaves the others theirs."""
        task = self._dialling.get(address)
        if task is None:
            task = asyncio.create_task(self._connect(address))
            self._dialling[address] = task
            task.add_done_callback(lambda _: self._dialling.pop(address, None))
        left = max(0.0, deadline - self._now())
        done, _ = await asyncio.wait((task,), timeout=left)
        if not done:
            return NotSent(f"{address}: connecting takes too long")
        return NotSent(f"{address}: closed") if task.cancelled() else task.result()

    async def _connect(self, address: str, ear: Ear | None = None) -> _Connection | NotSent:
        host, port = split_address(address)
        greeting = Greeting(self._cluster_id)
        make: Callable[[], _Connection] = lambda: _Connection(greeting, self._now, ear)  # noqa: E731
        connection: _Connection | None = None
        try:
            async with asyncio.timeout(self._connect_timeout):
                loop = asyncio.get_running_loop()
                _, connection = await loop.create_connection(make, host, port)
                refusal = await connection.welcome
        except TimeoutError:
            self._drop(connection)
            return NotSent(f"{address}: no connection within {self._connect_timeout:g} s")
        except OSError as error:
            return NotSent(f"{address}: {_reason(error)}")
        except asyncio.CancelledError:
            self._drop(connection)
            raise
        if refusal is not None or self._closed:
            self._drop(connection)
            permanent = refusal is not None and refusal.startswith("refused")
            return NotSent(f"{address}: {refusal or 'the client was closed'}", permanent)
        self._cluster_id = greeting.cluster_id
        if ear is None:
            self._connections[address] = connection
        return connection

    @staticmethod
    def _drop(connection: _Connection | None) -> None:
        if connection is not None:
            connection.close("given up")


def _reason(error: OSError) -> str:
    """The system's words; asyncio's own text hides them behind the address."""
    named = error.errno is not None and not isinstance(error, socket.gaierror)
    return (os.strerror(error.errno or 0) if named else error.strerror or str(error)).lower()
