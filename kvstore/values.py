"""Keys, values and version tokens: what a user hands in, as bytes, and back again.

A value is what MessagePack holds: None, bool, int (64 bits), float, str, bytes, list, dict and
timezone-aware datetime, nested up to a limit. *Exact types come back*, so a type that would come
back as another one (a tuple as a list, an enum as its number, a subclass as its base) is refused
by name and place instead of being changed silently. Two conversions lose nothing and are allowed:
bytes-like objects come back as bytes, and a datetime comes back as the same moment in UTC. A
`msgpack.ExtType` that another program stored is handed out as it is.

The C packer does the work; only after it refused does `_fault` walk the value to say where. Depth
and number of items are looked at afterwards, and only where the size leaves room for a violation.
Stored bytes are not trusted: unpacking has explicit limits, because they may come from anyone.

A version's text form is its ballot and sequence in hex, ``round.node.sequence``: safe in URLs and
ETags, opaque to users, one text per version.
"""

from __future__ import annotations

import re
import threading
from datetime import datetime
from itertools import chain
from typing import Any, Final

import msgpack

from cluster.ballot import Ballot
from cluster.limits import KEY_BYTES_MAX, VALUE_BYTES_MAX, VALUE_DEPTH_MAX, VALUE_ITEMS_MAX
from cluster.records import VERSION_BYTES, pack_version, unpack_version
from kvstore.errors import BadRequest, CorruptValue, ValueTooLarge

__all__ = [
    "check_key",
    "pack_value",
    "unpack_value",
    "version_from_text",
    "version_to_text",
]

_HOLDS: Final = "a value holds None, bool, int, float, str, bytes, list, dict and aware datetime"
_VERSION_TEXT: Final = re.compile(r"([0-9a-f]{1,8})\.([0-9a-f]{1,16})\.([0-9a-f]{1,16})")


class _Packers(threading.local):
    """A packer for each thread: making one costs ten times what packing a short value does."""

    def __init__(self) -> None:
        self.pack = msgpack.Packer(strict_types=True, datetime=True).pack


_packers = _Packers()


def check_key(key: str | bytes) -> bytes:
    """The key as it is stored; text becomes UTF-8.

    Raises:
        BadRequest: it is no str or bytes, is empty, over 4,096 bytes, or not encodable.
    """
    text = isinstance(key, str)
    if type(key) is not bytes:
        if not isinstance(key, str):
            if not isinstance(key, bytes):
                raise BadRequest(f"a key is str or bytes, {key!r:.80} is a {type(key).__name__}")
            key = bytes(key)
        else:
            try:
                key = key.encode()
            except UnicodeEncodeError as error:
                raise BadRequest(f"the key {key!r:.80} is no valid text: {error.reason}") from None
    if 0 < len(key) <= KEY_BYTES_MAX:
        return key
    if not key:
        raise BadRequest("the key is empty: a key has 1 to 4,096 bytes")
    begin = key[:40].decode(errors="ignore") if text else key[:40]
    raise BadRequest(
        f"the key {begin!r}... has {len(key):,} bytes, the limit is {KEY_BYTES_MAX:,}: "
        "shorten it, or use its hash"
    )


def pack_value(value: Any) -> bytes:
    """MessagePack of a value.

    Raises:
        BadRequest: it holds what MessagePack does not; the message names type and place.
        ValueTooLarge: over `VALUE_BYTES_MAX` once packed.
    """
    try:
        packed: bytes = _packers.pack(value)
    except (TypeError, ValueError, OverflowError, RecursionError, BufferError) as error:
        raise BadRequest(
            _fault(value, "value", 1) or f"the value cannot be stored: {error}"
        ) from None
    size = len(packed)
    if size > VALUE_BYTES_MAX:
        raise ValueTooLarge(
            f"the value has {size:,} bytes, the limit is {VALUE_BYTES_MAX:,}: split it over keys"
        )
    if size > VALUE_DEPTH_MAX and type(value) in (list, dict):
        _check_shape(value, size)
    return packed


