"""One key as a resource: GET, HEAD, PUT and DELETE of `/v1/kv/{key}`, POST of `/incr`, `/touch`.

Conditions become part of the operation and are judged by the slot's primary in one step, never
here by a read before a write. `If-Match` with several tags is tried version by version: a version
that was replaced never comes back, so each tag costs at most one attempt.

An unconditional PUT asks in the same request what was there, only to tell 201 from 200; the write
does not depend on it. Only POST knows ``/incr`` and ``/touch``: for every other method they are the
end of a key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

import msgspec
from aiohttp import web

from cluster.limits import TTL_MS_MAX
from cluster.operations import (
    ABSENT,
    PRESENT,
    Absent,
    Conflict,
    Delete,
    Deleted,
    Done,
    Failed,
    Found,
    Get,
    Incr,
    Number,
    Operation,
    Put,
    Result,
    Touch,
)
from cluster.records import Record, RecordError, decode_record, record_version
from kvstore.client.operation_id import OperationId
from kvstore.client.outcomes import moment_of
from kvstore.errors import CorruptValue
from kvstore.http.conditions import EntityTags, etag_of, parse_range, parse_tags
from kvstore.http.door import Call, Route, check_key, read_body, single_header
from kvstore.http.forms import (
    JSON,
    MSGPACK,
    RAW,
    negotiate,
    raw_bytes,
    stored_form,
    structured_type,
)
from kvstore.http.problems import ProblemError, conflict, failure
from kvstore.json_values import dump_json
from kvstore.values import unpack_value

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ROUTES", "expiry_text", "open_record", "ttl_ms"]

Committed = TypeVar("Committed", Done, Deleted, Number)

_VALUE_HEADERS: Final = {
    "Accept-Ranges": "bytes",
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "sandbox",
    "X-Content-Type-Options": "nosniff",
}
"""A value is somebody's data on our origin: a browser must not run it, and must ask each time."""


async def get(call: Call) -> web.Response:
    """GET and HEAD of a key."""
    key = check_key(call.key)
    eventual = call.query.choice("consistency", "linearizable", ("linearizable", "eventual"))
    result, _ = await call.door.caller.call_one(
        Get(key, eventual == "eventual"), call.timeout_seconds
    )
    record = _found(result, key)
    raw = raw_bytes(record.value)
    headers = dict(_VALUE_HEADERS)
    form = None
    if raw is None:
        form = negotiate(call.request.headers)
        headers["Vary"] = "Accept"
    etag = headers["ETag"] = etag_of(record.version, as_msgpack=form == MSGPACK)
    if record.expires_at_ms:
        headers["X-KV-Expires-At"] = expiry_text(record.expires_at_ms)
    headers |= call.primary_headers()
    if _not_modified(call, record, etag):
        return web.Response(status=304, headers=headers)
    headers["Content-Type"] = form or record.content_type or RAW
    body = raw if raw is not None else _structured(record, form or JSON, key)
    wanted = single_header(call.request, "Range") if call.request.method == "GET" else None
    if wanted is not None and _range_holds(call, etag):
        part = parse_range(wanted, len(body))
        if part is not None:
            headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{len(body)}"
            return web.Response(status=206, body=body[part], headers=headers)
    return web.Response(body=body, headers=headers)


async def put(call: Call) -> web.Response:
    """PUT of a key: 201 made, 200 replaced."""
    key = check_key(call.key)
    ttl = ttl_ms(call)
    match = _tags(call, "If-Match")
    none_match = _tags(call, "If-None-Match")
    if none_match is not None and (match is not None or not none_match.anything):
        raise ProblemError(
            "condition-not-supported",
            "A PUT takes If-Match, or 'If-None-Match: *' for a key that must not exist; not both, "
            "and no ETag in If-None-Match. Nothing was done.",
        )
    id_, timeout = call.idempotency(), call.timeout_seconds
    content_type = single_header(call.request, "Content-Type") or ""
    structured_type(content_type)
    body = await read_body(call, call.door.settings.body_bytes_max)
    form = stored_form(content_type, body)

    def write(expect: bytes | None) -> Put:
        return Put(key, msgspec.Raw(form.packed), form.content_type, ttl, expect)

    if match is not None:
        result, operation = await _write_matching(call, write, match, timeout, id_)
        existed = True
    elif none_match is not None:
        result, operation = await call.door.caller.call_one(write(ABSENT), timeout, id_)
        existed = False
    else:
        answer = await call.door.caller.call([Get(key), write(None)], timeout, id_)
        before, result = answer.results
        operation = answer.ids[1].to_text()
        existed = not _made(before, result)
    done = _committed(result, Done, key, operation)
    headers = {"ETag": etag_of(done.version)} | call.primary_headers()
    return web.Response(status=200 if existed else 201, headers=headers)


async def delete(call: Call) -> web.Response:
    """DELETE of a key: 204, or 404 where there was none."""
    key = check_key(call.key)
    match = _tags(call, "If-Match")
    id_, timeout = call.idempotency(), call.timeout_seconds

    def remove(expect: bytes | None) -> Delete:
        return Delete(key, expect)

    if match is None:
        result, operation = await call.door.caller.call_one(remove(None), timeout, id_)
    else:
        result, operation = await _write_matching(call, remove, match, timeout, id_)
    if isinstance(result, Conflict) and not result.current:
        raise _absent(key)  # without the condition it would be 404 too (RFC 9110, 13.2.1)
    if not _committed(result, Deleted, key, operation).existed:
        raise _absent(key)
    return web.Response(status=204, headers=call.primary_headers())


