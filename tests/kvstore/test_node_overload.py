"""A real node under too much: refusals, callers that are gone, one fsync for what is in flight."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from cluster.operations import Code, Failed, Incr, Number, Put
from cluster.slot import Primary
from kvstore.node.connection import Connection
from kvstore.node.server import TURN_FRAMES_MAX
from kvstore.wire.protocol import Request, Response
from tests.kvstore.node_harness import MEMBER_ID, RAW, put, running
from tests.process.cluster_processes import wait_for_async

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from kvstore.node.gathering import Waiter
    from kvstore.node.node import Node


async def test_a_hundred_increments_in_flight_share_their_fsyncs() -> None:
    async with running() as harness, harness.client() as wire:
        await wire.ask([Incr(b"n", 1)])
        syncs = harness.node.commit.syncs
        increments = [Request(i, 0xC, i, False, 2_000, 0, [Incr(b"n", 1)], []) for i in range(100)]
        await wire.send(*increments)
        numbers = []
        for _ in increments:
            response = await wire.receive()
            assert isinstance(response, Response)
            numbers += [result.value for result in response.results if isinstance(result, Number)]
        assert numbers == list(range(2, 102))
        assert harness.node.commit.syncs - syncs <= 5, "it depends on how the bytes arrive"


async def test_overload_is_refused_before_any_work_and_counted() -> None:
    async with running() as harness, harness.client() as wire:
        harness.node.admission.begin(1, 0)
        harness.node.admission.limit = 1
        (result,) = await wire.ask([Put(b"k", RAW)])
        assert isinstance(result, Failed)
        assert result.code is Code.OVERLOADED
        assert result.retry_after_ms > 0
        assert harness.refused == {"overloaded": 1}
        reader, writer = await asyncio.open_connection("127.0.0.1", harness.http_port)
        writer.write(b"POST /v1/kv/n/incr HTTP/1.1\r\nHost: n\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        writer.close()
        assert head.startswith(b"HTTP/1.1 429 ")
        assert b"Retry-After: 1\r\n" in head
        assert harness.metrics.refused_total("overloaded") == 2, "each once"
        harness.node.admission.end(1, 0, 1, served=True)
        assert await wire.stored() == {}


async def test_answers_of_one_turn_leave_in_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system call for each of the refused would be most of what refusing costs."""
    written: list[int] = []
    write = Connection._write

    def counted(connection: Connection, data: bytes) -> None:
        written.append(len(data))
        write(connection, data)

    numbers = range(TURN_FRAMES_MAX)
    puts = [Request(n, 0xC, n, False, 2_000, 0, [Put(b"k", RAW)], []) for n in numbers]
    async with running() as harness, harness.client() as wire:
        await wire.ask([Put(b"k", RAW)])
        monkeypatch.setattr(Connection, "_write", counted)
        for limit in (TURN_FRAMES_MAX * 2, 1):  # all are carried out, then all are refused
            harness.node.admission.begin(1, 0)
            harness.node.admission.limit = limit
            written.clear()
            await wire.send(*puts)
            for _ in puts:
                assert isinstance(await wire.receive(), Response)
            harness.node.admission.end(1, 0, 1, served=True)
            assert len(written) < TURN_FRAMES_MAX / 4, "it depends on how the bytes arrive"


def answer_nothing(node: Node) -> None:
    """From now on every request is held, as while slots change their primary."""
    for slot in node.table.slots:
        if slot is not None and isinstance(slot.role, Primary):
            slot.role.handing_to = MEMBER_ID


def held(node: Node) -> int:
    roles = [slot.role for slot in node.table.slots if slot is not None]
    return sum(len(role.held) for role in roles if isinstance(role, Primary))


async def test_a_client_that_is_gone_is_forgotten() -> None:
    async with running() as harness:
        node = harness.node
        async with harness.client() as wire:
            answer_nothing(node)
            await wire.send(put(b"k"))
            await wait_for_async(lambda: node.router.in_flight == 1, "it arrives")
        await wait_for_async(lambda: node.router.in_flight == 0, "it is forgotten")
        assert node.admission.requests == 0
        assert held(node) == 0, "it is not carried out when nobody waits for it"


async def test_an_http_client_that_is_gone_is_forgotten() -> None:
    async with running() as harness:
        node = harness.node
        answer_nothing(node)
        _, writer = await asyncio.open_connection("127.0.0.1", harness.http_port)
        writer.write(b"POST /v1/kv/n/incr HTTP/1.1\r\nHost: n\r\n\r\n")
        await wait_for_async(lambda: held(node) == 1, "it arrives")
        writer.close()
        await wait_for_async(lambda: node.router.in_flight == 0, "it is forgotten")
        assert held(node) == 0
        assert harness.raised == []


async def test_a_flood_on_one_connection_lets_others_come_between() -> None:
    """Some thousand requests that arrive in one piece are taken in order, a part in each turn."""
    async with running() as harness, harness.client() as flood, harness.client() as other:
        turns: list[str] = []
        take = harness.node.on_request

        def note(request: Request, reply: Callable[[Response], None], waiter: Waiter) -> None:
            turns.append("other" if request.client == 0xB else "flood")
            if len(turns) == 1:
                other.write(Request(1, 0xB, 1, False, 2_000, 0, [Incr(b"m", 1)], []))
            take(request, reply, waiter)

        harness.node.on_request = note  # type: ignore[method-assign]
        count = 8 * TURN_FRAMES_MAX
        requests = [Request(i, 0xA, i, False, 5_000, 0, [Incr(b"n", 1)], []) for i in range(count)]
        await flood.send(*requests)
        responses = [await flood.receive() for _ in requests]
        results = [r.results[0] for r in responses if isinstance(r, Response)]
        numbers = [result.value for result in results if isinstance(result, Number)]
        assert numbers == list(range(1, len(numbers) + 1)), "in order"
        refused = [result for result in results if isinstance(result, Failed)]  # it may be slow
        assert len(results) == len(numbers) + len(refused) == count
        assert isinstance(await other.receive(), Response)
        assert turns.index("other") < count, "it had its turn in between"