def unpack_value(packed: bytes) -> Any:
    """The value of its MessagePack.

    Raises:
        CorruptValue: it is none, or goes beyond the limits.
    """
    try:
        return msgpack.unpackb(
            packed,
            raw=False,
            timestamp=3,
            strict_map_key=False,
            max_str_len=VALUE_BYTES_MAX,
            max_bin_len=VALUE_BYTES_MAX,
            max_ext_len=VALUE_BYTES_MAX,
            max_array_len=VALUE_ITEMS_MAX,
            max_map_len=VALUE_ITEMS_MAX,
        )
    except Exception as error:  # the unpacker raises a dozen kinds, those of datetime among them
        raise CorruptValue(
            f"{len(packed):,} stored bytes are no value: {type(error).__name__}: {error}"
        ) from error


def version_to_text(version: bytes) -> str:
    """The token that users see for the 20 bytes of a version."""
    position = unpack_version(version)
    ballot = position.established
    return f"{ballot.round:x}.{ballot.node:x}.{position.sequence:x}"


def version_from_text(text: str) -> bytes:
    """The inverse of `version_to_text`.

    Raises:
        BadRequest: this is no token that a server gave.
    """
    parts = _VERSION_TEXT.fullmatch(text) if isinstance(text, str) else None
    if parts is not None:
        round_, node, sequence = (int(part, 16) for part in parts.groups())
        version = pack_version(Ballot(round_, node), sequence)
        if version_to_text(version) == text:
            assert len(version) == VERSION_BYTES
            return version
    raise BadRequest(f"{text!r:.80} is no version: use the one that put or get_entry returned")


def _check_shape(value: list[Any] | dict[Any, Any], size: int) -> None:
    """Refuse what is too deep or has too many items; one pass per level, not per item."""
    level: list[Any] = [value]
    items = 0
    for _ in range(VALUE_DEPTH_MAX):
        children: list[Any] = []
        for container in level:
            inside = container.values() if type(container) is dict else container
            items += len(inside)
            children += [child for child in inside if type(child) is dict or type(child) is list]
        level = children
        if not level:
            break
    else:
        raise BadRequest(_too_deep("value"))
    if size > VALUE_ITEMS_MAX < items:
        raise BadRequest(f"the value has {items:,} items, the limit is {VALUE_ITEMS_MAX:,}")


def _too_deep(path: str) -> str:
    return f"{path} is nested deeper than {VALUE_DEPTH_MAX} levels"


def _fault(value: Any, path: str, depth: int) -> str | None:
    """What is wrong with a value that the packer refused, or None if nothing is found."""
    kind = type(value)
    if kind is int:
        if -(2**63) <= value < 2**64:
            return None
        return f"{path} is an int beyond 64 bits; {_HOLDS}"
    if kind is str:
        return None if _encodable(value) else f"{path} is a str with half a surrogate pair"
    if kind is datetime:
        if value.tzinfo is not None:
            return None
        return f"{path} is a datetime without time zone; give it one, for example datetime.UTC"
    if value is None or kind in (bool, float, bytes, bytearray, memoryview, msgpack.ExtType):
        return None
    if kind is not list and kind is not dict:
        article = "an" if kind.__name__[:1].lower() in "aeiou" else "a"
        return f"{path} is {article} {kind.__name__}; {_HOLDS}"
    if depth > VALUE_DEPTH_MAX:
        return _too_deep(_shortened(path))
    pairs = value.items() if kind is dict else enumerate(value)
    keys = ((key, f"the key {key!r:.40} of {path}") for key in value) if kind is dict else ()
    places = chain(keys, ((child, f"{path}[{name!r:.40}]") for name, child in pairs))
    found = (_fault(child, place, depth + 1) for child, place in places)
    return next((fault for fault in found if fault), None)


def _shortened(path: str) -> str:
    return path if len(path) <= 120 else f"{path[:80]}...{path[-30:]}"


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
