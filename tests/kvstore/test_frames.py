"""Bytes to frames: whatever arrives is frames, nothing yet, or a `FrameError`; and never memory."""

from __future__ import annotations

import itertools
import tracemalloc
from contextlib import suppress

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cluster.limits import FRAME_BYTES_MAX, HANDSHAKE_BYTES_MAX
from cluster.operations import Absent, Done, Get, Put, Scan
from cluster.outputs import WatchState
from cluster.swim_messages import Ping
from kvstore.wire.frames import (
    LENGTH_BYTES,
    FrameDecoder,
    FrameError,
    decode_frame,
    encode_frame,
)
from kvstore.wire.protocol import (
    MAGIC,
    PROTOCOL_VERSION,
    Founding,
    Frame,
    Gossip,
    Hello,
    Leads,
    Packed,
    Refused,
    Request,
    Response,
    RouteQuery,
    SlotChanged,
    SlotMessages,
    SlotTold,
    Watch,
    Watched,
    Welcome,
)

KEPT_BYTES_MAX = 1_048_576
"""What refusing a bomb may cost; each of them claims gigabytes."""

uint32 = st.integers(0, 2**32 - 1)
short_text = st.text(max_size=20)
short_bytes = st.binary(max_size=40)
values = st.binary(max_size=40).map(lambda body: msgspec.Raw(msgspec.msgpack.encode(body)))
operations = st.one_of(
    st.builds(Put, key=short_bytes, value=values, content_type=short_text, ttl_ms=uint32),
    st.builds(Get, key=short_bytes, eventual=st.booleans()),
    st.builds(Scan, uint32, short_bytes, short_bytes, uint32, st.booleans()),
)
frames: st.SearchStrategy[Frame] = st.one_of(
    st.builds(Hello, uint32, short_text, short_text, short_text, uint32, short_text),
    st.builds(Welcome, uint32, short_text, short_text, uint32, short_text),
    st.builds(Refused, short_text, short_text),
    st.builds(
        Request,
        *(uint32, uint32, uint32, st.booleans(), uint32, uint32),
        st.lists(operations, max_size=4),
        st.lists(short_bytes, max_size=4),
    ),
    st.builds(
        Response,
        uint32,
        st.lists(st.one_of(st.builds(Done, short_bytes), st.builds(Absent)), max_size=4),
        st.dictionaries(uint32, uint32, max_size=3),
    ),
    st.builds(RouteQuery, uint32, uint32, uint32),
    st.builds(Leads, st.booleans(), short_bytes, short_bytes, short_bytes),
    st.builds(Founding, short_bytes, short_bytes),
    st.builds(Gossip, st.builds(Ping, uint32, st.just([]))),
    st.just(SlotMessages([])),
    st.builds(Packed, short_bytes),
    st.builds(Watch, short_bytes, st.lists(uint32, max_size=4), st.lists(uint32, max_size=4)),
    st.builds(
        Watched,
        st.lists(
            st.one_of(
                st.builds(
                    SlotChanged,
                    uint32,
                    short_bytes,
                    st.lists(st.tuples(short_bytes, st.none() | short_bytes), max_size=3),
                ),
                st.builds(SlotTold, uint32, st.sampled_from(WatchState), uint32, uint32),
            ),
            max_size=4,
        ),
    ),
)


def framed(body: bytes) -> bytes:
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


def as_bytes(frame: Frame) -> bytes:
    """A frame to compare: values (`msgspec.Raw`) compare by what they point into."""
    return encode_frame(frame)


