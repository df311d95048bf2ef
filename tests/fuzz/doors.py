"""A whole node behind its two ports, given what a stranger might send.

The parsers alone are in `tests.fuzz.targets`; here is what comes after them: a frame or request
that was understood is carried out by a real node with storage in memory, on an event loop that runs
only while an input is given. A connection is the production protocol class with a transport that
keeps what is written. Whatever is raised into the event loop, an HTTP answer of 500, and anything
stored that is no whole record of a value is a crash.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Final

import msgspec

from cluster.operations import Found, Get, Put
from cluster.records import decode_record
from kvstore.http.app import make_app
from kvstore.http.server import HttpRunner
from kvstore.http.settings import HttpSettings
from kvstore.metrics import Metrics
from kvstore.storage.engine import Table
from kvstore.wire.frames import encode_frame
from kvstore.wire.protocol import MAGIC, Request
from tests.fuzz import examples
from tests.kvstore.node_harness import CLIENT, MEMBER_ID, RAW, running

if TYPE_CHECKING:
    from tests.fuzz.mutation import Mutator

TURNS: Final = 12
"""Of the loop, for one input: what has to wait longer waits for the next input."""

LOOK_INPUTS: Final = 500
"""Between two looks at what is stored."""

KEYS_MAX: Final = 20_000


class Transport(asyncio.Transport):
    """Keeps what is written; closes when it is told to."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        super().__init__({"peername": ("198.51.100.1", 5)})
        self.protocol = protocol
        self.written = bytearray()
        self.closing = False

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    def abort(self) -> None:
        self.close()

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def is_reading(self) -> bool:
        return True

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 0


class Site:
    """The node; made when the first input needs it, and as long as the process."""

    def __init__(self, *, is_peer: bool) -> None:
        self._is_peer = is_peer
        self.loop = asyncio.new_event_loop()
        self._stack = AsyncExitStack()
        self._inputs = 0
        self.loop.run_until_complete(self._begin())

    async def _begin(self) -> None:
        self.harness = await self._stack.enter_async_context(running())
        self.node = self.harness.node
        app = make_app(self.node, Metrics(), HttpSettings())
        self.runner = HttpRunner(app)
        await self.runner.setup()

    def close(self) -> None:
        """Stop the node."""
        self.loop.run_until_complete(self.runner.cleanup())
        self.loop.run_until_complete(self._stack.aclose())
        self.loop.close()

    def give(self, stream: list[bytes], *, http: bool) -> bytes:
        """Send pieces on a connection of its own; returns what was answered."""
        return self.loop.run_until_complete(self._give(stream, http=http))

    async def _give(self, stream: list[bytes], *, http: bool) -> bytes:
        protocol: asyncio.Protocol
        if http:
            assert self.runner.server is not None
            protocol = self.runner.server()
        else:
            protocol = self.node.server._make()
        transport = Transport(protocol)
        protocol.connection_made(transport)
        for piece in stream:
            if not transport.closing:
                protocol.data_received(piece)
                await asyncio.sleep(0)
        for _ in range(TURNS):
            await asyncio.sleep(0)
        if not transport.closing:
            transport.closing = True
            protocol.connection_lost(None)
        await asyncio.sleep(0)
        raised, self.harness.raised[:] = list(self.harness.raised), []
        if raised:
            first = raised[0]
            raise first if isinstance(first, Exception) else AssertionError(first)
        self._inputs += 1
        if self._inputs % LOOK_INPUTS == 0:
            await self._look()
        return bytes(transport.written)

    async def _look(self) -> None:
        """It answers, and what it has stored is whole."""
        put = Request(1, 5, self._inputs, False, 1_000, 0, [Put(b"alive", RAW), Get(b"alive")], [])
        results = (await self.node.submit(put)).results
        assert isinstance(results[1], Found) or self._is_peer, results  # peers may say: full
        rows = self.node.engine.scan(Table.RECORDS, b"", b"\xff" * 8, limit=KEYS_MAX)
        for _, record in rows:
            assert decode_record(record).value


_sites: dict[str, Site] = {}


def site(name: str) -> Site:
    """The one of a target in this process."""
    if name not in _sites:
        _sites[name] = Site(is_peer=name == "peer")
    return _sites[name]


def close() -> None:
    """Stop all of them."""
    while _sites:
        _sites.popitem()[1].close()


def client_port(mutator: Mutator) -> None:
    """Who says that it is a client, or somebody else, and then all kinds of frames."""
    rng = mutator.rng
    hello = encode_frame(CLIENT)
    if rng.random() < 0.1:
        body = mutator.packed(mutator.pick(examples.TREES[:2]))
        hello = len(body).to_bytes(4, "big") + body
    stream = MAGIC + hello
    for _ in range(rng.choice((1, 1, 2, 3))):
        body = mutator.packed(mutator.pick(examples.TREES[2:]))
        stream += len(body).to_bytes(4, "big") + body
    cut = rng.randrange(len(stream) + 1)
    site("client").give([stream[:cut], stream[cut:]], http=False)


def peer_port(mutator: Mutator) -> None:
    """Frames as a member of the cluster sends them, changed: it may be told off, no more."""
    rng = mutator.rng
    hello = msgspec.structs.replace(CLIENT, role=rng.choice(("node", "gossip")), node=MEMBER_ID)
    stream = MAGIC + encode_frame(hello)
    for _ in range(rng.choice((1, 1, 2, 3))):
        body = mutator.packed(mutator.pick(examples.TREES[2:]))
        stream += len(body).to_bytes(4, "big") + body
    site("peer").give([stream], http=False)


def http_port(mutator: Mutator) -> None:
    """Requests with paths, headers and bodies that were valid once."""
    rng = mutator.rng
    method = rng.choice(("GET", "HEAD", "PUT", "PUT", "POST", "DELETE", "PATCH"))
    target = mutator.text(mutator.pick(examples.TARGETS)).replace(" ", "%20").replace("\n", "%0A")
    body = rng.choice((b"", b"value", mutator.raw(mutator.pick(examples.JSON))))
    if rng.random() < 0.3:
        method, target = "POST", rng.choice(("/v1/batch", "/v1/cluster/plan", "/v1/cluster/moves"))
        body = mutator.packed(mutator.pick(examples.BATCHES))
    lines = [f"{method} {target} HTTP/1.1", "Host: x"]
    for _ in range(rng.choice((0, 1, 2, 3))):
        name, text = mutator.pick(examples.HEADERS)
        lines.append(f"{name}: {mutator.text(text)}")
    if body and rng.random() < 0.9:
        lines.append(f"Content-Length: {len(body)}")
    head = "\r\n".join(lines) + "\r\n\r\n"
    stream = head.encode("utf-8", "surrogatepass") + body
    if rng.random() < 0.2:
        stream = mutator.raw(stream)
    cut = rng.randrange(len(stream) + 1)
    answer = site("http").give([stream[:cut], stream[cut:]], http=True)
    assert not answer.startswith(b"HTTP/1.1 500"), answer[:600]
