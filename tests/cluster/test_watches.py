"""What a watcher of a slot is told, by the primary and over its failovers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgpack
import msgspec

from cluster import watches
from cluster.key_log import KEY_LOG_EVICTION_STEP
from cluster.limits import KEY_LOG_ENTRIES_MAX
from cluster.messages import Accept, Ack
from cluster.operations import Atomic, Delete, Put
from cluster.outputs import Changed, Told, WatchState
from cluster.records import decode_record, unpack_version
from cluster.watches import SUPERSEDED
from tests.cluster.core_harness import SLOT, Cluster

if TYPE_CHECKING:
    import pytest

    from cluster.ballot import NodeId
    from cluster.messages import Change

STARTED, MORE, TOO_OLD, MOVED = WatchState
LOG_REACH = KEY_LOG_ENTRIES_MAX + KEY_LOG_EVICTION_STEP


class Watcher:
    """Compared by identity, as all watchers."""

    def __init__(self, c: Cluster, at: NodeId, after: int | None) -> None:
        self._cluster, self._at = c, at
        c.nodes[at].table.watches.start(self, SLOT, after)
        c.nodes[at].end_tick()

    def told(self) -> list[tuple[Any, Any]]:
        """``(sequence, changes)`` or ``(state, sequence)``, in order, since the last call."""
        node = self._cluster.nodes[self._at]
        mine: list[tuple[Any, Any]] = []
        rest: list[Changed | Told] = []
        for told in node.watched:
            if isinstance(told, Told) and told.watcher is self:
                mine.append((told.state, told.sequence))
            elif isinstance(told, Changed) and self in told.watchers:
                sequence = unpack_version(told.version).sequence
                mine.append((sequence, [_plain(change) for change in told.changes]))
            else:
                rest.append(told)
        node.watched = rest
        return mine

    def stop(self) -> None:
        self._cluster.nodes[self._at].table.watches.stop(self, SLOT)
        self._cluster.nodes[self._at].end_tick()


def _plain(change: Change) -> tuple[bytes, object]:
    key, record = change
    if record is None:
        return key, "gone"
    if record == SUPERSEDED:
        return key, "superseded"
    return key, msgpack.unpackb(decode_record(record).value)


def test_what_commits_is_told_with_its_value_and_only_then() -> None:
    c = Cluster()
    watcher = Watcher(c, 1, None)
    assert watcher.told() == [(STARTED, 0)]
    c.put(1, b"a", 1)
    c.put(1, b"a", 2)
    c.delete(1, b"a")
    assert watcher.told() == []
    c.settle()
    assert watcher.told() == [(1, [(b"a", 1)]), (2, [(b"a", 2)]), (3, [(b"a", "gone")])]


def test_from_now_on_begins_behind_what_is_in_flight() -> None:
    """So that every change is told with its value."""
    c = Cluster()
    c.put(1, b"a", 1)
    watcher = Watcher(c, 1, None)
    c.put(1, b"a", 2)
    assert watcher.told() == []
    c.settle()
    assert watcher.told() == [(STARTED, 1), (2, [(b"a", 2)])]


def test_what_was_missed_is_replayed_with_the_newest_values() -> None:
    c = Cluster()
    for number in range(3):
        c.put(1, b"a", number)
        c.put(1, b"b%d" % number, number)
    c.delete(1, b"b1")
    c.settle()
    assert Watcher(c, 1, 2).told() == [
        (3, [(b"a", "superseded")]),
        (4, [(b"b1", "superseded")]),
        (5, [(b"a", 2)]),
        (6, [(b"b2", 2)]),
        (7, [(b"b1", "gone")]),
        (STARTED, 7),
    ]


def test_no_change_is_called_superseded_by_one_that_may_be_lost() -> None:
    c = Cluster()
    c.put(1, b"a", "kept")
    c.settle()
    c.hold(1, 2)
    c.hold(1, 3)
    c.put(1, b"a", "lost")
    first = Watcher(c, 1, 0)
    assert first.told() == []
    c.crash(1)
    for other in (2, 3):
        c.drop(1, other)
    c.depose(1)
    assert c.value(2, b"a") == "kept"
    assert Watcher(c, 2, 0).told() == [(1, [(b"a", "kept")]), (STARTED, 1)]


def test_an_operation_on_several_keys_is_told_as_one() -> None:
    c = Cluster()
    put = Put(b"{t}a", msgspec.Raw(msgpack.packb(1)))
    c.put(1, b"{t}b", 0)
    watcher = Watcher(c, 1, None)
    c.ask(1, Atomic([put, Delete(b"{t}b")]))
    c.settle()
    assert watcher.told() == [(STARTED, 1), (2, [(b"{t}a", 1), (b"{t}b", "gone")])]


def test_a_failover_goes_on_behind_what_was_told() -> None:
    c = Cluster()
    watcher = Watcher(c, 1, None)
    c.put(1, b"a", 1)
    c.settle()
    c.put(1, b"b", 2)
    c.deliver(1, 2, Accept)
    c.deliver(1, 3, Accept)
    c.sync(2, 3)  # durable on a quorum; node 1 never hears of it
    assert watcher.told() == [(STARTED, 0), (1, [(b"a", 1)])]
    c.depose(1)
    later = Watcher(c, 2, 1)
    assert later.told() == [(2, [(b"b", 2)]), (STARTED, 2)]
    c.put(2, b"c", 3)
    c.settle()
    assert later.told() == [(3, [(b"c", 3)])]


def test_a_primary_that_steps_down_says_so() -> None:
    c = Cluster()
    watcher = Watcher(c, 1, None)
    c.hold(1, 2)
    c.hold(1, 3)
    c.put(1, b"a", 1)
    joining = Watcher(c, 1, None)
    c.depose(1)
    c.reconnect(1)
    c.settle()
    assert watcher.told() == [(STARTED, 0), (MOVED, 0)]
    assert joining.told() == [(MOVED, 0)]
    assert Watcher(c, 3, None).told() == [(MOVED, 0)]  # serves nothing


def test_a_primary_behind_what_was_told_is_a_deposed_one() -> None:
    c = Cluster()
    c.depose(1)
    c.put(2, b"a", 1)
    c.settle()
    assert c.serves(1), "it has not heard yet"
    assert Watcher(c, 1, 1).told() == [(MOVED, 0)]


def test_a_primary_that_reaches_no_quorum_sends_its_watchers_away() -> None:
    c = Cluster()
    watcher = Watcher(c, 1, None)
    for other in (2, 3):
        c.nodes[1].table.peer_down(other)
    c.nodes[1].end_tick()
    assert watcher.told() == [(STARTED, 0), (MOVED, 0)]
    assert Watcher(c, 1, None).told() == [(MOVED, 0)]
    c.nodes[1].table.peer_up(2)
    assert Watcher(c, 1, None).told() == [(STARTED, 0)]


def test_beyond_the_key_log_it_is_too_old() -> None:
    c = Cluster()
    for number in range(LOG_REACH + 1):
        c.put(1, b"a", number)
    c.settle()
    newest = LOG_REACH + 1
    assert c.slot(1).log_begin == KEY_LOG_EVICTION_STEP + 1
    assert Watcher(c, 1, KEY_LOG_EVICTION_STEP - 1).told() == [(TOO_OLD, newest)]
    assert len(Watcher(c, 1, KEY_LOG_EVICTION_STEP).told()) == newest - KEY_LOG_EVICTION_STEP + 1
    assert Watcher(c, 1, newest).told() == [(STARTED, newest)]


def test_a_long_replay_comes_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watches, "REPLAY_BYTES", 1_000)
    c = Cluster()
    for number in range(10):
        c.put(1, b"k%d" % number, "x" * 300)
    c.settle()
    heard: list[int] = []
    after = 0
    for _ in range(10):
        *changes, (state, after) = Watcher(c, 1, after).told()
        heard += [sequence for sequence, _ in changes]
        assert 0 < len(changes) < 5
        if state is STARTED:
            break
        assert (state, after) == (MORE, heard[-1])
    assert heard == list(range(1, 11))


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    c = Cluster()
    watcher = Watcher(c, 1, None)
    monkeypatch.setattr(watches, "KEPT_BYTES_MAX", 5_000)
    for _ in range(4):
        c.put(1, b"a", "x" * 1_000)
    assert watcher.told() == [(STARTED, 0)]
    c.put(1, b"a", "x" * 1_000)
    assert watcher.told() == [(MOVED, 0)]
    assert c.primary(1).feed is None
    again = Watcher(c, 1, 0)
    c.settle()
    assert again.told()[-2:] == [(5, [(b"a", "x" * 1_000)]), (STARTED, 5)]


def test_a_slot_that_nobody_watches_any_more_keeps_nothing() -> None:
    c = Cluster()
    one, two = Watcher(c, 1, None), Watcher(c, 1, None)
    one.stop()
    one.stop()
    c.put(1, b"a", 1)
    late = Watcher(c, 1, None)
    late.stop()
    c.settle()
    assert one.told() == [(STARTED, 0)]
    assert late.told() == []
    assert two.told() == [(STARTED, 0), (1, [(b"a", 1)])]
    two.stop()
    assert c.primary(1).feed is None


def test_an_acknowledgement_twice_tells_once() -> None:
    c = Cluster()
    watcher = Watcher(c, 1, None)
    c.put(1, b"a", 1)
    c.settle()
    c.inject(2, 1, Ack(SLOT, c.primary(1).ballot, 1))
    assert watcher.told() == [(STARTED, 0), (1, [(b"a", 1)])]
