"""One request on its way through the HTTP door: what a handler is given, and what it may ask.

A `Route` says what a resource supports (query parameters, condition headers), so that everything
else is refused in one place before the handler runs. A `Call` is a request that passed: its key is
decoded, its query is parsed. Handlers are plain functions from a `Call` to an answer; they raise
`ProblemError` and know nothing of the server around them.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from aiohttp import web
from aiohttp.http import HttpVersion11

from cluster.limits import KEY_BYTES_MAX
from cluster.slots import slot_of
from kvstore.http.caller import operation_id_of
from kvstore.http.problems import ProblemError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from kvstore.client.operation_id import OperationId
    from kvstore.http.caller import Caller
    from kvstore.http.settings import HttpSettings
    from kvstore.http.targets import Query
    from kvstore.http.watch_source import WatchSource
    from kvstore.metrics import Metrics
    from kvstore.node.view import NodeView

__all__ = ["Call", "Door", "Route", "check_key", "read_body", "single_header"]

PRIMARY_HEADER: Final = "X-KV-Primary"


@dataclass(frozen=True, slots=True)
class Door:
    """What all requests share."""

    node: NodeView
    caller: Caller
    metrics: Metrics
    settings: HttpSettings
    watches: WatchSource


@dataclass(frozen=True, slots=True)
class Call:
    """A request that passed the checks of its route."""

    request: web.Request
    door: Door
    key: bytes
    query: Query
    request_id: str

    @property
    def timeout_seconds(self) -> float:
        """The time for the whole call."""
        settings = self.door.settings
        return self.query.seconds(
            "timeout", settings.timeout_seconds_default, most=settings.timeout_seconds_max
        )

    def idempotency(self) -> OperationId | None:
        """The operation id by `Idempotency-Key`, None without one."""
        text = single_header(self.request, "Idempotency-Key")
        if text is None:
            return None
        return operation_id_of(text, f"{self.request.method} ".encode() + self.key)

    def primary_headers(self, key: bytes | None = None) -> dict[str, str]:
        """The header that names the primary of a key's slot, for the curious; empty if unknown."""
        count = self.door.caller.slot_count
        if not count:
            return {}
        address = self.door.caller.primary_address(slot_of(self.key if key is None else key, count))
        return {PRIMARY_HEADER: address} if address else {}


@dataclass(frozen=True, slots=True)
class Route:
    """A method of a resource: who handles it and what it understands.

    Attributes:
        method: HTTP method; GET also stands for HEAD.
        path: Exact path; of a key's resources, what follows the key ("", "/incr", ...).
        operation: Stable name: metrics label and OpenAPI ``operationId``.
        handle: The handler.
        parameters: Query parameters that it knows.
        conditions: Condition headers that it supports.
    """

    method: str
    path: str
    operation: str
    handle: Callable[[Call], Awaitable[web.StreamResponse]]
    parameters: tuple[str, ...] = ()
    conditions: tuple[str, ...] = ()


def check_key(key: bytes) -> bytes:
    """The key, if it can be one.

    Raises:
        ProblemError: it is empty or too long.
    """
    if 0 < len(key) <= KEY_BYTES_MAX:
        return key
    if not key:
        raise ProblemError("bad-key", "The key is empty; to list keys, GET /v1/kv?prefix=.")
    raise ProblemError(
        "bad-key", f"The key has {len(key):,} bytes, the limit is {KEY_BYTES_MAX:,}: use its hash."
    )


def single_header(request: web.Request, name: str) -> str | None:
    """A header that may occur once.

    Raises:
        ProblemError: it occurs more often.
    """
    values = request.headers.getall(name, ())
    if len(values) > 1:
        raise ProblemError("bad-header", f"{name} is given {len(values)} times.")
    return values[0] if values else None


async def read_body(call: Call, limit_bytes: int) -> bytes:
    """The body, within a size and a time.

    A length over the limit is refused before a byte is read, and before ``100 Continue`` would ask
    for it; a body without length is counted while it arrives.

    Raises:
        ProblemError: too large, too slow, compressed, or cut off.
    """
    request = call.request
    coding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if coding != "identity":
        raise ProblemError(
            "unsupported-media-type",
            f"Content-Encoding {coding!r:.40} is not understood: send the value as it is.",
            headers={"Accept-Encoding": "identity"},
        )
    if (request.content_length or 0) > limit_bytes:
        raise _too_large(f"The body has {request.content_length:,} bytes", limit_bytes)
    if "Expect" in request.headers and request.version >= HttpVersion11:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # nothing of the answer itself has been sent
    body = bytearray()
    seconds = call.door.settings.body_seconds_max
    try:
        async with asyncio.timeout(seconds):
            while chunk := await request.content.readany():
                body += chunk
                if len(body) > limit_bytes:
                    raise _too_large("The body is longer", limit_bytes)
    except TimeoutError:
        raise ProblemError(
            "slow-request", f"The body did not arrive within {seconds:g} seconds."
        ) from None
    except web.RequestPayloadError as error:
        raise ProblemError("bad-http", f"The body is broken: {error}") from None
    return bytes(body)


def _too_large(what: str, limit_bytes: int) -> ProblemError:
    return ProblemError("too-large", f"{what}; the limit here is {limit_bytes:,}.")
