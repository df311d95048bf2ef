"""Many failure detectors on one virtual clock and network, for the tests and figures of gossip.

Time goes in milliseconds. What happens in one of them happens in the order in which it was planned,
so that one seed is one run. A node is called when something of its own is due, as the driver on
real links does it (`kvstore.node.gossip`), at most every `TICK_MS_MIN`.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

from cluster.members import MemberState
from cluster.swim import Swim
from cluster.swim_settings import SwimSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from cluster.ballot import NodeId
    from cluster.swim_messages import GossipMessage

TICK_MS_MIN: Final = 10
SETTINGS: Final = SwimSettings()

Step = tuple["NodeId", "NodeId", "GossipMessage | None"]
"""A message to the first from the second; without a message, something may be due at the first."""


class GossipCluster:
    """What goes wrong is set on the public attributes while it runs.

    Args:
        ids: The nodes; a number stands for 1 to that number.
        loss: How likely each message is lost.
        size_of: Bytes of a message, where they are counted.
        checked: Whether all invariants are asserted after each step; O(nodes) each time.
    """

    def __init__(
        self,
        ids: int | Sequence[NodeId],
        seed: int = 0,
        *,
        loss: float = 0.0,
        settings: SwimSettings = SETTINGS,
        size_of: Callable[[GossipMessage], int] = lambda message: 0,
        checked: bool = True,
    ) -> None:
        self.now_ms = 1_000
        self.rng = random.Random(seed)
        self.loss = loss
        self.frozen: set[NodeId] = set()
        self.cut: set[tuple[NodeId, NodeId]] = set()
        self.messages_sent = 0
        self.bytes_sent = 0
        self._size_of = size_of
        self._settings = settings
        self._checked = checked
        self._ids = range(1, ids + 1) if isinstance(ids, int) else ids
        self._steps: dict[int, list[Step]] = {}
        self._tick_at_ms: dict[NodeId, int] = {}
        self._waiting: dict[NodeId, list[Step]] = {}
        self.nodes = {node: self._new(node) for node in self._ids}
        for node in self.nodes:
            self._tick_at(node, self.now_ms + self.rng.randrange(settings.probe_interval_ms))

    def _new(self, node: NodeId) -> Swim:
        swim = Swim(node, self._settings, random.Random(self.rng.random()), self.now_ms)
        swim.join(self._ids, self.now_ms)
        return swim

    def restart(self, node: NodeId) -> None:
        """The process comes back without memory."""
        self._waiting.pop(node, None)
        self.frozen.discard(node)
        self.nodes[node] = self._new(node)
        self._tick_at(node, self.now_ms + 1)

    def thaw(self, node: NodeId) -> None:
        """A frozen process goes on where it was, with all that has arrived meanwhile."""
        self.frozen.discard(node)
        for step in self._waiting.pop(node, []):
            self._take(step)

    def run(self, duration_ms: int) -> None:
        """Let time pass."""
        end_ms = self.now_ms + duration_ms
        while self.now_ms < end_ms:
            self.now_ms += 1
            for step in self._steps.pop(self.now_ms, ()):
                self._take(step)

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

    def send(self, sender: NodeId, sends: Iterable[tuple[NodeId, GossipMessage]]) -> None:
        """Put messages on the virtual network."""
        for target, message in sends:
            self.messages_sent += 1
            self.bytes_sent += self._size_of(message)
            if (sender, target) in self.cut or self.rng.random() < self.loss:
                continue
            arrival_ms = self.now_ms + 1 + self.rng.randrange(5)
            self._steps.setdefault(arrival_ms, []).append((target, sender, message))

    def _tick_at(self, node: NodeId, at_ms: int) -> None:
        self._tick_at_ms[node] = at_ms
        self._steps.setdefault(at_ms, []).append((node, node, None))

    def _take(self, step: Step) -> None:
        node, sender, message = step
        if message is None and self._tick_at_ms[node] > self.now_ms:
            return  # called earlier meanwhile, and due again
        if node in self.frozen:
            self._waiting.setdefault(node, []).append(step)
            return
        swim = self.nodes[node]
        if message is None:
            self.send(node, swim.tick(self.now_ms))
        else:
            self.send(node, swim.on_message(sender, message, self.now_ms))
        if self._checked:
            swim.check()
        due_ms = max(swim.next_due_ms(), self.now_ms + TICK_MS_MIN)
        if message is None or due_ms < self._tick_at_ms[node]:
            self._tick_at(node, due_ms)
