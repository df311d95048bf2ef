"""What a watch tells, by the embedded store: every door and rule of a node, without a network."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

import kvstore
from kvstore.client import ClientCore, InProcessTransport
from kvstore.client.aio import AsyncClient
from kvstore.client.in_process import IN_PROCESS
from kvstore.errors import BadRequest, ClientClosed, Unavailable
from tests.kvstore.node_harness import running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from kvstore.client import Client, Watch, WatchEvent

SECONDS = 5.0
"""For anything that must come."""


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Client]:
    with kvstore.open(tmp_path, durability="os") as client:
        yield client


@pytest.fixture
async def aio_db() -> AsyncIterator[AsyncClient]:
    async with running() as harness:
        core = ClientCore([IN_PROCESS], token_aware=False)
        async with AsyncClient(core, InProcessTransport(harness.node), timeout=SECONDS) as client:
            yield client
        assert harness.node.watching.count == 0
        assert harness.raised == []


def take(watch: Watch, count: int) -> list[WatchEvent]:
    events = []
    for _ in range(count):
        event = watch.poll(SECONDS)
        assert event is not None
        events.append(event)
    return events


def plain(events: list[WatchEvent]) -> list[tuple[str, object, object]]:
    return [(event.type, event.key, event.value) for event in events]


def nothing_more(watch: Watch) -> bool:
    return watch.poll(0.05) is None


def test_what_happens_under_the_prefix_is_told(db: Client) -> None:
    db.put("a:1", "before")
    with db.watch("a:") as watch:
        version = db.put("a:1", {"x": 1})
        db.put("b:1", "elsewhere")
        db.delete("a:1")
        first, second = take(watch, 2)
        assert (first.type, first.key, first.value, first.version) == (
            "put",
            "a:1",
            {"x": 1},
            version,
        )
        assert (second.type, second.key, second.value) == ("delete", "a:1", None)
        assert second.version > first.version
        assert nothing_more(watch)


def test_expiry_type_and_bytes_come_along(db: Client) -> None:
    with db.watch() as watch:
        db.put(b"\xff", b"\x00", ttl=60, content_type="image/png")
        (event,) = take(watch, 1)
        assert (event.key, event.value, event.content_type) == (b"\xff", b"\x00", "image/png")
        assert event.expires_at is not None
        assert event.expires_at - datetime.now(UTC) < timedelta(seconds=61)


def test_a_key_that_expires_is_told_once_somebody_notices(db: Client) -> None:
    with db.watch("t") as watch:
        db.put("t", 1, ttl=0.001)
        assert plain(take(watch, 1)) == [("put", "t", 1)]
        while db.get("t") is not None:
            pass
        assert plain(take(watch, 1)) == [("delete", "t", None)]


def test_a_token_goes_on_inside_of_a_batch(db: Client) -> None:
    with db.watch("{t}") as watch:
        db.batch({"{t}a": 1, "{t}b": 2, "{t}c": 3})
        tokens = [watch.token, *(take(watch, 1)[0].token for _ in range(3))]
        assert watch.token == tokens[-1]
    for behind, token in enumerate(tokens):
        with db.watch("{t}", resume=token) as watch:
            left = plain(take(watch, 3 - behind))
            assert left == [("put", "{t}a", 1), ("put", "{t}b", 2), ("put", "{t}c", 3)][behind:]
            assert nothing_more(watch)


def test_the_token_of_an_event_is_gone_with_the_next(db: Client) -> None:
    with db.watch("a") as watch:
        db.put("a", 1)
        db.put("a", 2)
        first, second = take(watch, 2)
        assert second.token == watch.token
        with pytest.raises(BadRequest, match="until the next one is taken"):
            first.token  # noqa: B018


def test_what_was_overwritten_while_nobody_watched_is_called_superseded(db: Client) -> None:
    with db.watch("a:") as watch:
        token = watch.token
    db.put("a:1", 1)
    db.put("a:2", 1)
    db.delete("a:1")
    db.put("a:2", 2)
    with db.watch("a:", resume=token) as watch:
        by_key = sorted(plain(take(watch, 4)), key=lambda event: str(event[1]))
        assert by_key == [
            ("superseded", "a:1", None),
            ("delete", "a:1", None),
            ("superseded", "a:2", None),
            ("put", "a:2", 2),
        ]
        assert nothing_more(watch)


def test_too_old_a_token_says_so_and_brings_the_present_state_first(db: Client) -> None:
    with db.watch("a:") as watch:
        token = watch.token
    for number in range(400):
        db.put("a:hot", number)
    db.put("a:new", 1)
    with db.watch("a:", resume=token) as watch:
        events = take(watch, 3)
        reset = next(event for event in events if event.type == "reset")
        assert reset.covers("a:hot")
        assert [event.covers("a:hot") for event in events].count(True) == 1
        assert (reset.key, reset.value, reset.version) == ("", None, "")
        assert ("put", "a:hot", 399) in plain(events)
        assert ("put", "a:new", 1) in plain(events)
        assert nothing_more(watch)
        db.put("a:hot", 400)
        assert plain(take(watch, 1)) == [("put", "a:hot", 400)]


def test_a_rare_prefix_in_a_busy_slot_is_never_too_old(db: Client) -> None:
    """What else happens in the slot carries the watch along."""
    with db.watch("{t}rare") as watch:
        for number in range(1_000):
            db.put("{t}often", number)
        assert nothing_more(watch)
        token = watch.token
    db.put("{t}rare", 1)
    with db.watch("{t}rare", resume=token) as watch:
        assert plain(take(watch, 1)) == [("put", "{t}rare", 1)]


def test_a_damaged_value_is_an_error_of_its_event_alone(
    db: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    with db.watch("a") as watch:
        db.put("a", "x" * 100)
        with monkeypatch.context() as patch:
            patch.setattr("cluster.records.crc32", lambda data: 0)
            with pytest.raises(kvstore.CorruptValue, match="'a'"):
                watch.poll(SECONDS)
        db.put("a", 2)
        assert plain(take(watch, 1)) == [("put", "a", 2)]


def test_closing_from_another_thread_ends_the_iteration(db: Client) -> None:
    watch = db.watch("a")
    timer = threading.Timer(0.05, watch.close)
    timer.start()
    assert list(watch) == []
    timer.join()
    assert watch.poll(0.01) is None


def test_closing_the_client_ends_its_watches(tmp_path: Path) -> None:
    client = kvstore.open(tmp_path / "other", durability="os")
    watch = client.watch("a")
    timer = threading.Timer(0.05, client.close)
    timer.start()
    with pytest.raises(ClientClosed):
        next(watch)
    timer.join()


@pytest.mark.parametrize("resume", ["", "nonsense", 7])
def test_a_wrong_token_is_refused(db: Client, resume: str) -> None:
    with pytest.raises(BadRequest, match="token"):
        db.watch("a", resume=resume)


@pytest.mark.parametrize("timeout", [-1, float("inf"), float("nan"), "1"])
def test_a_wrong_timeout_is_refused(db: Client, timeout: float) -> None:
    with db.watch("a") as watch, pytest.raises(BadRequest, match="seconds"):
        watch.poll(timeout)


async def test_on_an_event_loop(aio_db: AsyncClient) -> None:
    async with aio_db.watch("a:") as watch:
        await aio_db.put("a:1", 1)
        event = await anext(watch)
        assert (event.type, event.key, event.value) == ("put", "a:1", 1)
        token = event.token
    await aio_db.put("a:2", 2)
    async with aio_db.watch("a:", resume=token) as watch:
        assert (await anext(watch)).key == "a:2"


async def test_waiting_may_be_cancelled_and_loses_nothing(aio_db: AsyncClient) -> None:
    watch = aio_db.watch("a:")
    heard: list[object] = []
    for number in range(20):
        await aio_db.put("a:1", number)
        for _ in range(3):
            try:
                async with asyncio.timeout(0.002):
                    heard.append((await anext(watch)).value)
            except TimeoutError:
                continue
    async with asyncio.timeout(SECONDS):
        while not heard or heard[-1] != 19:
            heard.append((await anext(watch)).value)
    assert heard == list(range(19 - len(heard) + 1, 20))
    watch.close()


async def test_closing_ends_the_loop(aio_db: AsyncClient) -> None:
    async with aio_db.watch("a:") as watch:
        asyncio.get_running_loop().call_later(0.02, watch.close)
        assert [event async for event in watch] == []


async def test_a_watch_of_a_node_that_is_not_founded_is_unavailable() -> None:
    async with running(founded=False) as harness:
        client = kvstore.connect_async(f"kv://127.0.0.1:{harness.port}", timeout=0.3)
        async with client:
            with pytest.raises(Unavailable, match="has no slots yet"):
                await client.watch("a").begin()
            with pytest.raises(Unavailable, match="has no slots yet"):
                await client.get("a")
