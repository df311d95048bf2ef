"""`GET /v1/kv`: keys by prefix, page by page, slot by slot.

Keys are spread over slots by hash, so a prefix may have keys in every slot (except when it holds a
whole ``{tag}``: then all of them are in one). A page walks the slots in order with one request for
many scans, and stops at the first of: enough entries, enough bytes, enough slots looked at. So the
work per request is bounded whatever the prefix is; a page may hold few entries or none and still
have a ``next``. Each slot's part of a page is of one moment (rule 6).

How many slots to ask at once is learned on the way: a request that brought little is followed by a
wider one, a slot that holds more than its share is read alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from cluster.limits import KEY_BYTES_MAX
from cluster.operations import Code, Failed, Operation, Page, Scan
from cluster.slots import slot_of
from kvstore.errors import CorruptValue
from kvstore.http.cursors import Place, decode_cursor, encode_cursor
from kvstore.http.door import Call, Route
from kvstore.http.forms import dump, negotiate
from kvstore.http.keys import expiry_text, open_record
from kvstore.http.problems import ProblemError, failure
from kvstore.values import unpack_value, version_to_text

if TYPE_CHECKING:
    from cluster.records import Record

__all__ = ["ROUTES", "as_text", "described"]

LIMIT_DEFAULT: Final = 100
LIMIT_MAX: Final = 1_000
"""Entries in one page."""

SLOTS_PER_PAGE_MAX: Final = 4_096
"""Slots looked at for one page: tens of milliseconds of work."""

WIDTH_KEYS: Final = (64, 512)
WIDTH_VALUES: Final = (3, 48)
"""Slots asked at once, at first and at most. Three full pages of values fit into one frame."""

LIGHT_BYTES: Final = 256 * 1_024
"""A request that brought less values than this may be followed by one of twice the width."""


@dataclass(slots=True)
class _Listing:
    """A page under construction."""

    prefix: bytes
    limit: int
    bytes_max: int
    values: bool
    place: Place
    end: int
    keys: list[bytes] = field(default_factory=list)
    records: list[bytes] = field(default_factory=list)
    size_bytes: int = 0

    @property
    def missing(self) -> int:
        """Entries that still fit."""
        return 0 if self.size_bytes >= self.bytes_max else self.limit - len(self.keys)

    def take(self, slot: int, page: Page, share: int) -> bool:
        """Add a slot's page; False when the walk must go on inside of this slot."""
        taken = 0
        for index, key in enumerate(page.keys):
            if self.missing <= 0:
                break
            self.keys.append(key)
            if self.values:
                self.records.append(page.records[index])
                self.size_bytes += len(page.records[index])
            taken += 1
            self.place = Place(slot, key)
        if taken < len(page.keys) or page.more or len(page.keys) >= share:
            return False
        self.place = Place(slot + 1, b"")
        return True


async def list_keys(call: Call) -> web.Response:
    """Keys, or entries with `values=1`, and the cursor of the next page."""
    form = negotiate(call.request.headers)
    listing = _begin(call)
    await _walk(call, listing)
    found: dict[str, Any] = {}
    if listing.values:
        pairs = zip(listing.keys, listing.records, strict=True)
        found["entries"] = [
            {"key": as_text(key)} | described(open_record(record)) for key, record in pairs
        ]
    else:
        found["keys"] = [as_text(key) for key in listing.keys]
    done = listing.place.slot >= listing.end
    found["next"] = None if done else encode_cursor(listing.place, listing.prefix)
    return web.Response(body=dump(form, found), headers={"Content-Type": form, "Vary": "Accept"})


ROUTES: Final = (
    Route("GET", "/v1/kv", "list", list_keys, ("cursor", "limit", "prefix", "timeout", "values")),
)


def as_text(key: bytes) -> str | bytes:
    """A key as users write it: text where it is UTF-8, else bytes."""
    try:
        return key.decode()
    except UnicodeDecodeError:
        return key


def described(record: Record) -> dict[str, Any]:
    """A record as part of a larger answer."""
    try:
        value = unpack_value(record.value)
    except CorruptValue as error:
        raise ProblemError("corrupt-value", f"{error}.") from error
    entry = {"value": value, "version": version_to_text(record.version)}
    if record.content_type:
        entry["content_type"] = record.content_type
    if record.expires_at_ms:
        entry["expires_at"] = expiry_text(record.expires_at_ms)
    return entry


def _begin(call: Call) -> _Listing:
    query = call.query
    prefix = query.raw("prefix") or b""
    if len(prefix) > KEY_BYTES_MAX:
        raise ProblemError("bad-parameter", f"'prefix' has over {KEY_BYTES_MAX:,} bytes.")
    count = call.door.caller.slot_count
    if not count:
        raise ProblemError("unavailable", "This node does not belong to a founded cluster yet.")
    first, end = _span(prefix, count)
    place = Place(first, b"")
    cursor = query.text("cursor")
    if cursor:
        place = decode_cursor(cursor, prefix)
        if not first <= place.slot < end:
            raise ProblemError("bad-cursor", "The cursor points to a slot without such keys.")
    return _Listing(
        prefix=prefix,
        limit=query.integer("limit", LIMIT_DEFAULT, least=1, most=LIMIT_MAX),
        bytes_max=call.door.settings.answer_bytes_max,
        values=query.choice("values", "0", ("0", "1", "false", "true")) in ("1", "true"),
        place=place,
        end=end,
    )


def _span(prefix: bytes, count: int) -> tuple[int, int]:
    """The slots that can hold the prefix: one if it holds a whole tag, else all."""
    opening = prefix.find(b"{")
    if opening >= 0 and prefix.find(b"}", opening) > opening + 1:
        slot = slot_of(prefix, count)
        return slot, slot + 1
    return 0, count


async def _walk(call: Call, listing: _Listing) -> None:
    timeout = call.timeout_seconds
    first_width, width_max = WIDTH_VALUES if listing.values else WIDTH_KEYS
    width, looked_at = first_width, 0
    while listing.missing > 0 and listing.place.slot < listing.end:
        if looked_at >= SLOTS_PER_PAGE_MAX:
            break
        begin = listing.place.slot
        slots = range(begin, min(begin + width, listing.end))
        share = listing.missing
        if len(slots) > 1:
            share = min(share, 2 * math.ceil(listing.missing / len(slots)) + 1)
        ops: list[Operation] = [
            Scan(
                slot,
                listing.prefix,
                listing.place.after if slot == begin else b"",
                share,
                listing.values,
            )
            for slot in slots
        ]
        pages = (await call.door.caller.call(ops, timeout)).results
        if len(slots) > 1 and any(_too_much(page) for page in pages):
            width = 1
            continue
        had_bytes, had_keys = listing.size_bytes, len(listing.keys)
        whole = _take_all(listing, slots, pages, share)
        looked_at += len(slots)
        light = listing.size_bytes - had_bytes < LIGHT_BYTES
        few = listing.values or len(listing.keys) - had_keys < listing.missing
        if not whole:
            width = 1
        elif light and few:
            width = min(max(2 * width, first_width), width_max)
        else:
            width = first_width


def _take_all(listing: _Listing, slots: range, pages: list[Any], share: int) -> bool:
    for slot, page in zip(slots, pages, strict=True):
        if isinstance(page, Failed):
            raise failure(page, None)
        assert isinstance(page, Page), page
        if not listing.take(slot, page, share):
            return False
        if listing.missing <= 0:
            return True
    return True


def _too_much(result: object) -> bool:
    return isinstance(result, Failed) and result.code is Code.TOO_LARGE
