"""One process of the overload benchmark's load: puts at a steady rate, answered or not.

An *open loop*: requests leave by the clock and wait for nobody, as those of very many independent
callers do; a closed loop slows down with the cluster and so hides the overload. With ``--window``
it is a closed loop, which finds the peak.

It speaks the client protocol itself and has its frames ready but for their numbers, because a
library client needs as much processor time for a put as a node does, and the load shares the
machine with the nodes: at five times the peak most of what it does is for requests that are
refused. It routes by slot as every client does. A request has one second; an answer that comes
later counts for nothing. What a connection does not take is *withheld*, as it would be by a client.

At its end it prints a line of JSON for each tenth of a second: what happened since the line before,
and the processor time that it has used so far.
"""

from __future__ import annotations

import asyncio
import json
import random
import secrets
import time
from itertools import count
from typing import TYPE_CHECKING, Final, cast

import click
import msgspec

from cluster.operations import Code, Done, Failed, Put
from cluster.records import VERSION_BYTES
from cluster.slots import slot_of
from kvstore.client.address import parse_url
from kvstore.client.greeting import Greeting
from kvstore.client.routing import NOBODY, RoutingTable
from kvstore.wire.frames import LENGTH_BYTES, decode_frame, encode_frame
from kvstore.wire.protocol import Request, Response, RouteQuery, Routes

if TYPE_CHECKING:
    from kvstore.wire.protocol import Frame

TIMEOUT_MS: Final = 1_000
KEYS: Final = [b"overload:%06d" % number for number in range(20_000)]
VALUE: Final = msgspec.Raw(msgspec.msgpack.encode(random.Random(1).randbytes(100)))
CONNECTIONS: Final = 8
"""To each node."""
UNSENT_BYTES_MAX: Final = 65_536
REPORT_S: Final = 0.1
STEP_S: Final = 0.002
REDIAL_S: Final = 0.2
DIAL_TIMEOUT_S: Final = 2.0
FIRST_NUMBER: Final = 1 << 16
"""From here to the end of 32 bits a number always takes four bytes and one that says so."""
NUMBER_BYTES: Final = 4
OUTCOMES: Final = {
    Code.OVERLOADED: "overloaded",
    Code.UNAVAILABLE: "unavailable",
    Code.DEADLINE: "unavailable",
    Code.UNKNOWN: "unknown",
}

_REFUSED: Final = encode_frame(Response(FIRST_NUMBER, [Failed(Code.OVERLOADED, "")], {}))
_NUMBER_AT: Final = _REFUSED.index(FIRST_NUMBER.to_bytes(NUMBER_BYTES, "big"))
_RESULT_AT: Final = _NUMBER_AT + NUMBER_BYTES
REFUSAL: Final = _REFUSED[_RESULT_AT : _RESULT_AT + 4]
"""What follows the number in the answer to a request that was refused as too much: one result, that
it is `Failed`, and the code. That is enough to count it."""


class Parts:
    """A request's bytes, cut where its number and its slot's position stand.

    The number is the frame's id and the operation's.
    """

    def __init__(self, client: int) -> None:
        number, seen = 0x7E57_7E57, bytes(range(100, 100 + VERSION_BYTES))
        mark = number.to_bytes(NUMBER_BYTES, "big")
        self.bodies: list[bytes] = []
        for key in KEYS:
            op = Put(key, VALUE)
            request = Request(number, client, number, False, TIMEOUT_MS, 0, [op], [seen])
            self.head, self.client, rest = encode_frame(request).split(mark)
            body, self.tail = rest.split(seen)
            self.bodies.append(body)


