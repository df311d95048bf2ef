"""Print the tables of `docs/gossip.md`: what the failure detector costs and finds, by cluster size.

The state machines of all nodes run in one process on a virtual clock and network
(`tests.cluster.gossip_cluster`), with the settings of the product and ids like the real ones. Bytes
are those of the frames that the product sends; TCP and IP headers are not counted. One seed is one
result, on any machine.
"""

from __future__ import annotations

import gc
import random
import resource
import sys
from math import log2
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from cluster.limits import NODE_ID_BITS
from cluster.members import MemberState
from cluster.swim_settings import SwimSettings
from kvstore.wire.frames import encode_frame
from kvstore.wire.protocol import Gossip
from tests.cluster.gossip_cluster import GossipCluster

if TYPE_CHECKING:
    from cluster.ballot import NodeId
    from cluster.swim_messages import GossipMessage

SIZES = (100, 300, 1_000, 5_000)
EPOCH = 1_000
DEATHS = 5
CALM_MS = 10_000
SETTLE_MS = 5_000
"""Bad weather lasts for so long before its cost is counted: who is slow has to be learnt."""

PLAIN_SWIM_NODES_MAX = 1_000
SETTINGS = SwimSettings()
PLAIN_SWIM = msgspec.structs.replace(
    SETTINGS, health_score_max=0, suspicion_stretch=1, confirmations=0
)
"""Without Lifeguard: no local health, and an accusation by one is as good as by four."""


class Weather(NamedTuple):
    """Messages lost, nodes slow, and how: stopped and running in turn, so many ms each."""

    loss: float = 0.05
    slow: float = 0.01
    stopped_ms: int = 500
    running_ms: int = 100


def frame_bytes(message: GossipMessage) -> int:
    """On the wire."""
    return len(encode_frame(Gossip(message, EPOCH)))


class Bench:
    """A cluster and what is measured of it."""

    def __init__(self, count: int, settings: SwimSettings = SETTINGS, seed: int = 1) -> None:
        self.chance = random.Random(seed)
        ids = [self.chance.getrandbits(NODE_ID_BITS) for _ in range(count)]
        self.cluster = GossipCluster(
            ids, seed, settings=settings, size_of=frame_bytes, checked=False
        )
        self.ids = ids
        self.period_ms = settings.probe_interval_ms
        self.cluster.run(2_000)

    def cost(self, duration_ms: int) -> tuple[float, float]:
        """Messages and bytes per node and second while time passes."""
        cluster = self.cluster
        messages, sent = cluster.messages_sent, cluster.bytes_sent
        self.pass_time(duration_ms)
        per_node_second = 1_000 / duration_ms / len(self.ids)
        return (
            (cluster.messages_sent - messages) * per_node_second,
            (cluster.bytes_sent - sent) * per_node_second,
        )

    def pass_time(self, duration_ms: int) -> None:
        """Nothing else happens; a hook for weather."""
        self.cluster.run(duration_ms)

    def death(self) -> tuple[float, float, float]:
        """Periods from a death to the first suspicion, the first verdict, and until all know."""
        cluster = self.cluster
        victim = self.chance.choice([node for node in self.ids if node not in cluster.frozen])
        cluster.run(self.chance.randrange(self.period_ms))
        begin_ms = cluster.now_ms
        cluster.frozen.add(victim)
        watchers = [swim for node, swim in cluster.nodes.items() if node not in cluster.frozen]
        limit_ms = 1_000 * self.period_ms

        def seen(state: MemberState) -> float:
            cluster.run_until(lambda: any(w.state(victim) is state for w in watchers), limit_ms)
            return (cluster.now_ms - begin_ms) / self.period_ms

        suspected, judged = seen(MemberState.SUSPECT), seen(MemberState.DEAD)
        cluster.run_until(lambda: cluster.believed(victim, MemberState.DEAD), limit_ms)
        known = (cluster.now_ms - begin_ms) / self.period_ms
        cluster.restart(victim)
        cluster.run_until(lambda: cluster.believed(victim, MemberState.ALIVE), limit_ms)
        return suspected, judged, known