@st.composite
def cut(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """The same bytes in pieces of any size, empty ones too."""
    places = sorted(draw(st.lists(st.integers(0, len(data)), max_size=30)))
    return [data[a:b] for a, b in itertools.pairwise([0, *places, len(data)])]


@given(st.lists(frames, max_size=6), st.booleans(), st.data())
def test_any_split_gives_the_same_frames(
    sent: list[Frame], expect_magic: bool, data: st.DataObject
) -> None:
    stream = MAGIC * expect_magic + b"".join(map(encode_frame, sent))
    decoder = FrameDecoder(expect_magic=expect_magic)
    got = [frame for piece in data.draw(cut(stream)) for frame in decoder.feed(piece)]
    assert list(map(as_bytes, got)) == list(map(as_bytes, sent))
    assert list(map(type, got)) == list(map(type, sent))
    assert decoder.buffered_bytes == 0


@given(st.lists(frames, min_size=1, max_size=4), st.data())
def test_a_frame_comes_out_with_its_last_byte(sent: list[Frame], data: st.DataObject) -> None:
    decoder = FrameDecoder()
    encoded = [encode_frame(frame) for frame in sent]
    kept = data.draw(st.integers(0, len(encoded[-1]) - 1))
    got = decoder.feed(b"".join(encoded[:-1]) + encoded[-1][:kept])
    assert len(got) == len(sent) - 1
    assert decoder.buffered_bytes == kept
    assert decoder.feed(b"") == []
    last = decoder.feed(encoded[-1][kept:])
    assert list(map(as_bytes, last)) == [encoded[-1]]
    assert decoder.buffered_bytes == 0


def test_a_frame_byte_by_byte_keeps_no_more_than_itself() -> None:
    decoder = FrameDecoder(expect_magic=True)
    encoded = encode_frame(Founding(b"x" * 1_000, b"y" * 1_000))
    for at, byte in enumerate(MAGIC + encoded[:-1]):
        assert decoder.feed(bytes([byte])) == []
        assert decoder.buffered_bytes <= at + 1
    assert decoder.buffered_bytes == len(encoded) - 1
    assert len(decoder.feed(encoded[-1:])) == 1


# -- what is no frame ------------------------------------------------------------------------------

NOT_UTF8 = msgspec.msgpack.encode([62, "?", ""]).replace(b"?", b"\xff")
"""A `Refused` whose reason is no text."""


def decode_or_refuse(body: bytes) -> None:
    """Anything but a frame or a `FrameError` goes up."""
    with suppress(FrameError):
        decode_frame(body)


@given(st.binary(max_size=200))
@example(b"")
@example(b"\xc1")
@example(b"\x92\x48")
def test_garbage_is_a_frame_error_or_a_frame(body: bytes) -> None:
    decode_or_refuse(body)


@given(frames, st.data())
def test_a_damaged_frame_is_a_frame_error_or_another_frame(
    frame: Frame, data: st.DataObject
) -> None:
    body = bytearray(encode_frame(frame)[LENGTH_BYTES:])
    body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 0x7F))
    decode_or_refuse(bytes(body))


@given(frames, st.data())
def test_a_shortened_body_is_a_frame_error(frame: Frame, data: st.DataObject) -> None:
    body = encode_frame(frame)[LENGTH_BYTES:]
    with pytest.raises(FrameError, match="not a message of this protocol"):
        decode_frame(body[: data.draw(st.integers(0, len(body) - 1))])


@given(frames, st.binary(min_size=1, max_size=9))
def test_bytes_behind_the_message_are_a_frame_error(frame: Frame, more: bytes) -> None:
    with pytest.raises(FrameError):
        decode_frame(encode_frame(frame)[LENGTH_BYTES:] + more)


def test_text_that_is_no_utf8_is_a_frame_error() -> None:
    with pytest.raises(FrameError):
        decode_frame(NOT_UTF8)


@given(st.binary(min_size=1, max_size=20).filter(lambda head: not MAGIC.startswith(head[:4])))
@example(b"GET / HTTP/1.1\r\n")
@example(b"\x16\x03\x01\x02\x00")
@example(b"RKV2")
def test_what_does_not_open_with_the_magic_is_refused_at_its_first_wrong_byte(
    data: bytes,
) -> None:
    decoder = FrameDecoder(expect_magic=True)
    right = next(at for at in range(len(MAGIC)) if data[at : at + 1] != MAGIC[at : at + 1])
    assert decoder.feed(data[:right]) == []
    with pytest.raises(FrameError, match="this is no kvstore client"):
        decoder.feed(data[right:])


