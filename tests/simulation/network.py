"""Connections between simulated processes, and what goes wrong with them.

TCP keeps the bytes of one connection in order and complete, so what a real network does to nodes
is: it delays, it stalls (a cut: bytes wait, nobody is told), it breaks connections (with any part
of what was under way lost), and it reorders what travels on different connections. That is what can
happen here. Bytes arrive in pieces of any size. Nothing is doubled by the network itself: whoever
sends a request again over a new connection doubles it.

A host may be cut off from another in one direction only. A connection attempt into a cut waits, as
a SYN would; one to a host where nobody listens is refused.
"""

from __future__ import annotations

import asyncio
import errno
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from random import Random

    from tests.simulation.process_loop import Process, Universe

SYN_AGAIN_SECONDS = 0.5
BUFFER_BYTES = 65_536
"""What a socket takes before its writer is told to pause, unless it says otherwise."""


class Network:
    """All hosts and what lies between them."""

    def __init__(
        self, universe: Universe, rng: Random, *, delay_seconds: float, slow_chance: float
    ) -> None:
        self.universe = universe
        self.rng = rng
        self.delay_seconds = delay_seconds
        self.slow_chance = slow_chance
        """How often a piece takes much longer than others."""
        self.cuts: set[tuple[str, str]] = set()
        """(from, to): nothing gets through."""
        self.slow: dict[str, float] = {}
        """Host -> how many times as long everything takes from and to it."""
        self._listeners: dict[str, tuple[Process, Callable[[], Any]]] = {}
        self._ends: dict[Transport, None] = {}

    # -- faults ------------------------------------------------------------------------------

    def cut(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Nothing gets from the first to the second of each pair any more."""
        self.cuts.update(pairs)

    def mend(self) -> None:
        """Everything gets through again, what was stalled first."""
        self.cuts.clear()
        self.slow.clear()
        for end in list(self._ends):
            end.pump()

    def break_some(self, chance: float) -> None:
        """Reset some connections, as middleboxes do."""
        rng = self.rng
        for end in list(self._ends):
            if end in self._ends and rng.random() < chance:
                end.reset()

    def part(self, here: str, there: str) -> None:
        """Reset all connections between two hosts."""
        for end in list(self._ends):
            if end in self._ends and (end.process.host, end.other.process.host) == (here, there):
                end.reset()

    def host_died(self, process: Process, *, silently: bool) -> None:
        """Its sockets break; silently (a power cut) only once somebody is there to say so."""
        for address, (listener, _) in list(self._listeners.items()):
            if listener is process:
                del self._listeners[address]
        for end in list(self._ends):
            if end.process is process:
                if silently:
                    end.other.orphaned = True
                    self._ends.pop(end, None)
                else:
                    end.reset()

    def host_is_back(self, host: str) -> None:
        """Whoever still has a connection to what ran there before is told that it is gone."""
        for end in list(self._ends):
            if end.orphaned and end.other.process.host == host:
                end.reset()

    # -- for processes -----------------------------------------------------------------------

    def delay(self, here: str, there: str) -> float:
        """How long a piece travels."""
        rng = self.rng
        delay = self.delay_seconds * (0.5 + rng.random())
        if self.slow:
            delay *= max(self.slow.get(here, 1.0), self.slow.get(there, 1.0))
        return delay * 50 * rng.random() if rng.random() < self.slow_chance else delay

    def open(self, address: str, process: Process, factory: Callable[[], Any]) -> None:
        """Take connections to ``host:port``."""
        assert address not in self._listeners
        self._listeners[address] = (process, factory)

    def close(self, address: str) -> None:
        """Take no more."""
        self._listeners.pop(address, None)

    async def connect(
        self, process: Process, factory: Callable[[], Any], address: str
    ) -> tuple[Transport, Any]:
        """As `asyncio.loop.create_connection`."""
        there = address.rpartition(":")[0]
        await asyncio.sleep(self.delay(process.host, there))
        while (process.host, there) in self.cuts or (there, process.host) in self.cuts:  # noqa: ASYNC110
            await asyncio.sleep(SYN_AGAIN_SECONDS)
        listener = self._listeners.get(address)
        if listener is None:
            await asyncio.sleep(self.delay(process.host, there))
            raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
        other, make = listener
        mine, theirs = Transport(self, process, address), Transport(self, other, process.host)
        mine.other, theirs.other = theirs, mine
        self._ends[mine] = self._ends[theirs] = None
        other.call_soon(theirs.begin, make)
        await asyncio.sleep(self.delay(process.host, there))
        if mine.is_closing():
            raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
        mine.begin(factory)
        return mine, mine.protocol

    def forget(self, end: Transport) -> None:
        """It is closed."""
        self._ends.pop(end, None)


class Listener:
    """What `create_server` returns."""

    def __init__(self, process: Process, factory: Callable[[], Any], port: int) -> None:
        self._process, self._factory, self._port = process, factory, port
        self.sockets = (self,)

    def getsockname(self) -> tuple[str, int]:
        return self._process.host, self._port

    async def start_serving(self) -> None:
        address = f"{self._process.host}:{self._port}"
        self._process.network.open(address, self._process, self._factory)

    def close(self) -> None:
        self._process.network.close(f"{self._process.host}:{self._port}")


class Transport(asyncio.Transport):
    """One end of a connection."""

    other: Transport

    def __init__(self, network: Network, process: Process, remote: str) -> None:
        super().__init__()
        self.process = process
        self.protocol: Any = None
        self.orphaned = False
        """The other side is gone and could not say so."""
        self._network = network
        self._remote = remote
        self._outgoing: deque[bytes] = deque()
        """Not yet at the other side; None at the end stands for a proper close."""
        self._out_bytes = 0
        self._pumping = False
        self._closing = False
        self._ended = False
        self._incoming: list[bytes] = []
        self._reading = True
        self._high = BUFFER_BYTES
        self._writer_paused = False

    def begin(self, factory: Callable[[], Any]) -> None:
        """Both sides know each other: hand it to a protocol."""
        if self._ended:
            return
        self.protocol = factory()
        self.protocol.connection_made(self)
        self._hand_in()

    # -- as seen by its protocol ---------------------------------------------------------------

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        host, _, port = self._remote.rpartition(":")
        return (host or self._remote, port) if name == "peername" else default

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def get_protocol(self) -> Any:
        return self.protocol

    def is_closing(self) -> bool:
        return self._closing

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = BUFFER_BYTES if high is None else high

    def get_write_buffer_size(self) -> int:
        return self._out_bytes

    def can_write_eof(self) -> bool:
        return False

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True
        self.process.call_soon(self._hand_in)

    def is_reading(self) -> bool:
        return self._reading

    def write(self, data: Any) -> None:
        if self._closing or not self.process.alive or not data:
            return
        self._outgoing.append(bytes(data))
        self._out_bytes += len(data)
        if self._out_bytes > self._high and not self._writer_paused:
            self._writer_paused = True
            self.process.call_soon(self._tell_writer)
        self.pump()

    def close(self) -> None:
        if self._closing or not self.process.alive:
            return
        self._closing = True
        self._outgoing.append(b"")
        self.process.call_soon(self._lose, None)
        self.pump()

    def abort(self) -> None:
        if self._ended or not self.process.alive:
            return
        self._closing = True
        self._outgoing.clear()
        self.process.call_soon(self._lose, None)
        self._break_other()

    # -- as moved by the network ---------------------------------------------------------------

    def reset(self) -> None:
        """The connection breaks; any beginning of what was under way still arrives."""
        kept = self._network.rng.randrange(len(self._outgoing) + 1)
        while len(self._outgoing) > kept:
            self._outgoing.pop()
        for data in self._outgoing:
            self.other.arrive(data)
        self._outgoing.clear()
        self._closing = True
        self.process.call_soon(self._lose, _reset_error())
        self._break_other()

    def _break_other(self) -> None:
        other, universe = self.other, self._network.universe
        self._network.forget(self)
        if self.orphaned:
            return
        universe.at(universe.now + self._delay(), other.lost)

    def _delay(self) -> float:
        return self._network.delay(self.process.host, self.other.process.host)

    def lost(self) -> None:
        """The other side is gone."""
        if not self._ended:
            self._closing = True
            self._outgoing.clear()
            self.process.call_soon(self._lose, _reset_error())

    def pump(self) -> None:
        """Send the next piece on its way, unless one is, or the way is cut."""
        network = self._network
        if self._pumping or not self._outgoing or self.orphaned:
            return
        if network.cuts and (self.process.host, self.other.process.host) in network.cuts:
            return
        self._pumping = True
        network.universe.at(network.universe.now + self._delay(), self._piece_arrives)

    def _piece_arrives(self) -> None:
        self._pumping = False
        network = self._network
        if self.orphaned:
            return
        if network.cuts and (self.process.host, self.other.process.host) in network.cuts:
            return
        rng = network.rng
        while self._outgoing:
            data = self._outgoing.popleft()
            if not data:
                self.other.finished()
                return
            self._out_bytes -= len(data)
            if len(data) > 1 and rng.random() < 0.02:  # a piece of any size
                at = rng.randrange(1, len(data))
                self._outgoing.appendleft(data[at:])
                self._out_bytes += len(data) - at
                self.other.arrive(data[:at])
                break
            self.other.arrive(data)
        if self._writer_paused and self._out_bytes <= self._high // 4:
            self._writer_paused = False
            self.process.call_soon(self._tell_writer)
        if self._outgoing:
            self.pump()

    def arrive(self, data: bytes) -> None:
        """Bytes are here; the process finds them in its next turn."""
        if not self._ended:
            self._incoming.append(data)
            if len(self._incoming) == 1:  # else it has been called already, or is when it may read
                self.process.call_soon(self._hand_in)

    def finished(self) -> None:
        """The other side closed in good order."""
        self._closing = True
        self._network.forget(self)
        self.process.call_soon(self._lose, None)

    def _hand_in(self) -> None:
        if self._incoming and self._reading and self.protocol is not None and not self._ended:
            data, self._incoming = b"".join(self._incoming), []
            self.protocol.data_received(data)

    def _tell_writer(self) -> None:
        if self.protocol is not None and not self._ended:
            (self.protocol.pause_writing if self._writer_paused else self.protocol.resume_writing)()

    def _lose(self, error: Exception | None) -> None:
        if self._ended:
            return
        self._hand_in()
        self._ended = True
        if error is not None or not self._outgoing:
            self._network.forget(self)
        if self.protocol is not None:
            self.protocol.connection_lost(error)


def _reset_error() -> ConnectionResetError:
    return ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