class Channel(asyncio.Protocol):
    """One connection; redialled for ever."""

    def __init__(self, load: Load, address: str) -> None:
        self.load = load
        self.address = address
        self.waiting: dict[int, tuple[float, int]] = {}
        """Number -> when it left, and its slot."""
        self._rest = b""
        self.transport: asyncio.Transport | None = None
        self._greeting = Greeting("")
        self._lost = asyncio.Event()

    @property
    def open(self) -> bool:
        """Whether it takes a request now."""
        transport = self.transport
        return (
            transport is not None
            and self._greeting.welcomed
            and transport.get_write_buffer_size() < UNSENT_BYTES_MAX
        )

    async def run(self) -> None:
        """Dial, and dial again."""
        host, _, port = self.address.rpartition(":")
        loop = asyncio.get_running_loop()
        while True:
            self._greeting, self._lost = Greeting(""), asyncio.Event()
            try:
                async with asyncio.timeout(DIAL_TIMEOUT_S):
                    await loop.create_connection(lambda: self, host, int(port))
                await self._lost.wait()
            except (OSError, TimeoutError):
                pass
            await asyncio.sleep(REDIAL_S)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say hello."""
        self.transport = cast("asyncio.Transport", transport)
        self.transport.write(self._greeting.first_bytes())

    def data_received(self, data: bytes) -> None:
        """The welcome, then answers."""
        if not self._greeting.welcomed:
            self._greeting.feed(data)
            if self._greeting.welcomed:
                self.load.welcomed(self)
            return
        data = self._rest + data
        at, end = 0, len(data)
        refused = 0
        while end - at >= LENGTH_BYTES:
            begin = at + LENGTH_BYTES
            behind = begin + int.from_bytes(data[at:begin], "big")
            if behind > end:
                break
            if data.startswith(REFUSAL, at + _RESULT_AT):
                number = int.from_bytes(data[at + _NUMBER_AT : at + _RESULT_AT], "big")
                refused += self.waiting.pop(number, None) is not None
            else:
                self._on_frame(decode_frame(data[begin:behind]))
            at = behind
        self._rest = data[at:]
        self.load.counts["overloaded"] += refused

    def _on_frame(self, frame: Frame) -> None:
        if isinstance(frame, Response):
            sent = self.waiting.pop(frame.id, None)
            if sent is not None:
                self.load.answered(sent, frame)
        elif isinstance(frame, Routes):
            self.load.learn(frame)

    def connection_lost(self, exc: Exception | None) -> None:
        """What was under way stays open."""
        self.transport = None
        self._rest = b""
        self._lost.set()
        self.load.counts["broken"] += len(self.waiting)
        self.waiting.clear()


class Load:
    """All connections, and what became of what was sent over them."""

    def __init__(self, seeds: list[str]) -> None:
        self.table = RoutingTable(seeds)
        self.channels: dict[str, list[Channel]] = {}
        self.counts = dict.fromkeys((*OUTCOMES.values(), "other", "broken", "late"), 0)
        self.counts |= {"done": 0, "sent": 0, "withheld": 0}
        self.latencies_ms: list[int] = []
        self.done_slots: set[int] = set()
        self.reports: list[str] = []
        """Kept until the end: a full pipe would stop everything."""
        self._known = asyncio.Event()
        self._parts = Parts(secrets.randbits(63))
        self._numbers = count(FIRST_NUMBER)
        self._tasks: set[asyncio.Task[None]] = set()
        self._ops = list(zip(self._parts.bodies, map(slot_of, KEYS), strict=True))

    async def connect(self) -> None:
        """To every node, with the routing table of one."""
        for address in self.table.seeds:
            channels = self.channels[address] = [Channel(self, address) for _ in range(CONNECTIONS)]
            self._tasks |= {asyncio.create_task(channel.run()) for channel in channels}
        await self._known.wait()

    def welcomed(self, channel: Channel) -> None:
        """Whoever is let in anew may know of new primaries."""
        assert channel.transport is not None
        if channel is self.channels[channel.address][0]:
            channel.transport.write(encode_frame(RouteQuery(0)))

    def learn(self, routes: Routes) -> None:
        """Who leads what."""
        self.table.load(routes, time.monotonic())
        self._known.set()

    def send(self, size: int) -> None:
        """So many puts of random keys, each in a request of its own."""
        channels: dict[str, Channel | None] = {}
        leaving: dict[Channel, list[bytes]] = {}
        primaries, positions = self.table.primaries, self.table.positions
        head, client, tail = self._parts.head, self._parts.client, self._parts.tail
        now = time.monotonic()
        withheld = 0
        for body, slot in random.choices(self._ops, k=size):
            primary = primaries[slot]
            if primary not in channels:
                channels[primary] = self._channel_to(primary)
            channel = channels[primary]
            if channel is None:
                withheld += 1
                continue
            number = next(self._numbers)
            bytes_ = number.to_bytes(NUMBER_BYTES, "big")
            if channel not in leaving:
                leaving[channel] = []
            leaving[channel] += (head, bytes_, client, bytes_, body, positions[slot], tail)
            channel.waiting[number] = (now, slot)
        self.counts["withheld"] += withheld
        self.counts["sent"] += size - withheld
        for channel, data in leaving.items():
            assert channel.transport is not None
            channel.transport.write(b"".join(data))

    def _channel_to(self, primary: str) -> Channel | None:
        """One to the node that takes requests; to anybody if it is not known or gone."""
        mine = self.channels.get(primary, ()) if primary != NOBODY else ()
        if not any(channel.transport is not None for channel in mine):
            mine = [channel for channels in self.channels.values() for channel in channels]
        channel = random.choice(mine)
        return channel if channel.open else None

    def answered(self, sent: tuple[float, int], response: Response) -> None:
        """One put is over."""
        at, slot = sent
        result = response.results[0]
        late_s = time.monotonic() - at
        if response.leads:
            self.table.lead(response.leads)
        if isinstance(result, Done):
            self.table.positions[slot] = max(self.table.positions[slot], result.version)
            self.counts["late" if late_s * 1_000 > TIMEOUT_MS else "done"] += 1
            self.latencies_ms.append(int(late_s * 1_000))
            self.done_slots.add(slot)
        else:
            code = result.code if isinstance(result, Failed) else None
            self.counts[OUTCOMES.get(code, "other") if code is not None else "other"] += 1

    def forget_late(self) -> None:
        """What got no answer in time gets none that counts."""
        limit = time.monotonic() - 2 * TIMEOUT_MS / 1_000
        for channels in self.channels.values():
            for channel in channels:
                waiting = channel.waiting  # in the order in which they left
                while waiting and next(iter(waiting.values()))[0] < limit:
                    del waiting[next(iter(waiting))]
                    self.counts["late"] += 1

    @property
    def waiting(self) -> int:
        """Puts under way."""
        return sum(len(c.waiting) for channels in self.channels.values() for c in channels)

    def report(self) -> None:
        """A line for `bench_overload`."""
        self.forget_late()
        document = {"at": time.monotonic(), "latencies_ms": self.latencies_ms} | self.counts
        document["processor_s"] = time.process_time()
        self.reports.append(json.dumps(document | {"slots": sorted(self.done_slots)}))
        self.counts = dict.fromkeys(self.counts, 0)
        self.latencies_ms = []
        self.done_slots = set()


@click.command()
@click.argument("url")
@click.option("--rate", type=float, default=0.0, help="Puts a second, whatever happens.")
@click.option("--window", type=int, default=0, help="Puts under way; a closed loop.")
@click.option("--seconds", type=float, required=True)
def main(url: str, rate: float, window: int, seconds: float) -> None:
    """Put, and say what became of it."""
    asyncio.run(drive(parse_url(url).seeds, rate, window, seconds))


async def drive(seeds: list[str], rate: float, window: int, seconds: float) -> None:
    """For so many seconds."""
    load = Load(seeds)
    await load.connect()
    begun = reported = time.monotonic()
    offered = 0
    while (now := time.monotonic()) < begun + seconds:
        size = window - load.waiting if window else int((now - begun) * rate) - offered
        if size > 0:
            offered += size
            load.send(size)
        if now >= reported + REPORT_S:
            reported = now
            load.report()
        await asyncio.sleep(STEP_S if rate else STEP_S / 4)
    print("\n".join(load.reports))


if __name__ == "__main__":
    main()