def test_the_magic_is_asked_for_once_and_only_of_those_who_dial() -> None:
    query = encode_frame(RouteQuery(1))
    listening = FrameDecoder(expect_magic=True)
    assert listening.feed(MAGIC) == []
    assert listening.feed(query) == [RouteQuery(1)]
    assert FrameDecoder().feed(query) == [RouteQuery(1)]
    with pytest.raises(FrameError):  # the magic read as a length is over any limit
        listening.feed(MAGIC + query)


def fields(tag: int, *given: object) -> bytes:
    return msgspec.msgpack.encode([tag, *given])


WRONG = {
    "nothing": b"",
    "no array": msgspec.msgpack.encode({"type": 70}),
    "no tag": msgspec.msgpack.encode([]),
    "tag is text": msgspec.msgpack.encode(["70"]),
    "unknown tag": fields(99, 1),
    "a result's tag": fields(1, b"version"),
    "negative tag": fields(-70),
    "text for a number": fields(72, "1"),
    "float for a number": fields(72, 1.5),
    "nil for a number": fields(72, None),
    "bool for a number": fields(72, True),
    "text for bytes": fields(83, 1, b""),
    "bytes for text": fields(62, b"frame", "detail"),
    "too few fields": fields(60, PROTOCOL_VERSION, "client"),
    "a map for a list": fields(70, 1, 1, 1, False, 100, 0, {}, []),
    "unknown operation": fields(70, 1, 1, 1, False, 100, 0, [[99, b"key"]], []),
    "operation without fields": fields(70, 1, 1, 1, False, 100, 0, [[6]], []),
    "operation is nil": fields(70, 1, 1, 1, False, 100, 0, [None], []),
    "an atomic with an increment": fields(70, 1, 1, 1, False, 100, 0, [[5, [[3, b"k", 1]]]], []),
    "number over 64 bits": b"\x92\x48" + b"\xc4\x09" + b"\xff" * 9,
    "extension": b"\x92\x48\xc7\x00\x05",
    "reserved byte": b"\x92\x48\xc1",
}


@pytest.mark.parametrize("body", WRONG.values(), ids=WRONG.keys())
def test_a_message_that_the_protocol_does_not_know_is_a_frame_error(body: bytes) -> None:
    decoder = FrameDecoder()
    with pytest.raises(FrameError, match="not a message of this protocol"):
        decoder.feed(encode_frame(RouteQuery(1)) + framed(body))


# -- what would cost memory ------------------------------------------------------------------------


@pytest.mark.parametrize("claimed", [FRAME_BYTES_MAX + 1, 2**31, 2**32 - 1])
def test_a_length_over_the_limit_is_refused_before_any_body(claimed: int) -> None:
    decoder = FrameDecoder()
    with pytest.raises(FrameError, match=rf"claims {claimed} bytes.*{FRAME_BYTES_MAX}"):
        decoder.feed(claimed.to_bytes(LENGTH_BYTES, "big"))
    assert decoder.buffered_bytes <= LENGTH_BYTES


def test_the_limit_is_that_of_the_handshake_until_it_is_raised() -> None:
    large = encode_frame(Founding(b"x" * HANDSHAKE_BYTES_MAX, b""))
    small = FrameDecoder(frame_bytes_max=HANDSHAKE_BYTES_MAX)
    with pytest.raises(FrameError, match=f"the limit here is {HANDSHAKE_BYTES_MAX}"):
        small.feed(large)
    raised = FrameDecoder(frame_bytes_max=HANDSHAKE_BYTES_MAX)
    assert raised.feed(b"") == []
    raised.frame_bytes_max = FRAME_BYTES_MAX
    assert len(raised.feed(large)) == 1


