"""Watches: every committed operation of a slot, once and in commit order.

A *watcher* is somebody outside who wants a slot's changes behind a sequence. While a slot has
watchers, its primary keeps the changes of what is in flight (a `Feed`); they leave with the commit.
A slot without watchers pays one look at an attribute for each write.

Only committed sequences are ever named to a watcher, and what is committed is the same in every
later ballot. So a sequence is enough to go on behind it at whatever primary serves the slot next:
what was missed is replayed from the key log. The key log has no values. The newest change of a key
is joined with the record as it stands; an older one is passed on as `SUPERSEDED`, and the change
that took its place follows in the same order.

That promise must survive a failover, so a watcher *joins* only when all that was in flight when it
came has committed: a change is never called superseded by one that may yet be lost. For the same
reason a watcher that asks for what comes "from now on" begins behind everything that is in flight,
and therefore is told every change with its value.

Where the key log does not reach back the answer is "too old", with the sequence to go on from once
the caller has fetched the present state. A slot that this node does not serve, serves no more, or
serves out of reach of a quorum (it may have been deposed without a word) has "moved". Who was told
more than this primary has committed is ahead of it, so there is a newer one: moved, too.

What is kept is bounded: beyond `KEPT_BYTES_MAX` for all slots together the watchers of the fullest
are told "moved", and come back by way of the key log.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cluster.ballot import Ballot
from cluster.key_log import decode_entry
from cluster.outputs import Changed, Told, WatchState
from cluster.quorum import is_quorum
from cluster.records import pack_version
from cluster.slot import Primary
from cluster.store import Damage, check_intact

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cluster.messages import Change
    from cluster.outputs import Outputs, Watcher
    from cluster.slot import Context, Slot

SUPERSEDED = b""
"""In place of a record: the key was changed, and again later, so this value is not known here."""

KEPT_BYTES_MAX = 64 * 1_048_576
"""Records kept for watchers until they commit, over all slots."""

REPLAY_BYTES = 262_144
"""A replay pauses above this, so that neither a tick nor a connection swallows a whole key log."""

_CHANGE_OVERHEAD_BYTES = 64


class Room:
    """How much all feeds of a node keep."""

    __slots__ = ("taken_bytes",)

    def __init__(self) -> None:
        self.taken_bytes = 0


@dataclass(slots=True)
class Joining:
    """What a watcher is told, all at once, when ``goal`` is committed."""

    watcher: Watcher
    goal: int
    changed: list[Changed]
    then: Told
    size_bytes: int

    def tell(self, out: Outputs) -> None:
        """The time has come."""
        out.watched += self.changed
        out.watched.append(self.then)


class Feed:
    """The changes in flight of a slot that is watched."""

    __slots__ = ("joining", "number", "pending", "room", "watchers")

    def __init__(self, number: int, room: Room) -> None:
        self.number = number
        self.room = room
        self.watchers: tuple[Watcher, ...] = ()
        """Replaced, never changed: outputs of this tick may refer to it."""
        self.joining: list[Joining] = []
        """As they came, so that no one who starts has a lower goal than one before."""
        self.pending: deque[tuple[int, list[Change], int]] = deque()
        """(sequence, changes, bytes), in order."""

    @property
    def is_idle(self) -> bool:
        """Nobody is here any more."""
        return not self.watchers and not self.joining

    @property
    def kept_bytes(self) -> int:
        """What it has taken of its room."""
        pending = sum(size for _, _, size in self.pending)
        return pending + sum(joining.size_bytes for joining in self.joining)

    def add(self, sequence: int, changes: list[Change]) -> None:
        """An operation that was just given its sequence."""
        size = _size_bytes(changes)
        self.pending.append((sequence, changes, size))
        self.room.taken_bytes += size

    def join(self, joining: Joining, committed: int, out: Outputs) -> None:
        """Tell a watcher what it missed, now or when all of it has committed."""
        self.joining.append(joining)
        self.room.taken_bytes += joining.size_bytes
        self._admit(committed, out)

    def release(self, primary: Primary, out: Outputs) -> None:
        """Pass on what is committed now, in order."""
        pending, committed = self.pending, primary.committed
        while pending and pending[0][0] <= committed:
            sequence, changes, size = pending.popleft()
            self.room.taken_bytes -= size
            self._admit(sequence - 1, out)
            if self.watchers:
                version = primary.ballot_bytes + sequence.to_bytes(8, "big")
                out.watched.append(Changed(self.watchers, self.number, version, changes))
        self._admit(committed, out)

    def _admit(self, committed: int, out: Outputs) -> None:
        while self.joining and self.joining[0].goal <= committed:
            joining = self.joining.pop(0)
            self.room.taken_bytes -= joining.size_bytes
            joining.tell(out)
            if joining.then.state is WatchState.STARTED:
                self.watchers = (*self.watchers, joining.watcher)

    def leave(self, watcher: Watcher) -> None:
        """This watcher is told nothing more."""
        self.watchers = tuple(other for other in self.watchers if other is not watcher)
        gone = [joining for joining in self.joining if joining.watcher is watcher]
        self.room.taken_bytes -= sum(joining.size_bytes for joining in gone)
        self.joining = [joining for joining in self.joining if joining.watcher is not watcher]

    def end(self, out: Outputs) -> None:
        """This node leads no more, or keeps too much: what is in flight is not for it to tell."""
        self.room.taken_bytes -= self.kept_bytes
        for watcher in (*self.watchers, *(joining.watcher for joining in self.joining)):
            out.watched.append(Told(watcher, self.number, WatchState.MOVED, 0))
        self.pending.clear()
        self.joining.clear()
        self.watchers = ()


class Watches:
    """The watchers of all slots of a node."""

    def __init__(self, slots: Sequence[Slot | None], ctx: Context) -> None:
        self._slots = slots
        self._ctx = ctx
        self._room = Room()

    def start(self, watcher: Watcher, number: int, after: int | None) -> int:
        """Tell this watcher, who is none of this slot's yet, what is committed behind a sequence.

        In this tick or, when all that is in flight now has committed, in a later one the outputs
        have what was missed, then `WatchState.STARTED` with the sequence up to which all was told;
        or why not: MOVED, TOO_OLD, or MORE with a sequence to start from in another tick.

        Args:
            watcher: Whoever it is; told in the outputs.
            number: The slot.
            after: A sequence that was told of this slot; None for whatever comes from now on.

        Returns:
            About how many bytes it is told at once.
        """
        out, slot = self._ctx.out, self._slots[number]
        primary = slot.role if slot is not None else None
        if slot is None or not isinstance(primary, Primary) or not self._leads(slot, primary):
            out.watched.append(Told(watcher, number, WatchState.MOVED, 0))
            return 0
        if after is None:
            joining = _joining(watcher, slot, [], slot.sequence, WatchState.STARTED, slot.sequence)
        elif after > primary.committed:  # there is a newer primary than this one
            out.watched.append(Told(watcher, number, WatchState.MOVED, 0))
            return 0
        elif after + 1 < slot.log_begin:
            out.watched.append(Told(watcher, number, WatchState.TOO_OLD, primary.committed))
            return 0
        else:
            try:
                joining = self._replay(watcher, slot, after)
            except Damage:  # R18: a good copy is elsewhere, or will be here
                out.watched.append(Told(watcher, number, WatchState.MOVED, 0))
                return 0
        if joining.then.state is not WatchState.STARTED and joining.goal <= primary.committed:
            joining.tell(out)
            return joining.size_bytes
        if primary.feed is None:
            primary.feed = Feed(number, self._room)
        primary.feed.join(joining, primary.committed, out)
        return joining.size_bytes

    def stop(self, watcher: Watcher, number: int) -> None:
        """Tell this watcher nothing more of the slot; no matter whether it was told anything."""
        slot = self._slots[number]
        primary = slot.role if slot is not None else None
        if isinstance(primary, Primary) and primary.feed is not None:
            primary.feed.leave(watcher)
            if primary.feed.is_idle:
                self._close(primary)

    def doubt(self) -> None:
        """A peer is out of reach: what this node cannot commit, another one may lead by now."""
        for slot, primary in self._fed():
            if not is_quorum(self._ctx.reachable, slot.config):
                self._close(primary)

    def tidy(self) -> None:
        """Let go of the fullest feeds while all of them keep too much; call it in each tick."""
        if self._room.taken_bytes <= KEPT_BYTES_MAX:
            return
        fed = sorted((primary for _, primary in self._fed()), key=_kept_bytes)
        while fed and self._room.taken_bytes > KEPT_BYTES_MAX:
            self._close(fed.pop())

    def _leads(self, slot: Slot, primary: Primary) -> bool:
        serves = primary.serving and primary.handing_to is None
        return serves and is_quorum(self._ctx.reachable, slot.config)

    def _fed(self) -> Iterator[tuple[Slot, Primary]]:
        for slot in self._slots:
            if slot is not None and isinstance(slot.role, Primary) and slot.role.feed is not None:
                yield slot, slot.role

    def _close(self, primary: Primary) -> None:
        assert primary.feed is not None
        primary.feed.end(self._ctx.out)
        primary.feed = None

    def _replay(self, watcher: Watcher, slot: Slot, after: int) -> Joining:
        """All or the first part of what the key log has above a sequence, in flight or not."""
        store, prefix = self._ctx.store, slot.prefix
        if after == slot.sequence:
            return _joining(watcher, slot, [], after, WatchState.STARTED, after)
        entries = [(at, decode_entry(raw)) for at, raw in store.log_entries(prefix, after)]
        newest = {key: at for at, entry in entries for key in entry.keys}
        changed: list[Changed] = []
        size = needs = 0
        for at, entry in entries:
            if size > REPLAY_BYTES:
                last = at - 1
                return _joining(watcher, slot, changed, max(last, needs), WatchState.MORE, last)
            changes: list[Change] = []
            for key in entry.keys:
                is_newest = newest[key] == at
                record = store.read(prefix + key) if is_newest else SUPERSEDED
                if record:
                    check_intact(key, record)
                changes.append((key, record))
                needs = max(needs, newest[key])
            version = pack_version(Ballot(entry.ballot_round, entry.ballot_node), at)
            changed.append(Changed((watcher,), slot.number, version, changes))
            size += _size_bytes(changes)
        return _joining(watcher, slot, changed, slot.sequence, WatchState.STARTED, slot.sequence)


def _joining(
    watcher: Watcher,
    slot: Slot,
    changed: list[Changed],
    goal: int,
    state: WatchState,
    sequence: int,
) -> Joining:
    size = sum(_size_bytes(one.changes) for one in changed)
    return Joining(watcher, goal, changed, Told(watcher, slot.number, state, sequence), size)


def _size_bytes(changes: list[Change]) -> int:
    size = _CHANGE_OVERHEAD_BYTES
    for key, record in changes:
        size += _CHANGE_OVERHEAD_BYTES + len(key) + len(record or b"")
    return size


def _kept_bytes(primary: Primary) -> int:
    return 0 if primary.feed is None else primary.feed.kept_bytes
