"""A page of a scan: a stretch of one slot's keys, all of one moment (rule 6).

What has expired is left out, and deleted like by any other read (rule 7): a primary with a slower
clock must not show it again. So the page is answered when that has committed. Expired records count
against the page's bounds; where they fill it, it has few keys or none and still says that there is
more, and the scan goes on from the same key: what stood in its way is gone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.limits import EXPIRY_TICK_KEYS_MAX, SCAN_PAGE_BYTES_MAX
from cluster.operations import Page
from cluster.primary import delete_expired
from cluster.records import is_expired
from cluster.store import check_intact, walk

if TYPE_CHECKING:
    from cluster.operations import Scan
    from cluster.slot import Context, Primary, Slot


def read_page(slot: Slot, primary: Primary, op: Scan, ctx: Context) -> Page:
    """The page as it is now; whoever asked is answered by rule 6.

    Raises:
        Damage: a record that it would show fails its checksum (R18).
    """
    begin = max(op.prefix, op.after + b"\0" if op.after else b"")
    keys: list[bytes] = []
    records: list[bytes] = []
    expired: list[bytes] = []
    size, more = 0, False
    for key, record in walk(ctx.store, slot.prefix, begin, op.limit + 1):
        if not key.startswith(op.prefix):
            break
        size += len(key) + len(record)
        if (
            len(keys) == op.limit
            or len(expired) == EXPIRY_TICK_KEYS_MAX
            or (size > SCAN_PAGE_BYTES_MAX and (keys or expired))
        ):
            more = True
            break
        if op.values:
            check_intact(key, record)
        if is_expired(record, ctx.unix_ms):
            expired.append(key)
            continue
        keys.append(key)
        if op.values:
            records.append(record)
    if expired:
        delete_expired(slot, primary, expired, ctx)
    return Page(keys, records, more)
