"""Comparing content: the digest of a stretch of keys, and who is the odd one out (rule 18).

Replicas at equal positions hold equal content, so their digests of any stretch of keys are equal,
or something is damaged. A digest covers each key with the head of its record: checksum and version.
The checksum is verified on the way, so the head stands for the whole record. The last stretch of a
slot covers its key log and config too.

What `judge` may conclude, from replicas at one position only:

- A replica with an unreadable stretch or a failed checksum is damaged, whatever the others say.
- Undamaged replicas that differ: more than half of them, and at least two, are right, the others
  are damaged.
- Neither: nobody can tell, and nobody guesses. Of two replicas that differ each may be right.
"""

from __future__ import annotations

from collections import Counter
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from cluster.records import record_head
from cluster.store import Damage, check_intact

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cluster.ballot import NodeId
    from cluster.slot import Context, Slot

STRETCH_BYTES = 65_536
"""A stretch is full above this: half a millisecond of work on each replica."""

STRETCH_ROWS_MIN, STRETCH_ROWS_STEP_MAX = 4, 256
"""Rows read at once: few at first, because each may be a megabyte."""

_DIGEST_BYTES = 16


class Examined(NamedTuple):
    """What one replica has in a stretch: its digest, or how it is damaged."""

    digest: bytes
    damage: str


class Verdict(NamedTuple):
    """Who is right, who is damaged, and who differs without anybody being able to say."""

    right: frozenset[NodeId]
    damaged: frozenset[NodeId]
    unclear: frozenset[NodeId]


def measure(slot: Slot, begin: bytes, ctx: Context) -> tuple[int, bytes, int]:
    """The next stretch from a key on: its rows, where it ends (empty: with the slot), its bytes.

    Raises:
        Damage: it cannot be read.
    """
    rows = size = 0
    step = STRETCH_ROWS_MIN
    while size < STRETCH_BYTES:
        found = ctx.store.scan(slot.prefix, begin, step)
        rows += len(found)
        size += sum(len(key) + len(record) for key, record in found)
        if len(found) < step:
            return rows, b"", size
        begin = found[-1][0] + b"\0"
        step = min(2 * step, STRETCH_ROWS_STEP_MAX)
    return rows, begin, size


def examine(slot: Slot, begin: bytes, end: bytes, rows: int, ctx: Context) -> Examined:
    """Digest the records in ``[begin, end)``; reads at most one row more than ``rows``."""
    digest = blake2b(digest_size=_DIGEST_BYTES)
    try:
        for key, record in ctx.store.scan(slot.prefix, begin, rows + 1):
            if end and key >= end:
                break
            check_intact(key, record)
            digest.update(len(key).to_bytes(2, "big") + key + record_head(record))
        if not end:
            for sequence, entry in ctx.store.log_entries(slot.prefix, slot.log_begin - 1):
                digest.update(sequence.to_bytes(8, "big") + entry)
            digest.update(msgspec.msgpack.encode(slot.config))
    except Damage as damage:
        return Examined(b"", str(damage))
    return Examined(digest.digest(), "")


def judge(found: Mapping[NodeId, Examined]) -> Verdict:
    """Who is right.

    >>> a, b = Examined(b"a", ""), Examined(b"b", "")
    >>> verdict = judge({1: a, 2: b, 3: a})
    >>> sorted(verdict.right), sorted(verdict.damaged)
    ([1, 3], [2])
    """
    damaged = frozenset(node for node, one in found.items() if one.damage)
    whole = {node: one.digest for node, one in found.items() if not one.damage}
    counts = Counter(whole.values())
    if len(counts) <= 1:
        return Verdict(frozenset(whole), damaged, frozenset())
    (digest, count), _ = counts.most_common(2)
    if count >= 2 and 2 * count > len(whole):
        right = frozenset(node for node, one in whole.items() if one == digest)
        return Verdict(right, damaged | whole.keys() - right, frozenset())
    return Verdict(frozenset(), damaged, frozenset(whole))
