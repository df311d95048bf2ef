"""The topology document in the system slot: read and replaced through the ordinary path (rule 17).

A replacement is a put on the condition that the version which it was made from still stands, so of
two changes at once one wins and the other is told. It is one operation with one id: where an
attempt's outcome is unknown the same operation is sent again as a retry (rule 5), with the version
that was read as `seen`, because that is a committed position of the slot. The document may have
stood for longer than the key log reaches back; then the slot says so, and the operation begins anew
with a newer `seen`.
"""

from __future__ import annotations

import asyncio
from itertools import count
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from cluster.operations import Code, Conflict, Done, Failed, Found, Get, Put, Stale
from cluster.records import decode_record
from cluster.system_slot import TOPOLOGY_KEY
from cluster.topology import decode_topology, encode_topology
from kvstore.errors import OutcomeUnknown, Unavailable
from kvstore.wire.protocol import Request

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from random import Random

    from cluster.operations import Operation, Result
    from cluster.topology import Topology
    from kvstore.node.clock import Clock
    from kvstore.wire.protocol import Response

PAUSE_S: Final = 0.1
"""Between attempts, with jitter."""


class Stored(NamedTuple):
    """The committed document, and the version under which it lies there."""

    topology: Topology
    version: bytes


class TopologyRecord:
    """The record, for one node.

    Args:
        submit: Carries a request out, here or at the slot's primary (`kvstore.node.router`).
        clock: For the time of a whole call.
        rng: Draws the id of this client, and jitter.
    """

    def __init__(
        self, submit: Callable[[Request], Awaitable[Response]], clock: Clock, rng: Random
    ) -> None:
        self._submit = submit
        self._clock = clock
        self._rng = rng
        self._client = rng.getrandbits(63)
        self._numbers = count(1)

    async def read(self, timeout_ms: int) -> Stored:
        """The newest document, linearizable.

        Raises:
            Unavailable: the system slot has no primary that can be reached.
        """
        result = await self._call(Get(TOPOLOGY_KEY), b"", timeout_ms)
        if isinstance(result, Found):
            record = decode_record(result.record)
            return Stored(decode_topology(record.value), record.version)
        assert isinstance(result, Failed), "founding has written the document"
        raise Unavailable(f"the cluster's topology cannot be read: {result.detail}")

    async def replace(self, topology: Topology, expect: bytes, timeout_ms: int) -> bool:
        """Put the document in place of version ``expect``; False if that stands no more.

        Raises:
            Unavailable: nothing was written.
            OutcomeUnknown: the time was over while it may or may not have been.
        """
        document = msgspec.Raw(encode_topology(topology))
        put = Put(TOPOLOGY_KEY, document, expect=expect)
        result = await self._call(put, expect, timeout_ms)
        if isinstance(result, Done):
            return True
        if isinstance(result, Conflict):
            return False
        if isinstance(result, Stale):
            raise Unavailable("the topology was not changed: its slot changes too quickly")
        assert isinstance(result, Failed)
        if result.code is Code.UNKNOWN:
            raise OutcomeUnknown(
                f"the change of the topology may or may not happen: {result.detail}", ""
            )
        raise Unavailable(f"the topology was not changed: {result.detail}")

    async def _call(self, op: Operation, seen: bytes, timeout_ms: int) -> Result:
        """One operation, attempted until it is settled or the time is over."""
        number, until_ms = next(self._numbers), self._clock.now_ms() + timeout_ms
        retry, unknown = False, None
        while True:
            left_ms = max(until_ms - self._clock.now_ms(), 1)
            request = Request(0, self._client, number, retry, left_ms, 0, [op], [seen], system=True)
            (result,) = (await self._submit(request)).results
            if isinstance(result, Stale) and not retry and self._clock.now_ms() < until_ms:
                number, seen = next(self._numbers), result.position  # R5: not executed, so anew
                continue
            if not isinstance(result, Failed):
                return result
            if result.code is Code.UNKNOWN:
                unknown = result  # no later refusal settles it (R5)
            elif result.code not in (Code.UNAVAILABLE, Code.OVERLOADED):
                return unknown or result
            pause_s = PAUSE_S * self._rng.uniform(0.5, 1.0)
            if self._clock.now_ms() + 1_000 * pause_s >= until_ms:
                return unknown or result
            await asyncio.sleep(pause_s)
            retry = True
