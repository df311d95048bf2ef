"""Many failure detectors on one virtual clock and network, for the tests of gossip."""

from __future__ import annotations

import heapq
import random
from functools import partial
from typing import TYPE_CHECKING

from cluster.members import MemberState
from cluster.swim import Swim
from cluster.swim_settings import SwimSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from cluster.ballot import NodeId
    from cluster.swim_messages import GossipMessage

Due = tuple[int, int, "Callable[[], None]"]


class GossipCluster:
    """Nodes 1 to ``count``; what goes wrong is set on its public attributes while it runs."""

    def __init__(self, count: int, seed: int = 0, *, loss: float = 0.0) -> None:
        self.now_ms = 1_000
        self.rng = random.Random(seed)
        self.loss = loss
        self.frozen: set[NodeId] = set()
        self.cut: set[tuple[NodeId, NodeId]] = set()
        self.messages_sent = 0
        self.nodes = {n: self._new(n, count) for n in range(1, count + 1)}
        self._queue: list[Due] = []
        self._order = 0
        self._waiting: dict[NodeId, list[Callable[[], None]]] = {}
        for node in self.nodes:
            self._call(self.rng.randrange(100), partial(self._tick, node))

    def _new(self, node: NodeId, count: int) -> Swim:
        swim = Swim(node, SwimSettings(), random.Random(self.rng.random()), self.now_ms)
        swim.join(range(1, count + 1), self.now_ms)
        return swim

    def restart(self, node: NodeId) -> None:
        """The process comes back without memory."""
        self._waiting.pop(node, None)
        self.frozen.discard(node)
        self.nodes[node] = self._new(node, len(self.nodes))
        self._call(0, lambda: self._tick(node))

    def thaw(self, node: NodeId) -> None:
        """A frozen process goes on where it was, with all that has arrived meanwhile."""
        self.frozen.discard(node)
        for step in self._waiting.pop(node, []):
            step()

    def run(self, duration_ms: int) -> None:
        """Let time pass."""
        end_ms = self.now_ms + duration_ms
        while self._queue and self._queue[0][0] <= end_ms:
            self.now_ms, _, step = heapq.heappop(self._queue)
            step()
        self.now_ms = end_ms

    def run_until(self, condition: Callable[[], bool], limit_ms: int) -> int:
        """Let time pass until ``condition`` holds; returns how long that took."""
        begin_ms = self.now_ms
        while not condition():
            assert self.now_ms - begin_ms < limit_ms, f"not within {limit_ms} ms"
            self.run(10)
        return self.now_ms - begin_ms

    def believed(self, node: NodeId, state: MemberState) -> bool:
        """Whether all running others believe this of ``node``."""
        return all(
            swim.state(node) is state
            for other, swim in self.nodes.items()
            if other != node and other not in self.frozen
        )

    def calm(self) -> bool:
        """Whether everybody believes that all are alive."""
        return all(self.believed(node, MemberState.ALIVE) for node in self.nodes)

    def send(self, sender: NodeId, sends: list[tuple[NodeId, GossipMessage]]) -> None:
        """Put messages on the virtual network."""
        for target, message in sends:
            self.messages_sent += 1
            if (sender, target) in self.cut or self.rng.random() < self.loss:
                continue
            delay_ms = 1 + self.rng.randrange(5)
            self._call(delay_ms, partial(self._arrive, sender, target, message))

    def _call(self, delay_ms: int, step: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._queue, (self.now_ms + delay_ms, self._order, step))

    def _tick(self, node: NodeId) -> None:
        if node in self.frozen:
            self._waiting.setdefault(node, []).append(lambda: self._tick(node))
            return
        swim = self.nodes[node]
        self.send(node, swim.tick(self.now_ms))
        swim.check()
        self._call(max(swim.next_due_ms() - self.now_ms, 10), lambda: self._tick(node))

    def _arrive(self, sender: NodeId, target: NodeId, message: GossipMessage) -> None:
        if target in self.frozen:
            waiting = self._waiting.setdefault(target, [])
            waiting.append(lambda: self._arrive(sender, target, message))
            return
        swim = self.nodes[target]
        self.send(target, swim.on_message(sender, message, self.now_ms))
        swim.check()
