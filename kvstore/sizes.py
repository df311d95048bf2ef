"""Settings that are a number of bytes: how they are written, their defaults, and their bounds."""

from __future__ import annotations

import re
from functools import partial
from typing import Final

__all__ = [
    "CACHE_BYTES_DEFAULT",
    "DISK_RESERVE_BYTES_DEFAULT",
    "parse_cache",
    "parse_pace",
    "parse_reserve",
    "parse_size",
]

CACHE_BYTES_DEFAULT: Final = 192 * 1_048_576
CACHE_BYTES_MIN: Final = 8 * 1_048_576
"""Less leaves RocksDB write buffers so small that it mostly compacts."""
CACHE_BYTES_MAX: Final = 1 << 40
"""A tebibyte: more is a slip of the unit."""

SCRUB_BYTES_PER_S_MAX: Final = 1 << 30
"""Faster than any one node compares."""

DISK_RESERVE_BYTES_DEFAULT: Final = 512 * 1_048_576
"""A full write-ahead log, the write buffers that are flushed from it, and a compaction of both."""

_SIZE: Final = re.compile(r"([0-9]{1,15}) ?(B|KiB|MiB|GiB|)", re.IGNORECASE | re.ASCII)
_SIZE_BYTES: Final = {"": 1, "b": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}


def parse_size(value: object, low: int, high: int, allowed: str) -> int:
    """Bytes, from a number with a unit or without.

    Raises:
        ValueError: it is no size, or out of bounds; ``allowed`` says which.
    """
    matched = _SIZE.fullmatch(str(value)) if isinstance(value, int | str) else None
    if matched is not None:
        size_bytes = int(matched[1]) * _SIZE_BYTES[matched[2].lower()]
        if low <= size_bytes <= high:
            return size_bytes
    raise ValueError(f"a size is bytes or a number with KiB, MiB or GiB, {allowed}")


parse_cache: Final = partial(
    parse_size, low=CACHE_BYTES_MIN, high=CACHE_BYTES_MAX, allowed="from 8MiB to 1024GiB"
)
parse_reserve: Final = partial(parse_size, low=0, high=CACHE_BYTES_MAX, allowed="from 0 to 1024GiB")
parse_pace: Final = partial(
    parse_size, low=0, high=SCRUB_BYTES_PER_S_MAX, allowed="from 0 to 1GiB a second"
)
