"""What a watch has heard and its caller has not taken yet, in order; and what a token of it means.

An operation may have changed several keys; they are handed out one by one, and a token may stand
between two of them. How far a slot was heard (`Progress`) is passed in the same order, so that a
token never runs ahead of what was handed out.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from kvstore.client.watch_tokens import Place, decode_token, encode_token
from kvstore.errors import BadRequest
from kvstore.wire.protocol import FROM_NOW

if TYPE_CHECKING:
    from cluster.messages import Change


class Reset(NamedTuple):
    """Changes were missed in these slots; their state follows."""

    slots: frozenset[int]


class State(NamedTuple):
    """A key as it stands, after a `Reset`."""

    key: bytes
    record: bytes


class Happened(NamedTuple):
    """A change of an operation, as the node told it."""

    version: bytes
    key: bytes
    record: bytes | None


Item = Happened | State | Reset


class Progress(NamedTuple):
    """How far a slot was heard."""

    slot: int
    sequence: int


class Operation(NamedTuple):
    """With one change or more."""

    slot: int
    sequence: int
    version: bytes
    changes: list[Change]


class WatchQueue:
    """The slots from ``first`` on, none of them heard.

    Args:
        first: The first slot of the watch.
        slots: How many.
    """

    def __init__(self, first: int, slots: int) -> None:
        self.first = first
        self.handed: list[int] = [FROM_NOW] * slots
        """For each slot, the last operation that was handed out whole."""
        self.handed_total = 0
        """Items handed out; tells whether an event is the newest."""
        self._parts: dict[int, int] = {}
        """Changes that were handed out of the operation behind a slot's sequence."""
        self._items: deque[Operation | Progress | Reset | State] = deque()

    def resume(self, token: str, prefix: bytes, cluster_id: str, slot_count: int) -> None:
        """Stand where another watch stood.

        Raises:
            BadRequest: the token is none of this watch.
        """
        place = decode_token(token, prefix, cluster_id, slot_count)
        if (place.first, len(place.sequences)) != (self.first, len(self.handed)):
            raise BadRequest("the token is of a watch over other slots")
        self.handed, self._parts = place.sequences, place.parts

    def token(self, prefix: bytes, cluster_id: str, slot_count: int) -> str:
        """Where to go on behind what was handed out.

        Raises:
            BadRequest: the watch has not begun.
        """
        while self._items and isinstance(self._items[0], Progress):
            self._skip(self._items[0])
        if FROM_NOW in self.handed:
            raise BadRequest("this watch has not begun, so it has no token yet")
        place = Place(cluster_id, slot_count, self.first, self.handed, self._parts)
        return encode_token(place, prefix)

    def put(self, item: Operation | Progress | Reset | State) -> None:
        """This was heard next."""
        if isinstance(item, Progress) and self.handed[item.slot - self.first] == FROM_NOW:
            # Where the slot begins to be told: known at once, whatever of others comes before it.
            self.handed[item.slot - self.first] = item.sequence
            return
        self._items.append(item)

    def take(self) -> Item | None:
        """The next item, which a token includes from now on; None if there is none."""
        while self._items:
            item = self._items[0]
            if isinstance(item, Progress):
                self._skip(item)
                continue
            if isinstance(item, Operation):
                at = self._parts.pop(item.slot, 0)
                if at + 1 < len(item.changes):
                    self._parts[item.slot] = at + 1
                else:
                    self._skip(item)
                if at < len(item.changes):
                    self.handed_total += 1
                    return Happened(item.version, *item.changes[at])
                continue
            self._items.popleft()
            if isinstance(item, Reset):
                self._parts = {s: n for s, n in self._parts.items() if s not in item.slots}
            self.handed_total += 1
            return item
        return None

    def _skip(self, first: Operation | Progress) -> None:
        self._items.popleft()
        self.handed[first.slot - self.first] = first.sequence
