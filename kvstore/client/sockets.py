"""Blocking delivery: a few connections per node, no threads.

An exchange takes one connection for each node it needs, sends everything, and then reads whatever
becomes readable until all is answered. Sockets never block; `select.poll` waits for all of them
at once, so that a slow node does not hold up the others, nor a full send buffer the reading.

A connection returns to its pool only when every frame sent on it was answered; after a timeout,
an error or a ``KeyboardInterrupt`` it is closed, so the pool never holds a stale answer. An idle
connection that has become readable was closed by its node and is dropped before it is used.

A forked child finds its process id changed, forgets its parent's sockets without sending on them,
and makes its own.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
import time
from typing import TYPE_CHECKING, Final
from weakref import WeakSet

from kvstore.client.address import split_address
from kvstore.client.exchange import Broken, Failure, LinkLost, NotSent, Reply, Send, TimedOut
from kvstore.client.greeting import Greeting
from kvstore.client.socket_links import SocketLinks
from kvstore.wire.frames import FrameDecoder, FrameError, encode_frame
from kvstore.wire.protocol import Response, Routes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kvstore.client.socket_links import Opened

RECEIVE_BYTES: Final = 262_144
CONNECTIONS_PER_NODE_MAX: Final = 16
IDLE_UNASKED_SECONDS: Final = 0.01
"""A connection that was used so lately is taken for alive."""


class _Connection:
    """One socket after its handshake, and what is under way on it."""

    def __init__(self, address: str, sock: socket.socket, decoder: FrameDecoder) -> None:
        self.address = address
        self.sock = sock
        self.decoder = decoder
        self.readable = select.poll()
        """Of this socket alone: made once, it spares the usual call all preparation."""
        self.readable.register(sock.fileno(), select.POLLIN)
        self.out = memoryview(b"")
        self.sent_bytes = 0
        self.waiting: dict[int, int] = {}
        self.used_at = 0.0
        """When it was put back, on the monotonic clock."""

    def is_usable(self) -> bool:
        """An idle connection has nothing to read; if it has, its node said goodbye.

        Who calls again at once is spared the question: should the node have gone just now, the call
        breaks, and is sent again under its own id.
        """
        if time.monotonic() - self.used_at < IDLE_UNASKED_SECONDS:
            return True
        try:
            self.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def push(self) -> None:
        """Send what the kernel takes."""
        while self.out:
            try:
                taken = self.sock.send(self.out)
            except BlockingIOError:
                return
            self.sent_bytes += taken
            self.out = self.out[taken:]

    def pull(self, replies: list[Reply | None]) -> None:
        """Read what is there and file the answers."""
        data = self.sock.recv(RECEIVE_BYTES)
        if not data:
            raise ConnectionResetError(errno.ECONNRESET, "closed by the node")
        for frame in self.decoder.feed(data):
            if isinstance(frame, Response | Routes):
                index = self.waiting.pop(frame.id, None)
                if index is not None:
                    replies[index] = frame


class _Pool:
    """A node's connections; `free` counts those that may still be taken."""

    def __init__(self, connections_max: int) -> None:
        self.free = threading.BoundedSemaphore(connections_max)
        self.idle: list[_Connection] = []


