"""The watches of this node: who hears what of all that commits here.

A watch is one listener (a connection, or a reader in this process) with a prefix and the slots that
it asked for here; each slot begins behind a sequence of its own. The core says what commits
(`cluster.watches`); this keeps what is under the prefix and sends it on, one frame a tick.

Writers never wait for a watcher. What a listener does not read yet waits here, as references to
what was written; beyond a limit all of that is dropped, and the listener is told why and cut off.
It can go on from its last token. Starting thousands of slots, replays included, is spread over
ticks, and a replay goes on only while its listener reads.

A watcher of a rare prefix in a busy slot would fall behind the reach of the key log without having
missed anything. So it is told each `PROGRESS_STEP`-th operation of a slot, without changes if none
are its: it then knows how far it has heard.

A listener hears something at least every `HEARTBEAT_MS`: silence means that this node is gone.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

from cluster.key_log import KEY_LOG_EVICTION_STEP
from cluster.limits import KEY_BYTES_MAX, KEY_LOG_ENTRIES_MAX
from cluster.outputs import Changed, WatchState
from kvstore.log import get_logger
from kvstore.wire.protocol import FROM_NOW, SlotChanged, SlotTold, Watched

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cluster.outputs import Told
    from cluster.slot_table import SlotTable
    from kvstore.wire.protocol import Frame, Watch

log = get_logger(__name__)

WATCHES_MAX: Final = 1_000
"""Each write of a watched slot is compared with the prefix of each: about 50 ns."""

UNREAD_BYTES_MAX: Final = 4 * 1_048_576
"""What a listener may leave waiting here, beside what is on its way to it."""

SENT_BYTES_MAX: Final = 1_048_576
"""Bytes on their way to a listener, unsent by its connection, above which the rest waits. Above it
no further slots are started either: a replay is no reason to be cut off."""

FRAME_BYTES: Final = 1_048_576
"""A frame of changes is full above this; one operation always fits, as it did as an Accept."""

STARTS_PER_TICK: Final = 128
STOPS_PER_TICK: Final = 1_024
HEARTBEAT_MS: Final = 1_000
LINGER_MS: Final = 60_000
"""Who was cut off has so long to read why; the few bytes on their way to it are kept until then."""

PROGRESS_STEP: Final = 64
_ITEM_OVERHEAD_BYTES: Final = 48

assert PROGRESS_STEP + KEY_LOG_EVICTION_STEP <= KEY_LOG_ENTRIES_MAX


class Listener(Protocol):
    """Where a watch is sent to; `kvstore.node.connection.Connection` is one."""

    @property
    def unsent_bytes(self) -> int:
        """What it was sent that has not left this process."""

    def send(self, frame: Frame) -> None:
        """Queue a frame."""

    def refuse(self, reason: str, detail: str, *, kind: str = "") -> None:
        """Send the reason, then close."""

    def abort(self, reason: str) -> None:
        """Drop whatever is unread."""


class Watcher:
    """One listener's wishes, and what it is about to be sent."""

    __slots__ = (
        "frames",
        "frames_bytes",
        "items",
        "items_bytes",
        "listener",
        "prefix",
        "sent_ms",
        "slots",
        "waiting",
    )

    def __init__(self, listener: Listener, prefix: bytes, slot_count: int, now_ms: int) -> None:
        self.listener = listener
        self.prefix = prefix
        self.slots = bytearray(slot_count)
        """1 for those that are watched, or wait to be; a set would take 30 times as much."""
        self.waiting: deque[tuple[int, int | None]] = deque()
        """(slot, behind which sequence), not yet given to the core."""
        self.items: list[SlotChanged | SlotTold] = []
        self.items_bytes = 0
        self.frames: deque[tuple[Watched, int]] = deque()
        """What waits for the listener to read, with its size in bytes."""
        self.frames_bytes = 0
        self.sent_ms = now_ms


