"""Server-sent events over a real node: what a stream says, and how it goes on and ends."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import aiohttp
import msgspec
import pytest

from cluster.limits import KEY_BYTES_MAX
from cluster.operations import Delete, Put
from cluster.slots import slot_of
from kvstore.http import watching
from tests.kvstore.node_harness import SLOT_COUNT, Harness, running
from tests.process.cluster_processes import wait_for_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

VALUE = msgspec.Raw(msgspec.msgpack.encode({"x": 1}))


class Message(NamedTuple):
    """A server-sent event."""

    event: str
    id: str
    data: Any


class Stream:
    """The messages of a response."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.comments = 0

    async def message(self) -> Message:
        fields: dict[str, str] = {}
        async with asyncio.timeout(5):
            while True:
                line = (await self.response.content.readline()).decode()
                assert line, "the stream ended"
                name, _, value = line.rstrip("\n").partition(": ")
                if line.startswith(":"):
                    self.comments += 1
                elif name:
                    fields[name] = value
                elif "data" in fields:
                    data = json.loads(fields["data"])
                    return Message(fields.get("event", ""), fields.get("id", ""), data)

    async def changes(self, count: int) -> tuple[list[Any], str]:
        """So many changes, and the id behind them."""
        found: list[Any] = []
        last = ""
        while len(found) < count:
            message = await self.message()
            assert message.event == ""
            found += message.data
            last = message.id
        assert len(found) == count
        return found, last


@asynccontextmanager
async def stream(
    harness: Harness, prefix: str = "", last_id: str | None = None
) -> AsyncIterator[Stream]:
    headers = {} if last_id is None else {"Last-Event-ID": last_id}
    url = f"http://127.0.0.1:{harness.http_port}/v1/watch"
    async with (
        aiohttp.ClientSession(max_field_size=1 << 20, read_bufsize=1 << 20) as session,
        session.get(url, params={"prefix": prefix}, headers=headers) as response,
    ):
        assert response.status == 200, await response.text()
        assert response.headers["Content-Type"] == "text/event-stream"
        assert response.headers["X-Request-Id"]
        begun = Stream(response)
        yield begun


async def test_changes_come_as_json_with_an_id_that_resumes() -> None:
    async with running() as harness, harness.client() as good:
        async with stream(harness, "a:") as events:
            started = await events.message()
            assert (started.event, started.data) == ("started", {})
            await good.ask(
                [Put(b"a:1", VALUE), Put(b"b:1", VALUE), Put(b"a:\xff", VALUE, "", 60_000)]
            )
            changes, _ = await events.changes(2)
            put = next(change for change in changes if change["key"] == "a:1")
            slot = slot_of(b"a:1", SLOT_COUNT)
            assert put == {
                "type": "put",
                "key": "a:1",
                "slot": slot,
                "version": put["version"],
                "value": {"x": 1},
            }
            other = next(change for change in changes if change is not put)
            assert set(other["key"]) == {"$bytes"}
            assert other["expires_at"].endswith("Z")
            await good.ask([Delete(b"a:1")])
            (gone,), last = await events.changes(1)
            assert (gone["type"], "value" in gone) == ("delete", False)
        await good.ask([Put(b"a:2", VALUE)])
        for token, keys in ((last, {"a:2"}), (started.id, {"a:1", "a:2", None})):
            async with stream(harness, "a:", token) as events:
                await events.message()
                changes, _ = await events.changes(1 if token == last else 4)
                shown = {c["key"] if isinstance(c["key"], str) else None for c in changes}
                assert shown == keys
        await wait_for_async(lambda: harness.node.watching.count == 0, "all watches are closed")
        assert harness.raised == []


async def test_too_old_an_id_begins_with_the_present_state() -> None:
    async with running() as harness, harness.client() as good:
        async with stream(harness, "k") as events:
            token = (await events.message()).id
        for _ in range(4):
            await good.ask([Put(b"k", VALUE) for _ in range(100)])
        async with stream(harness, "k", token) as events:
            await events.message()
            (reset, put), _ = await events.changes(2)
            assert reset == {"type": "reset", "slots": [slot_of(b"k", SLOT_COUNT)]}
            assert (put["type"], put["key"], put["slot"]) == ("put", "k", reset["slots"][0])


async def test_many_changes_share_an_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "_SMALL_TOKEN_CHARACTERS", 0)
    async with running() as harness, harness.client() as good, stream(harness) as events:
        await events.message()
        await good.ask([Put(b"%d" % n, VALUE) for n in range(300)])
        heard = messages = 0
        while heard < 300:
            message = await events.message()
            heard += len(message.data)
            messages += 1
            assert (
                sum(len(json.dumps(change)) for change in message.data) < 2 * len(message.id) + 200
            )
        assert messages < 300


async def test_silence_has_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "PING_SECONDS", 0.02)
    async with running() as harness, harness.client() as good, stream(harness) as events:
        await events.message()
        await asyncio.sleep(0.1)
        await good.ask([Put(b"k", VALUE)])
        await events.changes(1)
        assert events.comments > 0


async def test_a_node_that_stops_says_so() -> None:
    async with running() as harness, stream(harness) as events:
        await events.message()
        harness.end_watches()
        message = await events.message()
        assert (message.event, message.data) == ("end", {"detail": "this node stops"})
        assert await events.response.content.read() == b""


async def test_who_does_not_read_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "SEND_SECONDS", 0.05)
    large = msgspec.Raw(msgspec.msgpack.encode("x" * 100_000))
    async with running() as harness, harness.client() as good:
        reader, writer = await asyncio.open_connection("127.0.0.1", harness.http_port, limit=1)
        writer.write(b"GET /v1/watch HTTP/1.1\r\nHost: a\r\n\r\n")
        await reader.read(1)
        for _ in range(2_000):
            await good.ask([Put(b"k", large)])
            if harness.metrics.refused_total("slow_watcher"):
                break
        assert harness.metrics.refused_total("slow_watcher") == 1
        await wait_for_async(lambda: harness.node.watching.count == 0, "it does not watch any more")
        writer.close()


@pytest.mark.parametrize(
    ("target", "headers", "problem"),
    [
        ("/v1/watch", {"Last-Event-ID": "nonsense"}, "bad-token"),
        ("/v1/watch?prefix=" + "x" * (KEY_BYTES_MAX + 1), {}, "bad-parameter"),
        ("/v1/watch?limit=1", {}, "bad-parameter"),
    ],
)
async def test_what_cannot_work_is_refused(
    target: str, headers: dict[str, str], problem: str
) -> None:
    async with running() as harness, aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{harness.http_port}{target}"
        async with session.get(url, headers=headers) as response:
            assert response.status == 400
            assert (await response.json())["type"] == f"/problems/{problem}"
        assert harness.node.watching.count == 0


async def test_head_promises_the_stream_without_one() -> None:
    async with running() as harness, aiohttp.ClientSession() as session:
        async with session.head(f"http://127.0.0.1:{harness.http_port}/v1/watch") as response:
            assert (response.status, response.headers["Content-Type"]) == (200, "text/event-stream")
        assert harness.node.watching.count == 0