class SocketTransport:
    """A `kvstore.client.exchange.Transport` over TCP.

    Args:
        connect_timeout: Seconds for one connection with its handshake.
        connections_per_node_max: Exchanges that one node carries for this client at a time.
    """

    token_aware: bool = True

    def __init__(
        self,
        *,
        connect_timeout: float,
        connections_per_node_max: int = CONNECTIONS_PER_NODE_MAX,
    ) -> None:
        self._connect_timeout = connect_timeout
        self._connections_max = connections_per_node_max
        self._cluster_id = ""
        self._start()

    def _start(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._pools: dict[str, _Pool] = {}
        self._links: WeakSet[SocketLinks] = WeakSet()
        self._closed = False

    def forget_parent(self) -> None:
        """In a forked child: drop inherited sockets without a word to the nodes."""
        inherited = [conn for pool in list(self._pools.values()) for conn in pool.idle]
        closed = self._closed
        self._start()
        self._closed = closed
        for connection in inherited:
            connection.sock.close()

    def exchange(self, sends: list[Send], deadline: float) -> list[Reply]:
        """See `kvstore.client.exchange.Transport`."""
        if self._process != os.getpid():
            self.forget_parent()
        replies: list[Reply | None] = [None] * len(sends)
        by_address: dict[str, list[int]] = {}
        for index, send in enumerate(sends):
            by_address.setdefault(send.address, []).append(index)
        taken: list[tuple[_Pool, _Connection]] = []
        try:
            # One order for all threads, so that two of them never wait for each other.
            for address in sorted(by_address):
                self._begin(address, by_address[address], sends, deadline, taken, replies)
            _converse([connection for _, connection in taken], replies, deadline)
        finally:
            for pool, connection in taken:
                self._put_back(pool, connection)
        return [NotSent("not sent") if reply is None else reply for reply in replies]

    def links(self) -> SocketLinks:
        """See `kvstore.client.exchange.Transport`."""
        if self._process != os.getpid():
            self.forget_parent()
        links = SocketLinks(self._open)
        self._links.add(links)
        return links

    def _open(self, address: str) -> Opened:
        """A connection that is used for nothing else."""
        try:
            connection = self._connect(address, time.monotonic() + self._connect_timeout)
        except TimeoutError as error:
            return LinkLost("", f"{address}: {_reason(error)}", silent=True)
        except (OSError, FrameError) as error:
            return LinkLost("", f"{address}: {_reason(error)}")
        except _RefusedByNode as error:
            return LinkLost(error.reason, f"{address}: {error}", silent=True)
        return connection.sock, connection.decoder

    def close(self) -> None:
        """Close idle connections now, those in use when their exchange ends."""
        if self._process != os.getpid():
            self.forget_parent()
        self._closed = True
        for links in list(self._links):
            links.close()
        with self._lock:
            idle = [connection for pool in self._pools.values() for connection in pool.idle]
            for pool in self._pools.values():
                pool.idle = []
        for connection in idle:
            connection.sock.close()

    def _begin(
        self,
        address: str,
        indices: list[int],
        sends: list[Send],
        deadline: float,
        taken: list[tuple[_Pool, _Connection]],
        replies: list[Reply | None],
    ) -> None:
        """Take a connection and start sending on it; a failure becomes the replies."""
        pool = self._pool(address)
        if not pool.free.acquire(timeout=max(0.0, deadline - time.monotonic())):
            detail = f"all {self._connections_max} connections to {address} are in use"
            _file(indices, replies, NotSent(detail))
            return
        connection: _Connection | None = None
        try:
            connection = self._take_idle(pool)
            if connection is None:
                connection = self._connect(address, deadline)
        except (OSError, FrameError) as error:
            _file(indices, replies, NotSent(f"{address}: {_reason(error)}"))
        except _RefusedByNode as error:
            _file(indices, replies, NotSent(f"{address}: {error}", permanent=True))
        finally:
            if connection is None:
                pool.free.release()
            else:
                taken.append((pool, connection))
        if connection is None:
            return
        connection.out = memoryview(b"".join(encode_frame(sends[i].frame) for i in indices))
        connection.sent_bytes = 0
        connection.waiting = {sends[i].frame.id: i for i in indices}
        try:
            connection.push()
        except OSError as error:
            _fail(connection, replies, error)

    def _pool(self, address: str) -> _Pool:
        pool = self._pools.get(address)
        if pool is None:
            with self._lock:
                pool = self._pools.setdefault(address, _Pool(self._connections_max))
        return pool

    def _take_idle(self, pool: _Pool) -> _Connection | None:
        while pool.idle:
            try:
                connection = pool.idle.pop()
            except IndexError:  # another thread was faster
                return None
            if connection.is_usable():
                return connection
            connection.sock.close()
        return None

    def _connect(self, address: str, deadline: float) -> _Connection:
        """Connect and shake hands within the connect timeout."""
        limit = min(deadline, time.monotonic() + self._connect_timeout)
        sock = socket.create_connection(split_address(address), _left(limit))
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            greeting = Greeting(self._cluster_id)
            sock.sendall(greeting.first_bytes())
            while not greeting.welcomed:
                sock.settimeout(_left(limit))
                data = sock.recv(RECEIVE_BYTES)
                if not data:
                    raise ConnectionResetError(errno.ECONNRESET, "closed during the handshake")
                refusal = greeting.feed(data)
                if refusal:
                    raise _RefusedByNode(refusal, greeting.refused)
            self._cluster_id = greeting.cluster_id
            sock.setblocking(False)
        except BaseException:
            sock.close()
            raise
        return _Connection(address, sock, greeting.decoder)

    def _put_back(self, pool: _Pool, connection: _Connection) -> None:
        if connection.waiting or connection.out or self._closed:
            connection.sock.close()
        else:
            connection.used_at = time.monotonic()
            pool.idle.append(connection)
            if self._closed:  # closed meanwhile
                self.close()
        pool.free.release()


class _RefusedByNode(Exception):
    """The node does not want us; asking again is no use."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def _converse(connections: list[_Connection], replies: list[Reply | None], deadline: float) -> None:
    """Send the rest and read until everything is answered or has failed."""
    if len(connections) == 1 and _await_one(connections[0], replies, deadline):
        return
    poller = select.poll()
    by_descriptor = {conn.sock.fileno(): conn for conn in connections}
    by_descriptor.pop(-1, None)  # those that broke while sending
    for descriptor, connection in by_descriptor.items():
        poller.register(descriptor, _events(connection))
    while by_descriptor:
        left = deadline - time.monotonic()
        for descriptor, events in poller.poll(max(0.0, left) * 1_000):
            connection = by_descriptor[descriptor]
            try:
                if connection.out:
                    connection.push()
                    poller.modify(descriptor, _events(connection))
                if events & ~select.POLLOUT:
                    connection.pull(replies)
            except BlockingIOError:
                continue
            except (OSError, FrameError) as error:
                _fail(connection, replies, error)
            if not connection.waiting or connection.sock.fileno() < 0:
                poller.unregister(descriptor)
                del by_descriptor[descriptor]
        if left <= 0:
            break
    for connection in by_descriptor.values():
        detail = f"{connection.address} did not answer in time"
        unsent = NotSent(detail) if not connection.sent_bytes else TimedOut(detail)
        _file(connection.waiting.values(), replies, unsent)


def _await_one(connection: _Connection, replies: list[Reply | None], deadline: float) -> bool:
    """The usual case, of one node that was sent all: whether one read brought all its answers."""
    if connection.out or connection.sock.fileno() < 0:
        return False
    if not connection.readable.poll(max(0.0, deadline - time.monotonic()) * 1_000):
        return False
    try:
        connection.pull(replies)
    except BlockingIOError:
        return False
    except (OSError, FrameError) as error:
        _fail(connection, replies, error)
        return True
    return not connection.waiting


def _events(connection: _Connection) -> int:
    return select.POLLIN | select.POLLOUT if connection.out else select.POLLIN


def _fail(
    connection: _Connection, replies: list[Reply | None], error: OSError | FrameError
) -> None:
    """File a broken connection for all that waits on it; what never left is known not to have."""
    detail = f"{connection.address}: {_reason(error)}"
    failure = Broken(detail) if connection.sent_bytes else NotSent(detail)
    _file(connection.waiting.values(), replies, failure)
    connection.sock.close()


def _file(indices: Iterable[int], replies: list[Reply | None], failure: Failure) -> None:
    for index in indices:
        replies[index] = failure


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (text or type(error).__name__).lower()


def _left(limit: float) -> float:
    return max(0.001, limit - time.monotonic())