class Watching:
    """All watches of a node.

    Args:
        now_ms: Monotonic time in milliseconds.
    """

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self._table: SlotTable
        self._slot_count = 0
        self._wake: Callable[[], None]
        self._now_ms = now_ms
        self._watchers: dict[Listener, Watcher] = {}
        self._starting: dict[Watcher, None] = {}
        self._leaving: deque[tuple[Watcher, int]] = deque()
        self._cut: dict[Listener, int] = {}

    def begin(self, table: SlotTable, slot_count: int, wake: Callable[[], None]) -> None:
        """The node is founded; before that every watch is refused.

        Args:
            table: Its slots.
            slot_count: Those of them that hold data and can be watched.
            wake: Schedules the end of the tick (`kvstore.node.loop`).
        """
        self._table, self._slot_count, self._wake = table, slot_count, wake

    @property
    def count(self) -> int:
        """Watches that are open."""
        return len(self._watchers)

    def take(self, listener: Listener, watch: Watch) -> None:
        """Begin a watch, or add slots to it; what is wrong with it is its end."""
        if not self._slot_count:
            listener.refuse("unavailable", "this node waits for the other founders of its cluster")
            return
        watcher = self._watchers.get(listener)
        fault = self._fault(watcher, watch)
        if fault is not None:
            self.leave(listener)
            listener.refuse("frame", fault, kind="request")
            return
        if watcher is None:
            if len(self._watchers) + len(self._cut) >= WATCHES_MAX:
                detail = f"this node has its {WATCHES_MAX:,} watches; close some, or watch fewer"
                listener.refuse("overloaded", detail, kind="watches")
                return
            watcher = self._watchers[listener] = Watcher(
                listener, watch.prefix, self._slot_count, self._now_ms()
            )
        for slot, after in zip(watch.slots, watch.after, strict=True):
            watcher.slots[slot] = 1
            watcher.waiting.append((slot, None if after == FROM_NOW else after))
        self._starting[watcher] = None
        self._wake()

    def leave(self, listener: Listener) -> None:
        """The listener is gone, or shall be; fine if it never watched."""
        self._cut.pop(listener, None)
        watcher = self._watchers.pop(listener, None)
        if watcher is not None:
            self._starting.pop(watcher, None)
            self._leaving.extend((watcher, slot) for slot, on in enumerate(watcher.slots) if on)
            watcher.waiting.clear()
            watcher.items.clear()
            watcher.frames.clear()
            self._wake()

    def before_tick(self) -> None:
        """Start what waits and stop what left, as much as one tick has time for."""
        if not self._leaving and not self._starting:
            return
        for _ in range(min(STOPS_PER_TICK, len(self._leaving))):
            self._table.watches.stop(*self._leaving.popleft())
        starts, replay_bytes = STARTS_PER_TICK, 0
        for watcher in list(self._starting):
            if watcher.frames or watcher.listener.unsent_bytes > SENT_BYTES_MAX:
                continue  # looked at again in some tick soon; timers make sure that there is one
            while watcher.waiting and starts > 0 and replay_bytes < FRAME_BYTES:
                slot, after = watcher.waiting.popleft()
                replay_bytes += self._table.watches.start(watcher, slot, after)
                starts -= 1
            if not watcher.waiting:
                del self._starting[watcher]
        if self._leaving or starts <= 0 or replay_bytes >= FRAME_BYTES:
            self._wake()

    def tell(self, watched: Iterable[Changed | Told]) -> None:
        """Send on what the tick brought."""
        touched: dict[Watcher, None] = {}
        for told in watched:
            if isinstance(told, Changed):
                self._pass_on(told, touched)
            elif told.watcher.listener in self._watchers:
                self._on_told(told, touched)
        for watcher in touched:
            self._flush(watcher)

    def tick(self) -> None:
        """Timers: a sign of life to whoever was sent nothing, an end to who was cut off."""
        now_ms = self._now_ms()
        for watcher in self._watchers.values():
            if watcher.frames:
                self._pump(watcher)
            elif now_ms - watcher.sent_ms >= HEARTBEAT_MS:
                watcher.sent_ms = now_ms
                watcher.listener.send(Watched([]))
        for listener in [one for one, at_ms in self._cut.items() if at_ms <= now_ms]:
            del self._cut[listener]
            listener.abort("a slow watcher that did not even read why it was cut off")

    def _fault(self, watcher: Watcher | None, watch: Watch) -> str | None:
        """What is wrong with a frame, or None."""
        slots, count = watch.slots, self._slot_count
        if len(watch.after) != len(slots):
            return f"{len(watch.after)} sequences for {len(slots)} slots"
        if not slots or min(slots) < 0 or max(slots) >= count:
            return f"a watch names some slots from 0 to {count - 1}"
        if min(watch.after) < FROM_NOW or max(watch.after) >= 1 << 63:
            return "a sequence is a number of 63 bits, or -1"
        if len(watch.prefix) > KEY_BYTES_MAX:
            return f"a prefix of over {KEY_BYTES_MAX} bytes"
        if watcher is not None and watcher.prefix != watch.prefix:
            return "one watch has one prefix"
        if len(set(slots)) < len(slots) or (watcher and any(watcher.slots[slot] for slot in slots)):
            return "a slot is watched twice"
        return None

    def _pass_on(self, changed: Changed, touched: dict[Watcher, None]) -> None:
        changes = changed.changes
        whole = SlotChanged(changed.slot, changed.version, changes)
        is_step = not changed.version[-1] % PROGRESS_STEP
        for watcher in changed.watchers:
            mine = [change for change in changes if change[0].startswith(watcher.prefix)]
            if not (mine or is_step) or watcher.listener not in self._watchers:
                continue
            all_mine = len(mine) == len(changes)
            item = whole if all_mine else SlotChanged(changed.slot, changed.version, mine)
            watcher.items.append(item)
            watcher.items_bytes += _ITEM_OVERHEAD_BYTES
            for key, record in mine:
                watcher.items_bytes += len(key) + len(record or b"")
            touched[watcher] = None
            if watcher.items_bytes > FRAME_BYTES:
                self._flush(watcher)

    def _on_told(self, told: Told, touched: dict[Watcher, None]) -> None:
        watcher: Watcher = told.watcher
        slot = told.slot
        if told.state is WatchState.MORE:
            watcher.waiting.append((slot, told.sequence))
            self._starting[watcher] = None
            self._wake()
            return
        leader = 0
        if told.state is not WatchState.STARTED:
            watcher.slots[slot] = 0
            if told.state is WatchState.MOVED:
                leader = self._table.leader_of(slot) or self._table.want(slot) or 0
        watcher.items.append(SlotTold(slot, told.state, told.sequence, leader))
        watcher.items_bytes += _ITEM_OVERHEAD_BYTES
        touched[watcher] = None

    def _flush(self, watcher: Watcher) -> None:
        if watcher.items and watcher.listener in self._watchers:
            watcher.frames.append((Watched(watcher.items), watcher.items_bytes))
            watcher.frames_bytes += watcher.items_bytes
            watcher.items, watcher.items_bytes = [], 0
            self._pump(watcher)
            if watcher.frames_bytes > UNREAD_BYTES_MAX:
                self._cut_off(watcher.listener, watcher.frames_bytes)

    def _pump(self, watcher: Watcher) -> None:
        """Send what the listener has room for."""
        listener = watcher.listener
        while watcher.frames and listener.unsent_bytes <= SENT_BYTES_MAX:
            frame, size = watcher.frames.popleft()
            watcher.frames_bytes -= size
            watcher.sent_ms = self._now_ms()
            listener.send(frame)

    def _cut_off(self, listener: Listener, unread: int) -> None:
        self.leave(listener)
        self._cut[listener] = self._now_ms() + LINGER_MS
        listener.refuse(
            "slow",
            f"a slow watcher: {unread:,} bytes wait to be read, the limit is {UNREAD_BYTES_MAX:,}; "
            "go on from the last token, and read faster or watch less",
            kind="slow_watcher",
        )