class StormyBench(Bench):
    """A cluster in bad weather."""

    def __init__(self, count: int, weather: Weather, settings: SwimSettings = SETTINGS) -> None:
        super().__init__(count, settings)
        self.weather = weather
        self.cluster.loss = weather.loss
        self.slow = self.chance.sample(self.ids, max(1, round(count * weather.slow)))
        self.turns: dict[NodeId, int] = {
            node: self.cluster.now_ms + self.chance.randrange(weather.stopped_ms)
            for node in self.slow
        }

    def pass_time(self, duration_ms: int) -> None:
        """The slow ones stop and go on."""
        cluster, end_ms = self.cluster, self.cluster.now_ms + duration_ms
        while cluster.now_ms < end_ms:
            for node, turn_ms in self.turns.items():
                if turn_ms > cluster.now_ms:
                    continue
                if node in cluster.frozen:
                    cluster.thaw(node)
                    self.turns[node] = cluster.now_ms + self.weather.running_ms
                else:
                    cluster.frozen.add(node)
                    self.turns[node] = cluster.now_ms + self.weather.stopped_ms
            cluster.run(min(10, end_ms - cluster.now_ms))

    def verdicts(self) -> tuple[int, int, int]:
        """Events since the last call: suspicions, deaths of the slow and of the healthy."""
        slow = {*self.slow}
        suspicions = slow_deaths = deaths = 0
        for swim in self.cluster.nodes.values():
            for event in swim.take_events():
                suspicions += event.state is MemberState.SUSPECT
                if event.state is MemberState.DEAD:
                    slow_deaths += event.node in slow
                    deaths += event.node not in slow
        return suspicions, slow_deaths, deaths


def bad_weather_ms(count: int) -> int:
    """How long its cost is counted: shorter where there are many to watch."""
    return max(5_000, min(30_000, 10_000_000 // count))


def processor_seconds() -> float:
    """Of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def row(*cells: object) -> None:
    """One line of a Markdown table."""
    print("|", " | ".join(str(cell) for cell in cells), "|", flush=True)


def calm_table(sizes: list[int]) -> None:
    """Cost without events, and how a death becomes known."""
    row("nodes", "log2", "messages", "bytes", "suspected", "declared", "known to all", "us")
    row(*["---"] * 8)
    for count in sizes:
        bench = Bench(count)
        before = processor_seconds()
        messages, sent = bench.cost(CALM_MS)
        us = (processor_seconds() - before) / (messages * count * CALM_MS / 1_000) * 1e6
        deaths = [bench.death() for _ in range(DEATHS)]
        middle = [f"{sorted(times)[DEATHS // 2]:.1f}" for times in zip(*deaths, strict=True)]
        worst = max(known for _, _, known in deaths)
        row(
            f"{count:,}",
            f"{log2(count):.1f}",
            f"{messages:.1f}",
            f"{sent:,.0f}",
            *middle[:2],
            f"{middle[2]}, at most {worst:.1f}",
            f"{us:.0f}",
        )


def stormy_table(sizes: list[int]) -> None:
    """Who is wrongly suspected and wrongly declared dead in bad weather."""
    row("nodes", "detector", "s", "messages", "bytes", "suspicions", "slow", "healthy")
    row(*["---"] * 8)
    for count in sizes:
        for name, settings in (("ringkv", SETTINGS), ("plain SWIM", PLAIN_SWIM)):
            if settings is PLAIN_SWIM and count > PLAIN_SWIM_NODES_MAX:
                continue
            bench = StormyBench(count, Weather(), settings)
            duration_ms = bad_weather_ms(count)
            bench.pass_time(SETTLE_MS)
            messages, sent = bench.cost(duration_ms)
            row(
                f"{count:,}",
                name,
                (SETTLE_MS + duration_ms) // 1_000,
                f"{messages:.1f}",
                f"{sent:,.0f}",
                *(f"{number:,}" for number in bench.verdicts()),
            )


def main() -> None:
    """Both tables; sizes may be given as arguments."""
    sizes = [int(argument) for argument in sys.argv[1:]] or [*SIZES]
    gc.disable()  # nothing here is cyclic, and a look at all tables of all nodes takes seconds
    calm_table(sizes)
    print()
    stormy_table(sizes)
    print(f"\n{processor_seconds():.0f} s of processor time")


if __name__ == "__main__":
    main()
