"""Walking all keys with a prefix, slot after slot.

Keys hash into slots, so a prefix is everywhere, unless it holds a whole ``{tag}``: then it is in
one slot. A walk goes through the slots in order, a *window* of them at a time, one request a
node. Within a slot keys come in order and each page is of one moment (rule 6); over slots there
is no order that means anything, but it is always the same one. A place in the walk is the slot
and the last key seen there, so a cursor stays good while keys come and go: what exists throughout
is seen exactly once.

How many slots fit a window depends on how full they are, which is learned on the way: windows
double while they come back sparse and shrink when they do not.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from cluster.limits import KEY_BYTES_MAX, SCAN_PAGE_KEYS_MAX
from cluster.operations import Operation, Page, Scan
from cluster.slots import slot_of
from kvstore.client.outcomes import Entry, Key, entry_of, refuse, shown, text_key
from kvstore.errors import BadRequest

if TYPE_CHECKING:
    from kvstore.client.core import ClientCore
    from kvstore.client.exchange import Flow

WINDOW_SLOTS_MIN: Final = 32
WINDOW_SLOTS_MAX: Final = 2_048
WINDOW_KEYS: Final = 2_048
"""Keys that a window aims at: some hundred KiB, so that a walk costs little memory anywhere."""


class ScanPage(NamedTuple):
    """Part of a walk.

    Attributes:
        keys: Text where it is valid UTF-8, else bytes.
        entries: Those of the keys, or empty if values were not asked for.
        cursor: Continues the walk behind these keys; None at its end.
        progress: Share of the slots that are behind this page, 0.0 to 1.0.
    """

    keys: list[Key]
    entries: list[Entry]
    cursor: str | None
    progress: float


class _Place(NamedTuple):
    """``after`` is the last key seen in ``slot``, empty before the first."""

    slot: int
    after: bytes


class Walk:
    """A walk under way.

    Args:
        core: The client's.
        prefix: What keys begin with; empty for all.
        values: Whether to bring entries too.
        cursor: Where an earlier walk with the same prefix stopped.
    """

    def __init__(
        self, core: ClientCore, prefix: Key, *, values: bool, cursor: str | None = None
    ) -> None:
        self._core = core
        self._prefix = checked_prefix(prefix)
        self._values = values
        self._place = _place_from_text(cursor) if cursor else _Place(0, b"")
        self._window = WINDOW_SLOTS_MIN
        self._end: int | None = None

    @property
    def ended(self) -> bool:
        """True once there is nothing left to ask for."""
        return self._end is not None and self._place.slot >= self._end

    def next_page(self, deadline: float, limit: int) -> Flow[ScanPage]:
        """Up to `limit` keys more (at least one); empty only at the end of the walk."""
        keys: list[bytes] = []
        records: list[bytes] = []
        yield from self._begin(deadline)
        while not self.ended and len(keys) < limit:
            yield from self._step(deadline, limit - len(keys), keys, records)
            if len(keys) >= WINDOW_KEYS:
                break
        texts = [text_key(key) for key in keys]
        entries = [
            entry_of(record, key) for key, record in zip(texts, records, strict=self._values)
        ]
        if self.ended:
            return ScanPage(texts, entries, None, 1.0)
        progress = self._place.slot / self._core.table.slot_count
        return ScanPage(texts, entries, _place_to_text(self._place), progress)

    def _begin(self, deadline: float) -> Flow[None]:
        """Find the slots to walk, once the cluster's slot count is known."""
        if self._end is not None:
            return
        yield from self._core.ready(deadline)
        count = self._core.table.slot_count
        self._end = count
        if holds_tag(self._prefix):
            slot = slot_of(self._prefix, count)
            self._end = slot + 1
            if self._place.slot < slot:
                self._place = _Place(slot, b"")

    def _step(
        self, deadline: float, room: int, keys: list[bytes], records: list[bytes]
    ) -> Flow[None]:
        """Ask one window of slots and take its keys up to the first slot that has more."""
        assert self._end is not None
        first, after = self._place
        slots = list(range(first, min(self._end, first + self._window)))
        limit = min(room, max(8, 2 * WINDOW_KEYS // len(slots)), SCAN_PAGE_KEYS_MAX)
        ops: list[Operation] = [
            Scan(slot, self._prefix, after if slot == first else b"", limit, self._values)
            for slot in slots
        ]
        outcomes = yield from self._core.execute(ops, slots, deadline)
        taken = 0
        for slot, page in zip(slots, outcomes, strict=True):
            if type(page) is not Page:
                refuse(page, f"scan of {shown(self._prefix)} in slot {slot}", reads=True)
            found, fits = page.keys, room - taken
            keys += found[:fits]
            records += page.records[:fits]
            taken += min(len(found), fits)
            if page.more or len(found) > fits:
                self._window = max(1, (slot - first + 1) // 2)
                last = found[:fits][-1] if found[:fits] else self._after(slot)
                self._place = _Place(slot, last)
                return
            self._place = _Place(slot + 1, b"")
        if taken < WINDOW_KEYS // 2:
            self._window = min(WINDOW_SLOTS_MAX, self._window * 2)

    def _after(self, slot: int) -> bytes:
        return self._place.after if self._place.slot == slot else b""


def holds_tag(prefix: bytes) -> bool:
    """Does the prefix decide the slot? By the rule of `cluster.slots.slot_of`."""
    start = prefix.find(b"{")
    return start >= 0 and prefix.find(b"}", start + 1) > start + 1


def checked_prefix(prefix: Key) -> bytes:
    """The prefix as bytes, or BadRequest."""
    if not isinstance(prefix, str | bytes):
        raise BadRequest(f"a prefix is str or bytes, not {type(prefix).__name__}")
    raw = prefix.encode() if isinstance(prefix, str) else prefix
    if len(raw) > KEY_BYTES_MAX:
        raise BadRequest(f"the prefix has {len(raw):,} bytes, keys have up to {KEY_BYTES_MAX:,}")
    return raw


def _place_to_text(place: _Place) -> str:
    packed = place.slot.to_bytes(2, "big") + place.after
    return urlsafe_b64encode(packed).decode().rstrip("=")


def _place_from_text(cursor: Any) -> _Place:
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        packed = urlsafe_b64decode(padded)
    except (AttributeError, UnicodeEncodeError, Base64Error, ValueError):
        packed = b""
    if not 2 <= len(packed) <= KEY_BYTES_MAX + 2:
        raise BadRequest(f"{cursor!r:.80} is no cursor: use the one of the page before")
    return _Place(int.from_bytes(packed[:2], "big"), packed[2:])


def check_limit(limit: int | None) -> int | None:
    """A number of keys from 1, or None for all.

    Raises:
        BadRequest: anything else.
    """
    if limit is not None and (type(limit) is not int or limit < 1):
        raise BadRequest(f"limit is a number of keys from 1, or None for all, not {limit!r:.60}")
    return limit
