"""Where a listing goes on.

A listing walks slot by slot and inside a slot in key order, so a place in it is ``(slot, last
key)``. That place means the same at every node, whoever is primary, so a cursor outlives
failovers: a key that exists all the time is listed exactly once. The text is opaque to users and
carries a format number, the prefix it belongs to (as a hash) and a checksum, so that a broken or
foreign cursor is refused instead of silently skipping keys.

::

    format u8 | prefix hash 4 | slot u32 | last key | crc32 u32      as unpadded base64url
"""

from __future__ import annotations

import base64
import binascii
from hashlib import blake2b
from typing import Final, NamedTuple
from zlib import crc32

from cluster.limits import KEY_BYTES_MAX, SLOT_COUNT_MAX
from kvstore.http.problems import ProblemError

__all__ = ["Place", "decode_cursor", "encode_cursor"]

_FORMAT: Final = 1
_HEAD_BYTES: Final = 9
_CHECKSUM_BYTES: Final = 4


class Place(NamedTuple):
    """The next key is the first of ``slot`` above ``after`` (empty: from its beginning)."""

    slot: int
    after: bytes


def encode_cursor(place: Place, prefix: bytes) -> str:
    """The text of a place in the listing of ``prefix``."""
    body = b"".join((bytes((_FORMAT,)), _hash(prefix), place.slot.to_bytes(4, "big"), place.after))
    whole = body + crc32(body).to_bytes(_CHECKSUM_BYTES, "big")
    return base64.urlsafe_b64encode(whole).rstrip(b"=").decode()


def decode_cursor(text: str, prefix: bytes) -> Place:
    """The inverse of `encode_cursor`.

    Raises:
        ProblemError: it is damaged, of another format, or of another prefix.
    """
    try:
        whole = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise _bad("is damaged") from None
    body, checksum = whole[:-_CHECKSUM_BYTES], whole[-_CHECKSUM_BYTES:]
    if len(body) < _HEAD_BYTES or crc32(body).to_bytes(_CHECKSUM_BYTES, "big") != checksum:
        raise _bad("is damaged")
    if body[0] != _FORMAT:
        raise _bad(f"has format {body[0]}, this node knows {_FORMAT}")
    if body[1:5] != _hash(prefix):
        raise _bad("belongs to another prefix")
    place = Place(int.from_bytes(body[5:_HEAD_BYTES], "big"), body[_HEAD_BYTES:])
    if place.slot >= SLOT_COUNT_MAX or len(place.after) > KEY_BYTES_MAX:
        raise _bad("points nowhere")
    if encode_cursor(place, prefix) != text:
        raise _bad("is damaged")
    return place


def _hash(prefix: bytes) -> bytes:
    return blake2b(prefix, digest_size=4).digest()


def _bad(what: str) -> ProblemError:
    return ProblemError(
        "bad-cursor", f"The cursor {what}: send 'next' as it was given, or begin without one."
    )
