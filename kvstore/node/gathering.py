"""One request on its way to one response, and who waits for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from kvstore.wire.protocol import Request

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from cluster.operations import Result
    from kvstore.wire.protocol import Response


class Waiter(Protocol):
    """Where a request came from: a connection, or a call in this process."""

    @property
    def is_open(self) -> bool:
        """Whether anybody waits for the answer still."""


class Awaited:
    """A call in this process that awaits its response, or was cancelled."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.response: asyncio.Future[Response] = loop.create_future()

    @property
    def is_open(self) -> bool:
        """See `Waiter`."""
        return not self.response.done()

    def settle(self, response: Response) -> None:
        """The response is there."""
        if not self.response.done():
            self.response.set_result(response)


class Gathering:
    """Collects one result for each operation of a request."""

    __slots__ = (
        "deadline_ms",
        "has_waited",
        "leads",
        "missing",
        "reply",
        "request",
        "results",
        "size_bytes",
        "slots",
        "started",
        "waiter",
    )

    def __init__(
        self,
        request: Request,
        slots: list[int],
        deadline_ms: int,
        reply: Callable[[Response], None],
        waiter: Waiter,
        size_bytes: int,
    ) -> None:
        self.request = request
        self.slots = slots
        self.deadline_ms = deadline_ms
        self.reply = reply
        self.waiter = waiter
        self.size_bytes = size_bytes
        self.missing = len(slots)
        self.results: list[Result | None] = [None] * len(slots)
        self.started: set[int] | None = None
        """Operations that may have reached a primary before: retries from now on."""
        self.has_waited = False
        """Whether an operation of it had to wait for a primary."""
        self.leads: dict[int, int] = {}

    def put(self, index: int, result: Result) -> bool:
        """Set one result; True when it was the last. A second one for an operation is ignored."""
        if self.results[index] is not None:
            return False
        self.results[index] = result
        self.missing -= 1
        return not self.missing

    def is_started(self, index: int) -> bool:
        """Whether this operation may have reached a primary that never answered."""
        return self.started is not None and index in self.started

    def let_go(self) -> None:
        """It is answered: the core may hold its tickets for long yet, but not its values."""
        self.request = _NOTHING


Ticket = tuple[Gathering, int]
"""An operation of a request."""

_NOTHING: Final = Request(0, 0, 0, False, 1, 0, [], [])