def test_a_claim_within_the_limit_keeps_only_what_came() -> None:
    tracemalloc.start()
    try:
        decoder = FrameDecoder()
        assert decoder.feed(FRAME_BYTES_MAX.to_bytes(LENGTH_BYTES, "big") + b"\x99") == []
        assert decoder.buffered_bytes == LENGTH_BYTES + 1
        assert tracemalloc.get_traced_memory()[1] < KEPT_BYTES_MAX
    finally:
        tracemalloc.stop()


def test_a_frame_over_the_limit_is_not_sent() -> None:
    with pytest.raises(FrameError, match="over the limit"):
        encode_frame(Founding(b"x" * FRAME_BYTES_MAX, b""))


REQUEST = b"\x99\x46\x01\x01\x01\xc2\x64\x00"
"""A request up to its operations, of which one may follow: array of 9, tag 70, six fields."""

PUT = REQUEST + b"\x91\x93\x01\xc4\x01k"
"""The same up to the value of its only put."""

DEEP = 100_000
HUGE = b"\xff\xff\xff\xff"

BOMBS = {
    "nested arrays": b"\x91" * DEEP,
    "nested maps": b"\x81\xa1k" * DEEP,
    "nested arrays for operations": REQUEST + b"\x91" * DEEP,
    "nested arrays in a value": PUT + b"\x91" * DEEP + b"\xc0\x90",
    "nested maps in a value": PUT + b"\x81\xa1k" * DEEP + b"\xc0\x90",
    "nested map keys in a value": PUT + b"\x81" * DEEP,
    "nested arrays for an unknown field": b"\x93\x48\x01" + b"\x91" * DEEP,
    "array of 2**32-1": b"\xdd" + HUGE,
    "array of 2**32-1 with a tag": b"\xdd" + HUGE + b"\x46",
    "map of 2**32-1": b"\xdf" + HUGE,
    "operations of 2**32-1": REQUEST + b"\xdd" + HUGE + b"\x92\x06\xc4\x01k" * 10,
    "writes of 2**32-1": REQUEST + b"\x91\x92\x05\xdd" + HUGE + b"\x92\x02\xc4\x01k" * 10,
    "value is an array of 2**32-1": PUT + b"\xdd" + HUGE + b"\xc0" * 100,
    "value is a map of 2**32-1": PUT + b"\xdf" + HUGE + b"\xc0" * 100,
    "value is 2**32-1 bytes": PUT + b"\xc6" + HUGE + b"x" * 100,
    "value is 2**32-1 of text": PUT + b"\xdb" + HUGE + b"x" * 100,
    "value is an extension of 2**32-1": PUT + b"\xc9" + HUGE + b"x" * 100,
    "leads is a map of 2**32-1": b"\x94\x47\x01\x90\xdf" + HUGE + b"\x01\x01" * 100,
    "key is 2**32-1 bytes": REQUEST + b"\x91\x92\x06\xc6" + HUGE + b"x" * 100,
    "messages of 2**32-1": b"\x92\x51\xdd" + HUGE,
}


@pytest.mark.parametrize("body", BOMBS.values(), ids=BOMBS.keys())
def test_a_bomb_is_a_frame_error_that_costs_no_memory(body: bytes) -> None:
    tracemalloc.start()
    try:
        decoder = FrameDecoder()
        with pytest.raises(FrameError, match="not a message of this protocol"):
            decoder.feed(framed(body))
        assert tracemalloc.get_traced_memory()[1] < 2 * len(body) + KEPT_BYTES_MAX
    finally:
        tracemalloc.stop()


def test_a_value_may_be_moderately_deep() -> None:
    """What the limit of depth allows must pass the frame, or no such value could be stored."""
    value = msgspec.Raw(b"\x91" * 128 + b"\xc0")
    body = encode_frame(Request(1, 1, 1, False, 100, 0, [Put(b"k", value)], []))
    (request,) = FrameDecoder().feed(body)
    assert isinstance(request, Request)
    (op,) = request.ops
    assert isinstance(op, Put)
    assert bytes(op.value) == bytes(value)
