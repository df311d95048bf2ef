"""What an operation does to a state: the deterministic heart of the state machine.

`evaluate` reads through the store (the newest state, in-flight writes included) and returns the
changes and the answer, or no changes where a condition failed. It runs only at the primary:
replicas take the resulting records as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, assert_never

import msgpack

from cluster.limits import ATOMIC_WRITES_MAX
from cluster.operations import (
    ABSENT,
    PRESENT,
    Atomic,
    Code,
    Conflict,
    Delete,
    Deleted,
    Done,
    Failed,
    Incr,
    Number,
    Put,
    Result,
    Touch,
    Write,
)
from cluster.records import (
    RecordError,
    decode_record,
    encode_record,
    is_expired,
    record_version,
)
from cluster.store import Damage, check_intact

if TYPE_CHECKING:
    from cluster.messages import Change
    from cluster.slot import Context

Evaluated = tuple["list[Change] | None", Result]
"""Changes (None: nothing is written) and the answer."""

INTEGER_MIN, INTEGER_MAX = -(2**63), 2**63 - 1


def evaluate(op: Write, version: bytes, prefix: bytes, ctx: Context) -> Evaluated:
    """Judge and carry out ``op`` as the operation named by ``version``.

    Args:
        op: Already validated at the door.
        version: 20 bytes, the position that this operation will have.
        prefix: Of the slot's generation.
        ctx: Its store is read, its time decides on expiry; nothing is written.
    """
    match op:
        case Put():
            return _put(op, version, prefix, ctx)
        case Delete():
            return _delete(op, version, prefix, ctx)
        case Incr():
            return _incr(op, version, prefix, ctx)
        case Touch():
            return _touch(op, version, prefix, ctx)
        case Atomic():
            return _atomic(op, version, prefix, ctx)
        case _:
            assert_never(op)


def _put(op: Put, version: bytes, prefix: bytes, ctx: Context) -> Evaluated:
    if op.expect is not None:
        old = live_record(prefix, op.key, ctx)
        if not meets(op.expect, old):
            return None, conflict(old)
    expires = ctx.unix_ms + op.ttl_ms if op.ttl_ms else 0
    record = encode_record(version, memoryview(op.value), op.content_type, expires)
    return [(op.key, record)], Done(version)


def _delete(op: Delete, version: bytes, prefix: bytes, ctx: Context) -> Evaluated:
    try:
        old = live_record(prefix, op.key, ctx)
    except Damage:
        if op.expect is not None:
            raise
        return [(op.key, None)], Deleted(version, existed=True)  # what is damaged can be removed
    if op.expect is not None and not meets(op.expect, old):
        return None, conflict(old)
    return [(op.key, None)], Deleted(version, old is not None)


def _incr(op: Incr, version: bytes, prefix: bytes, ctx: Context) -> Evaluated:
    old = live_record(prefix, op.key, ctx)
    number: Any = 0
    expires = 0
    if old is not None:
        try:
            record = decode_record(old)
            number, expires = msgpack.unpackb(record.value), record.expires_at_ms
        except (RecordError, ValueError) as error:
            return None, Failed(Code.WRONG_TYPE, f"the stored value cannot be read: {error}")
    if type(number) is not int:
        kind = type(number).__name__
        return None, Failed(Code.WRONG_TYPE, f"the stored value is of type {kind}, not an integer")
    number += op.by
    if not INTEGER_MIN <= number <= INTEGER_MAX:
        return None, Failed(
            Code.WRONG_TYPE, f"the sum {number} leaves the range of 64-bit integers"
        )
    changed = encode_record(version, msgpack.packb(number), "", expires)
    return [(op.key, changed)], Number(version, number)


def _touch(op: Touch, version: bytes, prefix: bytes, ctx: Context) -> Evaluated:
    old = live_record(prefix, op.key, ctx)
    if old is None:
        return None, conflict(None)
    try:
        record = decode_record(old)
    except RecordError as error:
        return None, Failed(Code.WRONG_TYPE, f"the stored record cannot be read: {error}")
    expires = ctx.unix_ms + op.ttl_ms if op.ttl_ms else 0
    changed = encode_record(version, record.value, record.content_type, expires)
    return [(op.key, changed)], Done(version)


def _atomic(op: Atomic, version: bytes, prefix: bytes, ctx: Context) -> Evaluated:
    """All conditions are judged against the state before the batch; a key may occur once."""
    assert len(op.writes) <= ATOMIC_WRITES_MAX
    changes: list[Change] = []
    for write in op.writes:
        changed, result = evaluate(write, version, prefix, ctx)
        if changed is None:
            return None, result
        changes += changed
    return changes, Done(version)


def live_record(prefix: bytes, key: bytes, ctx: Context) -> bytes | None:
    """The record now, None if there is none or its time is over by this primary's clock (R7).

    Raises:
        Damage: the record fails its checksum (R18).
    """
    record = ctx.store.read(prefix + key)
    if record is None:
        return None
    check_intact(key, record)
    return None if is_expired(record, ctx.unix_ms) else record


def expired_keys(op: Write, prefix: bytes, ctx: Context) -> list[bytes]:
    """Those of an operation's keys whose record is there, and over by this primary's clock (R7)."""
    keys = [write.key for write in op.writes] if isinstance(op, Atomic) else [op.key]
    return [
        key
        for key in keys
        if ctx.store.read(prefix + key) is not None and live_record(prefix, key, ctx) is None
    ]


def meets(expect: bytes, old: bytes | None) -> bool:
    """Whether the record that stands meets a condition (see `cluster.operations`)."""
    if expect == ABSENT:
        return old is None
    if expect == PRESENT:
        return old is not None
    return old is not None and record_version(old) == expect


def conflict(old: bytes | None) -> Conflict:
    """The answer to a failed condition."""
    return Conflict(b"" if old is None else record_version(old))
