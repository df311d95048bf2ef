"""`POST /v1/batch`: many operations in one request, one result for each in the same order.

Independent by default: each operation succeeds or fails alone, with the status that the single
request would have. With ``"atomic": true`` the writes must lie in one slot (share a ``{tag}``) and
are one operation: all or nothing, one version.

The whole batch is checked before any of it is carried out, so a batch that is refused (4xx) has
changed nothing. Bodies may be JSON or MessagePack; in JSON, keys and values that JSON cannot hold
are written as `json_values` says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
from aiohttp import web

from cluster.limits import ATOMIC_WRITES_MAX, TTL_MS_MAX
from cluster.operations import (
    ABSENT,
    Absent,
    Atomic,
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
    Page,
    Put,
    Result,
    Stale,
    Touch,
)
from cluster.slots import slot_of
from kvstore.errors import BadRequest
from kvstore.http.door import Call, Route, read_body, single_header
from kvstore.http.forms import dump, load, negotiate, structured_type
from kvstore.http.keys import open_record
from kvstore.http.listing import described
from kvstore.http.problems import ProblemError, conflict, failure
from kvstore.values import check_key, pack_value, version_from_text, version_to_text

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["OPERATIONS_MAX", "ROUTES"]

OPERATIONS_MAX: Final = 1_000
"""Operations in one batch over HTTP; larger imports are several requests."""


async def batch(call: Call) -> web.Response:
    """Carry out a batch."""
    form = negotiate(call.request.headers)
    id_, timeout = call.idempotency(), call.timeout_seconds
    sent = structured_type(single_header(call.request, "Content-Type") or "")
    if sent is None:
        raise ProblemError(
            "unsupported-media-type",
            "A batch is sent as application/json or application/msgpack.",
            headers={"Accept-Post": "application/json, application/msgpack"},
        )
    body = await read_body(call, call.door.settings.batch_bytes_max)
    try:
        ops, atomic = _parse(load(sent, body))
    except BadRequest as error:
        raise ProblemError("bad-value", f"{error}.") from None
    if atomic:
        results = await _all_or_nothing(call, ops, timeout)
    else:
        answer = await call.door.caller.call(ops, timeout, id_)
        budget = call.door.settings.answer_bytes_max
        results = []
        for index, result in enumerate(answer.results):
            budget -= len(result.record) if isinstance(result, Found) else 0
            operation_id = None if isinstance(ops[index], Get) else answer.ids[index].to_text()
            results.append(_shown(ops[index], result, operation_id, fits=budget >= 0))
    return web.Response(
        body=dump(form, {"results": results}), headers={"Content-Type": form, "Vary": "Accept"}
    )


ROUTES: Final = (Route("POST", "/v1/batch", "batch", batch, ("timeout",)),)


async def _all_or_nothing(call: Call, ops: list[Operation], timeout: float) -> list[dict[str, Any]]:
    writes = [op for op in ops if isinstance(op, Put | Delete)]
    if len(writes) < len(ops):
        raise _bad(_first_other(ops), "an atomic batch holds puts and deletes only")
    if not writes:
        return []
    if len(writes) > ATOMIC_WRITES_MAX:
        raise ProblemError(
            "bad-operation", f"An atomic batch has up to {ATOMIC_WRITES_MAX} writes."
        )
    count = call.door.caller.slot_count
    slots = [slot_of(write.key, count) for write in writes] if count else []
    for index, slot in enumerate(slots):
        if slot != slots[0]:
            raise _bad(
                index,
                f"its key lies in slot {slot}, that of operation 0 in slot {slots[0]}; "
                "an atomic batch needs one slot: give the keys a common {tag}",
            )
    result, operation_id = await call.door.caller.call_one(
        Atomic(writes), timeout, call.idempotency()
    )
    if isinstance(result, Conflict):
        raise conflict(result, "A key of the batch")
    if not isinstance(result, Done):
        raise failure(result, operation_id)
    version = version_to_text(result.version)
    return [{"status": 200, "version": version} for _ in writes]


def _first_other(ops: list[Operation]) -> int:
    return next(index for index, op in enumerate(ops) if not isinstance(op, Put | Delete))


def _parse(document: Any) -> tuple[list[Operation], bool]:
    """The operations of a batch and whether they are atomic.

    Raises:
        ProblemError: it is no batch; the message names the operation.
    """
    atomic = False
    if isinstance(document, dict):
        unknown = sorted(str(name) for name in document if name not in ("operations", "atomic"))
        if unknown:
            raise ProblemError("bad-operation", f"A batch has no member {unknown[0]!r:.80}.")
        atomic = document.get("atomic", False)
        document = document.get("operations")
    if not isinstance(document, list) or not isinstance(atomic, bool):
        raise ProblemError(
            "bad-operation",
            'A batch is a list of operations, or {"operations": [...], "atomic": true or false}.',
        )
    if len(document) > OPERATIONS_MAX:
        raise ProblemError(
            "bad-operation", f"{len(document):,} operations; the limit is {OPERATIONS_MAX:,}."
        )
    return [_operation(index, item) for index, item in enumerate(document)], atomic


def _operation(index: int, item: Any) -> Operation:
    if not isinstance(item, dict):
        raise _bad(index, "it must be an object")
    name = item.get("op")
    known = _KNOWN.get(name) if isinstance(name, str) else None
    if known is None:
        raise _bad(index, f"'op' is {name!r:.40}; it must be one of {', '.join(_KNOWN)}")
    members, make = known
    for member in item:
        if member not in ("op", "key", *members):
            raise _bad(index, f"{name} has no member {member!r:.40}")
    try:
        return make(check_key(item.get("key", b"")), item)
    except BadRequest as error:
        raise _bad(index, str(error)) from None


def _put(key: bytes, item: dict[str, Any]) -> Put:
    if "value" not in item:
        raise BadRequest("'value' is missing")
    absent = item.get("if_absent", False)
    if not isinstance(absent, bool):
        raise BadRequest(f"'if_absent' is {absent!r:.40}; it must be true or false")
    expect = _expected(item)
    if absent and expect is not None:
        raise BadRequest("'if_absent' and 'if_version' exclude each other")
    value = msgspec.Raw(pack_value(item["value"]))
    return Put(key, value, "", _ttl_ms(item), ABSENT if absent else expect)


def _ttl_ms(item: dict[str, Any]) -> int:
    ttl = item.get("ttl", 0)
    if (
        isinstance(ttl, bool)
        or not isinstance(ttl, int | float)
        or not 0 <= ttl * 1000 <= TTL_MS_MAX
    ):
        raise BadRequest(f"'ttl' is {ttl!r:.40}; it must be a number of seconds, 0 for ever")
    return max(round(ttl * 1000), 1) if ttl else 0


def _touch(key: bytes, item: dict[str, Any]) -> Touch:
    return Touch(key, _ttl_ms(item))


def _delete(key: bytes, item: dict[str, Any]) -> Delete:
    return Delete(key, _expected(item))


def _incr(key: bytes, item: dict[str, Any]) -> Incr:
    by = item.get("by", 1)
    if isinstance(by, bool) or not isinstance(by, int) or not -(2**63) <= by < 2**63:
        raise BadRequest(f"'by' is {by!r:.40}; it must be a 64-bit whole number")
    return Incr(key, by)


def _get(key: bytes, item: dict[str, Any]) -> Get:
    consistency = item.get("consistency", "linearizable")
    if consistency not in ("linearizable", "eventual"):
        raise BadRequest(f"'consistency' is {consistency!r:.40}; linearizable or eventual")
    return Get(key, consistency == "eventual")


_KNOWN: Final[dict[str, tuple[tuple[str, ...], Callable[[bytes, dict[str, Any]], Operation]]]] = {
    "get": (("consistency",), _get),
    "put": (("value", "ttl", "if_version", "if_absent"), _put),
    "delete": (("if_version",), _delete),
    "incr": (("by",), _incr),
    "touch": (("ttl",), _touch),
}


def _expected(item: dict[str, Any]) -> bytes | None:
    version = item.get("if_version")
    return None if version is None else version_from_text(version)


def _shown(
    op: Operation, result: Result, operation_id: str | None, *, fits: bool
) -> dict[str, Any]:
    """One result; problems have the members of a problem document."""
    match result:
        case Done():
            return {"status": 200, "version": version_to_text(result.version)}
        case Deleted():
            version = version_to_text(result.version)
            return {"status": 204 if result.existed else 404, "version": version}
        case Number():
            version = version_to_text(result.version)
            return {"status": 200, "value": result.value, "version": version}
        case Found():
            if not fits:
                detail = "The answer is full: ask for this key in a batch of its own."
                return ProblemError("too-large", detail).document()
            try:
                return {"status": 200} | described(open_record(result.record))
            except ProblemError as problem:
                return problem.document()
        case Absent():
            return {"status": 404}
        case Conflict(b"") if isinstance(op, Touch):
            return {"status": 404}
        case Conflict():
            return conflict(result, "The key").document()
        case Failed():
            return failure(result, operation_id).document()
        case Page() | Stale():
            raise AssertionError(f"{op} was answered by {result}")


def _bad(index: int, what: str) -> ProblemError:
    return ProblemError("bad-operation", f"Operation {index}: {what}.", members={"index": index})
