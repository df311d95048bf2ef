"""The node's side of a watch, frame by frame."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import msgspec
import pytest

from cluster.limits import KEY_BYTES_MAX
from cluster.operations import Done, Put
from cluster.outputs import WatchState
from cluster.records import unpack_version
from cluster.slots import slot_of
from kvstore.node import watching
from kvstore.wire.protocol import FROM_NOW, Refused, SlotChanged, SlotTold, Watch, Watched
from tests.kvstore.node_harness import SLOT_COUNT, Harness, Wire, running, working
from tests.process.cluster_processes import wait_for_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ALL = list(range(SLOT_COUNT))
NOW = [FROM_NOW] * SLOT_COUNT
VALUE = msgspec.Raw(msgspec.msgpack.encode("x" * 10_000))


async def items(wire: Wire, count: int) -> list[SlotChanged | SlotTold]:
    """The next ones."""
    found: list[SlotChanged | SlotTold] = []
    while len(found) < count:
        frame = await wire.receive()
        assert isinstance(frame, Watched), frame
        found += frame.items
    assert len(found) == count
    return found


@asynccontextmanager
async def watched(harness: Harness, prefix: bytes = b"") -> AsyncIterator[Wire]:
    """A connection that watches all slots from now on."""
    async with harness.client() as wire:
        await wire.send(Watch(prefix, ALL, NOW))
        begun = await items(wire, SLOT_COUNT)
        assert all(isinstance(item, SlotTold) for item in begun)
        assert {item.slot for item in begun} == set(ALL)
        yield wire


@pytest.mark.parametrize(
    ("watch", "says"),
    [
        (Watch(b"", [1, 2], [0]), "1 sequences for 2 slots"),
        (Watch(b"", [], []), "names some slots"),
        (Watch(b"", [SLOT_COUNT], [0]), "names some slots"),
        (Watch(b"", [-1], [0]), "names some slots"),
        (Watch(b"", [1], [-2]), "a number of 63 bits"),
        (Watch(b"", [1], [1 << 63]), "a number of 63 bits"),
        (Watch(b"x" * (KEY_BYTES_MAX + 1), [1], [0]), "prefix of over"),
        (Watch(b"", [1, 1], [0, 0]), "watched twice"),
    ],
)
async def test_a_wrong_wish_is_refused(watch: Watch, says: str) -> None:
    async with working() as site:
        async with site.harness.client() as wire:
            await wire.send(watch)
            assert says in (await wire.refusal()).detail
        await site.unharmed({"request": 1})


@pytest.mark.parametrize(
    ("second", "says"),
    [(Watch(b"a", [1], [0]), "watched twice"), (Watch(b"b", [2], [0]), "has one prefix")],
)
async def test_a_wish_that_does_not_fit_the_first_is_refused(second: Watch, says: str) -> None:
    async with working() as site:
        async with site.harness.client() as wire:
            await wire.send(Watch(b"a", [1], [FROM_NOW]), second)
            frame = await wire.receive()
            if isinstance(frame, Watched):
                frame = await wire.receive()
            assert isinstance(frame, Refused)
            assert says in frame.detail
        await site.unharmed({"request": 1})
        assert site.harness.node.watching.count == 0


async def test_what_is_not_under_the_prefix_is_told_every_64th_time() -> None:
    async with running() as harness, watched(harness, b"{t}mine") as wire, harness.client() as good:
        for _ in range(130):
            await good.ask([Put(b"{t}other", VALUE)])
        await good.ask([Put(b"{t}mine", VALUE)])
        told = [item for item in await items(wire, 3) if isinstance(item, SlotChanged)]
        sequences = [unpack_version(item.version).sequence for item in told]
        assert sequences == [64, 128, 131]
        assert [[key for key, _ in item.changes] for item in told] == [[], [], [b"{t}mine"]]


async def test_silence_is_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "HEARTBEAT_MS", 10)
    async with running() as harness, watched(harness) as wire:
        assert await wire.receive() == Watched([])
        assert await wire.receive() == Watched([])


async def test_one_watch_too_many_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "WATCHES_MAX", 1)
    async with working() as site:
        async with watched(site.harness), site.harness.client() as wire:
            await wire.send(Watch(b"", [1], [0]))
            assert (await wire.refusal()).reason == "overloaded"
        await site.unharmed({"watches": 1})


async def test_who_does_not_read_is_cut_off_and_told_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "UNREAD_BYTES_MAX", 100_000)
    monkeypatch.setattr(watching, "SENT_BYTES_MAX", 100_000)
    async with working() as site:
        node = site.harness.node
        async with watched(site.harness) as wire:
            for _ in range(5_000):
                (done,) = await site.good.ask([Put(b"k", VALUE)])
                assert isinstance(done, Done)
                if not node.watching.count:
                    break
            assert node.watching.count == 0
            heard = 0
            while isinstance(frame := await wire.receive(), Watched):
                heard += len(frame.items)
            assert isinstance(frame, Refused)
            assert (frame.reason, "go on from the last token" in frame.detail) == ("slow", True)
            assert heard > 0
            assert await wire.receive() is None
        assert node.table.watches._room.taken_bytes == 0
        await site.unharmed({"slow_watcher": 1}, {b"k": bytes(VALUE)})


async def test_who_does_not_even_read_why_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "UNREAD_BYTES_MAX", 10_000)
    monkeypatch.setattr(watching, "SENT_BYTES_MAX", 10_000)
    monkeypatch.setattr(watching, "LINGER_MS", 20)
    async with working() as site, watched(site.harness):
        while site.harness.node.watching.count:
            await site.good.ask([Put(b"k", VALUE)])
        server = site.harness.node.server
        await wait_for_async(lambda: server.connections == 1, "it is dropped")


async def test_a_replay_is_no_reason_to_be_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """However much was missed: it comes as fast as it is read."""
    monkeypatch.setattr(watching, "UNREAD_BYTES_MAX", 400_000)
    monkeypatch.setattr(watching, "SENT_BYTES_MAX", 20_000)
    monkeypatch.setattr(watching, "FRAME_BYTES", 20_000)
    async with working() as site, site.harness.client() as wire:
        for _ in range(30):
            await site.good.ask([Put(b"k%d" % n, VALUE) for n in range(100)])
        await wire.send(Watch(b"k", ALL, [0] * SLOT_COUNT))
        await asyncio.sleep(0.1)
        started: set[int] = set()
        changed = 0
        while len(started) < SLOT_COUNT:
            frame = await wire.receive()
            assert isinstance(frame, Watched), frame
            for item in frame.items:
                if isinstance(item, SlotTold):
                    assert item.state is WatchState.STARTED
                    started.add(item.slot)
                else:
                    changed += len(item.changes)
        assert changed == 3_000


async def test_a_watch_that_left_costs_nothing() -> None:
    async with running() as harness, harness.client() as good:
        async with watched(harness):
            pass
        slot = harness.node.table.slots[slot_of(b"k", SLOT_COUNT)]
        assert slot is not None
        await wait_for_async(lambda: getattr(slot.role, "feed", None) is None, "no feed")
        await good.ask([Put(b"k", VALUE)])
        assert harness.node.watching.count == 0
