"""One flow per operation on one key: check, route, execute, decode.

A flow checks its arguments before it yields anything, so a bad call never touches the network.
`deadline` is on the core's clock. Everything that both clients promise is decided here, once.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import msgspec

from cluster.limits import ATOMIC_WRITES_MAX, CONTENT_TYPE_BYTES_MAX, TTL_MS_MAX
from cluster.operations import (
    ABSENT,
    Absent,
    Atomic,
    Conflict,
    Delete,
    Deleted,
    Done,
    Found,
    Get,
    Incr,
    Number,
    Operation,
    Put,
    Touch,
)
from cluster.slots import slot_of
from kvstore.client.operation_id import operation_id_from_text
from kvstore.client.outcomes import Entry, Key, entry_of, refuse, shown, value_of
from kvstore.client.runs import REQUEST_BYTES_SOFT_MAX, operation_bytes
from kvstore.errors import BadRequest, ValueTooLarge, VersionConflict
from kvstore.values import check_key, pack_value, version_from_text, version_to_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from kvstore.client.core import ClientCore, Outcome
    from kvstore.client.exchange import Flow

CONSISTENCIES: Final = ("linearizable", "eventual")


def put(
    core: ClientCore,
    deadline: float,
    key: Key,
    value: Any,
    *,
    ttl: float | None = None,
    if_version: str | None = None,
    if_absent: bool = False,
    content_type: str = "",
    operation_id: str | None = None,
) -> Flow[str]:
    """Store a value; returns its version."""
    if if_absent and if_version is not None:
        raise BadRequest("if_absent and if_version exclude each other: pass one of them")
    expect = ABSENT if if_absent else _expected(if_version)
    raw_key, packed = check_key(key), pack_value(value)
    check_content_type(content_type, value)
    op = Put(raw_key, msgspec.Raw(packed), content_type, ttl_ms_of(ttl), expect)
    outcome = yield from _one(core, deadline, op, raw_key, operation_id)
    if type(outcome) is Done:
        return version_to_text(outcome.version)
    refuse(outcome, f"put of {shown(key)}")


def get(core: ClientCore, deadline: float, key: Key, default: Any, consistency: str) -> Flow[Any]:
    """A key's value, or the default."""
    outcome = yield from _read(core, deadline, key, consistency)
    return default if outcome is None else value_of(outcome, key)


def get_entry(core: ClientCore, deadline: float, key: Key, consistency: str) -> Flow[Entry | None]:
    """A key's value with its version, or None."""
    outcome = yield from _read(core, deadline, key, consistency)
    return None if outcome is None else entry_of(outcome, key)


def delete(
    core: ClientCore,
    deadline: float,
    key: Key,
    *,
    if_version: str | None = None,
    operation_id: str | None = None,
) -> Flow[bool]:
    """Remove a key; True if it was there."""
    raw_key = check_key(key)
    op = Delete(raw_key, _expected(if_version))
    outcome = yield from _one(core, deadline, op, raw_key, operation_id)
    if type(outcome) is Deleted:
        return outcome.existed
    refuse(outcome, f"delete of {shown(key)}")


def incr(
    core: ClientCore, deadline: float, key: Key, by: int, *, operation_id: str | None = None
) -> Flow[int]:
    """Add to an integer; returns the new number."""
    raw_key = check_key(key)
    if type(by) is not int or not -(2**63) <= by < 2**63:
        raise BadRequest(f"by is a 64-bit signed int, not {by!r:.60}")
    outcome = yield from _one(core, deadline, Incr(raw_key, by), raw_key, operation_id)
    if type(outcome) is Number:
        return outcome.value
    refuse(outcome, f"incr of {shown(key)}")


def touch(
    core: ClientCore,
    deadline: float,
    key: Key,
    *,
    ttl: float | None = None,
    operation_id: str | None = None,
) -> Flow[bool]:
    """Give a key a new time to live; False if there is no such key."""
    raw_key = check_key(key)
    op = Touch(raw_key, ttl_ms_of(ttl))
    outcome = yield from _one(core, deadline, op, raw_key, operation_id)
    match outcome:
        case Done():
            return True
        case Conflict(b""):
            return False
        case _:
            refuse(outcome, f"touch of {shown(key)}")


