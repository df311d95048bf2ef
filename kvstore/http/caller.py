"""The HTTP door's way to the node: operations in, results out, each write once.

The node takes `Request` frames; this gives them their operation ids (rule 5). The process has one
random client id and counts. A caller that wants to repeat a request safely sends an
`Idempotency-Key`: its hash, together with what is asked, *is* the operation id, so that a
repetition has the same one at whatever node it arrives; being possibly a repetition, it always
counts as a retry and is looked up, once-only within the reach of the key log. The id that an
"outcome unknown" names is itself such a key (`kvstore.client.operation_id`), so even who sent none
can settle a write.

``seen`` of a first attempt is the newest committed position that answers or the routing table told
of the slot; an old one costs a lookup, never correctness. Repeated attempts inside one call keep
id and ``seen``. Once an attempt ended unknown, no later refusal settles it: the answer stays
unknown.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from contextlib import suppress
from hashlib import blake2b
from random import uniform
from typing import TYPE_CHECKING, Final, NamedTuple

from cluster.operations import (
    Atomic,
    Code,
    Deleted,
    Done,
    Failed,
    Get,
    Number,
    Operation,
    Result,
    Scan,
    Stale,
)
from cluster.records import VERSION_BYTES
from cluster.slots import slot_of
from kvstore.client.operation_id import OperationId, operation_id_from_text
from kvstore.errors import BadRequest
from kvstore.http.problems import ProblemError
from kvstore.wire.protocol import Request, Routes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kvstore.node.view import NodeView

__all__ = ["Answer", "Caller", "operation_id_of"]

ROUTES_AGE_SECONDS_MAX: Final = 5.0
"""The routing table is read again after this time: it is only a hint, and 300 KB."""

PAUSE_SECONDS: Final = (0.02, 0.2)
"""First and longest pause between attempts; each is drawn from half to all of it."""

GRACE_SECONDS: Final = 1.0
"""How much longer than its own deadline a request to the node is waited for."""

IDEMPOTENCY_KEY_CHARACTERS_MAX: Final = 255

_NO_POSITION: Final = bytes(VERSION_BYTES)
_KEY_TEXT: Final = re.compile(r"[\x21-\x7e]+")


class Answer(NamedTuple):
    """The results in the order of the operations, and the id that each write had."""

    results: list[Result]
    ids: list[OperationId]


def operation_id_of(key: str, what: bytes) -> OperationId:
    """The operation id that an `Idempotency-Key` stands for.

    Args:
        key: The header.
        what: What is asked (method and key): the same header elsewhere is another operation.

    Raises:
        ProblemError: it is empty, too long or not printable ASCII.
    """
    if len(key) > IDEMPOTENCY_KEY_CHARACTERS_MAX or not _KEY_TEXT.fullmatch(key):
        raise ProblemError(
            "bad-header",
            f"Idempotency-Key must have 1 to {IDEMPOTENCY_KEY_CHARACTERS_MAX} visible ASCII "
            "characters; a UUID is a good one.",
        )
    with suppress(BadRequest):
        literal = operation_id_from_text(key)
        if literal.number < 2**63:
            return literal
    digest = blake2b(what, key=blake2b(key.encode()).digest(), digest_size=14).digest()
    client, number = int.from_bytes(digest[:8], "big") >> 1, int.from_bytes(digest[8:], "big")
    return OperationId(client, number, b"")


class Caller:
    """Puts operations to the node.

    Args:
        node: Where to.
        clock: Seconds that only go forward.
    """

    def __init__(self, node: NodeView, clock: Callable[[], float] = time.monotonic) -> None:
        self.node = node
        self._clock = clock
        self._client = secrets.randbits(63)
        self._number = 0
        self._routes: Routes | None = None
        self._routes_at = 0.0
        self._addresses: dict[str, str] = {}
        self._newest: dict[int, bytes] = {}

    @property
    def slot_count(self) -> int:
        """Slots of the cluster; 0 before it is founded."""
        return self._fresh_routes().slot_count

    def primary_address(self, slot: int) -> str | None:
        """Where the slot's primary answers HTTP, as far as this node knows."""
        name = self.node.slot_status(slot).primary
        return self._addresses.get(name) if name is not None else None

    async def call(
        self, ops: list[Operation], timeout_seconds: float, own: OperationId | None = None
    ) -> Answer:
        """Carry out operations; what goes wrong is in the results, never raised.

        Args:
            ops: On any keys, answered in their order.
            timeout_seconds: For all attempts together.
            own: The caller's own (`operation_id_of`); its operations always count as retries.
        """
        ids = self._ids(ops, own)
        deadline = self._clock() + timeout_seconds
        results: list[Result] = [_NOT_TRIED] * len(ops)
        pending, retry, pause = list(range(len(ops))), own is not None, PAUSE_SECONDS[0]
        while pending:
            left = deadline - self._clock()
            request = _request(ops, ids, pending, retry=retry, timeout_seconds=left)
            for index, result in zip(pending, await self._submit(request, left), strict=True):
                if isinstance(result, Stale):  # R5: nothing was done under the old id
                    ids[index] = OperationId(self._client, self._take(1), result.position)
                results[index] = _settled(results[index], result)
            pending = [index for index in pending if _worth_another(results[index])]
            only_stale = all(isinstance(results[index], Stale) for index in pending)
            wait = 0.0 if only_stale else uniform(pause / 2, pause)
            if not pending or deadline - self._clock() <= wait:
                break
            await asyncio.sleep(wait)
            retry, pause = True, min(2 * pause, PAUSE_SECONDS[1])
        self._learn(ops, results)
        return Answer([_NOT_TRIED if isinstance(r, Stale) else r for r in results], ids)

    async def call_one(
        self, op: Operation, timeout_seconds: float, own: OperationId | None = None
    ) -> tuple[Result, str]:
        """`call` for a single operation: its result and its id as text."""
        answer = await self.call([op], timeout_seconds, own)
        return answer.results[0], answer.ids[0].to_text()

    async def _submit(self, request: Request, seconds: float) -> list[Result]:
        try:
            async with asyncio.timeout(seconds + GRACE_SECONDS):
                return (await self.node.submit(request)).results
        except TimeoutError:
            lost = Failed(Code.UNKNOWN, "The node did not answer in time.")
            return [lost] * len(request.ops)

    def _take(self, numbers: int) -> int:
        """The first of so many operation numbers that were never used."""
        first = self._number
        self._number += numbers
        return first

    def _ids(self, ops: Sequence[Operation], own: OperationId | None) -> list[OperationId]:
        """An id for each operation: writes count up, reads need none of their own."""
        writes = [not isinstance(op, Get | Scan) for op in ops]
        first = own or OperationId(self._client, self._take(sum(writes)), b"")
        routes = self._fresh_routes()
        count = routes.slot_count if own is None else 0
        ids = []
        number = first.number
        for op, is_write in zip(ops, writes, strict=True):
            seen = first.seen
            if is_write and count:
                seen = self._position(routes.positions, _slot(op, count))
            ids.append(OperationId(first.client, number, seen))
            number += is_write
        return ids

    def _position(self, positions: bytes, slot: int) -> bytes:
        told = positions[VERSION_BYTES * slot : VERSION_BYTES * (slot + 1)]
        return max(told, self._newest.get(slot, b"")) or _NO_POSITION

    def _learn(self, ops: Sequence[Operation], results: Sequence[Result]) -> None:
        """Keep the positions that committed writes tell of their slots."""
        count = self._fresh_routes().slot_count
        if not count:
            return
        for op, result in zip(ops, results, strict=True):
            if isinstance(result, Done | Deleted | Number):
                slot = _slot(op, count)
                self._newest[slot] = max(self._newest.get(slot, b""), result.version)

    def _fresh_routes(self) -> Routes:
        now = self._clock()
        routes = self._routes
        if (
            routes is None
            or not routes.slot_count
            or now - self._routes_at > ROUTES_AGE_SECONDS_MAX
        ):
            routes = self._routes = self.node.routes()
            self._routes_at = now
            self._addresses = {node.name: node.http_address for node in routes.nodes}
        return routes


