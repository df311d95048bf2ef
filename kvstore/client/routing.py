"""Which node to ask: hints, never rules.

The table comes from any node (`Routes`) and says for each slot who serves it and how far that
primary had committed. Answers correct it: `Response.leads` names better primaries, versions of
writes are newer positions. A wrong hint costs one forward, so nothing here needs to be exact;
only ``seen`` (rule 5) has a rule: it is a *committed* position, told by a serving primary, and
never goes back.

Of each node that gave a table, the version is kept, so that it need only tell what has changed
since. That may be older news than another node's in between: a hint that is wrong once more.

A node that failed is *avoided* for a while. Refused connections are cheap to test again; silence
is not, so a silent node is left alone longer, and as long as gossip (a node's state in the table)
says that it is not alive.
"""

from __future__ import annotations

from struct import unpack
from typing import TYPE_CHECKING, Final

from cluster.limits import SLOT_COUNT_DEFAULT
from cluster.operations import Failed
from cluster.records import VERSION_BYTES
from kvstore.client.exchange import Send
from kvstore.wire.protocol import RouteQuery

if TYPE_CHECKING:
    from cluster.operations import Result
    from kvstore.wire.protocol import Routes

NOBODY: Final = ""
"""In place of an address: no primary is known."""

_UNKNOWN_INDEX: Final = 0xFFFF
_NO_POSITION: Final = bytes(VERSION_BYTES)
"""Before every operation. Zeros and not nothing: a write that is sent with them can be told from
its repetition for ever, one without any position within the reach of the key log (rule 5)."""

REFRESH_WRONG_HINTS: Final = 16
REFRESH_WRONG_SECONDS: Final = 1.0
"""After so many corrections a table of this age is fetched anew: many slots have moved."""

REFRESH_SECONDS: Final = 15.0
"""Age at which the table is fetched again, so that ``seen`` stays within reach of the key log."""

AVOID_REFUSED_SECONDS: Final = (0.1, 1.0)
"""First and longest time to avoid a node that refused a connection."""

AVOID_SILENT_SECONDS: Final = (2.0, 10.0)
"""The same for a node that was silent."""


