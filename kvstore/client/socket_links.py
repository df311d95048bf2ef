"""A watch's connections, blocking: one socket a node, and one `select.poll` over all of them.

No threads: sockets are read while somebody listens. What nobody reads stays with the kernel and
then with the node, which cuts off who leaves too much there. A pair of sockets wakes the listener
when another thread closes the watch.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from typing import TYPE_CHECKING, Final

from kvstore.client.exchange import LinkLost
from kvstore.wire.frames import FrameDecoder, FrameError, encode_frame
from kvstore.wire.protocol import Refused, Routes, Watched

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvstore.client.exchange import Heard, Listen
    from kvstore.wire.protocol import RouteQuery, Watch

RECEIVE_BYTES: Final = 262_144

Opened = tuple[socket.socket, FrameDecoder] | LinkLost
"""A connection after its handshake, or why there is none."""


class _Link:
    """One connection."""

    def __init__(self, sock: socket.socket, decoder: FrameDecoder) -> None:
        self.sock = sock
        self.decoder = decoder
        self.out = bytearray()

    def push(self) -> None:
        """Send what the kernel takes."""
        while self.out:
            try:
                del self.out[: self.sock.send(self.out)]
            except BlockingIOError:
                return


class SocketLinks:
    """A `kvstore.client.exchange.Links` over TCP.

    Args:
        open_: Makes a non-blocking connection to an address, within the connect timeout.
    """

    def __init__(self, open_: Callable[[str], Opened]) -> None:
        self._open = open_
        self._links: dict[str, _Link] = {}
        self._wake, self._woken = socket.socketpair()
        self._woken.setblocking(False)
        self._lock = threading.Lock()
        self._listening = False
        self._closed = False

    def listen(self, step: Listen) -> list[Heard]:
        """See `kvstore.client.exchange.Links`."""
        with self._lock:
            if self._closed:
                return []
            assert not self._listening, "one thread listens to a watch at a time"
            self._listening = True
        try:
            for address in step.drops:
                self._drop(address)
            heard: list[Heard] = []
            for address, frame in step.sends:
                lost = self._send(address, frame)
                if lost is not None:
                    heard.append((address, lost))
            self._collect(heard, 0.0 if heard else step.deadline - time.monotonic())
            return heard
        finally:
            with self._lock:
                self._listening = False
                if self._closed:
                    self._release()

    def close(self) -> None:
        """See `kvstore.client.exchange.Links`."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if self._listening:
                self._wake.send(b"x")
            else:
                self._release()

    def _release(self) -> None:
        for address in list(self._links):
            self._drop(address)
        self._wake.close()
        self._woken.close()

    def _drop(self, address: str) -> None:
        link = self._links.pop(address, None)
        if link is not None:
            link.sock.close()

    def _send(self, address: str, frame: Watch | RouteQuery) -> LinkLost | None:
        link = self._links.get(address)
        if link is None:
            opened = self._open(address)
            if isinstance(opened, LinkLost):
                return opened
            link = self._links[address] = _Link(*opened)
        link.out += encode_frame(frame)
        return None

    def _collect(self, heard: list[Heard], seconds: float) -> None:
        """Wait for anything, and read what is there."""
        poller = select.poll()
        poller.register(self._woken, select.POLLIN)
        by_descriptor = {}
        for address, link in self._links.items():
            by_descriptor[link.sock.fileno()] = address
            poller.register(link.sock, select.POLLIN | (select.POLLOUT if link.out else 0))
        end = time.monotonic() + seconds
        while True:
            left = max(0.0, end - time.monotonic())
            ready = poller.poll(left * 1_000)
            for descriptor, events in ready:
                if descriptor not in by_descriptor:
                    return  # closed meanwhile
                address = by_descriptor[descriptor]
                link = self._links[address]
                try:
                    if link.out:
                        link.push()
                        if not link.out:
                            poller.modify(descriptor, select.POLLIN)
                    if events & ~select.POLLOUT and not self._pull(address, link, heard):
                        poller.unregister(descriptor)
                        self._drop(address)
                except BlockingIOError:
                    continue
                except (OSError, FrameError) as error:
                    heard.append((address, LinkLost("", f"{address}: {_reason(error)}")))
                    poller.unregister(descriptor)
                    self._drop(address)
            if heard or not left:
                return

    @staticmethod
    def _pull(address: str, link: _Link, heard: list[Heard]) -> bool:
        """Read what is there; False when the node has said that this was all."""
        data = link.sock.recv(RECEIVE_BYTES)
        if not data:
            raise ConnectionResetError("closed by the node")
        for frame in link.decoder.feed(data):
            if isinstance(frame, Watched | Routes):
                heard.append((address, frame))
            elif isinstance(frame, Refused):
                heard.append((address, LinkLost(frame.reason, frame.detail)))
                return False
        return True


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (text or type(error).__name__).lower()
