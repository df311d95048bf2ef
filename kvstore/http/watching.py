"""`GET /v1/watch`: what happens under a prefix, as server-sent events.

A token names a place in every slot, and a prefix is usually in all of them, so a token may be far
longer than a change (`kvstore.client.watch_tokens`). Therefore one message carries several changes,
a JSON array, and one ``id``, the token behind all of them: it goes out when its changes weigh as
much as its token does, or `LATE_SECONDS` after the first of them. A browser takes over the ``id``
only with the whole message, so what it has handled and what it resumes behind are the same.

========== ==============================================================================
event      data
========== ==============================================================================
started    ``{}``: the watch has begun; its id resumes even if nothing ever happens
(message)  an array of changes: type, key, slot, and for a put value and version
end        ``{"detail": ...}``: the node ends the stream; connect again with the last id
========== ==============================================================================

A "reset" among the changes has ``slots``: forget the keys of these slots, their state follows. A
"corrupt" one has a ``detail`` that names its key: what is stored there cannot be decoded.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web
from aiohttp_sse import EventSourceResponse

from cluster.limits import KEY_BYTES_MAX
from cluster.slots import slot_of
from kvstore.errors import BadRequest, CorruptValue, KVError, Unavailable
from kvstore.http.door import Call, Route, single_header
from kvstore.http.keys import expiry_text
from kvstore.http.problems import ProblemError
from kvstore.json_values import dump_json

if TYPE_CHECKING:
    from kvstore.client.watch import AsyncWatch, WatchEvent

__all__ = ["ROUTES"]

LATE_SECONDS: Final = 0.1
"""How long a change may wait for others that share its token."""

PING_SECONDS: Final = 10.0
"""A comment is sent so often, so that proxies keep the connection and both sides notice its end."""

LOOK_SECONDS: Final = 1.0
"""How soon it is noticed that a listener to whom nothing happens has left."""

SEND_SECONDS: Final = 10.0
"""A listener that takes nothing for so long is cut off."""

LOST_SECONDS: Final = 30.0
"""A connection breaks whose other side has acknowledged nothing for so long, not even a ping.

Longer than `SEND_SECONDS`, which the kernel would otherwise often be ahead of: it counts from when
its own buffers are full, and does not tell a slow listener from one that left.
"""

MESSAGE_BYTES_MAX: Final = 1_048_576
_SMALL_TOKEN_CHARACTERS: Final = 256
"""Not worth waiting for: the prefix is in one slot, or the cluster has few."""

_HEADERS: Final = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}


async def watch(call: Call) -> web.StreamResponse:
    """The stream."""
    prefix = call.query.raw("prefix") or b""
    if len(prefix) > KEY_BYTES_MAX:
        raise ProblemError("bad-parameter", f"'prefix' has over {KEY_BYTES_MAX:,} bytes.")
    resume = single_header(call.request, "Last-Event-ID") or None
    if call.request.method == "HEAD":
        return web.Response(headers=_HEADERS)
    opened = call.door.watches.watch(prefix, resume, call.door.settings.timeout_seconds_default)
    try:
        try:
            await opened.begin()
        except BadRequest as error:
            raise ProblemError("bad-token", f"{error}.") from error
        except Unavailable as error:
            raise ProblemError("unavailable", f"{error}.") from error
        response = EventSourceResponse(
            headers={"X-Request-Id": call.request_id},
            sep="\n",
            ping_interval=PING_SECONDS,
            send_timeout=LOST_SECONDS,
        )
        await response.prepare(call.request)
        with suppress(ConnectionError):  # the listener left
            async with response:
                await _stream(call, response, opened)
        return response
    finally:
        opened.close()


ROUTES: Final = (Route("GET", "/v1/watch", "watch", watch, ("prefix",)),)


async def _stream(call: Call, response: EventSourceResponse, opened: AsyncWatch) -> None:
    slot_count = call.door.caller.slot_count
    token = opened.token
    detail = "this node stops"
    await response.send("{}", id=token, event="started", retry=1_000)
    try:
        while response.is_connected() and call.request.transport is not None:
            batch = await _gather(opened, slot_count, len(token))
            if batch is None:
                break
            if batch:
                token = opened.token
                data = b"[" + b",".join(batch) + b"]"
                async with asyncio.timeout(SEND_SECONDS):
                    await response.send(data.decode(), id=token)
    except TimeoutError:  # there is nobody to tell, and nothing more to wait for
        call.door.metrics.refused("slow_watcher")
        if call.request.transport is not None:
            call.request.transport.abort()
        return
    except KVError as error:
        call.door.metrics.refused("slow_watcher")
        detail = str(error)
    await response.send(dump_json({"detail": detail}).decode(), event="end")


async def _gather(opened: AsyncWatch, slot_count: int, token_bytes: int) -> list[bytes] | None:
    """Changes for one message; none if nothing happens for a while, None at the end."""
    batch: list[bytes] = []
    size, enough = 0, MESSAGE_BYTES_MAX
    if token_bytes <= _SMALL_TOKEN_CHARACTERS:
        enough = 0
    elif token_bytes < MESSAGE_BYTES_MAX:
        enough = token_bytes
    with suppress(TimeoutError):
        async with asyncio.timeout(LOOK_SECONDS) as timer:
            while size <= enough:
                try:
                    event = await anext(opened, None)
                except CorruptValue as error:
                    batch.append(dump_json({"type": "corrupt", "detail": f"{error}."}))
                    continue
                if event is None:
                    return batch or None
                if not batch:
                    timer.reschedule(asyncio.get_running_loop().time() + LATE_SECONDS)
                batch.append(dump_json(_described(event, slot_count)))
                size += len(batch[-1])
    return batch


def _described(event: WatchEvent, slot_count: int) -> dict[str, Any]:
    if event.type == "reset":
        return {"type": "reset", "slots": sorted(event.slots)}
    raw_key = event.key.encode() if isinstance(event.key, str) else event.key
    about: dict[str, Any] = {"type": event.type, "key": event.key}
    about["slot"] = slot_of(raw_key, slot_count)
    about["version"] = event.version
    if event.type == "put":
        about["value"] = event.value
        if event.content_type:
            about["content_type"] = event.content_type
        if event.expires_at is not None:
            about["expires_at"] = expiry_text(round(event.expires_at.timestamp() * 1_000))
    return about
