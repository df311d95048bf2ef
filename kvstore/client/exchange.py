"""The seam between what a client decides and how bytes get there.

Every operation of the library is one generator, a *flow*. It yields steps, `Exchange` ("send
these frames, bring me the replies") or `Pause` ("wake me later"), is resumed with the replies,
and returns the caller's value or raises. A driver runs flows: the blocking one and the asyncio
one differ in nothing else. The form is httpx's ``Auth.auth_flow``.

What matters about a failure is whether a write may have happened, so that is how failures are
told apart: `NotSent` (not a byte left: nothing happened), `Broken` and `TimedOut` (it left:
nobody knows).
"""

from __future__ import annotations

from collections.abc import Generator
from typing import NamedTuple, Protocol, TypeVar

from kvstore.wire.protocol import Request, Response, RouteQuery, Routes, Watch, Watched

T = TypeVar("T")


class NotSent(NamedTuple):
    """The frame never left. ``permanent``: the node refused who we are, asking again is no use."""

    detail: str
    permanent: bool = False


class Broken(NamedTuple):
    """The frame left and the connection broke before its answer."""

    detail: str


class TimedOut(NamedTuple):
    """The frame left and no answer came in time; one that comes later is dropped."""

    detail: str


class Send(NamedTuple):
    """One frame for one node (``host:port``); frames for one node are sent in this order."""

    address: str
    frame: Request | RouteQuery


class Exchange(NamedTuple):
    """Send all, then collect all replies; ``deadline`` is on the flow's clock, in seconds."""

    sends: list[Send]
    deadline: float


class Pause(NamedTuple):
    """Resume after this many seconds."""

    seconds: float


Failure = NotSent | Broken | TimedOut
Reply = Response | Routes | NotSent | Broken | TimedOut
Step = Exchange | Pause
Flow = Generator[Step, list[Reply], T]


class Listen(NamedTuple):
    """A watch's step: drop links, send frames, and bring what arrives before the deadline.

    A link to an address exists from the first frame that is sent there until it is dropped or lost.
    """

    drops: list[str]
    sends: list[tuple[str, Watch | RouteQuery]]
    deadline: float


class LinkLost(NamedTuple):
    """A link could not be made, or has ended.

    ``reason`` is that of a node's refusal, or empty; ``silent``: nothing was heard, not even no.
    """

    reason: str
    detail: str
    silent: bool = False


Heard = tuple[str, Watched | Routes | LinkLost]
"""From which address, what."""


class Links(Protocol):
    """A watch's connections, one a node, blocking."""

    def listen(self, step: Listen) -> list[Heard]:
        """What has arrived, as soon as there is something; empty at the deadline or when closed."""

    def close(self) -> None:
        """Let go of all links and wake up who listens; from any thread."""


class AsyncLinks(Protocol):
    """A watch's connections, one a node, on an event loop; safe to cancel."""

    async def listen(self, step: Listen) -> list[Heard]:
        """What has arrived, as soon as there is something; empty at the deadline or when closed."""

    def close(self) -> None:
        """Let go of all links and wake up who listens."""


class Transport(Protocol):
    """Blocking delivery; safe to use from several threads.

    ``token_aware`` is False where one door serves every key, as in-process.
    """

    token_aware: bool

    def exchange(self, sends: list[Send], deadline: float) -> list[Reply]:
        """The replies in the order of the sends; failures are replies, never raised."""

    def links(self) -> Links:
        """Connections of their own for one watch; closed with the transport."""

    def close(self) -> None:
        """Let go of all connections; an exchange under way may fail."""


class AsyncTransport(Protocol):
    """Delivery on an event loop; safe to cancel."""

    token_aware: bool

    async def exchange(self, sends: list[Send], deadline: float) -> list[Reply]:
        """The replies in the order of the sends; failures are replies, never raised."""

    def links(self) -> AsyncLinks:
        """Connections of their own for one watch; closed with the transport."""

    async def close(self) -> None:
        """Let go of all connections; an exchange under way may fail."""
