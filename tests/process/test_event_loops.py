"""The asyncio client on the loops that people run it on."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
import uvloop

import kvstore

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvstore.cli.local_cluster import LocalCluster

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


@pytest.mark.parametrize("make", LOOPS.values(), ids=LOOPS.keys())
def test_many_tasks(cluster: LocalCluster, make: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def work() -> int:
        async with kvstore.connect_async(cluster.url) as db:
            await db.delete("loop:n")
            await asyncio.gather(*(db.incr("loop:n") for _ in range(200)))
            assert [key async for key, _ in db.scan("loop:")] == ["loop:n"]
            number: int = await db.get("loop:n")
            return number

    with asyncio.Runner(loop_factory=make) as runner:
        assert runner.run(work()) == 200
