"""What the client port checks before an operation goes in: once, here, and nowhere behind.

Every refusal names what is wrong and the limit. A request with one bad operation still carries out
the others: they are independent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.limits import (
    ATOMIC_WRITES_MAX,
    CONTENT_TYPE_BYTES_MAX,
    FRAME_BYTES_MAX,
    KEY_BYTES_MAX,
    REQUEST_HOPS_MAX,
    SCAN_PAGE_KEYS_MAX,
    TOPOLOGY_BYTES_MAX,
    TTL_MS_MAX,
    VALUE_BYTES_MAX,
)
from cluster.operations import (
    Atomic,
    Code,
    Delete,
    Failed,
    Found,
    Get,
    Incr,
    Page,
    Put,
    Scan,
    Touch,
)
from cluster.records import BALLOT_BYTES, VERSION_BYTES
from cluster.slots import slot_of
from cluster.system_slot import TOPOLOGY_KEY
from kvstore.wire.protocol import Request, Response

if TYPE_CHECKING:
    from cluster.operations import Operation, Result

TIMEOUT_MS_MAX = 600_000
"""The longest that a caller may wait."""

_INT64 = 1 << 63

_NO_ROOM = Failed(Code.OVERLOADED, "the answer is full; ask again for the rest", 1)


def check_request(request: Request) -> str | None:
    """What is wrong with the request as a whole, or None."""
    count = len(request.ops)
    if request.seen and len(request.seen) != count:
        return f"{len(request.seen)} positions for {count} operations"
    if request.offsets and len(request.offsets) != count:
        return f"{len(request.offsets)} offsets for {count} operations"
    if not 0 < request.timeout_ms <= TIMEOUT_MS_MAX:
        return f"a timeout of {request.timeout_ms} ms; it must be 1 to {TIMEOUT_MS_MAX}"
    if request.client < 0 or not 0 <= request.hops <= REQUEST_HOPS_MAX:
        return f"client {request.client} after {request.hops} hops"
    span = max(request.offsets) if request.offsets else count
    least = min(request.offsets) if request.offsets else 0
    if least < 0 or not 0 <= request.number < _INT64 - span:
        return f"operations numbered from {request.number} over {span}: not within 63 bits"
    first_attempts = not request.retry and not request.hops
    if request.offsets and first_attempts and len(set(request.offsets)) < count:
        return "a number is given to two operations"
    for seen in request.seen:
        if not _is_position(seen):
            return "a position is malformed"
    return None


def _is_position(seen: bytes) -> bool:
    """Empty, or as `cluster.records.pack_version` makes it, with a sequence that has successors."""
    return not seen or (len(seen) == VERSION_BYTES and seen[BALLOT_BYTES] < 0x80)


def check_operation(op: Operation, slot_count: int) -> Failed | None:
    """What is wrong with one operation, or None."""
    if type(op) is Put:
        fault = _check_put(op)
    elif isinstance(op, Scan):
        fault = _check_scan(op, slot_count)
    elif isinstance(op, Atomic):
        return _check_atomic(op, slot_count)
    elif isinstance(op, Get | Delete | Incr | Touch):
        fault = _check_key(op.key)
        if fault is None and isinstance(op, Incr) and not -_INT64 <= op.by < _INT64:
            fault = f"an increment by {op.by} is outside 64 bits"
        if fault is None and isinstance(op, Touch) and not 0 <= op.ttl_ms <= TTL_MS_MAX:
            fault = f"a time to live of {op.ttl_ms} ms; it must be 0 to {TTL_MS_MAX}"
        if fault is None and isinstance(op, Delete):
            fault = _check_expect(op.expect)
    else:
        fault = f"{type(op).__name__} is not an operation"
    if fault is None:
        return None
    if isinstance(fault, Failed):
        return fault
    return Failed(Code.BAD_REQUEST, fault)


def check_system_operation(op: Operation) -> Failed | None:
    """What is wrong with an operation on the system slot, or None: it holds one key (rule 17)."""
    fault = f"{type(op).__name__} is not for the system slot"
    if isinstance(op, Get | Put) and op.key == TOPOLOGY_KEY:
        fault = ""
        if isinstance(op, Put):
            size = memoryview(op.value).nbytes
            if op.expect is None or len(op.expect) != VERSION_BYTES:
                fault = "a topology replaces the version that it was made from"
            elif not 0 < size <= TOPOLOGY_BYTES_MAX or op.ttl_ms or op.content_type:
                fault = f"a topology of {size} bytes; the limit is {TOPOLOGY_BYTES_MAX}"
    return Failed(Code.BAD_REQUEST, fault) if fault else None


def _check_key(key: bytes) -> str | None:
    if 0 < len(key) <= KEY_BYTES_MAX:
        return None
    return f"a key of {len(key)} bytes; it must have 1 to {KEY_BYTES_MAX}"


def _check_expect(expect: bytes | None) -> str | None:
    if expect is None or len(expect) in (0, VERSION_BYTES) or expect == b"*":
        return None
    return "the version of the condition is malformed"


def _check_put(op: Put) -> str | Failed | None:
    if not 0 < len(op.key) <= KEY_BYTES_MAX:
        return _check_key(op.key)
    size = memoryview(op.value).nbytes
    if not 0 < size <= VALUE_BYTES_MAX:
        detail = f"the value of {op.key[:64]!r} has {size} bytes; the limit is {VALUE_BYTES_MAX}"
        return Failed(Code.TOO_LARGE, detail)
    if op.ttl_ms and not 0 <= op.ttl_ms <= TTL_MS_MAX:
        return f"a time to live of {op.ttl_ms} ms; it must be 0 to {TTL_MS_MAX}"
    if op.content_type and len(op.content_type.encode()) > CONTENT_TYPE_BYTES_MAX:
        return f"a content type of over {CONTENT_TYPE_BYTES_MAX} bytes"
    return _check_expect(op.expect) if op.expect else None


def _check_scan(op: Scan, slot_count: int) -> str | None:
    if not 0 <= op.slot < slot_count:
        return f"slot {op.slot}; this cluster has 0 to {slot_count - 1}"
    if not 0 < op.limit <= SCAN_PAGE_KEYS_MAX:
        return f"a page of {op.limit} keys; it must be 1 to {SCAN_PAGE_KEYS_MAX}"
    if max(len(op.prefix), len(op.after)) > KEY_BYTES_MAX:
        return f"a prefix or cursor of over {KEY_BYTES_MAX} bytes"
    return None


def _check_atomic(op: Atomic, slot_count: int) -> Failed | None:
    if not 0 < len(op.writes) <= ATOMIC_WRITES_MAX:
        detail = f"a batch of {len(op.writes)} writes; it must have 1 to {ATOMIC_WRITES_MAX}"
        return Failed(Code.BAD_REQUEST, detail)
    for write in op.writes:
        fault = check_operation(write, slot_count)
        if fault is not None:
            return fault
    if len({write.key for write in op.writes}) != len(op.writes):
        return Failed(Code.BAD_REQUEST, "a key occurs twice in an atomic batch")
    if len({slot_of(write.key, slot_count) for write in op.writes}) != 1:
        return Failed(
            Code.BAD_REQUEST,
            "the keys of an atomic batch must share a slot: give them one {tag}",
        )
    return None


def without(request: Request, faults: dict[int, Failed]) -> Request:
    """The request with only its good operations, each under its own number."""
    kept = [index for index in range(len(request.ops)) if index not in faults]
    return Request(
        request.id,
        request.client,
        request.number,
        request.retry,
        request.timeout_ms,
        request.hops,
        [request.ops[i] for i in kept],
        [request.seen[i] for i in kept] if request.seen else [],
        [request.offsets[i] if request.offsets else i for i in kept],
        request.system,
    )


def fitting(response: Response) -> Response:
    """The response with as much of what was read as fits; the rest is to be asked for again."""
    left = FRAME_BYTES_MAX // 2  # a write's result is small, however many there are
    results: list[Result] = []
    for result in response.results:
        match result:
            case Found(record=record):
                left -= len(record)
            case Page(keys=keys, records=records):
                left -= sum(map(len, keys)) + sum(map(len, records))
            case _:
                pass
        results.append(result if left >= 0 or not isinstance(result, Found | Page) else _NO_ROOM)
    return Response(response.id, results, response.leads)