_NOT_TRIED: Final = Failed(Code.DEADLINE, "The time was over before anything was sent.")


def _request(
    ops: Sequence[Operation],
    ids: Sequence[OperationId],
    pending: Sequence[int],
    *,
    retry: bool,
    timeout_seconds: float,
) -> Request:
    """The frame for the operations that have no answer yet."""
    first = min(ids[index].number for index in pending)
    return Request(
        id=0,
        client=ids[pending[0]].client,
        number=first,
        retry=retry,
        timeout_ms=max(int(timeout_seconds * 1000), 1),
        hops=0,
        ops=[ops[index] for index in pending],
        seen=[ids[index].seen for index in pending],
        offsets=[ids[index].number - first for index in pending],
    )


def _settled(before: Result, now: Result) -> Result:
    """What stands after another attempt: after an unknown outcome a refusal tells nothing (R5)."""
    was_unknown = isinstance(before, Failed) and before.code is Code.UNKNOWN
    refused = isinstance(now, Failed) and now.code is not Code.WRONG_TYPE  # that one was judged
    return before if was_unknown and refused else now


def _worth_another(result: Result) -> bool:
    if isinstance(result, Failed):
        return result.code in (Code.UNAVAILABLE, Code.UNKNOWN)
    return isinstance(result, Stale)


def _slot(op: Operation, count: int) -> int:
    if isinstance(op, Scan):
        return op.slot
    if isinstance(op, Atomic):
        return slot_of(op.writes[0].key, count)
    return slot_of(op.key, count)
