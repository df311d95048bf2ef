"""The tick: what arrived in one turn of the loop goes through the core, and comes out, at once.

::

    frames, requests, acks of the fsync ──> SlotTable ──> Outputs
        1. send        one frame per peer, beside the own write (rule 1)
        2. write       one batch, unsynced, on the loop
        3. answers     released by commits, and what watchers are told of them
        4. after_fsync when the sync thread is done: acks and promises to peers, and to ourselves

Whoever feeds the core calls `wake`; the tick ends in the same turn of the loop, once, after
everything that had arrived. What a socket or the disk says of the only request that is under way
here has nothing to be gathered with: that tick ends at once, which spares a single operation a turn
of the loop at each of its stations.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cluster.ballot import NodeId
    from cluster.messages import SlotMessage
    from cluster.slot_table import SlotTable
    from kvstore.node.clock import Clock
    from kvstore.node.gathering import Waiter
    from kvstore.node.health import Health
    from kvstore.node.peers import Peers
    from kvstore.node.router import Router
    from kvstore.node.watching import Watching
    from kvstore.storage.engine import Batch
    from kvstore.storage.tick_store import TickStore
    from kvstore.wire.protocol import Request, Response


SLEPT_MS: Final = 1_000
"""A node whose loop did not run for so long was frozen, and is dead to the others: gossip takes
less. The timer of the core would have come twenty times."""


class Commit(Protocol):
    """Group commit, or its twin without an fsync (`kvstore.storage.group_commit`)."""

    def write(self, batch: Batch, done: Callable[[], None]) -> None:
        """Write now, call ``done`` on the loop when it is durable."""


class CoreLoop:
    """Feeds the core's outputs to storage, peers and callers, in their order."""

    def __init__(
        self,
        me: NodeId,
        table: SlotTable,
        store: TickStore,
        commit: Commit,
        on_leads_changed: Callable[[set[int]], None],
        clock: Clock,
    ) -> None:
        self._me = me
        self._table = table
        self._store = store
        self._commit = commit
        self._on_leads_changed = on_leads_changed
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._timed = False
        """Whether this tick has begun: the core has been told the time."""
        self._began_ms = clock.now_ms()
        """When the newest tick began."""
        self._received_ms: int | None = None
        """When a message of a peer was taken first in this tick."""
        self._longest_ms = 0
        self._scheduled = False
        self._closed = False
        self.peers: Peers | None = None
        self.router: Router | None = None
        self.watching: Watching | None = None
        self.health: Health | None = None
        self.on_slept: Callable[[int], None] = lambda _: None
        """Told for how many milliseconds the loop did not run, before anything else is taken."""
        self.ticks_total = 0

    def wake(self) -> None:
        """Something was fed: end the tick in this turn of the loop."""
        if not self._scheduled:
            self._begin()
            self._scheduled = True
            self._loop.call_soon(self._end_tick)

    def receive(self, sender: NodeId, messages: list[SlotMessage]) -> None:
        """Messages of a peer."""
        self._begin()
        if self._received_ms is None:
            self._received_ms = self._clock.now_ms()
        self._table.receive(sender, messages)
        self._settle()

    def submit(self, request: Request, reply: Callable[[Response], None], waiter: Waiter) -> None:
        """A request that was let in, for the router."""
        assert self.router is not None
        self._begin()
        self.router.submit(request, reply, waiter)
        self._settle()

    def _begin(self) -> None:
        if not self._timed:
            self._timed = True
            before_ms, self._began_ms = self._began_ms, self._clock.now_ms()
            self._table.set_time(self._began_ms, self._clock.unix_ms())
            if self._began_ms - before_ms > SLEPT_MS:
                self.on_slept(self._began_ms - before_ms)

    def _settle(self) -> None:
        """End the tick now if nothing else is under way, or with what else arrives."""
        assert self.router is not None
        if self._scheduled:
            return
        if self.router.in_flight <= 1:
            self._end_tick()
        else:
            self.wake()

    def longest_ms(self) -> int:
        """What took longest of all that peers said, from its arrival until it was done with.

        Since the last time that this was asked.
        """
        longest, self._longest_ms = self._longest_ms, 0
        return longest

    def close(self) -> None:
        """No more ticks: the node stops."""
        self._closed = True

    def _end_tick(self) -> None:
        self._timed = self._scheduled = False
        if self._closed:
            return
        peers, router, watching = self.peers, self.router, self.watching
        assert peers is not None
        assert router is not None
        assert watching is not None
        self.ticks_total += 1
        watching.before_tick()
        out = self._table.take()
        if out.send:
            peers.send_tick(out.send)
        if out.after_fsync or self._store.is_written:
            self._commit.write(self._store.take(), partial(self._synced, out.after_fsync))
        for ticket, result in out.answers:
            router.answer(ticket, result)
        for moved in out.moved:
            router.on_moved(moved)
        if out.watched:
            watching.tell(out.watched)
        if out.leads_changed:
            self._on_leads_changed(out.leads_changed)
        if out.alarms and self.health is not None:
            self.health.on_alarms(out.alarms)
        router.end_tick()
        if self._received_ms is not None:
            took_ms = self._clock.now_ms() - self._received_ms
            self._longest_ms, self._received_ms = max(self._longest_ms, took_ms), None

    def _synced(self, after: Mapping[NodeId, list[SlotMessage]]) -> None:
        """What was written when these were queued is durable now (R2, R9)."""
        if self._closed:
            return
        peers = self.peers
        assert peers is not None
        for node, messages in after.items():
            if node == self._me:
                self.receive(node, messages)
            else:
                peers.send_slots(node, messages)
