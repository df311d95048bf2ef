"""The asyncio client against real sockets, and in-process."""

from __future__ import annotations

import asyncio
import inspect
import time
from typing import TYPE_CHECKING, Any

import pytest

from cluster.slots import slot_of
from kvstore.client.aio import AsyncClient, connect_async
from kvstore.client.core import ClientCore
from kvstore.client.in_process import IN_PROCESS, InProcessTransport, LocalWatches
from kvstore.client.sync import Client, connect
from kvstore.errors import (
    BadRequest,
    ClientClosed,
    DeadlineExceeded,
    OutcomeUnknown,
    PartialFailure,
    Unavailable,
    VersionConflict,
)
from kvstore.wire.protocol import Refused, Request, Response, Routes
from tests.kvstore.fake_cluster import FakeCluster, Noted

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    with FakeCluster(3) as fake:
        yield fake


@pytest.fixture
async def db(cluster: FakeCluster) -> AsyncIterator[AsyncClient]:
    async with connect_async(cluster.url) as client:
        yield client


async def session(db: AsyncClient) -> None:
    version = await db.put("k", {"a": [1, b"x"]})
    assert await db.get("k") == {"a": [1, b"x"]}
    entry = await db.get_entry("k")
    assert entry is not None
    assert entry.version == version
    with pytest.raises(VersionConflict):
        await db.put("k", 1, if_absent=True)
    assert await db.incr("n", 5) == 5
    assert await db.update("n", lambda old: old * 2) == 10
    assert await db.touch("n") is True
    assert await db.delete("k") is True
    await db.put_many({f"city:{i}": i for i in range(300)})
    assert await db.get_many(["city:1", "city:2", "none"]) == {"city:1": 1, "city:2": 2}
    assert {key: value async for key, value in db.scan("city:")} == {
        f"city:{i}": i for i in range(300)
    }
    assert len([key async for key, _ in db.scan("city:", limit=3)]) == 3
    page = await db.scan_page("city:", limit=10)
    assert len(page.keys) == len(page.entries) == 10
    assert page.cursor
    assert await db.delete_many([f"city:{i}" for i in range(300)]) == 300
    await db.batch({"{t}a": 1, "{t}b": 2})
    assert await db.get("{t}b") == 2


async def test_the_session_of_the_documentation(db: AsyncClient) -> None:
    await session(db)


async def test_the_same_in_process(cluster: FakeCluster) -> None:
    class Node:
        async def submit(self, request: Request) -> Response:
            answer = cluster.answer(0, request)
            assert isinstance(answer, Response)
            return answer

        def routes(self) -> Routes:
            return cluster.routes()

        @property
        def watching(self) -> LocalWatches:
            raise AssertionError

    transport = InProcessTransport(Node())
    core = ClientCore([IN_PROCESS], token_aware=transport.token_aware)
    async with AsyncClient(core, transport, timeout=5) as db:
        await session(db)
        before = len(cluster.requests)
        await db.put_many({f"k{i}": i for i in range(100)})
        assert len(cluster.requests) - before == 1


async def test_tasks_share_one_connection_a_node(cluster: FakeCluster, db: AsyncClient) -> None:
    async def work(name: int) -> None:
        for i in range(20):
            await db.put(f"{name}-{i}", [name, i])
            assert await db.get(f"{name}-{i}") == [name, i]
            await db.incr("shared")

    await asyncio.gather(*(work(name) for name in range(64)))
    assert await db.get("shared") == 64 * 20
    assert cluster.connections == 3
    assert cluster.route_queries <= 3, "again after a stall, but not for each task"


async def test_a_request_whose_answer_is_lost_is_done_once(
    cluster: FakeCluster, db: AsyncClient
) -> None:
    await db.put("n", 0)
    for fault, expected in (("drop", 1), ("serve-drop", 2)):
        cluster.requests.clear()
        cluster.faults.append(lambda _, fault=fault: fault)  # type: ignore[misc]
        assert await db.incr("n") == expected
        first, second = (noted.request for noted in cluster.requests)
        assert (first.retry, second.retry) == (False, True)
        assert (second.client, second.number, second.seen) == (
            first.client,
            first.number,
            first.seen,
        )


async def test_faults_become_errors_in_time(cluster: FakeCluster, db: AsyncClient) -> None:
    await db.get("k")
    cluster.rule = lambda _: "silent"
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        await db.get("k", timeout=0.2)
    with pytest.raises(OutcomeUnknown):
        await db.put("k", 1, timeout=0.2)
    with pytest.raises(PartialFailure):
        await db.put_many({"a": 1, "b": 2}, timeout=0.2)
    assert time.monotonic() - started < 1.2


