"""Operations that a node's port must not let in: each fails alone, told why and counted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from cluster.limits import (
    ATOMIC_WRITES_MAX,
    CONTENT_TYPE_BYTES_MAX,
    KEY_BYTES_MAX,
    REQUEST_OPERATIONS_MAX,
    SCAN_PAGE_KEYS_MAX,
    TTL_MS_MAX,
    VALUE_BYTES_MAX,
)
from cluster.operations import (
    Atomic,
    Code,
    Delete,
    Done,
    Failed,
    Found,
    Get,
    Incr,
    Put,
    Scan,
    Touch,
)
from cluster.slots import slot_of
from kvstore.node.door import TIMEOUT_MS_MAX
from kvstore.wire.protocol import Refused, Response
from tests.kvstore.node_harness import RAW, SLOT_COUNT, VALUE, Site, assert_says, put, working

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cluster.operations import Operation


LONG = b"k" * (KEY_BYTES_MAX + 1)
LARGE = msgspec.Raw(msgspec.msgpack.encode(b"x" * VALUE_BYTES_MAX))
OTHER_SLOT = next(
    key for n in range(99) if slot_of(key := b"k%d" % n, SLOT_COUNT) != slot_of(b"k", SLOT_COUNT)
)


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with working() as site:
        yield site


BAD_OPERATIONS: dict[str, tuple[Operation, Code, str]] = {
    "put without key": (Put(b"", RAW), Code.BAD_REQUEST, "a key of 0 bytes"),
    "put with a long key": (Put(LONG, RAW), Code.BAD_REQUEST, f"1 to {KEY_BYTES_MAX}"),
    "put of a large value": (Put(b"k", LARGE), Code.TOO_LARGE, f"limit is {VALUE_BYTES_MAX}"),
    "put for over a century": (
        Put(b"k", RAW, ttl_ms=TTL_MS_MAX + 1),
        Code.BAD_REQUEST,
        "time to live",
    ),
    "put for less than nothing": (Put(b"k", RAW, ttl_ms=-1), Code.BAD_REQUEST, "time to live"),
    "put with a long type": (
        Put(b"k", RAW, "x" * (CONTENT_TYPE_BYTES_MAX + 1)),
        Code.BAD_REQUEST,
        f"content type of over {CONTENT_TYPE_BYTES_MAX}",
    ),
    "put with half a version": (Put(b"k", RAW, expect=b"v" * 19), Code.BAD_REQUEST, "malformed"),
    "delete without key": (Delete(b""), Code.BAD_REQUEST, "a key of 0 bytes"),
    "delete with a long version": (Delete(b"before", b"v" * 21), Code.BAD_REQUEST, "malformed"),
    "incr without key": (Incr(b"", 1), Code.BAD_REQUEST, "a key of 0 bytes"),
    "incr over 64 bits": (Incr(b"k", 2**63), Code.BAD_REQUEST, "outside 64 bits"),
    "touch without key": (Touch(b"", 1), Code.BAD_REQUEST, "a key of 0 bytes"),
    "touch into the past": (Touch(b"before", -1), Code.BAD_REQUEST, "time to live of -1 ms"),
    "get without key": (Get(b""), Code.BAD_REQUEST, "a key of 0 bytes"),
    "eventual get with a long key": (Get(LONG, True), Code.BAD_REQUEST, "a key of 4097 bytes"),
    "scan below": (Scan(-1, b"", b"", 1, True), Code.BAD_REQUEST, "slot -1; .* has 0 to 63"),
    "scan above": (Scan(SLOT_COUNT, b"", b"", 1, True), Code.BAD_REQUEST, "slot 64"),
    "scan far above": (Scan(2**64 - 1, b"", b"", 1, True), Code.BAD_REQUEST, "has 0 to 63"),
    "scan of no keys": (Scan(0, b"", b"", 0, True), Code.BAD_REQUEST, "a page of 0 keys"),
    "scan of many keys": (
        Scan(0, b"", b"", SCAN_PAGE_KEYS_MAX + 1, True),
        Code.BAD_REQUEST,
        f"1 to {SCAN_PAGE_KEYS_MAX}",
    ),
    "scan with a long prefix": (Scan(0, LONG, b"", 1, True), Code.BAD_REQUEST, "prefix or cursor"),
    "scan with a long cursor": (Scan(0, b"", LONG, 1, True), Code.BAD_REQUEST, "prefix or cursor"),
    "atomic of nothing": (Atomic([]), Code.BAD_REQUEST, "a batch of 0 writes"),
    "atomic of too much": (
        Atomic([Put(b"k", RAW)] * (ATOMIC_WRITES_MAX + 1)),
        Code.BAD_REQUEST,
        f"1 to {ATOMIC_WRITES_MAX}",
    ),
    "atomic over two slots": (
        Atomic([Put(b"k", RAW), Put(OTHER_SLOT, RAW)]),
        Code.BAD_REQUEST,
        "must share a slot",
    ),
    "atomic with a key twice": (
        Atomic([Put(b"k", RAW), Delete(b"k")]),
        Code.BAD_REQUEST,
        "a key occurs twice",
    ),
    "atomic with a bad write": (
        Atomic([Put(b"k", RAW), Put(b"", RAW)]),
        Code.BAD_REQUEST,
        "a key of 0 bytes",
    ),
    "atomic with a large value": (
        Atomic([Put(b"k", RAW), Put(b"{k}2", LARGE)]),
        Code.TOO_LARGE,
        f"limit is {VALUE_BYTES_MAX}",
    ),
}


@pytest.mark.parametrize(
    ("bad", "code", "detail"), BAD_OPERATIONS.values(), ids=BAD_OPERATIONS.keys()
)
async def test_a_bad_operation_fails_alone(
    site: Site, bad: Operation, code: Code, detail: str
) -> None:
    async with site.harness.client() as wire:
        first, failed, second, third = await wire.ask(
            [Put(b"first", RAW), bad, Put(b"second", RAW), Get(b"before")]
        )
        assert isinstance(first, Done)
        assert isinstance(failed, Failed)
        assert failed.code is code
        assert_says(failed.detail, detail)
        assert isinstance(second, Done)
        assert isinstance(third, Found)
        (again,) = await wire.ask([Get(b"first")])
        assert isinstance(again, Found)
    await site.unharmed({"operation": 1}, {b"first": VALUE, b"second": VALUE})


async def test_each_bad_operation_is_answered_in_its_place(site: Site) -> None:
    every = [case[0] for case in BAD_OPERATIONS.values()]
    async with site.harness.client() as wire:
        results = await wire.ask(every)
    assert [isinstance(result, Failed) for result in results] == [True] * len(every)
    await site.unharmed({"operation": len(every)})


async def test_the_rest_of_a_request_keeps_its_own_ids(site: Site) -> None:
    """A retry without the bad one finds what was done under the same ids."""
    async with site.harness.client() as wire:
        failed, done = await wire.ask([Put(b"", RAW), Incr(b"n", 5)], client=7, number=100)
        (again,) = await wire.ask([Incr(b"n", 5)], client=7, number=101, retry=True)
    assert isinstance(failed, Failed)
    assert again == done
    await site.unharmed({"operation": 1}, {b"n": msgspec.msgpack.encode(5)})


async def test_a_request_without_operations_is_answered(site: Site) -> None:
    async with site.harness.client() as wire:
        assert await wire.ask([]) == []
        (found,) = await wire.ask([Get(b"before")])
        assert isinstance(found, Found)
    await site.unharmed({})


BAD_REQUESTS: dict[str, tuple[dict[str, Any], str]] = {
    "too many positions": ({"seen": [b"", b""]}, "2 positions for 1 operations"),
    "too many offsets": ({"offsets": [0, 1]}, "2 offsets for 1 operations"),
    "a number twice": ({"ops": [Get(b"k")] * 2, "offsets": [3, 3]}, "given to two operations"),
    "no time": ({"timeout_ms": 0}, "a timeout of 0 ms"),
    "less than no time": ({"timeout_ms": -1}, "a timeout of -1 ms"),
    "for ever": ({"timeout_ms": 2**64 - 1}, f"it must be 1 to {TIMEOUT_MS_MAX}"),
}


@pytest.mark.parametrize(("fields", "detail"), BAD_REQUESTS.values(), ids=BAD_REQUESTS.keys())
async def test_a_bad_request_ends_the_connection(
    site: Site, fields: dict[str, Any], detail: str
) -> None:
    async with site.harness.client() as wire:
        await wire.send(msgspec.structs.replace(put(b"k"), **fields), put(b"behind"))
        refused = await wire.refusal()
    assert refused.reason == "frame"
    assert_says(refused.detail, detail)
    await site.unharmed({"request": 1})


async def test_too_many_operations_are_refused_before_they_are_read(site: Site) -> None:
    async with site.harness.client() as wire:
        many = [Delete(b"before")] * (REQUEST_OPERATIONS_MAX + 1)
        await wire.send(msgspec.structs.replace(put(b"k"), ops=many))
        refused = await wire.refusal()
    assert_says(refused.detail, f"length <= {REQUEST_OPERATIONS_MAX}")
    await site.unharmed({"frame": 1})


async def test_an_answer_that_is_too_long_is_given_in_part(site: Site) -> None:
    """A reader asks again for the rest; each time it gets some."""
    keys = [b"big:%d" % n for n in range(20)]
    value = msgspec.Raw(msgspec.msgpack.encode(b"x" * 1_000_000))
    async with site.harness.client() as wire:
        for key in keys:
            await wire.ask([Put(key, value)])
        results = await wire.ask([Get(key) for key in keys])
        found = [result for result in results if isinstance(result, Found)]
        rest = [result for result in results if isinstance(result, Failed)]
        assert 0 < len(found) < 20
        assert len(found) + len(rest) == 20
        assert {result.code for result in rest} == {Code.OVERLOADED}
        assert all(isinstance(r, Found) for r in await wire.ask([Get(key) for key in keys[-8:]]))


ODD_REQUESTS: dict[str, dict[str, Any]] = {
    "an operation's number over 64 bits": {"offsets": [2**64 - 1]},
    "a position whose sequence has no successor": {"seen": [b"\0\0\0\1" + b"\xff" * 16]},
}


@pytest.mark.parametrize("fields", ODD_REQUESTS.values(), ids=ODD_REQUESTS.keys())
async def test_numbers_at_the_edge_are_refused(site: Site, fields: dict[str, Any]) -> None:
    async with site.harness.client() as wire:
        await wire.send(msgspec.structs.replace(put(b"k"), **fields))
        answer = await wire.receive()
    assert site.harness.raised == []
    if isinstance(answer, Response):
        assert isinstance(answer.results[0], Failed)
    else:
        assert isinstance(answer, Refused)
