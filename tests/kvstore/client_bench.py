"""A client's core with a cluster that answers as a script says, on a clock of its own."""

from __future__ import annotations

import struct
from typing import Any, TypeVar

from cluster.ballot import Ballot
from cluster.limits import SLOT_COUNT_DEFAULT
from cluster.operations import (
    Code,
    Failed,
    Result,
)
from cluster.records import pack_version
from kvstore.client import flows
from kvstore.client.core import ClientCore
from kvstore.client.exchange import (
    Broken,
    Exchange,
    Flow,
    NotSent,
    Pause,
    Reply,
    Send,
    Step,
    TimedOut,
)
from kvstore.wire.protocol import Request, Response, RouteNode, RouteQuery, Routes

T = TypeVar("T")
NODES = ["a:1", "b:1", "c:1"]
COMMITTED = pack_version(Ballot(1, 7), 5)
NEWER = pack_version(Ballot(1, 7), 6)
REFUSED = Failed(Code.UNAVAILABLE, "no quorum")
UNKNOWN = Failed(Code.UNKNOWN, "primary lost")


class Half:
    def random(self) -> float:
        return 0.5


class Bench:
    """A core with a table of three nodes, and a clock that moves only in pauses and timeouts."""

    def __init__(self) -> None:
        self.time = 100.0
        self.core = ClientCore(NODES[:1], now=lambda: self.time, chance=Half())
        self.core.table.load(table(), self.time)
        self.sent: list[Send] = []
        self.pauses: list[float] = []

    def run(self, flow: Flow[T], *script: Any) -> T:
        """Drive a flow; each script entry is the reply to one request, or results for it."""
        replies = list(script)
        try:
            step: Step = next(flow)
            while True:
                if isinstance(step, Pause):
                    self.pauses.append(step.seconds)
                    self.time += max(step.seconds, 1e-6)
                    step = flow.send([])
                else:
                    step = flow.send([self.reply(send, step, replies) for send in step.sends])
        except StopIteration as stop:
            assert not replies, f"never asked for {replies}"
            value: T = stop.value
            return value

    def reply(self, send: Send, step: Exchange, replies: list[Any]) -> Reply:
        if isinstance(send.frame, RouteQuery):
            return table(send.frame.id)
        self.sent.append(send)
        given = replies.pop(0)
        if isinstance(given, TimedOut):
            self.time = step.deadline
        if isinstance(given, NotSent | Broken | TimedOut):
            return given
        results: list[Result] = given if isinstance(given, list) else [given]
        return Response(send.frame.id, results, {})

    def requests(self) -> list[Request]:
        return [send.frame for send in self.sent if isinstance(send.frame, Request)]

    def put(self, *script: Any, **options: Any) -> str:
        return self.run(flows.put(self.core, self.time + 5, "k", 1, **options), *script)


def table(frame_id: int = 0, states: tuple[str, ...] = ("alive",) * 3) -> Routes:
    nodes = [
        RouteNode(10 + i, f"n{i}", address, "", "", state)
        for i, (address, state) in enumerate(zip(NODES, states, strict=True))
    ]
    primaries = struct.pack(
        f">{SLOT_COUNT_DEFAULT}H", *(slot % 3 for slot in range(SLOT_COUNT_DEFAULT))
    )
    positions = COMMITTED * SLOT_COUNT_DEFAULT
    return Routes(frame_id, "id", "name", 1, SLOT_COUNT_DEFAULT, nodes, primaries, positions)
