from __future__ import annotations

import asyncio
from typing import Any

from kvstore.node.tasks import background


async def heard_of(ends: Any) -> list[dict[str, Any]]:
    heard: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: heard.append(context))

    async def work() -> None:
        await asyncio.sleep(0)
        ends()

    task = background(work(), "topology")
    await asyncio.wait([task])
    await asyncio.sleep(0)
    return heard


async def test_what_ends_a_task_is_heard_at_once() -> None:
    """A node whose owners could not be computed followed no topology any more, and said nothing."""
    error = ValueError("odd")

    def fail() -> None:
        raise error

    (context,) = await heard_of(fail)
    assert isinstance(context["exception"], AssertionError), "the node does not go on without it"
    assert context["exception"].__cause__ is error
    assert context["message"] == "topology has ended"


async def test_an_end_is_no_error() -> None:
    assert await heard_of(lambda: None) == []


async def test_who_is_cancelled_is_not_heard_of() -> None:
    def cancel() -> None:
        raise asyncio.CancelledError

    assert await heard_of(cancel) == []