class RoutingTable:
    """Slot to address, slot to committed position, and who is avoided."""

    def __init__(self, seeds: list[str]) -> None:
        self.seeds: list[str] = seeds
        self.addresses: list[str] = list(seeds)
        self.known: bool = False
        self.cluster_id: str = ""
        self.slot_count: int = SLOT_COUNT_DEFAULT
        self.primaries: list[str] = [NOBODY] * SLOT_COUNT_DEFAULT
        self.positions: list[bytes] = [_NO_POSITION] * SLOT_COUNT_DEFAULT
        self._address_of_node: dict[int, str] = {}
        self._versions: dict[str, tuple[int, int]] = {}
        """Address -> source and version of the table that it gave last."""
        self._avoided: dict[str, tuple[float, int]] = {}
        self._answers = 0
        self._answered: dict[str, int] = {}
        """Address -> the number of its newest answer, among all that came."""
        self._loaded_at = 0.0
        self._stale = False
        self._wrong_hints = 0
        self._turn = 0

    def query(self, address: str, frame_id: int) -> Send:
        """Ask a node for its table, or for what has changed in it."""
        source, version = self._versions.get(address, (0, 0)) if self.known else (0, 0)
        return Send(address, RouteQuery(frame_id, source, version))

    def load(self, routes: Routes, now: float, address: str = NOBODY) -> None:
        """Take over a fetched table, or a difference; positions that are newer here are kept.

        One without slots is none: its node waits to be founded.
        """
        if routes.since:
            self._load_difference(routes, now, address)
            return
        count = routes.slot_count
        if (
            not count
            or len(routes.primaries) != 2 * count
            or len(routes.positions) != VERSION_BYTES * count
        ):
            return
        told = [
            routes.positions[at : at + VERSION_BYTES]
            for at in range(0, VERSION_BYTES * count, VERSION_BYTES)
        ]
        if self.cluster_id == routes.cluster_id and self.slot_count == count:
            told = list(map(max, told, self.positions))
        nodes = [node.address for node in routes.nodes]
        names = dict(enumerate(nodes))
        names[_UNKNOWN_INDEX] = NOBODY
        indices = unpack(f">{count}H", routes.primaries)
        self.primaries = [names.get(index, NOBODY) for index in indices]
        self.positions = told
        self.slot_count = count
        self.cluster_id = routes.cluster_id
        self._address_of_node = {node.id: node.address for node in routes.nodes}
        self._loaded(routes, now, address)

    def _load_difference(self, routes: Routes, now: float, address: str) -> None:
        changed = len(routes.slots) // 2
        if (
            (routes.cluster_id, routes.slot_count) != (self.cluster_id, self.slot_count)
            or len(routes.primaries) != len(routes.slots)
            or len(routes.positions) != VERSION_BYTES * changed
            or any(slot >= self.slot_count for slot in unpack(f">{changed}H", routes.slots))
        ):
            self._versions.pop(address, None)  # the next one is a whole table
            return
        self._address_of_node |= {node.id: node.address for node in routes.nodes}
        names = dict(enumerate(node.address for node in routes.nodes))
        slots = unpack(f">{changed}H", routes.slots)
        indices = unpack(f">{changed}H", routes.primaries)
        for at, (slot, index) in enumerate(zip(slots, indices, strict=True)):
            told = routes.positions[at * VERSION_BYTES : (at + 1) * VERSION_BYTES]
            self.primaries[slot] = names.get(index, NOBODY)
            self.positions[slot] = max(told, self.positions[slot])
        self._loaded(routes, now, address)

    def _loaded(self, routes: Routes, now: float, address: str) -> None:
        self.addresses = list(self._address_of_node.values()) or list(self.seeds)
        if address and routes.source:
            self._versions[address] = (routes.source, routes.version)
            if len(self._versions) > len(self.addresses):
                kept = {a: self._versions[a] for a in self.addresses if a in self._versions}
                self._versions = kept
        for node in routes.nodes:
            if node.state != "alive" and node.address in self._avoided:
                until, times = self._avoided[node.address]
                self._avoided[node.address] = (max(until, now + AVOID_SILENT_SECONDS[0]), times)
        self.known, self._stale, self._loaded_at = True, False, now
        self._wrong_hints = 0

    def wants_refresh(self, now: float) -> bool:
        """Is it time to fetch the table again?"""
        age = now - self._loaded_at
        if self._wrong_hints >= REFRESH_WRONG_HINTS and age > REFRESH_WRONG_SECONDS:
            return True
        return self._stale or age > REFRESH_SECONDS

    def outdate(self) -> None:
        """Something in the table turned out wrong: fetch it with the next request."""
        self._stale = True

    def lead(self, leads: dict[int, int]) -> None:
        """An answer named primaries (slot to member id)."""
        for slot, node in leads.items():
            address = self._address_of_node.get(node)
            if address is None:
                self._stale = True
            elif 0 <= slot < self.slot_count:
                self.primaries[slot] = address
                self._wrong_hints += 1

    def served(
        self, address: str, slots: list[int], results: list[Result], leads: dict[int, int]
    ) -> None:
        """A node wrote these itself, forwarding none: it is their primary."""
        for slot, result in zip(slots, results, strict=False):
            if slot not in leads and type(result) is not Failed:
                self.primaries[slot] = address

    def failed(self, address: str, now: float, *, silent: bool) -> None:
        """A node could not be reached, or did not answer."""
        shortest, longest = AVOID_SILENT_SECONDS if silent else AVOID_REFUSED_SECONDS
        _, times = self._avoided.get(address, (0.0, 0))
        until = now + min(longest, shortest * 2.0 ** min(times, 10))
        self._avoided[address] = (until, times + 1)
        self._stale = True

    def answered(self, address: str) -> None:
        """A node answered: nothing is held against it."""
        self._answers += 1
        self._answered[address] = self._answers
        if self._avoided:
            self._avoided.pop(address, None)

    def resolve(self, primary: str, now: float, *, not_again: str = NOBODY) -> str:
        """The node to ask when `primary` serves the slot: itself, unless there is reason not to.

        Args:
            primary: The table's word, or `NOBODY`.
            now: The flow's clock, for those who are avoided.
            not_again: Who was asked last, in vain.
        """
        if primary and primary != not_again and not self._is_avoided(primary, now):
            return primary
        candidates = self.addresses
        self._turn += 1
        turn = self._turn % len(candidates)
        others = [a for a in (*candidates[turn:], *candidates[:turn]) if a != not_again]
        if not others:
            return candidates[turn]
        if not_again:  # its silence may be that of another whom it asked: who answered last lives
            return max(others, key=lambda address: self._answered.get(address, 0))
        return next((a for a in others if not self._is_avoided(a, now)), candidates[turn])

    def by_promise(self, now: float) -> list[str]:
        """All addresses to fetch a table from, those that lately failed last."""
        every = list(dict.fromkeys([*self.addresses, *self.seeds]))
        return sorted(every, key=lambda address: self._is_avoided(address, now))

    def _is_avoided(self, address: str, now: float) -> bool:
        if not self._avoided:
            return False
        entry = self._avoided.get(address)
        return entry is not None and now < entry[0]
