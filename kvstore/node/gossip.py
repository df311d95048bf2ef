"""The failure detector on a real clock and real links.

`cluster.swim` decides; this calls it when it is due, sends what it says over the gossip links, and
passes on what it finds. A probe is answered in the turn of the loop in which it arrives, before any
data. Gossip decides routing and alarms, never safety. Each message also says which topology its
sender is at (`kvstore.node.spreading`).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from kvstore.wire.protocol import Gossip

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cluster.ballot import NodeId
    from cluster.members import MemberState
    from cluster.swim import Swim
    from cluster.swim_messages import GossipMessage
    from kvstore.node.peers import Peers


TICK_MS_MIN: Final = 10
"""Between two looks at what is due: much less than any wait of gossip."""


class GossipDriver:
    """Runs one `Swim`.

    Args:
        swim: The state machine.
        peers: Its links.
        on_state: Told each change of a member's state.
        epoch: Of this node's topology.
        now_ms: Monotonic milliseconds.
    """

    def __init__(
        self,
        swim: Swim,
        peers: Peers,
        on_state: Callable[[NodeId, MemberState], None],
        epoch: Callable[[], int],
        now_ms: Callable[[], int],
    ) -> None:
        self.swim = swim
        self._peers = peers
        self._on_state = on_state
        self._epoch = epoch
        self._now_ms = now_ms
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._due_ms = 0
        self._closed = False

    def start(self) -> None:
        """Begin to probe."""
        self._tick()

    def receive(self, sender: NodeId, message: GossipMessage) -> None:
        """A message of another node; the answer leaves at once."""
        self._send(self.swim.on_message(sender, message, self._now_ms()))
        self._arm()

    def unreachable(self, node: NodeId) -> None:
        """The transport says that nobody is there."""
        self._send(self.swim.on_unreachable(node, self._now_ms()))
        self._arm()

    def _tick(self) -> None:
        if self._closed:
            return
        self._timer = None
        self._send(self.swim.tick(self._now_ms()))
        self._arm()

    def _arm(self) -> None:
        """Call `_tick` when the next thing is due: a message may have brought that forward."""
        due_ms = self.swim.next_due_ms()
        if self._closed or (self._timer is not None and self._due_ms <= due_ms):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._due_ms = due_ms
        wait_ms = max(due_ms - self._now_ms(), TICK_MS_MIN)
        self._timer = self._loop.call_later(wait_ms / 1_000, self._tick)

    def _send(self, messages: Iterable[tuple[NodeId, GossipMessage]]) -> None:
        for node, message in messages:
            self._peers.send_gossip(node, Gossip(message, self._epoch()))
        for event in self.swim.take_events():
            self._on_state(event.node, event.state)

    def close(self) -> None:
        """Say goodbye and stop; twice is fine."""
        if self._closed:
            return
        self._closed = True
        for node, message in self.swim.leave(self._now_ms()):
            self._peers.send_gossip(node, Gossip(message, self._epoch()))
        if self._timer is not None:
            self._timer.cancel()
