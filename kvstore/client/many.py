"""Many keys at once: one frame a node, all nodes together, nothing made per key but its operation.

The keys are independent. Those that fail are gathered in one `PartialFailure`, each with its own
error; all others are done. These loops run once per key of every batch and are written for speed;
their figures are in ``docs/benchmarks.md``.

Puts that meet in a slot travel as one operation: one sequence, one key-log entry, one answer for
all of them. That a slot takes them all or none is more than was promised, and with some ten
thousand keys in a call it is a third of the work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from msgspec import Raw

from cluster.limits import ATOMIC_WRITES_MAX
from cluster.operations import Absent, Atomic, Delete, Deleted, Done, Found, Get, Operation, Put
from cluster.slots import slot_of
from kvstore.client.core import NOT_TRIED
from kvstore.client.flows import check_content_type, is_eventual, ttl_ms_of
from kvstore.client.outcomes import Key, error_of, shown, value_of
from kvstore.errors import BadRequest, KVError, PartialFailure, ValueTooLarge
from kvstore.values import check_key, pack_value

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from kvstore.client.core import ClientCore, Outcome
    from kvstore.client.exchange import Flow

PIECE_KEYS_MAX: Final = 2_000
"""Keys that are put at once: some ten milliseconds of work for each node."""

GROUP_BYTES_MAX: Final = 64 << 10
"""Of the puts that travel as one: enough to share what an operation costs, whatever their size."""


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
    puts: list[Put] = []
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
        puts.append(Put(raw_key, Raw(packed), content_type, ttl_ms))
    if not puts:
        return
    slots = yield from _slots(core, deadline, [put.key for put in puts])
    outcomes = yield from _put_all(core, deadline, puts, slots)
    if set(map(type, outcomes)) - {Done}:
        errors: dict[Key, KVError] = {
            key: error_of(outcome, f"put of {shown(key)}")
            for key, outcome in zip(items, outcomes, strict=True)
            if type(outcome) is not Done
        }
        raise _partial("put", len(puts), errors)


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
            errors[key] = error_of(outcome, f"get of {shown(key)}", reads=True)
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
    slots = yield from _slots(core, deadline, raw_keys)
    return (yield from core.execute(ops, slots, deadline, size_bytes=size))


def _slots(core: ClientCore, deadline: float, raw_keys: list[bytes]) -> Flow[list[int]]:
    if not core.table.known:
        yield from core.ready(deadline)
    count = core.table.slot_count
    return [slot_of(raw_key, count) for raw_key in raw_keys]


def _put_all(
    core: ClientCore, deadline: float, puts: list[Put], slots: list[int]
) -> Flow[list[Outcome]]:
    """Store them in pieces that hold no node up for long, those of one slot together."""
    if len(puts) <= PIECE_KEYS_MAX and len(set(slots)) == len(slots):
        return (yield from core.execute([*puts], slots, deadline, size_bytes=_bytes_of(puts)))
    outcomes: list[Outcome] = [NOT_TRIED] * len(puts)
    order = sorted(range(len(puts)), key=slots.__getitem__)  # stable: of one key the last stands
    for begin in range(0, len(order), PIECE_KEYS_MAX):
        piece = order[begin : begin + PIECE_KEYS_MAX]
        groups = list(_groups(puts, slots, piece))
        ops = [_as_one([puts[index] for index in group]) for group in groups]
        size = _bytes_of([puts[index] for index in piece])
        op_slots = [slots[group[0]] for group in groups]
        results = yield from core.execute(ops, op_slots, deadline, size_bytes=size)
        for group, result in zip(groups, results, strict=True):
            for index in group:
                outcomes[index] = result
    return outcomes


def _groups(puts: list[Put], slots: list[int], piece: list[int]) -> Iterator[list[int]]:
    """Neighbours that share a slot, up to what one operation takes; a key once in each."""
    group: list[int] = []
    keys: set[bytes] = set()
    size = 0
    for index in piece:
        put = puts[index]
        size += len(put.key) + len(put.value)
        if group and (
            slots[index] != slots[group[0]]
            or put.key in keys
            or size > GROUP_BYTES_MAX
            or len(group) == ATOMIC_WRITES_MAX
        ):
            yield group
            group, size = [], len(put.key) + len(put.value)
            keys.clear()
        group.append(index)
        keys.add(put.key)
    yield group


def _as_one(puts: list[Put]) -> Operation:
    return puts[0] if len(puts) == 1 else Atomic([*puts])


def _bytes_of(puts: list[Put]) -> int:
    return sum([len(put.key) + len(put.value) for put in puts])


def _partial(what: str, total: int, errors: dict[Key, KVError]) -> PartialFailure:
    key, first = next(iter(errors.items()))
    return PartialFailure(
        f"{what} failed for {len(errors):,} of {total:,} keys, the others are done; "
        f"`errors` has each, the first is {shown(key)}: {first}",
        errors,
    )
