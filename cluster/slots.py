"""From key to slot.

A slot is the unit of replication, takeover and movement. A key's slot is the 32-bit MurmurHash3
(x86, seed 0, unsigned) of the key, modulo the cluster's slot count, which is a power of two and
never changes. Keys that share a ``{tag}`` share a slot, by Redis Cluster's rule: what stands
between the first ``{`` and the first ``}`` after it counts alone, unless it is empty.

Everybody must agree on this function for ever: clients, nodes of every release, files on disk. It
is computed for every key of every operation, so it is written for speed: ``123 in key`` takes a
third of the time of ``b"{" in key``. A key is not validated here; that is done where it enters.
"""

from __future__ import annotations

from mmh3 import mmh3_32_uintdigest

from cluster.limits import SLOT_COUNT_DEFAULT

_OPEN = ord("{")
_CLOSE = ord("}")


def slot_of(key: bytes, count: int = SLOT_COUNT_DEFAULT) -> int:
    """The slot of ``key`` among ``count`` slots; linear in its length, 0.1 us for a short key.

    >>> slot_of(b"city:2950159")
    11544
    >>> slot_of(b"{cart:7}total") == slot_of(b"{cart:7}n") == slot_of(b"cart:7")
    True
    >>> slot_of(b"{}a") == slot_of(b"{}b")  # an empty tag is none
    False
    """
    if _OPEN in key:
        start = key.index(_OPEN) + 1
        end = key.find(_CLOSE, start)
        if end > start:
            return mmh3_32_uintdigest(key[start:end]) % count
    return mmh3_32_uintdigest(key) % count
