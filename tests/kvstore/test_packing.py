"""Bulk between nodes: smaller on the wire, the same on the other side, and no bomb."""

from __future__ import annotations

import random
import zlib

import pytest

from cluster.ballot import Ballot, Position
from cluster.key_log import LogEntry, encode_entry
from cluster.limits import FRAME_BYTES_MAX
from cluster.messages import Accept, Content, Install, SlotMessage
from cluster.slot_config import SlotConfig
from kvstore.wire.frames import FrameError, decode_frame, encode_frame
from kvstore.wire.packing import PACK_BYTES_MIN, encode_slots, unpack
from kvstore.wire.protocol import Packed, RouteQuery, SlotMessages

BALLOT = Ballot(3, 0xA11CE)
CONFIG = SlotConfig(((0xA11CE, 0xB0B, 0xCA01),))


def install(slot: int, records: int, rng: random.Random) -> Install:
    """The content of a slot with random values of 100 bytes."""
    keys = [b"key:%07d" % rng.randrange(10**7) for _ in range(records)]
    entries = [
        (n, encode_entry(LogEntry(3, 0xA11CE, 1 << 60, 10**6 + n, [key])))
        for n, key in enumerate(keys, 1)
    ]
    changes: list[tuple[bytes, bytes | None]] = [(key, rng.randbytes(126)) for key in keys]
    position = Position(BALLOT, records)
    content = Content(0, position, CONFIG, ((BALLOT, 1),), entries, changes)
    return Install(slot, BALLOT, Position(BALLOT, 0), content)


def sent(messages: list[SlotMessage]) -> object:
    return decode_frame(encode_slots(messages)[4:])


def test_bulk_arrives_as_it_was_and_costs_little_more_than_its_records() -> None:
    rng = random.Random(7)
    messages: list[SlotMessage] = [install(slot, 6, rng) for slot in range(64)]
    packed = sent(messages)
    assert isinstance(packed, Packed)
    assert unpack(packed).messages == messages
    records = 64 * 6 * (11 + 126)
    assert len(packed.data) < 1.2 * records < len(encode_frame(SlotMessages(messages)))


def test_the_hot_path_is_not_packed() -> None:
    accepts: list[SlotMessage] = [
        Accept(slot, BALLOT, 1, b"e" * 40, [(b"k", b"v" * 126)]) for slot in range(64)
    ]
    assert isinstance(sent(accepts), SlotMessages)


def test_little_is_not_packed() -> None:
    frame = encode_slots([install(1, 2, random.Random(7))])
    assert len(frame) < PACK_BYTES_MIN
    assert isinstance(decode_frame(frame[4:]), SlotMessages)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "cut off"),
        (b"no zlib", "damaged"),
        (zlib.compress(encode_frame(SlotMessages([]))[4:])[:-1], "cut off"),
        (zlib.compress(encode_frame(SlotMessages([]))[4:]) + b"more", "cut off or over"),
        (zlib.compress(bytes(FRAME_BYTES_MAX + 1)), "over the limit"),
        (zlib.compress(encode_frame(RouteQuery(1))[4:]), "holds a RouteQuery"),
        (zlib.compress(b"\xc1"), "not a message"),
    ],
)
def test_what_is_no_bulk_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(FrameError, match=says):
        unpack(Packed(data))
