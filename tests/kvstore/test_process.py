"""What ends a node's process, and what does not."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

import pytest

from kvstore.process import BROKEN_INVARIANT_STATUS, _uncaught

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def raise_in_callback(monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception], Any]:
    """Raise in a callback of a loop that has the node's handler; returns its exit status."""
    statuses: list[int] = []
    monkeypatch.setattr(os, "_exit", statuses.append)

    async def act(error: Exception) -> int | None:
        def fail() -> None:
            raise error

        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_uncaught)
        loop.call_soon(fail)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return statuses[0] if statuses else None

    return act


async def test_a_broken_invariant_ends_the_node(raise_in_callback: Callable[..., Any]) -> None:
    assert await raise_in_callback(AssertionError("sequence")) == BROKEN_INVARIANT_STATUS


async def test_any_other_error_is_logged_and_the_node_goes_on(
    raise_in_callback: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    assert await raise_in_callback(ValueError("odd")) is None
    assert "odd" in caplog.text