async def test_a_silent_node_is_left_within_a_second(cluster: FakeCluster, db: AsyncClient) -> None:
    await db.put("k", 0)
    frozen = slot_of(b"k") % 3

    def freeze(noted: Noted) -> str | None:
        return "silent" if noted.node == frozen else None

    cluster.rule = freeze
    started = time.monotonic()
    await asyncio.gather(*(db.incr("k") for _ in range(50)))
    assert time.monotonic() - started < 1
    assert await db.get("k") == 50


async def test_a_killed_node_costs_no_error(cluster: FakeCluster, db: AsyncClient) -> None:
    await db.put_many({f"k{i}": 0 for i in range(30)})
    cluster.stop(1)
    await db.put_many({f"k{i}": 1 for i in range(30)})
    assert set((await db.get_many([f"k{i}" for i in range(30)])).values()) == {1}


async def test_a_cancelled_call_spoils_nothing(cluster: FakeCluster, db: AsyncClient) -> None:
    await db.put("a", "a")
    await db.put("b", "b")
    cluster.faults.append(lambda _: "silent")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await db.get("a")
    tasks = [asyncio.create_task(db.get("a")) for _ in range(20)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert answers[1::2] == ["a"] * 10
    assert await db.get("b") == "b"


async def test_a_cancelled_first_call_leaves_the_others_theirs(cluster: FakeCluster) -> None:
    async with connect_async(cluster.url) as db:
        tasks = [asyncio.create_task(db.get("a", i)) for i in range(5)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert answers[1:] == [1, 2, 3, 4]


async def test_refusals_and_outages() -> None:
    with FakeCluster(1) as fake:
        fake.refuse = Refused("cluster", "this is another cluster")
        async with connect_async(fake.url) as db:
            with pytest.raises(Unavailable, match="another cluster"):
                await db.get("k")
        url = fake.url
    async with connect_async(url, timeout=0.3) as db:
        with pytest.raises(Unavailable, match="refused"):
            await db.get("k")


async def test_use_after_close(cluster: FakeCluster) -> None:
    db = connect_async(cluster.url)
    await db.put("k", 1)
    await db.close()
    await db.close()
    with pytest.raises(ClientClosed):
        await db.get("k")


async def test_close_ends_calls_under_way(cluster: FakeCluster) -> None:
    db = connect_async(cluster.url)
    await db.get("k")
    cluster.rule = lambda _: "silent"
    call = asyncio.create_task(db.put("k", 1))
    await asyncio.sleep(0.05)
    await db.close()
    started = time.monotonic()
    with pytest.raises(ClientClosed, match="under way"):
        await call
    assert time.monotonic() - started < 1


def test_another_loop_gets_a_clear_error(cluster: FakeCluster) -> None:
    db = connect_async(cluster.url)
    with asyncio.Runner() as runner:
        runner.run(db.put("k", 1))
        with asyncio.Runner() as other, pytest.raises(ClientClosed, match="loop"):
            other.run(db.get("k"))
        runner.run(db.close())


async def test_large_values_go_both_ways(db: AsyncClient) -> None:
    values = {f"big-{i}": bytes([i]) * 900_000 for i in range(16)}
    await db.put_many(values, timeout=20)
    assert await db.get_many(list(values)[:8], timeout=20) == dict(list(values.items())[:8])


async def test_one_text_is_not_a_list_of_keys(db: AsyncClient) -> None:
    with pytest.raises(BadRequest):
        await db.get_many("abc")


SYNC_ONLY = {"mapping"}
"""`collections.abc.MutableMapping` has no asynchronous form."""


def test_both_clients_have_the_same_methods_and_parameters() -> None:
    def public(kind: type) -> dict[str, Any]:
        return {
            name: member
            for name, member in inspect.getmembers(kind, inspect.isfunction)
            if not name.startswith("_")
        }

    blocking, asynchronous = public(Client), public(AsyncClient)
    assert set(blocking) - SYNC_ONLY == set(asynchronous)
    for name, method in asynchronous.items():
        twin = blocking[name]
        assert inspect.signature(method).parameters == inspect.signature(twin).parameters, name
        assert inspect.getdoc(method) == inspect.getdoc(twin), name
        wanted = inspect.signature(twin).return_annotation
        assert inspect.signature(method).return_annotation in (wanted, f"Async{wanted}"), name
    connections = inspect.signature(connect), inspect.signature(connect_async)
    assert connections[0].parameters == connections[1].parameters
