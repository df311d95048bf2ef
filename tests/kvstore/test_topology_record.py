"""How the topology document is replaced, against a slot that answers by a script."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest

from cluster.ballot import Ballot
from cluster.operations import Conflict, Done, Stale
from cluster.records import pack_version
from cluster.topology import Node, Topology
from kvstore.errors import Unavailable
from kvstore.node.topology_record import TopologyRecord
from kvstore.wire.protocol import Request, Response

if TYPE_CHECKING:
    from cluster.operations import Result

READ, NEWER = pack_version(Ballot(1, 1), 2), pack_version(Ballot(2, 2), 11)


class FakeClock:
    """A millisecond for each look."""

    ms = 0

    def now_ms(self) -> int:
        self.ms += 1
        return self.ms

    def unix_ms(self) -> int:
        return self.ms


class Slot:
    """Answers the first attempts as it is told, and all others like the last of them."""

    def __init__(self, *answers: Result) -> None:
        self._answers = list(answers)
        self.requests: list[Request] = []

    async def submit(self, request: Request) -> Response:
        self.requests.append(request)
        answer = self._answers[min(len(self.requests), len(self._answers)) - 1]
        return Response(request.id, [answer], {})


async def replace(slot: Slot) -> bool:
    node = Node(1, "n1", "n1:7401", "n1:8401", "", 1.0)
    topology = Topology("c", "test", 1, 8, 3, (node,))
    record = TopologyRecord(slot.submit, FakeClock(), Random(1))
    return await record.replace(topology, READ, 100)


async def test_a_document_older_than_the_key_log_can_be_replaced() -> None:
    slot = Slot(Stale(NEWER), Done(NEWER))
    assert await replace(slot)
    first, second = slot.requests
    assert (first.seen, second.seen) == ([READ], [NEWER])
    assert second.number != first.number
    assert not second.retry
    assert second.ops == first.ops


async def test_a_document_that_another_has_replaced_is_left_alone() -> None:
    assert not await replace(Slot(Stale(NEWER), Conflict(NEWER)))


async def test_a_slot_that_outruns_every_attempt_is_called_unavailable() -> None:
    with pytest.raises(Unavailable):
        await replace(Slot(Stale(NEWER)))
