"""Links to a peer that takes nothing: what is kept for it is bounded, and its return is told."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from cluster.ballot import Ballot
from cluster.limits import PEER_UNSENT_BYTES_MAX
from cluster.messages import Accept, Ack
from cluster.operations import Get
from kvstore.node import peers
from kvstore.node.peers import CAUGHT_UP_BYTES, Peers, make_hello
from kvstore.wire.frames import FrameDecoder, encode_frame
from kvstore.wire.protocol import (
    MAGIC,
    PROTOCOL_VERSION,
    Hello,
    Request,
    SlotMessages,
    Welcome,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from kvstore.wire.protocol import Frame

PEER = 2
BALLOT = Ballot(1, 1)
MIB = 1_048_576
WAIT_S = 10.0
KERNEL_BYTES_MAX = 16 * MIB
"""What the sockets of both sides keep at most; no memory of the sender."""


class Mute:
    """A peer that shakes hands and then reads only when it is told to."""

    def __init__(self) -> None:
        self.address = ""
        self.frames: list[Frame] = []
        self.reads = asyncio.Event()
        self.arrived = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.append(task)
        await reader.readexactly(len(MAGIC))
        decoder = FrameDecoder()
        while not (hello := decoder.feed(await reader.read(65_536))):
            pass
        assert isinstance(hello[0], Hello)
        writer.write(encode_frame(Welcome(PROTOCOL_VERSION, "id", "name", PEER, "n2")))
        if hello[0].role == "node":
            await self.reads.wait()
            with suppress(ConnectionError):
                while data := await reader.read(1 << 20):
                    self.frames += decoder.feed(data)
                    self.arrived.set()
        else:
            await reader.read()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        self.reads.set()
        await asyncio.gather(*self._tasks)

    @property
    def messages(self) -> list[object]:
        """Those of the slots."""
        return [m for f in self.frames if isinstance(f, SlotMessages) for m in f.messages]


class Site:
    """Links to it."""

    def __init__(self, mute: Mute) -> None:
        self.mute = mute
        self.up = asyncio.Event()
        self.downs = 0
        self.caught_up: list[int] = []
        self.peers = Peers(
            lambda role: make_hello(role, "id", "name", 1, "n1"),
            lambda node: self.up.set(),
            lambda node: self._down(),
            self.caught_up.append,
            self._unasked,
            self._unasked,
            random.Random(1),
        )
        self.peers.add(PEER, "n2", mute.address)

    def _down(self) -> None:
        self.downs += 1

    def _unasked(self, answer: object) -> None:
        raise AssertionError("nobody answers here")

    @property
    def unsent_bytes(self) -> int:
        return self.peers._data[PEER].unsent_bytes

    def accept(self, sequence: int, size: int = MIB // 2) -> None:
        change = (b"k%d" % sequence, bytes(size))
        self.peers.send_slots(PEER, [Accept(0, BALLOT, sequence, b"", [change])])

    async def fill(self) -> int:
        """Send until the peer has fallen behind, and go on; how many were sent."""
        for sequence in range(4 * (PEER_UNSENT_BYTES_MAX + KERNEL_BYTES_MAX) // MIB):
            self.accept(sequence)
            await asyncio.sleep(0)
            assert self.unsent_bytes <= PEER_UNSENT_BYTES_MAX + 2 * MIB
        assert self.peers._data[PEER].behind
        return sequence + 1


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    mute = Mute()
    await mute.listen()
    site = Site(mute)
    async with asyncio.timeout(WAIT_S):
        await site.up.wait()
    yield site
    await site.peers.close()
    await mute.close()


async def test_memory_for_a_peer_that_takes_nothing_is_bounded(site: Site) -> None:
    await site.fill()
    for _ in range(1_000):
        site.accept(10**6)
    await asyncio.sleep(0)
    assert site.unsent_bytes <= PEER_UNSENT_BYTES_MAX + 2 * MIB
    assert site.downs == 0, "it may only be slow: whether it lives is for gossip to say"


async def test_one_turn_of_the_loop_does_not_get_past_the_bound(site: Site) -> None:
    for sequence in range(1_000):
        site.accept(sequence)
    assert site.unsent_bytes <= PEER_UNSENT_BYTES_MAX + 2 * MIB


async def test_requests_are_not_forwarded_to_it(site: Site) -> None:
    request = Request(1, 1, 1, False, 1_000, 1, [Get(b"k")], [])
    assert site.peers.forward(PEER, request)
    await site.fill()
    assert not site.peers.forward(PEER, request), "so that it waits for a primary, or finds one"


async def test_who_takes_all_again_is_told_of_once(site: Site) -> None:
    sent = await site.fill()
    site.peers.tick()
    assert site.caught_up == []
    site.mute.reads.set()
    async with asyncio.timeout(WAIT_S):
        while not site.caught_up:
            await asyncio.sleep(0.001)
            site.peers.tick()
    assert site.unsent_bytes <= CAUGHT_UP_BYTES
    site.peers.tick()
    assert site.caught_up == [PEER]
    site.peers.send_slots(PEER, [Ack(0, BALLOT, 7)])

    async with asyncio.timeout(WAIT_S):
        while Ack(0, BALLOT, 7) not in site.mute.messages:
            site.mute.arrived.clear()
            await site.mute.arrived.wait()
    sequences = [m.sequence for m in site.mute.messages if isinstance(m, Accept)]
    assert sequences == list(range(len(sequences))), "in order, and none but the last are missing"
    assert len(sequences) < sent


def test_a_peer_that_hangs_up_at_once_is_dialled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that was killed just then cost the link: its socket was closed before it was set up.

    Of uvloop's sockets only; which of the two happens first is up to the kernel, so many times.
    """
    uvloop = pytest.importorskip("uvloop")
    monkeypatch.setattr(peers, "PAUSE_S_MAX", 0.001)
    monkeypatch.setattr(peers, "PAUSE_S_MIN", 0.001)

    def hang_up(listening: socket.socket) -> None:
        with suppress(OSError):
            while True:
                taken, _ = listening.accept()
                taken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                taken.close()

    async def dial(address: str) -> None:
        raised: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, told: raised.append(told))
        again = asyncio.Semaphore(0)

        def unasked(answer: object) -> None:
            raise AssertionError("nobody answers here")

        links = Peers(
            lambda role: make_hello(role, "id", "name", 1, "n1"),
            unasked,
            lambda node: again.release(),
            unasked,
            unasked,
            unasked,
            random.Random(1),
        )
        links.add(PEER, "n2", address)
        async with asyncio.timeout(WAIT_S):
            for _ in range(50):
                await again.acquire()
                assert raised == []
        await links.close()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        accepting = threading.Thread(target=hang_up, args=(listening,), daemon=True)
        accepting.start()
        uvloop.run(dial(f"127.0.0.1:{listening.getsockname()[1]}"))
        listening.shutdown(socket.SHUT_RDWR)
        accepting.join()
