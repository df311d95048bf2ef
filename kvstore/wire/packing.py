"""Bulk between nodes, compressed: what brings a peer up to date (rule 11) and takes over (rule 9).

Thousands of slots say nearly the same: the same ballots, configs and members, and each key twice,
in its log entry and with its record. Such messages are packed with zlib at its quickest level, all
of a frame together; that takes about half of the bytes away even where values are random, at some
20 ns a byte. Accepts and their acknowledgements are never slowed by it unless they share a tick
with bulk.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Final

from cluster.limits import FRAME_BYTES_MAX
from cluster.messages import Chunk, Establish, Gap, Install, Promise, Pulled
from kvstore.wire.frames import LENGTH_BYTES, FrameError, decode_frame, encode_frame
from kvstore.wire.protocol import Packed, SlotMessages

if TYPE_CHECKING:
    from cluster.messages import SlotMessage

BULK: Final = frozenset((Chunk, Establish, Gap, Install, Promise, Pulled))

PACK_BYTES_MIN: Final = 2_048
"""Smaller frames are sent as they are: two packets at most."""

_LEVEL: Final = 1


def encode_slots(messages: list[SlotMessage]) -> bytes:
    """The frame of one tick's messages, packed if they are bulk.

    Raises:
        FrameError: it is over the frame limit, packed or not.
    """
    frame = encode_frame(SlotMessages(messages))
    if len(frame) < PACK_BYTES_MIN or BULK.isdisjoint(map(type, messages)):
        return frame
    return encode_frame(Packed(zlib.compress(memoryview(frame)[LENGTH_BYTES:], _LEVEL)))


def unpack(packed: Packed) -> SlotMessages:
    """The inverse; never makes more than one frame may hold.

    Raises:
        FrameError: it is damaged, too large, or holds something else.
    """
    unzip = zlib.decompressobj()
    try:
        body = unzip.decompress(packed.data, FRAME_BYTES_MAX + 1)
    except zlib.error as error:
        raise FrameError(f"a packed frame is damaged: {error}") from error
    if len(body) > FRAME_BYTES_MAX or not unzip.eof or unzip.unused_data:
        raise FrameError("a packed frame is cut off or over the limit")
    frame = decode_frame(body)
    if not isinstance(frame, SlotMessages):
        raise FrameError(f"a packed frame holds a {type(frame).__name__}")
    return frame