def batch(
    core: ClientCore,
    deadline: float,
    puts: Mapping[Any, Any],
    *,
    deletes: Iterable[Key] = (),
    ttl: float | None = None,
    operation_id: str | None = None,
) -> Flow[str]:
    """Writes to keys of one slot, all or nothing; returns their version."""
    ttl_ms = ttl_ms_of(ttl)
    writes: list[Put | Delete] = [
        Put(check_key(key), msgspec.Raw(pack_value(value)), "", ttl_ms)
        for key, value in puts.items()
    ]
    writes += [Delete(check_key(key)) for key in deletes]
    if not 0 < len(writes) <= ATOMIC_WRITES_MAX:
        raise BadRequest(f"a batch has 1 to {ATOMIC_WRITES_MAX:,} writes, not {len(writes):,}")
    if (size := sum(map(operation_bytes, writes))) > REQUEST_BYTES_SOFT_MAX:
        raise ValueTooLarge(
            f"the batch has {size:,} bytes, the limit is {REQUEST_BYTES_SOFT_MAX:,}: split it"
        )
    if len({write.key for write in writes}) < len(writes):
        raise BadRequest("a batch writes each key once: one of these is named twice")
    yield from core.ready(deadline)
    first, count = writes[0].key, core.table.slot_count
    for write in writes:
        if slot_of(write.key, count) != slot_of(first, count):
            raise BadRequest(
                f"keys {shown(first)} and {shown(write.key)} are not in one slot, so they cannot "
                "be written together: give them one tag, like {cart:7}total and {cart:7}items"
            )
    outcome = yield from _one(core, deadline, Atomic(writes), first, operation_id)
    if type(outcome) is Done:
        return version_to_text(outcome.version)
    refuse(outcome, f"batch of {len(writes)} writes beginning with {shown(first)}")


def update(core: ClientCore, deadline: float, key: Key, change: Callable[[Any], Any]) -> Flow[Any]:
    """Replace a value by `change` of it (None if absent), again if another writer was faster."""
    while True:
        entry = yield from get_entry(core, deadline, key, CONSISTENCIES[0])
        value = change(None if entry is None else entry.value)
        try:
            if entry is None:
                yield from put(core, deadline, key, value, if_absent=True)
            else:
                yield from put(core, deadline, key, value, if_version=entry.version)
        except VersionConflict:
            if core.now() < deadline:
                continue
            raise
        return value


def ttl_ms_of(ttl: float | None) -> int:
    """Seconds to the milliseconds of an operation; None is for ever.

    Raises:
        BadRequest: not above 0, or over a century.
    """
    if ttl is None:
        return 0
    if isinstance(ttl, bool) or not isinstance(ttl, int | float) or not 0 < ttl < math.inf:
        raise BadRequest(f"ttl is a number of seconds above 0 or None, not {ttl!r:.60}")
    ttl_ms = math.ceil(ttl * 1_000)
    if ttl_ms > TTL_MS_MAX:
        raise BadRequest(f"a ttl of {ttl:g} s is over a century: leave it out to keep the key")
    return ttl_ms


def is_eventual(consistency: str) -> bool:
    """Whether any replica's word is enough.

    Raises:
        BadRequest: neither of the two words.
    """
    if consistency not in CONSISTENCIES:
        raise BadRequest(f"consistency is one of {CONSISTENCIES}, not {consistency!r:.60}")
    return consistency == "eventual"


def _read(core: ClientCore, deadline: float, key: Key, consistency: str) -> Flow[bytes | None]:
    raw_key = check_key(key)
    op = Get(raw_key, is_eventual(consistency))
    outcome = yield from _one(core, deadline, op, raw_key, None)
    if type(outcome) is Found:
        return outcome.record
    if type(outcome) is Absent:
        return None
    refuse(outcome, f"get of {shown(key)}", reads=True)


def _one(
    core: ClientCore, deadline: float, op: Operation, key: bytes, operation_id: str | None
) -> Flow[Outcome]:
    identity = None if operation_id is None else operation_id_from_text(operation_id)
    if not core.table.known:
        yield from core.ready(deadline)
    slot = slot_of(key, core.table.slot_count)
    outcomes = yield from core.execute([op], [slot], deadline, identity=identity)
    return outcomes[0]


def _expected(if_version: str | None) -> bytes | None:
    return None if if_version is None else version_from_text(if_version)


def check_content_type(content_type: str, value: Any) -> None:
    """Refuse a content type that cannot be kept or that does not go with the value.

    Raises:
        BadRequest: the value is no bytes, or the type no short ASCII.
    """
    if not content_type:
        return
    if not isinstance(value, bytes | bytearray | memoryview):
        raise BadRequest(f"a content type goes with bytes, not with a {type(value).__name__}")
    if not content_type.isascii() or len(content_type) > CONTENT_TYPE_BYTES_MAX:
        raise BadRequest(
            f"the content type {content_type!r:.60} is no ASCII of up to "
            f"{CONTENT_TYPE_BYTES_MAX} characters"
        )
