"""Tasks that nobody waits for: what ends one of them is not kept silent.

An exception of a task stays inside it until somebody asks. These are asked at once, and the loop's
exception handler hears of it as of a broken invariant, which ends the node (`kvstore.process`):
one that goes on without its link to a peer, or without its topology, is worse than one that starts
again.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Coroutine


def background(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    """Run this beside everything else, until it ends or is cancelled."""
    task = asyncio.get_running_loop().create_task(work, name=name)
    task.add_done_callback(_tell)
    return task


def _tell(task: asyncio.Task[None]) -> None:
    error = None if task.cancelled() else task.exception()
    if error is not None:
        broken = AssertionError(f"{task.get_name()} has ended")
        broken.__cause__ = error
        context = {"message": str(broken), "exception": broken, "task": task}
        task.get_loop().call_exception_handler(context)
