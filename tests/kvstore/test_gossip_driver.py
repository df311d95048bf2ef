"""The failure detector on a real clock: called when something is due, by whatever made it due."""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING, cast

from cluster.swim import Swim
from cluster.swim_messages import Ping, PingAck, PingNack, PingReq
from cluster.swim_settings import SwimSettings
from kvstore.node.gossip import GossipDriver

if TYPE_CHECKING:
    from cluster.ballot import NodeId
    from cluster.swim_messages import GossipMessage
    from kvstore.node.peers import Peers
    from kvstore.wire.protocol import Gossip


def now_ms() -> int:
    return time.monotonic_ns() // 1_000_000


class Links:
    """What was sent, to whom."""

    def __init__(self) -> None:
        self.sent: asyncio.Queue[tuple[NodeId, GossipMessage]] = asyncio.Queue()

    def send_gossip(self, node: NodeId, frame: Gossip) -> bool:
        self.sent.put_nowait((node, frame.message))
        return True


async def test_a_helper_answers_in_time_though_its_own_period_is_long() -> None:
    swim = Swim(1, SwimSettings(probe_interval_ms=3_600_000), random.Random(0), now_ms())
    swim.join((2, 3), now_ms())
    links = Links()
    driver = GossipDriver(swim, cast("Peers", links), lambda node, state: None, lambda: 1, now_ms)
    driver.start()
    target, ping = await links.sent.get()
    assert isinstance(ping, Ping)
    while not isinstance((await links.sent.get())[1], PingReq):  # the last thing due for an hour
        pass
    driver.receive(5 - target, PingAck(ping.number, []))
    driver.receive(2, PingReq(77, 3, []))
    async with asyncio.timeout(30):
        while not isinstance((await links.sent.get())[1], PingNack):
            pass
    driver.close()
