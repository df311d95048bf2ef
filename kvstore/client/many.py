"""Many keys at once: one frame a node, all nodes together, nothing made per key but its operation.

The keys are independent. Those that fail are gathered in one `PartialFailure`, each with its own
error; all others are done. These loops run once per key of every batch and are written for speed;
their figures are in ``docs/benchmarks.md``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import Raw

from cluster.operations import Absent, Delete, Deleted, Done, Found, Get, Operation, Put
from cluster.slots import slot_of
from kvstore.client.flows import check_content_type, is_eventual, ttl_ms_of
from kvstore.client.outcomes import Key, error_of, shown, value_of
from kvstore.errors import BadRequest, KVError, PartialFailure, ValueTooLarge
from kvstore.values import check_key, pack_value

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from kvstore.client.core import ClientCore, Outcome
    from kvstore.client.exchange import Flow


def put_many(
    core: ClientCore,
    deadline: float,
    items: Mapping[Any, Any],
    *,
    ttl: float | None = None,
    content_type: str = "",
) -> Flow[None]:
    """Store several values; returns when every one is durable."""
    ttl_ms = ttl_ms_of(ttl)
    ops: list[Operation] = []
    raw_keys: list[bytes] = []
    size = 0
    for key, value in items.items():
        raw_key = check_key(key)
        try:
            packed = pack_value(value)
            if content_type:
                check_content_type(content_type, value)
        except ValueTooLarge as error:
            raise ValueTooLarge(f"key {shown(key)}: {error}; nothing was written") from None
        except BadRequest as error:
            raise BadRequest(f"key {shown(key)}: {error}; nothing was written") from None
        size += len(raw_key) + len(packed)
        raw_keys.append(raw_key)
        ops.append(Put(raw_key, Raw(packed), content_type, ttl_ms))
    outcomes = yield from _execute(core, deadline, ops, raw_keys, size)
    if set(map(type, outcomes)) - {Done}:
        errors: dict[Key, KVError] = {
            key: error_of(outcome, f"put of {shown(key)}")
            for key, outcome in zip(items, outcomes, strict=True)
            if type(outcome) is not Done
        }
        raise _partial("put", len(ops), errors)


def get_many(
    core: ClientCore, deadline: float, keys: Sequence[Key], consistency: str
) -> Flow[dict[Any, Any]]:
    """The values of those keys that exist, in the order asked for."""
    eventual = is_eventual(consistency)
    raw_keys = [check_key(key) for key in keys]
    ops: list[Operation] = [Get(raw_key, eventual) for raw_key in raw_keys]
    outcomes = yield from _execute(core, deadline, ops, raw_keys, sum(map(len, raw_keys)))
    values: dict[Key, Any] = {}
    errors: dict[Key, KVError] = {}
    for key, outcome in zip(keys, outcomes, strict=True):
        if type(outcome) is Found:
            try:
                values[key] = value_of(outcome.record, key)
            except KVError as error:
                errors[key] = error
        elif type(outcome) is not Absent:
            errors[key] = error_of(outcome, f"get of {shown(key)}")
    if errors:
        raise _partial("get", len(ops), errors)
    return values


def delete_many(core: ClientCore, deadline: float, keys: Sequence[Key]) -> Flow[int]:
    """Remove several keys; returns how many were there."""
    raw_keys = [check_key(key) for key in keys]
    ops: list[Operation] = [Delete(raw_key) for raw_key in raw_keys]
    outcomes = yield from _execute(core, deadline, ops, raw_keys, sum(map(len, raw_keys)))
    existed = 0
    errors: dict[Key, KVError] = {}
    for key, outcome in zip(keys, outcomes, strict=True):
        if type(outcome) is Deleted:
            existed += outcome.existed
        else:
            errors[key] = error_of(outcome, f"delete of {shown(key)}")
    if errors:
        raise _partial("delete", len(ops), errors)
    return existed


def checked_keys(keys: Iterable[Key]) -> list[Key]:
    """The keys as a list; one text is not a list of its letters.

    Raises:
        BadRequest: a single key was given.
    """
    if isinstance(keys, str | bytes):
        raise BadRequest(f"keys is a collection of keys, not one key: write [{shown(keys)}]")
    return list(keys)


def _execute(
    core: ClientCore, deadline: float, ops: list[Operation], raw_keys: list[bytes], size: int
) -> Flow[list[Outcome]]:
    if not ops:
        return []
    if not core.table.known:
        yield from core.ready(deadline)
    count = core.table.slot_count
    slots = [slot_of(raw_key, count) for raw_key in raw_keys]
    return (yield from core.execute(ops, slots, deadline, size_bytes=size))


def _partial(what: str, total: int, errors: dict[Key, KVError]) -> PartialFailure:
    key, first = next(iter(errors.items()))
    return PartialFailure(
        f"{what} failed for {len(errors):,} of {total:,} keys, the others are done; "
        f"`errors` has each, the first is {shown(key)}: {first}",
        errors,
    )
