"""Changes of the topology, made by whichever node is asked (rule 17).

A change is applied to the newest document and the result put in its place if that still stands;
if another change came first, it is applied to what that one made. So two operators at once are
served one after the other, or the second is told why his change makes no sense any more.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from cluster.membership import apply_change
from cluster.operations import Code, Failed
from cluster.topology import TopologyError, encode_topology
from kvstore.errors import KVError, OutcomeUnknown, Unavailable
from kvstore.log import get_logger
from kvstore.node.tasks import background
from kvstore.wire.protocol import TopologyChanged

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from cluster.membership import TopologyChange
    from cluster.topology import Topology
    from kvstore.node.clock import Clock
    from kvstore.node.topology_record import TopologyRecord
    from kvstore.wire.protocol import ChangeTopology

log = get_logger(__name__)

CHANGES_MAX: Final = 16
"""Changes under way at once at one node; more are told to come again."""

TIMEOUT_MS: Final = 10_000
"""For a change that came over the peer port."""

PAUSE_S: Final = 0.05
"""After a conflict, with jitter, so that two do not meet again."""


class Changes:
    """Makes changes for one node.

    Args:
        record: The document in the system slot.
        on_changed: Told what this node now knows to be committed.
        clock: For deadlines.
        rng: For jitter.
    """

    def __init__(
        self,
        record: TopologyRecord,
        on_changed: Callable[[Topology], None],
        clock: Clock,
        rng: Random,
    ) -> None:
        self._record = record
        self._on_changed = on_changed
        self._clock = clock
        self._rng = rng
        self._tasks: set[asyncio.Task[None]] = set()

    async def make(self, change: TopologyChange, timeout_ms: int) -> Topology:
        """Carry a change out; returns the topology in which it is true.

        Raises:
            TopologyError: it is refused; nothing was changed.
            Unavailable: the system slot cannot be reached, or others were quicker all the time.
            OutcomeUnknown: it may or may not have been made; to repeat it is no harm.
        """
        until_ms = self._clock.now_ms() + timeout_ms
        conflicts = 0
        while (left_ms := until_ms - self._clock.now_ms()) > 0:
            stored = await self._record.read(left_ms)
            changed = apply_change(stored.topology, change)
            if changed is stored.topology or await self._record.replace(
                changed, stored.version, max(until_ms - self._clock.now_ms(), 1)
            ):
                log.info("topology changed", epoch=changed.epoch, change=repr(change))
                self._on_changed(changed)
                return changed
            conflicts += 1
            await asyncio.sleep(PAUSE_S * self._rng.uniform(0.2, 1.0))
        detail = f"others were quicker {conflicts} times" if conflicts else "the time was over"
        raise Unavailable(f"the topology was not changed: {detail}; try again")

    def take(self, asked: ChangeTopology, reply: Callable[[TopologyChanged], None]) -> None:
        """Carry out a change that came over the peer port."""
        if len(self._tasks) >= CHANGES_MAX:
            detail = f"{CHANGES_MAX} changes of the topology are under way here; try again"
            reply(TopologyChanged(asked.id, b"", Failed(Code.OVERLOADED, detail)))
            return
        task = background(self._answer(asked, reply), "change of the topology")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(
        self, asked: ChangeTopology, reply: Callable[[TopologyChanged], None]
    ) -> None:
        try:
            topology = await self.make(asked.change, TIMEOUT_MS)
        except (TopologyError, KVError) as error:
            reply(TopologyChanged(asked.id, b"", failure_of(error)))
        else:
            reply(TopologyChanged(asked.id, encode_topology(topology)))

    async def close(self) -> None:
        """Give up what is under way; whoever asked will find out by repeating it."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def failure_of(error: TopologyError | KVError) -> Failed:
    """Why a change was not made, as a result."""
    if isinstance(error, TopologyError):
        return Failed(Code.BAD_REQUEST, str(error))
    if isinstance(error, OutcomeUnknown):
        return Failed(Code.UNKNOWN, str(error))
    return Failed(Code.UNAVAILABLE, str(error))
