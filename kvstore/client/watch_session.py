"""A watch without its sockets: where each slot is heard from, and what was heard.

A prefix is in many slots and these are led by many nodes, so a watch is one link to each node that
leads some, and one sequence for each slot: the last operation that was heard. When a slot moves or
a link is lost, the slot is asked for again behind its sequence, at whoever leads it now; the
sequences make sure that every operation is heard once and in order, whoever tells it.

Where a node says "too old", operations were missed and cannot be told any more. The session then
says so (`Reset`), fetches the slot's present state by ordinary scans, and goes on behind the
sequence that the node named. What the scans have seen already is left out of what follows.

There are two sequences a slot: what has *arrived* says from where to ask again, what the caller was
*handed* is what a token means.

Like all of the client this decides and does not deliver: `begin` and `next_item` are flows that
yield `Listen` beside the steps of `kvstore.client.exchange`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator
from itertools import count
from typing import TYPE_CHECKING, Any, Final, TypeVar

from cluster.operations import Operation as Asked
from cluster.operations import Page, Scan
from cluster.outputs import WatchState
from cluster.records import record_version, unpack_version
from cluster.slots import slot_of
from kvstore.client.exchange import LinkLost, Listen, Step
from kvstore.client.routing import NOBODY
from kvstore.client.scanning import holds_tag
from kvstore.client.watch_queue import Item, Operation, Progress, Reset, State, WatchQueue
from kvstore.errors import AuthError, BadRequest, KVError, SlowWatcher, Unavailable
from kvstore.wire.protocol import (
    RouteQuery,
    Routes,
    SlotChanged,
    SlotTold,
    Watch,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kvstore.client.core import ClientCore
    from kvstore.client.exchange import Heard

T = TypeVar("T")
WatchFlow = Generator[Step | Listen, Any, T]

SILENCE_SECONDS: Final = 3.0
"""A node says something every second (`kvstore.node.watching.HEARTBEAT_MS`)."""

PAUSE_SECONDS: Final = (0.004, 3.0)
"""First and longest pause before a slot is asked for again."""

ROUTES_SECONDS: Final = 1.0
"""How often a routing table is asked for while some slots are not heard."""

WINDOW_SLOTS: Final = 64
"""Slots whose state is fetched together."""

WINDOW_KEYS: Final = 2_048
"""Keys that one fetch of them aims at."""


class WatchSession:
    """A watch under way.

    Args:
        core: The client's: its routing table, clock and chance.
        prefix: What keys begin with.
        resume: A token to go on from; None begins now.
    """

    def __init__(self, core: ClientCore, prefix: bytes, resume: str | None) -> None:
        self.core = core
        self.slot_count = 0
        self.heard = WatchQueue(0, 0)
        self._prefix = prefix
        self._resume = resume
        self._error: KVError | None = None
        self._why = ""
        self._first = 0
        self._arrived: list[int] = []
        self._asked: list[str] = []
        """Which node was asked for a slot last; it tells it unless the slot waits."""
        self._waits: dict[int, float] = {}
        """Slots that must be asked for -> when."""
        self._attempts: dict[int, int] = {}
        self._unstarted: set[int] = set()
        self._heard_at: dict[str, float] = {}
        """Links -> when something was heard there."""
        self._left_at = self._routes_at = self._fetch_at = core.now()
        self._frame_ids = count(1)
        self._resets: dict[int, int] = {}
        """Slots that were too old -> the sequence to go on behind."""
        self._window: dict[int, bytes] = {}
        """Those whose state is being fetched -> the last key that was."""
        self._fetched: dict[int, dict[bytes, int]] = {}
        """What their state contains: key -> the sequence that wrote it."""

    # -- what the caller sees ----------------------------------------------------------------

    def begin(self, deadline: float) -> WatchFlow[None]:
        """Until every slot is heard.

        Raises:
            BadRequest: the token is none of this watch.
            Unavailable: not before the deadline.
        """
        yield from self.core.ready(deadline)
        if not self._asked:
            self._open()
        while self._unstarted and self._error is None:
            if self.core.now() >= deadline:
                waiting, slots = len(self._unstarted), len(self._asked)
                raise Unavailable(
                    f"watch of {self._prefix!r:.80}: {waiting:,} of {slots:,} slots have no "
                    f"reachable primary with a quorum ({self._why or 'no answer in time'})"
                )
            yield from self._listen(deadline)

    def next_item(self, deadline: float) -> WatchFlow[Item | None]:
        """What comes next; None if nothing has at the deadline.

        Raises:
            SlowWatcher, AuthError: a node ended it; all that had arrived was handed out.
        """
        while (item := self.heard.take()) is None:
            if self._error is not None:
                raise self._error
            now = self.core.now()
            if now >= deadline:
                return None
            fetch_at = max(now, self._fetch_at) if self._resets else deadline
            yield from self._listen(min(deadline, fetch_at))
            if self._resets and fetch_at <= now:
                yield from self._fetch(deadline)
        return item

    def token(self) -> str:
        """Where to go on behind what was handed out.

        Raises:
            BadRequest: the watch has not begun.
        """
        if not self._asked:
            raise BadRequest("this watch has not begun, so it has no token yet")
        return self.heard.token(self._prefix, self.core.table.cluster_id, self.slot_count)

    # -- links -------------------------------------------------------------------------------

    def _open(self) -> None:
        table, now = self.core.table, self.core.now()
        self.slot_count = end = table.slot_count
        if holds_tag(self._prefix):
            self._first = slot_of(self._prefix, end)
            end = self._first + 1
        slots = end - self._first
        self.heard = WatchQueue(self._first, slots)
        if self._resume is not None:
            self.heard.resume(self._resume, self._prefix, table.cluster_id, self.slot_count)
        self._arrived = list(self.heard.handed)
        self._asked = [NOBODY] * slots
        self._waits = dict.fromkeys(range(self._first, end), now)
        self._unstarted = set(self._waits)
        self._left_at = now

    def _listen(self, deadline: float) -> WatchFlow[None]:
        """Send what is due, and take what arrives; may be cancelled."""
        step = self._step(deadline)
        try:
            heard = yield step
        finally:
            self._left_at = self.core.now()
        self._take(heard)

    def _step(self, deadline: float) -> Listen:
        now = self.core.now()
        away = now - self._left_at  # the caller was busy: that was nobody's silence
        self._heard_at = {address: at + away for address, at in self._heard_at.items()}
        silent = [a for a, at in self._heard_at.items() if now - at >= SILENCE_SECONDS]
        for address in silent:
            self._lose(address, LinkLost("", f"{address} is silent", silent=True))
        sends: list[tuple[str, Watch | RouteQuery]] = list(self._wishes(now))
        if self._waits and now - self._routes_at > ROUTES_SECONDS and self._heard_at:
            self._routes_at = now
            sends.append((next(iter(self._heard_at)), RouteQuery(next(self._frame_ids))))
        wake_at = min(deadline, *self._waits.values(), now + SILENCE_SECONDS)
        if self._heard_at:
            wake_at = min(wake_at, min(self._heard_at.values()) + SILENCE_SECONDS)
        return Listen(silent, sends, wake_at)

    def _wishes(self, now: float) -> Iterable[tuple[str, Watch]]:
        """One frame for each node that is to be asked for slots now."""
        table = self.core.table
        groups: defaultdict[str, list[int]] = defaultdict(list)
        for slot in [slot for slot, due in self._waits.items() if due <= now]:
            del self._waits[slot]
            asked, attempts = self._asked[slot - self._first], self._attempts.get(slot, 0)
            not_again = asked if attempts % 2 else NOBODY  # its hint may be wrong for long
            groups[table.resolve(table.primaries[slot], now, not_again=not_again)].append(slot)
        for address, slots in groups.items():
            self._heard_at.setdefault(address, now)
            for slot in slots:
                self._asked[slot - self._first] = address
            after = [self._arrived[slot - self._first] for slot in slots]
            yield address, Watch(self._prefix, slots, after)

    def _take(self, heard: list[Heard]) -> None:
        now = self.core.now()
        for address, item in heard:
            if isinstance(item, LinkLost):
                self._lose(address, item)
            elif isinstance(item, Routes):
                self.core.table.load(item, now)
            else:
                self._heard_at[address] = now
                for told in item.items:
                    if not self._is_told_by(told.slot, address):
                        continue
                    if isinstance(told, SlotChanged):
                        self._on_changed(told)
                    else:
                        self._on_told(told, now)

    def _is_told_by(self, slot: int, address: str) -> bool:
        """Whether this is whom the slot is heard from now."""
        at = slot - self._first
        if not 0 <= at < len(self._asked) or self._asked[at] != address:
            return False
        return slot not in self._waits and slot not in self._resets

    def _on_changed(self, told: SlotChanged) -> None:
        sequence = unpack_version(told.version).sequence
        at = told.slot - self._first
        if sequence <= self._arrived[at]:
            return
        self._arrived[at] = sequence
        changes, fetched = told.changes, self._fetched.get(told.slot)
        if fetched:
            changes = [change for change in changes if sequence > fetched.get(change[0], 0)]
        if changes:
            self.heard.put(Operation(told.slot, sequence, told.version, changes))
        else:
            self.heard.put(Progress(told.slot, sequence))

    def _on_told(self, told: SlotTold, now: float) -> None:
        slot = told.slot
        attempts = self._attempts.pop(slot, 0)
        match told.state:
            case WatchState.STARTED:
                self._unstarted.discard(slot)
                self._fetched.pop(slot, None)
                self._go_on_behind(slot, told.sequence)
            case WatchState.TOO_OLD:
                self._unstarted.discard(slot)
                self._resets[slot] = told.sequence
            case WatchState.MOVED | WatchState.MORE:
                if told.leader:
                    self.core.table.lead({slot: told.leader})
                self._why = self._why or f"slot {slot} is changing its primary"
                self._wait(slot, now, attempts, at_once=bool(told.leader))

    def _go_on_behind(self, slot: int, sequence: int) -> None:
        at = slot - self._first
        if sequence > self._arrived[at]:
            self._arrived[at] = sequence
            self.heard.put(Progress(slot, sequence))

    def _wait(self, slot: int, now: float, attempts: int, *, at_once: bool) -> None:
        """Ask for the slot again, at once the first time if that makes sense."""
        pause = min(PAUSE_SECONDS[1], PAUSE_SECONDS[0] * 2.0 ** min(attempts, 16))
        pause *= 0.5 + self.core.chance.random() / 2
        self._attempts[slot] = attempts + 1
        self._waits[slot] = now if at_once and not attempts else now + pause

    def _lose(self, address: str, lost: LinkLost) -> None:
        now = self.core.now()
        if lost.reason == "slow":
            self._error = SlowWatcher(f"{address} cut off {lost.detail}")
        elif lost.reason == "auth":
            self._error = AuthError(f"{address}: {lost.detail}")
        self._why = lost.detail
        self._heard_at.pop(address, None)
        self.core.table.failed(address, now, silent=lost.silent)
        for at, asked in enumerate(self._asked):
            slot = at + self._first
            if asked == address and self._is_told_by(slot, address):
                self._wait(slot, now, self._attempts.get(slot, 0), at_once=True)

    # -- what was too old --------------------------------------------------------------------

    def _fetch(self, deadline: float) -> WatchFlow[None]:
        """A page of the present state of some slots; those that cannot be read are left for later.

        Rule 6 makes what is read at least as new as the sequence that the node named.
        """
        if not self._window:
            slots = list(self._resets)[:WINDOW_SLOTS]
            self._window = dict.fromkeys(slots, b"")
            self._fetched |= {slot: {} for slot in slots}
            self.heard.put(Reset(frozenset(slots)))
        slots = list(self._window)
        limit = max(8, 2 * WINDOW_KEYS // len(slots))
        ops: list[Asked] = [
            Scan(slot, self._prefix, self._window[slot], limit, True) for slot in slots
        ]
        now = self.core.now()
        outcomes = yield from self.core.execute(ops, slots, min(deadline, now + SILENCE_SECONDS))
        now = self.core.now()
        for slot, page in zip(slots, outcomes, strict=True):
            if not isinstance(page, Page):
                self._fetch_at = now + PAUSE_SECONDS[1] * self.core.chance.random()
                continue
            for key, record in zip(page.keys, page.records, strict=True):
                self.heard.put(State(key, record))
                sequence = unpack_version(record_version(record)).sequence
                self._fetched[slot][key] = sequence
                self._window[slot] = key
            if not page.more:
                del self._window[slot]
                sequence = self._resets.pop(slot)
                self._go_on_behind(slot, sequence)
                self._waits[slot] = now