async def incr(call: Call) -> web.Response:
    """POST of `/v1/kv/{key}/incr`: the new number as JSON."""
    key = check_key(call.key)
    by = call.query.integer("by", 1, least=-(2**63), most=2**63 - 1)
    result, operation = await call.door.caller.call_one(
        Incr(key, by), call.timeout_seconds, call.idempotency()
    )
    number = _committed(result, Number, key, operation)
    headers = {"ETag": etag_of(number.version), "Content-Type": JSON} | call.primary_headers()
    return web.Response(body=b"%d" % number.value, headers=headers)


async def touch(call: Call) -> web.Response:
    """POST of `/v1/kv/{key}/touch`: another time to live, for ever without `ttl`."""
    key = check_key(call.key)
    result, operation = await call.door.caller.call_one(
        Touch(key, ttl_ms(call)), call.timeout_seconds, call.idempotency()
    )
    if isinstance(result, Conflict) and not result.current:
        raise _absent(key)
    done = _committed(result, Done, key, operation)
    headers = {"ETag": etag_of(done.version)} | call.primary_headers()
    return web.Response(status=204, headers=headers)


ROUTES: Final = (
    Route(
        "GET", "", "get", get, ("consistency", "timeout"), ("If-Match", "If-None-Match", "If-Range")
    ),
    Route("PUT", "", "put", put, ("timeout", "ttl"), ("If-Match", "If-None-Match")),
    Route("DELETE", "", "delete", delete, ("timeout",), ("If-Match",)),
    Route("POST", "/incr", "incr", incr, ("by", "timeout")),
    Route("POST", "/touch", "touch", touch, ("timeout", "ttl")),
)
"""Their paths are what follows the key."""


def open_record(record: bytes) -> Record:
    """A record taken apart.

    Raises:
        ProblemError: 500, it is damaged.
    """
    try:
        return decode_record(record)
    except RecordError as error:
        raise ProblemError("corrupt-value", f"{error}.") from error


def ttl_ms(call: Call) -> int:
    """`?ttl=` in milliseconds, 0 without one."""
    seconds = call.query.seconds("ttl", 0.0, most=TTL_MS_MAX / 1000)
    return max(round(seconds * 1000), 1) if seconds else 0


def expiry_text(expires_at_ms: int) -> str:
    """A record's expiry as RFC 3339."""
    moment = moment_of(expires_at_ms)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _found(result: Result, key: bytes) -> Record:
    if isinstance(result, Found):
        return open_record(result.record)
    if isinstance(result, Absent):
        raise _absent(key)
    assert isinstance(result, Failed), result
    raise failure(result, None)


def _structured(record: Record, form: str, key: bytes) -> bytes:
    if form == MSGPACK:
        return record.value
    try:
        return dump_json(unpack_value(record.value))
    except (CorruptValue, RecursionError) as error:
        raise ProblemError(
            "corrupt-value",
            f"{_shown(key)} is no JSON; 'Accept: {MSGPACK}' gives it as it is: {error}",
        ) from error


def _not_modified(call: Call, record: Record, etag: str) -> bool:
    match, none_match = _tags(call, "If-Match"), _tags(call, "If-None-Match")
    if match is not None and not match.matches(etag, weakly=False):
        raise conflict(Conflict(record.version), _shown(call.key))
    return none_match is not None and none_match.matches(etag, weakly=True)


def _range_holds(call: Call, etag: str) -> bool:
    """Whether `If-Range` lets the range stand (RFC 9110, 13.1.5)."""
    text = single_header(call.request, "If-Range")
    if text is None:
        return True
    if not text.lstrip().startswith(('"', 'W/"')):
        raise ProblemError(
            "condition-not-supported", "If-Range takes an ETag here; values have no date."
        )
    return parse_tags("If-Range", text).matches(etag, weakly=False)


def _tags(call: Call, name: str) -> EntityTags | None:
    values = call.request.headers.getall(name, None)
    return None if values is None else parse_tags(name, ",".join(values))


async def _write_matching(
    call: Call,
    write: Callable[[bytes | None], Operation],
    match: EntityTags,
    timeout: float,
    id_: OperationId | None,
) -> tuple[Result, str]:
    """A write under `If-Match`; each attempt is an operation of its own, with the next number."""
    caller = call.door.caller
    if match.anything:
        return await caller.call_one(write(PRESENT), timeout, id_)
    versions = match.versions()
    if not versions:
        result, operation = await caller.call_one(Get(call.key), timeout)
        if isinstance(result, Found):
            return Conflict(record_version(result.record)), operation
        return (Conflict(b"") if isinstance(result, Absent) else result), operation
    result, operation = await caller.call_one(write(versions[-1]), timeout, id_)
    for attempt in range(1, len(versions)):
        if not isinstance(result, Conflict) or result.current not in versions:
            break
        own = id_ and OperationId(id_.client, id_.number + attempt, id_.seen)
        result, operation = await caller.call_one(write(result.current), timeout, own)
    return result, operation


def _made(before: Result, after: Result) -> bool:
    """Whether the key was absent; a repetition that finds its own version counts as such."""
    if isinstance(before, Found) and isinstance(after, Done):
        return record_version(before.record) == after.version
    return isinstance(before, Absent)


def _committed(result: Result, kind: type[Committed], key: bytes, operation: str) -> Committed:
    if isinstance(result, kind):
        return result
    if isinstance(result, Conflict):
        raise conflict(result, _shown(key))
    raise failure(result, operation)


def _absent(key: bytes) -> ProblemError:
    return ProblemError("not-found", f"{_shown(key)} does not exist.")


def _shown(key: bytes) -> str:
    """A key in a message: short, printable."""
    text = key.decode(errors="backslashreplace")
    shown = text if len(text) <= 80 else f"{text[:77]}..."
    return f"The key {shown!r}"
